"""The guide's troubleshooting: each line of its four check lists, as it is looked up here."""

import secrets
import socket
import time
from collections.abc import Iterator

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.api import Json
from tests.commands import Run
from tests.control_plane.operator.purges import Purge
from tests.control_plane.operator.stage import DEADLINE, Stage, metric
from tests.control_plane.operator.verdicts import checked, checks, judged, put_policy, verdict
from tests.guide.walking import Shelf, Walker, log_of, once
from tests.objects import thing
from tests.operators import Operator
from tests.planes import Kubectl
from tests.users import RBAC, account, apply
from tests.waiting import until
from vmpool.api import keys
from vmpool.cli.metricspage import GUIDE_NAMES
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane

ONCE = {"attempts": 1, "backoff": "100ms", "maxBackoff": "1s"}
START = "[*] [purge] Starting stale queue entry purge cycle"


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    return {}


@pytest.fixture
def walker(kubectl: Kubectl, stage: Stage) -> Walker:
    return Walker(kubectl, stage)


@pytest.fixture
async def plain(stage: Stage, shelf: Shelf) -> str:
    """A filled pool that names no policy."""

    async def make() -> None:
        await stage.filled(1)

    await once(shelf, "plain", stage, make)
    return stage.pool


# --- DLQ not capturing failures -----------------------------------------------------------------------------------


async def test_is_dlq_enabled(plain: str, stage: Stage, walker: Walker) -> None:
    assert not walker.path(f"vmp/{plain}", "{.spec.deadLetterQueue}")
    walker.patch(f"vmp/{plain}", deadLetterQueue="nowhere")
    assert walker.path(f"vmp/{plain}", "{.spec.deadLetterQueue}") == "nowhere"
    message = await stage.pool_says("PolicyMissing", "True", "NotFound")
    assert "DeadLetterQueue nowhere" in message
    walker.apply(thing("DeadLetterQueue", "nowhere", {}))

    async def found() -> bool:
        return not walker.path(f"vmp/{plain}", '{.status.conditions[?(@.type=="PolicyMissing")].status}')

    await until(found, deadline=DEADLINE, what="the queue is found")
    assert walker.shown("dlq", "nowhere")["STATUS"] == "Keeping"


async def test_are_failures_actually_occurring(stage: Stage, walker: Walker, served: Operator) -> None:
    stage.fault("failBefore", "create", count=1)
    await stage.put_provider()
    await stage.put_pool(replicas=1, retry=ONCE)
    await stage.full(1)
    (failure,) = walker.get("vmp", stage.pool)["status"]["recentFailures"]
    assert (failure["errorClass"], failure["step"]) == ("ProviderUnavailable", "create")
    lines = [line for line in log_of(served) if line["event"] == "vm_failed" and line["vm"] == failure["vm"]]
    assert [(line["level"], line["message"]) for line in lines] == [("warning", failure["message"])]
    labels = {"namespace": stage.namespace, "pool": stage.pool, "error_class": "ProviderUnavailable"}
    assert metric(served, "vmpool_vm_failures_total", **labels) == 1
    assert not walker.names("dl", f"--field-selector=spec.pool={stage.pool}"), "and no queue is named to keep it"


async def test_is_the_store_accessible(served: Operator, stage: Stage, kubectl: Kubectl) -> None:
    assert kubectl("get", "--raw", "/readyz") == "ok"
    assert served.http("/healthz") == "ok\n"
    assert served.http("/readyz") == "ok\n"
    assert metric(served, "vmpool_failure_records_refused_total") == 0
    assert 0 <= metric(served, "vmpool_watch_age_seconds", kind="DeadLetter") < 120


# --- purge not running --------------------------------------------------------------------------------------------


async def test_is_purge_enabled(stage: Stage, tidy: Purge, walker: Walker) -> None:
    await tidy.put(dryRun=True)
    await tidy.says("Ready", "True", "NoPools")
    assert walker.shown("purge", tidy.name)["STATUS"] == "NoPools"
    await stage.filled(1)
    assert not walker.path(f"vmp/{stage.pool}", "{.spec.purgePolicy}")
    walker.patch(f"vmp/{stage.pool}", purgePolicy=tidy.name)
    assert walker.path(f"vmp/{stage.pool}", "{.spec.purgePolicy}") == tidy.name
    await tidy.says("Ready", "True", "DryRun")
    walker.patch(f"purge/{tidy.name}", dryRun=False, pauses=[{"name": "move"}])
    await tidy.says("Paused", "True", "Paused")
    assert walker.shown("purge", tidy.name)["STATUS"] == "Paused"
    walker.patch(f"purge/{tidy.name}", pauses=None)
    await tidy.says("Ready", "True", "Idle")


