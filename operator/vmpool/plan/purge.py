"""Decide what is too old for a purge policy, and how that is said. A dry run and a live one decide by the same words.

Claimed VMs are never in it: not even as kept.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from vmpool.api.conditions import Condition, ConditionType, observed
from vmpool.api.meta import format_duration
from vmpool.api.purge import MAX_PURGED_LISTED, Pause, PurgeCycle, PurgedVM, PurgePolicySpec
from vmpool.plan.actions import Complete, DestroyMachine
from vmpool.plan.lifecycle import Phase
from vmpool.plan.snapshot import VM, PoolFacts, PoolSnapshot, Purge, Reason, Sight, Step

NOT_DESTROYED: Final = "NotDestroyed"
"""The error class of a destruction that takes longer than its policy allows."""
MAX_NAMED: Final = 3
"""How many names a sentence lists before it only counts."""


class State(StrEnum):
    """The states that have a limit, as status and log lines name them."""

    PENDING = "pending"
    READY = "ready"
    COMPLETED = "completed"
    ORPHANED = "orphaned"


@dataclass(frozen=True, slots=True)
class Group:
    """VMs that are judged together: those of one pool, or those of one provider that no pool owns."""

    vms: tuple[VM, ...]
    orphans: bool = False
    paused: str = ""
    """Why nothing of it may be removed, in a clause; empty when it may."""
    unreachable: frozenset[str] = frozenset()
    """Names of the providers that cannot be reached: what could not be destroyed now is not given up for its age."""


@dataclass(frozen=True, slots=True)
class Stale:
    """One VM that is too old."""

    vm: VM
    state: State
    age: timedelta
    limit: timedelta

    @property
    def seconds(self) -> int:
        """Its age in whole seconds when the cycle looked."""
        return int(self.age.total_seconds())

    @property
    def most(self) -> int:
        """The limit in whole seconds."""
        return int(self.limit.total_seconds())

    def why(self, policy: str) -> str:
        """Say in one sentence why it is removed."""
        return f"{self.state} for {self.seconds} s; PurgePolicy {policy} allows {self.most} s"

    def would(self) -> str:
        """Return the log line of a dry run."""
        head = f"[*] [purge][dry-run] Would purge stale {self.state} VM '{self.vm.name}'"
        return f"{head} (age: {self.seconds}s, max: {self.most}s)"

    def done(self) -> str:
        """Return the log line of a live run, once it is removed."""
        name, pool = self.vm.name, self.vm.pool
        what = {
            State.PENDING: f"Purged stale pending VM '{name}' from '{pool}'",
            State.READY: f"Moved stale ready VM '{name}' from '{pool}' to completed",
            State.COMPLETED: f"Destroying stale completed VM '{name}' from '{pool}' again",
            State.ORPHANED: f"Purged orphaned machine '{self.vm.machine_id or self.vm.adopt}' of '{pool}'",
        }
        return f"[!] [purge] {what[self.state]} (age: {self.seconds}s)"

    def listed(self) -> PurgedVM:
        """Return its entry in the status."""
        return PurgedVM(
            vm=self.vm.name, pool=self.vm.pool, state=self.state, age_seconds=self.seconds, max_seconds=self.most
        )

    def order(self, policy: str, now: datetime) -> Purge:
        """Return the order to remove it."""
        return Purge(
            phase=self.vm.phase,
            message=f"{self.why(policy)}{self._last()}",
            failed=self.state is State.PENDING,
            at=now,
            retries=self.vm.step(Step.DESTROY).retries,
        )

    def late_destruction(self, policy: str) -> str:
        """Say in one sentence, for its dead letter, that the destruction does not end."""
        return f"not destroyed: {self.why(policy)}{self._last()}"

    def _last(self) -> str:
        """Say what it failed with last, where it hangs: that is what has to be looked at."""
        told = next((step for step in reversed(self.vm.steps) if step.reason and step.finished_at is None), None)
        return f": {told.reason}: {told.message}" if told is not None else ""


@dataclass(frozen=True, slots=True)
class Found:
    """What one look found."""

    due: tuple[Stale, ...] = ()
    """What may be removed in this cycle, oldest first."""
    deferred: int = 0
    """How many more wait because of ``maxPerCycle``."""
    kept: tuple[Stale, ...] = ()
    """What is too old and stays: exempt, paused, or on a provider that cannot be reached."""
    states: Mapping[State, int] = field(default_factory=dict)
    """How many of each state are too old."""

    @property
    def total(self) -> int:
        """How many are too old."""
        return len(self.due) + self.deferred + len(self.kept)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known around the pools of one policy; the operator and the command line each know it in their way."""

    vms_of: Callable[[PoolFacts], tuple[VM, ...]]
    orphans_of: Callable[[str], tuple[VM, ...]]
    """By the name of a provider."""
    paused: Callable[[PoolFacts], str]
    """Why nothing of a pool may be removed, in a clause; empty when it may."""
    reachable: Callable[[str], bool]
    """By the name of a provider."""
    governs: Callable[[str], bool]
    """Whether the policy decides about the orphans of a provider."""


