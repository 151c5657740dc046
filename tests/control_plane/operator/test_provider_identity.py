"""The far side under a provider's name is another one: nothing is created, deleted or counted as gone anywhere."""

from collections.abc import Callable

import pytest

from tests.api import Api, Json
from tests.clouds import SimCloud
from tests.control_plane.operator.stage import DEADLINE, Stage, machine_ids, names, phases
from tests.operators import Operator
from tests.waiting import until

pytestmark = pytest.mark.control_plane


async def stays_as_it_is(stage: Stage, served: Operator, before: list[Json]) -> None:
    """Ask for everything that a pool can be asked for; the objects may change, no machine may."""
    message = await stage.provider_says("Stalled", "True", "IdentityChanged")
    identity = (await stage.providers.get(stage.provider)).ok()["status"]["identity"]
    assert repr(identity) in message, "the machines' own far side stays on record"
    victim = before[0]["metadata"]["name"]
    (await stage.vms.delete(victim)).ok()
    await stage.change(replicas=len(before) + 1)
    assert message in await stage.pool_says("Stalled", "True", "IdentityChanged")
    await stage.looked(served, 4)
    assert names(before) == names(await stage.vms_of())
    assert phases(await stage.vms_of()) == {"Ready": len(before) - 1, "Completed": 1}


async def goes_on(stage: Stage, before: list[Json]) -> None:
    """Back at its own far side, everything that was asked for is done."""
    await stage.provider_says("Ready", "True")
    after = await stage.full(len(before) + 1)
    assert names(before[1:]) <= names(after)
    assert before[0]["metadata"]["name"] not in names(after)
    assert stage.alive() == machine_ids(after)
    assert len(stage.history()) == len(before) + 2
    assert not (await stage.status()).get("recentFailures")


async def test_another_cloud(stage: Stage, served: Operator, make_simcloud: Callable[..., SimCloud]) -> None:
    other = make_simcloud()
    status, _ = other.call("PUT", f"/v1/tenants/{stage.tenant.name}", {"key": stage.tenant.key})
    assert status == 204
    before = await stage.filled(3)

    await point_to(stage, other.url)
    await stays_as_it_is(stage, served, before)
    assert stage.alive() == machine_ids(before)
    asked = other.ledger(machines=False)
    assert asked["made"] == 0
    assert set(asked["requests"]) <= {"identity"}, asked["requests"]

    await point_to(stage, stage.cloud.url)
    await goes_on(stage, before)


async def point_to(stage: Stage, url: str) -> None:
    (await stage.providers.merge(stage.provider, {"spec": {"config": {"endpoint": url}}})).ok()


async def test_another_tenant_by_a_changed_secret(stage: Stage, served: Operator) -> None:
    other = stage.cloud.tenant()
    before = await stage.filled(3)
    await stage.put_secret(stage.provider, apiKey=other.key)
    await stays_as_it_is(stage, served, before)
    assert stage.alive() == machine_ids(before)
    assert not stage.history(other)
    await stage.put_secret(stage.provider, apiKey=stage.tenant.key)
    await goes_on(stage, before)


async def test_a_restart_remembers_where_the_machines_are(stage: Stage, served: Operator) -> None:
    other = stage.cloud.tenant()
    before = await stage.filled(3)
    lives = served.lines().count('"engine_ready"')
    served.kill()
    await stage.put_secret(stage.provider, apiKey=other.key)
    served.start()
    await until(lambda: served.lines().count('"engine_ready"') > lives, deadline=DEADLINE, what="it leads again")
    await stays_as_it_is(stage, served, before)
    assert stage.alive() == machine_ids(before)
    assert not stage.history(other)
    await stage.put_secret(stage.provider, apiKey=stage.tenant.key)
    await goes_on(stage, before)


async def test_another_cloud_at_the_same_address(
    api: Api, served: Operator, shared_namespace: str, make_simcloud: Callable[..., SimCloud]
) -> None:
    await served.ready()
    ours, other = make_simcloud(), make_simcloud()
    stage = Stage(api, shared_namespace, ours)
    before = await stage.filled(3)
    other.call("PUT", f"/v1/tenants/{stage.tenant.name}", {"key": stage.tenant.key})
    ours.stop()
    other.stop()
    other.port = ours.port
    other.start()
    await stays_as_it_is(stage, served, before)
    asked = other.ledger(machines=False)
    assert asked["made"] == 0
    other.stop()
    ours.start()
    assert stage.alive() == machine_ids(before)
    await goes_on(stage, before)


async def test_without_machines_any_far_side_will_do(stage: Stage, make_simcloud: Callable[..., SimCloud]) -> None:
    await stage.filled(2)
    await stage.change(replicas=0)
    await stage.full(0)
    other = make_simcloud()
    other.call("PUT", f"/v1/tenants/{stage.tenant.name}", {"key": stage.tenant.key})
    await point_to(stage, other.url)
    await stage.change(replicas=2)
    await stage.full(2)
    assert other.ledger(machines=False)["alive"] == 2
    assert not stage.alive()


async def test_no_listing_of_another_far_side_proves_anything(
    api: Api, served: Operator, shared_namespace: str, make_simcloud: Callable[..., SimCloud]
) -> None:
    """Between two regular looks at who is there, a change goes unnoticed: the proof itself must ask."""
    await served.ready()
    ours, other = make_simcloud(), make_simcloud()
    stage = Stage(api, shared_namespace, ours)
    await stage.put_provider(observe={"interval": "1h"})
    await stage.put_pool(replicas=3)
    before = await stage.full(3)
    other.call("PUT", f"/v1/tenants/{stage.tenant.name}", {"key": stage.tenant.key})
    ours.stop()
    other.stop()
    other.port = ours.port
    other.start()
    await stage.change(replicas=2)
    await stage.provider_says("Stalled", "True", "IdentityChanged")
    assert phases(await stage.vms_of()) == {"Ready": 2, "Completed": 1}
    other.stop()
    ours.start()
    assert stage.alive() == machine_ids(before)
    (left, _) = await stage.full(2)
    assert names([left]) <= names(before)
    assert len(stage.history()) == 3
