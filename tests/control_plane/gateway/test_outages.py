"""The operator is down, the API server is down, hangs, or dies at the worst moment: what clients see, what is left."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.api import Api
from tests.clouds import SimCloud, shared_simcloud, simcloud
from tests.control_plane.gateway.scene import Scene, Stock, sees
from tests.control_plane.gateway.stagehand import scene_with
from tests.control_plane.gateway.table import ALICE, PASSWORDS
from tests.control_plane.gateway.users import NO_REVIEWS, static_settings
from tests.control_plane.operator.stage import Stage
from tests.crash.gate import Gate
from tests.gateways import Gateway, MakeGateway
from tests.operators import Operator, operator
from tests.proxy import Proxy
from tests.rest import Rest, RestAnswer, hosts, rest_client, short
from tests.waiting import until
from vmpool.dev.plane import ControlPlane

__all__ = ["operator", "shared_simcloud", "simcloud"]

pytestmark = pytest.mark.control_plane

DEADLINE = 60.0
WAIT = {"VMPOOL_GATEWAY_CHECKOUT_WAIT_SECONDS": "2"}
"""Nobody waits long in a test."""


class Sluice(Gate):
    """Sees every request to the API server; may do something between a claim's commit and its answer."""

    def __init__(self, target: str, session: aiohttp.ClientSession) -> None:
        super().__init__(target, lambda: False, session)
        self.seen: list[str] = []
        """Method and path of every request but watches."""
        self.after_claim: Callable[[], None] | None = None
        """Called once, when the next write on a PooledVM is done and not answered yet."""
        self.blind = False
        """Cut every watch before that write, and let none begin: nobody is told of it."""
        self.shut = False
        """Cut off every request."""
        self._watches: set[asyncio.Transport] = set()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        if self.shut and request.transport is not None:
            request.transport.abort()
            return web.Response(status=503)
        if "watch" in request.query:
            return await self._watch(request)
        self.seen.append(f"{request.method} {request.path}")
        if request.method != "PATCH" or "/pooledvms/" not in request.path or self.after_claim is None:
            return await super()._pass(request)
        act, self.after_claim = self.after_claim, None
        for transport in self._watches if self.blind else ():
            transport.abort()
        response = await super()._pass(request)
        act()
        return response

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        if self.blind or request.transport is None:
            return web.Response(status=503)
        transport = request.transport
        self._watches.add(transport)
        try:
            return await super()._pass(request)
        finally:
            self._watches.discard(transport)


@dataclass(frozen=True)
class Way:
    """The way to the API server: a TCP proxy that can be closed and frozen, and behind it one that sees requests."""

    proxy: Proxy
    sluice: Sluice
    kubeconfig: Path

    def close(self) -> None:
        """No connection stands, none is made, and none that was being made just now leads anywhere."""
        self.sluice.shut = True
        self.proxy.close_door()

    def open(self) -> None:
        """All as before."""
        self.sluice.shut = False
        self.proxy.open_door()


@pytest.fixture
async def way(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Way]:
    """A detour for gateways; the test itself goes straight."""
    before = open_sockets()
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(plane.ca)), limit=0)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None))
        )
        sluice = await stack.enter_async_context(Sluice(plane.url, session))
        proxy = await stack.enter_async_context(Proxy("127.0.0.1", int(sluice.url.rsplit(":", 1)[1])))
        kubeconfig = tmp_path / "detour"
        kubeconfig.write_text(plane.kubeconfig.read_text().replace(plane.url, f"http://127.0.0.1:{proxy.port}"))
        yield Way(proxy, sluice, kubeconfig)
    # TLS says goodbye before it closes: a loop that ends meanwhile leaves sockets behind.
    await until(lambda: open_sockets() <= before, what="the detour's connections are closed")