def groups(pools: Sequence[PoolFacts], around: Surroundings) -> list[Group]:
    """Return what a policy judges: the pools that name it, and the orphans of the providers that they name."""
    there = [pool for pool in pools if not pool.deleting]
    made = []
    for pool in there:
        vms = around.vms_of(pool)
        made.append(Group(vms, paused=around.paused(pool), unreachable=_unreachable(vms, around)))
    for name in sorted({share.name for pool in there for share in pool.spec.providers}):
        if not around.governs(name):
            continue
        vms = around.orphans_of(name)
        # One of its pools may go on: then somebody wants this provider tidy.
        stops = [around.paused(pool) for pool in there if any(share.name == name for share in pool.spec.providers)]
        why = stops[0] if all(stops) else ""
        made.append(Group(vms, orphans=True, paused=why, unreachable=_unreachable(vms, around)))
    return made


def _unreachable(vms: Iterable[VM], around: Surroundings) -> frozenset[str]:
    return frozenset(name for name in {vm.provider for vm in vms} if not around.reachable(name))


def governor(pools: Iterable[PoolFacts], exists: Callable[[str], bool]) -> str:
    """Return which policy decides about the orphans of a provider that these pools name: the first of them by name.

    Empty when none does. A pool that is being deleted has no say.
    """
    named = {pool.spec.purge_policy for pool in pools if not pool.deleting}
    return min((name for name in named if name is not None and exists(name)), default="")


def look(groups: Iterable[Group], spec: PurgePolicySpec, now: datetime) -> Found:
    """Return what is too old, oldest first and within ``maxPerCycle``."""
    candidates: list[Stale] = []
    kept: list[Stale] = []
    for group in groups:
        for vm in group.vms:
            one = stale(vm, spec, now, orphan=group.orphans)
            if one is not None:
                (kept if _stays(one, group) else candidates).append(one)
    # Beginning a destruction anew removes nothing: it must not use up what others may.
    late = _oldest((one for one in candidates if one.state is State.COMPLETED), spec.max_per_cycle)
    rest = _oldest((one for one in candidates if one.state is not State.COMPLETED), spec.max_per_cycle)
    due = tuple(_oldest((*late, *rest), len(late) + len(rest)))
    states = Counter(one.state for one in (*candidates, *kept))
    return Found(due, len(candidates) - len(due), tuple(kept), states)


def _oldest(stale: Iterable[Stale], most: int) -> list[Stale]:
    return sorted(stale, key=lambda one: (-one.age, one.vm.name))[:most]


def stale(vm: VM, spec: PurgePolicySpec, now: datetime, *, orphan: bool = False) -> Stale | None:
    """Return a VM with its age and limit if it is too old; None for one that is not, or that somebody has."""
    state = _state(vm, orphan=orphan)
    if state is None:
        return None
    limits: Mapping[State, timedelta] = {
        State.PENDING: spec.max_pending_age,
        State.READY: spec.max_ready_age,
        State.COMPLETED: spec.max_completed_age,
        State.ORPHANED: spec.max_orphaned_age,
    }
    age = now - vm.since
    return Stale(vm, state, age, limits[state]) if age > limits[state] else None


