"""Every version of every object of ours, as the API server's own watch tells it, past the gate and the operator."""

import asyncio
import contextlib
import ssl
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import orjson

from tests.waiting import until
from vmpool.api import keys

KINDS = (
    "vmpools",
    "pooledvms",
    "vmproviders",
    "vmclaims",
    "deadletters",
    "deadletterqueues",
    "purgepolicies",
    "healthpolicies",
)
API = f"/apis/{keys.API_VERSION}"
LINE_BYTES = 16 * 2**20
CAUGHT_UP_SECONDS = 20.0
AGAIN_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one object, in the order in which the server made them, kind by kind."""

    plural: str
    event: str
    """ADDED, MODIFIED or DELETED; a deleted one carries its last state."""
    object: Mapping[str, Any]

    @property
    def uid(self) -> str:
        """The object's uid."""
        return str(self.object["metadata"]["uid"])

    @property
    def name(self) -> str:
        """The object's name."""
        return str(self.object["metadata"]["name"])

    @property
    def number(self) -> int:
        """The resourceVersion: of one etcd, so that versions of different kinds can be ordered too."""
        return int(self.object["metadata"]["resourceVersion"])


class Recorder:
    """Watches all kinds in all namespaces for as long as it is open; holds what came, by namespace."""

    def __init__(self, url: str, token: str, trust: ssl.SSLContext) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._trust = trust
        self._versions: defaultdict[str, list[Version]] = defaultdict(list)
        self._latest: dict[tuple[str, str], int] = {}
        """The newest resourceVersion of each object that is there, by kind and uid."""
        self._gaps = 0
        """How often a stream had to begin anew: nothing is lost by it, the server replays from where it ended."""

    async def __aenter__(self) -> "Recorder":
        self._session = aiohttp.ClientSession(
            self._url,
            headers=self._headers,
            connector=aiohttp.TCPConnector(ssl=self._trust, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            read_bufsize=LINE_BYTES,
        )
        starts = {plural: await self._version_of(plural) for plural in KINDS}
        self._tasks = [asyncio.create_task(self._follow(plural, start)) for plural, start in starts.items()]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    async def of(self, namespace: str) -> list[Version]:
        """Return everything that happened in a namespace, in order, up to now; nothing may write there meanwhile."""
        for task in self._tasks:
            if task.done():
                task.result()
        for plural in KINDS:
            whole = partial(self._caught_up, plural, namespace)
            await until(whole, deadline=CAUGHT_UP_SECONDS, what=f"the history of {plural} is complete")
        return sorted(self._versions[namespace], key=lambda version: version.number)

    def there(self, namespace: str, plural: str) -> bool:
        """Whether objects of a kind are there still; true only of what ``of`` has looked at."""
        return any(
            version.plural == plural and (plural, version.uid) in self._latest for version in self._versions[namespace]
        )

    def latest(self, namespace: str) -> list[Version]:
        """The objects that are there, as far as the watch has told."""
        newest: dict[str, Version] = {version.uid: version for version in self._versions[namespace]}
        return [version for version in newest.values() if version.event != "DELETED"]

    def forget(self, namespace: str) -> None:
        """Let go of a namespace's history."""
        self._versions.pop(namespace, None)

    async def _caught_up(self, plural: str, namespace: str) -> bool:
        found = await self._list(f"{API}/namespaces/{namespace}/{plural}")
        there = {item["metadata"]["uid"]: int(item["metadata"]["resourceVersion"]) for item in found["items"]}
        known = {
            version.uid: self._latest[plural, version.uid]
            for version in self._versions[namespace]
            if version.plural == plural and (plural, version.uid) in self._latest
        }
        return there == known

    async def _version_of(self, plural: str) -> str:
        return str((await self._list(f"{API}/{plural}?limit=1"))["metadata"]["resourceVersion"])

    async def _list(self, path: str) -> Any:
        async with self._session.get(path) as answer:
            assert answer.status == 200, f"{path}: {answer.status}"
            return orjson.loads(await answer.read())

    async def _follow(self, plural: str, start: str) -> None:
        """Watch a kind; go on where a stream ended."""
        while True:
            path = f"{API}/{plural}?watch=1&allowWatchBookmarks=1&resourceVersion={start}"
            with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                async with self._session.get(path) as answer:
                    if answer.status == 200:
                        async for line in answer.content:
                            start = self._note(plural, orjson.loads(line)) or start
            self._gaps += 1
            await asyncio.sleep(AGAIN_SECONDS)

    def _note(self, plural: str, event: dict[str, Any]) -> str:
        kind, found = event["type"], event["object"]
        assert kind != "ERROR", f"the history of {plural} has a hole: {found}"
        meta = found["metadata"]
        if kind != "BOOKMARK":
            self._versions[meta["namespace"]].append(Version(plural, kind, found))
            if kind == "DELETED":
                self._latest.pop((plural, meta["uid"]), None)
            else:
                self._latest[plural, meta["uid"]] = int(meta["resourceVersion"])
        return str(meta["resourceVersion"])
