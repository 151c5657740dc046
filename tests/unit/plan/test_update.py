"""Replacing VMs: a changed template and recycle.readyTTL, within maxSurge and maxUnavailable."""

from dataclasses import replace
from datetime import timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.simulator import Script, World, settle
from tests.unit.plan.worlds import (
    BROKEN,
    EAST,
    NEW,
    NOW,
    OLD,
    STORIES,
    WEST,
    ago,
    amounts,
    claim,
    down,
    names,
    of_kind,
    pending,
    provider,
    randoms,
    snapshot,
    soon,
    spec,
    vm,
)
from vmpool.api.meta import resolve
from vmpool.api.pool import VMPoolSpec
from vmpool.plan.actions import Complete, CreateVM, EnsureMachine
from vmpool.plan.lifecycle import Phase
from vmpool.plan.pool import plan_pool
from vmpool.plan.snapshot import REPLACED, VM, Reason


def bounds(of: VMPoolSpec) -> tuple[int, int]:
    """Most machines and fewest ready VMs, by the words of the spec; both zero would never move."""
    wanted, update = of.replicas or 0, of.update
    surge = resolve(update.max_surge, wanted, round_up=True)
    unavailable = resolve(update.max_unavailable, wanted, round_up=False)
    return wanted + (surge or (0 if unavailable else 1)), wanted - unavailable


def full(replicas: int, digest: str = OLD, **changes) -> tuple[VM, ...]:
    return tuple(vm(f"r{n}", digest=digest, phase_since=ago(minutes=5, seconds=n), **changes) for n in range(replicas))


def roll(world: World, most: int, fewest: int) -> None:
    """Play until the roll is over; the bounds hold at every moment of it."""
    for _ in range(400):
        world.round()
        vms = world.vms.values()
        open_ones = sum(one.phase in (Phase.PENDING, Phase.READY) for one in vms)
        draining = sum(one.phase == Phase.COMPLETED and one.reason in REPLACED for one in vms)
        assert open_ones + draining + len(world.snapshot().creating) <= most
        assert world.count(Phase.READY) >= fewest
        if not draining and open_ones == world.count(Phase.READY) and all(one.digest == world.digest for one in vms):
            return
    raise AssertionError("the roll does not come to its end")


scripts = st.builds(Script, slow=st.integers(0, 3), boots=st.integers(1, 4), destroys=st.integers(1, 4))


@STORIES
@given(st.integers(1, 9), amounts, amounts, scripts, randoms)
def test_a_roll_stays_within_surge_and_unavailable(replicas: int, surge, unavailable, script: Script, random) -> None:
    of = spec(replicas=replicas, update={"maxSurge": surge, "maxUnavailable": unavailable})
    world = World(snapshot(*full(replicas), of=of), random, script)
    roll(world, *bounds(of))
    settle(world)
    assert world.count(Phase.READY) == replicas


@pytest.mark.parametrize("replicas", [1, 2, 3, 10])
def test_bounds_that_round_to_zero_still_move(replicas: int) -> None:
    of = spec(replicas=replicas, update={"maxSurge": 0, "maxUnavailable": "9%"})
    roll(World(snapshot(*full(replicas), of=of), Random(1)), replicas + 1, replicas - 1)


@STORIES
@given(st.integers(2, 8), st.integers(0, 10), st.integers(0, 12), randoms)
def test_a_roll_may_be_scaled_and_turned_back_at_any_moment(replicas: int, scaled: int, after: int, random) -> None:
    of = spec(replicas=replicas, update={"maxSurge": 2, "maxUnavailable": 1})
    world = World(snapshot(*full(replicas), of=of), random, Script(slow=1))
    for _ in range(after):
        world.round()
    world.digest = OLD
    world.pool = replace(world.pool, spec=of.model_copy(update={"replicas": scaled}))
    settle(world)
    assert world.count(Phase.READY) == scaled
    assert all(one.digest == OLD for one in world.vms.values())