def _state(vm: VM, *, orphan: bool) -> State | None:
    if orphan:
        kept = vm.phase == Phase.QUARANTINED and vm.claim is None and not vm.deleting
        return State.ORPHANED if kept else None
    if vm.phase == Phase.COMPLETED:
        # Its claim has ended: the rules of the kind allow no other. Without our finalizer the object is going already.
        return None if vm.claimed or (vm.deleting and not vm.held) else State.COMPLETED
    if vm.claim is not None or vm.deleting:
        return None
    return {Phase.PENDING.value: State.PENDING, Phase.READY.value: State.READY}.get(vm.phase)


def _stays(one: Stale, group: Group) -> bool:
    """Whether it is kept although it is too old."""
    if one.vm.purge_exempt or group.paused:
        return True
    # In an outage a pending VM is told as a failure; the rest is stock, or cannot be destroyed anyway.
    return one.vm.provider in group.unreachable and one.state is not State.PENDING


def may_go(vm: VM, order: Purge) -> bool:
    """Whether what an order found is still so: nobody has taken the VM, and it has not moved on."""
    if vm.phase != order.phase or vm.purge_exempt:
        return False
    return not vm.claimed if vm.phase == Phase.COMPLETED else vm.claim is None and not vm.deleting


def removed(vm: VM, order: Purge) -> bool:
    """Whether a VM that was ordered away in another phase has gone because of it."""
    purged = (Reason.PURGED, Reason.PURGED_PENDING)
    return order.phase != Phase.COMPLETED and vm.phase == Phase.COMPLETED and vm.reason in purged


def begun_anew(vm: VM, sight: Sight, order: Purge) -> bool:
    """Whether the provider was asked to delete the machine since the order, or it is being deleted since."""
    asked = sight.state == "Deleting" and sight.looked_at is not None and sight.looked_at >= order.at
    missed = sight.missed_at is not None and sight.missed_at >= order.at
    return asked or missed or vm.step(Step.DESTROY).retries > order.retries


def _orders(seen: PoolSnapshot) -> list[tuple[VM, Purge]]:
    """Return what the pool's purge policy wants removed, unless somebody was quicker: claimed, or in another phase."""
    if seen.pool.spec.purge_policy is None or not seen.purges:
        return []
    orders = [(vm, order) for vm in seen.vms if (order := seen.purges.get(vm.uid)) is not None]
    return [(vm, order) for vm, order in orders if may_go(vm, order)]


def _ordered(seen: PoolSnapshot) -> list[tuple[VM, Purge]]:
    """Return those orders whose VMs have nothing in flight."""
    return [(vm, order) for vm, order in _orders(seen) if vm.uid not in seen.busy]


def _reachable(seen: PoolSnapshot, vm: VM) -> bool:
    provider = seen.providers.get(vm.provider)
    return provider is not None and provider.reachable


def ends(seen: PoolSnapshot) -> list[Complete]:
    """Give up what is ordered away on its way to Ready."""
    return [
        Complete(vm, Reason.PURGED_PENDING, order.message, Step.BOOT if vm.machine_id else vm.making)
        for vm, order in _ordered(seen)
        if vm.phase == Phase.PENDING
    ]


def replaced(seen: PoolSnapshot, live: Iterable[VM]) -> dict[str, tuple[Reason, str]]:
    """Return the Ready VMs that are ordered away, by uid, with why: they go as fast as the pool's update allows.

    Those that are going just now are among them: else their successors would be one too many.
    """
    going = {vm.uid: order for vm, order in _orders(seen) if vm.phase == Phase.READY}
    return {vm.uid: (Reason.PURGED, going[vm.uid].message) for vm in live if vm.uid in going}


def begin_anew(seen: PoolSnapshot) -> list[DestroyMachine]:
    """Ask at once, and once for each order, for destructions that take too long, whenever the next try is due."""
    late = [(vm, order) for vm, order in _ordered(seen) if vm.phase == Phase.COMPLETED and _reachable(seen, vm)]
    return [DestroyMachine(vm) for vm, order in late if not begun_anew(vm, seen.sight(vm), order)]


