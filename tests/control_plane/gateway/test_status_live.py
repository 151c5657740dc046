"""The status as it follows the API server: phases, checkouts, durations, tags; a restart loses what is gone alone."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.api import Api, Json
from tests.control_plane.gateway.scene import Scene, Stock, sees
from tests.gateways import Gateway, MakeGateway
from tests.rest import Rest, hosts, rest_client, short
from tests.waiting import until
from vmpool.api.meta import format_time

pytestmark = pytest.mark.control_plane


@pytest.fixture
def open_gateway(make_gateway: MakeGateway) -> Gateway:
    return make_gateway(VMPOOL_GATEWAY_AUTHORIZATION="open")


@pytest.fixture
async def rest(open_gateway: Gateway) -> AsyncIterator[Rest]:
    open_gateway.start()
    await open_gateway.ready()
    async with rest_client(open_gateway.url) as client:
        yield client


async def counted(rest: Rest, pool: str, **wanted: int) -> None:
    """Wait until the status counts so many VMs of a pool."""

    async def shown() -> bool:
        found = (await rest.get("/status?view=pools")).ok()["pools"][pool]
        return wanted.items() <= found.items()

    await until(shown, what=f"{pool}: {wanted}")


async def test_a_vm_counts_where_it_is(api: Api, namespace: str, rest: Rest) -> None:
    scene = Scene(api, namespace)
    pool = await scene.pool("web", Stock(ready=2, pending=1))
    await counted(rest, pool, ready=2, running=0, pending=1)
    (host,) = hosts(await rest.post(f"/vm/{pool}"))
    # Its own writes a gateway knows at once.
    assert (await rest.get("/totalrunning")).ok() == {"running": 1}
    assert (await rest.get(f"/poolstat?pool={pool}")).ok() == {"pools": {pool: {"max": 2, "ready": 1}}}
    (await rest.delete(f"/vm/{host}")).ok()
    queue = (await rest.get("/status?view=queue")).ok()["queue"]
    assert (queue["running"], queue["completed"], queue["total"]) == (0, 1, 3)
    await scene.phase(short(host), "Completed")
    (await scene.vms.delete(short(host))).ok()

    async def gone() -> bool:
        return bool((await rest.get("/status?view=queue")).ok()["queue"]["total"] == 2)

    await until(gone, what="the VM that is gone does not count")


async def test_durations_and_tags_outlive_the_gateway_while_the_vms_do(
    api: Api, namespace: str, rest: Rest, open_gateway: Gateway
) -> None:
    scene = Scene(api, namespace)
    pool = await scene.pool("web", Stock(pending=1))
    await counted(rest, pool, pending=1)
    (vm,) = await scene.of(pool)
    name, now = vm["metadata"]["name"], datetime.now(UTC)
    await boot(scene, name, now)
    await counted(rest, pool, ready=1)
    (host,) = hosts(await rest.post(f"/vm/{pool}"))
    (await rest.put(f"/vm/{host}", {"tags": {"job": "build-7"}})).ok()
    await judge(rest, pool, now)
    open_gateway.kill()
    open_gateway.start()
    await open_gateway.ready()
    async with rest_client(open_gateway.url) as again:
        await sees(again, {pool: 0})
        await judge(again, pool, now)


async def boot(scene: Scene, name: str, now: datetime) -> None:
    """Write what the operator writes of a machine that was made in 2 s and ready 3 s later."""
    moments = [format_time(now - timedelta(seconds=seconds)) for seconds in (5, 3, 0)]
    steps: list[Json] = [
        {"name": "create", "startedAt": moments[0], "finishedAt": moments[1]},
        {"name": "boot", "startedAt": moments[1], "finishedAt": moments[2]},
    ]
    status = {"phase": "Ready", "machineId": f"machine-of-{name}", "steps": steps, "readyAt": moments[2]}
    (await scene.vms.merge(name, {"status": status}, "status")).ok()


async def judge(rest: Rest, pool: str, now: datetime) -> None:
    """Fail unless the summary of that day has one clone, one boot and one tag."""
    day = now.date().isoformat()
    made = (await rest.get(f"/summary?from={day}&to={day}")).ok()
    assert made["clone"]["duration"]["pool"][pool]["total"] == 2.0
    assert made["boot"]["duration"]["pool"][pool]["total"] == 5.0
    assert made["boot"]["count"] == {"total": 1, "pool": {pool: {"total": 1}}}
    assert made["tag"] == {"job": {"build-7": 1, "total": 1}}
    shown = (await rest.get("/status?view=pools")).ok()["pools"][pool]["lastBoot"]
    assert shown == now.strftime("%Y-%m-%d %H:%M:%S +0000")
