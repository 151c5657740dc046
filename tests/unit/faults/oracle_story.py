"""Hand-made evidence: a story of writes and calls, one after the other, that the oracle's tests break in one place.

Every step takes a tenth of a second and one resourceVersion. What is told through the gate stands in the trace too.
"""

import copy
import json
from dataclasses import dataclass, field
from typing import Any

from tests.faults.gate.plan import Action, Fault, Kind, Plan, Point, Trigger
from tests.faults.oracle.facts import Facts, Terms, Violation
from tests.faults.oracle.invariants import INVARIANTS
from tests.faults.oracle.lint import RULES
from tests.faults.rig.history import Version
from tests.faults.rig.trial import Evidence
from vmpool.api import keys

NAMESPACE = "ns"
POOL_UID = "uid-web"
BEGAN_AT = 1_000_000.0
STEP = 0.1
CALL = 0.04
"""Seconds from a request to its answer."""
STRICT = Terms()


def plan(kind: Kind = Kind.RESET, signature: str = "w", **action: Any) -> Plan:
    """A plan with one fault."""
    return Plan(faults=(Fault(trigger=Trigger(signature=signature), action=Action(kind=kind, **action)),))


def kill() -> Plan:
    """A plan with one kill."""
    return plan(Kind.KILL, point=Point.COMMITTED)


