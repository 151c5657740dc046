"""Decide which dead letters of a queue go, which are tried again, and what the queue holds.

Linear in the number of letters, but for the few that are over the limit: a queue of ten thousand is looked at often.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from heapq import nsmallest
from operator import attrgetter
from typing import Final

from vmpool.api.conditions import Condition, ConditionType, merge, observed
from vmpool.api.deadletterqueue import (
    MAX_FINGERPRINTS,
    DeadLetterQueueSpec,
    DeadLetterQueueStatus,
    FrequentFailure,
    QueueSize,
)
from vmpool.api.meta import MAX_COUNT, format_duration
from vmpool.plan.policies import Letter, Queue, QueueObject

WITHOUT_ARCHIVE: Final = 2
"""Times maxEntries under one queue name: so many letters wait for an archive that is out of reach."""
MESSAGE_MAX: Final = 1024
_age = attrgetter("failed_at", "uid")


@dataclass(frozen=True, slots=True)
class Retention:
    """What is due for the letters of one queue. No letter is in two of the first four; each is oldest first."""

    discard: tuple[Letter, ...] = ()
    """Somebody has asked to remove these."""
    redrive: tuple[Letter, ...] = ()
    """Somebody has asked to try these again, and nobody has yet."""
    expired: tuple[Letter, ...] = ()
    """Kept for their time. One that waits for its redrive stays."""
    trimmed: tuple[Letter, ...] = ()
    """The oldest above maxEntries of their queue name."""
    overflow: tuple[Letter, ...] = ()
    """Those of expired and trimmed that cannot wait for an archive: the oldest above twice maxEntries."""
    next_at: datetime | None = None
    """When the next letter expires."""


def plan_retention(letters: Iterable[Letter], spec: DeadLetterQueueSpec, now: datetime) -> Retention:
    """Return what is due now. Letters that are being deleted already count as gone."""
    discard: list[Letter] = []
    redrive: list[Letter] = []
    expired: list[Letter] = []
    kept: defaultdict[str, list[Letter]] = defaultdict(list)
    late: Counter[str] = Counter()
    born_by = now - spec.ttl
    oldest: datetime | None = None
    for letter in letters:
        if letter.deleting:
            continue
        if letter.action == "discard":
            discard.append(letter)
            continue
        if letter.waits:
            redrive.append(letter)
        elif letter.failed_at <= born_by:
            expired.append(letter)
            late[letter.queue_from] += 1
            continue
        elif oldest is None or letter.failed_at < oldest:
            oldest = letter.failed_at
        kept[letter.queue_from].append(letter)
    trimmed = [letter for group in kept.values() for letter in _oldest(group, len(group) - spec.max_entries)]
    trimmed.sort(key=_age)
    expired.sort(key=_age)
    asked = {letter.uid for letter in trimmed} if trimmed else set()
    return Retention(
        discard=tuple(sorted(discard, key=_age)),
        redrive=tuple(letter for letter in sorted(redrive, key=_age) if letter.uid not in asked),
        expired=tuple(expired),
        trimmed=tuple(trimmed),
        overflow=_overflow(expired, trimmed, kept, late, WITHOUT_ARCHIVE * spec.max_entries),
        next_at=oldest + spec.ttl if oldest is not None else None,
    )


def _oldest(letters: Sequence[Letter], count: int) -> list[Letter]:
    return nsmallest(count, letters, key=_age) if count > 0 else []


def _overflow(
    expired: Sequence[Letter],
    trimmed: Sequence[Letter],
    kept: dict[str, list[Letter]],
    late: Counter[str],
    most: int,
) -> tuple[Letter, ...]:
    """Return what goes without an archive. Letters that are kept are never more than half of ``most``."""
    over = {name: len(kept[name]) + late[name] - most for name in kept.keys() | late.keys()}
    if not any(count > 0 for count in over.values()):
        return ()
    going = []
    for letter in sorted((*expired, *trimmed), key=_age):
        if over[letter.queue_from] > 0:
            over[letter.queue_from] -= 1
            going.append(letter)
    return tuple(going)


@dataclass(slots=True)
class _Kind:
    """The letters of one fingerprint so far."""

    entries: int
    newest: Letter


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a queue holds."""

    entries: int = 0
    oldest_since: datetime | None = None
    queues: tuple[QueueSize, ...] = ()
    """The queue names that hold something, in the order of ``Queue``."""
    fingerprints: tuple[FrequentFailure, ...] = field(default=())
    """The most frequent first; of those that are equal, the one with the newest letter."""


