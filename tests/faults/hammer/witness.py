"""What the verdict rests on: every version of every object, small enough to be kept for hours, and when each was made.

As it is kept here, the history of half an hour (55,000 versions) takes 370 MiB and is judged in 20 s (measured).

The rig's trials know when a version came to be from the calls that the gate passes on. Here nothing goes through the
gate; instead a pulse writes an object of its own many times a second, and each of its answers says how far the server
had come by then.
"""

import asyncio
import ssl
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import orjson

from tests.api import Api
from tests.faults.gate.trial import Entry
from tests.faults.rig.history import Recorder

META = frozenset(
    {
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "deletionTimestamp",
        "finalizers",
        "creationTimestamp",
    }
)
"""Of the metadata, what a judge reads; the list of managed fields alone is as large as all the rest."""
UNREAD = {"deadletters": ("diagnostics", "attempts", "errorMessage", "templateDigest")}
"""Of a kind's spec, what no judge reads."""
PULSE_SECONDS = 0.1
"""Between two pulses: so exactly are versions ordered against the cloud's clock."""
LEASES = "/apis/coordination.k8s.io/v1"
PULSE = "hammer-pulse"


class Witness(Recorder):
    """A recorder that keeps of each version what is read, and looks for secrets in the whole of it as it comes."""

    def __init__(self, url: str, token: str, trust: ssl.SSLContext) -> None:
        super().__init__(url, token, trust)
        self.secrets: list[bytes] = []
        """What may stand in no object."""
        self.spilled: list[str] = []
        """Where it did."""
        self.counts: dict[str, int] = {}
        """How many objects of each kind were made."""

    def _note(self, plural: str, event: dict[str, Any]) -> str:
        found = event["object"]
        if event["type"] == "ERROR":
            return super()._note(plural, event)
        if self.secrets and any(secret in orjson.dumps(found) for secret in self.secrets):
            self.spilled.append(f"{plural}/{found['metadata']['name']} {found['metadata']['resourceVersion']}")
        if event["type"] == "ADDED":
            self.counts[plural] = self.counts.get(plural, 0) + 1
        return super()._note(plural, {**event, "object": trimmed(plural, found)})


def trimmed(plural: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return an object without what no judge reads."""
    kept: dict[str, Any] = {part: found[part] for part in ("spec", "status") if part in found}
    if unread := UNREAD.get(plural):
        kept["spec"] = {key: value for key, value in (kept.get("spec") or {}).items() if key not in unread}
    return {"metadata": {key: value for key, value in found["metadata"].items() if key in META}, **kept}


class Pulse:
    """Writes one object again and again for as long as it is open; ``trace`` is what its answers say of the time."""

    def __init__(self, api: Api, namespace: str, began_at: float) -> None:
        self._leases = api.kind("leases", namespace, api=LEASES)
        self._began_at = began_at
        self._beats: list[Entry] = []

    async def __aenter__(self) -> "Pulse":
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": PULSE}, "spec": {}}
        (await self._leases.create(body)).ok()
        await self._beat(0)
        self._task = asyncio.create_task(self._go_on(), name="pulse")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def last(self) -> Sequence[dict[str, Any]]:
        """Return the trace of all beats, one made just now included. Raises what has ended it."""
        if self._task.done():
            self._task.result()
        await self._beat(len(self._beats))
        return [asdict(beat) for beat in self._beats]

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(PULSE_SECONDS)
            await self._beat(len(self._beats))

    async def _beat(self, number: int) -> None:
        asked = time.time() - self._began_at
        answer = (await self._leases.merge(PULSE, {"spec": {"leaseTransitions": number + 1}})).ok()
        version = int(answer["metadata"]["resourceVersion"])
        self._beats.append(beat(asked, time.time() - self._began_at, version))


def beat(asked: float, at: float, version: int) -> Entry:
    """One beat as a call of a trace: asked and answered in seconds of the run."""
    return Entry(
        at=at,
        asked=asked,
        replica="pulse",
        far="api",
        signature="patch leases",
        occurrence=1,
        verb="patch",
        plural="leases",
        subresource="",
        name=PULSE,
        status=200,
        changed=True,
        fault="",
        version=version,
    )
