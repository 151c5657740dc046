"""The numbers that health is judged by: of one pool, and summed up over the pools of a policy."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from vmpool.plan.demand import by_alias, named_by
from vmpool.plan.lifecycle import ClaimPhase, Phase
from vmpool.plan.policies import Letter
from vmpool.plan.snapshot import VM, PoolFacts, VMClaim

SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class QueueNumbers:
    """How many VMs are in one queue, and for how long, in seconds."""

    size: int = 0
    oldest: float = 0.0
    average: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolNumbers:
    """What is counted of one pool. Claimed VMs are in none of its queues."""

    pending: QueueNumbers = QueueNumbers()
    ready: QueueNumbers = QueueNumbers()
    completed: QueueNumbers = QueueNumbers()
    stuck: int = 0
    """VMs in pending for longer than the threshold."""
    letters: Mapping[str, int] = field(default_factory=dict)
    """Dead letters that are kept, by queue name."""
    empty_for: timedelta = timedelta()
    """How long it has had nothing ready although it wants VMs; zero while that is not so."""
    failures: int = 0
    """VMs that failed since the last one that became ready."""
    clones_active: int = 0
    """VMs whose machine is being made."""
    clones_pending: int = 0
    """VMs that are missing and not begun."""

    @property
    def dead(self) -> int:
        """Dead letters of all queue names."""
        return sum(self.letters.values())


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums over all pools of a policy."""

    pending: int = 0
    ready: int = 0
    completed: int = 0
    stuck: int = 0
    letters: Mapping[str, int] = field(default_factory=dict)
    orphans: int = 0
    clones_active: int = 0
    clones_pending: int = 0
    ondemand_active: int = 0
    ondemand_pending: int = 0

    @property
    def dead(self) -> int:
        """Dead letters of all queue names."""
        return sum(self.letters.values())


def pool_numbers(
    pool: PoolFacts,
    vms: Sequence[VM],
    letters: Iterable[Letter],
    *,
    stuck_after: timedelta,
    waiting: int,
    filled: datetime,
    now: datetime,
) -> PoolNumbers:
    """Count one pool in one pass over its VMs. ``waiting`` VMs are lacked by claims; ``filled`` see ``filled_at``."""
    since: dict[str, list[datetime]] = {phase.value: [] for phase in (Phase.PENDING, Phase.READY, Phase.COMPLETED)}
    unmade = 0
    for vm in vms:
        times = since.get(vm.phase)
        if times is None or (vm.claim is not None and vm.phase != Phase.COMPLETED):
            continue
        times.append(vm.phase_since or vm.created_at)
        if not vm.machine_id and vm.phase == Phase.PENDING and not vm.adopt:
            unmade += 1
    pending, ready = since[Phase.PENDING], since[Phase.READY]
    creation = pool.status.creation
    lacking = wanted(pool) + waiting - len(pending) - len(ready) if wants(pool) else 0
    return PoolNumbers(
        pending=_queue(pending, now),
        ready=_queue(ready, now),
        completed=_queue(since[Phase.COMPLETED], now),
        stuck=sum(1 for at in pending if at < now - stuck_after),
        letters=Counter(letter.queue_from for letter in letters if not letter.deleting),
        empty_for=max(now - filled, timedelta()) if wants(pool) and not ready else timedelta(),
        failures=creation.failures if creation is not None and wants(pool) else 0,
        clones_active=unmade,
        clones_pending=max(0, lacking),
    )


def _queue(since: Sequence[datetime], now: datetime) -> QueueNumbers:
    if not since:
        return QueueNumbers()
    oldest = min(since)
    # Summed from the oldest on: differences are small, and so is what is lost by adding them up.
    younger = sum((at - oldest) / SECOND for at in since) / len(since)
    age = (now - oldest) / SECOND
    return QueueNumbers(len(since), max(0.0, age), max(0.0, age - younger))


def wanted(pool: PoolFacts) -> int:
    """How many ready VMs the owner wants."""
    replicas = pool.spec.replicas
    return replicas if replicas is not None else pool.status.desired_replicas


def wants(pool: PoolFacts) -> bool:
    """Whether the pool should have VMs that are ready."""
    return wanted(pool) > 0 and not pool.spec.paused and not pool.deleting


def totals(
    pools: Sequence[PoolFacts],
    numbers: Iterable[PoolNumbers],
    stragglers: Iterable[VM],
    claims: Iterable[VMClaim],
) -> Totals:
    """Sum up. ``stragglers`` are all PooledVMs that no pool owns, ``claims`` all VMClaims: what is others' is left out.

    An on-demand request is counted once, if any part of it can come from one of these pools.
    """
    made = list(numbers)
    letters: Counter[str] = Counter()
    for one in made:
        letters.update(one.letters)
    where = {(pool.namespace, share.name) for pool in pools for share in pool.spec.providers}
    asked = _ondemand(pools, claims)
    return Totals(
        pending=sum(one.pending.size for one in made),
        ready=sum(one.ready.size for one in made),
        completed=sum(one.completed.size for one in made),
        stuck=sum(one.stuck for one in made),
        letters=letters,
        orphans=sum(1 for vm in stragglers if (vm.namespace, vm.provider) in where),
        clones_active=sum(one.clones_active for one in made),
        clones_pending=sum(one.clones_pending for one in made),
        ondemand_active=asked[ClaimPhase.BOUND],
        ondemand_pending=asked[ClaimPhase.PENDING],
    )


def _ondemand(pools: Sequence[PoolFacts], claims: Iterable[VMClaim]) -> Counter[str]:
    by_key, aliases = {(pool.namespace, pool.name): pool for pool in pools}, by_alias(pools)
    return Counter(
        claim.phase
        for claim in claims
        if claim.ondemand
        and any(named_by(request, claim.namespace, by_key, aliases) for request in claim.spec.requests)
    )
