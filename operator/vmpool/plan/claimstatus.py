"""The status of a VMClaim: phase, VMs, place in the queue, and the sentence that explains them.

Sentences name no counts that change while a claim waits: a long queue would be written anew with every VM.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from vmpool.api.claim import EXACT_POSITIONS, ClaimedVM, VMClaimStatus
from vmpool.api.conditions import MAX_MESSAGE, Condition, ConditionType, merge, observed
from vmpool.plan.demand import RELEASED, Want, claim_size, stalled
from vmpool.plan.lifecycle import ClaimPhase
from vmpool.plan.queue import Why
from vmpool.plan.snapshot import VM, VMClaim
from vmpool.plan.vm import ENDED_EXPIRED, ENDED_FORCED, ENDED_MACHINE_GONE

BUCKETS = ((100, "11-100"), (1000, "101-1000"))
LAST_BUCKET = ">1000"
GONE = "Gone"
"""Why a VM is not the claim's any more whose object went without a word about its claim, as the server said."""
CLAIM_MISSING = "ClaimMissing"
BY_OWNER = (RELEASED, CLAIM_MISSING)
SHORTEST, LONGEST = timedelta(minutes=1), timedelta(hours=8760)
"""What a lifetime can be written as."""


def position(place: int) -> str:
    """Return a place in the queue, counted from 1: exact for the first ten, then a bucket."""
    if place <= EXACT_POSITIONS:
        return str(place)
    return next((bucket for most, bucket in BUCKETS if place <= most), LAST_BUCKET)


def waiting_status(claim: VMClaim, why: Why, place: int, now: datetime) -> VMClaimStatus:
    """Return the status of a claim that waits."""
    conditions = (_ready(claim, why, now), _progress(claim, ConditionType.RECONCILING, why, now))
    return _changed(claim, ClaimPhase.PENDING, why, conditions, now, position=position(place))


def tells(claim: VMClaim, why: Why, place: int) -> bool:
    """Whether the claim's status is what ``waiting_status`` would make of it; much cheaper to ask."""
    status, message = claim.status, why.message[:MAX_MESSAGE]
    if (status.phase, status.observed_generation) != (ClaimPhase.PENDING, claim.generation):
        return False
    if (status.reason, status.message, status.position) != (why.reason, message, position(place)):
        return False
    said = [(one.type, one.status, one.reason, one.message, one.observed_generation) for one in status.conditions]
    same = (why.reason, message, claim.generation)
    return said == [(ConditionType.READY, "False", *same), (ConditionType.RECONCILING, "True", *same)]


def short_of(want: Want, *, near: bool) -> Why:
    """Say what a claim waits for; unless ``near`` to its turn, nothing that comes and goes with every VM."""
    pool = want.pools[0]
    what = f"VMPool {pool.namespace}/{pool.name}"
    if len(want.pools) > 1:
        what = f"the pools with alias {want.request.alias} in {pool.namespace}"
    count = want.request.count
    asked = f"waits for a VM of {what}" if count == 1 else f"waits for {count} VMs of {what}"
    if all(pool.spec.paused for pool in want.pools):
        return Why("PoolPaused", f"{asked}: it hands out nothing until spec.paused of {pool.name} is false")
    troubles = [stalled(pool) for pool in want.pools]
    if all(troubles):
        return Why("PoolStalled", f"{asked}: it cannot make any now ({troubles[0]}), its status says why")
    taken = [
        pool.status.claimed_replicas + pool.status.quarantined_replicas >= pool.spec.max_vms for pool in want.pools
    ]
    if near and all(taken):
        return Why("PoolFull", f"{asked}: all are taken; it gets one when one is given back, or raise spec.maxVMs")
    return Why("NothingReady", f"{asked}: none is ready for it yet")


def failed_status(claim: VMClaim, why: Why, now: datetime) -> VMClaimStatus:
    """Return the status of a claim that gets nothing."""
    conditions = (_ready(claim, why, now), _progress(claim, ConditionType.STALLED, why, now))
    return _changed(claim, ClaimPhase.FAILED, why, conditions, now, position="", finished_at=now)


def bound_status(claim: VMClaim, vms: Mapping[int, VM], now: datetime) -> VMClaimStatus:
    """Return the status that fills every slot; ``vms`` is by slot, and complete."""
    assert len(vms) == claim_size(claim), "a claim is Bound when it is whole"
    filled = tuple(_slot(slot, vms[slot]) for slot in sorted(vms))
    why = Why("Bound", f"it has its {_machines(len(filled))}")
    moments = [vm.claim.bound_at for vm in vms.values() if vm.claim is not None and vm.claim.bound_at is not None]
    return _changed(
        claim,
        ClaimPhase.BOUND,
        why,
        (_ready(claim, why, now, holds=True),),
        now,
        position="",
        vms=filled,
        bound_at=max(moments, default=now),
        expires_at=_first_end(vms.values()),
        lifetime=_acted_upon(claim, vms.values()),
    )


def unseen(claim: VMClaim, held: Container[str]) -> tuple[ClaimedVM, ...]:
    """Return the VMs that a status names as the claim's and that are not among ``held``, which has uids.

    That says nothing about them: the picture of VMs may be behind that of claims, or an object be unreadable.
    """
    return tuple(one for one in claim.status.vms if one.end_reason is None and one.uid not in held)


