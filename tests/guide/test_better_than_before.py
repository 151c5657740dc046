"""Where VMPooler's code did not keep what its guide promised: each point here keeps it."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.api import Json
from tests.control_plane.operator.box import Box
from tests.control_plane.operator.purges import NEVER, Purge
from tests.control_plane.operator.stage import DEADLINE, Stage, metric, names
from tests.control_plane.operator.verdicts import (
    checked,
    judged,
    logged,
    policies,
    put_policy,
    verdict,
    write_letters,
)
from tests.guide.terminal import Typed
from tests.objects import thing
from tests.operators import Operator
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane

ONCE = {"attempts": 1, "backoff": "100ms", "maxBackoff": "1s"}
NOT_BY_ITSELF = {"backoff": "10m", "maxBackoff": "10m"}
RULES = Path(__file__).parents[2] / "deploy/monitoring/rules.yaml"
ALERTS = {
    "VMPoolerUnhealthy": "vmpool_health_status",
    "VMPoolerHighDLQ": "vmpool_health_dlq_total_size",
    "VMPoolerStuckVMs": "vmpool_health_stuck_vms_count",
}
"""The sample alerts of the guide, and the metric of the operator that each one stands on."""
REQUESTS = "vmpool_api_requests_total"
NOBODY = "00000000-0000-4000-8000-000000000002"


@pytest.fixture(scope="module")
def typed(plane: ControlPlane, shared_namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Typed:
    return Typed(plane, shared_namespace, tmp_path_factory.mktemp("typed"))


async def failing(box: Box, **queue: object) -> None:
    """A pool whose every create fails, and the queue that keeps its letters."""
    await box.make(**queue)
    box.stage.fault("failBefore", "create")
    await box.pool(replicas=1, retry=ONCE)


# --- dead letters -----------------------------------------------------------------------------------------------------


async def test_1_entries_are_json_as_a_whole(box: Box, typed: Typed) -> None:
    """Before: ``"<vm>:<ts>:<json>"``, and ``| jq .`` failed."""
    await failing(box, poison={"failures": 2})
    wanted = await box.some(2)
    fields = f"--field-selector spec.queue={box.queue}"
    listed = json.loads(typed.shell(f"kubectl get dl {fields} -o json"))["items"]
    assert {one["spec"]["errorMessage"] for one in listed} == {wanted[0]["spec"]["errorMessage"]}
    lines = typed.shell(f"vmpool dlq list --queue {box.queue} -o json").splitlines()
    assert [json.loads(line)["spec"] for line in lines] == [one["spec"] for one in reversed(wanted)]
    # The recipe of the guide's third scenario.
    path = '{range .items[*]}{.spec.errorMessage}{"\\n"}{end}'
    counted = typed.shell(f"kubectl get dl {fields} -o jsonpath='{path}' | sort | uniq -c | sort -rn")
    assert counted.split(maxsplit=1) == ["2", f"{wanted[0]['spec']['errorMessage']}\n"]


@pytest.fixture
async def undestroyed(box: Box) -> str:
    """A VM whose machine the provider does not destroy."""
    await box.make()
    await box.pool(replicas=1, retry={"attempts": 1, **NOT_BY_ITSELF})
    (vm,) = await box.stage.full(1)
    box.stage.fault("failBefore", "delete", status=409)
    await box.stage.change(replicas=0)
    return str(vm["metadata"]["name"])


async def test_2_failed_tasks_are_kept(box: Box, undestroyed: str) -> None:
    """Before: ``vmpooler__dlq__tasks`` was never written."""
    (letter,) = await box.some(1, "tasks")
    assert (letter["spec"]["vm"], letter["spec"]["step"]) == (undestroyed, "destroy")
    assert "HTTP 409" in letter["spec"]["errorMessage"]
    await box.holds(tasks=1)


async def test_6_entries_expire_one_by_one_while_failures_go_on(box: Box) -> None:
    """Before: the TTL was that of the whole queue, and each new failure began it anew."""
    await failing(box, ttl="4s", poison={"failures": 0})
    (oldest, *_) = await until(box.all, deadline=DEADLINE, what="a first letter")

    async def gone() -> bool:
        return oldest["metadata"]["name"] not in names(await box.all())

    await until(gone, deadline=DEADLINE, what="the first letter has expired")
    left = await box.all()
    assert left, "the newer ones are still there"
    assert all(one["spec"]["failedAt"] > oldest["spec"]["failedAt"] for one in left)
    newest = left[-1]["metadata"]["name"]
    await until(lambda: _newer(box, newest), deadline=DEADLINE, what="failures go on")


async def _newer(box: Box, name: str) -> bool:
    found = await box.all()
    return bool(found) and found[-1]["metadata"]["name"] != name


async def test_16_what_is_in_the_queue_can_be_tried_again(box: Box, typed: Typed) -> None:
    """Before: no requeue, no acknowledgement, no delete."""
    await failing(box, poison={"failures": 1})
    (letter,) = await box.some(1)
    await box.stage.pool_says("Poisoned", "True", "SameFailure")
    box.stage.cloud.clear_faults()
    typed.shell(f"vmpool dlq redrive --queue {box.queue} --fingerprint {letter['spec']['fingerprint']}")
    status = await box.handled(letter["metadata"]["name"], "Redriven")
    (vm,) = await box.stage.full(1)
    assert vm["metadata"]["name"] == status["successor"]
    assert vm["spec"]["requestId"] == letter["spec"]["requestId"]
    typed.shell(f"vmpool dlq discard {letter['metadata']['name']}")
    await box.some(0)


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "field"),
    [("DeadLetterQueue", "maxEntriez"), ("PurgePolicy", "maxRequestAge"), ("HealthPolicy", "pendingQueueMax")],
)
async def test_7_there_is_no_option_that_nobody_reads(stage: Stage, typed: Typed, kind: str, field: str) -> None:
    """Before: ``max_request_age``, and ``dlq_*`` in another section, were taken and not read."""
    body = json.dumps(thing(kind, f"odd-{stage.pool}", {field: 60}))
    said = typed.shell("kubectl apply -f -", code=1, text=body)
    assert f'unknown field "spec.{field}"' in said
    assert "NotFound" in typed.shell(f"kubectl get {kind} odd-{stage.pool}", code=1)


async def test_7_a_request_that_nobody_can_serve_ends(stage: Stage, typed: Typed) -> None:
    """Before: stale on-demand requests were never purged."""
    await stage.put_provider()
    stage.fault("neverReady", "create")
    await stage.put_pool(replicas=0)
    name = f"late-{stage.pool}"
    typed.apply(thing("VMClaim", name, {"requests": [{"pool": stage.pool}], "deadline": "2s"}))
    typed.shell(f"kubectl wait --for=jsonpath='{{.status.reason}}'=DeadlineExceeded vmc/{name} --timeout=30s")


# --- purge ------------------------------------------------------------------------------------------------------------


async def test_8_a_purged_pending_vm_is_destroyed_at_its_provider(stage: Stage, tidy: Purge) -> None:
    """Before: only the entry went; the machine stayed, and its request was neither failed nor tried again."""
    await tidy.put(maxPendingAge="2s")
    await stage.put_provider()
    stage.fault("neverReady", "create", count=1)
    await stage.put_pool(replicas=1, purgePolicy=tidy.name, recycle={"quarantineTTL": "0s"})
    last = await tidy.cycle(lambda one: one["purged"] == 1, "it is purged")
    await tidy.put(maxPendingAge=NEVER)
    await stage.in_phase(last["vms"][0]["vm"], "Gone")
    (vm,) = await stage.full(1)
    assert stage.alive() == {vm["status"]["machineId"]}
    assert len(stage.history()) == 2
    assert vm["spec"]["retryCount"] == 1, "it goes on with the request"


async def test_9_a_vm_without_its_times_is_counted_as_stuck_and_purged(stage: Stage, tidy: Purge) -> None:
    """Before: entries without metadata were skipped, and held their place for ever."""
    await tidy.put()
    stage.fault("neverReady", "create", count=1)
    await put_policy(stage, stuckVMAgeThreshold="2s", stuckVMMaxWarning=1)
    await judged(stage, 1, purgePolicy=tidy.name, readiness={"timeout": "24h"}, recycle={"quarantineTTL": "0s"})
    (vm,) = await until(stage.vms_of, deadline=DEADLINE, what="a VM")
    name = vm["metadata"]["name"]
    await until(stage.alive, deadline=DEADLINE, what="a machine")
    lost = {"phaseSince": None, "steps": None, "conditions": None}
    (await stage.vms.merge(name, {"status": lost}, "status")).ok()
    where = {"namespace": stage.namespace, "pool": stage.pool, "queue": "pending"}
    stuck = lambda: metric(tidy.served, "vmpool_health_queue_stuck_count", **where) == 1  # noqa: E731
    await until(stuck, deadline=DEADLINE, what="it is counted as stuck")
    await tidy.put(maxPendingAge="2s")
    await stage.in_phase(name, "Gone")
    await tidy.put(maxPendingAge=NEVER)
    await stage.full(1)


async def test_9_a_ready_vm_without_its_times_is_purged_by_the_time_of_its_object(stage: Stage, tidy: Purge) -> None:
    await tidy.put()
    (vm,) = await stage.filled(1, purgePolicy=tidy.name)
    name = vm["metadata"]["name"]
    (await stage.vms.merge(name, {"status": {"phaseSince": None, "readyAt": None}}, "status")).ok()
    assert not (await stage.vm(name))["status"].keys() & {"phaseSince", "readyAt"}
    await tidy.put(maxReadyAge="1s")
    await stage.in_phase(name, "Gone")
    await tidy.put(maxReadyAge=NEVER)
    await stage.full(1)


async def test_10_orphans_go_once_and_what_was_destroyed_is_none(stage: Stage, tidy: Purge) -> None:
    """Before: each cycle renewed their time, and every destroyed VM counted as one for a week."""
    await tidy.put(interval="1s")
    await put_policy(stage)
    await judged(stage, 2, purgePolicy=tidy.name)
    await stage.full(2)
    await stage.change(replicas=0)
    await stage.full(0)
    identity = (await stage.api.kind("configmaps", stage.namespace, api="/api/v1").get(keys.IDENTITY_CONFIGMAP)).ok()
    tags = {keys.TAG_INSTALL: identity["data"]["installId"], keys.TAG_UID: NOBODY, keys.TAG_POOL: stage.pool}
    machine = stage.cloud.made(stage.tenant, tags=tags)
    where = {"namespace": stage.namespace, "health_policy": stage.pool}

    def orphans() -> float:
        return metric(tidy.served, "vmpool_health_orphaned_count", **where)

    await until(lambda: orphans() == 1, deadline=DEADLINE, what="one orphan, and none of the destroyed")
    await tidy.put(maxOrphanedAge="1s")
    await until(lambda: stage.cloud.state(stage.tenant, machine) == "Gone", deadline=DEADLINE, what="it is destroyed")
    await until(lambda: orphans() == 0, deadline=DEADLINE, what="no orphan is left")
    await tidy.more_cycles(2)
    assert len(tidy.said("Purged orphaned machine")) == 1


async def test_11_a_completed_vm_that_cannot_be_destroyed_stays_and_is_told(
    box: Box, tidy: Purge, undestroyed: str
) -> None:
    """Before: its entry was dropped, and nobody knew of the machine."""
    stage = box.stage
    await stage.in_phase(undestroyed, "Completed")
    await tidy.put(maxCompletedAge="1s")
    await stage.change(purgePolicy=tidy.name)
    await until(lambda: tidy.said("Destroying stale completed VM"), deadline=DEADLINE, what="it is tried again")
    await tidy.more_cycles(2)
    assert await stage.phase(undestroyed) == "Completed"
    assert len(stage.alive()) == 1
    (letter,) = await box.all()
    assert (letter["spec"]["vm"], letter["spec"]["queueFrom"]) == (undestroyed, "tasks")


async def test_13_what_a_dry_run_finds_is_not_counted_as_purged(stage: Stage, tidy: Purge) -> None:
    """Before: "N entries purged" counted them."""
    await tidy.put(maxReadyAge="1s", dryRun=True)
    await stage.filled(2, purgePolicy=tidy.name)
    last = await tidy.cycle(lambda one: one["found"] == 2, "two are found")
    assert last["purged"] == 0
    await tidy.more_cycles(1)
    ends = tidy.said("Completed purge cycle in")
    assert any(line["found"] == 2 for line in ends)
    assert all(line["event"].endswith(": 0 entries purged") for line in ends)
    assert metric(tidy.served, "vmpool_purged_vms_total", purge_policy=tidy.name) == 0


async def test_14_cycles_do_not_overlap(stage: Stage, tidy: Purge) -> None:
    """Before: each was a thread of its own. Here one lasts longer than the interval, and the next one waits."""
    await tidy.put(interval="1s")
    update = {"strategy": "Rolling", "maxSurge": 1, "maxUnavailable": 0}
    await stage.filled(1, purgePolicy=tidy.name, update=update)
    # What takes its place takes longer than the interval; until then the old VM stays.
    stage.fault("slow", "create", seconds=2.5, count=1)
    await tidy.put(maxReadyAge="1s")
    await tidy.cycle(lambda one: one["purged"] == 1, "it is purged")
    await tidy.put(maxReadyAge=NEVER)
    await tidy.more_cycles(1)
    told = [line["event"] for line in tidy.lines() if "purge cycle" in line["event"]]
    begun = ["Starting" in one for one in told]
    assert begun == [number % 2 == 0 for number in range(len(begun))], told
    took = [float(one[1]) for one in map(re.compile(r".* in ([\d.]+)s: .*").fullmatch, told) if one is not None]
    assert max(took) > 1, "longer than the interval"


# --- health -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def bad(stage: Stage) -> str:
    """A policy that finds its pool unhealthy: two VMs are stuck, two dead letters are too many; return its name."""
    stage.fault("neverReady", "create")
    await put_policy(
        stage, stuckVMAgeThreshold="1s", stuckVMMaxWarning=1, stuckVMMaxCritical=1, dlqMaxWarning=1, dlqMaxCritical=1
    )
    await judged(stage, 2)
    await write_letters(stage, range(2))
    await verdict(stage, "unhealthy")
    await until(lambda: _both(stage), deadline=DEADLINE, what="both limits are exceeded")
    return stage.pool


async def _both(stage: Stage) -> bool:
    message = (await policies(stage).get(stage.pool)).ok()["status"]["message"]
    return "stuck" in message and "dead letters" in message


async def test_3_the_stuck_count_is_a_number_of_its_own(bad: str, stage: Stage, served: Operator, typed: Typed) -> None:
    """Before: ``HGET vmpooler__health stuck_vm_count`` was nil."""
    assert metric(served, "vmpool_health_stuck_vms_count", namespace=stage.namespace, health_policy=bad) == 2
    lines = typed.shell(f"vmpool health {bad}", code=2).splitlines()
    heads = next(line.split() for line in lines if line.startswith("POOL"))
    row = next(line.split() for line in lines if line.startswith(f"{stage.pool} "))
    assert row[heads.index("STUCK")] == "2"
    said = typed.shell(f"kubectl get health {bad} -o jsonpath='{{.status.message}}'")
    assert "2 VMs are stuck in pending for more than 1s, more than 1" in said


async def test_4_the_sample_alerts_fire_on_what_is_exported(
    bad: str, served: Operator, typed: Typed, tmp_path: Path
) -> None:
    """Before: the names in the guide's alerts were nobody's. Here the operator's own series makes each one fire."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}
    exported = [
        one
        for family in text_string_to_metric_families(served.http("/metrics"))
        for one in family.samples
        if one.labels.get("health_policy") == bad
    ]
    cases = []
    for alert, name in ALERTS.items():
        (sample,) = [one for one in exported if one.name == name]
        assert sample.value == 2
        # As many letters, or stuck VMs, as the alert asks for; the status is as exported.
        cases.append(_fires(rules[alert], sample.name, sample.labels, 2 if alert == "VMPoolerUnhealthy" else 1000))
    file = tmp_path / "alerts.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": cases}))
    typed.shell(f"promtool test rules {file}")


