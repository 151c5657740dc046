"""Scenarios 3 to 5 of the guide: many dead letters, new purge thresholds, and alerts."""

import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.api import Json
from tests.commands import Run
from tests.control_plane.operator.box import Box
from tests.control_plane.operator.purges import Purge
from tests.control_plane.operator.stage import DEADLINE, Stage, metric, names
from tests.control_plane.operator.verdicts import judged, put_policy, verdict
from tests.guide.walking import Shelf, Walker, once
from tests.operators import Operator
from tests.planes import Kubectl
from tests.waiting import until

pytestmark = pytest.mark.control_plane

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/monitoring/rules.yaml"
ONCE = {"attempts": 1, "backoff": "100ms", "maxBackoff": "1s"}
POISON = 3
PROMTOOL_SECONDS = 60


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    return {}


@pytest.fixture
def walker(kubectl: Kubectl, stage: Stage) -> Walker:
    return Walker(kubectl, stage)


# --- scenario 3: high DLQ size ------------------------------------------------------------------------------------


@pytest.fixture
async def full_of_letters(stage: Stage, shelf: Shelf) -> Box:
    """A queue with the letters of a pool whose template is wrong, and one of another cause."""

    async def make() -> None:
        box = Box(stage)
        await box.make(poison={"failures": POISON})
        await box.put(f"{stage.pool}-other", 1, queueFrom="pending", errorMessage="no address", fingerprint="facade")
        await box.pool(replicas=1, template={"image": "centos-7-template"}, retry=ONCE)
        await stage.pool_says("Poisoned", "True")
        await box.holds(clone=POISON, pending=1)

    await once(shelf, "letters", stage, make)
    return Box(stage)


async def test_check_dlq_size(full_of_letters: Box, stage: Stage, walker: Walker, served: Operator) -> None:
    queue = full_of_letters.queue
    assert walker.path(f"dlq/{queue}", "{.status.entries}") == str(POISON + 1)
    sizes = walker.path(f"dlq/{queue}", "{range .status.queues[*]}{.name}={.entries} {end}").split()
    assert set(sizes) == {"pending=1", f"clone={POISON}"}
    shown = walker.shown("dlq", queue)
    assert (shown["ENTRIES"], shown["CAUSE"], shown["TIMES"]) == (str(POISON + 1), "InvalidTemplate", str(POISON))
    labels = {"namespace": stage.namespace, "dead_letter_queue": queue}
    assert metric(served, "vmpool_dead_letters", **labels, queue="clone") == POISON
    assert metric(served, "vmpool_dead_letters", **labels, queue="pending") == 1


async def test_identify_common_failure_patterns(full_of_letters: Box, stage: Stage, walker: Walker, run: Run) -> None:
    queue = full_of_letters.queue
    # The guide's jq, sort and uniq, with what kubectl prints.
    messages = Counter(walker.path("dl", r'{range .items[*]}{.spec.errorMessage}{"\n"}{end}').splitlines())
    (often, count), _ = messages.most_common(2)
    assert count == POISON
    assert "image 'centos-7-template' is unknown here" in often
    head, first, second = run("dlq", "list", "--queue", queue, "--group", "-n", stage.namespace).stdout.splitlines()
    assert head.split()[0] == "TIMES"
    assert first.split()[0] == str(POISON)
    assert "centos-7-template" in first
    assert second.split()[:2] == ["1", "facade"]
    frequent = walker.get("dlq", queue)["status"]["fingerprints"]
    assert [(one["entries"], one["errorMessage"]) for one in frequent] == [(POISON, often), (1, "no address")]
    assert first.split()[1] == frequent[0]["fingerprint"]


