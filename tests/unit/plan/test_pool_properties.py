"""What holds for every single plan, whatever world a pool wakes up in."""

import copy
from collections import Counter
from dataclasses import replace
from datetime import timedelta

from hypothesis import given

from tests.unit.plan.worlds import (
    NEW,
    NOW,
    PLANS,
    down,
    holds_slot,
    of_kind,
    snapshots,
    soon,
)
from vmpool.plan.actions import (
    Complete,
    CreateVM,
    DestroyMachine,
    EndClaim,
    Forget,
    Look,
    MarkClaimed,
    MarkReady,
    Quarantine,
    TagMachine,
)
from vmpool.plan.lifecycle import Phase, may_become
from vmpool.plan.pool import Plan, plan_pool
from vmpool.plan.snapshot import PoolSnapshot, Reason
from vmpool.plan.status import pool_status
from vmpool.plan.vm import ENDED_EXPIRED, ENDED_FORCED, ENDED_MACHINE_GONE, nothing_left

ASKED_FOR = {Reason.CLAIM_ENDED, Reason.DELETED}
"""Ends that the pool does not choose: somebody asked for each of them."""

WRITES = {MarkReady: Phase.READY, MarkClaimed: Phase.CLAIMED, Quarantine: Phase.QUARANTINED, Complete: Phase.COMPLETED}


def vm_actions(plan: Plan) -> list:
    return [action for action in plan.actions if not isinstance(action, CreateVM)]


def a_claimed_vm_is_only_looked_at_or_tagged_or_its_claim_is_ended(seen: PoolSnapshot, plan: Plan) -> None:
    for action in vm_actions(plan):
        if not action.vm.claimed:
            continue
        assert isinstance(action, MarkClaimed | TagMachine | EndClaim | Look)
        if isinstance(action, TagMachine):
            assert action.vm.phase == Phase.CLAIMED
            assert seen.sight(action.vm).claim_tag != action.vm.claim.id
        if isinstance(action, EndClaim):
            why = {
                ENDED_EXPIRED: action.vm.claim.expires_at <= NOW,
                ENDED_MACHINE_GONE: nothing_left(seen.sight(action.vm), seen.providers.get(action.vm.provider, down())),
                ENDED_FORCED: seen.pool.deleting and seen.pool.spec.deletion_policy == "Force",
            }
            assert why[action.reason]


def a_released_vm_is_completed_and_only_then_destroyed(seen: PoolSnapshot, plan: Plan) -> None:
    for action in vm_actions(plan):
        if isinstance(action, DestroyMachine | Forget):
            assert action.vm.phase == Phase.COMPLETED
        elif action.vm.claim is not None and action.vm.claim.released_at is not None:
            assert isinstance(action, Complete)
            assert action.reason == Reason.CLAIM_ENDED


def creates_stay_within_every_bound(seen: PoolSnapshot, plan: Plan) -> None:
    creates, limits, flying = of_kind(plan, CreateVM), seen.pool.spec.limits, len(seen.creating)
    if not creates:
        return
    assert len(creates) <= limits.creates
    assert len(seen.vms) + flying + len(creates) <= seen.pool.spec.max_vms
    assert sum(map(holds_slot, seen.vms)) + flying + len(creates) <= limits.pending
    weights = {share.name: share.weight for share in seen.pool.spec.providers}
    for name, count in Counter(create.provider for create in creates).items():
        assert seen.providers[name].usable
        assert count <= seen.providers[name].room
        assert weights[name] > 0
    if seen.creation is not None:
        assert seen.creation.not_before <= NOW
        moving = sum(holds_slot(one) for one in seen.vms if seen.providers.get(one.provider, down()).reachable)
        assert moving + flying + len(creates) <= seen.creation.window


def the_pool_gives_up_at_most_limits_deletes_a_round(seen: PoolSnapshot, plan: Plan) -> None:
    ended = [action for action in of_kind(plan, Complete) if action.reason not in ASKED_FOR and not expired(action)]
    assert len(ended) + len(of_kind(plan, Quarantine)) <= seen.pool.spec.limits.deletes


def expired(action: Complete) -> bool:
    return action.vm.phase == Phase.QUARANTINED and action.vm.expires_at <= NOW


def a_busy_vm_is_left_alone_and_each_vm_gets_one_action(seen: PoolSnapshot, plan: Plan) -> None:
    touched = [action.vm.uid for action in vm_actions(plan)]
    assert not seen.busy.intersection(touched)
    assert len(touched) == len(set(touched))


def a_pool_never_creates_and_has_a_surplus_of_the_same_template_at_once(seen: PoolSnapshot, plan: Plan) -> None:
    surplus = [one for one in of_kind(plan, Complete) if one.reason == Reason.SURPLUS and one.vm.digest == NEW]
    assert not (of_kind(plan, CreateVM) and surplus)


