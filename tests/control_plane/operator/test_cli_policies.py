"""``vmpool explain``, ``health``, ``purge run`` and ``simulate`` beside a real operator."""

import re
from pathlib import Path

import pytest

from tests.commands import Run, command
from tests.control_plane.operator.claimant import Claimant
from tests.control_plane.operator.stage import DEADLINE, Stage
from tests.objects import thing
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane

LONG = "1000h"
EVERYTHING = "vmp,pvm,vmprov,vmc,dlq,dl,purge,health"


@pytest.fixture
def run(plane: ControlPlane, stage: Stage) -> Run:
    return command(plane)


async def put(stage: Stage, plural: str, kind: str, name: str, **spec: object) -> None:
    (await stage.api.kind(plural, stage.namespace).create(thing(kind, name, dict(spec)))).ok()


async def test_a_full_pool_and_its_vm_are_explained(stage: Stage, run: Run) -> None:
    await put(stage, "purgepolicies", "PurgePolicy", stage.pool, maxReadyAge=LONG)
    (vm,) = await stage.filled(1, purgePolicy=stage.pool, recycle={"readyTTL": "24h"})
    told = run("explain", f"pool/{stage.pool}", "-n", stage.namespace).stdout
    for part in ("Ready=True", "1 of 1 ready", "wants 1 ready", "recycle.readyTTL", "Events", "Filled"):
        assert part in told
    name = vm["metadata"]["name"]
    told = run("explain", f"vm/{name}", "-n", stage.namespace).stdout
    for part in ("Ready for", "step create was done", "became Ready", "the next purge removes it", "3600000 s"):
        assert part in told


async def test_a_pool_that_cannot_fill_is_explained_with_its_failure(stage: Stage, run: Run) -> None:
    await stage.put_provider()
    stage.fault("failBefore", "create", status=422, code="UnknownImage")
    await stage.put_pool(replicas=2, retry={"attempts": 1, "backoff": "1s", "maxBackoff": "10m"})

    async def failed() -> bool:
        return bool((await stage.status()).get("recentFailures"))

    await until(failed, deadline=DEADLINE, what="a create fails")
    told = run("explain", f"pool/{stage.pool}", "-n", stage.namespace).stdout
    assert "lacks 2" in told
    assert "at step create" in told
    assert "UnknownImage" in told


async def test_a_claim_that_waits_and_one_that_is_served_are_explained(stage: Stage, run: Run) -> None:
    await stage.filled(1, maxVMs=1)
    claimant = Claimant(stage)
    served = await claimant.ask()
    await claimant.comes_to(served, "Bound")
    waits = await claimant.ask()

    async def told() -> bool:
        return bool((await claimant.status(waits)).get("position"))

    await until(told, deadline=DEADLINE, what="the second claim has its place")
    text = run("explain", f"claim/{served}", "-n", stage.namespace).stdout
    assert "Bound" in text
    assert "taken back unless it is extended" in text
    text = run("explain", f"claim/{waits}", "-n", stage.namespace).stdout
    assert "place in the queue: 1" in text
    assert f"VMPool {stage.pool}: 0 ready" in text


async def test_what_is_not_there_or_makes_no_sense_is_said(stage: Stage, run: Run) -> None:
    assert "there is no VMPool nothing" in run("explain", "pool/nothing", "-n", stage.namespace, code=1).stdout
    assert "none of pool/NAME" in run("explain", "house/x", code=2).stdout
    assert "no PurgePolicy x" in run("purge", "run", "x", "--dry-run", "-n", stage.namespace, code=1).stderr
    assert "only --dry-run" in run("purge", "run", code=2).stderr
    assert "no HealthPolicy x" in run("health", "x", "-n", stage.namespace, code=1).stderr
    assert "nowhere" in run("health", "--context", "nowhere", code=1).stderr


async def test_purge_lists_what_is_too_old_and_the_clock_can_be_turned(
    stage: Stage, run: Run, kubectl: Kubectl, tmp_path: Path
) -> None:
    await put(stage, "purgepolicies", "PurgePolicy", stage.pool, dryRun=True, maxReadyAge="1s")
    old, exempt = await stage.filled(2, purgePolicy=stage.pool)
    name = exempt["metadata"]["name"]
    (await stage.vms.merge(name, {"metadata": {"annotations": {keys.ANNOTATION_PURGE_EXEMPT: "true"}}})).ok()

    def listed() -> bool:
        text = run("purge", "run", "--dry-run", "-n", stage.namespace).stdout
        return old["metadata"]["name"] in text and "1 are kept" in text and f" {name}" not in text

    await until(listed, deadline=DEADLINE, what="the older VM is listed")
    ahead = run("simulate", "purge", "-n", stage.namespace, "--set", "maxReadyAge=5h", "--for", "8h").stdout
    assert "after 5h: 1 would be removed" in ahead
    assert "1 VMs in 8h" in ahead
    dump = tmp_path / "dump.yaml"
    dump.write_text(kubectl("get", EVERYTHING, "-n", stage.namespace, "-o", "yaml"))
    again = run("simulate", "purge", "--file", str(dump), "--set", "maxReadyAge=5h", "--for", "8h").stdout
    # But for the seconds between the two.
    assert re.sub(r"\d+s", "s", again) == re.sub(r"\d+s", "s", ahead)
    assert (
        "there is no field nonsense"
        in run("simulate", "purge", "--file", str(dump), "--set", "nonsense=1", code=1).stderr
    )
    assert "maxReadyAge" in run("simulate", "purge", "--file", str(dump), "--set", "maxReadyAge=0s", code=1).stderr
    assert "cannot be read" in run("simulate", "purge", "--file", str(tmp_path / "none"), code=1).stderr


async def test_health_says_how_pools_are_and_how_they_will_be(stage: Stage, run: Run) -> None:
    await put(stage, "healthpolicies", "HealthPolicy", stage.pool, interval="1s")
    await stage.filled(1, healthPolicy=stage.pool)
    await stage.says(stage.api.kind("healthpolicies", stage.namespace), stage.pool, "Healthy", "True")
    told = run("health", stage.pool, "-n", stage.namespace).stdout
    assert f"HealthPolicy {stage.namespace}/{stage.pool}: healthy" in told
    assert stage.pool in told.splitlines()[-1]
    (
        await stage.api.kind("healthpolicies", stage.namespace).merge(
            stage.pool, {"spec": {"thresholds": {"readyQueueMax": 1}}}
        )
    ).ok()
    await stage.change(replicas=3)
    await stage.says(stage.api.kind("healthpolicies", stage.namespace), stage.pool, "Unhealthy", "True")
    told = run("health", stage.pool, "-n", stage.namespace, code=2).stdout
    assert "more than 2 (twice 1)" in told
    ahead = run("simulate", "health", stage.pool, "-n", stage.namespace, "--set", "interval=1h", "--for", "3h").stdout
    assert f"after 0s: {stage.pool} unhealthy" in ahead
    better = run(
        "simulate", "health", stage.pool, "-n", stage.namespace, "--set", "thresholds.readyQueueMax=50", "--for", "1h"
    ).stdout
    assert f"{stage.pool} healthy" in better
