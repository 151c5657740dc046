"""What becomes of the lines of one watch: a pure machine, lines in, lines out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.faults.gate.calls import Occurrences
from tests.faults.gate.plan import WATCH_KINDS, Action, Kind, Progress

REASONS = {410: "Expired", 500: "InternalError", 504: "Timeout", 429: "TooManyRequests", 403: "Forbidden"}


@dataclass(frozen=True, slots=True)
class Out:
    """What goes to the replica: some bytes, a pause before them, and whether the stream ends behind them."""

    data: bytes = b""
    pause: float = 0.0
    end: bool = False
    """End the stream as a server does."""
    reset: bool = False
    """Break the connection instead."""


def event_signature(plural: str, event: dict[str, Any]) -> str:
    """Return what an event tells, the same in every run."""
    kind, found = event.get("type", ""), event.get("object") or {}
    if kind in {"BOOKMARK", "ERROR"}:
        return f"event {plural} {kind}"
    status, meta = found.get("status") or {}, found.get("metadata") or {}
    words = [str(status[key]) for key in ("phase",) if status.get(key)]
    claim = (found.get("spec") or {}).get("claim")
    if claim:
        words.append("released" if claim.get("releasedAt") else "claimed")
    if meta.get("deletionTimestamp"):
        words.append("deleting")
    return f"event {plural} {kind} {' '.join(words)}".rstrip()


@dataclass
class Stream:
    """One watch of one replica."""

    replica: str
    plural: str
    progress: Progress
    seen: Occurrences
    agent: str = ""
    """Put before the signatures of a client that is not ours: kopf has a watch of its own for each kind."""
    last: tuple[str, int] = ("", 0)
    """Signature and occurrence of the last line."""
    _past: list[bytes] = field(default_factory=list)
    _held: dict[str, tuple[float, bytes]] = field(default_factory=dict)
    """Lines that wait for their time, or until their object changes again, by uid."""
    _frozen_until: float | None = None
    """Events are held back until then, bookmarks are not."""
    _kept: list[bytes] = field(default_factory=list)

    def line(self, line: bytes, now: float) -> Iterator[Out]:
        """Return what follows from one line of the server, its newline included; ``now`` is of any steady clock."""
        event = orjson.loads(line)
        signature = f"{self.agent}{event_signature(self.plural, event)}"
        self.last = (signature, self.seen.next(self.replica, signature))
        action = self.progress.strike(signature, self.replica, self.last[1], of=WATCH_KINDS)
        bookmark = event.get("type") == "BOOKMARK"
        if self._frozen_until is not None and not bookmark:
            self._kept.append(line)
            return
        uid = ((event.get("object") or {}).get("metadata") or {}).get("uid", "")
        # What was held comes too late for anything: its object has moved on. It is never seen.
        self._held.pop(uid, None)
        if action is not None:
            yield from self._act(action, line, uid, now)
        else:
            yield Out(line)
        if not bookmark:
            self._past.append(line)

    @property
    def next_due(self) -> float | None:
        """When something that is held back comes; None: nothing is."""
        times = [at for at, _ in self._held.values()]
        if self._frozen_until is not None:
            times.append(self._frozen_until)
        return min(times, default=None)

    def due(self, now: float) -> Iterator[Out]:
        """Return what was held back until now."""
        if self._frozen_until is not None and now >= self._frozen_until:
            self._frozen_until = None
            kept, self._kept = self._kept, []
            yield from map(Out, kept)
        for uid in [uid for uid, (at, _) in self._held.items() if now >= at]:
            yield Out(self._held.pop(uid)[1])

    def _act(self, action: Action, line: bytes, uid: str, now: float) -> Iterator[Out]:
        match action.kind:
            case Kind.FREEZE:
                yield Out(line, pause=action.seconds or 0.0)
            case Kind.FREEZE_EVENTS:
                self._frozen_until = now + (action.seconds or 0.0)
                self._kept.append(line)
            case Kind.HOLD:
                self._held[uid] = (now + (action.seconds or 0.0), line)
            case Kind.DROP:
                pass
            case Kind.TWICE:
                yield Out(line + line)
            case Kind.REPLAY:
                yield Out(line)
                yield Out(b"".join(self._past))
            case Kind.ERROR:
                yield Out(error_event(action.status or 500), end=True)
            case Kind.CUT:
                yield Out(line[: len(line) // 2], reset=True)


def error_event(status: int) -> bytes:
    """Return the line of an ERROR event, as the API server writes it."""
    told = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"made by a test: {status}",
        "reason": REASONS.get(status, "InternalError"),
        "code": status,
    }
    return orjson.dumps({"type": "ERROR", "object": told}) + b"\n"
