"""What the plan makes of VMs that a claim's status names and that nobody sees: nothing, until the server has spoken."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.unit.plan.queues import a_claim, a_pool, a_vm, hold, seen
from tests.unit.plan.worlds import NOW, soon
from vmpool.plan.claims import plan_claims
from vmpool.plan.claimstatus import bound_status, followed_status
from vmpool.plan.follow import follow, wakes_of
from vmpool.plan.queue import EndHeld, Extend, Note, ProveGone, Remove, SayFound, SetStatus
from vmpool.plan.snapshot import VM, VMClaim

POOL = a_pool()
POOLS = {(POOL.namespace, POOL.name): POOL}
RESTING = Note(retry_at=soon(seconds=3))


def bound(count: int = 1, **wish: str) -> tuple[VMClaim, tuple[VM, ...]]:
    """A claim that has its VMs, and those."""
    claim = a_claim("c", count, **wish)
    vms = tuple(a_vm(f"vm{slot}", POOL, hold(claim, slot)) for slot in range(count))
    return replace(claim, status=bound_status(claim, dict(enumerate(vms)), NOW)), vms


def released(vm: VM) -> VM:
    assert vm.claim is not None
    return replace(vm, claim=replace(vm.claim, released_at=NOW, end_reason="Released"))


def test_a_vm_that_the_mirror_does_not_show_is_asked_for_and_not_given_up() -> None:
    claim, _ = bound()
    world = seen([claim], [POOL])
    (ask,) = plan_claims(world, NOW).actions
    assert isinstance(ask, ProveGone)
    assert ask.unseen == claim.status.vms
    plan = plan_claims(replace(world, notes={claim.uid: RESTING}), NOW)
    assert (plan.actions, plan.wake_at) == ((), soon(seconds=3))
    assert plan_claims(replace(world, notes={claim.uid: RESTING}), soon(seconds=3)).actions == (ask,)


def test_news_of_the_others_is_written_while_one_is_not_seen() -> None:
    claim, (one, other) = bound(2)
    write = follow(claim, (released(one),), POOLS, NOW, RESTING)
    assert isinstance(write, SetStatus)
    assert (write.status.phase, [vm.end_reason for vm in write.status.vms]) == ("Bound", ["Released", None])
    assert write.status.expires_at == soon(hours=24), "as long as it was said to have the other one"
    told = replace(claim, status=write.status)
    assert follow(told, (released(one),), POOLS, NOW, RESTING) is None
    ask = follow(told, (released(one),), POOLS, NOW)
    assert isinstance(ask, ProveGone)
    assert [vm.uid for vm in ask.unseen] == [other.uid]


def test_a_lifetime_counts_as_acted_upon_when_it_has_reached_every_vm() -> None:
    claim, (one, _) = bound(2)
    longer = replace(claim, spec=a_claim("c", 2, lifetime="48h").spec)
    extend = follow(longer, (one,), POOLS, NOW)
    assert isinstance(extend, Extend)
    assert one.claim is not None
    moved = replace(one, claim=replace(one.claim, expires_at=soon(hours=48)))
    assert isinstance(follow(longer, (moved,), POOLS, NOW), ProveGone)
    status = followed_status(longer, {moved.uid: moved}, None, NOW)
    assert (status.lifetime, status.expires_at) == (None, soon(hours=24))


def test_only_what_the_server_has_no_object_of_is_gone() -> None:
    claim, (one, other) = bound(2)
    status = followed_status(claim, {}, None, NOW, {one.uid})
    assert ([vm.end_reason for vm in status.vms], status.phase) == (["Gone", None], "Bound")
    status = followed_status(claim, {}, None, NOW, {one.uid, other.uid})
    assert ([vm.end_reason for vm in status.vms], status.phase) == (["Gone", "Gone"], "Failed")
    status = followed_status(claim, {one.uid: one}, None, NOW, {one.uid})
    assert status.vms[0].end_reason is None, "what is held is there"


@pytest.mark.parametrize("word", [None, "Gone", "Released"])
def test_a_finished_claim_never_ends_a_live_vm_that_its_status_names_nor_goes_before_it(word: str | None) -> None:
    claim, (vm,) = bound(ttlAfterFinished="0s")
    named = tuple(one.model_copy(update={"end_reason": word}) for one in claim.status.vms)
    over = claim.status.model_copy(update={"phase": "Failed", "finished_at": NOW, "vms": named})
    finished = replace(claim, status=over)
    assert follow(finished, (vm,), POOLS, soon(hours=1)) is None
    spare = a_vm("spare", POOL, hold(claim))
    end = follow(finished, (vm, spare), POOLS, soon(hours=1))
    assert isinstance(end, EndHeld)
    assert end.vms == (spare,)
    assert isinstance(follow(finished, (released(vm),), POOLS, NOW), Remove)


def test_a_deletion_that_could_not_be_proven_is_looked_at_again_later() -> None:
    claim, vms = bound()
    going = replace(claim, deleting=True)
    assert follow(going, vms, POOLS, NOW, RESTING) is None
    assert wakes_of(going, RESTING) == (soon(seconds=3),)
    assert isinstance(follow(going, vms, POOLS, soon(seconds=3), RESTING), EndHeld)


def test_a_vm_that_says_that_its_claim_is_missing_is_corrected() -> None:
    claim, (vm,) = bound()
    missed = replace(vm, claim_missing=True)
    found = follow(claim, (missed,), POOLS, NOW + timedelta(seconds=1))
    assert found == SayFound(claim, (missed,))
    assert follow(claim, (vm,), POOLS, NOW) is None
