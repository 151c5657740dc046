"""Pauses between tries, and the slow start of a pool after failures."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.worlds import NOW, PLANS, creation, of_kind, pending, snapshot, soon, spec, vm
from vmpool.api.pool import Creation
from vmpool.plan.actions import CreateVM
from vmpool.plan.backoff import JITTER, after_failure, after_success, fraction, pause
from vmpool.plan.lifecycle import Phase
from vmpool.plan.pool import plan_pool

BASE, LONGEST = timedelta(seconds=2), timedelta(minutes=5)


def fail(before: Creation | None, seconds: float = 0) -> Creation:
    return after_failure(before, soon(seconds=seconds), base=BASE, longest=LONGEST, seed="pool")


@PLANS
@given(st.text())
def test_a_fraction_depends_on_its_seed_alone(seed: str) -> None:
    assert 0.0 <= fraction(seed) < 1.0
    assert fraction(seed) == fraction.__wrapped__(seed)


def test_fractions_are_spread() -> None:
    tenths = {int(fraction(f"vm-{number}") * 10) for number in range(200)}
    assert tenths == set(range(10))


@PLANS
@given(st.integers(-3, 10**6), st.text())
def test_a_pause_doubles_within_its_bounds(failures: int, seed: str) -> None:
    full = min(BASE * 2 ** min(failures - 1, 20), LONGEST) if failures > 0 else timedelta()
    assert full * (1 - JITTER) <= pause(failures, BASE, LONGEST, seed) <= full


def test_no_failure_is_no_pause() -> None:
    assert pause(0, BASE, LONGEST, "x") == timedelta()


def test_what_failed_together_does_not_return_together() -> None:
    assert len({pause(3, BASE, LONGEST, f"vm-{number}") for number in range(20)}) == 20


def test_the_first_failure_closes_the_window_to_one_for_a_pause() -> None:
    found = fail(None)
    assert (found.window, found.failures) == (1, 1)
    assert BASE * (1 - JITTER) <= found.not_before - NOW <= BASE


def test_failures_in_a_row_make_the_pause_grow() -> None:
    second = fail(creation(4, 1, -1))
    assert (second.window, second.failures) == (1, 2)
    assert 2 * BASE * (1 - JITTER) <= second.not_before - NOW <= 2 * BASE


def test_what_was_begun_together_and_fails_together_counts_once() -> None:
    first = fail(None)
    assert fail(first, seconds=0.5) is first
    assert fail(first, seconds=1.5) is first
    assert fail(first, seconds=2).failures == 2


def test_a_failure_after_a_success_closes_the_window_at_once() -> None:
    """The old pause may still run; it was another failure's."""
    found = fail(creation(8, 0, 30))
    assert (found.window, found.failures) == (1, 1)


def test_each_success_doubles_the_window_until_it_is_no_bound() -> None:
    windows = []
    state: Creation | None = creation(1, 5, -1)
    while state is not None:
        state = after_success(state, 10)
        windows.append(state and state.window)
    assert windows == [2, 4, 8, None]
    assert after_success(None, 10) is None


def test_a_success_forgets_the_failures() -> None:
    found = after_success(creation(1, 5, -1), 10)
    assert found is not None
    assert found.failures == 0


@pytest.mark.parametrize(("window", "made"), [(1, 1), (2, 2), (4, 4), (64, 10)])
def test_no_more_are_created_than_the_window_says(window: int, made: int) -> None:
    seen = snapshot(of=spec(replicas=10), creation=creation(window, 1, 0))
    assert len(of_kind(plan_pool(seen, NOW), CreateVM)) == made


def test_nothing_is_created_before_the_pause_is_over_and_the_pool_wakes_then() -> None:
    seen = snapshot(creation=creation(4, 2, 9))
    found = plan_pool(seen, NOW)
    assert found.actions == ()
    assert found.wake_at == soon(seconds=9)
    assert found.held_back == "creation is slowed down after 2 failures in a row"
    assert len(of_kind(plan_pool(seen, soon(seconds=9)), CreateVM)) == 3


@pytest.mark.parametrize(
    "one",
    [
        pending("on-its-way", machine_id="m"),
        vm("failed", Phase.COMPLETED, reason="MachineFailed"),
        vm("was-in-quarantine", Phase.COMPLETED, reason="QuarantineEnded"),
    ],
    ids=lambda one: one.name,
)
def test_the_window_is_taken_until_the_vm_is_ready_or_gone(one) -> None:
    seen = snapshot(one, creation=creation(1, 1, 0))
    assert not of_kind(plan_pool(seen, NOW), CreateVM)


@pytest.mark.parametrize("reason", ["Surplus", "ClaimEnded", "TemplateChanged", "Deleted"])
def test_what_goes_for_another_reason_takes_no_place_in_the_window(reason: str) -> None:
    seen = snapshot(vm("done", Phase.COMPLETED, reason=reason), creation=creation(1, 1, 0))
    assert len(of_kind(plan_pool(seen, NOW), CreateVM)) == 1
