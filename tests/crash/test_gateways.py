"""Two gateways are killed in turn while clients check out and give back: no VM is given twice, and none is lost."""

import asyncio
import itertools
import os
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import orjson
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from tests.api import Api, Json
from tests.clouds import SimCloud
from tests.crash import witness
from tests.crash.site import DEADLINE, POOL, Site
from tests.gateways import Gateway
from tests.operators import Operator
from tests.rest import API, Rest, RestAnswer, hosts, short
from tests.waiting import until
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.crash

CHECKOUTS = int(os.environ.get("VMPOOL_TEST_CHECKOUTS", "1500"))
"""5000, as promised, take five minutes on two cores: ``make test-crash VMPOOL_TEST_CHECKOUTS=5000``."""
REPLICAS = 150
CLIENTS = 16
KEYED = 8
"""One checkout of so many has an Idempotency-Key: the look for earlier claims costs the server a scan."""
KILLS = max(4, CHECKOUTS // 400)
"""At least so many, evenly over the checkouts."""
REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=60)
PATIENCE = 120.0
"""Seconds for one VM: while a gateway starts and the other is killed there may be none to be had."""
REST = {"VMPOOL_GATEWAY_AUTHORIZATION": "open"}
PATIENT = {"VMPOOL_LEASE_SECONDS": "60", "VMPOOL_LEASE_RENEW_SECONDS": "45"}
"""The operator is not what dies here: it outlasts a server that is busy with all these claims."""


@dataclass
class Tally:
    """What the clients were told, and what they do not know."""

    given: list[str] = field(default_factory=list)
    """Every VM that was answered, once for each request (repeats of one request count once)."""
    doubts: int = 0
    """Requests without a key whose connection broke: a VM may be theirs."""
    repeats: int = 0
    """Requests with a key whose connection broke, and which were sent again until they were answered."""


class Ward:
    """The two gateways: clients ask one that lives, the killer ends them in turn."""

    def __init__(self, gateways: list[Gateway]) -> None:
        self.gateways = gateways
        self.kills = 0
        self._turn = itertools.cycle(gateways)

    async def kill_next(self) -> None:
        """Kill -9 the next one and start it again; return when it is ready."""
        victim = next(self._turn)
        victim.kill()
        self.kills += 1
        victim.start()
        await victim.ready(DEADLINE)

    def url(self, number: int) -> str | None:
        """Where the gateway for this attempt serves; None while it starts."""
        gateway = self.gateways[number % len(self.gateways)]
        try:
            return gateway.url
        except IndexError:
            return None


class Client:
    """Checks VMs out and gives each back, whatever breaks on the way."""

    def __init__(
        self, session: aiohttp.ClientSession, number: int, ward: Ward, tally: Tally, left: Iterator[int]
    ) -> None:
        self._session = session
        self._name = f"client-{number}"
        self._attempts = itertools.count(number)
        self._ward = ward
        self._tally = tally
        self._left = left

    async def work(self) -> None:
        """Go on until all checkouts are done."""
        for number in self._left:
            key = f"{self._name}-{number}" if number % KEYED == 0 else ""
            name = await self._checkout(key)
            self._tally.given.append(name)
            await self.release(name)

    async def _checkout(self, key: str) -> str:
        headers = {"Idempotency-Key": key} if key else {}

        async def got() -> str:
            answer = await self._ask("POST", f"/vm/{POOL}", headers)
            if answer is None:
                self._tally.doubts += not key
                self._tally.repeats += bool(key)
                return ""
            # 404: a gateway that has only just been told of the pool; 503: none is ready, or it starts.
            assert answer.status in (200, 503), answer.text
            return short(hosts(answer)[0]) if answer.status == 200 else ""

        return await until(got, deadline=PATIENCE, what="a VM is handed out")

    async def release(self, name: str) -> None:
        """Give a VM back, whatever it takes."""

        async def released() -> bool:
            answer = await self._ask("DELETE", f"/vm/{name}", {})
            # 404: the release before was done, its answer was lost, and the VM is gone by now.
            assert answer is None or answer.status in (200, 404, 503), answer.text
            return answer is not None and answer.status in (200, 404)

        await until(released, deadline=PATIENCE, what=f"{name} is released")

    async def _ask(self, method: str, path: str, headers: dict[str, str]) -> RestAnswer | None:
        """One try at the next gateway; None when it is not known whether anything was done."""
        number = next(self._attempts)
        url = self._ward.url(number) or self._ward.url(number + 1)
        if url is None:
            return _starting()
        try:
            return await Rest(self._session, url).call(method, f"{API}{path}", headers=headers)
        except aiohttp.ClientConnectorError:
            return _starting()
        except aiohttp.ClientError:
            return None


def _starting() -> RestAnswer:
    """What a client makes of a gateway that does not listen: certainly nothing was done."""
    return RestAnswer(503, CIMultiDictProxy(CIMultiDict()), b'{"ok": false}')


