"""The guide's migration: one pool walks from no policy to all of them, a manifest at a time; and its best practices."""

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.api import Json
from tests.clouds import Tenant
from tests.commands import Run
from tests.control_plane.operator.claimant import Claimant
from tests.control_plane.operator.purges import Purge
from tests.control_plane.operator.stage import (
    DEADLINE,
    IMAGE,
    QUICK_RETRY,
    Stage,
    condition,
    machine_ids,
    metric,
    names,
)
from tests.control_plane.operator.verdicts import TYPES, verdict
from tests.guide.walking import Walker
from tests.objects import thing
from tests.operators import Operator, serving
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane
from vmpool.telemetry.gateway import GatewayMetrics

pytestmark = pytest.mark.control_plane

DEPLOY = Path(__file__).parents[2] / "deploy"
REPLICAS = 3
NOT_THE_POOL = {"configmaps", "leases", "secrets", "vmproviders/status"}
"""What an operator asks for whatever its pools do: its clock, its lease, and the looks at providers."""
PROMTOOL_SECONDS = 60


@pytest.fixture(scope="module")
def served(
    plane: ControlPlane, shared_namespace: str, crds_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    """An operator whose every object has its round each second, so that many resyncs pass in a short time."""
    with serving(
        plane,
        shared_namespace,
        tmp_path_factory.mktemp("operator"),
        VMPOOL_PURGE_LOOK_SECONDS="0.3",
        VMPOOL_PURGE_CYCLE_SECONDS="5",
        VMPOOL_RESYNC_SECONDS="1",
    ) as made:
        yield made


class Migration:
    """A pool that is migrated: its manifests as they stand in a repository, and how far they have been applied."""

    def __init__(self) -> None:
        self.phase = -1
        self.stands: tuple[str, str, Tenant] | None = None
        """Pool, provider and tenant."""
        self.first: set[str] = set()
        """Machines from before any policy."""
        self.documents: dict[str, Json] = {}

    def write(self, walker: Walker, *changes: tuple[str, str, Json]) -> None:
        """Commit changes of specs, by kind and name, and apply everything."""
        for kind, name, spec in changes:
            before = self.documents.get(kind, {"spec": {}})["spec"]
            self.documents[kind] = thing(kind, name, {**before, **spec})
        walker.apply(*self.documents.values())


class Walk:
    """A test's hands on the migration."""

    def __init__(self, migration: Migration, walker: Walker, tidy: Purge) -> None:
        self.migration = migration
        self.walker = walker
        self.stage = walker.stage
        if migration.stands is not None:
            self.stage.pool, self.stage.provider, self.stage.tenant = migration.stands
        migration.stands = (self.stage.pool, self.stage.provider, self.stage.tenant)
        self.pool = self.stage.pool
        self.queue = f"dlq-{self.pool}"
        self.tidy = Purge(self.stage, tidy.served)

    def write(self, *changes: tuple[str, str, Json]) -> None:
        self.migration.write(self.walker, *changes)

    def purging(self, **spec: object) -> None:
        """Change the purge policy."""
        self.write(("PurgePolicy", self.tidy.name, spec))

    async def to(self, phase: int) -> None:
        """Go through what is missing up to this phase, in order."""
        steps = (self._nothing, self._letters, self._health, self._dry_run, self._live)
        while self.migration.phase < phase:
            await steps[self.migration.phase + 1]()
            self.migration.phase += 1

    async def _nothing(self) -> None:
        stage = self.stage
        stage.fault("failBefore", "create", count=1)
        await stage.put_provider()
        retry = {**QUICK_RETRY, "attempts": 1}
        spec = {"replicas": REPLICAS, "template": {"image": IMAGE}, "providers": [{"name": stage.provider}]}
        self.write(("VMPool", self.pool, {**spec, "retry": retry}))
        self.migration.first = machine_ids(await stage.full(REPLICAS))

    async def _letters(self) -> None:
        named = {"deadLetterQueue": self.queue}
        self.write(("DeadLetterQueue", self.queue, {"ttl": "720h"}), ("VMPool", self.pool, named))

    async def _health(self) -> None:
        named = {"healthPolicy": self.pool}
        self.write(("HealthPolicy", self.pool, {"interval": "1s"}), ("VMPool", self.pool, named))

    async def _dry_run(self) -> None:
        named = {"purgePolicy": self.tidy.name}
        limits = {"dryRun": True, "interval": "1s", "maxReadyAge": "1s"}
        self.write(("PurgePolicy", self.tidy.name, limits), ("VMPool", self.pool, named))

    async def _live(self) -> None:
        self.purging(dryRun=False, maxReadyAge="24h")


@pytest.fixture(scope="module")
def migration() -> Migration:
    return Migration()


@pytest.fixture
def walk(migration: Migration, kubectl: Kubectl, stage: Stage, tidy: Purge) -> Walk:
    return Walk(migration, Walker(kubectl, stage), tidy)


def about(operator: Operator, pool: str) -> list[str]:
    """Health samples of a pool."""
    lines = operator.http("/metrics").splitlines()
    return [line for line in lines if f'pool="{pool}"' in line and "_health_" in line]


# --- before -------------------------------------------------------------------------------------------------------


async def test_without_policies_a_pool_behaves_exactly_as_before(walk: Walk, served: Operator) -> None:
    await walk.to(0)
    found = walk.walker.get("vmp", walk.pool)
    assert not {"deadLetterQueue", "purgePolicy", "healthPolicy"} & found["spec"].keys()
    assert [one["type"] for one in found["status"]["conditions"]] == ["Ready"]
    assert len(found["status"]["recentFailures"]) == 1, "one failed, and is told as ever"
    assert not walk.walker.names("dl")
    assert not about(served, walk.pool)
    assert "[purge]" not in served.lines()
    assert "[health]" not in served.lines()


# --- phase 1: enable DLQ ------------------------------------------------------------------------------------------


async def test_add_dlq_config_with_conservative_ttl(walk: Walk) -> None:
    await walk.to(1)
    await walk.stage.says(walk.stage.api.kind("deadletterqueues", walk.stage.namespace), walk.queue, "Ready", "True")
    shown = walk.walker.shown("dlq", walk.queue)
    assert (shown["ENTRIES"], shown["STATUS"]) == ("0", "Keeping")
    assert walk.walker.path(f"dlq/{walk.queue}", "{.spec.ttl}") == "720h"
    # What failed before is not told after the fact, and no VM is touched.
    assert not walk.walker.names("dl")
    assert machine_ids(await walk.stage.full(REPLICAS)) == walk.migration.first


async def test_monitor_dlq_size_and_entry_patterns(walk: Walk, run: Run) -> None:
    await walk.to(1)
    walk.stage.fault("failBefore", "create", count=1)
    walk.write(("VMPool", walk.pool, {"replicas": REPLICAS + 1}))
    await walk.stage.full(REPLICAS + 1)

    async def counted() -> bool:
        return walk.walker.shown("dlq", walk.queue)["ENTRIES"] == "1"

    await until(counted, deadline=DEADLINE, what="the queue counts one letter")
    shown = walk.walker.shown("dlq", walk.queue)
    assert (shown["CAUSE"], shown["TIMES"]) == ("ProviderUnavailable", "1")
    head, row = run("dlq", "list", "--group", "-q", walk.queue, "-n", walk.stage.namespace).stdout.splitlines()
    assert (
        dict(zip(head.split()[:4], row.split()[:4], strict=True)).items()
        >= {
            "TIMES": "1",
            "QUEUE": "clone",
            "CAUSE": "ProviderUnavailable",
        }.items()
    )


def requests(operator: Operator) -> Counter[tuple[str, str]]:
    """The operator's requests to the API server so far, by method and resource."""
    counted: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(operator.http("/metrics")):
        for sample in family.samples:
            if sample.name == "vmpool_api_requests_total" and sample.labels["resource"] not in NOT_THE_POOL:
                counted[sample.labels["method"], sample.labels["resource"]] += int(sample.value)
    return counted


async def stretch(operator: Operator, resyncs: int) -> Counter[tuple[str, str]]:
    """The requests while the only pool has so many rounds."""

    def rounds() -> float:
        return metric(operator, "vmpool_rounds_total", kind="VMPool", outcome="ok")

    began, before = rounds(), requests(operator)
    await until(lambda: rounds() >= began + resyncs, deadline=DEADLINE, what=f"{resyncs} more rounds")
    return requests(operator) - before


async def settled(operator: Operator) -> None:
    """Wait until nothing of what was changed is still being written."""

    async def calm() -> bool:
        return not [one for one in await stretch(operator, 2) if one[0] != "GET"]

    await until(calm, deadline=DEADLINE, what="nothing is written any more")


async def test_verify_no_performance_impact(walk: Walk, served: Operator) -> None:
    await walk.to(1)
    walk.walker.patch(f"vmp/{walk.pool}", deadLetterQueue=None)
    await walk.stage.pool_says("Ready", "True")
    await settled(served)
    without = await stretch(served, 3)
    walk.write()
    assert walk.walker.path(f"vmp/{walk.pool}", "{.spec.deadLetterQueue}") == walk.queue
    await walk.stage.pool_says("Ready", "True")
    await settled(served)
    named = await stretch(served, 3)
    assert (named, without) == ({}, {}), "an idle pool costs no request, queue or none"
    assert requests(served)["PATCH", "pooledvms"] > 0, "requests are counted at all"


async def test_adjust_ttl_as_needed(walk: Walk) -> None:
    await walk.to(1)
    walk.write(("DeadLetterQueue", walk.queue, {"ttl": "48h"}))
    queues = walk.stage.api.kind("deadletterqueues", walk.stage.namespace)
    assert "kept for 48h, at most 10000 by queue name" in await walk.stage.says(queues, walk.queue, "Ready", "True")


# --- phase 2: enable health checks --------------------------------------------------------------------------------


async def test_add_health_check_config(walk: Walk, kubectl: Kubectl) -> None:
    await walk.to(2)
    wanted = ("--for=condition=Healthy", f"healthpolicy/{walk.pool}", f"vmpool/{walk.pool}", "--timeout=30s")
    kubectl("wait", *wanted, "-n", walk.stage.namespace)
    status = await verdict(walk.stage, "healthy")
    assert status["pools"] == 1
    assert walk.migration.first <= machine_ids(await walk.stage.vms_of())


async def test_verify_metrics_are_exposed(walk: Walk, served: Operator) -> None:
    await walk.to(2)
    await verdict(walk.stage, "healthy")
    of_policy = {"namespace": walk.stage.namespace, "health_policy": walk.pool}
    ready = len(await walk.stage.vms_of(phase="Ready"))
    assert metric(served, "vmpool_health_status", **of_policy) == 0
    of_pool = {"namespace": walk.stage.namespace, "pool": walk.pool}
    assert metric(served, "vmpool_health_queue_size", **of_pool, queue="ready") == ready >= REPLICAS
    letters = len(walk.walker.names("dl"))
    assert metric(served, "vmpool_health_dlq_total_size", **of_policy) == letters
    assert about(served, walk.pool)


async def test_set_up_dashboards(walk: Walk, served: Operator) -> None:
    await walk.to(2)
    await verdict(walk.stage, "healthy")
    panels = json.loads((DEPLOY / "monitoring/dashboard.json").read_text())["panels"]
    asked = {
        name
        for panel in panels
        for target in panel.get("targets", ())
        for name in re.findall(r"\bvmpool_[a-z_]+", target["expr"])
    }
    assert len(asked) > 20
    text = served.http("/metrics")
    live = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE vmpool_")}
    elsewhere = {family.name for family in GatewayMetrics().registry.collect()}
    suffix = re.compile(r"_(bucket|count|sum)$")
    unknown = {name for name in asked if name not in live and suffix.sub("", name) not in live}
    assert all(any(name.startswith(one) for one in elsewhere) for name in unknown), unknown
    assert {"vmpool_health_status", "vmpool_health_queue_size", "vmpool_dead_letters"} <= asked


async def test_configure_alerting(walk: Walk, served: Operator) -> None:
    await walk.to(2)
    rules = DEPLOY / "monitoring/rules.yaml"
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    done = run_tool(tool, "check", "rules", str(rules))
    assert done.returncode == 0, done.stdout + done.stderr
    groups = yaml.safe_load(rules.read_text())["groups"]
    made = {rule["record"]: rule["expr"] for group in groups for rule in group["rules"] if "record" in rule}
    alerts = {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"] if "alert" in rule}
    text = served.http("/metrics")
    for alert in ("VMPoolerUnhealthy", "VMPoolerHighDLQ", "VMPoolerStuckVMs"):
        (source,) = re.findall(r"\bvmpool_[a-z_]+", made[alerts[alert].split()[0]])
        assert f'{source}{{health_policy="{walk.pool}"' in text, f"{alert} has something to watch"


def run_tool(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PROMTOOL_SECONDS)


# --- phase 3: enable purge (dry-run) ------------------------------------------------------------------------------


async def test_add_purge_config_with_dry_run(walk: Walk) -> None:
    await walk.to(3)
    await walk.tidy.says("Ready", "True", "DryRun")
    ready = len(await walk.stage.vms_of(phase="Ready"))
    last = await walk.tidy.cycle(lambda one: one["found"] == ready, "all are listed")
    assert (last["dryRun"], last["purged"]) == (True, 0)
    await walk.tidy.more_cycles(2)
    assert walk.migration.first <= machine_ids(await walk.stage.vms_of(phase="Ready"))


async def test_monitor_logs_for_purge_detections(walk: Walk, served: Operator) -> None:
    await walk.to(3)
    wanted = {vm["metadata"]["name"] for vm in await walk.stage.vms_of(phase="Ready")}

    def detected() -> bool:
        grepped = [line for line in served.lines().splitlines() if re.search(r"purge.*dry-run", line)]
        events = [json.loads(line)["event"] for line in grepped]
        lines = [re.search(r"Would purge stale ready VM '(.+)' \(age: \d+s, max: 1s\)", event) for event in events]
        return {line[1] for line in lines if line} >= wanted

    await until(detected, deadline=DEADLINE, what="each VM is named in the log")
    assert "[!] [purge]" not in served.lines()


async def test_verify_thresholds_are_appropriate(walk: Walk, run: Run) -> None:
    await walk.to(3)
    walk.purging(maxReadyAge="1s")
    ready = len(await walk.stage.vms_of(phase="Ready"))
    now = run("purge", "run", walk.tidy.name, "--dry-run", "-n", walk.stage.namespace).stdout
    assert all(name in now for name in names(await walk.stage.vms_of(phase="Ready")))
    chosen = ("--set", "maxReadyAge=5h", "--set", "interval=1h", "--for", "8h")
    ahead = run("simulate", "purge", walk.tidy.name, "-n", walk.stage.namespace, *chosen).stdout
    assert f"after 5h: {ready} would be removed" in ahead


async def test_adjust_thresholds_based_on_observations(walk: Walk) -> None:
    await walk.to(3)
    walk.purging(maxReadyAge="24h")
    assert "ready after 24h" in await walk.tidy.says("Ready", "True", "DryRun")
    await walk.tidy.more_cycles(1)
    before = len(walk.tidy.said("[purge][dry-run]"))
    await walk.tidy.more_cycles(2)
    assert len(walk.tidy.said("[purge][dry-run]")) == before, "none is too old by now"


# --- phase 4: enable purge (live) ---------------------------------------------------------------------------------


async def test_set_dry_run_false(walk: Walk) -> None:
    await walk.to(4)
    assert "is removed: pending after 2h, ready after 24h" in await walk.tidy.says("Ready", "True", "Idle")
    assert walk.walker.shown("purge", walk.tidy.name)["DRY-RUN"] == "false"
    await walk.tidy.more_cycles(2)
    assert walk.migration.first <= machine_ids(await walk.stage.vms_of(phase="Ready")), "the first are there still"


async def test_monitor_queue_sizes_and_purge_counts(walk: Walk, served: Operator) -> None:
    await walk.to(4)
    old = names(await walk.stage.vms_of(phase="Ready"))
    labels = {"namespace": walk.stage.namespace, "purge_policy": walk.tidy.name, "state": "ready"}
    before = metric(served, "vmpool_purged_vms_total", **labels)
    # One cycle, at once; the next is hours away.
    walk.purging(maxReadyAge="1s", interval="8h")
    last = await walk.tidy.cycle(lambda one: one["purged"] >= len(old), "all are purged")
    assert {one["vm"] for one in last["vms"]} == old
    assert metric(served, "vmpool_purged_vms_total", **labels) == before + len(old)
    assert walk.tidy.said(f": {len(old)} entries purged")
    assert not names(await walk.stage.full(len(old))) & old
    of_pool = {"namespace": walk.stage.namespace, "pool": walk.pool, "queue": "ready"}

    def full_again() -> bool:
        return metric(served, "vmpool_health_queue_size", **of_pool) == len(old)

    await until(full_again, deadline=DEADLINE, what="the queue has its size again")


async def test_watch_for_unexpected_vm_removal(walk: Walk, kubectl: Kubectl) -> None:
    await walk.to(4)
    stage = walk.stage
    walk.purging(maxReadyAge="24h", interval="8h")
    count = len(await stage.vms_of(phase="Ready"))
    claimant = Claimant(stage)
    (bound,) = await claimant.bound(await claimant.ask())
    exempt = (await stage.full(count))[0]["metadata"]["name"]
    kubectl("annotate", "pvm", exempt, "-n", stage.namespace, f"{keys.ANNOTATION_PURGE_EXEMPT}=true")
    walk.purging(maxReadyAge="1s")
    last = await walk.tidy.cycle(lambda one: one["found"] > 0 and one["kept"] == 1, "the others are purged")
    gone = {one["vm"] for one in last["vms"]}
    assert gone
    assert not gone & {exempt, bound["name"]}
    await stage.full(count)
    assert await stage.phase(bound["name"]) == "Claimed"
    assert await stage.phase(exempt) == "Ready"
    assert not walk.tidy.said(f"[!] [purge] Moved stale ready VM '{exempt}'")
    assert not [line for line in walk.tidy.said("[!] [purge]") if bound["name"] in line["event"]]


async def test_adjust_thresholds_if_needed(walk: Walk) -> None:
    await walk.to(4)
    walk.purging(maxReadyAge="12h", interval="1s")
    assert "ready after 12h" in await walk.tidy.says("Ready", "True", "Idle")
    ready = names(await walk.stage.vms_of(phase="Ready"))
    purged = len(walk.tidy.said("[!] [purge]"))
    await walk.tidy.more_cycles(2)
    assert len(walk.tidy.said("[!] [purge]")) == purged
    assert names(await walk.stage.vms_of(phase="Ready")) >= ready
    conditions = walk.walker.get("vmp", walk.pool)["status"]["conditions"]
    assert {one["type"] for one in conditions} == {"Ready", *TYPES}


# --- best practices -----------------------------------------------------------------------------------------------

PRACTICE: dict[str, Json] = {
    "development": {"ttl": "48h", "dryRun": True, "maxPendingAge": "30m", "maxReadyAge": "6h", "interval": "1m"},
    "production": {"ttl": "168h", "dryRun": False, "maxPendingAge": "2h", "maxReadyAge": "24h", "interval": "5m"},
}
"""The guide's numbers; the interval is that of health checks."""


@pytest.mark.parametrize("where", PRACTICE)
async def test_best_practice_configuration_applies_and_its_pool_becomes_ready(
    where: str, stage: Stage, kubectl: Kubectl
) -> None:
    if (await stage.providers.get("simcloud")).status == 404:
        await stage.put_provider("simcloud")
    kubectl("apply", "-n", stage.namespace, "-f", str(DEPLOY / f"samples/reliability-{where}.yaml"))
    walker, pool = Walker(kubectl, stage), f"debian-12-{where}"

    def spec(kind: str, name: str) -> dict[str, Any]:
        return dict(walker.get(kind, f"{name}-{where}")["spec"])

    numbers = PRACTICE[where]
    purge = spec("purge", "stale")
    assert spec("dlq", "failures")["ttl"] == numbers["ttl"]
    assert {field: purge[field] for field in ("dryRun", "maxPendingAge", "maxReadyAge")}.items() <= numbers.items()
    assert spec("health", "fleet")["interval"] == numbers["interval"]
    await stage.pool_says("Ready", "True", "Filled", pool=pool)
    await stage.pool_says("Healthy", "True", pool=pool)
    found = walker.get("vmp", pool)
    assert condition(found, "PolicyMissing")["status"] == ""
