"""The guide's second part, "Auto-Purge": what gets purged, what it is good for, and what stands in the log."""

import re

import pytest

from tests.api import Json
from tests.control_plane.operator.purges import NEVER, Purge
from tests.control_plane.operator.stage import DEADLINE, Stage, names
from tests.guide.terminal import Typed
from tests.objects import thing
from tests.operators import Operator
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane

NOT_BY_ITSELF = {"backoff": "10m", "maxBackoff": "10m"}
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def typed(plane: ControlPlane, shared_namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Typed:
    return Typed(plane, shared_namespace, tmp_path_factory.mktemp("typed"))


def grep(typed: Typed, tidy: Purge, pattern: str) -> list[str]:
    """What ``grep PATTERN vmpool.log`` finds about the test's policy: the text of each line."""
    found = typed.shell(
        f"grep '{pattern}' {tidy.served.log} | grep -F '\"{tidy.stage.namespace}/{tidy.name}\"' || true"
    )
    return re.findall(r'"event": "([^"]*)"', found)


async def stuck(stage: Stage, tidy: Purge, **spec: object) -> None:
    """A pool whose first VM never gets ready."""
    await stage.put_provider()
    stage.fault("neverReady", "create", count=1)
    await stage.put_pool(replicas=1, purgePolicy=tidy.name, readiness={"timeout": "10m"}, **spec)


async def stray(stage: Stage) -> str:
    """A machine with the install's tag that no VM stands for; return its id."""
    identity = (await stage.api.kind("configmaps", stage.namespace, api="/api/v1").get(keys.IDENTITY_CONFIGMAP)).ok()
    tags = {keys.TAG_INSTALL: identity["data"]["installId"], keys.TAG_UID: NOBODY, keys.TAG_POOL: stage.pool}
    return stage.cloud.made(stage.tenant, image="sim/stray", tags=tags)


async def first(tidy: Purge, state: str) -> Json:
    """Wait for a live cycle that purges, return what it purged of a state, and purge no more."""
    last = await tidy.cycle(lambda one: one["purged"] >= 1, f"a {state} VM is purged")
    await tidy.put(**{f"max{state.capitalize()}Age": NEVER})
    (entry, *_) = last["vms"]
    assert (entry["state"], entry["pool"]) == (state, tidy.stage.pool)
    assert entry["ageSeconds"] >= entry["maxSeconds"]
    return dict(entry)


# --- what gets purged -------------------------------------------------------------------------------------------------


async def test_pending_vms_stuck_in_pending_queue_longer_than_max_pending_age(
    stage: Stage, tidy: Purge, typed: Typed
) -> None:
    await tidy.put(maxPendingAge="2s")
    await stuck(stage, tidy, recycle={"quarantineTTL": "0s"})
    entry = await first(tidy, "pending")
    assert names(await stage.full(1)) != {entry["vm"]}, "its place is filled anew"
    (line,) = grep(typed, tidy, "Purged stale pending VM")
    said = f"[!] [purge] Purged stale pending VM '{entry['vm']}' from '{stage.pool}' (age: {entry['ageSeconds']}s)"
    assert line == said


async def test_ready_vms_idle_in_ready_queue_longer_than_max_ready_age(stage: Stage, tidy: Purge, typed: Typed) -> None:
    await tidy.put(maxReadyAge="1s")
    await stage.filled(1, purgePolicy=tidy.name)
    entry = await first(tidy, "ready")
    await stage.in_phase(entry["vm"], "Gone")
    await stage.full(1)
    lines = grep(typed, tidy, f"Moved stale ready VM '\\''{entry['vm']}")
    age = entry["ageSeconds"]
    assert lines == [f"[!] [purge] Moved stale ready VM '{entry['vm']}' from '{stage.pool}' to completed (age: {age}s)"]


async def test_completed_vms_in_completed_queue_longer_than_max_completed_age(
    stage: Stage, tidy: Purge, typed: Typed
) -> None:
    """VMPooler forgets them; here the destruction is begun anew."""
    (vm,) = await stage.filled(1, retry=NOT_BY_ITSELF)
    rule = stage.fault("failBefore", "delete")
    await stage.change(replicas=0)
    name = vm["metadata"]["name"]
    await stage.in_phase(name, "Completed")
    await until(lambda: stage.cloud.faults()[-1]["fired"] >= 1, deadline=DEADLINE, what="its deletion was refused")
    stage.mend(rule)
    await tidy.put(maxCompletedAge="1s")
    await stage.change(purgePolicy=tidy.name)
    await stage.in_phase(name, "Gone")
    assert not stage.alive(), "the next try would have been ten minutes away"
    lines = await until(lambda: grep(typed, tidy, "stale completed VM"), deadline=DEADLINE, what="it is said")
    form = rf"\[!\] \[purge\] Destroying stale completed VM '{name}' from '{stage.pool}' again \(age: \d+s\)"
    assert all(re.fullmatch(form, line) for line in lines)


async def test_orphaned_metadata_vm_without_corresponding_queue_entry(stage: Stage, tidy: Purge, typed: Typed) -> None:
    """A machine of ours that no VM of any pool stands for."""
    await tidy.put(maxOrphanedAge="1s")
    await stage.filled(1, purgePolicy=tidy.name)
    machine = await stray(stage)
    await until(lambda: stage.cloud.state(stage.tenant, machine) == "Gone", deadline=DEADLINE, what="it is destroyed")
    lines = await until(lambda: grep(typed, tidy, "Purged orphaned machine"), deadline=DEADLINE, what="it is said")
    (line,) = lines
    assert re.fullmatch(rf"\[!\] \[purge\] Purged orphaned machine '{machine}' of '{stage.pool}' \(age: \d+s\)", line)
    assert len(await stage.full(1)) == 1, "the pool's own VM stays"


# --- benefits ---------------------------------------------------------------------------------------------------------


async def test_automatically_cleans_up_after_process_crashes(stage: Stage, tidy: Purge, served: Operator) -> None:
    """kill -9, and its VM object is forced away meanwhile: the machine is left to nobody."""
    await tidy.put(maxOrphanedAge="1s")
    (vm,) = await stage.filled(1, purgePolicy=tidy.name)
    name, machine = vm["metadata"]["name"], vm["status"]["machineId"]
    served.kill()
    (await stage.vms.merge(name, {"metadata": {"finalizers": None}})).ok()
    (await stage.vms.delete(name)).ok()
    await stage.in_phase(name, "Gone")
    assert machine in stage.alive()
    served.start()
    await served.ready()
    await until(lambda: machine not in stage.alive(), deadline=DEADLINE, what="it is destroyed")
    await until(lambda: tidy.said(f"Purged orphaned machine '{machine}'"), deadline=DEADLINE, what="it is said")
    await stage.full(1)


async def test_configurable_thresholds_per_environment(stage: Stage, tidy: Purge) -> None:
    """Two policies in one namespace: what one pool may keep, another may not."""
    await tidy.put(maxReadyAge="1s", dryRun=True)
    calm = Purge(stage, tidy.served)
    calm.name = f"calm-{tidy.name}"
    await calm.put(dryRun=True)
    (old,) = await stage.filled(1, purgePolicy=tidy.name)
    await stage.put_pool(f"{stage.pool}-calm", replicas=1, purgePolicy=calm.name)
    await stage.full(1, f"{stage.pool}-calm")
    last = await tidy.cycle(lambda one: one["found"] == 1, "one is too old")
    assert [one["vm"] for one in last["vms"]] == [old["metadata"]["name"]]
    await calm.more_cycles()
    assert "lastCycle" not in await calm.status()


async def test_dry_run_mode_for_safe_testing(stage: Stage, tidy: Purge, typed: Typed) -> None:
    """``purge_dry_run: true`` and a short threshold; "watch logs for"."""
    await tidy.put(maxPendingAge="1s", dryRun=True)
    await stuck(stage, tidy)
    last = await tidy.cycle(lambda one: one["found"] == 1, "the stuck VM is listed")
    (entry,) = last["vms"]
    assert (last["dryRun"], last["purged"], entry["state"]) == (True, 0, "pending")
    lines = grep(typed, tidy, "purge.*dry-run")
    name, age = entry["vm"], entry["ageSeconds"]
    assert f"[*] [purge][dry-run] Would purge stale pending VM '{name}' (age: {age}s, max: 1s)" in lines
    form = rf"\[\*\] \[purge\]\[dry-run\] Would purge stale pending VM '{name}' \(age: \d+s, max: 1s\)"
    assert all(re.fullmatch(form, line) for line in lines)
    await tidy.more_cycles()
    assert await stage.phase(name) == "Pending"
    assert not grep(typed, tidy, "Purged stale")
    shown = typed.shell(f"kubectl get purge {tidy.name} --no-headers").split()
    assert shown[:3] == [tidy.name, "true", "1s"]


# --- logs and configuration -------------------------------------------------------------------------------------------


async def test_monitoring_purge_check_logs_for_purge_cycles(stage: Stage, tidy: Purge, typed: Typed) -> None:
    """Each line of the guide's "Monitoring purge", found by its words."""
    await tidy.put(maxReadyAge="1s", maxPerCycle=2)
    await stage.filled(2, purgePolicy=tidy.name)
    await tidy.cycle(lambda one: one["purged"] >= 1, "ready VMs are purged")
    await tidy.put(maxReadyAge=NEVER)
    await stage.full(2)
    start = grep(typed, tidy, "Starting stale queue entry purge cycle")
    assert set(start) == {"[*] [purge] Starting stale queue entry purge cycle"}
    ends = grep(typed, tidy, "Completed purge cycle in")
    counts = [
        re.fullmatch(r"\[\*\] \[purge\] Completed purge cycle in \d+\.\d\ds: (\d+) entries purged", e) for e in ends
    ]
    assert all(counts)
    moved = grep(typed, tidy, "Moved stale ready VM")
    assert len(moved) == sum(int(one[1]) for one in counts if one is not None) >= 1


def test_the_configuration_has_the_defaults_of_the_guide(typed: Typed, served: Operator) -> None:
    """purge_interval 3600, max ages 7200, 86400, 3600 and 86400 seconds, purge_dry_run false."""
    typed.apply(thing("PurgePolicy", "defaults", {}))
    spec = typed.get("purge defaults")["spec"]
    assert {key: spec[key] for key in spec if key != "maxPerCycle"} == {
        "interval": "1h",
        "maxPendingAge": "2h",
        "maxReadyAge": "24h",
        "maxCompletedAge": "1h",
        "maxOrphanedAge": "24h",
        "dryRun": False,
    }


async def test_purge_is_opt_in(stage: Stage, tidy: Purge) -> None:
    """``purge_enabled``: a pool that names no policy keeps everything."""
    await tidy.put(maxReadyAge="1s")
    vms = names(await stage.filled(1))
    await tidy.more_cycles()
    assert names(await stage.full(1)) == vms
    assert (await tidy.status())["pools"] == 0