def open_sockets() -> int:
    """How many sockets this process has."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += str(entry.readlink()).startswith("socket:")
    return found


@pytest.fixture
async def far(make_gateway: MakeGateway, way: Way) -> AsyncIterator[tuple[Gateway, Rest]]:
    """A gateway at the end of the detour, without users, and a client of it."""
    made = make_gateway(way.kubeconfig, **NO_REVIEWS, **WAIT)
    async with client_of(made) as rest:
        yield made, rest


@asynccontextmanager
async def client_of(made: Gateway) -> AsyncIterator[Rest]:
    """A client of a gateway that runs meanwhile; it ends before its way to the API server does."""
    made.start()
    try:
        await made.ready()
        async with rest_client(made.url) as rest:
            yield rest
    finally:
        made.kill()


def told_to_wait(answer: RestAnswer) -> str:
    """The cause of a 503; fail unless it says when to try again."""
    cause = answer.refused(503)
    assert cause, "no reason is given"
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    return cause


async def answered_again(rest: Rest, path: str) -> RestAnswer:
    """Ask until a checkout succeeds."""
    answers: list[RestAnswer] = []

    async def served() -> bool:
        answers.append(await rest.post(path))
        assert answers[-1].status in (200, 503), answers[-1].text
        return answers[-1].status == 200

    await until(served, deadline=DEADLINE, what="checkouts are served again")
    return answers[-1]


async def held_are(scene: Scene, pool: str, names: set[str]) -> None:
    """Wait until exactly these VMs of the pool are somebody's."""

    async def settled() -> bool:
        return {vm["metadata"]["name"] for vm in await scene.held(pool)} == names

    await until(settled, deadline=DEADLINE, what=f"exactly {sorted(names)} are held")


# What a checkout costs.


async def test_a_checkout_is_one_write_a_vm_and_no_read(
    far: tuple[Gateway, Rest], way: Way, api: Api, namespace: str
) -> None:
    _, rest = far
    scene = await scene_with(api, namespace, rest, web=Stock(ready=8))
    pool = scene.name("web")
    for count in (1, 3):
        way.sluice.seen.clear()
        names = [short(host) for host in hosts(await rest.post("/vm", {pool: count}))]
        asked = [line for line in way.sluice.seen if scene.namespace in line]
        assert sorted(asked) == sorted(f"PATCH {scene.vms.path}/{name}" for name in names)
    way.sluice.seen.clear()
    (await rest.get(f"/vm/{names[0]}")).ok()
    (await rest.get("/status")).ok()
    (await rest.get("/vm")).ok()
    assert not [line for line in way.sluice.seen if scene.namespace in line], "a read asked the API server"


# The operator is down.


async def test_checkout_goes_on_without_an_operator(
    operator: Operator, make_gateway: MakeGateway, api: Api, namespace: str, simcloud: SimCloud
) -> None:
    operator.start()
    stage = Stage(api, namespace, simcloud)
    vms = await stage.filled(3)
    operator.kill()
    made = make_gateway(**NO_REVIEWS)
    async with client_of(made) as rest:
        await sees(rest, {stage.pool: 3})
        given = [short(hosts(await rest.post(f"/vm/{stage.pool}"))[0]) for _ in range(3)]
        assert sorted(given) == sorted(vm["metadata"]["name"] for vm in vms)
        told_to_wait(await rest.post(f"/vm/{stage.pool}"))
        for name in given:
            assert (await rest.get(f"/vm/{name}")).ok()[name]["state"] == "running"
        (await rest.delete(f"/vm/{given[0]}")).ok()
        operator.start()
        await stage.in_phase(given[0], "Gone")
        for name in given[1:]:
            await stage.in_phase(name, "Claimed")
        assert hosts(await answered_again(rest, f"/vm/{stage.pool}"))


# The API server cannot be reached.


