"""Checkouts through a real gateway on a real API server: what is written, what is repeated, what is given back."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api import Api, Json
from tests.control_plane.gateway.scene import Scene, Stock, is_held, sees
from tests.control_plane.gateway.users import NO_REVIEWS
from tests.gateways import Gateway, MakeGateway
from tests.kube_help import proxy_to
from tests.objects import claim
from tests.proxy import Proxy
from tests.rest import Rest, hosts, rest_client, short
from tests.waiting import until
from vmpool.dev.plane import ControlPlane
from vmpool.gateway.followups import GIVEN_BACK

pytestmark = pytest.mark.control_plane


@pytest.fixture
def scene(api: Api, namespace: str) -> Scene:
    return Scene(api, namespace)


@pytest.fixture
async def rest(make_gateway: MakeGateway) -> AsyncIterator[Rest]:
    """A client of one gateway that serves everybody."""
    gateway = make_gateway(**NO_REVIEWS)
    gateway.start()
    await gateway.ready()
    async with rest_client(gateway.url) as client:
        yield client


@asynccontextmanager
async def behind_proxy(
    plane: ControlPlane, make_gateway: MakeGateway, folder: Path, **settings: str
) -> AsyncIterator[tuple[Rest, Proxy]]:
    """A client of a gateway whose way to the API server can be cut."""
    async with proxy_to(plane) as proxy:
        path = folder / f"kubeconfig-{secrets.token_hex(3)}"
        path.write_text(plane.kubeconfig.read_text().replace(plane.url, f"https://127.0.0.1:{proxy.port}"))
        gateway = make_gateway(path, **NO_REVIEWS, **settings)
        gateway.start()
        await gateway.ready()
        async with rest_client(gateway.url) as client:
            yield client, proxy
        gateway.kill()


async def requests_of(rest: Rest) -> dict[tuple[str, str], float]:
    """How often the gateway asked the API server, by method and resource; its look at the clock is left out."""
    text = (await rest.call("GET", "/metrics")).text
    (family,) = [f for f in text_string_to_metric_families(text) if f.name == "vmpool_gateway_api_requests"]
    found: dict[tuple[str, str], float] = {}
    for sample in family.samples:
        key = sample.labels["method"], sample.labels["resource"]
        if sample.name.endswith("_total") and key[1] != "configmaps":
            found[key] = found.get(key, 0) + sample.value
    return found


async def asked(rest: Rest, before: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    after = await requests_of(rest)
    return {key: count - before.get(key, 0) for key, count in after.items() if count != before.get(key, 0)}


def claim_of(vm: Json) -> Json:
    found: Json = vm["spec"]["claim"]
    return found


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def take_all_but(scene: Scene, pool: str, left: int) -> set[str]:
    """Claim VMs behind the gateway's back, as another allocator would; return the names of those left."""
    names = [vm["metadata"]["name"] for vm in await scene.of(pool)]
    patches = (
        scene.vms.merge(name, {"spec": {"claim": claim(f"other-{name}", owner="somebody")}}) for name in names[left:]
    )
    for answer in await asyncio.gather(*patches):
        answer.ok()
    return set(names[:left])


async def test_a_checkout_is_one_write_a_vm_and_no_read(scene: Scene, rest: Rest) -> None:
    pool = await scene.pool("web", Stock(ready=6))
    await sees(rest, {pool: 6})
    before = await requests_of(rest)
    assert len(hosts(await rest.post(f"/vm/{pool}"))) == 1
    assert await asked(rest, before) == {("PATCH", "pooledvms"): 1}
    assert len(hosts(await rest.post("/vm", {pool: 3}))) == 3
    assert await asked(rest, before) == {("PATCH", "pooledvms"): 4}


async def test_a_claim_says_who_has_the_vm_and_until_when(scene: Scene, rest: Rest) -> None:
    spec = {"claims": {"lifetime": "90m", "maxLifetime": "48h"}}
    pool = await scene.pool("web", Stock(ready=2, spec=spec))
    await sees(rest, {pool: 2})
    answer = await rest.post(f"/vm/{pool}+{pool}", headers={"X-Request-ID": "build-7"})
    held = [claim_of(vm) for vm in await scene.held(pool)]
    assert len({one["id"] for one in held}) == 2
    for one in held:
        assert (one["owner"], one["requestId"], one["groups"]) == ("vmpool:anonymous", "build-7", ["vmpool:rest"])
        assert moment(one["expiresAt"]) - moment(one["boundAt"]) == timedelta(minutes=90)
        assert "ref" not in one
        assert "slot" not in one
    (shown,) = [(await rest.get(f"/vm/{hosts(answer)[0]}")).ok()[short(hosts(answer)[0])]]
    assert (shown["state"], shown["lifetime"], shown["template"]) == ("running", 1.5, pool)


async def test_what_others_took_behind_its_back_is_replaced(scene: Scene, rest: Rest) -> None:
    pool = await scene.pool("web", Stock(ready=12))
    await sees(rest, {pool: 12})
    left = await take_all_but(scene, pool, 3)
    names = {short(host) for host in hosts(await rest.post("/vm", {pool: 3}))}
    assert names == left


