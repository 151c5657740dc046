"""Decide about one claim that waits no more: follow its VMs, move their end, take back what is too much, remove it."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from vmpool.plan.claimstatus import followed_status, unseen
from vmpool.plan.demand import RELEASED
from vmpool.plan.judge import too_long
from vmpool.plan.lifecycle import ClaimPhase
from vmpool.plan.queue import (
    NO_NOTE,
    ClaimAction,
    EndHeld,
    Extend,
    Note,
    ProveGone,
    Remove,
    SayFound,
    SetStatus,
    Why,
)
from vmpool.plan.snapshot import VM, PoolFacts, VMClaim

SURPLUS = "Surplus"
DEADLINE_EXCEEDED = "DeadlineExceeded"
FINISHED = frozenset(phase.value for phase in ClaimPhase if phase.finished)


def follow(
    claim: VMClaim,
    held: Sequence[VM],
    pools: Mapping[tuple[str, str], PoolFacts],
    now: datetime,
    note: Note = NO_NOTE,
) -> ClaimAction | None:
    """Return the next effect for a claim that is Bound, finished or being deleted; ``held`` are VMs with its uid."""
    live = live_ones(held)
    rests = note.retry_at is not None and now < note.retry_at
    if claim.deleting:
        return EndHeld(claim, tuple(live), RELEASED) if live and not rests else None
    slots = {one.uid for one in claim.status.vms}
    surplus = tuple(vm for vm in live if vm.uid not in slots)
    if claim.phase in FINISHED:
        if surplus:
            late = claim.status.reason == DEADLINE_EXCEEDED
            return EndHeld(claim, surplus, DEADLINE_EXCEEDED if late else SURPLUS)
        # A VM that its status names is its user's until its own claim ends, and the claim is what stands for that.
        return Remove(claim) if not live and now >= _goes_at(claim) else None
    if claim.phase != ClaimPhase.BOUND:
        # A word of a newer release: it knows what to do.
        return None
    if surplus:
        return EndHeld(claim, surplus, SURPLUS)
    refused = None
    if claim.spec.lifetime != claim.status.lifetime:
        changed = _moved(claim, live, pools)
        if isinstance(changed, Why):
            refused = changed
        elif changed:
            return Extend(claim, changed)
    status = followed_status(claim, {vm.uid: vm for vm in held}, refused, now)
    if status != claim.status:
        return SetStatus(claim, status)
    found = tuple(vm for vm in live if vm.claim_missing)
    if found:
        return SayFound(claim, found)
    away = unseen(claim, {vm.uid for vm in held})
    return ProveGone(claim, away, tuple(held), refused) if away and not rests else None


def wakes_of(claim: VMClaim, note: Note = NO_NOTE) -> tuple[datetime, ...]:
    """Return when the claim has to be looked at again although nothing happens."""
    again = () if note.retry_at is None else (note.retry_at,)
    return (*again, _goes_at(claim)) if claim.phase in FINISHED else again


def live_ones(vms: Iterable[VM]) -> list[VM]:
    """Return those whose claims have not ended."""
    return [vm for vm in vms if vm.claimed]


def lifetime(claim: VMClaim, pool: PoolFacts) -> timedelta:
    """Return how long the claim's VMs of this pool may be kept."""
    asked: timedelta = claim.spec.lifetime or pool.spec.claims.lifetime
    return asked


def _moved(
    claim: VMClaim, live: Sequence[VM], pools: Mapping[tuple[str, str], PoolFacts]
) -> tuple[tuple[VM, datetime], ...] | Why:
    """Return the VMs whose end has to move, or why none may."""
    ends: list[tuple[VM, datetime]] = []
    for vm in live:
        pool = pools.get((vm.namespace, vm.pool))
        if pool is None or pool.uid != vm.pool_uid:
            gone = f"VMPool {vm.namespace}/{vm.pool} is gone, and with it the longest lifetime: its end stays as it is"
            return Why("PoolNotFound", gone)
        why = too_long(claim, (pool,))
        if why is not None:
            return why
        assert vm.claim is not None, "only a claimed VM is live"
        end = (vm.claim.bound_at or vm.since) + lifetime(claim, pool)
        if end != vm.claim.expires_at:
            ends.append((vm, end))
    return tuple(ends)


def _goes_at(claim: VMClaim) -> datetime:
    kept: timedelta = claim.spec.ttl_after_finished
    return (claim.status.finished_at or claim.created_at) + kept