async def test_no_connection_is_503_with_the_reason_and_reads_go_on(
    far: tuple[Gateway, Rest], way: Way, api: Api, namespace: str
) -> None:
    made, rest = far
    scene = await scene_with(api, namespace, rest, web=Stock(ready=4))
    pool = scene.name("web")
    mine = short(hosts(await rest.post(f"/vm/{pool}"))[0])

    way.close()
    assert "API server" in told_to_wait(await rest.post(f"/vm/{pool}"))
    assert "API server" in told_to_wait(await rest.post("/vm", {pool: 2}))
    told_to_wait(await rest.delete(f"/vm/{mine}"))
    told_to_wait(await rest.put(f"/vm/{mine}", {"lifetime": 2}))
    told_to_wait(await rest.put(f"/vm/{mine}", {"tags": {"a": "b"}}))
    told_to_wait(await rest.post("/ondemandvm", {pool: 1, "request_id": "in-the-dark"}))
    assert (await rest.get(f"/vm/{mine}")).ok()[mine]["state"] == "running"
    assert pool in (await rest.get("/vm")).ok()
    assert (await rest.get(f"/poolstat?pool={pool}")).ok()["pools"][pool]["ready"] == 3

    way.open()
    other = short(hosts(await answered_again(rest, f"/vm/{pool}"))[0])
    assert made.running, "a short outage is no reason to end"
    await held_are(scene, pool, {mine, other})
    claim = (await scene.vm(mine))["spec"]["claim"]
    assert "tags" not in claim
    assert "releasedAt" not in claim
    (await rest.get("/ondemandvm/in-the-dark")).refused(404)
    (await rest.delete(f"/vm/{mine}")).ok()
    await held_are(scene, pool, {other})


async def test_a_server_that_hangs_is_503_in_time_and_late_writes_are_undone(
    far: tuple[Gateway, Rest], way: Way, api: Api, namespace: str
) -> None:
    _, rest = far
    scene = await scene_with(api, namespace, rest, web=Stock(ready=6))
    pool = scene.name("web")
    way.proxy.freeze()
    answers = await asyncio.gather(*(rest.post(f"/vm/{pool}") for _ in range(3)), rest.post("/vm", {pool: 2}))
    causes = [told_to_wait(answer) for answer in answers]
    assert all("API server" in cause for cause in causes), causes
    way.proxy.thaw()
    name = short(hosts(await answered_again(rest, f"/vm/{pool}"))[0])
    await held_are(scene, pool, {name})


async def test_a_connection_lost_after_the_commit_is_looked_up_again(
    far: tuple[Gateway, Rest], way: Way, api: Api, namespace: str
) -> None:
    """Only that connection: the gateway finds out by itself that the VM is its client's."""
    _, rest = far
    scene = await scene_with(api, namespace, rest, web=Stock(ready=3))
    pool = scene.name("web")
    way.sluice.after_claim = way.proxy.cut
    (host,) = hosts(await rest.post(f"/vm/{pool}"))
    await held_are(scene, pool, {short(host)})


@pytest.mark.parametrize(
    ("wait", "words"), [("30", "did not say whether"), ("1", "did not answer within")], ids=["gives-up", "in-time"]
)
async def test_an_unknown_outcome_says_so_and_leaves_nothing(
    make_gateway: MakeGateway, way: Way, api: Api, namespace: str, wait: str, words: str
) -> None:
    """The claim is written, the answer is lost, and nobody can be asked: the client is told, the VM is given back.

    Once the gateway has asked in vain as often as it does, once it is still asking when the client's time is over.
    """
    made = make_gateway(way.kubeconfig, **NO_REVIEWS, VMPOOL_GATEWAY_CHECKOUT_WAIT_SECONDS=wait)
    async with client_of(made) as rest:
        scene = await scene_with(api, namespace, rest, web=Stock(ready=4))
        pool = scene.name("web")
        way.sluice.blind = True
        way.sluice.after_claim = way.close
        cause = told_to_wait(await rest.post(f"/vm/{pool}"))
        assert words in cause, cause
        assert "nothing was done" not in cause
        (lost,) = {vm["metadata"]["name"] for vm in await scene.held(pool)}
        way.sluice.blind = False
        way.open()
        name = short(hosts(await answered_again(rest, f"/vm/{pool}"))[0])
        await held_are(scene, pool, {name})
        assert (await scene.vm(lost))["spec"]["claim"]["endReason"], "it must be ended, not forgotten"