@asynccontextmanager
async def watched(plane: ControlPlane, site: Site) -> AsyncIterator[dict[str, set[str]]]:
    """The ids of all claims that each PooledVM has ever had, by uid, as the server's watch tells them."""
    seen: dict[str, set[str]] = {}
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(plane.ca)))
    timeout = aiohttp.ClientTimeout(total=None)
    version = (await site.vms.list(limit="1")).ok()["metadata"]["resourceVersion"]
    headers = {"Authorization": f"Bearer {plane.token}"}

    async def follow(session: aiohttp.ClientSession, since: str) -> None:
        # The server ends a watch that is slow for a moment; it goes on where it was, or says that it cannot.
        while True:
            query = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": since}
            async with session.get(f"{plane.url}{site.vms.path}", params=query, headers=headers) as answer:
                async for line in answer.content:
                    event = orjson.loads(line)
                    assert event["type"] in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"), event
                    since = event["object"]["metadata"]["resourceVersion"]
                    if claim := event["object"].get("spec", {}).get("claim"):
                        seen.setdefault(event["object"]["metadata"]["uid"], set()).add(claim["id"])

    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=2**20) as session:
        task = asyncio.create_task(follow(session, version))
        yield seen
        if task.done():
            await task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def ward(plane: ControlPlane, namespace: str, crds_installed: None, tmp_path: Path) -> Iterator[Ward]:
    own = {"VMPOOL_WATCH_NAMESPACE": namespace, "VMPOOL_NAMESPACE": namespace}
    gateways = [Gateway(plane.kubeconfig, tmp_path, **own, **REST) for _ in range(2)]
    yield Ward(gateways)
    for gateway in gateways:
        gateway.kill()


@pytest.fixture
def own_site(api: Api, namespace: str, crds_installed: None, make_simcloud: Callable[..., SimCloud]) -> Site:
    """A site with a cloud of its own: thousands of machines are nobody else's business."""
    cloud = make_simcloud("--disk-seconds=0", "--nic-seconds=0", "--boot-seconds=0.01", "--delete-seconds=0")
    return Site(api, namespace, cloud, cloud.tenant())


def held(vms: list[Json]) -> dict[str, Json]:
    """The claims that have not ended, by the name of their VM."""
    claims = {vm["metadata"]["name"]: vm["spec"]["claim"] for vm in vms if vm["spec"].get("claim")}
    return {name: claim for name, claim in claims.items() if "releasedAt" not in claim}


def lost(vms: list[Json]) -> list[str]:
    """VMs that are neither owned, ready, on their way, nor being destroyed."""
    mine = held(vms)
    return [
        f"{vm['metadata']['name']} is {vm['status']['phase']} with {vm['spec'].get('claim')}"
        for vm in vms
        if vm["metadata"]["name"] not in mine
        and vm["status"]["phase"] not in ("Ready", "Pending", "Completed")
        and "releasedAt" not in vm["spec"].get("claim", {})
    ]


async def test_no_vm_is_given_twice_and_none_is_lost(
    own_site: Site, plane: ControlPlane, ward: Ward, operators: Callable[..., Operator]
) -> None:
    site = own_site
    await site.build(REPLICAS, operate=64)
    operator = operators(**PATIENT)
    for gateway in ward.gateways:
        gateway.start()
    await site.full(REPLICAS)
    for gateway in ward.gateways:
        await gateway.ready(DEADLINE)
    tally = Tally()
    numbers = iter(range(CHECKOUTS))

    async with watched(plane, site) as claims, aiohttp.ClientSession(timeout=REQUEST_TIMEOUT) as session:
        people = [Client(session, n, ward, tally, numbers) for n in range(CLIENTS)]
        clients = [asyncio.create_task(one.work()) for one in people]
        for kill in range(1, KILLS + 1):
            due = CHECKOUTS * kill // (KILLS + 1)
            await until(
                lambda due=due: len(tally.given) >= due or any(c.done() and c.exception() for c in clients),
                deadline=PATIENCE,
                what=f"{due} checkouts",
            )
            await ward.kill_next()
        await asyncio.gather(*clients)

        twice = [name for name, times in Counter(tally.given).items() if times > 1]
        assert not twice, f"handed out twice: {twice}"
        assert len(tally.given) == CHECKOUTS
        several = {uid: ids for uid, ids in claims.items() if len(ids) > 1}
        assert not several, f"claimed more than once: {several}"
        assert ward.kills >= KILLS
        assert tally.doubts + tally.repeats > 0, "no request was cut off: the kills prove nothing"

        vms = await site.objects()
        assert not lost(vms), lost(vms)
        # Without a key nobody can know of the VM whose answer was lost: it is its user's, and is found by token.
        keyed = {name for name, claim in held(vms).items() if "slot" in claim}
        assert len(held(vms)) - len(keyed) <= tally.doubts, f"{held(vms)}, only {tally.doubts} requests are in doubt"
        # With a key the repeat finds it, unless the write of a killed gateway landed behind the repeat's look.
        shared = Counter(next(iter(ids)) for ids in claims.values())
        assert all(shared[held(vms)[name]["id"]] > 1 for name in keyed), f"{keyed} were not found by their key"
        assert not held(vms).keys() & set(tally.given), "a released VM is held"
        for name in held(vms):
            await people[0].release(name)
        await site.full(REPLICAS)
    assert operator.running
    await witness.machines_match_objects(site)
    witness.never_two(site)
    await witness.no_failure_told(site)
    await site.drain()
    await site.drained()
    await witness.nothing_left(site)