def _fires(rule: Json, name: str, labels: dict[str, str], level: int) -> Json:
    """A case for promtool: with this series at this level the alert fires, after as long as the guide says."""

    def filled(text: str) -> str:
        known = re.sub(r"{{ *\$labels\.(\w+) *}}", lambda found: labels[found[1]], text)
        return known.replace("{{ $value }}", str(level))

    told = {key: filled(text) for key, text in rule["annotations"].items()}
    expected = {"exp_labels": {**labels, **rule["labels"]}, "exp_annotations": told}
    # Recording rules and alerts are evaluated side by side: the alert may see the recorded name one turn later.
    when = f"{int(rule['for'].removesuffix('m')) + 2}m"
    series = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return {
        "interval": "1m",
        "input_series": [{"series": f"{name}{{{series}}}", "values": f"{level}x40"}],
        "alert_rule_test": [{"eval_time": when, "alertname": rule["alert"], "exp_alerts": [expected]}],
    }


async def test_5_there_is_an_endpoint_for_health(bad: str, stage: Stage, served: Operator, typed: Typed) -> None:
    """Before: none, although it was promised."""
    path = f"/apis/{keys.API_VERSION}/namespaces/{stage.namespace}/healthpolicies/{bad}/status"
    status = json.loads(typed.shell(f"kubectl get --raw {path}"))["status"]
    assert (status["health"], status["pools"], status["notHealthy"][0]["pool"]) == ("unhealthy", 1, stage.pool)
    assert served.http("/healthz")
    assert f'vmpool_health_status{{health_policy="{bad}",namespace="{stage.namespace}"}} 2.0' in served.http("/metrics")


