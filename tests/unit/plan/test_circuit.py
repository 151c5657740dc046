"""The circuit breaker of a provider."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.worlds import NOW, PLANS, soon
from vmpool.api.provider import Circuit
from vmpool.plan.circuit import Breaker

PAUSE = timedelta(seconds=30)
CLOSED = Breaker(threshold=3, pause=PAUSE)
OPEN = CLOSED.failed(NOW, "Unavailable").failed(NOW, "Unavailable").failed(NOW, "Throttled")


def test_failures_in_a_row_open_it() -> None:
    assert CLOSED.failed(NOW, "x").failed(NOW, "x").state is Circuit.CLOSED
    assert OPEN.state is Circuit.OPEN
    assert (OPEN.failures, OPEN.open_until, OPEN.last_error) == (3, NOW + PAUSE, "Throttled")


def test_a_success_in_between_begins_anew() -> None:
    twice = CLOSED.failed(NOW, "x").failed(NOW, "x")
    assert twice.succeeded() == CLOSED
    assert twice.succeeded().failed(NOW, "x").state is Circuit.CLOSED


def test_it_opens_half_when_its_pause_is_over() -> None:
    assert OPEN.at(soon(seconds=29.9)).state is Circuit.OPEN
    assert OPEN.at(soon(seconds=30)).state is Circuit.HALF_OPEN
    assert CLOSED.at(soon(days=9)) is CLOSED


def test_one_success_closes_a_half_open_one() -> None:
    assert OPEN.at(soon(seconds=30)).succeeded() == CLOSED


def test_one_failure_opens_a_half_open_one_again() -> None:
    again = OPEN.at(soon(seconds=30)).failed(soon(seconds=31), "Unavailable")
    assert again.state is Circuit.OPEN
    assert again.open_until == soon(seconds=61)


def test_a_late_failure_does_not_make_the_pause_longer() -> None:
    assert OPEN.failed(soon(seconds=20), "late") is OPEN


def test_a_late_success_closes_it() -> None:
    assert OPEN.succeeded() == CLOSED


def test_a_success_of_a_healthy_provider_changes_nothing() -> None:
    assert CLOSED.succeeded() is CLOSED


@PLANS
@given(st.integers(1, 6), st.lists(st.sampled_from(["ok", "fails", "wait"]), max_size=40))
def test_whatever_happens_the_state_explains_itself(threshold: int, story: list[str]) -> None:
    breaker, now, row = Breaker(threshold, PAUSE), NOW, 0
    for event in story:
        now += PAUSE / 3 if event == "wait" else timedelta()
        breaker = breaker.at(now)
        if event == "ok":
            breaker, row = breaker.succeeded(), 0
        elif event == "fails":
            breaker, row = breaker.failed(now, "Unavailable"), row + 1
        assert (breaker.state is Circuit.CLOSED) == (row < threshold)
        if breaker.state is Circuit.OPEN:
            assert breaker.open_until is not None
            assert now < breaker.open_until <= now + PAUSE
        assert bool(breaker.last_error) == bool(row)
