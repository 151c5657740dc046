"""What goes wrong with one VM: told once, kept for a human within bounds, replaced carefully, and never multiplied."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from tests.api import Json
from tests.control_plane.operator.stage import DEADLINE, OTHER_IMAGE, Stage, condition, metric, names, phases
from tests.objects import LONG_AGO
from tests.operators import Operator
from tests.waiting import until

pytestmark = pytest.mark.control_plane


async def failures(stage: Stage) -> list[Json]:
    """The pool's recent failures, newest first."""
    return list((await stage.status()).get("recentFailures", ()))


async def quarantined(stage: Stage, count: int) -> list[Json]:
    """Wait until so many VMs are in quarantine, and return them."""

    async def kept() -> bool:
        return len(await stage.vms_of(phase="Quarantined")) == count

    await until(kept, deadline=DEADLINE, what=f"{count} VMs in quarantine")
    return await stage.vms_of(phase="Quarantined")


async def test_a_machine_that_vanishes_is_proven_gone_told_and_replaced(stage: Stage, served: Operator) -> None:
    victim, other = await stage.filled(2)
    name = victim["metadata"]["name"]
    stage.cloud.fate(victim["status"]["machineId"], "vanish")
    await stage.in_phase(name, "Gone")
    assert other["metadata"]["name"] in names(await stage.full(2))

    (failure,) = await failures(stage)
    told = {"vm": name, "provider": stage.provider, "step": "probe", "errorClass": "MachineGone", "retryCount": 0}
    assert told.items() <= failure.items()
    assert victim["status"]["machineId"] in failure["message"]
    (event,) = [one for one in await stage.events(stage.pool) if one["reason"] == "MachineGone"]
    assert event["type"] == "Warning"
    assert event["message"] == f"{name}: {failure['message']}"
    assert metric(served, "vmpool_vm_failures_total", pool=stage.pool, error_class="MachineGone") == 1
    (successor,) = [vm for vm in await stage.vms_of() if vm["spec"]["requestId"] == failure["requestId"]]
    assert successor["spec"]["retryCount"] == 1


async def test_a_machine_that_is_hidden_for_a_moment_is_kept(stage: Stage, served: Operator) -> None:
    before = names(await stage.filled(2))
    # One listing without it is no proof, and its id is found.
    stage.fault("emptyList", "list", count=3)
    await until(lambda: stage.cloud.faults()[-1]["fired"] == 3, deadline=DEADLINE, what="three empty listings")
    await stage.looked(served)
    assert names(await stage.full(2)) == before
    assert not await failures(stage)


async def test_a_machine_that_never_boots_is_quarantined_until_its_time_is_over(stage: Stage) -> None:
    await stage.put_provider()
    stage.fault("neverReady", "create", count=1)
    await stage.put_pool(replicas=1, readiness={"timeout": "5s"}, recycle={"quarantineTTL": "1h"})
    (kept,) = await quarantined(stage, 1)
    assert kept["status"]["reason"] == "PendingTimeout"
    assert kept["status"]["message"] == "not ready within 5 s: the machine is Creating, not Running"
    (healthy,) = await stage.full(1)
    assert healthy["spec"]["requestId"] == kept["spec"]["requestId"]
    assert stage.alive() == {kept["status"]["machineId"], healthy["status"]["machineId"]}
    (failure,) = await failures(stage)
    assert failure["errorClass"] == "PendingTimeout"
    assert failure["step"] == "boot"

    name = kept["metadata"]["name"]
    (await stage.vms.merge(name, {"status": {"expiresAt": LONG_AGO}}, "status")).ok()
    await stage.in_phase(name, "Gone")
    assert stage.alive() == {healthy["status"]["machineId"]}
    assert len(await failures(stage)) == 1, "the end of a quarantine is no second failure"


async def test_quarantine_has_two_places_and_the_oldest_makes_room(stage: Stage) -> None:
    await stage.filled(1)
    rule = stage.fault("failStep", "create")
    await stage.change(replicas=2)
    seen: list[str] = []

    async def watched(least: int) -> bool:
        kept = await stage.vms_of(phase="Quarantined")
        assert len(kept) <= 2, "limits.quarantined is 2"
        seen.extend(name for name in names(kept) if name not in seen)
        return len(seen) >= least

    for count in (1, 2, 4):
        await until(lambda count=count: watched(count), deadline=DEADLINE, what=f"{count} VMs were quarantined")
    stage.mend(rule)
    await stage.full(2)
    left = await quarantined(stage, 2)
    assert {vm["status"]["reason"] for vm in left} == {"MachineFailed"}
    recorded = [failure["vm"] for failure in await failures(stage)]
    assert names(left) == set(recorded[:2]), "the two newest stay"
    assert await stage.phase(seen[0]) == "Gone"
    assert phases(await stage.vms_of()) == {"Ready": 2, "Quarantined": 2}


