"""The faults, and which places of a scenario each of them fits."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.faults.gate.plan import STEP_PREFIX, Action, Kind, Point

HANG_SECONDS: Final = 3.0
HELD_SECONDS: Final = 4.0
CAUSED_SECONDS: Final = 1.0
"""A write so soon after an event counts as what followed from it."""


def write_faults() -> list[Action]:
    """Everything that can go wrong with one write."""
    points = (Point.BEFORE, Point.COMMITTED)
    return [
        *(Action(kind=Kind.KILL, point=point) for point in Point),
        *(Action(kind=Kind.ANSWER, status=status) for status in (409, 422, 403, 500, 503)),
        Action(kind=Kind.ANSWER, status=429, retry_after=1),
        *(Action(kind=Kind.ANSWER, point=Point.COMMITTED, status=status) for status in (409, 504)),
        *(Action(kind=Kind.RESET, point=point) for point in points),
        *(Action(kind=Kind.HANG, point=point, seconds=HANG_SECONDS) for point in points),
        Action(kind=Kind.DUPLICATE),
        Action(kind=Kind.DELAY, seconds=HANG_SECONDS),
        Action(kind=Kind.TRUNCATE),
    ]


def cloud_faults() -> list[Action]:
    """Everything that can go wrong with one call to the cloud that changes something."""
    points = (Point.BEFORE, Point.COMMITTED)
    return [
        *(Action(kind=Kind.KILL, point=point) for point in Point),
        *(Action(kind=Kind.ANSWER, status=status) for status in (401, 403, 500, 503)),
        Action(kind=Kind.ANSWER, status=429, retry_after=1),
        *(Action(kind=Kind.ANSWER, point=Point.COMMITTED, status=status) for status in (500, 504)),
        *(Action(kind=Kind.RESET, point=point) for point in points),
        *(Action(kind=Kind.HANG, point=point, seconds=HANG_SECONDS) for point in points),
        Action(kind=Kind.DUPLICATE),
        Action(kind=Kind.DELAY, seconds=HANG_SECONDS),
        Action(kind=Kind.TRUNCATE),
    ]


def watch_faults() -> list[Action]:
    """Everything that can go wrong with one event of a watch."""
    return [
        Action(kind=Kind.FREEZE, seconds=HELD_SECONDS),
        Action(kind=Kind.FREEZE_EVENTS, seconds=HELD_SECONDS),
        Action(kind=Kind.HOLD, seconds=HELD_SECONDS),
        Action(kind=Kind.DROP),
        Action(kind=Kind.TWICE),
        Action(kind=Kind.REPLAY),
        *(Action(kind=Kind.ERROR, status=status) for status in (410, 500)),
        Action(kind=Kind.CUT),
    ]


def list_faults() -> list[Action]:
    """Everything that can go wrong with one list."""
    return [
        Action(kind=Kind.STALE),
        Action(kind=Kind.EMPTY),
        Action(kind=Kind.PARTIAL),
        Action(kind=Kind.ANSWER, status=500),
        Action(kind=Kind.DELAY, seconds=HANG_SECONDS),
        Action(kind=Kind.TRUNCATE),
    ]


def step_faults() -> list[Action]:
    """Everything that can go wrong with one sub-step of making a machine."""
    return [
        *(Action(kind=Kind.KILL, point=point) for point in (Point.BEFORE, Point.COMMITTED)),
        *(Action(kind=Kind.ANSWER, status=status) for status in (403, 500, 503)),
        Action(kind=Kind.ANSWER, status=429, retry_after=1),
        *(Action(kind=Kind.ANSWER, point=Point.COMMITTED, status=status) for status in (500, 504)),
        Action(kind=Kind.RESET, point=Point.COMMITTED),
        Action(kind=Kind.DELAY, seconds=HANG_SECONDS),
        Action(kind=Kind.NEVER),
        Action(kind=Kind.FAIL),
    ]


def end_faults() -> list[Action]:
    """Everything that can go wrong with a deletion after it was accepted."""
    return [Action(kind=Kind.NEVER)]


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something can go wrong in a scenario."""

    sort: str
    """write, cloud, event or list; step for a sub-step of making a machine, end for that of a deletion."""
    signature: str
    occurrences: int
    """How often it comes in every clean run."""


FAULTS: Final[Mapping[str, list[Action]]] = {
    "write": write_faults(),
    "cloud": cloud_faults(),
    "event": watch_faults(),
    "list": list_faults(),
    "step": step_faults(),
    "end": end_faults(),
}
END = f"{STEP_PREFIX}gone"


def places(runs: Sequence[Mapping[str, Any]]) -> tuple[list[Place], list[str]]:
    """Return the places that every clean run has, and the signatures that only some have.

    ``runs`` are traces as the gate tells them: calls under ``trace``, events under ``events``, and among these what the
    cloud has done.
    """
    found = [_counts(run) for run in runs]
    every = set.intersection(*(set(counts) for counts in found))
    some = set.union(*(set(counts) for counts in found)) - every
    made = [Place(sort, signature, min(counts[sort, signature] for counts in found)) for sort, signature in every]
    return sorted(made), sorted(signature for _, signature in some)


def _counts(run: Mapping[str, Any]) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    writes = [entry for entry in run["trace"] if entry["changed"]]
    for entry in writes:
        counts["cloud" if entry["far"] == "cloud" else "write", entry["signature"]] += 1
    for entry in run["trace"]:
        if entry["far"] == "api" and entry["verb"] == "list" and _ours(entry["plural"]):
            counts["list", entry["signature"]] += 1
    for signature in _caused(run["events"], [entry["at"] for entry in writes if entry["far"] == "api"]):
        counts["event", signature] += 1
    for _, _, signature, _ in run["events"]:
        if signature.startswith(STEP_PREFIX):
            counts["end" if signature == END else "step", signature] += 1
    return counts


def _ours(plural: str) -> bool:
    return plural.isalpha()


def _caused(events: Iterable[Sequence[Any]], writes: Sequence[float]) -> Iterator[str]:
    """The events that a write followed: to break another one changes nothing that anybody does."""
    for at, _, signature, _ in events:
        if not signature.startswith(STEP_PREFIX) and any(at <= written <= at + CAUSED_SECONDS for written in writes):
            yield signature
