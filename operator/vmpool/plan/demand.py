"""What the VMClaims that wait still lack, by pool: so far pools refill, and so many VMs REST must leave to them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from vmpool.api.claim import ClaimRequest
from vmpool.api.conditions import ConditionType, find
from vmpool.plan.lifecycle import ClaimPhase
from vmpool.plan.snapshot import VM, PoolFacts, VMClaim

RELEASED = "Released"
NAME_TAKEN = "NameTaken"
"""Stalled for its name in REST alone: it makes VMs like any other."""


@dataclass(frozen=True, slots=True)
class Want:
    """What one request of a claim still lacks."""

    request: ClaimRequest
    slots: tuple[int, ...]
    pools: tuple[PoolFacts, ...]
    """Where the VMs may come from: one pool, or all that have the alias."""


def demand(
    claims: Iterable[VMClaim],
    pools: Mapping[tuple[str, str], PoolFacts],
    bound: Callable[[str], Sequence[VM]],
) -> dict[str, int]:
    """Return how many VMs the waiting claims lack, by the pool's uid; pools without any are left out.

    ``pools`` is by namespace and name; ``bound`` returns the VMs that carry a claim's uid. Only claims count that the
    engine has judged and written down as waiting.
    """
    waiting = sorted((claim for claim in claims if waits(claim)), key=lambda claim: (claim.created_at, claim.uid))
    aliases = by_alias(pools.values()) if waiting else {}
    return spread(want for claim in waiting for want in wants(claim, bound(claim.uid), pools, aliases))


def waits(claim: VMClaim) -> bool:
    """Whether the engine has written that this claim waits."""
    return claim.phase == ClaimPhase.PENDING and bool(claim.status.position) and not claim.deleting


def by_alias(pools: Iterable[PoolFacts]) -> dict[tuple[str, str], tuple[PoolFacts, ...]]:
    """Return the pools that can be asked for by an alias, by namespace and alias, in order of their names."""
    found: dict[tuple[str, str], tuple[PoolFacts, ...]] = {}
    for pool in sorted(pools, key=attrgetter("namespace", "name")):
        if not pool.deleting:
            for alias in pool.spec.aliases:
                found[pool.namespace, alias] = (*found.get((pool.namespace, alias), ()), pool)
    return found


def filled(claim: VMClaim, vms: Sequence[VM]) -> dict[int, VM]:
    """Return the VM of each slot of a claim that is not Bound yet; of two for one slot the one bound first.

    A VM that its owner has released already was handed out like any other. One that was lost in another way before
    the claim was whole is replaced.
    """
    found: dict[int, VM] = {}
    if not vms:
        return found
    size = claim_size(claim)
    for vm in sorted(vms, key=_bound_at):
        held = vm.claim
        if held is None or held.ref is None or held.ref.uid != claim.uid or held.slot >= size:
            continue
        if held.released_at is None or held.end_reason == RELEASED:
            found.setdefault(held.slot, vm)
    return found


def claim_size(claim: VMClaim) -> int:
    """Return how many VMs a claim asks for."""
    return sum(request.count for request in claim.spec.requests)


def wants(
    claim: VMClaim,
    vms: Sequence[VM],
    pools: Mapping[tuple[str, str], PoolFacts],
    aliases: Mapping[tuple[str, str], tuple[PoolFacts, ...]],
) -> list[Want]:
    """Return what a claim that is not Bound still lacks, request by request; whole requests are left out."""
    have = filled(claim, vms) if vms else {}
    found: list[Want] = []
    first = 0
    for request in claim.spec.requests:
        slots = tuple(slot for slot in range(first, first + request.count) if slot not in have)
        first += request.count
        if slots:
            found.append(Want(request, slots, named_by(request, claim.namespace, pools, aliases)))
    return found


def named_by(
    request: ClaimRequest,
    namespace: str,
    pools: Mapping[tuple[str, str], PoolFacts],
    aliases: Mapping[tuple[str, str], tuple[PoolFacts, ...]],
) -> tuple[PoolFacts, ...]:
    """Return the pools that a request of a claim in this namespace names; none when there are none."""
    where = request.namespace or namespace
    if request.alias is not None:
        return aliases.get((where, request.alias), ())
    pool = pools.get((where, request.pool or ""))
    return (pool,) if pool is not None and not pool.deleting else ()


def spread(lacks: Iterable[Want]) -> dict[str, int]:
    """Put each VM that is lacked on one pool: the only one, or of an alias the one with most room at that moment.

    VM by VM, so that what is served from one pool leaves the others' share as it was.
    """
    made: dict[str, int] = {}
    open_ones: list[Want] = []
    for want in lacks:
        if len(want.pools) == 1:
            uid = want.pools[0].uid
            made[uid] = made.get(uid, 0) + len(want.slots)
        elif want.pools:
            open_ones.append(want)
    for want in open_ones:
        for _ in want.slots:
            best = min(want.pools, key=lambda pool: (_hindered(pool), made.get(pool.uid, 0) - room(pool), pool.name))
            made[best.uid] = made.get(best.uid, 0) + 1
    return made


def room(pool: PoolFacts) -> int:
    """Return how many VMs a pool can have beyond the ready ones that its owner wants.

    What is made for the claims that wait does not count, or each VM that is made would move them to another pool.
    """
    status = pool.status
    return int(
        pool.spec.max_vms
        - status.desired_replicas
        - status.claimed_replicas
        - status.quarantined_replicas
        - status.draining_replicas
    )


def stalled(pool: PoolFacts) -> str:
    """Return the reason why a pool cannot make VMs without a human; empty when it can."""
    condition = find(pool.status.conditions, ConditionType.STALLED)
    if condition is None or condition.status != "True" or condition.reason == NAME_TAKEN:
        return ""
    return condition.reason


def _hindered(pool: PoolFacts) -> bool:
    return pool.spec.paused or bool(stalled(pool))


def _bound_at(vm: VM) -> tuple[float, str]:
    at = vm.claim.bound_at if vm.claim is not None else None
    return (at.timestamp() if at is not None else 0.0, vm.uid)
