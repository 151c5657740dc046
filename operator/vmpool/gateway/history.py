"""What this gateway has seen of the last days: how long clones and boots took, and which tags were set.

It knows what the VMs that are there now still show, and all that happened since it started. It is kept in memory
only: the history of an installation is in its metrics.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

from vmpool.kube.mirror import Change, Mirror
from vmpool.plan.lifecycle import Phase
from vmpool.plan.snapshot import VM, Step

DAYS = 31
"""How many days are kept, today included; days begin and end in UTC."""
TAG_VALUES = 1000
"""Most values of all tags together that are told apart in one day.

Of a tag that is known the rest are counted as ``OTHER``; tags that are not are counted as one tag of that name.
"""
OTHER = "(other)"

PoolKey = tuple[str, str]
"""Namespace and name of a pool."""


class Task(StrEnum):
    """What durations are kept of."""

    CLONE = "clone"
    """From the start of the clone until the provider has made the machine."""
    BOOT = "boot"
    """From the start of the clone until the VM was Ready, as VMPooler counts it."""


@dataclass(slots=True)
class Span:
    """Some durations together, in seconds."""

    count: int = 0
    total: float = 0.0
    least: float = 0.0
    most: float = 0.0

    def add(self, other: "Span") -> None:
        """Take in other durations."""
        if not other.count:
            return
        self.least = min(self.least, other.least) if self.count else other.least
        self.most = max(self.most, other.most)
        self.count += other.count
        self.total += other.total

    @property
    def average(self) -> float:
        """The mean; 0 of nothing."""
        return self.total / self.count if self.count else 0.0


@dataclass(slots=True)
class Day:
    """What was seen of one day."""

    spans: dict[Task, dict[PoolKey, Span]] = field(default_factory=lambda: {task: {} for task in Task})
    tags: dict[str, Counter[str]] = field(default_factory=dict)
    values: int = 0
    """How many values of tags are told apart."""


NOTHING = Day()


def cloned(vm: VM) -> tuple[datetime, datetime] | None:
    """Return when its machine was begun and made; None while it is not, and for one that was taken in."""
    step = vm.step(Step.CREATE)
    return (step.started_at, step.finished_at) if step.started_at and step.finished_at else None


def booted(vm: VM) -> tuple[datetime, datetime] | None:
    """Return when its machine was begun and when it was Ready; None while it is not, and for one that was taken in."""
    made = cloned(vm)
    if made is None:
        return None
    # A machine that was up when it was made is Ready by the same write, which leaves no step of its own.
    at_once = made[1] if vm.claim is not None or vm.phase in (Phase.READY, Phase.CLAIMED) else None
    ready = vm.step(Step.BOOT).finished_at or at_once
    return (made[0], ready) if ready else None


class History:
    """Follows the mirror of VMs from its making on; make it before that runs."""

    def __init__(self, vms: Mirror[VM], now: Callable[[], datetime]) -> None:
        self._now = now
        self._days: dict[date, Day] = {}
        self._last_boots: dict[PoolKey, datetime] = {}
        vms.on_change(self._changed)

    def day(self, day: date) -> Day:
        """Return what was seen of a day; an empty one for a day that is not kept."""
        return self._days.get(day, NOTHING)

    def last_boot(self, pool: PoolKey) -> datetime | None:
        """Return when a VM of this pool last became Ready; None when none is remembered."""
        return self._last_boots.get(pool)

    def spans(self, task: Task, day: date) -> Mapping[PoolKey, Span]:
        """Return the durations of a day by pool."""
        return self.day(day).spans[task]

    def _changed(self, change: Change[VM]) -> None:
        old = change.old.fact if change.old is not None else None
        new = change.new.fact if change.new is not None else None
        if new is None:
            return
        for task, times in ((Task.CLONE, cloned), (Task.BOOT, booted)):
            took = times(new)
            if took is not None and (old is None or times(old) is None):
                self._took(task, new, *took)
        self._tagged(old, new)

    def _took(self, task: Task, vm: VM, began: datetime, ended: datetime) -> None:
        pool = (vm.namespace, vm.pool)
        if task is Task.BOOT:
            self._last_boots[pool] = max(ended, self._last_boots.get(pool, ended))
        day = self._kept(ended)
        if day is not None:
            seconds = round(max(0.0, (ended - began).total_seconds()), 2)
            day.spans[task].setdefault(pool, Span()).add(Span(1, seconds, seconds, seconds))

    def _tagged(self, old: VM | None, new: VM) -> None:
        if new.claim is None or new.claim.bound_at is None:
            return
        before = old.claim.tags if old is not None and old.claim is not None else {}
        if new.claim.tags == before:
            return
        # All tags of a VM count on the day of its checkout: then a restarted gateway counts them as before.
        day = self._kept(new.claim.bound_at)
        if day is not None:
            for tag in before.keys() | new.claim.tags.keys():
                self._retag(day, tag, before.get(tag), new.claim.tags.get(tag))

    def _retag(self, day: Day, tag: str, before: str | None, after: str | None) -> None:
        if before == after:
            return
        if before is not None:
            self._uncount(day, tag, before)
        if after is not None:
            room = day.values < TAG_VALUES
            name = tag if tag in day.tags or room else OTHER
            values = day.tags.setdefault(name, Counter())
            value = after if name == tag and (after in values or room) else OTHER
            day.values += value not in values
            values[value] += 1

    @staticmethod
    def _uncount(day: Day, tag: str, value: str) -> None:
        # What was tagged on a day that was not kept then was never counted.
        for name, counted in ((tag, value), (tag, OTHER), (OTHER, OTHER)):
            values = day.tags.get(name)
            if values is None or counted not in values:
                continue
            values[counted] -= 1
            if not values[counted]:
                del values[counted]
                day.values -= 1
            if not values:
                del day.tags[name]
            return

    def _kept(self, moment: datetime) -> Day | None:
        """Return the day that a moment counts on; None when it is too long ago, or not today yet."""
        today, day = self._now().date(), moment.astimezone(UTC).date()
        oldest = today - timedelta(days=DAYS - 1)
        if not oldest <= day <= today:
            return None
        if day not in self._days:
            self._days = {known: seen for known, seen in self._days.items() if known >= oldest}
            self._last_boots = {pool: at for pool, at in self._last_boots.items() if at.date() >= oldest}
            self._days[day] = Day()
        return self._days[day]
