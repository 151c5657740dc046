"""Whole stories: worlds that obey the plans, round after round, faults included."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.simulator import CALM, STORMY, Script, World, quiet, settle
from tests.unit.plan.worlds import (
    STORIES,
    claim,
    holds_slot,
    of_kind,
    pool,
    populated,
    randoms,
    snapshot,
    soon,
    spec,
    vm,
)
from vmpool.plan.actions import (
    CreateVM,
    EnsureMachine,
)
from vmpool.plan.lifecycle import Phase
from vmpool.plan.pool import desired, plan_pool
from vmpool.plan.snapshot import PoolSnapshot, Reason


def usable_ready(world: World) -> int:
    return sum(one.phase == Phase.READY and one.claim is None and not one.deleting for one in world.vms.values())


@STORIES
@given(populated(), randoms, st.integers(0, 40))
def test_every_world_settles_at_what_is_wanted_and_stays_there(seen: PoolSnapshot, random, storm: int) -> None:
    world = World(seen, random, STORMY)
    for _ in range(storm):
        world.round()
    world.script = CALM
    settle(world)
    assert usable_ready(world) == desired(world.snapshot())
    kept = dict(world.vms)
    for _ in range(5):
        assert quiet(world.round())
    assert world.vms == kept
    plan = plan_pool(world.snapshot(), world.now)
    assert plan.held_back == ""
    assert plan.counts.surplus == plan.counts.deficit == plan.counts.pending == 0


@STORIES
@given(populated(deleting=True), randoms, st.sampled_from([CALM, STORMY]))
def test_a_deleted_pool_ends_with_nothing_left(seen: PoolSnapshot, random, script: Script) -> None:
    world = World(seen, random, replace(script, claimed=0.0))
    for _ in range(2000):
        plan = world.round()
        if plan.release:
            break
    assert plan.release
    assert not world.vms
    assert not {machine.token for machine in world.machines.values()}


@pytest.mark.parametrize("policy", ["Drain", "Force"])
def test_a_deleted_pool_waits_for_claims_unless_its_owner_said_force(policy: str) -> None:
    mine = vm("mine", Phase.CLAIMED, claim=claim(expires_at=soon(days=365)))
    seen = snapshot(mine, vm("free"), pool=pool(spec(deletionPolicy=policy), deleting=True))
    world = World(seen, Random(1))
    released = any(world.round().release for _ in range(60))
    assert released == (policy == "Force")
    assert [one.name for one in world.vms.values()] == ([] if policy == "Force" else ["mine"])


@STORIES
@given(populated(), randoms)
def test_bounds_hold_at_every_moment_of_a_storm(seen: PoolSnapshot, random) -> None:
    """Of what was in quarantine the next test tells: its time may end in the very round of a create."""

    def slots() -> int:
        return sum(holds_slot(one) and one.reason != Reason.QUARANTINE_ENDED for one in world.vms.values())

    tight = replace(seen.pool, spec=seen.pool.spec.model_copy(update={"max_vms": 12}))
    world = World(replace(seen, pool=tight), random, STORMY)
    most_vms, most_slots = max(12, len(seen.vms)), max(tight.spec.limits.pending, slots())
    for _ in range(60):
        plan = world.round()
        assert len(world.vms) <= most_vms
        if of_kind(plan, CreateVM):
            assert slots() <= most_slots


@STORIES
@given(
    randoms,
    st.integers(1, 6),
    st.integers(0, 3),
    st.integers(0, 4),
    st.integers(1, 5),
)
def test_a_broken_template_cannot_breed_a_herd(random, pending_limit: int, kept: int, slow: int, destroys: int) -> None:
    """Every machine fails: those that exist at once stay within the pending limit and the quarantine's."""
    of = spec(replicas=8, limits={"pending": pending_limit, "quarantined": kept}, retry={"backoff": "1s"})
    world = World(snapshot(of=of), random, Script(boot_fails=1.0, slow=slow, destroys=destroys))
    for _ in range(150):
        slots = sum(map(holds_slot, world.vms.values())) + len(world.snapshot().creating)
        plan = world.round()
        assert len(world.machines) <= pending_limit + kept
        creates = of_kind(plan, CreateVM)
        if world.creation is not None and creates:
            assert (slots, len(creates)) == (0, 1)
    assert world.made > kept + 1


def test_a_herd_does_not_grow_through_the_quarantine_when_nothing_can_be_destroyed() -> None:
    """Each failure pushes one machine out of quarantine: those that are pushed out keep their slots."""
    of = spec(replicas=8, limits={"pending": 2, "quarantined": 1}, retry={"backoff": "1s"})
    world = World(snapshot(of=of), Random(1), Script(boot_fails=1.0, destroys=10_000))
    for _ in range(300):
        world.round()
    assert len(world.machines) <= 3


@STORIES
@given(populated(), randoms)
def test_whatever_happens_no_machine_leaks_and_no_claim_is_broken(seen: PoolSnapshot, random) -> None:
    """The simulated server and provider raise on both; claims and losses come at any moment."""
    world = World(seen, random, replace(STORMY, claimed=0.4, released=0.3, machine_lost=0.1))
    for _ in range(80):
        world.round()
        for machine in world.machines.values():
            assert machine.token in world.vms


def test_an_empty_pool_is_filled_and_then_left_alone() -> None:
    world = World(snapshot(of=spec(replicas=2)), Random(1))
    assert len(of_kind(world.round(), CreateVM)) == 2
    assert len(of_kind(world.round(), EnsureMachine)) == 2
    settle(world)
    assert (len(world.vms), len(world.machines)) == (2, 2)
    assert world.round().actions == ()