async def test_part_of_a_checkout_is_not_kept(far: tuple[Gateway, Rest], way: Way, api: Api, namespace: str) -> None:
    """Three VMs are asked for, the server goes away after the first claim: none is kept."""
    _, rest = far
    scene = await scene_with(api, namespace, rest, web=Stock(ready=5), other=Stock(ready=5))
    web, other = scene.name("web"), scene.name("other")
    way.sluice.after_claim = way.close
    told_to_wait(await rest.post("/vm", {web: 2, other: 1}))
    way.open()
    name = short(hosts(await answered_again(rest, f"/vm/{web}"))[0])
    await held_are(scene, web, {name})
    await held_are(scene, other, set())


async def test_a_key_keeps_what_an_unknown_outcome_got_and_the_token_shows_it(
    make_gateway: MakeGateway, way: Way, api: Api, namespace: str, tmp_path: Path
) -> None:
    made = make_gateway(way.kubeconfig, **static_settings(tmp_path), **WAIT)
    async with client_of(made) as rest:
        token = await rest.new_token(ALICE, PASSWORDS[ALICE])
        scene = await scene_with(api, namespace, rest, web=Stock(ready=4))
        pool = scene.name("web")
        asked = {"token": token, "headers": {"Idempotency-Key": "build-7"}}
        way.sluice.after_claim = way.close
        assert "Idempotency-Key" in told_to_wait(await rest.post(f"/vm/{pool}", **asked))
        (lost,) = {vm["metadata"]["name"] for vm in await scene.held(pool)}
        way.open()

        async def shown() -> bool:
            told = (await rest.get(f"/token/{token}")).ok()[token]
            return bool(told.get("vms") == {"running": [lost]})

        await until(shown, deadline=DEADLINE, what="the token shows the VM")

        async def repeated() -> list[str]:
            answer = await rest.post(f"/vm/{pool}", **asked)
            return hosts(answer) if answer.status == 200 else []

        found = await until(repeated, deadline=DEADLINE, what="the repeated request is answered")
        assert [short(host) for host in found] == [lost]
        await held_are(scene, pool, {lost})


async def test_an_answer_that_its_client_never_read_is_found_by_token(
    make_gateway: MakeGateway, api: Api, namespace: str, tmp_path: Path
) -> None:
    made = make_gateway(**static_settings(tmp_path))
    async with client_of(made) as rest:
        token = await rest.new_token(ALICE, PASSWORDS[ALICE])
        scene = await scene_with(api, namespace, rest, web=Stock(ready=2))
        pool = scene.name("web")
        _, writer = await asyncio.open_connection("127.0.0.1", int(made.url.rsplit(":", 1)[1]))
        head = f"POST /api/v3/vm/{pool} HTTP/1.1\r\nHost: x\r\nX-AUTH-TOKEN: {token}\r\nContent-Length: 0\r\n\r\n"
        writer.write(head.encode())
        await writer.drain()
        writer.transport.abort()

        async def taken() -> set[str]:
            return {vm["metadata"]["name"] for vm in await scene.held(pool)}

        # The client may be gone before its request was read: then nothing was taken, and that is fine, too.
        (mine,) = hosts(await rest.post(f"/vm/{pool}", token=token))
        names = await taken()
        assert short(mine) in names

        async def shown() -> bool:
            told = (await rest.get(f"/token/{token}")).ok()[token]
            return set(told["vms"]["running"]) == await taken()

        await until(shown, deadline=DEADLINE, what="the token shows all VMs, asked for in vain or not")
