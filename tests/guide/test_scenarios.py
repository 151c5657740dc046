"""Scenarios 1 and 2 of the guide: a request that failed, and a pending queue that grows."""

import json
import re

import pytest

from tests.api import Json
from tests.commands import Run
from tests.control_plane.operator.box import Box
from tests.control_plane.operator.stage import DEADLINE, Stage, condition, metric
from tests.control_plane.operator.verdicts import put_policy, verdict
from tests.guide.walking import Shelf, Walker, once
from tests.operators import Operator
from tests.planes import Kubectl
from tests.waiting import until

pytestmark = pytest.mark.control_plane

GUIDE = {"vm", "pool", "queueFrom", "errorClass", "errorMessage", "failedAt", "retryCount", "requestId", "poolAlias"}
ONCE = {"attempts": 1, "backoff": "100ms", "maxBackoff": "1s"}
CLOSED_PORT = 1
STUCK = 2


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    return {}


@pytest.fixture
def walker(kubectl: Kubectl, stage: Stage) -> Walker:
    return Walker(kubectl, stage)


# --- scenario 1: investigating failed VM requests -----------------------------------------------------------------


async def first_failure(stage: Stage, **pool: object) -> Json:
    """A pool whose VM fails, and creates no other; return its letter."""
    box = Box(stage)
    await box.make(poison={"failures": 1})
    await box.pool(replicas=1, **{"retry": ONCE, **pool})
    return (await box.some(1))[0]


@pytest.fixture
async def reported(stage: Stage, shelf: Shelf, walker: Walker) -> str:
    """The id of a request that failed at cloning, as its pool tells it."""

    async def make() -> None:
        stage.fault("failBefore", "create")
        await first_failure(stage, aliases=["lab"])

    await once(shelf, "reported", stage, make)
    return walker.path(f"vmp/{stage.pool}", "{.status.recentFailures[0].requestId}")


async def test_check_the_dlq_for_the_request(reported: str, stage: Stage, walker: Walker, run: Run) -> None:
    (name,) = walker.names("dl", f"--field-selector=spec.requestId={reported}")
    assert name.startswith(f"{stage.pool}-")
    assert name.endswith("-clone-1")
    # As the guide looks into one queue name after the other.
    assert walker.names("dl", "-l", "vmpool.dev/queue=pending", f"--field-selector=spec.requestId={reported}") == []
    assert walker.names("dl", "-l", "vmpool.dev/queue=clone", f"--field-selector=spec.requestId={reported}") == [name]
    listed = run("dlq", "list", "--request", reported, "-n", stage.namespace, "-o", "name").stdout.split()
    assert listed == [name]
    lines = run("dlq", "list", "-n", stage.namespace, "-o", "json").stdout.splitlines()
    assert [json.loads(line)["metadata"]["name"] for line in lines if reported in line] == [name]


async def test_parse_the_json_entry_to_see_failure_details(
    reported: str, stage: Stage, walker: Walker, run: Run
) -> None:
    (letter,) = walker.get("dl", f"--field-selector=spec.requestId={reported}")["items"]
    spec = letter["spec"]
    assert spec.keys() >= GUIDE
    assert (spec["pool"], spec["poolAlias"], spec["queueFrom"], spec["retryCount"]) == (stage.pool, "lab", "clone", 0)
    assert (spec["errorClass"], spec["step"]) == ("ProviderUnavailable", "create")
    assert "HTTP 500" in spec["errorMessage"]
    (line,) = run("dlq", "list", "-r", reported, "-n", stage.namespace, "-o", "json").stdout.splitlines()
    assert json.loads(line)["spec"] == spec
    shown = run("dlq", "show", letter["metadata"]["name"], "-n", stage.namespace).stdout
    for part in ("ProviderUnavailable at step create", spec["errorMessage"], reported, spec["fingerprint"]):
        assert part in shown


async def test_common_failure_reason_template_does_not_exist(stage: Stage) -> None:
    letter = await first_failure(stage, template={"image": "centos-7-template"})
    assert letter["spec"]["errorClass"] == "InvalidTemplate"
    assert letter["spec"]["queueFrom"] == "clone"
    assert "image 'centos-7-template' is unknown here; known are" in letter["spec"]["errorMessage"]


async def test_common_failure_reason_permission_denied(stage: Stage, walker: Walker) -> None:
    # Somebody may let us in any moment: the VM waits, and says so, for as long as it may take to become ready.
    rule = stage.fault("status", "create", status=403, code="PermissionDenied")
    box = Box(stage)
    await box.make(poison={"failures": 1})
    await box.pool(replicas=1, readiness={"timeout": "5s"})

    async def told() -> bool:
        return "HTTP 403 PermissionDenied" in walker.path(f"vmp/{stage.pool}", "{.status.conditions[*].message}")

    await until(told, deadline=DEADLINE, what="the pool says that it is not permitted")
    letter = (await until(box.all, deadline=DEADLINE, what="a letter"))[0]
    stage.mend(rule)
    assert (letter["spec"]["errorClass"], letter["spec"]["queueFrom"]) == ("CredentialsRefused", "clone")
    assert letter["spec"]["errorMessage"].startswith("HTTP 403 PermissionDenied")