async def test_fix_underlying_issues_and_redrive_in_bulk(
    full_of_letters: Box, stage: Stage, walker: Walker, run: Run
) -> None:
    worst = walker.path(f"dlq/{full_of_letters.queue}", "{.status.fingerprints[0].fingerprint}")
    before = names(await full_of_letters.all("clone"))
    # Only the image appears at the provider: the template, and so the pool, stays poisoned until somebody redrives.
    images = stage.cloud.settings()["images"]
    stage.cloud.settings(images=[*images, "centos-7-template"])
    try:
        assert walker.path(f"vmp/{stage.pool}", '{.status.conditions[?(@.type=="Poisoned")].status}') == "True"
        asked = run("dlq", "redrive", "--fingerprint", worst, "-n", stage.namespace).stdout
        assert asked == f"redrive asked for {POISON} letters\n"
        (vm,) = await stage.full(1)
    finally:
        stage.cloud.settings(images=images)
    assert vm["spec"]["requestId"] in {one["spec"]["requestId"] for one in await full_of_letters.all("clone")}

    async def told() -> list[str] | None:
        phases = [one["status"]["phase"] for one in await full_of_letters.all("clone")]
        return None if "Kept" in phases else phases

    phases = await until(told, deadline=DEADLINE, what="each letter says what became of it")
    assert phases is not None
    assert Counter(phases) == {"Redriven": 1, "NotNeeded": POISON - 1}
    assert walker.path(f"vmp/{stage.pool}", '{.status.conditions[?(@.type=="Poisoned")].status}') in ("", "False")
    assert names(await full_of_letters.all("clone")) == before, "letters of what was mended stay until their TTL"


async def test_if_issues_resolved_dlq_entries_will_expire_after_ttl_default_7_days(
    full_of_letters: Box, stage: Stage, walker: Walker, served: Operator
) -> None:
    queue = full_of_letters.queue
    assert walker.path(f"dlq/{queue}", "{.spec.ttl}") == "168h"
    await full_of_letters.put(f"{stage.pool}-eight", 8)
    await full_of_letters.put(f"{stage.pool}-six", 6)
    await stage.gone(full_of_letters.letters, f"{stage.pool}-eight")
    assert len(await full_of_letters.all()) == POISON + 2
    walker.patch(f"dlq/{queue}", ttl="12h")
    left = names(await full_of_letters.some(POISON))
    assert left == names(await full_of_letters.all("clone")), "those of today"
    await full_of_letters.holds(clone=POISON)
    removed = {"dead_letter_queue": queue, "why": "expired"}
    assert metric(served, "vmpool_dead_letters_removed_total", **removed) == 3


# --- scenario 4: testing configuration changes --------------------------------------------------------------------


@pytest.fixture
async def tested(stage: Stage, shelf: Shelf, tidy: Purge, served: Operator) -> Purge:
    """A filled pool whose purge policy lists what a shorter age would remove."""

    async def make() -> None:
        await stage.filled(3)
        await tidy.put(dryRun=True, maxReadyAge="1s")
        await stage.change(purgePolicy=tidy.name)
        await tidy.cycle(lambda one: one["found"] == 3, "three are listed")

    await once(shelf, "tested", stage, make)
    return Purge(stage, served)


def dry_run_lines(tested: Purge) -> dict[str, Json]:
    """``grep "purge.*dry-run"`` over the log, this policy's lines by VM."""
    grepped = [json.loads(line) for line in tested.served.lines().splitlines() if re.search("purge.*dry-run", line)]
    mine = [line for line in grepped if line["policy"] == f"{tested.stage.namespace}/{tested.name}"]
    return {line["event"].split("'")[1]: line for line in mine}


async def test_enable_dry_run_mode(tested: Purge, stage: Stage, walker: Walker) -> None:
    assert walker.path(f"purge/{tested.name}", "{.spec.dryRun}") == "true"
    shown = walker.shown("purge", tested.name)
    assert (shown["STATUS"], shown["FOUND"], shown["PURGED"]) == ("DryRun", "3", "0")
    vms = names(await stage.full(3))
    await stage.looked(tested.served)
    assert names(await stage.full(3)) == vms


async def test_monitor_logs_for_purge_detections(tested: Purge, stage: Stage) -> None:
    lines = dry_run_lines(tested)
    assert lines.keys() == names(await stage.full(3))
    for name, line in lines.items():
        wanted = rf"\[\*\] \[purge\]\[dry-run\] Would purge stale ready VM '{name}' \(age: \d+s, max: 1s\)"
        assert re.fullmatch(wanted, line["event"])


async def test_verify_detection_is_correct(tested: Purge, stage: Stage, walker: Walker, run: Run) -> None:
    listed = walker.get("purge", tested.name)["status"]["lastCycle"]["vms"]
    ages = {one["vm"]: one["ageSeconds"] for one in listed}
    for vm in await stage.full(3):
        assert ages[vm["metadata"]["name"]] >= 1
    assert {(one["state"], one["maxSeconds"]) for one in listed} == {("ready", 1)}
    told = run("purge", "run", tested.name, "--dry-run", "-n", stage.namespace).stdout
    assert all(name in told for name in ages)


