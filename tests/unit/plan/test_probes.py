"""Which Ready VMs are probed when: each once an interval, spread, and never for what is not theirs."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.unit.plan.worlds import EAST, NOW, RUNNING, ago, claim, spec, vm
from vmpool.plan.lifecycle import Phase
from vmpool.plan.looks import TICKS, next_tick
from vmpool.plan.probes import probes_due
from vmpool.plan.snapshot import VM, Sight

PROBED = spec(readiness={"tcpSocket": {"port": 22}}).readiness
HERE = {EAST}


LONG_AGO = ago(days=2)


def due(*vms: VM, now=NOW, since=LONG_AGO, seen: Sight | None = None, reachable=HERE) -> list[str]:
    sights = {} if seen is None else {one.uid: seen for one in vms}
    return [one.name for one in probes_due(vms, sights, reachable, PROBED, now, since)]


def test_each_is_probed_once_an_interval_and_a_few_at_a_time() -> None:
    vms = [vm(f"r{number}", phase_since=ago(days=1), provider=EAST) for number in range(120)]
    sights = {one.uid: replace(RUNNING, probed_at=NOW) for one in vms}
    at, turns = NOW, []
    while at < NOW + PROBED.interval:
        at = next_tick(at, PROBED.interval)
        found = probes_due(vms, sights, HERE, PROBED, at, NOW)
        sights |= {one.uid: replace(RUNNING, probed_at=at + timedelta(milliseconds=3)) for one in found}
        turns.append({one.name for one in found})
    assert len(turns) == TICKS
    assert set.union(*turns) == {one.name for one in vms}
    assert sum(len(turn) for turn in turns) == len(vms), "none of them twice"
    assert max(len(turn) for turn in turns) < len(vms) / 3, "spread"


def test_after_a_restart_nothing_is_made_up_for_at_once() -> None:
    """What was Ready for a day and never probed by this process is not overdue, all at once."""
    old = [vm(f"r{number}", phase_since=ago(days=1), provider=EAST) for number in range(50)]
    assert due(*old, since=NOW) == []
    assert len(due(*old, since=NOW, now=NOW + PROBED.interval)) == len(old)


def test_what_has_missed_its_turn_is_due() -> None:
    assert due(vm("r", provider=EAST), seen=replace(RUNNING, probed_at=ago(minutes=5))) == ["r"]


@pytest.mark.parametrize(
    "other",
    [
        vm("p", Phase.PENDING, provider=EAST),
        vm("q", Phase.QUARANTINED, provider=EAST),
        vm("d", Phase.COMPLETED, provider=EAST),
        vm("c", claim=claim(), provider=EAST),
        vm("x", deleting=True, provider=EAST),
        vm("n", addresses=(), provider=EAST),
    ],
    ids=lambda one: one.name,
)
def test_only_ready_vms_that_can_be_handed_out_are_probed(other: VM) -> None:
    assert due(other, now=NOW + timedelta(days=1)) == []


def test_behind_a_provider_that_cannot_be_reached_silence_says_nothing() -> None:
    one = vm("r", provider=EAST)
    assert due(one, now=NOW + timedelta(days=1)) == ["r"]
    assert due(one, now=NOW + timedelta(days=1), reachable=set()) == []