def followed_status(
    claim: VMClaim, held: Mapping[str, VM], refused: Why | None, now: datetime, gone: Container[str] = ()
) -> VMClaimStatus:
    """Return the status of a Bound claim after what became of its VMs; ``held`` is by uid.

    ``refused`` says why a changed lifetime was not acted upon. ``gone`` are uids that the server has no object of;
    what is neither there nor held stays as it is written.
    """
    followed = tuple(_follow(one, held.get(one.uid), gone) for one in claim.status.vms)
    ended = [one.end_reason for one in followed if one.end_reason is not None]
    if len(ended) == len(followed):
        return _finished(claim, followed, ended, now)
    live = [held[one.uid] for one in followed if one.end_reason is None and one.uid in held]
    left = len(followed) - len(ended)
    whole = f"it has its {_machines(left)}"
    why = Why("Bound", whole if not ended else f"it has {left} of its {_machines(len(followed))}, others have ended")
    conditions: tuple[Condition, ...] = (_ready(claim, why, now, holds=True),)
    if refused is not None:
        conditions = (*conditions, _progress(claim, ConditionType.STALLED, refused, now))
    lifetime, first = claim.spec.lifetime, _first_end(live)
    if len(live) < left:
        # What is not seen now ends when it was said to, and a changed lifetime has not reached it.
        lifetime = claim.status.lifetime
        first = min((end for end in (first, claim.status.expires_at) if end is not None), default=None)
    if refused is not None:
        lifetime = claim.status.lifetime
    return _changed(claim, ClaimPhase.BOUND, why, conditions, now, vms=followed, expires_at=first, lifetime=lifetime)


def may_wait(before: VMClaimStatus, after: VMClaimStatus) -> bool:
    """Whether a status can be written later, because it tells only where a claim that waits stands, and why."""
    return before.phase == after.phase == ClaimPhase.PENDING and bool(before.position)


def _finished(claim: VMClaim, vms: tuple[ClaimedVM, ...], ended: Sequence[str], now: datetime) -> VMClaimStatus:
    reasons = Counter(ended)
    owner, expired = sum(reasons[one] for one in BY_OWNER), reasons[ENDED_EXPIRED]
    if owner:
        phase, why = ClaimPhase.RELEASED, Why(RELEASED, "its VMs were released by their owner")
    elif expired:
        phase, why = ClaimPhase.EXPIRED, Why(ENDED_EXPIRED, "its time was over")
    else:
        reason = reasons.most_common(1)[0][0]
        phase, why = ClaimPhase.FAILED, Why(reason, _lost(reason))
    conditions: tuple[Condition, ...] = (_ready(claim, why, now),)
    if phase is ClaimPhase.FAILED:
        conditions = (*conditions, _progress(claim, ConditionType.STALLED, why, now))
    return _changed(
        claim, phase, why, conditions, now, vms=vms, expires_at=None, finished_at=now, lifetime=claim.spec.lifetime
    )


def _lost(reason: str) -> str:
    if reason == ENDED_MACHINE_GONE:
        return "the machines are gone at the provider: make another claim"
    if reason == ENDED_FORCED:
        return "its pool was deleted with deletionPolicy Force: make another claim for another pool"
    return "its VMs were taken away: make another claim"


def _follow(one: ClaimedVM, vm: VM | None, gone: Container[str]) -> ClaimedVM:
    if one.end_reason is not None:
        return one
    if vm is None or vm.claim is None:
        return one.model_copy(update={"end_reason": GONE}) if one.uid in gone else one
    if vm.claim.released_at is not None:
        return one.model_copy(update={"end_reason": vm.claim.end_reason or RELEASED})
    return _slot(one.slot, vm)


def _slot(slot: int, vm: VM) -> ClaimedVM:
    return ClaimedVM(
        slot=slot,
        uid=vm.uid,
        name=vm.name,
        namespace=vm.namespace,
        pool=vm.pool,
        host_name=vm.host_name or vm.name,
        address=vm.addresses[0] if vm.addresses else "",
    )


def _first_end(vms: Iterable[VM]) -> datetime | None:
    ends = [vm.claim.expires_at for vm in vms if vm.claim is not None and vm.claim.released_at is None]
    return min(ends, default=None)


def _acted_upon(claim: VMClaim, vms: Iterable[VM]) -> timedelta | None:
    """Return the lifetime that the VMs were bound with; a spec that was changed meanwhile is not acted upon yet."""
    spec: timedelta | None = claim.spec.lifetime
    if spec is None:
        return None
    given = {vm.claim.expires_at - vm.claim.bound_at for vm in vms if vm.claim is not None and vm.claim.bound_at}
    other = next((one for one in given if one != spec), None)
    if other is None:
        return spec
    return min(max(other, SHORTEST), LONGEST)


def _machines(count: int) -> str:
    return "VM" if count == 1 else f"{count} VMs"


def _ready(claim: VMClaim, why: Why, now: datetime, *, holds: bool = False) -> Condition:
    return observed(ConditionType.READY, holds, why.reason, why.message, generation=claim.generation, now=now)


def _progress(claim: VMClaim, kind: ConditionType, why: Why, now: datetime) -> Condition:
    return observed(kind, True, why.reason, why.message, generation=claim.generation, now=now)


def _changed(
    claim: VMClaim, phase: ClaimPhase, why: Why, conditions: Sequence[Condition], now: datetime, **others: object
) -> VMClaimStatus:
    return claim.status.model_copy(
        update={
            "phase": phase.value,
            "observed_generation": claim.generation,
            "conditions": merge(claim.status.conditions, conditions, now),
            "reason": why.reason,
            "message": why.message[:MAX_MESSAGE],
            **others,
        }
    )