async def test_disable_dry_run_when_ready_and_what_was_listed_is_what_goes(
    tested: Purge, stage: Stage, walker: Walker
) -> None:
    listed = {one["vm"] for one in walker.get("purge", tested.name)["status"]["lastCycle"]["vms"]}
    assert len(listed) == 3
    # Its successors are left alone for as long as this test lasts.
    walker.patch(f"purge/{tested.name}", dryRun=False, interval="8h")
    last = await tested.cycle(lambda one: not one["dryRun"] and one["purged"] == 3, "three are purged")
    assert {one["vm"] for one in last["vms"]} == listed
    assert not names(await stage.full(3)) & listed
    moved = {line["event"].split("'")[1] for line in tested.said("[!] [purge] Moved stale ready VM '")}
    assert moved == listed


# --- scenario 5: alerting on queue health -------------------------------------------------------------------------

PRINTED: dict[str, dict[str, Any]] = {
    "VMPoolerUnhealthy": {
        "expr": "vmpooler_health_status >= 2",
        "for": "10m",
        "summary": "VMPooler is unhealthy",
        "source": "vmpool_health_status",
        "numbers": (1, 2),
    },
    "VMPoolerHighDLQ": {
        "expr": "vmpooler_health_dlq_total_size > 500",
        "for": "30m",
        "summary": "VMPooler DLQ size is high",
        "source": "vmpool_health_dlq_total_size",
        "numbers": (500, 501),
    },
    "VMPoolerStuckVMs": {
        "expr": "vmpooler_health_stuck_vms_count > 20",
        "for": "15m",
        "summary": "Many VMs stuck in pending queue",
        "source": "vmpool_health_stuck_vms_count",
        "numbers": (20, 21),
    },
}
"""The guide's alerts; the last number that does not set one off, and the first that does."""


@pytest.fixture
async def exported(stage: Stage, shelf: Shelf, served: Operator) -> str:
    """What the operator exports with a health policy in force."""

    async def make() -> None:
        await put_policy(stage)
        await judged(stage, 1)
        await verdict(stage, "healthy")

    await once(shelf, "judged", stage, make)
    return served.http("/metrics")


def promtool(file: Path) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    argv = [tool, "test", "rules", str(file)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PROMTOOL_SECONDS)


@pytest.mark.parametrize("alert", PRINTED)
async def test_set_up_prometheus_alerts_based_on_health_metrics(
    alert: str, exported: str, stage: Stage, tmp_path: Path
) -> None:
    printed = PRINTED[alert]
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rule = next(one for group in groups for one in group["rules"] if one.get("alert") == alert)
    assert (rule["expr"], rule["for"]) == (printed["expr"], printed["for"])
    assert rule["annotations"]["summary"] == printed["summary"]
    (series,) = [
        line.rsplit(" ", 1)[0]
        for line in exported.splitlines()
        if line.startswith(f"{printed['source']}{{") and f'health_policy="{stage.pool}"' in line
    ]
    minutes = int(printed["for"].removesuffix("m"))
    calm, alarming = printed["numbers"]
    labels = series.replace(printed["source"], "ALERTS").removesuffix("}")
    fires = f'{labels}, alertname="{alert}", alertstate="firing", severity="{rule["labels"]["severity"]}"}}'
    firing = f'ALERTS{{alertname="{alert}", alertstate="firing"}}'
    cases = [
        {
            "interval": "1m",
            "input_series": [{"series": series, "values": f"{value}x{minutes + 5}"}],
            "promql_expr_test": [
                {"expr": firing, "eval_time": f"{minutes - 2}m", "exp_samples": []},
                {"expr": firing, "eval_time": f"{minutes + 2}m", "exp_samples": samples},
            ],
        }
        for value, samples in ((alarming, [{"labels": fires, "value": 1}]), (calm, []))
    ]
    order = [group["name"] for group in groups]
    made = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "group_eval_order": order, "tests": cases}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(made))
    done = promtool(tmp_path / "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