def test_turning_back_keeps_what_was_not_replaced_yet() -> None:
    of = spec(replicas=4, update={"maxSurge": 0, "maxUnavailable": 1})
    world = World(snapshot(*full(4), of=of), Random(1))
    world.round()
    world.digest = OLD
    settle(world)
    assert sum(name.startswith("r") for name in (one.name for one in world.vms.values())) == 3


def test_scaling_down_in_a_roll_takes_what_is_to_be_replaced_first() -> None:
    stock = (*full(4), vm("fresh", digest=NEW))
    plan = plan_pool(snapshot(*stock, of=spec(replicas=2, update={"maxSurge": 0, "maxUnavailable": 1})), NOW)
    assert "fresh" not in names(of_kind(plan, Complete))
    assert len(of_kind(plan, Complete)) == 4


def test_scaling_up_in_a_roll_makes_fresh_ones() -> None:
    plan = plan_pool(snapshot(*full(4), of=spec(replicas=8, update={"maxSurge": 1, "maxUnavailable": 0})), NOW)
    assert len(of_kind(plan, CreateVM)) == 5
    assert not of_kind(plan, Complete)


def test_pending_vms_of_an_older_template_go_at_once() -> None:
    seen = snapshot(pending("a", digest=OLD), pending("b", digest=OLD, machine_id="m-b"), *full(1, NEW))
    assert sorted(names(of_kind(plan_pool(seen, NOW), Complete))) == ["a", "b"]


def test_machines_that_are_being_destroyed_take_their_share_of_the_surge() -> None:
    gone = [vm(f"gone{n}", Phase.COMPLETED, reason=Reason.TEMPLATE_CHANGED) for n in range(2)]
    of = spec(replicas=4, update={"maxSurge": 2, "maxUnavailable": 1})
    plan = plan_pool(snapshot(*full(4), *gone, of=of), NOW)
    assert not of_kind(plan, CreateVM)
    assert plan.held_back == "update.maxSurge is reached"


def test_a_failing_replacement_takes_its_share_of_the_surge_until_its_failure_is_written() -> None:
    of = spec(replicas=2, update={"maxSurge": 1, "maxUnavailable": 0})
    late = vm("late", Phase.PENDING, digest=NEW)
    stock = snapshot(*(vm(f"r{n}", digest=OLD) for n in range(2)), late, of=of, sights={"uid-late": BROKEN})
    plan = plan_pool(stock, NOW)
    assert not of_kind(plan, CreateVM)
    assert plan.held_back == "update.maxSurge is reached"


def test_on_claim_leaves_ready_ones_and_those_with_a_machine() -> None:
    of = spec(update={"strategy": "OnClaim"})
    stock = (*full(1), pending("boots", digest=OLD, machine_id="m"), pending("waits", digest=OLD))
    plan = plan_pool(snapshot(*stock, of=of), NOW)
    assert names(of_kind(plan, Complete)) == ["waits"]
    assert plan.counts.stale == 1


def test_on_claim_gives_up_old_templates_first_when_there_are_too_many() -> None:
    of = spec(replicas=1, update={"strategy": "OnClaim"})
    stock = (vm("new", phase_since=ago(hours=3)), vm("old", digest=OLD, phase_since=ago(minutes=1)))
    assert names(of_kind(plan_pool(snapshot(*stock, of=of), NOW), Complete)) == ["old"]


def test_a_claimed_vm_of_an_older_template_is_nobodys_business() -> None:
    plan = plan_pool(snapshot(vm("c", Phase.CLAIMED, digest=OLD), of=spec(replicas=0)), NOW)
    assert plan.actions == ()
    assert plan.counts.stale == 0


def test_an_adopted_machine_has_no_template() -> None:
    plan = plan_pool(snapshot(*full(3, "", adopt="m-9")), NOW)
    assert plan.actions == ()


@pytest.mark.parametrize("home", [down(), down(reason="IdentityChanged", stalled=True)], ids=lambda home: home.reason)
def test_an_outage_does_not_eat_up_the_stock(home) -> None:
    """What cannot be destroyed now is not given up for its template or its age."""
    of = spec(recycle={"readyTTL": "1m"}, update={"maxSurge": 0, "maxUnavailable": "100%"})
    for stock in (full(3), full(3, NEW)):
        plan = plan_pool(snapshot(*stock, of=of, providers={EAST: home}), NOW)
        assert plan.actions == ()
        assert plan.counts.stale == 3