def what_is_not_seen_counts_as_gone_only_with_the_whole_proof(seen: PoolSnapshot, plan: Plan) -> None:
    for action in vm_actions(plan):
        concluded = isinstance(action, Forget) or getattr(action, "reason", "") == Reason.MACHINE_GONE
        if not concluded:
            continue
        sight, home = seen.sight(action.vm), seen.providers[action.vm.provider]
        assert home.reachable
        assert sight.misses >= 2
        assert sight.unlisted
        assert not (sight.namesake and isinstance(action, Forget)), "another machine has its token"
        assert home.listed_at > sight.missed_at


def an_unreachable_provider_is_asked_nothing_and_costs_no_vm(seen: PoolSnapshot, plan: Plan) -> None:
    """Only what somebody decided on ends there: a smaller pool, a deletion, a released claim, a failed create."""
    decided = {*ASKED_FOR, Reason.SURPLUS, Reason.PROVIDER_DELETED, Reason.POOL_DELETED, Reason.QUARANTINE_ENDED}
    for action in vm_actions(plan):
        home = seen.providers.get(action.vm.provider)
        if home is not None and home.reachable:
            continue
        assert isinstance(action, MarkClaimed | EndClaim | Complete | Quarantine)
        if isinstance(action, EndClaim):
            assert action.reason != ENDED_MACHINE_GONE
        elif isinstance(action, Complete | Quarantine):
            assert action.reason in decided or seen.sight(action.vm).failure is not None


def the_plan_depends_on_its_input_alone_and_leaves_it_as_it_was(seen: PoolSnapshot, plan: Plan) -> None:
    kept = copy.deepcopy(seen)
    assert plan_pool(seen, NOW) == plan
    assert seen == kept


def the_next_look_lies_ahead(seen: PoolSnapshot, plan: Plan) -> None:
    assert plan.wake_at is None or plan.wake_at > NOW


def when_nothing_is_done_nothing_becomes_due_before_the_next_look(seen: PoolSnapshot, plan: Plan) -> None:
    """An effect in flight wakes the pool when it lands, so worlds with one are left out."""
    if plan.actions or seen.busy:
        return
    just_before = (plan.wake_at or soon(days=30)) - timedelta(microseconds=1)
    later = plan_pool(seen, just_before)
    assert later.actions == ()
    before = pool_status(seen, plan, failures=(), stalled=None, now=NOW)
    seen = replace(seen, pool=replace(seen.pool, status=before))
    after = pool_status(seen, later, failures=(), stalled=None, now=just_before)
    assert after.wire() == before.wire()


def a_paused_pool_plans_nothing(seen: PoolSnapshot, plan: Plan) -> None:
    if not seen.pool.spec.paused:
        return
    assert plan.actions == ()
    assert plan.wake_at is None


def a_deleted_pool_creates_nothing_and_is_released_only_when_nothing_is_left(seen: PoolSnapshot, plan: Plan) -> None:
    if not seen.pool.deleting:
        assert not plan.release
        return
    assert not of_kind(plan, CreateVM)
    assert plan.release == (not seen.vms and not seen.creating)


def only_legal_steps_of_life_are_asked_for(seen: PoolSnapshot, plan: Plan) -> None:
    for action in vm_actions(plan):
        after = WRITES.get(type(action))
        if after is not None and action.vm.phase in set(Phase):
            assert may_become(Phase(action.vm.phase), after)


PROMISES = (
    only_legal_steps_of_life_are_asked_for,
    a_claimed_vm_is_only_looked_at_or_tagged_or_its_claim_is_ended,
    a_released_vm_is_completed_and_only_then_destroyed,
    creates_stay_within_every_bound,
    the_pool_gives_up_at_most_limits_deletes_a_round,
    a_busy_vm_is_left_alone_and_each_vm_gets_one_action,
    a_pool_never_creates_and_has_a_surplus_of_the_same_template_at_once,
    what_is_not_seen_counts_as_gone_only_with_the_whole_proof,
    an_unreachable_provider_is_asked_nothing_and_costs_no_vm,
    the_plan_depends_on_its_input_alone_and_leaves_it_as_it_was,
    the_next_look_lies_ahead,
    when_nothing_is_done_nothing_becomes_due_before_the_next_look,
    a_paused_pool_plans_nothing,
    a_deleted_pool_creates_nothing_and_is_released_only_when_nothing_is_left,
)


@PLANS
@given(snapshots())
def test_every_plan_keeps_every_promise(seen: PoolSnapshot) -> None:
    """One drawn world for all promises, because drawing is what takes the time; the traceback names the broken one."""
    plan = plan_pool(seen, NOW)
    for promise in PROMISES:
        promise(seen, plan)
