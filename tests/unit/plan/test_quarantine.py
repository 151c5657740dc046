"""Failed machines that are kept for a human: which, how many, and who makes room."""

from dataclasses import replace
from datetime import timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.simulator import CALM, STORMY, Script, World
from tests.unit.plan.worlds import (
    BROKEN,
    EAST,
    GONE,
    NOW,
    STORIES,
    WEST,
    ago,
    names,
    of_kind,
    pending,
    populated,
    provider,
    randoms,
    snapshot,
    soon,
    spec,
    vm,
)
from vmpool.plan.actions import Complete, Quarantine
from vmpool.plan.lifecycle import Phase
from vmpool.plan.pool import Plan, plan_pool
from vmpool.plan.snapshot import VM, Failed, PoolSnapshot, Reason, Sight, Step


def failing(name: str, **changes) -> VM:
    return pending(name, **({"machine_id": f"m-{name}"} | changes))


def kept(name: str, minutes: int, **changes) -> VM:
    return vm(name, Phase.QUARANTINED, phase_since=ago(minutes=minutes), **changes)


def plan(*vms: VM, limit: int = 2, busy: tuple[VM, ...] = (), sight: Sight = BROKEN, **changes) -> Plan:
    """The plan of a pool with this quarantine limit, where every Pending VM has this sight."""
    sights = {one.uid: sight for one in vms if one.phase in (Phase.PENDING, Phase.READY)}
    of = spec(limits={"quarantined": limit}, recycle={"quarantineTTL": "30m"})
    seen = snapshot(*vms, of=of, sights=sights, busy=frozenset(one.uid for one in busy), **changes)
    return plan_pool(seen, NOW)


def test_a_failed_machine_is_kept_with_its_cause_until_its_time_is_over() -> None:
    bad = failing("bad")
    assert of_kind(plan(bad), Quarantine) == [
        Quarantine(bad, Step.BOOT, Reason.MACHINE_FAILED, "kernel panic", NOW + timedelta(minutes=30))
    ]


def test_a_ready_machine_that_failed_is_kept_as_well() -> None:
    assert names(of_kind(plan(vm("r")), Quarantine)) == ["r"]


@pytest.mark.parametrize(
    ("one", "sight"),
    [
        pytest.param(failing("gone"), GONE, id="the machine is gone"),
        pytest.param(pending("none"), Sight(failure=Failed(Step.CREATE, "Terminal", "no")), id="no machine was made"),
    ],
)
def test_where_there_is_nothing_to_look_at_the_vm_ends(one: VM, sight: Sight) -> None:
    found = plan(one, sight=sight)
    assert not of_kind(found, Quarantine)
    (end,) = of_kind(found, Complete)
    assert end.reason in (Reason.MACHINE_GONE, "Terminal")
    assert end.step in (Step.BOOT, Step.CREATE)


def test_no_more_are_kept_than_the_limit_says() -> None:
    found = plan(failing("a"), failing("b"), failing("c"))
    assert (len(of_kind(found, Quarantine)), len(of_kind(found, Complete))) == (2, 1)


def test_limit_0_keeps_none() -> None:
    found = plan(failing("a"), limit=0)
    assert not of_kind(found, Quarantine)
    assert [(end.vm.name, end.reason) for end in of_kind(found, Complete)] == [("a", Reason.MACHINE_FAILED)]


def test_the_oldest_makes_room_and_only_then_is_the_newcomer_kept() -> None:
    old, young, bad = kept("old", 50), kept("young", 5), failing("bad")
    first = plan(young, old, bad)
    assert [(end.vm.name, end.reason) for end in of_kind(first, Complete)] == [("old", Reason.QUARANTINE_ENDED)]
    assert not of_kind(first, Quarantine)
    assert plan(young, old, bad, busy=(old,)).actions[:1] != first.actions[:1]
    assert not of_kind(plan(young, old, bad, busy=(old,)), Complete)
    assert names(of_kind(plan(young, replace(old, phase=Phase.COMPLETED), bad), Quarantine)) == ["bad"]


def test_each_newcomer_needs_a_place_of_its_own() -> None:
    stock = (kept("a", 50), kept("b", 40), failing("x"), failing("y"), failing("z"))
    found = plan(*stock)
    ended = [(end.vm.name, end.reason) for end in of_kind(found, Complete)]
    assert sorted(ended) == [
        ("a", Reason.QUARANTINE_ENDED),
        ("b", Reason.QUARANTINE_ENDED),
        ("z", Reason.MACHINE_FAILED),
    ]


def test_a_newcomer_on_its_way_in_takes_its_place_already() -> None:
    coming, next_one = failing("coming"), failing("next")
    found = plan(kept("a", 9), coming, next_one, busy=(coming,))
    assert not of_kind(found, Quarantine)
    assert names(of_kind(found, Complete)) == ["a"]


def test_a_lowered_limit_ends_the_oldest() -> None:
    found = plan(kept("a", 9), kept("b", 8), kept("c", 7), limit=1)
    assert names(of_kind(found, Complete)) == ["a", "b"]
    assert {end.message for end in of_kind(found, Complete)} == {"limits.quarantined is 1"}
    assert names(of_kind(plan(kept("a", 9), limit=0), Complete)) == ["a"]


def test_kept_machines_are_neither_ready_nor_pending_but_count_within_max_vms() -> None:
    of = spec(replicas=3, maxVMs=4)
    found = plan_pool(snapshot(kept("a", 9), kept("b", 8), of=of), NOW)
    assert (found.counts.ready, found.counts.pending, found.counts.quarantined) == (0, 0, 2)
    assert len(found.actions) == 2
    assert found.held_back == "maxVMs is 4"


def test_nothing_is_kept_at_a_provider_that_is_being_deleted() -> None:
    going = {EAST: provider(usable=False, deleting=True)}
    found = plan(kept("a", 9), failing("b"), providers=going)
    assert not of_kind(found, Quarantine)
    assert sorted(names(of_kind(found, Complete))) == ["a", "b"]


def test_quarantine_wakes_the_pool_at_its_end() -> None:
    assert plan(kept("a", 9), vm("r1"), vm("r2"), vm("r3"), sight=Sight()).wake_at == soon(hours=1)


@STORIES
@given(st.integers(0, 3), st.integers(0, 3), st.integers(1, 5), randoms)
def test_the_limit_holds_at_every_moment(limit: int, slow: int, destroys: int, random: Random) -> None:
    homes = [{"name": EAST}, {"name": WEST}]
    of = spec(replicas=6, providers=homes, limits={"quarantined": limit}, retry={"backoff": "1s"})
    world = World(snapshot(of=of), random, Script(boot_fails=0.6, machine_lost=0.02, slow=slow, destroys=destroys))
    entered = 0
    for _ in range(120):
        found = world.round()
        entered += len(of_kind(found, Quarantine))
        assert world.count(Phase.QUARANTINED) <= limit
    assert limit or not entered


@STORIES
@given(populated(), randoms)
def test_whatever_happened_a_quarantine_comes_within_its_limit(seen: PoolSnapshot, random: Random) -> None:
    """An outage can hide that a machine is on its way in: then one too many is kept until the next rounds."""
    world = World(seen, random, STORMY)
    for _ in range(30):
        world.round()
    world.script = CALM
    for _ in range(12):
        world.round()
    assert world.count(Phase.QUARANTINED) <= seen.pool.spec.limits.quarantined
