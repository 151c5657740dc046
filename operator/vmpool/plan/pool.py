"""Decide what one pool does next.

Level-based: looks at what is, never at what changed. First every VM's own next step, then how many VMs are too few or
too many, then who is replaced. A VM with an effect in flight counts as what it is and is left alone.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from vmpool.api.meta import resolve
from vmpool.plan import purge
from vmpool.plan.actions import Action, Complete, CreateVM, EndClaim, Quarantine
from vmpool.plan.letters import is_poison, poisoned
from vmpool.plan.lifecycle import Phase
from vmpool.plan.snapshot import PLANNED, REPLACED, VM, Failed, PoolSnapshot, ProviderFacts, Reason
from vmpool.plan.stale import recycled_at, reset_until, stale_reason
from vmpool.plan.vm import ENDED_FORCED, Next, next_step


@dataclass(frozen=True, slots=True)
class Counts:
    """How many VMs are where; claimed ones count as claimed whatever their phase still says."""

    desired: int = 0
    ready: int = 0
    pending: int = 0
    claimed: int = 0
    quarantined: int = 0
    draining: int = 0
    stale: int = 0
    deficit: int = 0
    surplus: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, what was counted, and when to look again."""

    actions: tuple[Action, ...]
    counts: Counts
    held_back: str = ""
    """Why fewer are created than are missing, in a clause; empty when nothing is held back."""
    wake_at: datetime | None = None
    wants_listing: frozenset[str] = frozenset()
    """Providers whose next complete listing is waited for."""
    release: bool = False
    """The pool is deleted and nothing of it is left: its finalizer may go."""


MISSING_PROVIDER = ProviderFacts("")


def plan_pool(seen: PoolSnapshot, now: datetime) -> Plan:
    """Return the smallest safe step towards the number of ready VMs that is wanted."""
    if seen.pool.spec.paused:
        nothing_left = seen.pool.deleting and not seen.vms and not seen.creating
        return Plan((), _count(seen, (), ()), release=nothing_left)
    if seen.pool.deleting:
        return _drain(seen, now)
    steps = {vm.uid: _next(seen, vm, now) for vm in seen.vms}
    open_to_claims = [vm for vm in seen.vms if _is_live(vm)]
    live = [vm for vm in open_to_claims if steps[vm.uid].failed is None]
    failing = [vm for vm in open_to_claims if steps[vm.uid].failed is not None]
    recycled = recycled_at(seen, live)
    stale = {vm.uid: why for vm in live if (why := stale_reason(seen, vm, recycled, now)) is not None}
    stale |= purge.replaced(seen, live)
    leaving = _leaving(seen, live, stale)
    creates, held_back = _creates(seen, live, failing, len(stale), now)
    settled = _unique(
        (
            *purge.ends(seen),
            *_settle_failures(seen, failing, steps, now),
            *_evict(seen),
            *(Complete(vm, reason, message) for vm, reason, message in leaving if vm.uid not in seen.busy),
        )
    )
    # What is decided on stays untouched also where limits.deletes defers it to a later round.
    decided = {action.vm.uid for action in settled} | seen.busy
    again = purge.begin_anew(seen)
    decided |= {action.vm.uid for action in again}
    own = [action for vm in seen.vms if vm.uid not in decided and (action := steps[vm.uid].action) is not None]
    return Plan(
        actions=(*settled[: seen.pool.spec.limits.deletes], *again, *own, *creates),
        counts=_count(seen, live, stale),
        held_back=held_back,
        wake_at=_wake_at(seen, (*recycled.values(), *_wakes(steps.values())), now),
        wants_listing=frozenset(vm.provider for vm in seen.vms if steps[vm.uid].wants_listing),
    )


def _unique(actions: Iterable[Complete | Quarantine]) -> list[Complete | Quarantine]:
    """Keep the first decision about each VM."""
    return list({action.vm.uid: action for action in reversed(list(actions))}.values())[::-1]


def _is_live(vm: VM) -> bool:
    """Whether it is, or is on its way to be, a VM that can be handed out."""
    return vm.phase in (Phase.PENDING, Phase.READY) and vm.claim is None and not vm.deleting


def _provider(seen: PoolSnapshot, vm: VM) -> ProviderFacts:
    return seen.providers.get(vm.provider, MISSING_PROVIDER)