@dataclass
class Story:
    """Grows step by step; ``evidence`` is what a trial would hand over."""

    number: int = 0
    history: list[Version] = field(default_factory=list)
    trace: list[dict[str, Any]] = field(default_factory=list)
    machines: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    """What the evidence says differently."""
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def now(self) -> float:
        """Seconds since the trial began."""
        return self.number * STEP

    # --- objects ------------------------------------------------------------------------------------------------

    def make(
        self,
        plural: str,
        name: str,
        spec: dict[str, Any],
        status: dict[str, Any] | None = None,
        *,
        told: bool = True,
        uid: str = "",
    ) -> str:
        """Create an object; return its uid."""
        meta = {"namespace": NAMESPACE, "name": name, "uid": uid or f"uid-{name}", "generation": 1, "finalizers": []}
        if plural == "pooledvms":
            meta["finalizers"] = [keys.FINALIZER_MACHINE]
        self.objects[plural, name] = {"metadata": meta, "spec": spec, "status": status or {}}
        self._happen("ADDED", plural, name)
        if told:
            self.call("create", plural, name, body={"metadata": {"name": name}, "spec": spec}, version=self.number)
        return str(meta["uid"])

    def write(
        self, plural: str, name: str, *, told: bool = True, blind: bool = False, **changes: dict[str, Any]
    ) -> None:
        """Merge into an object's spec, status or metadata, as the operator does: on the version that it knows."""
        found = self.objects[plural, name]
        meta = {"uid": found["metadata"]["uid"]}
        if not blind:
            meta["resourceVersion"] = found["metadata"]["resourceVersion"]
        for part, fields in changes.items():
            merged = {**found[part], **fields}
            found[part] = {key: value for key, value in merged.items() if value is not None}
        self._happen("MODIFIED", plural, name)
        if told:
            sub = "status" if "status" in changes else ""
            self.call("patch", plural, name, sub=sub, body={"metadata": meta, **changes}, version=self.number)

    def remove(self, plural: str, name: str, *, told: bool = True) -> None:
        """Delete an object and take our finalizers off; it is gone."""
        found = self.objects[plural, name]
        if told:
            self.call("delete", plural, name, body={"preconditions": {"uid": found["metadata"]["uid"]}}, step=True)
        found["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
        found["metadata"]["finalizers"] = []
        self._happen("DELETED", plural, name)
        if told:
            body = [
                {"op": "test", "path": "/metadata/uid", "value": found["metadata"]["uid"]},
                {"op": "test", "path": "/metadata/finalizers", "value": []},
                {"op": "replace", "path": "/metadata/finalizers", "value": []},
            ]
            self.call("patch", plural, name, body=body, version=self.number)
        del self.objects[plural, name]

    def _happen(self, event: str, plural: str, name: str) -> None:
        self.number += 1
        found = self.objects[plural, name]
        found["metadata"]["resourceVersion"] = str(self.number)
        self.history.append(Version(plural, event, copy.deepcopy(found)))

    # --- calls --------------------------------------------------------------------------------------------------

    def call(
        self,
        verb: str,
        plural: str,
        name: str = "",
        *,
        far: str = "api",
        sub: str = "",
        body: Any = None,
        version: int = 0,
        step: bool = False,
        **different: Any,
    ) -> None:
        """Put a call into the trace, answered now; with ``step`` it takes a step of its own."""
        if step:
            self.number += 1
        where = plural + (f"/{sub}" if sub else "")
        entry = {
            "at": self.now,
            "asked": self.now - CALL,
            "replica": "a",
            "far": far,
            "signature": f"{'cloud ' if far == 'cloud' else ''}{verb} {where}",
            "occurrence": 1,
            "verb": verb,
            "plural": plural,
            "subresource": sub,
            "name": name,
            "status": 200,
            "changed": verb in {"create", "update", "patch", "delete"},
            "fault": "",
            "content_type": "",
            "body": body,
            "namespace": NAMESPACE if far == "api" else "",
            "version": version,
        }
        self.trace.append({**entry, **different})

    # --- machines -----------------------------------------------------------------------------------------------

    def machine(self, machine_id: str, vm: str, token: str | None = "", **different: Any) -> None:
        """Make a machine for a PooledVM; ``token`` None: at a cloud without tokens."""
        self.number += 1
        self.machines[machine_id] = {
            "id": machine_id,
            "name": vm,
            "tags": {keys.TAG_UID: f"uid-{vm}"},
            "token": f"uid-{vm}" if token == "" else token,
            "createdAt": BEGAN_AT + self.now,
            "deleteAt": None,
            "goneAt": None,
            "endedBy": "",
            "state": "Running",
            **different,
        }

    def destroy(self, machine_id: str, *, asked: bool = True) -> None:
        """Delete a machine at the cloud; it is gone at once."""
        self.number += 1
        if asked:
            self.call("delete", "machines", machine_id, far="cloud")
        at = BEGAN_AT + self.now
        self.machines[machine_id] |= {"deleteAt": at, "goneAt": at, "endedBy": "deleted", "state": "Gone"}

    # --- what happens often -------------------------------------------------------------------------------------

    def pool(self, replicas: int, **spec: Any) -> None:
        """A provider and a pool that wants so many."""
        self.make("vmproviders", "cloud", {"config": {}}, {"observedGeneration": 1}, told=False)
        self.make("vmpools", "web", {"replicas": replicas, **spec}, told=False)

    def vm(self, name: str, *, told: bool = True) -> None:
        """The intent."""
        spec = {"pool": "web", "poolUid": POOL_UID, "provider": "cloud", "requestId": f"req-{name}", "retryCount": 0}
        self.make("pooledvms", name, spec, {"phase": "Pending"}, told=told)

    def fill(self, name: str) -> None:
        """A VM from its intent to Ready."""
        self.vm(name)
        self.machine(f"m-{name}", name)
        self.write("pooledvms", name, status={"machineId": f"m-{name}"})
        self.write("pooledvms", name, status={"phase": "Ready"})

    def phase(self, name: str, phase: str, reason: str = "") -> None:
        """Write a phase."""
        self.write("pooledvms", name, status={"phase": phase, **({"reason": reason} if reason else {})})

    def claim(self, name: str, claim_id: str, **fields: Any) -> None:
        """Hand a VM out."""
        claim = {"id": claim_id, "owner": "alice", "boundAt": "2030-01-01T00:00:00Z", **fields}
        self.write("pooledvms", name, spec={"claim": claim}, blind=True)

    def release(self, name: str, reason: str = "Released") -> None:
        """End a VM's claim."""
        before = self.objects["pooledvms", name]["spec"]["claim"]
        claim = {**before, "releasedAt": "2030-01-02T00:00:00Z", "endReason": reason}
        self.write("pooledvms", name, spec={"claim": claim})

    def end(self, name: str, reason: str = "Surplus") -> None:
        """A VM from what it is to nothing, in the right order."""
        self.phase(name, "Completed", reason)
        if f"m-{name}" in self.machines:
            self.destroy(f"m-{name}")
        self.remove("pooledvms", name)

    def settle(self, ready: int) -> None:
        """What the pool says at the end."""
        meta = self.objects["vmpools", "web"]["metadata"]
        conditions = [condition("Ready", "True")]
        status = {"observedGeneration": meta["generation"], "readyReplicas": ready, "conditions": conditions}
        self.write("vmpools", "web", status=status)

    def scale(self, replicas: int) -> None:
        """A user wants another number."""
        self.objects["vmpools", "web"]["metadata"]["generation"] += 1
        self.write("vmpools", "web", spec={"replicas": replicas}, told=False)

    def letter(self, vm: str, queue: str = "clone", attempt: int = 1, *, uid: str = "") -> None:
        """A DeadLetter."""
        spec = {"vm": vm, "vmUid": f"uid-{vm}", "queueFrom": queue, "attempt": attempt}
        self.make("deadletters", f"{vm}-{queue}-{attempt}", spec, uid=uid)

    def pass_time(self, seconds: float) -> None:
        """Let nothing happen; but the lease is renewed, which is how it is known when versions came to be."""
        self.call("update", "leases", keys.LEASE_NAME, version=self.number)
        self.number += round(seconds / STEP)
        self.call("update", "leases", keys.LEASE_NAME, version=self.number)

    # --- the verdict --------------------------------------------------------------------------------------------

    def evidence(self, **different: Any) -> Evidence:
        """What a trial would hand over, five quiet seconds after the last step."""
        given: dict[str, Any] = {
            "plan": Plan(),
            "history": self.history,
            "machines": list(self.machines.values()),
            "leaked": [],
            "trace": self.trace,
            "events": [],
            "failure": "",
            "seconds": self.now,
            "converged_after": 0.0,
            "lives": 1,
            "met": True,
            "log": "\n".join(json.dumps(line) for line in self.log),
            "install_id": "us",
            "began_at": BEGAN_AT,
            "ended": self.now,
            "looked": self.now + 5.0,
            "canaries": ("hunter2",),
        }
        return Evidence(**{**given, **self.fields, **different})

    def broken(self, code: str, terms: Terms = STRICT, **different: Any) -> list[Violation]:
        """What one judge finds."""
        judges = {**INVARIANTS, **RULES}
        found = list(judges[code](Facts(self.evidence(**different)), terms))
        assert all(violation.code == code for violation in found)
        return found


def condition(kind: str, status: str, since: str = "2030-01-01T00:00:00Z") -> dict[str, Any]:
    """One condition."""
    return {"type": kind, "status": status, "reason": "Because", "lastTransitionTime": since}


def good() -> Story:
    """A pool of two that is filled, hands one out, gets it back, shrinks to one: every promise is kept."""
    story = Story()
    story.pool(2, deadLetterQueue="dlq")
    for name in ("one", "two"):
        story.fill(name)
    story.settle(2)
    story.claim("one", "c1")
    story.fill("three")
    story.phase("one", "Claimed")
    story.release("one")
    story.end("one", "ClaimEnded")
    story.vm("bad")
    story.letter("bad")
    story.end("bad", "CreateFailed")
    story.scale(1)
    story.pass_time(1)
    story.end("two")
    story.settle(1)
    return story
