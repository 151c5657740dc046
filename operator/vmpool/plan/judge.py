"""Decide whether a claim can be served at all, from which pools, and what its owner can do when it cannot."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from vmpool.api.claim import ClaimRequest
from vmpool.api.meta import format_duration
from vmpool.plan.demand import Want, wants
from vmpool.plan.queue import Asker, QueueSnapshot, Why
from vmpool.plan.snapshot import VM, PoolFacts, VMClaim

ANY_NAMESPACE = "*"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known of a claim that is not Bound."""

    wants: tuple[Want, ...]
    """What it still lacks, with the pools that may serve it as far as is known."""
    failure: Why | None = None
    """It can never be served."""
    unanswered: tuple[PoolFacts, ...] = ()
    """Pools for which the API server has to say whether who asks may claim there."""


def judge(
    claim: VMClaim,
    who: Asker,
    seen: QueueSnapshot,
    aliases: Mapping[tuple[str, str], tuple[PoolFacts, ...]],
    vms: Sequence[VM],
) -> Judgement:
    """Judge what a claim still lacks; ``vms`` carry its uid already."""
    lacking = wants(claim, vms, seen.pools, aliases)
    judged: list[Want] = []
    unanswered: dict[str, PoolFacts] = {}
    for want in lacking:
        failure = _out_of_reach(claim, who, want.request) or _nowhere(claim, want, seen)
        if failure is not None:
            return Judgement(tuple(lacking), failure)
        bars = {pool.uid: _bar(claim, who, pool, seen) for pool in want.pools}
        open_ones = tuple(pool for pool in want.pools if bars[pool.uid] is None)
        failure = next((bar for bar in bars.values() if bar is not None), None) if not open_ones else None
        asked = {pool.uid: pool for pool in open_ones if not _answered(claim, who, pool, seen)}
        if failure is None and not asked:
            failure = _too_many(claim, want, open_ones)
        if failure is not None:
            return Judgement(tuple(lacking), failure)
        judged.append(replace(want, pools=open_ones))
        unanswered |= asked
    return Judgement(tuple(judged), unanswered=tuple(unanswered.values()))


def too_long(claim: VMClaim, pools: Collection[PoolFacts]) -> Why | None:
    """Say why the claim's lifetime is more than one of these pools allows; None when it is not."""
    lifetime = claim.spec.lifetime
    for pool in pools:
        most = pool.spec.claims.max_lifetime
        if lifetime is not None and lifetime > most:
            return Why(
                "LifetimeTooLong",
                f"{_name(pool)} allows a lifetime of at most {format_duration(most)} (spec.claims.maxLifetime), "
                f"{format_duration(lifetime)} is asked for: ask for less, or its owner raises it",
            )
    return None


def _name(pool: PoolFacts) -> str:
    return f"VMPool {pool.namespace}/{pool.name}"


def _where(claim: VMClaim, request: ClaimRequest) -> str:
    return request.namespace or claim.namespace


def _out_of_reach(claim: VMClaim, who: Asker, request: ClaimRequest) -> Why | None:
    """Say why pools of that namespace cannot be asked for at all; before anything is told about what is there."""
    where = _where(claim, request)
    if where == claim.namespace or who.user:
        return None
    return Why(
        "RequesterNotTrusted",
        f"pools of namespace {where} cannot be claimed from namespace {claim.namespace}: nobody vouches for "
        "spec.requester of this claim; an administrator can install the admission policy vmpool-claims, then make "
        "the claim anew",
    )


def _nowhere(claim: VMClaim, want: Want, seen: QueueSnapshot) -> Why | None:
    """Say that the request names nothing that is there."""
    if want.pools:
        return None
    where, request = _where(claim, want.request), want.request
    if request.alias is not None:
        return Why(
            "AliasNotFound",
            f"no VMPool in namespace {where} has the alias {request.alias}: make another claim for what is there",
        )
    if (where, request.pool) in seen.pools:
        gone = f"VMPool {where}/{request.pool} is being deleted: make another claim for another pool"
        return Why("PoolDeleting", gone)
    missing = f"VMPool {where}/{request.pool} does not exist: make another claim for one that does"
    return Why("PoolNotFound", missing)


def _bar(claim: VMClaim, who: Asker, pool: PoolFacts, seen: QueueSnapshot) -> Why | None:
    """Say why this pool will never serve this claim; None when nothing is known against it."""
    foreign = pool.namespace != claim.namespace and not who.rest
    if foreign and not {claim.namespace, ANY_NAMESPACE} & set(pool.spec.claims.allowed_namespaces):
        return Why(
            "NamespaceNotAllowed",
            f"{_name(pool)} takes no claims from namespace {claim.namespace}: its owner can add it to "
            "spec.claims.allowedNamespaces, then make the claim anew",
        )
    if who.user and seen.note(claim).verdicts.get(pool.uid) is False:
        return Why(
            "NotPermitted",
            f"{who.user} may not claim from {_name(pool)}: an administrator can grant the verb claim on "
            f"vmpools/{pool.name} in namespace {pool.namespace}, then make the claim anew",
        )
    # What a pool allows is for those to know who may claim from it.
    return too_long(claim, (pool,)) if _answered(claim, who, pool, seen) else None


def _answered(claim: VMClaim, who: Asker, pool: PoolFacts, seen: QueueSnapshot) -> bool:
    """Whether the right to claim from this pool is known, or nobody in particular asks."""
    return not who.user or pool.uid in seen.note(claim).verdicts


def _too_many(claim: VMClaim, want: Want, pools: Sequence[PoolFacts]) -> Why | None:
    """Say that these pools together may never have as many VMs as are asked for."""
    if want.request.alias is None:
        pool = pools[0]
        count = sum(
            request.count
            for request in claim.spec.requests
            if request.pool == pool.name and _where(claim, request) == pool.namespace
        )
        what = _name(pool)
    else:
        count, what = want.request.count, f"the pools with alias {want.request.alias} in {_where(claim, want.request)}"
    most = sum(pool.spec.max_vms for pool in pools)
    if count <= most:
        return None
    return Why(
        "TooManyVMs",
        f"{count} VMs are asked for, and {what} may have at most {most}: raise spec.maxVMs of "
        f"{_name(pools[0])} or ask for fewer in another claim",
    )