def _next(seen: PoolSnapshot, vm: VM, now: datetime) -> Next:
    return next_step(vm, seen.sight(vm), _provider(seen, vm), seen.pool.spec.readiness, now, seen.outlook)


def desired(seen: PoolSnapshot) -> int:
    """How many ready VMs are wanted: ``spec.replicas``, or what it was when it was last set."""
    replicas = seen.pool.spec.replicas
    return replicas if replicas is not None else seen.pool.status.desired_replicas


def _bounds(seen: PoolSnapshot) -> tuple[int, int]:
    """Most live VMs and fewest ready VMs while replacing; at least one of the two leaves room to move."""
    want, update = desired(seen), seen.pool.spec.update
    surge = resolve(update.max_surge, want, round_up=True)
    unavailable = resolve(update.max_unavailable, want, round_up=False)
    if not surge and not unavailable:
        surge = 1
    return want + surge, want - unavailable


def _leaving(
    seen: PoolSnapshot, live: Sequence[VM], stale: Mapping[str, tuple[Reason, str]]
) -> list[tuple[VM, Reason, str]]:
    """Who has to go, least usable first: what a deleted provider holds, surplus, then what is to be replaced."""
    want = desired(seen) + seen.waiting
    doomed = _doomed(seen)
    gone = [
        (vm, Reason.PROVIDER_DELETED, f"VMProvider {vm.provider} is being deleted")
        for vm in live
        if vm.provider in doomed
    ]
    rest = [vm for vm in live if vm.provider not in doomed]
    fresh = [vm for vm in rest if vm.uid not in stale]
    too_many = max(0, len(fresh) - want)
    surplus = sorted(fresh, key=lambda vm: _worth(vm, seen.digest))[:too_many] if too_many else []
    gone.extend((vm, Reason.SURPLUS, f"the pool wants {want} VMs") for vm in surplus)
    ready_left = sum(1 for vm in rest if vm.phase == Phase.READY) - sum(1 for vm in surplus if vm.phase == Phase.READY)
    may_take = ready_left - max(0, _bounds(seen)[1])
    # What cannot be destroyed now is not replaced now: an outage must not eat up the stock.
    replaceable = [vm for vm in rest if vm.uid in stale and _provider(seen, vm).reachable]
    for vm in sorted(replaceable, key=lambda vm: _worth(vm, "")):
        # A reset is asked for: nobody wants what was there to be handed out meanwhile.
        if vm.phase == Phase.PENDING or may_take > 0 or stale[vm.uid][0] is Reason.POOL_RESET:
            may_take -= vm.phase == Phase.READY
            gone.append((vm, *stale[vm.uid]))
    return gone


def _doomed(seen: PoolSnapshot) -> frozenset[str]:
    """Names of the providers that are being deleted."""
    return frozenset(name for name, provider in seen.providers.items() if provider.deleting)


def _worth(vm: VM, digest: str) -> tuple[bool, bool, float]:
    """Sort key: least worth keeping first. Pending newest first, then ready oldest; old templates first."""
    ready = vm.phase == Phase.READY
    age = vm.since.timestamp() if ready else -vm.created_at.timestamp()
    return (ready, vm.digest == digest, age)


def _creates(
    seen: PoolSnapshot, live: Sequence[VM], failing: Sequence[VM], stale: int, now: datetime
) -> tuple[list[CreateVM], str]:
    """What to create now, and why it is less than what is missing."""
    # A failing VM keeps its place until its failure is written down: then its successor goes on with its request.
    deficit = desired(seen) + seen.waiting - (len(live) - stale + len(failing) + len(seen.creating))
    if deficit <= 0:
        return [], ""
    allowed, why = min(_create_bounds(seen, live, failing, stale, now), key=lambda bound: bound[0])
    count = max(0, min(deficit, allowed))
    creates = _spread(seen, count)
    if len(creates) < count:
        why = _provider_trouble(seen)
    return creates, "" if len(creates) >= deficit else why