def test_an_outage_elsewhere_does_not_hold_up_the_roll_here() -> None:
    of = spec(replicas=4, providers=[{"name": EAST}, {"name": WEST}], update={"maxSurge": 0, "maxUnavailable": 1})
    stock = (*(vm(f"w{n}", digest=OLD, provider=WEST, phase_since=ago(hours=1)) for n in range(2)), *full(2))
    plan = plan_pool(snapshot(*stock, of=of, providers={EAST: provider(), WEST: down(WEST)}), NOW)
    assert names(of_kind(plan, Complete)) == ["r1"]


def test_the_surge_is_rounded_up_and_the_unavailable_down() -> None:
    of = spec(replicas=10, update={"maxSurge": "11%", "maxUnavailable": "19%"})
    plan = plan_pool(snapshot(*full(10), of=of), NOW)
    assert (len(of_kind(plan, CreateVM)), len(of_kind(plan, Complete))) == (2, 1)


# --- recycle.readyTTL ---------------------------------------------------------------------------------------------


@STORIES
@given(st.text(min_size=1), st.integers(0, 50))
def test_the_jitter_only_shortens_and_within_its_share(uid: str, percent: int) -> None:
    of = spec(replicas=1, recycle={"readyTTL": "100m", "jitterPercent": percent})
    seen = snapshot(vm("r", uid=uid, phase_since=NOW), of=of)
    wake_at = plan_pool(seen, NOW).wake_at
    assert wake_at is not None
    assert timedelta(minutes=100 - percent) <= wake_at - NOW <= timedelta(minutes=100)
    just_before = wake_at - timedelta(microseconds=1)
    assert plan_pool(seen, just_before).actions == ()
    assert plan_pool(seen, just_before).counts.stale == 0
    assert plan_pool(seen, wake_at).counts.stale == 1


def test_vms_made_together_do_not_go_together() -> None:
    of = spec(recycle={"readyTTL": "100m", "jitterPercent": 50})
    ends = {plan_pool(snapshot(vm(f"r{n}", phase_since=NOW), of=of), NOW).wake_at for n in range(20)}
    assert len(ends) == 20


def test_the_time_runs_from_ready_on() -> None:
    of = spec(replicas=2, recycle={"readyTTL": "10m", "jitterPercent": 0}, update={"maxSurge": 0, "maxUnavailable": 2})
    stock = (
        pending("slow", machine_id="m", created_at=ago(minutes=14)),
        vm("young", created_at=ago(hours=9), phase_since=ago(minutes=9)),
        vm("old", phase_since=ago(minutes=10)),
    )
    plan = plan_pool(snapshot(*stock, of=of), NOW)
    assert [(end.vm.name, end.reason) for end in of_kind(plan, Complete)] == [("old", Reason.READY_TTL)]


def test_a_time_that_is_over_wakes_nobody() -> None:
    of = spec(replicas=1, recycle={"readyTTL": "10m", "jitterPercent": 0})
    assert plan_pool(snapshot(vm("r", phase_since=ago(minutes=10)), of=of), NOW).wake_at is None


def test_a_claimed_vm_has_no_ready_ttl() -> None:
    of = spec(replicas=0, recycle={"readyTTL": "1m"})
    mine = vm("mine", claim=claim(expires_at=soon(hours=9)), phase_since=ago(hours=9))
    plan = plan_pool(snapshot(mine, of=of), NOW)
    assert not of_kind(plan, Complete)


def test_what_leaves_is_not_worked_on_any_more() -> None:
    """A pending VM above the deletes of this round must not get its machine in the meantime."""
    stock = [pending(f"p{n}") for n in range(3)]
    plan = plan_pool(snapshot(*stock, of=spec(replicas=0, limits={"deletes": 1})), NOW)
    assert len(of_kind(plan, Complete)) == 1
    assert not of_kind(plan, EnsureMachine)
