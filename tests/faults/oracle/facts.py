"""What the judges need out of an ``Evidence``, worked out once: objects and their versions, machines, one order of all.

Three clocks meet here. Versions are ordered by their resourceVersion, which one etcd gives to all kinds. The gate's
trace has seconds since the trial began, the cloud's ledger Unix seconds; ``Clock`` says between which two moments of
the trace a version came to be, and machines carry the trace's time already.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import inf
from typing import Any

from tests.faults.gate.plan import LIST_KINDS, WATCH_KINDS
from tests.faults.gate.trial import Entry
from tests.faults.rig.history import Version
from tests.faults.rig.trial import Evidence
from vmpool.api import keys

Json = Mapping[str, Any]
FAR = 1e9
"""Seconds of the trace that no trial reaches: stands for "never", and can be counted with."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One promise that was not kept."""

    code: str
    """Which one: I1 to I12 of the invariants, L1 to L7 of the linter."""
    subject: str
    """The object, machine or request that it is about."""
    what: str
    at: float = 0.0
    """A resourceVersion, or seconds of the trace: where to look."""

    def __str__(self) -> str:
        return f"{self.code} {self.subject}: {self.what} (at {self.at:g})"


@dataclass(frozen=True)
class Terms:
    """What is right in one scenario though it would not be in another; the defaults are the strict ones."""

    unfilled: frozenset[str] = frozenset()
    """Pools that need not have what they want at the end, because nothing can be made for them."""
    kept: frozenset[str] = frozenset()
    """Objects that may still have a deletionTimestamp at the end, by name."""
    control_pool: str = ""
    """A pool that must be full through everything; empty: there is none."""
    foreign_deletes: bool = False
    """Somebody else deletes machines at the cloud."""
    twin_seconds: float = 20.0
    """Without tokens: how long a second machine of one VM may live until it is swept."""
    lag_seconds: float = 5.0
    """How old that what a decision rests on may be, while nothing holds the watches up."""
    converge_seconds: float = 60.0
    """From the last fault to the scenario's end."""
    requests_per_second: int = 250
    """Requests of one replica in any second: three times the busiest one that a clean trial has shown."""
    quiet_seconds: float = 1.5
    """At the end, without any write."""
    exits: int = 0
    """Ends on doubt that are right although nothing in the plan explains them."""


@dataclass(frozen=True)
class Object:
    """Everything that one object ever was."""

    plural: str
    uid: str
    versions: list[Version]

    @property
    def name(self) -> str:
        """Its name."""
        return self.versions[0].name

    @property
    def last(self) -> Json:
        """Its last state."""
        return self.versions[-1].object

    @property
    def exists(self) -> bool:
        """Whether it is there at the end."""
        return self.versions[-1].event != "DELETED"

    @property
    def gone(self) -> float:
        """The number under which it went; infinite while it is there."""
        return inf if self.exists else float(self.versions[-1].number)

    def pairs(self) -> Iterator[tuple[Version, Version]]:
        """Each version with the one after it."""
        return pairwise(self.versions)

    def first(self, phase: str) -> Version | None:
        """The version in which it first had this phase."""
        return next((version for version in self.versions if phase_of(version.object) == phase), None)


@dataclass(frozen=True)
class Machine:
    """One machine of the ledger; times are the trace's."""

    id: str
    name: str
    token: str
    tags: Mapping[str, str]
    created: float
    deleted: float
    """When its deletion was first asked for; FAR: never."""
    gone: float
    ended_by: str
    alive: bool


def phase_of(found: Json) -> str:
    """The phase in an object's status."""
    return str((found.get("status") or {}).get("phase") or "")


def reason_of(found: Json) -> str:
    """The reason in an object's status."""
    return str((found.get("status") or {}).get("reason") or "")


def claim_of(found: Json) -> Json:
    """The claim on a PooledVM; empty: there is none."""
    return (found.get("spec") or {}).get("claim") or {}


def machine_id_of(found: Json) -> str:
    """The machine that a PooledVM has, or is to take in."""
    adopt = found["spec"].get("adopt") or {}
    return str((found.get("status") or {}).get("machineId") or adopt.get("machineId") or "")


def attempt_of(found: Json) -> int:
    """Which attempt of its a PooledVM is at."""
    return int((found.get("status") or {}).get("attempt") or 1)


def is_deleting(found: Json) -> bool:
    """Whether somebody has asked for its deletion."""
    return bool(found["metadata"].get("deletionTimestamp"))


def is_live(found: Json) -> bool:
    """Whether a PooledVM is, or is on its way to be, one that can be handed out."""
    return phase_of(found) in {"Pending", "Ready"} and not claim_of(found) and not is_deleting(found)


def _made(entry: Entry) -> bool:
    """Whether an effective write's own answer carries the version that it made.

    It does where it named the version that it began with, or began with none. Else a write without an effect may have
    been taken for one, because its object was changed past the gate.
    """
    meta = (entry.body.get("metadata") or {}) if isinstance(entry.body, dict) else {}
    return entry.verb == "create" or entry.plural == "leases" or bool(meta.get("resourceVersion"))