def holdings(letters: Iterable[Letter]) -> Holdings:
    """Count the letters that are there, in one pass."""
    sizes: Counter[str] = Counter()
    oldest: dict[str, datetime] = {}
    kinds: dict[str, _Kind] = {}
    for letter in letters:
        if letter.deleting:
            continue
        name = letter.queue_from
        sizes[name] += 1
        if name not in oldest or letter.failed_at < oldest[name]:
            oldest[name] = letter.failed_at
        kind = kinds.get(letter.fingerprint)
        if kind is None:
            kinds[letter.fingerprint] = _Kind(1, letter)
            continue
        kind.entries += 1
        if _age(letter) > _age(kind.newest):
            kind.newest = letter
    top = nsmallest(MAX_FINGERPRINTS, kinds.values(), key=_rank)
    order = {queue.value: place for place, queue in enumerate(Queue)}
    names = sorted(sizes, key=lambda name: (order.get(name, len(order)), name))
    return Holdings(
        entries=min(sizes.total(), MAX_COUNT),
        oldest_since=min(oldest.values(), default=None),
        queues=tuple(QueueSize(name=name, entries=sizes[name], oldest_since=oldest[name]) for name in names),
        fingerprints=tuple(
            FrequentFailure(
                fingerprint=kind.newest.fingerprint,
                entries=kind.entries,
                error_class=kind.newest.error_class,
                error_message=kind.newest.error_message,
            )
            for kind in top
        ),
    )


def _rank(kind: _Kind) -> tuple[int, float, str]:
    return (-kind.entries, -kind.newest.failed_at.timestamp(), kind.newest.fingerprint)


def queue_status(queue: QueueObject, held: Holdings, archive_error: str | None, now: datetime) -> DeadLetterQueueStatus:
    """Return the status of a queue. ``archive_error`` is why letters do not get into its archive; None: not known yet.

    Empty means that they do; without an archive it does not matter.
    """
    return DeadLetterQueueStatus(
        observed_generation=queue.generation,
        conditions=merge(queue.status.conditions, _conditions(queue, archive_error, now), now),
        entries=held.entries,
        oldest_since=held.oldest_since,
        queues=held.queues,
        fingerprints=held.fingerprints,
    )


def _conditions(queue: QueueObject, archive_error: str | None, now: datetime) -> list[Condition]:
    spec, generation = queue.spec, queue.generation
    message = f"letters are kept for {format_duration(spec.ttl)}, at most {spec.max_entries} by queue name"
    made = [observed(ConditionType.READY, True, "Keeping", message, generation=generation, now=now)]
    if spec.archive is None or archive_error is None:
        return made
    if archive_error:
        what = (
            f"letters are kept until it can be written, at most {WITHOUT_ARCHIVE * spec.max_entries} by queue name; "
            "above that the oldest go without"
        )
        message = f"{archive_error[: MESSAGE_MAX - len(what) - 2]}; {what}"
        made.append(observed(ConditionType.ARCHIVING, False, "ArchiveFailed", message, generation=generation, now=now))
    else:
        message = "letters are archived before they are removed for their age or for want of room"
        made.append(observed(ConditionType.ARCHIVING, True, "Archiving", message, generation=generation, now=now))
    return made