def cycle(
    found: Found, times: tuple[datetime, datetime], *, dry_run: bool, purged: Sequence[Stale] = (), kept: int = 0
) -> PurgeCycle:
    """Return the record of a cycle. ``kept`` are those that were due and stayed; ``times`` its start and end."""
    late = 0 if dry_run else len(found.due) - len(purged) - kept
    shown = found.due if dry_run else sorted(purged, key=lambda one: (-one.age, one.vm.name))
    return PurgeCycle(
        started_at=times[0],
        finished_at=times[1],
        dry_run=dry_run,
        found=found.total,
        purged=len(purged),
        deferred=found.deferred + late,
        kept=len(found.kept) + kept,
        vms=tuple(one.listed() for one in shown[:MAX_PURGED_LISTED]),
    )


def is_news(before: PurgeCycle | None, record: PurgeCycle) -> bool:
    """Whether a cycle is worth a write: it did something, or found other VMs than the last one that was written."""
    if record.purged or record.deferred:
        return True
    return bool(record.found) and (before is None or _summary(before) != _summary(record))


def _summary(record: PurgeCycle) -> tuple[object, ...]:
    """A cycle without its times and ages."""
    return (record.dry_run, record.found, record.kept, tuple((one.vm, one.state) for one in record.vms))


def active_pause(spec: PurgePolicySpec, now: datetime) -> Pause | None:
    """Return the pause that lasts longest of those that are active; None when nothing pauses."""
    active = [pause for pause in spec.pauses if pause.until is None or pause.until > now]
    return max(active, key=lambda pause: (pause.until is None, pause.until or now), default=None)


def pause_ends(spec: PurgePolicySpec, now: datetime) -> datetime | None:
    """Return when the next pause ends by itself; None when none does."""
    return min((pause.until for pause in spec.pauses if pause.until is not None and pause.until > now), default=None)


def paused_by(pause: Pause) -> str:
    """Say in a clause who pauses, why, and until when."""
    why = f" ({pause.reason})" if pause.reason else ""
    until = f" until {pause.until.isoformat(timespec='seconds')}" if pause.until is not None else ""
    return f"spec.pauses has {pause.name}{why}{until}"


def conditions(
    spec: PurgePolicySpec,
    *,
    pools: Sequence[tuple[str, str]],
    removing: int,
    generation: int,
    now: datetime,
) -> list[Condition]:
    """Return the policy's conditions. ``pools`` are those that name it, each with why it is paused, or an empty text.

    ``removing`` is how many VMs are on their way out by the cycle that runs now. No sentence holds an age.
    """
    pause = active_pause(spec, now)
    stopped = [(name, why) for name, why in pools if why]
    if pause is not None:
        why = ("Paused", f"nothing is removed: {paused_by(pause)}")
    elif stopped:
        why = ("PoolsPaused", f"nothing is removed from {_named(stopped)}")
    else:
        why = ("", "")
    new = [observed(ConditionType.READY, True, *_ready(spec, pools, removing, why), generation=generation, now=now)]
    if why[0]:
        new.append(observed(ConditionType.PAUSED, True, *why, generation=generation, now=now))
    return new


def _ready(
    spec: PurgePolicySpec, pools: Sequence[tuple[str, str]], removing: int, paused: tuple[str, str]
) -> tuple[str, str]:
    if not pools:
        return "NoPools", "no VMPool of this namespace has it as spec.purgePolicy"
    if paused[0] == "Paused":
        return paused
    if spec.dry_run:
        return "DryRun", f"what is too old is only listed: {_limits(spec)}"
    if removing:
        return "Purging", f"{removing} VMs are too old and are being removed"
    return "Idle", f"what is too old is removed: {_limits(spec)}"


def _limits(spec: PurgePolicySpec) -> str:
    ages = {
        State.PENDING: spec.max_pending_age,
        State.READY: spec.max_ready_age,
        State.COMPLETED: spec.max_completed_age,
        State.ORPHANED: spec.max_orphaned_age,
    }
    told = ", ".join(f"{state} after {format_duration(age)}" for state, age in ages.items())
    return f"{told}; looks every {format_duration(spec.interval)}"


def _named(stopped: Sequence[tuple[str, str]]) -> str:
    named = ", ".join(f"VMPool {name}: {why}" for name, why in stopped[:MAX_NAMED])
    return f"{named} and {len(stopped) - MAX_NAMED} more" if len(stopped) > MAX_NAMED else named
