"""A purge policy on a virtual clock, and what people are told is due."""

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.worlds import NOW, PLANS, ago, claim, creation, pending, pool, snapshot, soon, spec, vm
from vmpool.api.purge import Pause, PurgePolicySpec
from vmpool.plan.foresight import cycles_ahead
from vmpool.plan.lifecycle import Phase
from vmpool.plan.plannedtimes import coming_to_pool, coming_to_vm
from vmpool.plan.purge import Group, look
from vmpool.plan.snapshot import VM

HOUR = timedelta(hours=1)
DAILY = PurgePolicySpec(max_ready_age=24 * HOUR, interval=HOUR)


def ready(name: str, hours: float) -> VM:
    return replace(vm(name, Phase.READY), phase_since=ago(hours=hours))


def removed(vms: list[VM], policy: PurgePolicySpec, hours: float) -> list[tuple[float, str]]:
    cycles = cycles_ahead([Group(tuple(vms))], policy, NOW, NOW + hours * HOUR)
    return [((cycle.at - NOW) / HOUR, one.vm.name) for cycle in cycles for one in cycle.found.due]


def test_each_vm_goes_in_the_first_cycle_after_its_time() -> None:
    vms = [ready("a", 30), ready("b", 22.5), ready("c", 1)]
    assert removed(vms, DAILY, 12) == [(0.0, "a"), (2.0, "b")]
    assert removed(vms, DAILY, 24) == [(0.0, "a"), (2.0, "b"), (24.0, "c")]


def test_the_budget_leaves_the_youngest_for_later_cycles() -> None:
    vms = [ready(name, hours) for name, hours in (("a", 26), ("b", 27), ("c", 25))]
    assert removed(vms, DAILY.model_copy(update={"max_per_cycle": 1}), 6) == [(0.0, "b"), (1.0, "a"), (2.0, "c")]


def test_nothing_goes_while_a_pause_lasts() -> None:
    paused = DAILY.model_copy(update={"pauses": (Pause(name="move", until=NOW + 3 * HOUR),)})
    cycles = list(cycles_ahead([Group((ready("a", 30),))], paused, NOW, NOW + 5 * HOUR))
    assert [cycle.paused for cycle in cycles] == [True, True, True, False]


@PLANS
@given(st.lists(st.floats(0, 60), max_size=12), st.integers(1, 5), st.integers(1, 48))
def test_in_the_end_exactly_what_was_too_old_is_gone_once(hours: list[float], budget: int, span: int) -> None:
    vms = [ready(f"vm-{number}", one) for number, one in enumerate(hours)]
    policy = DAILY.model_copy(update={"max_per_cycle": budget})
    names = [name for _, name in removed(vms, policy, span)]
    assert len(names) == len(set(names))
    last = NOW + span * HOUR
    too_old = {
        one.vm.name for one in look([Group(tuple(vms))], DAILY.model_copy(update={"max_per_cycle": 99}), last).due
    }
    assert set(names) <= too_old
    if budget * (span + 1) >= len(vms) and budget >= len(too_old):
        assert set(names) == too_old


def test_what_is_due_for_a_vm_is_told_with_its_rule() -> None:
    seen = snapshot(of=spec(readiness={"timeout": "15m"}, recycle={"readyTTL": "24h", "jitterPercent": 0}))
    booting = replace(pending("a"), machine_id="m", created_at=ago(minutes=5))
    (coming,) = coming_to_vm(booting, seen, None, NOW)
    assert coming.at == soon(minutes=10)
    assert "readiness.timeout is 15m" in coming.what
    (replaced, purged) = coming_to_vm(ready("b", 1), seen, DAILY, NOW)
    assert replaced.at == purged.at == soon(hours=23)
    claimed = replace(ready("c", 1), claim=claim())
    (ends,) = coming_to_vm(claimed, seen, DAILY, NOW)
    assert claimed.claim is not None
    assert ends.at == claimed.claim.expires_at


def test_a_pool_is_told_its_pause_and_the_first_of_its_vms() -> None:
    made = creation(1, 1, 60)
    seen = replace(snapshot(ready("b", 1), ready("c", 2), pool=pool(spec())), creation=made)
    pause, first = coming_to_pool(seen, DAILY, NOW)
    assert pause.at == made.not_before
    assert first.what.startswith("c: the next purge")


def test_dry_run_and_exemption_promise_no_removal() -> None:
    dry = DAILY.model_copy(update={"dry_run": True})
    assert coming_to_vm(ready("b", 1), snapshot(), dry, NOW) == []
    assert coming_to_vm(replace(ready("b", 1), purge_exempt=True), snapshot(), DAILY, NOW) == []