def _create_bounds(
    seen: PoolSnapshot, live: Sequence[VM], failing: Sequence[VM], stale: int, now: datetime
) -> list[tuple[int, str]]:
    """Each bound on creates of this round with the name that a user can look up."""
    spec, creation, creating = seen.pool.spec, seen.creation, len(seen.creating)
    on_the_way = [
        *(vm for vm in live if vm.phase == Phase.PENDING),
        *failing,
        *(vm for vm in seen.vms if _keeps_slot(vm)),
    ]
    bounds = [
        (spec.limits.creates, f"limits.creates is {spec.limits.creates}"),
        (spec.limits.pending - len(on_the_way) - creating, f"limits.pending is {spec.limits.pending}"),
        (spec.max_vms - len(seen.vms) - creating, f"maxVMs is {spec.max_vms}"),
    ]
    replaced = sum(1 for vm in seen.vms if vm.phase == Phase.COMPLETED and vm.reason in REPLACED)
    if stale or replaced:
        most = _bounds(seen)[0] + seen.waiting
        bounds.append((most - len(live) - len(failing) - creating - replaced, "update.maxSurge is reached"))
    if now < reset_until(seen, now):
        bounds.append((0, "spec.resetBefore is this very second"))
    if seen.poison is not None and is_poison(seen.poison, seen.poison_limit):
        bounds.append((0, poisoned(seen.poison)))
    if seen.creates_paused:
        bounds.append((0, seen.creates_paused))
    if creation is not None:
        why = f"after {creation.failures} failures in a row" if creation.failures else "after a failure"
        # What waits for a provider that cannot be reached must not stop creation elsewhere.
        moving = sum(1 for vm in on_the_way if _provider(seen, vm).reachable) + creating
        window = creation.window - moving if now >= creation.not_before else 0
        bounds.append((window, f"creation is slowed down {why}"))
    return bounds


def _keeps_slot(vm: VM) -> bool:
    """Whether it failed and its machine is not gone yet: a broken template must not breed a herd."""
    return vm.phase == Phase.COMPLETED and (vm.reason not in PLANNED or vm.reason == Reason.QUARANTINE_ENDED)


def _spread(seen: PoolSnapshot, count: int) -> list[CreateVM]:
    """Share creates out over the usable providers by weight, failed work first."""
    have = Counter(vm.provider for vm in seen.vms) + Counter(seen.creating)
    weights = {share.name: share.weight for share in seen.pool.spec.providers}
    if _settling(seen):
        # In a moment it may be usable: those that were looked at first must not get its share.
        return []
    room = {
        name: provider.room for name, provider in seen.providers.items() if provider.usable and weights.get(name, 0) > 0
    }
    owed = list(seen.owed)
    made: list[CreateVM] = []
    while len(made) < count:
        open_ones = [name for name, left in room.items() if left > 0]
        if not open_ones:
            break
        name = min(open_ones, key=lambda name: ((have[name] + 1) / weights[name], name))
        have[name] += 1
        room[name] -= 1
        request, retries = owed.pop(0) if owed else ("", -1)
        made.append(CreateVM(name, request, retries + 1))
    return made


def _settling(seen: PoolSnapshot) -> str:
    """Return the name of a provider that should get machines and was not looked at yet; empty when there is none."""
    names = (share.name for share in seen.pool.spec.providers if share.weight)
    return next((name for name in names if name in seen.providers and seen.providers[name].settling), "")


def _provider_trouble(seen: PoolSnapshot) -> str:
    """Say in a clause why no provider takes another machine."""
    if name := _settling(seen):
        return f"VMProvider {name} is being looked at for the first time"
    for share in seen.pool.spec.providers:
        provider = seen.providers.get(share.name)
        if not share.weight:
            continue
        if provider is None:
            return f"VMProvider {share.name} does not exist in namespace {seen.pool.namespace}"
        if not provider.usable:
            return f"VMProvider {share.name}: {provider.message or provider.reason}"
    return "every provider is full (VMProvider limits.machines) or has weight 0"


def _settle_failures(
    seen: PoolSnapshot, failing: Sequence[VM], steps: Mapping[str, Next], now: datetime
) -> list[Complete | Quarantine]:
    """Quarantine failed VMs while there is room, end the others. With no room, the oldest in quarantine makes it."""
    limit, doomed = seen.pool.spec.limits.quarantined, _doomed(seen)
    kept = [vm for vm in seen.vms if vm.phase == Phase.QUARANTINED]
    evictable = sorted((vm for vm in kept if vm.uid not in seen.busy), key=lambda vm: vm.since)
    being_evicted = len(kept) - len(evictable)
    room = limit - len(kept) - sum(1 for vm in failing if vm.uid in seen.busy)
    actions: list[Complete | Quarantine] = []
    wanted = 0
    for vm in failing:
        failed = steps[vm.uid].failed
        assert failed is not None
        if vm.uid in seen.busy:
            continue
        nothing_to_see = not vm.machine_id or failed.reason == Reason.MACHINE_GONE
        if nothing_to_see or vm.provider in doomed or wanted >= limit:
            actions.append(_end(vm, failed))
            continue
        wanted += 1
        if room > 0:
            room -= 1
            expires = now + seen.pool.spec.recycle.quarantine_ttl
            actions.append(Quarantine(vm, failed.step, failed.reason, failed.message, expires))
        elif being_evicted > 0:
            being_evicted -= 1
        elif evictable:
            why = "a newer failure needs its place in quarantine"
            actions.append(Complete(evictable.pop(0), Reason.QUARANTINE_ENDED, why))
    return actions