async def test_12_health_costs_no_requests_at_all(stage: Stage, served: Operator) -> None:
    """Before: all keys, and up to seven requests for each VM, at each check."""
    await put_policy(stage)
    await judged(stage, 8)
    await stage.full(8)
    await verdict(stage, "healthy")
    ours = {"pooledvms", "vmpools", "healthpolicies", "deadletters", "vmclaims", "vmproviders"}

    def asked() -> float:
        text = served.http("/metrics")
        every = [one for family in text_string_to_metric_families(text) for one in family.samples]
        found = [one.value for one in every if one.name == REQUESTS and one.labels["resource"] in ours]
        assert found
        return sum(found)

    async def quiet() -> bool:
        before = asked()
        await checked(stage, served, 3)
        return asked() == before

    # What other tests have left may still be tidied away; a check that costs requests is never quiet.
    await until(quiet, deadline=DEADLINE, what="three checks without a request")


async def test_15_a_pool_whose_every_clone_fails_is_not_healthy(stage: Stage, served: Operator) -> None:
    """Before: HEALTHY, R=0."""
    stage.fault("failBefore", "create")
    await put_policy(stage, failuresInARowMax=1, emptyPoolMaxAge="1s")
    await judged(stage, 1, retry=ONCE)
    status = await verdict(stage, "unhealthy")
    assert "no VM has been ready for" in status["message"]
    assert (await logged(stage, served, "UNHEALTHY"))[3] == "0"