async def test_common_failure_reason_timeout(stage: Stage) -> None:
    stage.fault("neverReady", "create")
    letter = await first_failure(stage, readiness={"timeout": "5s"})
    assert letter["spec"]["errorClass"] == "PendingTimeout"
    assert letter["spec"]["queueFrom"] == "pending"
    assert letter["spec"]["errorMessage"] == "not ready within 5 s: the machine is Creating, not Running"


async def test_common_failure_reason_failed_to_obtain_ip(stage: Stage, run: Run) -> None:
    stage.fault("neverReady", "create")
    letter = await first_failure(stage, readiness={"timeout": "5s"})
    # What the guide calls "failed to obtain IP" is a VM that is not ready in time; its console has the cause.
    assert "network: no answer to any request" in letter["spec"]["diagnostics"]["console"]
    assert letter["spec"]["diagnostics"]["machine"].endswith("; Creating"), "no address stands there"
    told = run("dlq", "show", letter["metadata"]["name"], "-n", stage.namespace).stdout
    assert "network: no answer to any request" in told


async def test_common_failure_reason_network_card(stage: Stage) -> None:
    stage.cloud.fault("failStep", {"operation": "create", "tenant": stage.tenant.name, "step": "nic"})
    letter = await first_failure(stage)
    assert (letter["spec"]["errorClass"], letter["spec"]["errorMessage"]) == ("MachineFailed", "step nic failed")


# --- scenario 2: queue backup -------------------------------------------------------------------------------------


@pytest.fixture
async def backed_up(stage: Stage, shelf: Shelf) -> str:
    """A pool of which two clones failed and two VMs do not get ready, and the policies that watch it."""

    async def make() -> None:
        stage.fault("neverReady", "create", count=STUCK)
        stage.fault("failBefore", "create")
        await put_policy(stage, stuckVMAgeThreshold="1s", stuckVMMaxWarning=1, stuckVMMaxCritical=1)
        box = Box(stage)
        await box.make(poison={"failures": 2})
        readiness = {"timeout": "1h"}
        await box.pool(replicas=STUCK + 2, retry=ONCE, readiness=readiness, healthPolicy=stage.pool)
        await box.some(2, "clone")
        await verdict(stage, "unhealthy")

    await once(shelf, "backed-up", stage, make)
    return stage.pool


async def test_check_health_status(backed_up: str, stage: Stage, walker: Walker, run: Run) -> None:
    assert walker.path(f"health/{backed_up}", "{.status.health}") == "unhealthy"
    assert walker.shown("health", backed_up)["HEALTH"] == "unhealthy"
    assert walker.path(f"vmp/{backed_up}", '{.status.conditions[?(@.type=="Unhealthy")].status}') == "True"
    told = run("health", backed_up, "-n", stage.namespace, code=2).stdout
    assert f"HealthPolicy {stage.namespace}/{backed_up}: unhealthy 2 VMs are stuck in pending for more than 1s" in told


async def test_view_stuck_vms(backed_up: str, stage: Stage, walker: Walker, served: Operator) -> None:
    message = walker.path(f"vmp/{backed_up}", '{.status.conditions[?(@.type=="Unhealthy")].message}')
    assert message == f"{STUCK} VMs are stuck in pending for more than 1s, more than 1"
    stuck = walker.names("pvm", f"--field-selector=spec.pool={backed_up},status.phase=Pending")
    assert len(stuck) == STUCK
    of_pool = {"namespace": stage.namespace, "pool": backed_up}
    assert metric(served, "vmpool_health_queue_stuck_count", **of_pool) == STUCK
    of_policy = {"namespace": stage.namespace, "health_policy": backed_up}
    assert metric(served, "vmpool_health_stuck_vms_count", **of_policy) == STUCK


async def test_check_oldest_vm_age(backed_up: str, stage: Stage, walker: Walker, served: Operator, run: Run) -> None:
    oldest = walker.names(
        "pvm", f"--field-selector=spec.pool={backed_up},status.phase=Pending", "--sort-by=.metadata.creationTimestamp"
    )[0]
    told = run("explain", f"vm/{oldest}", "-n", stage.namespace).stdout
    assert re.search(rf"PooledVM {oldest} of VMPool {backed_up}: Pending for \d+", told)
    assert "step create was done" in told
    head, row = run("health", backed_up, "-n", stage.namespace, code=2).stdout.splitlines()[-2:]
    shown = dict(zip(head.split(), row.split(), strict=False))
    assert (shown["PENDING"], shown["STUCK"], shown["READY"]) == (str(STUCK), str(STUCK), "0")
    age = metric(
        served, "vmpool_health_queue_oldest_age_seconds", namespace=stage.namespace, pool=backed_up, queue="pending"
    )
    assert 0 < age <= int(shown["OLDEST"].removesuffix("s")) + 1


