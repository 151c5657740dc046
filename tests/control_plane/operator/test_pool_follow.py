"""A pool follows its spec: it fills, grows, shrinks in order, and replaces what people take out of its hands."""

import secrets
from datetime import UTC, datetime, timedelta

import pytest

from tests.api import Json
from tests.control_plane.operator.stage import DEADLINE, Stage, condition, machine_ids, names, phases
from tests.operators import Operator
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.api import keys

pytestmark = pytest.mark.control_plane

WIDTH = 120
SLOW_BOOT = {"operation": "create", "step": "boot"}


def scale(kubectl: Kubectl, stage: Stage, replicas: int) -> None:
    kubectl("scale", f"vmpool/{stage.pool}", f"--replicas={replicas}", "-n", stage.namespace)


async def test_apply_fills_and_kubectl_wait_says_when(stage: Stage, kubectl: Kubectl) -> None:
    await stage.put_provider()
    await stage.put_pool(replicas=5)
    kubectl("wait", "--for=condition=Ready", f"vmpool/{stage.pool}", "-n", stage.namespace, f"--timeout={DEADLINE:g}s")

    vms = await stage.full(5)
    assert machine_ids(vms) == stage.alive()
    status = await stage.status()
    counts = {"desiredReplicas": 5, "replicas": 5, "readyReplicas": 5, "pendingReplicas": 0, "drainingReplicas": 0}
    assert counts.items() <= status.items()
    assert status["selector"] == f"{keys.LABEL_POOL}={stage.pool}"
    assert not status.get("recentFailures")
    assert {one["type"] for one in status["conditions"]} == {"Ready"}
    assert condition({"status": status}, "Ready")["message"] == "5 of 5 ready"
    for vm in vms:
        name = vm["metadata"]["name"]
        assert name.startswith(f"{stage.pool}-")
        assert vm["metadata"]["finalizers"] == [keys.FINALIZER_MACHINE]
        assert vm["metadata"]["labels"] == {keys.LABEL_POOL: stage.pool}
        assert vm["spec"]["hostName"] == name
        assert vm["status"]["addresses"]
        assert {step["name"] for step in vm["status"]["steps"]} >= {"create"}


async def test_machines_carry_the_name_and_our_tags(stage: Stage) -> None:
    await stage.filled(2, hostName={"prefix": f"h{stage.pool[-6:]}-", "domain": "lab.example.com"})
    vms = {vm["metadata"]["uid"]: vm for vm in await stage.vms_of()}
    machines = stage.history()
    assert {machine["tags"][keys.TAG_UID] for machine in machines} == vms.keys()
    for machine in machines:
        vm = vms[machine["tags"][keys.TAG_UID]]
        assert machine["name"] == vm["metadata"]["name"]
        assert machine["hardware"]["hostname"] == f"{vm['metadata']['name']}.lab.example.com"
        assert machine["tags"][keys.TAG_POOL] == stage.pool
        assert machine["tags"].keys() == {keys.TAG_INSTALL, keys.TAG_UID, keys.TAG_POOL}


async def test_kubectl_scale_up_and_down(stage: Stage, kubectl: Kubectl) -> None:
    first = await stage.filled(2)
    scale(kubectl, stage, 6)
    more = await stage.full(6)
    assert names(first) <= names(more), "those that were there stay"
    scale(kubectl, stage, 1)
    (left,) = await stage.full(1)
    assert left["metadata"]["name"] in names(more)
    assert machine_ids([left]) == stage.alive()
    scale(kubectl, stage, 0)
    await stage.full(0)
    assert not stage.alive()
    assert {machine["endedBy"] for machine in stage.history()} == {"deleted"}
    assert stage.high_water() == 6
    assert not (await stage.status()).get("recentFailures")