async def test_check_logs_for_purge_startup(stage: Stage, tidy: Purge) -> None:
    await tidy.put()
    await until(lambda: tidy.said(START), deadline=DEADLINE, what="its first cycle is told")
    (line, *_) = tidy.said(START)
    assert (line["event"], line["level"]) == (START, "info")
    await until(lambda: tidy.said("[*] [purge] Completed purge cycle in "), deadline=DEADLINE, what="its end is told")


async def test_is_purge_interval_too_long_default_is_1_hour(
    stage: Stage, tidy: Purge, walker: Walker, served: Operator
) -> None:
    walker.apply(thing("PurgePolicy", tidy.name, {}))
    assert walker.path(f"purge/{tidy.name}", "{.spec.interval}") == "1h"
    await until(lambda: tidy.cycles() == 1, deadline=DEADLINE, what="its first cycle")
    last = {"namespace": stage.namespace, "purge_policy": tidy.name}
    assert abs(metric(served, "vmpool_purge_last_cycle_timestamp_seconds", **last) - time.time()) < DEADLINE
    # With an hour between two cycles there is one; with a second there are more.
    ended = tidy.cycles()
    await stage.filled(1)
    await stage.looked(served)
    assert tidy.cycles() == ended
    walker.patch(f"purge/{tidy.name}", interval="1s")
    await tidy.more_cycles(3)


# --- health check not updating ------------------------------------------------------------------------------------


@pytest.fixture
async def watched(stage: Stage, shelf: Shelf) -> str:
    """A filled pool and the health policy that judges it, both of one name."""

    async def make() -> None:
        await put_policy(stage)
        await judged(stage, 1)
        await stage.full(1)
        await verdict(stage, "healthy")

    await once(shelf, "watched", stage, make)
    return stage.pool


async def test_is_health_check_enabled(watched: str, walker: Walker) -> None:
    assert walker.path(f"vmp/{watched}", "{.spec.healthPolicy}") == watched
    shown = walker.shown("health", watched)
    assert (shown["HEALTH"], shown["POOLS"], shown["INTERVAL"]) == ("healthy", "1", "1s")
    walker.apply(thing("HealthPolicy", f"{watched}-unused", {}))
    assert walker.path(f"health/{watched}-unused", "{.spec.interval}") == "5m"

    async def judged_none() -> bool:
        return walker.path(f"health/{watched}-unused", "{.status.message}") == "no pool names this policy"

    await until(judged_none, deadline=DEADLINE, what="a policy without pools says so")


async def test_check_last_update_time(watched: str, stage: Stage, served: Operator) -> None:
    def last() -> float:
        labels = {"namespace": stage.namespace, "health_policy": watched}
        return metric(served, "vmpool_health_last_check_timestamp_seconds", **labels)

    before = last()
    assert abs(before - time.time()) < DEADLINE
    await until(lambda: last() > before, deadline=DEADLINE, what="another check")


async def test_check_logs_for_health_check_runs(watched: str, stage: Stage, served: Operator) -> None:
    await checked(stage, served, 2)
    assert checks(stage, served)[-1].group().startswith("[*] [health] Status: HEALTHY | Queues: P=0 R=1 C=0 | DLQ=0")


# --- loops that fail ----------------------------------------------------------------------------------------------


STATUSES = {"PurgePolicy": "purgepolicies", "HealthPolicy": "healthpolicies"}


