"""The guide's third part, "Health Checks": what gets monitored, when a pool is what, and where it is seen."""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api import Json
from tests.clouds import SimCloud, Tenant
from tests.control_plane.operator.stage import Stage
from tests.control_plane.operator.verdicts import judged, logged, put_policy, verdict, write_letters
from tests.guide.terminal import Typed, pool_of
from tests.objects import thing
from tests.operators import Operator
from vmpool.api import keys
from vmpool.cli.metricspage import GUIDE_NAMES
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane

POLICY, POOL, ASKED = "fleet", "centos-7", "on-demand"
NOBODY = "00000000-0000-4000-8000-000000000001"
SIZES = {"pending": 2, "ready": 2, "completed": 1}
LETTERS = {"clone": 2, "pending": 1}
GUIDE = {
    "vmpooler.health.status": 1,
    "vmpooler.health.dlq.total_size": 3,
    "vmpooler.health.stuck_vms.count": 2,
    "vmpooler.health.orphaned_metadata.count": 1,
    "vmpooler.health.queue.<pool_name>.pending.size": 2,
    "vmpooler.health.queue.<pool_name>.pending.oldest_age": "pending",
    "vmpooler.health.queue.<pool_name>.pending.stuck_count": 2,
    "vmpooler.health.queue.<pool_name>.ready.size": 2,
    "vmpooler.health.queue.<pool_name>.ready.oldest_age": "ready",
    "vmpooler.health.queue.<pool_name>.completed.size": 1,
    "vmpooler.health.dlq.<queue_type>.size": 3,
    "vmpooler.health.tasks.clone.active": 1,
    "vmpooler.health.tasks.ondemand.active": 1,
    "vmpooler.health.tasks.ondemand.pending": 1,
}
"""Every metric of the guide, and what it is in the situation below; an age is that of the oldest VM in the queue."""