async def test_surplus_goes_pending_newest_first_then_ready_oldest(stage: Stage) -> None:
    (oldest,) = await stage.filled(1)
    await stage.change(replicas=2)
    both = await stage.full(2)
    slow = stage.cloud.fault("slow", {**SLOW_BOOT, "tenant": stage.tenant.name}, seconds=600)
    first = await _one_more_pending(stage, 3)
    # The server's creation times are whole seconds: the next one has to be a later one.
    made_at = datetime.fromisoformat(first["metadata"]["creationTimestamp"])
    await until(lambda: datetime.now(UTC) > made_at + timedelta(seconds=1), what="another second has begun")
    second = await _one_more_pending(stage, 4)

    await stage.change(replicas=3)
    await stage.in_phase(second["metadata"]["name"], "Gone")
    assert phases(await stage.vms_of()) == {"Ready": 2, "Pending": 1}
    await stage.change(replicas=1)
    await stage.in_phase(first["metadata"]["name"], "Gone")
    (left,) = await stage.full(1)
    assert names([left]) == names(both) - names([oldest])
    stage.mend(slow)


async def _one_more_pending(stage: Stage, replicas: int) -> Json:
    before = names(await stage.vms_of())
    await stage.change(replicas=replicas)

    async def made() -> Json | None:
        fresh = [vm for vm in await stage.vms_of(phase="Pending") if vm["metadata"]["name"] not in before]
        return fresh[0] if fresh and "machineId" in fresh[0]["status"] else None

    return await until(made, deadline=DEADLINE, what=f"a pending VM with a machine besides {before}")


async def test_a_deleted_vm_is_replaced_and_its_machine_destroyed(stage: Stage, kubectl: Kubectl) -> None:
    victim, other = await stage.filled(2)
    kubectl("delete", "pvm", victim["metadata"]["name"], "-n", stage.namespace, f"--timeout={DEADLINE:g}s")
    (machine,) = [one for one in stage.history() if one["id"] == victim["status"]["machineId"]]
    assert machine["endedBy"] == "deleted", "the object goes only when its machine is gone"
    after = await stage.full(2)
    assert other["metadata"]["name"] in names(after)
    assert victim["metadata"]["name"] not in names(after)
    assert not (await stage.status()).get("recentFailures"), "a deletion is nobody's failure"


async def test_what_people_see_fits_a_terminal(stage: Stage, kubectl: Kubectl) -> None:
    name = f"debian-12-large-{secrets.token_hex(2)}"
    stage.pool, stage.provider = name, f"simulated-one-{secrets.token_hex(3)}"
    await stage.filled(3)

    async def counted() -> bool:
        # A mere change of the machine count waits for its turn to be written.
        return (await stage.providers.get(stage.provider)).ok()["status"].get("machines") == 3

    await until(counted, deadline=DEADLINE, what="the provider shows its machines")
    shown = {
        kind: [line.rstrip() for line in kubectl("get", kind, "-n", stage.namespace).splitlines()]
        for kind in ("vmp", "pvm", "vmprov")
    }
    assert not [line for lines in shown.values() for line in lines if len(line) > WIDTH]
    (pool,) = [line.split() for line in shown["vmp"] if line.startswith(f"{name} ")]
    assert pool[1:3] == ["3", "3"]
    assert "Filled" in pool
    vms = [line for line in shown["pvm"] if line.startswith(f"{name}-")]
    assert len(vms) == 3
    assert all(" Ready " in line and " 127." in line for line in vms)
    (provider,) = [line for line in shown["vmprov"] if line.startswith(stage.provider)]
    assert provider.split()[1:5] == ["simulated", "3", "Closed", "Reachable"]


async def test_max_vms_bounds_everything_that_is_there(stage: Stage, served: Operator) -> None:
    await stage.filled(3, maxVMs=4)
    victims = await stage.vms_of()
    never = stage.fault("neverGone", "delete")
    for vm in victims[:2]:
        (await stage.vms.delete(vm["metadata"]["name"])).ok()

    async def says_why() -> bool:
        status = await stage.status()
        return "maxVMs is 4" in condition({"status": status}, "Ready")["message"] and status["readyReplicas"] == 2

    await until(says_why, deadline=DEADLINE, what="the pool says that maxVMs holds it back")
    await stage.looked(served)
    assert len(await stage.vms_of()) == 4
    stage.mend(never)
    await stage.full(3)
    assert stage.high_water() == 4