def _end(vm: VM, failed: Failed) -> Complete:
    return Complete(vm, failed.reason, failed.message, failed.step)


def _evict(seen: PoolSnapshot) -> list[Complete]:
    """End what may not stay in quarantine: what a deleted provider holds, and the oldest above a lowered limit."""
    doomed, limit = _doomed(seen), seen.pool.spec.limits.quarantined
    kept = sorted((vm for vm in seen.vms if vm.phase == Phase.QUARANTINED), key=lambda vm: vm.since)
    ends = [
        Complete(vm, Reason.PROVIDER_DELETED, f"VMProvider {vm.provider} is being deleted")
        for vm in kept
        if vm.provider in doomed
    ]
    over = kept[: max(0, len(kept) - limit)]
    ends.extend(Complete(vm, Reason.QUARANTINE_ENDED, f"limits.quarantined is {limit}") for vm in over)
    return [end for end in ends if end.vm.uid not in seen.busy]


def _drain(seen: PoolSnapshot, now: datetime) -> Plan:
    """Empty a deleted pool: machines first, objects after; claimed ones only when its owner said Force."""
    actions: list[Action] = []
    steps = {vm.uid: _next(seen, vm, now) for vm in seen.vms}
    ends = 0
    for vm in seen.vms:
        if vm.uid in seen.busy:
            continue
        action = steps[vm.uid].action
        if vm.phase == Phase.COMPLETED or (vm.claim is not None and not vm.claimed):
            pass
        elif vm.claimed:
            if seen.pool.spec.deletion_policy == "Force" and not isinstance(action, EndClaim):
                action = EndClaim(vm, ENDED_FORCED)
        elif ends < seen.pool.spec.limits.deletes:
            ends += 1
            action = Complete(vm, Reason.POOL_DELETED, "its pool is being deleted")
        else:
            action = None
        if action is not None:
            actions.append(action)
    return Plan(
        actions=tuple(actions),
        counts=_count(seen, (), ()),
        wake_at=_wake_at(seen, _wakes(steps.values()), now),
        wants_listing=frozenset(vm.provider for vm in seen.vms if steps[vm.uid].wants_listing),
        release=not seen.vms and not seen.creating,
    )


def _wakes(steps: Iterable[Next]) -> Iterable[datetime]:
    return (step.wake_at for step in steps if step.wake_at is not None)


def _wake_at(seen: PoolSnapshot, times: Iterable[datetime], now: datetime) -> datetime | None:
    """The next moment at which something may be due, the end of a pause after failures included."""
    later = [moment for moment in times if moment > now]
    if seen.creation is not None and seen.creation.not_before > now:
        later.append(seen.creation.not_before)
    reset: datetime | None = seen.pool.spec.reset_before
    if reset is not None:
        later.extend(moment for moment in (reset, reset_until(seen, now)) if moment > now)
    return min(later, default=None)


def _count(seen: PoolSnapshot, live: Sequence[VM], stale: Collection[str]) -> Counts:
    """Count by phase; a VM with a claim counts as claimed although its phase may not say so yet."""
    phases = Counter(
        Phase.CLAIMED if vm.claim is not None and vm.phase != Phase.COMPLETED else vm.phase for vm in seen.vms
    )
    want = desired(seen)
    return Counts(
        desired=want,
        ready=phases[Phase.READY],
        pending=phases[Phase.PENDING],
        claimed=phases[Phase.CLAIMED],
        quarantined=phases[Phase.QUARANTINED],
        draining=phases[Phase.COMPLETED],
        stale=len(stale),
        deficit=max(0, want + seen.waiting - len(live) - len(seen.creating)),
        surplus=max(0, len(live) - want - seen.waiting),
    )
