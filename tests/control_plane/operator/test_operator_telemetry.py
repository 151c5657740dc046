"""What the operator says about itself: probes, metrics, logs and events, none of it noisy, none of it secret."""

import base64
import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api import Json
from tests.control_plane.operator.stage import DEADLINE, Stage, condition, metric
from tests.operators import Operator
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.telemetry.metrics import Metrics

pytestmark = pytest.mark.control_plane

WRITES = ("POST", "PUT", "PATCH", "DELETE")


def log_lines(operator: Operator) -> list[Json]:
    """Every line of the log as JSON."""
    return [json.loads(line) for line in operator.lines().splitlines()]


async def all_versions(stage: Stage) -> dict[str, str]:
    """The resourceVersion of every object of the namespace, leases aside."""
    found = {}
    for objects in (stage.pools, stage.vms, stage.providers, stage.secrets):
        items = (await objects.list()).ok()["items"]
        found.update({one["metadata"]["uid"]: one["metadata"]["resourceVersion"] for one in items})
    return found


def lines_of(stage: Stage, served: Operator) -> list[Json]:
    """What was logged about the test's pool."""
    return [line for line in log_lines(served) if line.get("pool") == f"{stage.namespace}/{stage.pool}"]


async def test_an_idle_operator_writes_nothing_but_its_lease(stage: Stage, served: Operator) -> None:
    await stage.filled(10)

    def clock_checks() -> float:
        return metric(served, "vmpool_api_requests_total", method="GET", resource="configmaps")

    def writes() -> float:
        counts = [metric(served, "vmpool_api_requests_total", method=method) for method in WRITES]
        leases = [metric(served, "vmpool_api_requests_total", method=method, resource="leases") for method in WRITES]
        return sum(counts) - sum(leases)

    await stage.looked(served)
    before, checks = (writes(), await all_versions(stage)), clock_checks()
    await until(lambda: clock_checks() >= checks + 2, deadline=DEADLINE, what="two more looks at the clock")
    assert (writes(), await all_versions(stage)) == before
    assert metric(served, "vmpool_api_requests_total", method="PATCH") > 0, "writes are counted at all"


async def test_a_fill_is_told_once_with_the_same_words_everywhere(stage: Stage, served: Operator) -> None:
    await stage.filled(20)
    sentence = condition({"status": await stage.status()}, "Ready")["message"]
    assert sentence == "20 of 20 ready"

    def told() -> list[str]:
        logged = [line for line in lines_of(stage, served) if line["event"] == "pool_condition"]
        return [line["why"] for line in logged if line["status"] == "True"]

    # Written as soon as the server has answered: people may read the condition before.
    await until(told, deadline=DEADLINE, what="the log says that it is full")
    assert told() == [sentence]
    logged = lines_of(stage, served)
    assert len(logged) <= 5, "a fill is no reason to write a line for every VM"
    events = await until(lambda: stage.events(stage.pool), deadline=DEADLINE, what="an event")
    assert [(one["type"], one["reason"], one["message"]) for one in events] == [("Normal", "Filled", sentence)]
    for vm in await stage.vms_of():
        assert not await stage.events(vm["metadata"]["name"])
    labels = {"namespace": stage.namespace, "pool": stage.pool}
    assert metric(served, "vmpool_vms", **labels, phase="Ready") == 20
    assert metric(served, "vmpool_vms", **labels, phase="Pending") == 0
    assert metric(served, "vmpool_desired_replicas", **labels) == 20
    assert metric(served, "vmpool_vm_ready_seconds_count", **labels) == 20


async def test_a_stalled_pool_says_the_same_in_condition_log_and_event(stage: Stage, served: Operator) -> None:
    await stage.put_provider()
    await stage.put_pool(replicas=1, template={"image": "debian-99"})
    sentence = await stage.pool_says("Stalled", "True", "InvalidTemplate")

    def logged() -> bool:
        return sentence in [line.get("why") for line in lines_of(stage, served)]

    await until(logged, deadline=DEADLINE, what="the log has the sentence")

    async def warned() -> list[Json]:
        return [one for one in await stage.events(stage.pool) if one["message"] == sentence]

    (event,) = await until(warned, deadline=DEADLINE, what="an event with the sentence")
    assert event["type"] == "Warning"


async def test_probes_and_metrics(stage: Stage, served: Operator) -> None:
    assert served.http("/healthz") == "ok\n"
    assert served.http("/readyz") == "ok\n"
    found = {_plain(family.name) for family in text_string_to_metric_families(served.http("/metrics"))}
    assert {_plain(family.name) for family in Metrics().registry.collect()} <= found
    assert metric(served, "vmpool_leader") == 1
    assert metric(served, "vmpool_rounds_total", outcome="ok") > 0
    assert metric(served, "vmpool_rounds_total", outcome="error") == 0
    assert metric(served, "vmpool_effects_total", outcome="error") == 0


def _plain(name: str) -> str:
    return re.sub(r"_(total|created)$", "", name)


async def test_every_line_of_the_log_is_json_with_time_and_level(stage: Stage, served: Operator) -> None:
    lines = log_lines(served)
    assert len(lines) > 5
    for line in lines:
        assert {"event", "level", "timestamp", "logger"} <= line.keys(), line
        # Libraries may shout at a server that is still warming up; we do not.
        assert not line["logger"].startswith("vmpool.") or line["level"] not in ("error", "critical"), line


async def test_no_secret_is_ever_told(stage: Stage, served: Operator, kubectl: Kubectl) -> None:
    key = stage.tenant.key
    await stage.filled(1)
    rule = stage.fault("status", "*", status=401)
    await stage.provider_says("Stalled", "True", "CredentialsRefused")
    stage.mend(rule)
    await stage.provider_says("Ready", "True")
    await stage.put_secret(stage.provider, apiKey=f"{key}\x01")
    await stage.provider_says("Stalled", "True", "InvalidConfig")
    await stage.put_secret(stage.provider, apiKey=key)
    await stage.change(replicas=2)
    await stage.full(2)

    kinds = "vmpools,pooledvms,vmproviders,events,configmaps,leases"
    shown = {
        "objects": kubectl("get", kinds, "-n", stage.namespace, "-o", "yaml", "--show-managed-fields"),
        "log": served.lines(),
        "metrics": served.http("/metrics"),
        "machines": json.dumps(stage.history()),
    }
    for where, text in shown.items():
        assert stage.provider in text or where == "machines", f"{where} speaks of this provider"
        assert key not in text, f"the key is in {where}"
        assert base64.b64encode(key.encode()).decode() not in text, f"the encoded key is in {where}"
