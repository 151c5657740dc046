"""One trial as the gate sees it: its plan, its replicas, and the trace of everything they said."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.faults.gate.calls import Call, Far, Occurrences
from tests.faults.gate.plan import Plan, Progress

BODY_KEPT = 8192
"""Characters of a written body that the trace keeps."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One call, as the trace keeps it."""

    at: float
    """Seconds since the trial began."""
    replica: str
    far: Far
    signature: str
    occurrence: int
    verb: str
    plural: str
    subresource: str
    name: str
    status: int
    """0: there was no answer, or it was not passed on."""
    changed: bool
    """The write had an effect."""
    fault: str
    """What went wrong here; empty: nothing."""
    content_type: str = ""
    body: Any = None
    namespace: str = ""
    asked: float = 0.0
    """When it came in, in seconds since the trial began; ``at`` is when the far side had answered."""
    version: int = 0
    """The resourceVersion that the API server answered with; 0: none. Tells how new the server was at ``at``."""


@dataclass
class Trial:
    """Everything about one trial; lives until it is dropped."""

    plan: Plan
    upstreams: dict[Far, str]
    began: float = field(default_factory=time.monotonic)
    began_at: float = field(default_factory=time.time)
    """The same moment in Unix seconds: the cloud's ledger knows no other time."""
    calls: Occurrences = field(default_factory=Occurrences)
    events: Occurrences = field(default_factory=Occurrences)
    trace: list[Entry] = field(default_factory=list)
    events_seen: list[tuple[float, str, str, int]] = field(default_factory=list)
    """When, replica, signature and occurrence of each event that came."""
    pids: dict[str, int] = field(default_factory=dict)
    """The process of each replica, as far as it is known."""
    dying: dict[str, bool] = field(default_factory=dict)
    """Replicas that are killed, until the next process of theirs is introduced; True: the old one is gone."""
    first_lists: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """The first list of each kind that a replica got."""

    in_hand: int = 0
    """Broken calls that are not answered yet, and events that are held back: what is broken is not over."""

    def __post_init__(self) -> None:
        self.progress = Progress(self.plan)
        self.met_at: float | None = None
        """When the last fault of the plan came."""

    @property
    def now(self) -> float:
        """Seconds since the trial began."""
        return time.monotonic() - self.began

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Count something as being in hand for as long as this is open."""
        self.in_hand += 1
        try:
            yield
        finally:
            self.in_hand -= 1

    def note(  # one argument for each thing that is known only here
        self, call: Call, occurrence: int, status: int, *, changed: bool, fault: str, asked: float, version: int = 0
    ) -> None:
        """Put a call into the trace."""
        self.trace.append(
            Entry(
                at=self.now,
                replica=call.replica,
                far=call.far,
                signature=call.signature,
                occurrence=occurrence,
                verb=call.verb,
                plural=call.plural,
                subresource=call.subresource,
                name=call.name,
                status=status,
                changed=changed,
                fault=fault,
                content_type=call.content_type,
                body=call.body,
                namespace=call.namespace,
                asked=asked,
                version=version,
            )
        )