async def test_a_part_of_a_checkout_is_never_kept(scene: Scene, rest: Rest) -> None:
    web = await scene.pool("web", Stock(ready=3))
    other = await scene.pool("other", Stock(ready=3))
    await sees(rest, {web: 3, other: 3})
    await take_all_but(scene, other, 1)
    answer = await rest.post("/vm", {web: 2, other: 2})
    assert "none is handed out" in answer.refused(503)

    async def nothing_held() -> bool:
        return not await scene.held(web) and len(await scene.held(other)) == 2

    await until(nothing_held, what="what was got is given back")
    ended = [claim_of(vm) for vm in await scene.of(web) + await scene.of(other) if "claim" in vm["spec"]]
    assert {one["endReason"] for one in ended if "releasedAt" in one} <= {GIVEN_BACK}


# --- repeated requests --------------------------------------------------------------------------------------------


def keyed(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


async def test_a_repeated_request_gets_the_same_vms(scene: Scene, rest: Rest) -> None:
    pool = await scene.pool("web", Stock(ready=8, spec={"aliases": [f"any-{scene.tag}"]}))
    await sees(rest, {pool: 8})
    body = {pool: 2, f"any-{scene.tag}": 1}
    first = (await rest.post("/vm", body, headers=keyed("one"))).ok()
    before = await requests_of(rest)
    assert (await rest.post("/vm", body, headers=keyed("one"))).ok() == first
    assert await asked(rest, before) == {("GET", "pooledvms"): 1}
    others = [
        hosts(await rest.post("/vm", body, headers=keyed("two"))),
        hosts(await rest.post("/vm", {pool: 2}, headers=keyed("one"))),
    ]
    assert len({host for given in [*others, first[pool]["hostname"]] for host in given}) == 3 + 2 + 2


async def test_the_same_request_twice_at_once_gets_the_same_vm(scene: Scene, rest: Rest) -> None:
    pool = await scene.pool("web", Stock(ready=8))
    await sees(rest, {pool: 8})
    answers = await asyncio.gather(*(rest.post(f"/vm/{pool}", headers=keyed("one")) for _ in range(6)))
    assert len({tuple(hosts(answer)) for answer in answers}) == 1
    assert len(await scene.held(pool)) == 1


async def test_a_request_is_repeated_at_another_gateway_after_its_own_was_killed(
    scene: Scene, make_gateway: MakeGateway
) -> None:
    pool = await scene.pool("web", Stock(ready=4))
    given = []
    for _ in range(2):
        gateway = make_gateway(**NO_REVIEWS)
        gateway.start()
        await gateway.ready()
        async with rest_client(gateway.url) as rest:
            given.append((await rest.post("/vm", {pool: 2}, headers=keyed("one"))).ok())
        gateway.kill()
    assert given[0] == given[1]
    assert len(await scene.held(pool)) == 2


async def test_a_part_that_a_killed_gateway_left_is_completed(scene: Scene, rest: Rest) -> None:
    pool = await scene.pool("web", Stock(ready=4))
    await sees(rest, {pool: 4})
    first = (await rest.post("/vm", {pool: 3}, headers=keyed("one"))).ok()[pool]["hostname"]
    # As if the one in the middle had never been written: its object goes, as after its destruction.
    (await scene.vms.delete(short(first[1]))).ok()
    second = (await rest.post("/vm", {pool: 3}, headers=keyed("one"))).ok()[pool]["hostname"]
    assert [second[0], second[2]] == [first[0], first[2]]
    assert second[1] not in first


async def test_vms_that_have_ended_are_not_handed_out_again(scene: Scene, rest: Rest) -> None:
    pool = await scene.pool("web", Stock(ready=3))
    await sees(rest, {pool: 3})
    (host,) = hosts(await rest.post(f"/vm/{pool}", headers=keyed("one")))
    (await rest.delete(f"/vm/{host}")).ok()
    cause = (await rest.post(f"/vm/{pool}", headers=keyed("one"))).refused(409)
    assert short(host) in cause
    assert "use another key" in cause
    assert not await scene.held(pool)


async def test_a_part_is_kept_for_the_repetition(scene: Scene, rest: Rest) -> None:
    web = await scene.pool("web", Stock(ready=2))
    other = await scene.pool("other", Stock(ready=3))
    await sees(rest, {web: 2, other: 3})
    await take_all_but(scene, other, 1)
    cause = (await rest.post("/vm", {web: 2, other: 2}, headers=keyed("one"))).refused(503)
    part = {vm["metadata"]["name"] for vm in await scene.held(web)}
    assert "what was got is kept for a request with the same Idempotency-Key" in cause
    await scene.add(other, 2)

    async def answered() -> set[str]:
        answer = await rest.post("/vm", {web: 2, other: 2}, headers=keyed("one"))
        return {short(host) for host in hosts(answer)} if answer.status == 200 else set()

    assert part <= await until(answered, what="the whole is handed out")
    assert not [vm for vm in await scene.of(web) + await scene.of(other) if "releasedAt" in vm["spec"].get("claim", {})]


@pytest.mark.parametrize("key", ["", "k" * 129, "a\tb"])
async def test_keys_that_are_none_are_refused(key: str, scene: Scene, rest: Rest) -> None:
    pool = await scene.pool("web", Stock(ready=1))
    assert "Idempotency-Key must be" in (await rest.post(f"/vm/{pool}", headers=keyed(key))).refused(400)


# --- trouble on the way to the API server -------------------------------------------------------------------------


async def test_a_lost_answer_is_looked_up(
    scene: Scene, plane: ControlPlane, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    pool = await scene.pool("web", Stock(ready=5))
    async with behind_proxy(plane, make_gateway, tmp_path) as (rest, proxy):
        await sees(rest, {pool: 5})
        for number in range(1, 4):
            proxy.cut_next_reply()
            answer = await rest.post(f"/vm/{pool}")
            # Either the claim's answer was cut or a watch: the VM is the client's in both cases, and only one is.
            assert len(hosts(answer)) == 1
            assert len(await scene.held(pool)) == number


async def test_without_an_api_server_nothing_is_handed_out_and_nothing_half_done(
    scene: Scene, plane: ControlPlane, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    pool = await scene.pool("web", Stock(ready=4))
    async with behind_proxy(plane, make_gateway, tmp_path, VMPOOL_GATEWAY_CHECKOUT_WAIT_SECONDS="2") as (rest, proxy):
        await sees(rest, {pool: 4})
        proxy.close_door()
        for path in (f"/vm/{pool}", f"/vm/{pool}+{pool}"):
            answer = await rest.post(path)
            assert "API server" in answer.refused(503)
            assert int(answer.headers["Retry-After"]) > 0
        proxy.open_door()

        async def served() -> bool:
            return (await rest.post(f"/vm/{pool}+{pool}")).status == 200

        await until(served, what="checkouts go on")

        async def settled() -> bool:
            return len(await scene.held(pool)) == 2

        await until(settled, what="nobody has what nobody was told of")


async def test_what_is_bound_after_the_client_was_told_no_is_given_back(
    scene: Scene, plane: ControlPlane, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    pool = await scene.pool("web", Stock(ready=3))
    wait = {"VMPOOL_GATEWAY_CHECKOUT_WAIT_SECONDS": "1"}
    async with behind_proxy(plane, make_gateway, tmp_path, **wait) as (rest, proxy):
        await sees(rest, {pool: 3})
        # So that the connection is there already, and the frozen write is on its way.
        assert hosts(await rest.post(f"/vm/{pool}"))
        proxy.freeze()
        assert "did not answer within 1 s" in (await rest.post(f"/vm/{pool}")).refused(503)
        proxy.thaw()

        async def given_back() -> list[Json]:
            claims = [claim_of(vm) for vm in await scene.of(pool) if "claim" in vm["spec"]]
            return [one for one in claims if one.get("endReason") == GIVEN_BACK]

        assert len(await until(given_back, what="the late claim is ended")) == 1
        assert len(await scene.held(pool)) == 1


async def test_what_is_bound_too_late_is_kept_for_a_client_that_will_ask_again(
    scene: Scene, plane: ControlPlane, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    pool = await scene.pool("web", Stock(ready=3))
    wait = {"VMPOOL_GATEWAY_CHECKOUT_WAIT_SECONDS": "1"}
    async with behind_proxy(plane, make_gateway, tmp_path, **wait) as (rest, proxy):
        await sees(rest, {pool: 3})
        assert hosts(await rest.post(f"/vm/{pool}", headers=keyed("other")))
        proxy.freeze()
        cause = (await rest.post(f"/vm/{pool}", headers=keyed("one"))).refused(503)
        assert "repeat the request with the same Idempotency-Key" in cause
        proxy.thaw()

        async def answered() -> list[str]:
            answer = await rest.post(f"/vm/{pool}", headers=keyed("one"))
            return hosts(answer) if answer.status == 200 else []

        (host,) = await until(answered, what="the repeated request is answered")
        held = {vm["metadata"]["name"] for vm in await scene.held(pool)}
        assert short(host) in held
        assert len(held) == 2
        assert not [vm for vm in await scene.of(pool) if "claim" in vm["spec"] and not is_held(vm)]


async def test_each_act_leaves_an_audit_line(scene: Scene, make_gateway: MakeGateway) -> None:
    gateway: Gateway = make_gateway(**NO_REVIEWS)
    gateway.start()
    await gateway.ready()
    pool = await scene.pool("web", Stock(ready=1))
    async with rest_client(gateway.url) as rest:
        await sees(rest, {pool: 1})
        (host,) = hosts(await rest.post(f"/vm/{pool}"))
        (await rest.put(f"/vm/{host}", {"tags": {"job": "7"}})).ok()
        (await rest.delete(f"/vm/{host}")).ok()
        (await rest.delete(f"/vm/{host}")).ok()
    lines = [json.loads(line) for line in gateway.lines().splitlines() if '"audit"' in line]
    assert [line["action"] for line in lines] == ["checkout", "change", "release"]
    assert {line["vm"] for line in lines} == {short(host)}
    assert {line["pool"] for line in lines} == {pool}
    assert len({line["claim_id"] for line in lines}) == 1
