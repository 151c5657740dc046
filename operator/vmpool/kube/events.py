"""Kubernetes Events, as ``kubectl describe`` shows them: few, and never in anybody's way.

An event is core/v1, because its ``count`` says "x7 over 2h" with two kinds of write: one POST for what is new, and
one PATCH now and then for what goes on. Events are told, not promised: when the queue is full the oldest is
dropped, and what the server refuses is logged and forgotten.
"""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NoReturn, Self

from vmpool.kube.client import Client
from vmpool.kube.errors import KubeError, NotFound
from vmpool.kube.resource import EVENTS, Json, Resource

log = logging.getLogger(__name__)

CLUSTER_WIDE_NAMESPACE = "default"
"""Where the API wants events about objects that have no namespace."""
MAX_NAME = 253
MAX_MESSAGE = 1024
"""Characters; more than a reader takes in, and the limit of the newer event API."""

EventType = Literal["Normal", "Warning"]


@dataclass(frozen=True, slots=True)
class EventSettings:
    """Bounds of the recorder; every default beside its reason."""

    queue: int = 500
    """Events waiting to be written; a storm beyond it loses its oldest."""
    remembered: int = 2_000
    """Different events of which the count is kept."""
    window: timedelta = timedelta(minutes=30)
    """The same event within this time of the last one is counted, not posted again; the server keeps events for 1 h."""
    patch_every: timedelta = timedelta(minutes=5)
    """Between writes of one event's count."""


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """The object that an event is about; ``namespace`` is None for cluster-wide kinds."""

    api_version: str
    kind: str
    namespace: str | None
    name: str
    uid: str

    @classmethod
    def of(cls, resource: Resource, namespace: str | None, name: str, uid: str) -> Self:
        """The reference to an object of this resource."""
        return cls(resource.api_version, resource.kind, namespace, name, uid)


@dataclass(slots=True)
class _Sighting:
    """One event with everything that is known about its repetitions; times are monotonic."""

    ref: ObjectRef
    type_: EventType
    reason: str
    message: str
    first: datetime
    last: datetime
    last_at: float
    name: str = ""
    count: int = 1
    written_count: int = 0
    written_at: float = 0.0

    @property
    def namespace(self) -> str:
        return self.ref.namespace or CLUSTER_WIDE_NAMESPACE


_Key = tuple[str, str, str, str]


class EventRecorder:
    """Takes events at once, writes them in the background."""

    def __init__(
        self,
        client: Client,
        component: str,
        instance: str,
        settings: EventSettings,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped = 0
        """Events lost because the queue was full."""
        self.refused = 0
        """Events that the server did not take."""
        self._client = client
        self._component = component
        self._instance = instance
        self._settings = settings
        self._monotonic = monotonic
        self._sightings: OrderedDict[_Key, _Sighting] = OrderedDict()
        self._queue: OrderedDict[_Key, _Sighting] = OrderedDict()
        self._wake = asyncio.Event()

    def emit(self, ref: ObjectRef, type_: EventType, reason: str, message: str) -> None:
        """Note an event; returns at once. The same one again within the window only counts."""
        message = message[:MAX_MESSAGE]
        key = (ref.uid, type_, reason, message)
        now, now_at = datetime.now(UTC), self._monotonic()
        known = self._sightings.get(key)
        if known is not None and now_at - known.last_at <= self._settings.window.total_seconds():
            known.count += 1
            known.last, known.last_at = now, now_at
            self._sightings.move_to_end(key)
            return
        fresh = _Sighting(ref, type_, reason, message, first=now, last=now, last_at=now_at)
        self._sightings[key] = fresh
        self._sightings.move_to_end(key)
        if len(self._sightings) > self._settings.remembered:
            self._sightings.popitem(last=False)
        self._queue[key] = fresh
        if len(self._queue) > self._settings.queue:
            lost, _ = self._queue.popitem(last=False)
            self._sightings.pop(lost, None)
            self.dropped += 1
        self._wake.set()

    async def run(self) -> NoReturn:
        """Write events until cancelled; ``drain`` once more at a clean stop."""
        while True:
            try:
                async with asyncio.timeout(self._settings.patch_every.total_seconds()):
                    await self._wake.wait()
            except TimeoutError:
                pass  # time to look whether a count has grown
            await self.drain()

    async def drain(self) -> None:
        """Post what waits and write the counts that are due."""
        self._wake.clear()
        while self._queue:
            _, sighting = self._queue.popitem(last=False)
            await self._write(sighting, self._post)
        due = self._monotonic() - self._settings.patch_every.total_seconds()
        grown = [s for s in self._sightings.values() if s.name and s.count > s.written_count and s.written_at <= due]
        for sighting in grown:
            await self._write(sighting, self._patch)

    async def _write(self, sighting: _Sighting, write: Callable[[_Sighting], Awaitable[None]]) -> None:
        count = sighting.count
        try:
            await write(sighting)
        except KubeError as error:
            self.refused += 1
            log.warning(
                "event %s about %s %s was not written: %s",
                sighting.reason,
                sighting.ref.kind,
                sighting.ref.name,
                error,
            )
        # Also after a failure: an event is not worth a second try before the next interval.
        sighting.written_count, sighting.written_at = count, self._monotonic()

    async def _post(self, sighting: _Sighting) -> None:
        ref = sighting.ref
        suffix = f".{secrets.token_hex(8)}"
        sighting.name = ref.name[: MAX_NAME - len(suffix)] + suffix
        reference = {
            "apiVersion": ref.api_version,
            "kind": ref.kind,
            "name": ref.name,
            "uid": ref.uid,
            "namespace": ref.namespace or "",
        }
        body: Json = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": sighting.name, "namespace": sighting.namespace},
            "involvedObject": reference,
            "type": sighting.type_,
            "reason": sighting.reason,
            "message": sighting.message,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
            "firstTimestamp": _iso(sighting.first),
            **_repetition(sighting),
        }
        await self._client.create(EVENTS, sighting.namespace, body)

    async def _patch(self, sighting: _Sighting) -> None:
        try:
            await self._client.patch_merge(EVENTS, sighting.namespace, sighting.name, _repetition(sighting))
        except NotFound:
            # The server's own time to live has passed: tell it anew.
            await self._post(sighting)


def _repetition(sighting: _Sighting) -> Json:
    return {"count": sighting.count, "lastTimestamp": _iso(sighting.last)}


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
