"""Many clients, many gateways, few VMs: each is handed out exactly once, and none stays behind."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.api import Api, Json
from tests.control_plane.gateway.scene import DOMAIN, Scene, Stock, sees
from tests.control_plane.gateway.users import NO_REVIEWS
from tests.gateways import Gateway
from tests.planes import Kubectl
from tests.rest import Rest, RestAnswer, hosts, rest_client, short
from tests.waiting import until
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane

GATEWAYS = 8
CLIENTS = 64
VMS = 500
START_SECONDS = 90.0
"""Eight processes that start at once on few cores."""
GIVEN_BACK_SECONDS = 15.0


def history(kubectl: Kubectl, scene: Scene, version: str) -> Iterator[Json]:
    """Every version of every PooledVM of the namespace since then, in order, as the server's watch tells it."""
    where = f"{scene.vms.path}?watch=1&resourceVersion={version}&timeoutSeconds=3"
    for line in kubectl("get", "--raw", where).splitlines():
        event = json.loads(line)
        assert event["type"] in ("ADDED", "MODIFIED", "DELETED"), event
        yield event["object"]


async def version_of(scene: Scene) -> str:
    """The present resourceVersion of the namespace's PooledVMs."""
    return str((await scene.vms.list(limit="1")).ok()["metadata"]["resourceVersion"])


def claims_ever(kubectl: Kubectl, scene: Scene, version: str) -> dict[str, set[str]]:
    """The ids of all claims that each PooledVM ever had since then."""
    seen: dict[str, set[str]] = {}
    for vm in history(kubectl, scene, version):
        if claim := vm["spec"].get("claim"):
            seen.setdefault(vm["metadata"]["name"], set()).add(claim["id"])
    return seen


@asynccontextmanager
async def clients_of(gateways: list[Gateway], count: int) -> AsyncIterator[list[Rest]]:
    """Clients, spread over the gateways; each has a connection of its own."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(rest_client(gateways[n % len(gateways)].url, connections=1))
            for n in range(count)
        ]


async def until_dry(rest: Rest, path: str) -> tuple[list[RestAnswer], RestAnswer]:
    """Check out again and again; the successes, and the first answer that is none."""
    won = []
    while (answer := await rest.post(path)).status == 200:
        won.append(answer)
    return won, answer


@pytest.fixture(scope="module")
def started(
    plane: ControlPlane, shared_namespace: str, crds_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Gateway]]:
    """Eight gateways on the module's namespace."""
    own = {"VMPOOL_WATCH_NAMESPACE": shared_namespace, "VMPOOL_NAMESPACE": shared_namespace}
    folder = tmp_path_factory.mktemp("gateways")
    gateways = [Gateway(plane.kubeconfig, folder, **own, **NO_REVIEWS) for _ in range(GATEWAYS)]
    try:
        for gateway in gateways:
            gateway.start()
        yield gateways
    finally:
        for gateway in gateways:
            gateway.kill()


@pytest.fixture
async def crowd(started: list[Gateway]) -> list[Gateway]:
    """The same, ready."""
    for gateway in started:
        await gateway.ready(START_SECONDS)
    return started


async def test_every_vm_is_handed_out_exactly_once(
    crowd: list[Gateway], api: Api, shared_namespace: str, kubectl: Kubectl
) -> None:
    scene = Scene(api, shared_namespace)
    pool = await scene.pool("web", Stock(ready=VMS))
    version = await version_of(scene)
    async with clients_of(crowd, CLIENTS) as clients:
        for rest in clients[:GATEWAYS]:
            await sees(rest, {pool: VMS})
        results = await asyncio.gather(*(until_dry(rest, f"/vm/{pool}") for rest in clients))
        given = Counter(short(host) for won, _ in results for answer in won for host in hosts(answer))
        again = await asyncio.gather(*(rest.post(f"/vm/{pool}") for rest in clients))
    for _, last in results:
        assert last.refused(503)
        assert int(last.headers["Retry-After"]) > 0
    assert not [name for name, times in given.items() if times > 1], "a VM was handed out twice"
    vms = {vm["metadata"]["name"]: vm for vm in await scene.of(pool)}
    left = [name for name, vm in vms.items() if "claim" not in vm["spec"]]
    assert not left, f"answered 503 while {len(left)} VMs were ready: {left[:5]}"
    assert given.keys() == vms.keys(), "a VM was claimed for nobody"
    several = {name: ids for name, ids in claims_ever(kubectl, scene, version).items() if len(ids) != 1}
    assert not several, f"more than one claim: {several}"
    assert [answer.status for answer in again] == [503] * CLIENTS


async def test_no_503_while_enough_for_all_are_ready(crowd: list[Gateway], api: Api, shared_namespace: str) -> None:
    """As many requests as VMs, all at once: every one is served, whatever VMs are lost to whom on the way."""
    scene = Scene(api, shared_namespace)
    pool = await scene.pool("web", Stock(ready=CLIENTS))
    async with clients_of(crowd, CLIENTS) as clients:
        for rest in clients[:GATEWAYS]:
            await sees(rest, {pool: CLIENTS})
        answers = await asyncio.gather(*(rest.post(f"/vm/{pool}") for rest in clients))
    refused = [answer.text for answer in answers if answer.status != 200]
    assert not refused, f"{len(refused)} of {CLIENTS} were refused: {refused[0]}"
    assert len({host for answer in answers for host in hosts(answer)}) == CLIENTS


async def test_several_at_once_are_all_or_nothing(
    crowd: list[Gateway], api: Api, shared_namespace: str, kubectl: Kubectl
) -> None:
    """Requests for 2 of one pool and 1 of another: what was not answered with a VM's name belongs to nobody."""
    scene = Scene(api, shared_namespace)
    web = await scene.pool("web", Stock(ready=80))
    other = await scene.pool("other", Stock(ready=50))
    version = await version_of(scene)
    async with clients_of(crowd, CLIENTS) as clients:
        for rest in clients[:GATEWAYS]:
            await sees(rest, {web: 80, other: 50})
        results = await asyncio.gather(*(until_dry(rest, f"/vm/{web}+{other}+{web}") for rest in clients))
    answers = [answer for won, _ in results for answer in won]
    given = Counter(short(host) for answer in answers for host in hosts(answer))
    assert max(given.values()) == 1, "a VM was handed out twice"
    for answer in answers:
        assert [len(answer.body[web]["hostname"]), answer.body[other]["hostname"].endswith(DOMAIN)] == [2, True]

    async def settled() -> bool:
        kept = {vm["metadata"]["name"] for pool in (web, other) for vm in await scene.held(pool)}
        assert kept >= given.keys(), "a part of an answered request was released"
        return kept == given.keys()

    await until(settled, deadline=GIVEN_BACK_SECONDS, what="what refused requests had got is given back")
    assert all(len(ids) == 1 for ids in claims_ever(kubectl, scene, version).values())


async def test_one_key_many_gateways_one_vm_a_turn(crowd: list[Gateway], api: Api, shared_namespace: str) -> None:
    """The same Idempotency-Key, one gateway after the other: all answer with the same VM."""
    scene = Scene(api, shared_namespace)
    pool = await scene.pool("web", Stock(ready=10))
    key = {"Idempotency-Key": f"build-{scene.tag}"}
    async with clients_of(crowd, GATEWAYS) as clients:
        for rest in clients:
            await sees(rest, {pool: 10})
        names = {tuple(hosts(await rest.post(f"/vm/{pool}+{pool}", headers=key))) for rest in clients}
    assert len({frozenset(pair) for pair in names}) == 1, names
    assert len(await scene.held(pool)) == 2