@pytest.fixture(scope="module")
def typed(plane: ControlPlane, shared_namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Typed:
    return Typed(plane, shared_namespace, tmp_path_factory.mktemp("typed"))


@dataclass(frozen=True)
class Seen:
    """What was there to see at one moment."""

    metrics: str
    vms: list[Json]
    policy: Json
    health: str
    """What ``vmpool health`` says."""
    lines: list[str]
    """Of the log."""

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of the situation's pool, or policy, with these labels; there must be one."""
        found = samples(self.metrics, name, **labels)
        assert found, f"nothing is exported as {name}"
        return sum(found)

    def ages(self, phase: str) -> list[float]:
        """How old the pool's VMs in a phase were at the last check, in seconds."""
        checked = self.value("vmpool_health_last_check_timestamp_seconds")
        mine = [vm for vm in self.vms if vm["spec"]["pool"] == POOL and vm["status"]["phase"] == phase]
        since = [vm["status"].get("phaseSince", vm["metadata"]["creationTimestamp"]) for vm in mine]
        return [checked - datetime.fromisoformat(one).timestamp() for one in since]

    def row(self) -> dict[str, str]:
        """The pool's line of ``vmpool health`` by its heads."""
        heads = next(line for line in self.health.splitlines() if line.startswith("POOL")).split()
        mine = next(line for line in self.health.splitlines() if line.startswith(f"{POOL} "))
        return dict(zip(heads, mine.split(maxsplit=len(heads) - 1), strict=True))


def samples(text: str, name: str, **labels: str) -> list[float]:
    """Samples of the situation's pool or policy; of another pool of the policy only what is summed up there."""
    return [
        one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
        if one.name == name
        and labels.items() <= one.labels.items()
        and one.labels.get("pool", POOL) == POOL
        and one.labels.get("health_policy", POLICY) == POLICY
    ]


def _arrange(typed: Typed, cloud: SimCloud, tenant: Tenant) -> None:
    """Bring about every number that the guide speaks of; each is a different step of a VM's life."""

    def fault(action: str, operation: str, **fields: Any) -> None:
        cloud.fault(action, {"operation": operation, "tenant": tenant.name}, **fields)

    limits = {"stuckVMAgeThreshold": "1s", "dlqMaxWarning": 1}
    typed.apply(
        thing("HealthPolicy", POLICY, {"interval": "1s", "thresholds": limits}),
        *pool_of(cloud, tenant, POOL, replicas=2, healthPolicy=POLICY),
        *pool_of(cloud, cloud.tenant(), ASKED, replicas=1, maxVMs=1, healthPolicy=POLICY),
    )
    for name in (POOL, ASKED):
        typed.shell(f"kubectl wait --for=condition=Ready vmp/{name} --timeout=60s")
    uid = typed.get(f"vmp {POOL}")["metadata"]["uid"]
    numbered = [queue for queue, count in LETTERS.items() for _ in range(count)]
    typed.apply(*(_letter(number, queue, uid) for number, queue in enumerate(numbered)))
    # The first request has the pool's only VM, the second waits for another one.
    for number, phase in enumerate(("Bound", "Pending")):
        body = thing("VMClaim", f"request-{number}", {"requests": [{"pool": ASKED}]})
        body["metadata"]["annotations"] = {keys.ANNOTATION_ONDEMAND: json.dumps({"id": f"request-{number}"})}
        typed.apply(body)
        typed.shell(f"kubectl wait --for=jsonpath='{{.status.phase}}'={phase} vmc/request-{number} --timeout=60s")
    identity = typed.get(f"configmap {keys.IDENTITY_CONFIGMAP}")["data"]["installId"]
    cloud.made(tenant, tags={keys.TAG_INSTALL: identity, keys.TAG_UID: NOBODY, keys.TAG_POOL: POOL})
    # One that cannot be destroyed, one that never gets ready, one whose machine takes its time.
    fault("failBefore", "delete")
    victim = typed.items(f"pvm --field-selector spec.pool={POOL}")[0]["metadata"]["name"]
    typed.shell(f"kubectl delete pvm {victim} --wait=false")
    ready = f"kubectl get pvm --field-selector spec.pool={POOL} --no-headers | grep -c ' Ready ' || true"
    typed.wait(lambda: victim not in typed.shell("kubectl get pvm | grep ' Ready ' || true"), "it is on its way out")
    typed.wait(lambda: typed.shell(ready).strip() == "2", "its place is filled")
    fault("neverReady", "create", count=1)
    typed.shell(f"kubectl scale vmp/{POOL} --replicas=3")
    typed.wait(lambda: cloud.faults()[-1]["fired"] == 1, "one never gets ready")
    fault("slow", "create", seconds=60, count=1)
    typed.shell(f"kubectl scale vmp/{POOL} --replicas=4")


def _letter(number: int, queue: str, pool_uid: str) -> Json:
    spec = {
        "queue": "kept-elsewhere",
        "vm": f"{POOL}-{number}",
        "vmUid": f"uid-{number}",
        "pool": POOL,
        "poolUid": pool_uid,
        "queueFrom": queue,
        "errorClass": "InvalidTemplate",
        "errorMessage": "template does not exist",
        "failedAt": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "provider": POOL,
        "step": "create",
        "fingerprint": "abc123",
    }
    return thing("DeadLetter", f"{POOL}-{number}", spec)


@pytest.fixture(scope="module")
def seen(served: Operator, typed: Typed, shared_simcloud: SimCloud) -> Iterator[Seen]:
    """A pool with two VMs pending, two ready and one completed, dead letters, an orphan and two requests."""
    asyncio.run(served.ready())
    _arrange(typed, shared_simcloud, shared_simcloud.tenant())

    def told() -> str:
        text = served.http("/metrics")
        sizes = {queue: sum(samples(text, "vmpool_health_queue_size", queue=queue)) for queue in SIZES}
        stuck = sum(samples(text, "vmpool_health_stuck_vms_count"))
        orphans = sum(samples(text, "vmpool_health_orphaned_count"))
        return text if sizes == SIZES and (stuck, orphans) == (2, 1) else ""

    text = typed.wait(told, "the situation is measured")
    found = Seen(
        metrics=text,
        vms=typed.items("pvm"),
        policy=typed.get(f"health {POLICY}"),
        health=typed.shell(f"vmpool health {POLICY}", code=1),
        lines=served.lines().splitlines(),
    )
    yield found
    shared_simcloud.clear_faults()


# --- what gets monitored ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", SIZES)
def test_queue_sizes(seen: Seen, queue: str) -> None:
    """Pending, ready, completed."""
    assert seen.value("vmpool_health_queue_size", queue=queue) == SIZES[queue]
    assert seen.row()[queue.upper()] == str(SIZES[queue])


@pytest.mark.parametrize("queue", SIZES)
def test_queue_ages(seen: Seen, queue: str) -> None:
    """Oldest VM, average age."""
    ages = seen.ages(queue.capitalize())
    assert len(ages) == SIZES[queue]
    oldest = seen.value("vmpool_health_queue_oldest_age_seconds", queue=queue)
    average = seen.value("vmpool_health_queue_average_age_seconds", queue=queue)
    assert oldest == pytest.approx(max(ages), abs=0.01)
    assert average == pytest.approx(sum(ages) / len(ages), abs=0.01)
    if queue == "pending":
        assert int(seen.row()["OLDEST"].removesuffix("s")) >= int(oldest)


def test_stuck_vms_in_pending_queue_longer_than_threshold(seen: Seen) -> None:
    assert seen.value("vmpool_health_queue_stuck_count", queue="pending") == 2
    assert seen.value("vmpool_health_stuck_vms_count") == 2
    assert seen.row()["STUCK"] == "2"


def test_dlq_size(seen: Seen) -> None:
    assert seen.value("vmpool_health_dlq_total_size") == sum(LETTERS.values())
    for queue in ("pending", "clone", "ready", "tasks"):
        assert seen.value("vmpool_health_dlq_size", queue=queue) == LETTERS.get(queue, 0)
    assert seen.row()["DLQ"] == "3"


def test_orphaned_metadata_count(seen: Seen) -> None:
    """The one machine that nobody owns; VMs that were destroyed properly are not orphans."""
    assert seen.value("vmpool_health_orphaned_count") == 1


def test_task_queue_sizes_clone(seen: Seen) -> None:
    assert seen.value("vmpool_health_tasks", task="clone", state="active") == 1
    without = [vm for vm in seen.vms if vm["status"]["phase"] == "Pending" and "machineId" not in vm["status"]]
    assert [vm["spec"]["pool"] for vm in without] == [POOL]


def test_task_queue_sizes_on_demand(seen: Seen) -> None:
    assert seen.value("vmpool_health_tasks", task="ondemand", state="active") == 1
    assert seen.value("vmpool_health_tasks", task="ondemand", state="pending") == 1


def test_overall_health_status(seen: Seen) -> None:
    """0=healthy, 1=degraded, 2=unhealthy."""
    assert seen.value("vmpool_health_status") == 1
    assert seen.policy["status"]["health"] == "degraded"
    assert seen.row()["HEALTH"] == "degraded"
    assert f"HealthPolicy {seen.policy['metadata']['namespace']}/{POLICY}: degraded" in seen.health


# --- exposed metrics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GUIDE_NAMES, ids=lambda name: name.guide)
def test_exposed_metrics(seen: Seen, name: Any) -> None:
    """The series that the guide's name is recorded from is exported, with the number of the situation."""
    parts = re.fullmatch(r"(\w+)(?:\{(.+)\})?", name.source)
    assert parts is not None
    labels = dict(re.findall(r'(\w+)="(\w+)"', parts[2] or ""))
    wanted = GUIDE[name.guide]
    found = seen.value(parts[1], **labels)
    if isinstance(wanted, str):
        assert found == pytest.approx(max(seen.ages(wanted.capitalize())), abs=0.01)
    else:
        assert found == wanted


def test_every_metric_of_the_guide_is_there() -> None:
    assert [name.guide for name in GUIDE_NAMES] == list(GUIDE)


# --- viewing health status --------------------------------------------------------------------------------------------


def test_via_logs(seen: Seen) -> None:
    """[*] [health] Status: HEALTHY | Queues: P=45 R=230 C=12 | DLQ=25 | Stuck=3 | Orphaned=5"""
    lines = [json.loads(line)["event"] for line in seen.lines if "[*] [health] Status:" in line]
    assert "[*] [health] Status: DEGRADED | Queues: P=2 R=2 C=1 | DLQ=3 | Stuck=2 | Orphaned=1" in lines[-3:]


def test_get_current_health_status(seen: Seen, typed: Typed) -> None:
    lines = [line.split() for line in typed.shell(f"kubectl get health {POLICY}").splitlines()]
    assert lines[0][:4] == ["NAME", "HEALTH", "SINCE", "POOLS"]
    assert (lines[1][:2], lines[1][3]) == ([POLICY, "degraded"], "2")
    typed.shell(f"kubectl wait --for=condition=Degraded health/{POLICY} --timeout=10s")


def test_get_specific_health_metric(seen: Seen, typed: Typed, served: Operator) -> None:
    """``status`` and ``last_check``."""
    assert typed.shell(f"kubectl get health {POLICY} -o jsonpath='{{.status.health}}'") == "degraded"
    since = datetime.fromisoformat(typed.shell(f"kubectl get health {POLICY} -o jsonpath='{{.status.since}}'"))
    (last,) = samples(served.http("/metrics"), "vmpool_health_last_check_timestamp_seconds")
    assert since.timestamp() <= last <= datetime.now(UTC).timestamp()
    assert last > seen.value("vmpool_health_last_check_timestamp_seconds"), "it goes on checking"


def test_the_configuration_has_the_defaults_of_the_guide(typed: Typed, served: Operator) -> None:
    typed.apply(thing("HealthPolicy", "defaults", {"thresholds": {}}))
    spec = typed.get("health defaults")["spec"]
    guide = {
        "pendingQueueMax": 100,
        "readyQueueMax": 500,
        "dlqMaxWarning": 100,
        "dlqMaxCritical": 1000,
        "stuckVMAgeThreshold": "2h",
        "stuckVMMaxWarning": 10,
        "stuckVMMaxCritical": 50,
    }
    assert spec["interval"] == "5m"
    assert guide.items() <= spec["thresholds"].items()


# --- status levels ----------------------------------------------------------------------------------------------------


async def test_healthy_all_metrics_within_normal_thresholds(stage: Stage, served: Operator) -> None:
    await put_policy(stage)
    await judged(stage, 1)
    await stage.full(1)
    assert (await verdict(stage, "healthy"))["message"] == "every number is within its limits"
    await logged(stage, served, "HEALTHY")


async def test_degraded_dlq_above_warning(stage: Stage) -> None:
    await put_policy(stage, dlqMaxWarning=1, dlqMaxCritical=2)
    await judged(stage, 0)
    await write_letters(stage, range(1))
    await verdict(stage, "healthy")
    await write_letters(stage, range(1, 2))
    assert "2 dead letters, more than 1" in (await verdict(stage, "degraded"))["message"]


async def test_unhealthy_dlq_above_critical(stage: Stage) -> None:
    await put_policy(stage, dlqMaxWarning=1, dlqMaxCritical=2)
    await judged(stage, 0)
    await write_letters(stage, range(3))
    assert "3 dead letters, more than 2" in (await verdict(stage, "unhealthy"))["message"]


@pytest.mark.parametrize(("replicas", "health"), [(2, "degraded"), (3, "unhealthy")])
async def test_queue_sizes_elevated_or_backed_up(stage: Stage, replicas: int, health: str) -> None:
    """Above the limit is degraded, above twice of it unhealthy; both of the ready queue."""
    await put_policy(stage, readyQueueMax=1)
    await judged(stage, replicas)
    limit = {"degraded": "1", "unhealthy": "2 (twice 1)"}[health]
    assert f"{replicas} VMs are ready, more than {limit}" in (await verdict(stage, health))["message"]


@pytest.mark.parametrize(("replicas", "health"), [(2, "degraded"), (3, "unhealthy")])
async def test_pending_queue_elevated_or_backed_up(stage: Stage, replicas: int, health: str) -> None:
    stage.fault("neverReady", "create")
    await put_policy(stage, pendingQueueMax=1)
    await judged(stage, replicas)
    limit = {"degraded": "1", "unhealthy": "2 (twice 1)"}[health]
    assert f"{replicas} VMs are pending, more than {limit}" in (await verdict(stage, health))["message"]


async def test_unhealthy_many_stuck_vms(stage: Stage) -> None:
    stage.fault("neverReady", "create")
    await put_policy(stage, stuckVMAgeThreshold="1s", stuckVMMaxWarning=1, stuckVMMaxCritical=2)
    await judged(stage, 3)
    told = (await verdict(stage, "unhealthy"))["message"]
    assert "3 VMs are stuck in pending for more than 1s, more than 2" in told