@pytest.fixture(scope="module")
def lame(
    plane: ControlPlane, kubectl: Kubectl, crds_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Operator]]:
    """An operator with the rights that we ship, except to write what became of policies; and its namespace."""
    namespace, folder = f"t-{secrets.token_hex(4)}", tmp_path_factory.mktemp("lame")
    kubectl("create", "namespace", namespace)
    config = account(kubectl, plane, namespace, "vmpool-operator", folder)
    role = next(yaml.safe_load_all((RBAC / "operator.yaml").read_text()))
    withheld = {f"{plural}/status" for plural in STATUSES.values()}
    for one in role["rules"]:
        one["resources"] = [resource for resource in one["resources"] if resource not in withheld]
    role["metadata"]["name"] = f"lame-{namespace}"
    apply(kubectl, [role])
    kubectl("delete", "clusterrolebinding", f"vmpool-operator-{namespace}")
    subject = f"--serviceaccount={namespace}:vmpool-operator"
    kubectl("create", "clusterrolebinding", f"lame-{namespace}", f"--clusterrole=lame-{namespace}", subject)
    made = Operator(config, folder, VMPOOL_WATCH_NAMESPACE=namespace, VMPOOL_NAMESPACE=namespace)
    made.start()
    yield namespace, made
    made.kill()
    kubectl("delete", "clusterrolebinding,clusterrole", f"lame-{namespace}")
    kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.mark.parametrize("kind", STATUSES)
async def test_check_thread_status(kind: str, lame: tuple[str, Operator], kubectl: Kubectl) -> None:
    namespace, operator = lame
    await operator.ready()
    apply(kubectl, [thing(kind, "std", {"interval": "1s"})], "-n", namespace)

    def told() -> list[Json]:
        failed = [line for line in log_of(operator) if line["event"] == "round_failed"]
        return [line for line in failed if (line["kind"], line["loop"]) == (kind, f"{namespace}/std")]

    await until(lambda: len(told()) >= 2, deadline=DEADLINE, what="a round that fails is told, and tried again")
    line = told()[0]
    assert line["level"] == "warning"
    assert f"{STATUSES[kind]}/status" in line["error"]
    assert metric(operator, "vmpool_rounds_total", kind=kind, outcome="error") >= 2

    # The loop has not died: once it may write, it says how things are.
    right = ("--verb=patch", f"--resource={STATUSES[kind]}.{keys.GROUP}/status")
    kubectl("create", "role", f"may-{kind.lower()}", "-n", namespace, *right)
    subject = f"--serviceaccount={namespace}:vmpool-operator"
    kubectl("create", "rolebinding", kind.lower(), "-n", namespace, f"--role=may-{kind.lower()}", subject)

    def written() -> str:
        return kubectl("get", f"{STATUSES[kind]}/std", "-n", namespace, "-o", "jsonpath={.status.conditions[*].type}")

    await until(written, deadline=DEADLINE, what="its status is written")


# --- metrics not appearing ----------------------------------------------------------------------------------------


def address_of(served: Operator) -> tuple[str, int]:
    """Where the operator says that its metrics are."""
    (told,) = {line["http"] for line in log_of(served) if "http" in line}
    host, _, port = told.rpartition(":")
    return host, int(port)


async def test_is_the_metrics_system_configured(stage: Stage, served: Operator) -> None:
    host, port = address_of(served)
    assert host == "127.0.0.1"
    assert port > 0
    assert metric(served, "vmpool_leader") == 1, "the one that holds the lease has the levels"


async def test_are_metrics_being_sent(watched: str, stage: Stage, served: Operator) -> None:
    families = {family.name for family in text_string_to_metric_families(served.http("/metrics"))}
    samples = [
        sample
        for family in text_string_to_metric_families(served.http("/metrics"))
        for sample in family.samples
        if watched in (sample.labels.get("pool"), sample.labels.get("health_policy"))
    ]
    assert "vmpool_health_status" in families
    for one in GUIDE_NAMES:
        name, _, chosen = one.source.partition("{")
        labels = dict(pair.replace('"', "").split("=") for pair in chosen.removesuffix("}").split(", ") if pair)
        found = [sample for sample in samples if sample.name == name and labels.items() <= sample.labels.items()]
        assert found, f"{one.guide} is {one.source}"


async def test_check_firewall_and_network_to_the_metrics(served: Operator, stage: Stage) -> None:
    with socket.create_connection(address_of(served), timeout=5) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"


async def test_test_metrics_manually(watched: str, stage: Stage, walker: Walker, served: Operator, run: Run) -> None:
    status = walker.get("health", watched)["status"]
    told = run("health", watched, "-n", stage.namespace).stdout
    level = metric(served, "vmpool_health_status", namespace=stage.namespace, health_policy=watched)
    assert (status["health"], level) == ("healthy", 0)
    assert f"HealthPolicy {stage.namespace}/{watched}: healthy {status['message']}" in told