async def test_check_dlq_for_recent_failures(backed_up: str, stage: Stage, walker: Walker, run: Run) -> None:
    by_time = walker.names(
        "dl", f"--field-selector=spec.pool={backed_up},spec.queueFrom=clone", "--sort-by=.spec.failedAt"
    )
    newest = run("dlq", "list", "--pool", backed_up, "--from", "clone", "-n", stage.namespace, "-o", "name").stdout
    assert len(by_time) == 2
    assert newest.split() == by_time[::-1]


# Common causes, each where it is told.


async def pool_is(stage: Stage, walker: Walker, words: str, reason: str = "") -> str:
    """Wait until the pool's Ready condition has these words, and this reason; return its message."""

    async def told() -> str:
        one = condition(walker.get(f"vmp/{stage.pool}"), "Ready")
        return str(one["message"]) if words in one["message"] and reason in ("", one["reason"]) else ""

    return await until(told, deadline=DEADLINE, what=f"the pool says {reason} {words}")


async def test_common_cause_provider_unreachable(stage: Stage, walker: Walker, run: Run) -> None:
    await stage.put_provider(config={"endpoint": f"http://127.0.0.1:{CLOSED_PORT}"})
    await stage.put_pool(replicas=1)
    await stage.provider_says("Ready", "False")
    message = await pool_is(stage, walker, "cannot be reached", "ProviderUnavailable")
    assert walker.shown("vmprov", stage.provider)["STATUS"] == "ProviderUnavailable"
    assert message in run("explain", f"pool/{stage.pool}", "-n", stage.namespace).stdout


async def test_common_cause_no_resources(stage: Stage, walker: Walker) -> None:
    stage.fault("status", "create", status=403, code="QuotaExceeded")
    await stage.put_provider()
    await stage.put_pool(replicas=1)
    message = await pool_is(stage, walker, "could not be created yet")
    assert "1 could not be created yet: HTTP 403 QuotaExceeded" in message
    (vm,) = await stage.vms_of()
    (step,) = vm["status"]["steps"]
    assert step["reason"] == "ProviderExhausted"
    assert walker.shown("vmprov", stage.provider)["STATUS"] == "Reachable"


async def test_common_cause_cannot_reach_vms(stage: Stage, run: Run) -> None:
    readiness = {"tcpSocket": {"port": CLOSED_PORT}, "interval": "1s", "timeout": "5s"}
    letter = await first_failure(stage, readiness=readiness)
    assert letter["spec"]["errorClass"] == "PendingTimeout"
    assert f"nothing answered on TCP port {CLOSED_PORT} of 127." in letter["spec"]["errorMessage"]
    told = run("explain", f"pool/{stage.pool}", "-n", stage.namespace).stdout
    assert letter["spec"]["errorMessage"] in told


async def test_common_cause_no_dhcp(backed_up: str, stage: Stage, walker: Walker) -> None:
    vms = walker.get("pvm", f"--field-selector=spec.pool={backed_up}")["items"]
    stuck = [one for one in vms if one["status"]["phase"] == "Pending"]
    assert len(stuck) == STUCK
    for one in stuck:
        assert one["status"]["machineId"], "it has a machine"
        assert not one["status"].get("addresses"), "and no address"


async def test_common_cause_wrong_template_name(stage: Stage, walker: Walker) -> None:
    await stage.put_provider()
    await stage.put_pool(replicas=1, template={"image": "centos-7-template"})
    await stage.pool_says("Stalled", "True", "InvalidTemplate")
    assert "image 'centos-7-template' is unknown here" in await pool_is(stage, walker, "", "InvalidTemplate")
    shown = walker.shown("vmp", stage.pool)
    assert (shown["STATUS"], shown["STALLED"]) == ("InvalidTemplate", "True")


async def test_common_cause_bad_credentials(stage: Stage, walker: Walker) -> None:
    await stage.put_secret(stage.provider, apiKey="no-such-key")
    await stage.put_provider(secret=stage.provider)
    await stage.put_pool(replicas=1)
    message = await stage.provider_says("Stalled", "True", "CredentialsRefused")
    assert message.startswith("HTTP 401 Unauthorized")
    shown = walker.shown("vmprov", stage.provider)
    assert (shown["STATUS"], shown["STALLED"]) == ("CredentialsRefused", "True")
    assert message in await pool_is(stage, walker, "HTTP 401", "CredentialsRefused")