class Clock:
    """Between which moments of the trace a version came to be."""

    def __init__(self, trace: Iterable[Entry]) -> None:
        entries = [entry for entry in trace if entry.version]
        # A server that answers with a version has it; an answer from a cache is only later proof of an earlier one.
        best, self._at, self._version = 0, list[float](), list[int]()
        for entry in sorted(entries, key=lambda entry: entry.at):
            if entry.version > best:
                best = entry.version
                self._at.append(entry.at)
                self._version.append(best)
        # Of these it is sure that the version was made by this very request.
        makers = [entry for entry in entries if entry.changed and _made(entry)]
        self._made = sorted((entry.version, entry.asked) for entry in makers)
        self._asked: list[float] = []
        for _, asked in self._made:
            self._asked.append(max(asked, self._asked[-1] if self._asked else 0.0))

    def latest(self, number: float) -> float:
        """The moment at which it was there for sure; FAR: nothing shows it."""
        index = bisect_left(self._version, number)
        return self._at[index] if index < len(self._at) else FAR

    def earliest(self, number: float) -> float:
        """A moment at which it was not there yet."""
        index = bisect_left(self._made, (number, inf))
        return self._asked[index - 1] if index else 0.0


@dataclass(frozen=True)
class Facts:
    """An ``Evidence``, read."""

    evidence: Evidence
    trace: list[Entry] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "trace", [Entry(**one) for one in self.evidence.trace])

    @cached_property
    def history(self) -> list[Version]:
        """All versions of all objects, oldest first."""
        return sorted(self.evidence.history, key=lambda version: version.number)

    @cached_property
    def objects(self) -> dict[str, Object]:
        """Everything that ever was, by uid."""
        found: dict[str, Object] = {}
        for version in self.history:
            found.setdefault(version.uid, Object(version.plural, version.uid, [])).versions.append(version)
        return found

    def of(self, plural: str) -> list[Object]:
        """Every object that a kind ever had."""
        return [one for one in self.objects.values() if one.plural == plural]

    @cached_property
    def clock(self) -> Clock:
        """When versions came to be."""
        return Clock(self.trace)

    def when(self, number: float) -> float:
        """About when a version came to be, in seconds of the trace."""
        return min(self.clock.latest(number), self.evidence.looked)

    @cached_property
    def machines(self) -> list[Machine]:
        """Every machine that ever was."""
        return [self._machine(row) for row in self.evidence.machines]

    def _machine(self, row: Json) -> Machine:
        return Machine(
            id=row["id"],
            name=row.get("name") or "",
            token=row.get("token") or "",
            tags=row.get("tags") or {},
            created=self._moment(row.get("createdAt")),
            deleted=self._moment(row.get("deleteAt")),
            gone=self._moment(row.get("goneAt")),
            ended_by=row.get("endedBy") or "",
            alive=row["state"] != "Gone",
        )

    def _moment(self, unix: float | None) -> float:
        return FAR if unix is None else unix - self.evidence.began_at

    @cached_property
    def recorded(self) -> Mapping[str, list[Object]]:
        """The PooledVMs that ever had a machine, or were made to take it in, by its id."""
        found: defaultdict[str, list[Object]] = defaultdict(list)
        for vm in self.of("pooledvms"):
            for machine_id in {machine_id_of(version.object) for version in vm.versions} - {""}:
                found[machine_id].append(vm)
        return found

    @cached_property
    def _uid_by_name(self) -> dict[str, str]:
        return {vm.name: vm.uid for vm in self.of("pooledvms")}

    def made_for(self, machine: Machine) -> str:
        """The uid of the PooledVM that a machine was made for; its tag names whoever took it in since."""
        return machine.token or self._uid_by_name.get(machine.name) or machine.tags.get(keys.TAG_UID, "")

    @cached_property
    def tokenless(self) -> bool:
        """Whether a cloud here does not know a request again."""
        specs = (version.object["spec"] for one in self.of("vmproviders") for version in one.versions)
        return any((spec.get("config") or {}).get("tokenMode") == "None" for spec in specs)

    @cached_property
    def namespace(self) -> str:
        """Where the trial takes place; empty: nothing happened."""
        return str(self.history[0].object["metadata"]["namespace"]) if self.history else ""

    @property
    def converged(self) -> bool:
        """Whether the scenario came to its end."""
        return not self.evidence.failure

    @cached_property
    def stale(self) -> bool:
        """Whether the plan holds back what an operator sees: then it may decide on what has long passed."""
        return any(fault.action.kind in WATCH_KINDS | LIST_KINDS for fault in self.evidence.plan.faults)

    def lag(self, terms: Terms) -> float:
        """How old that what a decision rests on may be, in seconds."""
        held_up = sum(fault.action.seconds or 0.0 for fault in self.evidence.plan.faults)
        return FAR if self.stale else terms.lag_seconds + held_up

    def writes(self, plural: str, verb: str) -> Iterator[Entry]:
        """The calls of one kind to the API server, in order."""
        return (e for e in self.trace if e.far == "api" and e.plural == plural and e.verb == verb)

    @cached_property
    def provider_deletes(self) -> Sequence[Entry]:
        """What the cloud was asked to delete; ``name`` is the machine's id."""
        return [e for e in self.trace if e.far == "cloud" and e.plural == "machines" and e.verb == "delete"]
