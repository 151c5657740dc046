"""On-demand requests on the real API server without an operator: the VMClaim, several gateways, restarts."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from tests.api import Api, Json
from tests.control_plane.gateway.scene import Scene, Stock, sees
from tests.gateways import Gateway, MakeGateway
from tests.kube_help import client_to, proxy_to
from tests.objects import thing
from tests.proxy import Proxy
from tests.rest import Rest, rest_client
from tests.unit.gateway.frames import gateway_of, served
from tests.unit.gateway.things import put_pool
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane
from vmpool.engine.facts import claim_facts, pool_facts, vm_facts
from vmpool.gateway import notes, ondemand
from vmpool.gateway.context import GATEWAY_VM_INDEXES
from vmpool.kube.kinds import VMCLAIMS
from vmpool.kube.mirror import Mirror, MirrorSettings
from vmpool.settings import Settings

pytestmark = pytest.mark.control_plane

OPEN = {"VMPOOL_GATEWAY_AUTHORIZATION": "open"}
AT_ONCE = 8


@dataclass(frozen=True)
class Far:
    """The endpoints behind a way to the API server that can be cut."""

    proxy: Proxy
    rest: TestClient[Any, Any]


class Pair:
    """Two gateways of one installation, and a client of each."""

    def __init__(self, gateways: list[Gateway], clients: list[Rest]) -> None:
        self.gateways = gateways
        self.first, self.second = clients


@pytest.fixture
async def pair(make_gateway: MakeGateway) -> AsyncIterator[Pair]:
    gateways = [make_gateway(**OPEN), make_gateway(**OPEN)]
    async with AsyncExitStack() as stack:
        for gateway in gateways:
            gateway.start()
        clients = []
        for gateway in gateways:
            await gateway.ready()
            clients.append(await stack.enter_async_context(rest_client(gateway.url)))
        yield Pair(gateways, clients)


async def staged(api: Api, namespace: str, pair: Pair, **pools: Any) -> Scene:
    """Pools that both gateways see."""
    scene = Scene(api, namespace)
    for key, spec in pools.items():
        await scene.pool(key, Stock(spec=spec))
    for client in (pair.first, pair.second):
        await sees(client, {scene.name(key): 0 for key in pools})
    return scene


async def claim_of(scene: Scene, request_id: str) -> Json:
    return (await scene.claims.get(notes.claim_name(request_id))).ok()


async def says(client: Rest, request_id: str, status: int, message: str = "") -> None:
    """Wait until a gateway says this of a request."""

    async def said() -> bool:
        answer = await client.get(f"/ondemandvm/{request_id}")
        return answer.status == status and message in answer.body.get("message", "")

    await until(said, what=f"{request_id} is {status} {message}")


async def test_a_request_is_one_vmclaim(api: Api, namespace: str, pair: Pair) -> None:
    scene = await staged(api, namespace, pair, web={}, db={})
    web, db = scene.name("web"), scene.name("db")
    (await pair.first.post("/ondemandvm", {db: "1", web: 2, "request_id": "one"})).ok(201)
    found = await claim_of(scene, "one")
    assert found["metadata"]["labels"] == {keys.LABEL_ONDEMAND: "true"}
    note = json.loads(found["metadata"]["annotations"][keys.ANNOTATION_ONDEMAND])
    assert (note["id"], note["names"]) == ("one", [{"name": db, "count": 1}, {"name": web, "count": 2}])
    assert found["spec"] == {
        "requests": [
            {"pool": db, "namespace": namespace, "count": 1},
            {"pool": web, "namespace": namespace, "count": 2},
        ],
        "requester": "vmpool:anonymous",
        "requesterGroups": ["vmpool:rest"],
        "deadline": "5m",
        "ttlAfterFinished": "24h",
        "priority": 0,
    }
    assert {entry["manager"] for entry in found["metadata"]["managedFields"]} == {keys.GATEWAY_FIELD_MANAGER}


async def test_an_alias_is_spread_over_its_pools(api: Api, namespace: str, pair: Pair) -> None:
    heavy = {"aliases": ["any"], "claims": {"weight": 1}}
    scene = await staged(api, namespace, pair, heavy=heavy, never={"aliases": ["any"], "claims": {"weight": 0}})
    (await pair.first.post("/ondemandvm", {"any": 10, "request_id": "one"})).ok(201)
    requests = (await claim_of(scene, "one"))["spec"]["requests"]
    assert requests == [{"pool": scene.name("heavy"), "namespace": namespace, "count": 10}]
    answer = (await pair.second.get("/ondemandvm/one")).status
    assert answer in (202, 404), "the other gateway may not have heard of it yet"
    await says(pair.second, "one", 202)
    assert (await pair.second.get("/ondemandvm/one")).body["any"] == {"ready": "0", "pending": "10"}


async def test_of_equal_requests_at_once_one_is_made(api: Api, namespace: str, pair: Pair) -> None:
    scene = await staged(api, namespace, pair, web={})
    body = {scene.name("web"): 1, "request_id": "one"}
    clients = [pair.first, pair.second] * (AT_ONCE // 2)
    answers = await asyncio.gather(*(client.post("/ondemandvm", body) for client in clients))
    assert sorted(answer.status for answer in answers) == [201] + [409] * (AT_ONCE - 1)
    assert len((await scene.claims.list()).ok()["items"]) == 1


async def test_the_other_gateway_and_the_next_one_know_of_it(api: Api, namespace: str, pair: Pair) -> None:
    scene = await staged(api, namespace, pair, web={})
    (await pair.first.post("/ondemandvm", {scene.name("web"): 1, "request_id": "a b\u00e9"})).ok(201)
    # The path of an id as clients write it.
    await says(pair.second, "a%20b%C3%A9", 202)
    assert (await pair.second.get("/ondemandvm/a%20b%C3%A9")).body["request_id"] == "a b\u00e9"
    again = pair.gateways[0]
    again.kill()
    again.start()
    await again.ready()
    async with rest_client(again.url) as client:
        assert (await client.get("/ondemandvm/a%20b%C3%A9")).status == 202


async def test_a_deletion_is_told_by_all_gateways(api: Api, namespace: str, pair: Pair) -> None:
    scene = await staged(api, namespace, pair, web={})
    body = {scene.name("web"): 1, "request_id": "one"}
    (await pair.first.post("/ondemandvm", body)).ok(201)
    await says(pair.second, "one", 202)
    assert (await pair.first.delete("/ondemandvm/one")).ok() == {"ok": True}
    assert (await scene.claims.get(notes.claim_name("one"))).status == 404
    for client in (pair.first, pair.second):
        await says(client, "one", 200, "The request has been deleted")
        assert (await client.delete("/ondemandvm/one")).ok()["message"] == "the request has already been deleted"
        assert (await client.post("/ondemandvm", body)).refused(409)


async def test_both_gateways_may_be_asked_to_delete_at_once(api: Api, namespace: str, pair: Pair) -> None:
    scene = await staged(api, namespace, pair, web={})
    (await pair.first.post("/ondemandvm", {scene.name("web"): 1, "request_id": "one"})).ok(201)
    await says(pair.second, "one", 202)
    clients = [pair.first, pair.second] * (AT_ONCE // 2)
    answers = await asyncio.gather(*(client.delete("/ondemandvm/one") for client in clients))
    assert {answer.status for answer in answers} == {200}


async def test_somebody_elses_claim_of_that_name_is_in_the_way_but_not_shown(
    api: Api, namespace: str, pair: Pair
) -> None:
    scene = await staged(api, namespace, pair, web={})
    forged = {
        "apiVersion": keys.API_VERSION,
        "kind": "VMClaim",
        "metadata": {"name": notes.claim_name("one")},
        "spec": {"requests": [{"pool": scene.name("web")}]},
    }
    (await scene.claims.create(forged)).ok()
    web = scene.name("web")
    assert (await pair.first.post("/ondemandvm", {web: 1, "request_id": "one"})).refused(409)
    (await pair.first.post("/ondemandvm", {web: 1, "request_id": "later"})).ok(201)
    await says(pair.second, "later", 202)
    (await pair.second.get("/ondemandvm/one")).refused(404)
    (await pair.second.delete("/ondemandvm/one")).refused(404)
    assert (await scene.claims.get(notes.claim_name("one"))).status == 200


# --- an answer that is lost on the way -----------------------------------------------------------------------------


@pytest.fixture
async def far(plane: ControlPlane, namespace: str, crds_installed: None, tmp_path: Path) -> AsyncIterator[Far]:
    """The endpoints on a client whose answers can be cut; it follows nothing, so that no watch takes the cut."""
    async with proxy_to(plane) as proxy, client_to(plane, proxy, folder=tmp_path) as client:
        model, _ = gateway_of()
        pools = Mirror(client, model.pools.selection, pool_facts, MirrorSettings())
        vms = Mirror(client, model.vms.selection, vm_facts, MirrorSettings(), GATEWAY_VM_INDEXES)
        claims = Mirror(client, model.claims.selection, claim_facts, MirrorSettings())
        settings = Settings(namespace=namespace)
        gateway = replace(model, client=client, settings=settings, pools=pools, vms=vms, claims=claims)
        put_pool(gateway, "web", namespace)
        await model.client.close()
        # The connection is there before anything is cut.
        await client.list_page(VMCLAIMS, namespace)
        async with served(*ondemand.ROUTES, gateway=gateway) as rest:
            yield Far(proxy, rest)


async def test_a_request_whose_answer_was_lost_is_made(far: Far, api: Api, namespace: str) -> None:
    far.proxy.cut_next_reply()
    answer = await far.rest.post("/api/v3/ondemandvm", json={"web": 1, "request_id": "one"})
    assert (answer.status, await answer.json()) == (201, {"ok": True, "request_id": "one"})
    assert len((await api.kind("vmclaims", namespace).list()).ok()["items"]) == 1


async def test_a_refusal_that_was_lost_is_one_still(far: Far, api: Api, namespace: str) -> None:
    spec = {"requests": [{"pool": "web"}]}
    body = thing("VMClaim", notes.claim_name("one"), spec)
    body["metadata"]["annotations"] = {keys.ANNOTATION_ONDEMAND: notes.Note("one", (("web", 1),), "another").text()}
    (await api.kind("vmclaims", namespace).create(body)).ok()
    far.proxy.cut_next_reply()
    answer = await far.rest.post("/api/v3/ondemandvm", json={"web": 1, "request_id": "one"})
    assert answer.status == 409


async def test_a_gateway_of_another_namespace_says_why_it_takes_no_requests(
    make_gateway: MakeGateway, api: Api, namespace: str
) -> None:
    gateway = make_gateway(**OPEN, VMPOOL_NAMESPACE="default")
    scene = Scene(api, namespace)
    pool = await scene.pool("web", Stock(ready=1))
    gateway.start()
    await gateway.ready()
    assert gateway.lines().count('"gateway_without_ondemand"') == 1
    async with rest_client(gateway.url) as rest:
        await sees(rest, {pool: 1})
        answer = await rest.post("/ondemandvm", {pool: 1, "request_id": f"one-{namespace}"})
        assert f"only {namespace} is served" in answer.refused(501)
        (await rest.post(f"/vm/{pool}")).ok()
    assert (await api.kind("vmclaims", "default").get(notes.claim_name(f"one-{namespace}"))).status == 404
