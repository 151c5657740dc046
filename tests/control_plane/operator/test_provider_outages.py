"""Trouble at the far side: whatever it answers, unknown is not missing, and no machine is lost or made twice."""

from collections.abc import Callable

import pytest

from tests.api import Api, Json
from tests.clouds import SimCloud
from tests.control_plane.operator.stage import DEADLINE, Stage, machine_ids, names, phases
from tests.objects import LATER, LONG_AGO
from tests.operators import Operator
from tests.waiting import until

pytestmark = pytest.mark.control_plane


def told(vms: list[Json]) -> set[tuple[str, str, str]]:
    """What an outage must not change."""
    return {(vm["metadata"]["uid"], vm["status"]["phase"], vm["status"]["machineId"]) for vm in vms}


async def all_told(stage: Stage) -> set[tuple[str, str, str]]:
    return told(await stage.vms_of())


@pytest.mark.parametrize(
    ("operation", "action", "fields"),
    [
        pytest.param("list", "emptyList", {}, id="empty list"),
        pytest.param("list", "partialList", {}, id="first page only"),
        pytest.param("*", "failBefore", {"status": 500}, id="500 on every call"),
        pytest.param("*", "status", {"status": 401}, id="401 on every call"),
        pytest.param("*", "status", {"status": 404, "code": "NotFound"}, id="404 of something else"),
        pytest.param("*", "replyLost", {}, id="every reply is lost"),
    ],
)
async def test_an_outage_changes_nothing(
    stage: Stage, served: Operator, operation: str, action: str, fields: Json
) -> None:
    await stage.put_provider(config={"endpoint": stage.cloud.url, "pageSize": 2})
    await stage.put_pool(replicas=5)
    before = told(await stage.full(5))
    rule = stage.fault(action, operation, **fields)
    await stage.looked(served, 4)
    assert stage.cloud.faults()[-1]["fired"] >= 2
    assert await all_told(stage) == before
    stage.mend(rule)
    await stage.provider_says("Ready", "True")
    await stage.looked(served)
    assert told(await stage.full(5)) == before
    assert len(stage.history()) == 5
    assert not (await stage.status()).get("recentFailures")


async def test_a_scale_down_during_an_outage_loses_no_machine(stage: Stage, served: Operator) -> None:
    before = await stage.filled(4)
    rule = stage.fault("failBefore", "*")
    await stage.provider_says("Ready", "False")
    await stage.change(replicas=1)
    await until(lambda: _completed(stage, 3), deadline=DEADLINE, what="three VMs are given up")
    await stage.looked(served)
    assert names(await stage.vms_of()) == names(before), "the objects stay until their machines are gone"
    assert stage.alive() == machine_ids(before)
    stage.mend(rule)
    (left,) = await stage.full(1)
    assert stage.alive() == machine_ids([left])
    assert {machine["endedBy"] for machine in stage.history() if machine["state"] == "Gone"} == {"deleted"}


async def _completed(stage: Stage, count: int) -> bool:
    return phases(await stage.vms_of())["Completed"] == count


async def test_a_cloud_that_is_down_for_seconds(
    api: Api, served: Operator, shared_namespace: str, make_simcloud: Callable[..., SimCloud]
) -> None:
    await served.ready()
    stage = Stage(api, shared_namespace, make_simcloud())
    before = await stage.filled(3)
    stage.cloud.kill()
    assert "ProviderUnavailable" in await stage.provider_says("Ready", "False", "CircuitOpen")
    await stage.change(replicas=5)
    assert "VMProvider" in await stage.pool_says("Ready", "False", "CircuitOpen")
    await stage.looked(served)
    assert told([vm for vm in await stage.vms_of() if vm["metadata"]["name"] in names(before)]) == told(before)
    stage.cloud.start()
    after = await stage.full(5)
    assert names(before) <= names(after)
    assert len(stage.history()) == 5
    assert (await stage.providers.get(stage.provider)).ok()["status"]["circuit"] == "Closed"


async def test_one_providers_outage_leaves_the_other_alone(stage: Stage) -> None:
    good, bad = f"{stage.provider}-a", f"{stage.provider}-b"
    other = stage.cloud.tenant()
    await stage.put_provider(good)
    await stage.put_provider(bad, tenant=other)
    stage.cloud.fault("hang", {"tenant": other.name})
    await stage.put_pool(replicas=4, providers=[{"name": good}, {"name": bad}])
    await stage.full(4)
    assert len(stage.alive()) == 4
    await stage.change(replicas=1)
    await stage.full(1)


async def test_being_told_to_wait_costs_no_vm_an_attempt(stage: Stage) -> None:
    stage.fault("status", "create", status=429, retryAfter=1, count=6)
    await stage.put_provider()
    await stage.put_pool(replicas=3, retry={"attempts": 1})
    vms = await stage.full(3)
    assert len(stage.history()) == 3
    assert not (await stage.status()).get("recentFailures")
    assert {vm["spec"]["retryCount"] for vm in vms} == {0}


async def test_a_claim_that_ends_during_an_outage_ends_in_time(stage: Stage, served: Operator) -> None:
    (vm,) = await stage.filled(1)
    rule = stage.fault("failBefore", "*")
    await stage.provider_says("Ready", "False")
    claim = {"id": "c", "owner": "alice", "boundAt": LONG_AGO, "expiresAt": LATER}
    (await stage.vms.merge(vm["metadata"]["name"], {"spec": {"claim": claim}})).ok()
    await stage.in_phase(vm["metadata"]["name"], "Completed")
    await stage.looked(served)
    assert stage.alive() == machine_ids([vm])
    assert await stage.phase(vm["metadata"]["name"]) == "Completed"
    stage.mend(rule)
    await stage.in_phase(vm["metadata"]["name"], "Gone")
    await stage.full(1)
    assert len(stage.alive()) == 1
