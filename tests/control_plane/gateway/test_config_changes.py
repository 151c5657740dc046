"""Changes of pools over REST as the real API server takes them: what stands in the pool afterwards, and who may."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.api import Api, Json
from tests.control_plane.gateway.scene import IMAGE, OTHER_PROVIDER, PROVIDER, Scene, Stock, sees
from tests.gateways import Gateway, MakeGateway
from tests.kube_help import client_to
from tests.rest import Rest, rest_client
from tests.unit.gateway.frames import gateway_of
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane
from vmpool.engine.facts import pool_facts
from vmpool.gateway import config, overrides
from vmpool.gateway.answers import Refusal
from vmpool.gateway.overrides import Step
from vmpool.kube.mirror import Mirror, MirrorSettings
from vmpool.plan.names import qualified_name

pytestmark = pytest.mark.control_plane

OPEN = {"VMPOOL_GATEWAY_CONFIG_ENDPOINTS": "true", "VMPOOL_GATEWAY_AUTHORIZATION": "open"}
REVIEWED = {"VMPOOL_GATEWAY_CONFIG_ENDPOINTS": "true", "VMPOOL_GATEWAY_REVIEW_SECONDS": "0"}
USER = "vmpool:anonymous"


@pytest.fixture
async def rest(make_gateway: MakeGateway) -> AsyncIterator[Rest]:
    """A client of a gateway where everybody may change pools."""
    async with client_of(make_gateway(**OPEN)) as client:
        yield client


@asynccontextmanager
async def client_of(gateway: Gateway) -> AsyncIterator[Rest]:
    """Start a gateway and return a client of it."""
    gateway.start()
    await gateway.ready()
    async with rest_client(gateway.url) as client:
        yield client


async def pool_named(scene: Scene, rest: Rest, key: str = "web", **spec: Any) -> str:
    name = await scene.pool(key, Stock(spec={"replicas": 1, **spec}))
    await sees(rest, {name: 0})
    return name


async def stored(scene: Scene, name: str) -> Json:
    return (await scene.pools.get(name)).ok()


def note(pool: Json) -> Any:
    text = pool["metadata"].get("annotations", {}).get(keys.ANNOTATION_OVERRIDE)
    return None if text is None else json.loads(text)


async def test_sizes_and_templates_are_written_noted_and_taken_back(api: Api, namespace: str, rest: Rest) -> None:
    scene = Scene(api, namespace)
    name = await pool_named(scene, rest)
    (await rest.post("/config/poolsize", {name: "5"})).ok(201)
    (await rest.post("/config/poolsize", {name: 7})).ok(201)
    (await rest.post("/config/pooltemplate", {name: "debian-13"})).ok(201)
    changed = await stored(scene, name)
    assert changed["spec"]["replicas"] == 7
    assert changed["spec"]["template"] == {"image": "debian-13"}
    assert note(changed) == {
        "poolsize": {"was": 1, "set": 7},
        "pooltemplate": {"was": IMAGE, "set": "debian-13"},
    }
    managers = {entry["manager"] for entry in changed["metadata"]["managedFields"]}
    assert keys.GATEWAY_FIELD_MANAGER in managers
    assert (await rest.delete(f"/config/poolsize/{name}")).ok(201) == {
        "ok": True,
        "pool_size_before_reset": 7,
        "pool_size_before_overrides": 1,
    }
    assert (await rest.delete(f"/config/pooltemplate/{name}")).ok(201) == {
        "ok": True,
        "template_before_reset": "debian-13",
        "template_before_overrides": IMAGE,
    }
    back = await stored(scene, name)
    assert (back["spec"]["replicas"], back["spec"]["template"], note(back)) == (1, {"image": IMAGE}, None)
    assert (await rest.delete(f"/config/poolsize/{name}")).ok(200)["pool_size_before_reset"] == 1


async def test_a_size_that_nobody_had_set_is_unset_again(api: Api, namespace: str, rest: Rest) -> None:
    scene = Scene(api, namespace)
    name = await pool_named(scene, rest, replicas=None)
    (await rest.post("/config/poolsize", {name: 4})).ok(201)
    assert (await stored(scene, name))["spec"]["replicas"] == 4
    (await rest.delete(f"/config/poolsize/{name}")).ok(201)
    assert "replicas" not in (await stored(scene, name))["spec"]


async def test_the_present_value_is_no_change_and_no_write(api: Api, namespace: str, rest: Rest) -> None:
    scene = Scene(api, namespace)
    name = await pool_named(scene, rest)
    before = await stored(scene, name)
    (await rest.post("/config/poolsize", {name: 1})).ok(200)
    (await rest.post("/config/clonetarget", {name: PROVIDER})).ok(200)
    assert await stored(scene, name) == before


async def test_a_clone_target_gets_all_new_machines(api: Api, namespace: str, rest: Rest) -> None:
    scene = Scene(api, namespace)
    name = await pool_named(scene, rest)
    (await rest.post("/config/clonetarget", {name: OTHER_PROVIDER})).ok(201)
    changed = await stored(scene, name)
    assert {one["name"]: one["weight"] for one in changed["spec"]["providers"]} == {PROVIDER: 0, OTHER_PROVIDER: 1}
    assert [one["name"] for one in note(changed)["clonetarget"]["was"]] == [PROVIDER, OTHER_PROVIDER]


async def test_a_reset_is_meant_for_all_that_is_there_now(api: Api, namespace: str, rest: Rest) -> None:
    scene = Scene(api, namespace)
    name = await pool_named(scene, rest)
    (vm,) = await scene.add(name, 1)
    before = datetime.now(UTC)
    (await rest.post("/poolreset", {name: 1})).ok(201)
    told = datetime.fromisoformat((await stored(scene, name))["spec"]["resetBefore"])
    made = datetime.fromisoformat((await scene.vm(vm))["metadata"]["creationTimestamp"])
    assert told >= before
    assert told > made
    assert told - datetime.now(UTC) <= timedelta(seconds=1)


async def test_what_a_template_says_besides_its_image_stays(api: Api, namespace: str, rest: Rest) -> None:
    scene = Scene(api, namespace)
    name = await pool_named(scene, rest, template={"image": IMAGE, "cpus": 4})
    (await rest.post("/config/pooltemplate", {name: "debian-13"})).ok(201)
    assert (await stored(scene, name))["spec"]["template"] == {"image": "debian-13", "cpus": 4}


async def test_changes_at_once_lose_none_of_the_first_values(api: Api, namespace: str, rest: Rest) -> None:
    scene = Scene(api, namespace)
    name = await pool_named(scene, rest)

    async def persist(path: str, value: Any) -> None:
        async def accepted() -> bool:
            answer = await rest.post(f"/config/{path}", {name: value})
            assert answer.status in (200, 201, 503), answer.text
            return answer.status != 503

        await until(accepted, what=f"{path} {value} is written")

    sizes = (persist("poolsize", size) for size in range(2, 6))
    images = (persist("pooltemplate", f"image-{number}") for number in range(4))
    await asyncio.gather(*sizes, *images)
    told = note(await stored(scene, name))
    assert (told["poolsize"]["was"], told["pooltemplate"]["was"]) == (1, IMAGE)


async def test_a_value_that_the_server_refuses_is_the_clients_mistake(api: Api, namespace: str, rest: Rest) -> None:
    scene = Scene(api, namespace)
    name = await pool_named(scene, rest, maxVMs=10)
    # Our picture says that 8 are allowed; the server knows better by now.
    (await scene.pools.merge(name, {"spec": {"maxVMs": 5}})).ok()
    answer = await rest.post("/config/poolsize", {name: 8})
    body = answer.ok(400)
    assert body["not_configured"] == [name]
    assert answer.cause


async def test_it_takes_the_verb_update_on_the_very_pool(
    api: Api, namespace: str, make_gateway: MakeGateway, kubectl: Any
) -> None:
    scene = Scene(api, namespace)
    async with client_of(make_gateway(**REVIEWED)) as rest:
        name, other = await pool_named(scene, rest), await pool_named(scene, rest, "other")
        assert "verb update" in (await rest.post("/config/poolsize", {name: 2})).refused(403)
        kubectl("create", "role", "claimer", "--verb=claim", "--resource=vmpools.vmpool.dev", "-n", namespace)
        kubectl("create", "rolebinding", "claimer", "--role=claimer", f"--user={USER}", "-n", namespace)
        changer = ("changer", "--verb=update", "--resource=vmpools.vmpool.dev", f"--resource-name={name}")
        kubectl("create", "role", *changer, "-n", namespace)
        kubectl("create", "rolebinding", "changer", "--role=changer", f"--user={USER}", "-n", namespace)

        async def allowed() -> bool:
            return (await rest.post("/config/poolsize", {name: 2})).status in (200, 201)

        await until(allowed, what="the role is known to the authorizer")
        for path, value in (("config/poolsize", 2), ("config/pooltemplate", "x"), ("poolreset", 1)):
            (await rest.post(f"/{path}", {other: value})).refused(403)
            (await rest.post(f"/{path}", {name: value, other: value})).refused(403)
        (await rest.delete(f"/config/poolsize/{other}")).refused(403)
        assert (await stored(scene, other))["spec"]["replicas"] == 1
        # One that may not be changed keeps all others of the request as they are.
        assert (await stored(scene, name))["spec"]["template"] == {"image": IMAGE}


async def test_a_pool_is_found_by_its_whole_name(api: Api, namespace: str, rest: Rest) -> None:
    scene = Scene(api, namespace)
    name = await pool_named(scene, rest)
    whole = qualified_name(pool_facts(await stored(scene, name)))
    (await rest.post("/config/poolsize", {whole: 3})).ok(201)
    assert (await stored(scene, name))["spec"]["replicas"] == 3
    shown = (await rest.get("/config")).ok()["pool_configuration"]
    assert [(one["name"], one["size"], one["clone_target"]) for one in shown] == [(name, 3, PROVIDER)]


@pytest.mark.parametrize("stale", [0, config.TRIES - 1, config.TRIES])
async def test_a_change_is_decided_anew_when_others_were_faster(
    plane: ControlPlane, api: Api, namespace: str, crds_installed: None, stale: int
) -> None:
    scene = Scene(api, namespace)
    name = await scene.pool("web", Stock(spec={"replicas": 1}))
    old = await stored(scene, name)
    (await scene.pools.merge(name, {"spec": {"paused": True}})).ok()
    decided = []

    def step_from(raw: Json) -> Step:
        decided.append(raw)
        # As if somebody had written the pool just after it was read.
        return overrides.change(old if len(decided) <= stale else raw, overrides.POOL_SIZE, 5)

    async with client_to(plane) as client:
        model, _ = gateway_of()
        pools = Mirror(client, model.pools.selection, pool_facts, MirrorSettings())
        gateway = replace(model, client=client, pools=pools)
        await model.client.close()
        if stale < config.TRIES:
            await config._write(gateway, pool_facts(old), step_from, None, name)
        else:
            with pytest.raises(Refusal, match="is being changed by others"):
                await config._write(gateway, pool_facts(old), step_from, None, name)
    after = (await stored(scene, name))["spec"]
    assert len(decided) == min(stale + 1, config.TRIES)
    assert (after["replicas"], after["paused"]) == (5 if stale < config.TRIES else 1, True)