async def test_a_lowered_limit_empties_the_quarantine(stage: Stage) -> None:
    vms = await stage.filled(2)
    for vm in vms:
        stage.cloud.fate(vm["status"]["machineId"], "fail")
    kept = await quarantined(stage, 2)
    assert names(kept) == names(vms)
    assert {vm["status"]["message"] for vm in kept} == {"failed by hand"}
    await stage.full(2)
    await stage.change(limits={"quarantined": 0})
    await quarantined(stage, 0)
    assert len(await stage.full(2)) == len(stage.alive()) == 2


async def test_failing_creates_slow_down_to_one_at_a_time_and_recover(stage: Stage) -> None:
    rule = stage.fault("failBefore", "create")
    await stage.put_provider(circuitBreaker={"failures": 1000, "pause": "1s"})
    await stage.put_pool(replicas=5, retry={"attempts": 1, "backoff": "100ms", "maxBackoff": "1s"})

    async def slow() -> bool:
        window = (await stage.status()).get("creation", {}).get("window")
        return window == 1 and len(await stage.vms_of()) <= 1

    await until(slow, deadline=DEADLINE, what="creation is slowed down to one VM at a time")
    fired = stage.cloud.faults()[-1]["fired"]

    async def three_more() -> bool:
        assert len(await stage.vms_of()) <= 1, "after failures there is one at a time"
        return bool(stage.cloud.faults()[-1]["fired"] >= fired + 3)

    await until(three_more, deadline=DEADLINE, what="three more tries")
    message = condition({"status": await stage.status()}, "Ready")["message"]
    assert "creation is slowed down after " in message
    assert {failure["errorClass"] for failure in await failures(stage)} == {"ProviderUnavailable"}
    stage.mend(rule)
    await stage.full(5)

    async def at_full_speed() -> bool:
        return "creation" not in await stage.status()

    await until(at_full_speed, deadline=DEADLINE, what="five successes have ended the slow start")


async def test_an_unknown_image_stalls_the_pool_until_the_template_is_fixed(stage: Stage) -> None:
    await stage.put_provider()
    await stage.put_pool(replicas=3, template={"image": "debian-99"})
    message = await stage.pool_says("Stalled", "True", "InvalidTemplate")
    assert "debian-99" in message
    assert "debian-99" in await stage.pool_says("Ready", "False", "InvalidTemplate")
    assert not stage.history()
    warnings = {event["reason"] for event in await stage.events(stage.pool) if event["type"] == "Warning"}
    assert warnings == {"InvalidTemplate"}

    await stage.change(template={"image": OTHER_IMAGE})
    await stage.full(3)
    assert {one["type"] for one in (await stage.status())["conditions"]} == {"Ready"}


# --- TCP readiness ----------------------------------------------------------------------------------------------


class Guests:
    """Servers that answer in the place of machines, each on its machine's own loopback address."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._servers: dict[str, asyncio.Server] = {}
        with socket.create_server(("127.0.0.1", 0)) as chosen:
            self.port = int(chosen.getsockname()[1])

    async def answer(self, address: str) -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), address, self.port)
        self._servers[address] = await self._stack.enter_async_context(server)

    async def hush(self, address: str) -> None:
        server = self._servers.pop(address)
        server.close()
        await server.wait_closed()


@pytest.fixture
async def guests() -> AsyncIterator[Guests]:
    async with AsyncExitStack() as stack:
        yield Guests(stack)


def probes(served: Operator) -> Callable[[int], Callable[[], bool]]:
    """``probes(served)(n)()`` is true once n more probes have been made."""
    before = metric(served, "vmpool_probes_total")
    return lambda more: lambda: metric(served, "vmpool_probes_total") >= before + more


async def test_only_a_machine_that_answers_is_ready_and_a_silent_one_is_replaced(
    stage: Stage, served: Operator, guests: Guests
) -> None:
    await stage.put_provider()
    readiness = {"tcpSocket": {"port": guests.port}, "interval": "1s", "failureThreshold": 2, "timeout": "10m"}
    await stage.put_pool(replicas=1, readiness=readiness)
    machine = await until(lambda: next(iter(stage.history()), None), deadline=DEADLINE, what="a machine")
    (address,) = await until(lambda: stage.history()[0]["addresses"], deadline=DEADLINE, what="its address")
    await until(probes(served)(3), deadline=DEADLINE, what="three probes")
    (vm,) = await stage.vms_of()
    assert vm["status"]["phase"] == "Pending"

    await guests.answer(address)
    (ready,) = await stage.full(1)
    assert ready["status"]["addresses"] == [address]
    assert "boot" in {step["name"] for step in ready["status"]["steps"]}
    await until(probes(served)(2), deadline=DEADLINE, what="it is probed again")
    await stage.full(1)

    await guests.hush(address)
    (kept,) = await quarantined(stage, 1)
    assert kept["status"]["reason"] == "NotAnswering"
    assert f"2 probes in a row of TCP port {guests.port} at {address}" in kept["status"]["message"]
    assert machine["id"] in stage.alive(), "it is kept for a human"
    (failure,) = await failures(stage)
    assert failure["step"] == "probe"
    second = await until(lambda: stage.history()[1]["addresses"], deadline=DEADLINE, what="the successor's address")
    await guests.answer(second[0])
    await stage.full(1)
