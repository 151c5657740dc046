"""What a purge policy removes, what it leaves alone, and what it says: on a real server, with real machines."""

import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.api import Json
from tests.control_plane.operator.purges import NEVER, SOON, Purge
from tests.control_plane.operator.stage import DEADLINE, Stage, condition, metric, names
from tests.objects import claim
from tests.operators import Operator, serving
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane

WIDTH = 120
SOME_UID = "00000000-0000-4000-8000-000000000000"
START = "[*] [purge] Starting stale queue entry purge cycle"


@pytest.fixture(scope="module")
def served(
    plane: ControlPlane, shared_namespace: str, crds_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    """An operator that looks again soon after a policy's pools change."""
    with serving(plane, shared_namespace, tmp_path_factory.mktemp("operator"), **SOON) as made:
        yield made


@pytest.fixture
def tidy(stage: Stage, served: Operator) -> Purge:
    return Purge(stage, served)


def until_true(check: Callable[[], Awaitable[bool]], what: str) -> Awaitable[bool]:
    return until(check, deadline=DEADLINE, what=what)


async def letters(stage: Stage) -> list[Json]:
    found = stage.api.kind("deadletters", stage.namespace)
    return list((await found.list(fieldSelector=f"spec.pool={stage.pool}")).ok()["items"])


# --- what gets purged -----------------------------------------------------------------------------------------------


async def test_a_ready_vm_that_nobody_takes_is_moved_to_completed_and_replaced(
    stage: Stage, tidy: Purge, kubectl: Kubectl
) -> None:
    old = names(await stage.filled(2))
    version = await stage.version()
    await tidy.put(maxReadyAge="1s")
    await stage.change(purgePolicy=tidy.name)
    last = await tidy.cycle(lambda one: one["purged"] >= 2, "two ready VMs were purged")
    assert last["dryRun"] is False
    assert {(one["vm"], one["pool"], one["state"], one["maxSeconds"]) for one in last["vms"]} == {
        (name, stage.pool, "ready", 1) for name in old
    }
    assert all(one["ageSeconds"] >= 1 for one in last["vms"])
    await tidy.put(maxReadyAge=NEVER)
    assert not names(await stage.full(2)) & old
    for name in old:
        (line,) = tidy.said(f"Moved stale ready VM '{name}'")
        assert line["event"].startswith(f"[!] [purge] Moved stale ready VM '{name}' from '{stage.pool}' to completed (")
        assert line["level"] == "warning"
    assert tidy.said(START)[0]["event"] == START
    assert tidy.said(": 2 entries purged")[0]["level"] == "info"
    # One write by the purge; claims, failures and letters have nothing to do with it.
    ends = [one for one in stage.replay(kubectl, version) if one["metadata"]["name"] in old and not one["deleted"]]
    purged = [one for one in ends if one["status"].get("reason") == "Purged"]
    assert names(purged) == old
    assert not (await stage.status()).get("recentFailures")
    assert metric(tidy.served, "vmpool_purged_vms_total", purge_policy=tidy.name, state="ready") >= 2
    assert metric(tidy.served, "vmpool_purge_cycles_total", purge_policy=tidy.name, outcome="live") >= 1


async def test_a_vm_stuck_in_pending_is_ended_as_a_failure_with_a_letter_and_a_successor(
    stage: Stage, tidy: Purge
) -> None:
    await stage.put_provider()
    # The first machine only: its place is filled anew at once.
    stage.fault("neverReady", "create", count=1)
    await tidy.put(maxPendingAge="2s")
    await stage.put_pool(replicas=1, purgePolicy=tidy.name, deadLetterQueue="failed", readiness={"timeout": "10m"})
    last = await tidy.cycle(lambda one: one["purged"] >= 1, "a pending VM was purged")
    await tidy.put(maxPendingAge=NEVER)
    victim = last["vms"][0]["vm"]
    assert tidy.said(f"[!] [purge] Purged stale pending VM '{victim}' from '{stage.pool}' (age: ")
    (vm,) = await stage.full(1)
    assert vm["spec"]["retryCount"] >= 1, "it goes on with the request of the one that was stuck"
    (letter,) = [one for one in await letters(stage) if one["spec"]["vm"] == victim]
    assert letter["spec"]["queueFrom"] == "pending"
    assert letter["spec"]["errorClass"] == "PurgedPending"
    assert letter["spec"]["errorMessage"].endswith(f" s; PurgePolicy {tidy.name} allows 2 s")
    assert letter["spec"]["requestId"] == vm["spec"]["requestId"]


@pytest.mark.parametrize("fault", ["failBefore", "neverGone"])
async def test_a_destruction_that_does_not_end_is_begun_anew_and_told_and_the_object_stays(
    stage: Stage, tidy: Purge, fault: str
) -> None:
    (vm,) = await stage.filled(1, deadLetterQueue="failed")
    name, machine = vm["metadata"]["name"], vm["status"]["machineId"]
    rule = stage.fault(fault, "delete")
    # By itself what was refused would be tried again long after the end of this test.
    await stage.change(retry={"backoff": "10m", "maxBackoff": "10m"}, replicas=0)
    await stage.in_phase(name, "Completed")
    await until(lambda: _fired(stage, rule) >= 1, deadline=DEADLINE, what="its deletion was asked for")
    await tidy.put(maxCompletedAge="1s")
    await stage.change(purgePolicy=tidy.name)
    await tidy.cycle(lambda one: one["purged"] == 1, "it was begun anew")
    assert await stage.phase(name) == "Completed", "never forgotten while the machine is there"
    assert machine in stage.alive()
    assert tidy.said(f"[!] [purge] Destroying stale completed VM '{name}' from '{stage.pool}' again (age: ")
    await tidy.more_cycles(2)
    (letter,) = await letters(stage)
    assert letter["metadata"]["name"] == f"{name}-tasks-1"
    assert letter["spec"]["errorClass"] == "NotDestroyed"
    assert letter["spec"]["step"] == "destroy"
    assert letter["spec"]["errorMessage"].startswith("not destroyed: completed for ")
    assert _fired(stage, rule) >= 3, "each cycle asks"
    stage.mend(rule)
    await stage.in_phase(name, "Gone")
    assert machine not in stage.alive()


def _fired(stage: Stage, rule: int) -> int:
    return next(int(one["fired"]) for one in stage.cloud.faults() if one["id"] == rule)


async def stray(stage: Stage) -> str:
    """Make a machine with the operator's install id past it; return its id."""
    identity = (await stage.api.kind("configmaps", stage.namespace, api="/api/v1").get("vmpool-identity")).ok()
    tags = {keys.TAG_INSTALL: identity["data"]["installId"], keys.TAG_UID: SOME_UID, keys.TAG_POOL: stage.pool}
    return stage.cloud.made(stage.tenant, image="sim/stray", tags=tags)


async def test_an_orphan_is_listed_by_a_dry_run_and_destroyed_by_a_live_one(stage: Stage, tidy: Purge) -> None:
    await tidy.put(maxOrphanedAge="1s", dryRun=True)
    await stage.filled(1, purgePolicy=tidy.name)
    machine = await stray(stage)
    last = await tidy.cycle(lambda one: one["found"] == 1, "the orphan is listed")
    (entry,) = last["vms"]
    assert (entry["state"], last["purged"]) == ("orphaned", 0)
    await tidy.more_cycles()
    assert stage.cloud.state(stage.tenant, machine) == "Running"
    assert tidy.said(f"[*] [purge][dry-run] Would purge stale orphaned VM '{entry['vm']}' (age: ")

    await tidy.put(dryRun=False)
    await until(lambda: stage.cloud.state(stage.tenant, machine) == "Gone", deadline=DEADLINE, what="it is destroyed")
    await stage.in_phase(entry["vm"], "Gone")
    assert tidy.said(f"[!] [purge] Purged orphaned machine '{machine}' of '{stage.pool}' (age: ")
    await stage.full(1)


# --- what does not --------------------------------------------------------------------------------------------------


async def test_claimed_and_exempt_vms_stay_whatever_their_age(stage: Stage, tidy: Purge) -> None:
    claimed, exempt, _ = await stage.filled(3)
    taken, spared = claimed["metadata"]["name"], exempt["metadata"]["name"]
    far = {"boundAt": "2026-01-01T00:00:00Z", "expiresAt": "2099-01-01T00:00:00Z"}
    (await stage.vms.merge(taken, {"spec": {"claim": claim(**far)}})).ok()
    (await stage.vms.merge(spared, {"metadata": {"annotations": {keys.ANNOTATION_PURGE_EXEMPT: "true"}}})).ok()
    await stage.in_phase(taken, "Claimed")
    await tidy.put(maxReadyAge="1s", maxPendingAge="10m")
    await stage.change(purgePolicy=tidy.name)
    last = await tidy.cycle(lambda one: one["purged"] >= 1, "the third one was purged")
    assert last["kept"] == 1, "the exempt one is counted, the claimed one is not even looked at"
    await tidy.more_cycles()
    assert await stage.phase(taken) == "Claimed"
    assert await stage.phase(spared) == "Ready"
    assert not tidy.said(taken)
    assert not tidy.said(spared)


async def test_a_dry_run_lists_and_logs_and_removes_nothing(stage: Stage, tidy: Purge) -> None:
    vms = names(await stage.filled(3))
    await tidy.put(maxReadyAge="1s", dryRun=True, maxPerCycle=2)
    await stage.change(purgePolicy=tidy.name)
    last = await tidy.cycle(lambda one: one["found"] == 3, "three are listed")
    assert (last["dryRun"], last["purged"], last["deferred"], last["kept"]) == (True, 0, 1, 0)
    assert len(last["vms"]) == 2
    assert {one["vm"] for one in last["vms"]} < vms
    for one in last["vms"]:
        line = f"[*] [purge][dry-run] Would purge stale ready VM '{one['vm']}' (age: {one['ageSeconds']}s, max: 1s)"
        assert [said["event"] for said in tidy.said(line)] == [line]
    await tidy.more_cycles()
    assert names(await stage.full(3)) == vms
    assert not tidy.said("[!] [purge]")
    assert all(": 0 entries purged" in line["event"] for line in tidy.said("Completed purge cycle"))
    assert "is only listed: " in await tidy.says("Ready", "True", "DryRun")


async def test_a_cycle_removes_no_more_than_its_budget_oldest_first(stage: Stage, tidy: Purge) -> None:
    vms = await stage.filled(3)
    for month, vm in enumerate(vms, 1):
        since = {"phaseSince": f"2026-0{month}-01T00:00:00.000000Z"}
        (await stage.vms.merge(vm["metadata"]["name"], {"status": since}, "status")).ok()
    await tidy.put(maxReadyAge="2h", interval="8h", maxPerCycle=2)
    await stage.change(purgePolicy=tidy.name)
    # The cycle at the start may have been before the pool named the policy; a changed spec begins another one.
    await until_true(lambda: _pools(tidy, 1), "the policy sees its pool")
    await tidy.put(maxReadyAge="1h")
    # Nor may one that was on its way when the spec changed be taken for it.
    last = await tidy.cycle(lambda one: one["found"] == 3 and one["purged"] > 0, "three are too old")
    assert (last["purged"], last["deferred"], last["kept"]) == (2, 1, 0)
    assert [one["vm"] for one in last["vms"]] == [vm["metadata"]["name"] for vm in vms[:2]]
    assert names(await stage.full(3)) & names(vms) == names(vms[2:])


async def _pools(tidy: Purge, count: int) -> bool:
    return (await tidy.status()).get("pools") == count


async def test_a_named_pause_stops_it_and_is_told_by_name_until_it_ends(stage: Stage, tidy: Purge) -> None:
    vms = names(await stage.filled(1))
    pause = {"name": "datacenter-move", "reason": "racks are carried"}
    await tidy.put(maxReadyAge="1s", pauses=[pause])
    await stage.change(purgePolicy=tidy.name)
    message = await tidy.says("Paused", "True", "Paused")
    assert message == "nothing is removed: spec.pauses has datacenter-move (racks are carried)"
    last = await tidy.cycle(lambda one: one["found"] == 1, "what would go is listed")
    assert (last["dryRun"], last["purged"]) == (True, 0)
    await tidy.more_cycles()
    assert names(await stage.full(1)) == vms

    # One whose time is over pauses nothing.
    await tidy.put(pauses=[{**pause, "until": "2026-01-01T00:00:00Z"}])
    await tidy.cycle(lambda one: one["purged"] == 1, "it goes on")
    assert condition({"status": await tidy.status()}, "Paused")["status"] == ""


async def test_a_paused_pool_is_left_alone_and_named(stage: Stage, tidy: Purge) -> None:
    vms = names(await stage.filled(1))
    await stage.change(paused=True, purgePolicy=tidy.name)
    await tidy.put(maxReadyAge="1s")
    message = await tidy.says("Paused", "True", "PoolsPaused")
    assert message == f"nothing is removed from VMPool {stage.pool}: spec.paused is true"
    last = await tidy.cycle(lambda one: one["kept"] == 1, "it is counted")
    assert (last["found"], last["purged"]) == (1, 0)
    assert names(await stage.vms_of(phase="Ready")) == vms


async def test_a_pool_that_names_the_policy_need_not_wait_for_the_next_cycle(stage: Stage, tidy: Purge) -> None:
    await tidy.put(maxReadyAge="1s", dryRun=True, interval="168h")
    await stage.filled(1)
    old_at = time.monotonic() + 1.5
    await until(lambda: tidy.cycles() == 1, deadline=DEADLINE, what="the first cycle has ended, without the pool")
    await until(lambda: time.monotonic() > old_at, deadline=DEADLINE, what="the VM is too old")
    await stage.change(purgePolicy=tidy.name)
    await tidy.cycle(lambda one: one["found"] == 1, "the pool's VM is listed")
    interval = {"name": "vmpool_purge_interval_seconds", "purge_policy": tidy.name}
    assert metric(tidy.served, **interval) == 168 * 3600


async def test_without_its_policy_a_pool_keeps_everything_and_says_that_it_is_missing(
    stage: Stage, tidy: Purge
) -> None:
    await tidy.put(maxReadyAge="3s")
    await stage.filled(1, purgePolicy=tidy.name)
    await tidy.cycle(lambda one: one["purged"] >= 1, "the policy works")
    (await tidy.policies.delete(tidy.name)).ok()
    message = await stage.pool_says("PolicyMissing", "True", "NotFound")
    assert f"PurgePolicy {tidy.name} " in message
    (vm,) = await stage.full(1)
    ended = tidy.cycles()
    await stage.looked(tidy.served, 6)
    assert tidy.cycles() == ended
    assert names(await stage.full(1)) == {vm["metadata"]["name"]}
    assert not metric(tidy.served, "vmpool_purge_last_cycle_timestamp_seconds", purge_policy=tidy.name)


async def test_a_policy_that_finds_nothing_writes_nothing(stage: Stage, tidy: Purge) -> None:
    await tidy.put()
    await stage.filled(1, purgePolicy=tidy.name)
    await until_true(lambda: _pools(tidy, 1), "the policy sees its pool")
    assert "is removed: pending after 8000h, " in await tidy.says("Ready", "True", "Idle")
    before = (await tidy.policies.get(tidy.name)).ok()
    await tidy.more_cycles(4)
    after = (await tidy.policies.get(tidy.name)).ok()
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert "lastCycle" not in after["status"]


async def test_kubectl_shows_it_in_one_line_of_a_terminal(stage: Stage, tidy: Purge, kubectl: Kubectl) -> None:
    await stage.filled(2)
    await tidy.put(maxReadyAge="1s", dryRun=True)
    await stage.change(purgePolicy=tidy.name)
    await tidy.cycle(lambda one: one["found"] == 2, "two are listed")
    lines = [line.rstrip() for line in kubectl("get", "purge", "-n", stage.namespace).splitlines()]
    assert not [line for line in lines if len(line) > WIDTH]
    (mine,) = [line.split() for line in lines if line.startswith(f"{tidy.name} ")]
    assert mine[1:7] == ["true", "1s", "1", "2", "0", "DryRun"]
