"""On-demand requests from end to end: the gateway, a real operator and the simulated cloud."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.api import Api
from tests.clouds import SimCloud, shared_simcloud, simcloud
from tests.control_plane.operator.stage import DEADLINE, Stage
from tests.gateways import Gateway
from tests.operators import Operator
from tests.rest import Rest, RestAnswer, rest_client, short
from tests.waiting import until
from vmpool.dev.plane import ControlPlane

__all__ = ["shared_simcloud", "simcloud"]

pytestmark = pytest.mark.control_plane


@pytest.fixture(scope="module")
def served(
    plane: ControlPlane, shared_namespace: str, crds_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Operator, Gateway]]:
    """An operator and a gateway on the module's namespace; both run."""
    own = {"VMPOOL_WATCH_NAMESPACE": shared_namespace, "VMPOOL_NAMESPACE": shared_namespace}
    folder = tmp_path_factory.mktemp("served")
    operator = Operator(plane.kubeconfig, folder, **own)
    gateway = Gateway(plane.kubeconfig, folder, **own, VMPOOL_GATEWAY_AUTHORIZATION="open")
    operator.start()
    gateway.start()
    yield operator, gateway
    gateway.kill()
    operator.kill()


@pytest.fixture
async def stage(api: Api, served: tuple[Operator, Gateway], shared_namespace: str, simcloud: SimCloud) -> Stage:
    await served[0].ready()
    return Stage(api, shared_namespace, simcloud)


@pytest.fixture
async def rest(served: tuple[Operator, Gateway]) -> AsyncIterator[Rest]:
    await served[1].ready()
    async with rest_client(served[1].url) as client:
        yield client


async def asked(rest: Rest, stage: Stage, count: int, request_id: str) -> None:
    """Ask for VMs of the stage's pool as soon as the gateway knows it."""

    async def made() -> bool:
        answer = await rest.post("/ondemandvm", {stage.pool: count, "request_id": request_id})
        assert answer.status in (201, 404), answer.text
        return answer.status == 201

    await until(made, deadline=DEADLINE, what="the gateway knows the pool")


async def ended(rest: Rest, request_id: str) -> RestAnswer:
    """Wait until a request waits no more; return what is told of it."""

    async def told() -> RestAnswer | None:
        answer = await rest.get(f"/ondemandvm/{request_id}")
        return answer if answer.status == 200 else None

    found = await until(told, deadline=DEADLINE, what=f"{request_id} has ended")
    assert found is not None
    return found


async def test_vms_are_made_for_it_and_given_back_with_it(stage: Stage, rest: Rest) -> None:
    await stage.put_provider()
    await stage.put_pool(replicas=0, hostName={"domain": "lab.example.com"})
    request_id = f"one-{stage.pool}"
    await asked(rest, stage, 3, request_id)
    answer = (await ended(rest, request_id)).body
    assert answer["ready"] is True
    hosts = answer[stage.pool]["hostname"]
    assert len(set(hosts)) == 3
    claimed = await stage.vms_of()
    assert {vm["spec"]["hostName"] for vm in claimed if vm["spec"].get("claim")} == set(hosts)
    assert len(stage.alive()) == 3
    for host in hosts:
        shown = (await rest.get(f"/vm/{host}")).ok()[short(host)]
        assert shown["state"] == "running"
    (await rest.delete(f"/ondemandvm/{request_id}")).ok()
    for host in hosts:
        await stage.in_phase(short(host), "Gone")
    assert not stage.alive()
    assert (await rest.get(f"/ondemandvm/{request_id}")).body["message"] == "The request has been deleted"


async def test_one_vm_of_several_can_be_given_back_by_itself(stage: Stage, rest: Rest) -> None:
    await stage.put_provider()
    await stage.put_pool(replicas=0)
    request_id = f"part-{stage.pool}"
    await asked(rest, stage, 2, request_id)
    first, second = (await ended(rest, request_id)).body[stage.pool]["hostname"]
    (await rest.delete(f"/vm/{first}")).ok()
    await stage.in_phase(short(first), "Gone")
    assert (await rest.get(f"/vm/{second}")).ok()[short(second)]["state"] == "running"


async def test_one_that_can_never_be_filled_says_why_at_once(stage: Stage, rest: Rest) -> None:
    await stage.put_provider()
    await stage.put_pool(replicas=0, maxVMs=1)
    request_id = f"big-{stage.pool}"
    await asked(rest, stage, 2, request_id)
    answer = (await ended(rest, request_id)).body
    assert answer["ready"] is False
    assert answer["message"].startswith("The request failed to provision instances within the configured")
    assert "maxVMs" in answer["message"]
    assert not stage.alive()


async def test_one_that_is_deleted_while_it_waits_gets_no_vms(stage: Stage, rest: Rest) -> None:
    await stage.put_provider()
    await stage.put_pool(replicas=0)
    rule = stage.fault("neverReady", "create")
    request_id = f"never-{stage.pool}"
    await asked(rest, stage, 1, request_id)
    assert (await rest.get(f"/ondemandvm/{request_id}")).body[stage.pool] == {"ready": "0", "pending": "1"}
    (await rest.delete(f"/ondemandvm/{request_id}")).ok()
    stage.mend(rule)
    await stage.full(0)
    assert not [vm for vm in await stage.vms_of() if vm["spec"].get("claim")]
