"""A purge cycle over thousands of VMs: it asks about none of them, and writes once for each that it removes."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.api import Api, Json
from tests.clouds import SimCloud
from tests.control_plane.operator import scale
from tests.control_plane.operator.purges import Purge
from tests.control_plane.operator.scale import each, patient, requests, watch_events, watched, while_running
from tests.control_plane.operator.stage import Stage, names
from tests.operators import Operator
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane
plane, kubectl, crds_installed = scale.plane, scale.kubectl, scale.crds_installed

VMS = int(os.environ.get("VMPOOL_TEST_PURGED", "1000"))
"""The promise is about 5,000, which take minutes to make."""
TOO_OLD = 100
BUDGET = 80
INSTANT = ("--disk-seconds=0", "--nic-seconds=0", "--boot-seconds=0", "--delete-seconds=0")
STATUS_WRITES = 4
"""Of the policy in all: that it has a pool, that it removes, what it has removed, and one for good measure."""
log = logging.getLogger(__name__)


@pytest.fixture
def operator(plane: ControlPlane, namespace: str, crds_installed: None, tmp_path: Path) -> Iterator[Operator]:
    made = patient(plane, namespace, tmp_path, VMPOOL_PURGE_LOOK_SECONDS="0.5")
    yield made
    made.kill()


@pytest.fixture
async def stage(api: Api, operator: Operator, namespace: str, make_simcloud: Callable[..., SimCloud]) -> Stage:
    operator.start()
    await operator.ready()
    return Stage(api, namespace, make_simcloud(*INSTANT))


async def full(stage: Stage, operator: Operator) -> None:
    """Wait until the pool is full and at rest."""

    async def settled() -> bool:
        status = await stage.status()
        return [status.get(f"{kind}Replicas", 0) for kind in ("ready", "pending", "draining")] == [VMS, 0, 0]

    await while_running(operator, settled, f"{VMS} VMs are Ready")


async def test_a_cycle_over_thousands_reads_none_and_writes_once_for_each_that_goes(
    stage: Stage, operator: Operator, plane: ControlPlane, tmp_path: Path
) -> None:
    tidy = Purge(stage, operator)
    await tidy.put(maxReadyAge="2h", interval="8h", maxPerCycle=BUDGET)
    await stage.put_provider()
    await stage.put_pool(replicas=VMS, maxVMs=VMS + TOO_OLD, limits={"pending": 100}, purgePolicy=tidy.name)
    await full(stage, operator)
    vms = await stage.vms_of()
    old = sorted(names(vms))[:TOO_OLD]

    async def age(numbered: tuple[int, str]) -> None:
        number, name = numbered
        since = {"phaseSince": f"2026-01-01T00:{number // 60:02}:{number % 60:02}.000000Z"}
        (await stage.vms.merge(name, {"status": since}, "status")).ok()

    await each(enumerate(old), age)
    version = await stage.version()
    before = requests(operator)
    with watched(plane, stage.vms.path, version, tmp_path / "vms.jsonl"):
        # The cycle at the start found nothing; a changed spec begins another one.
        await tidy.put(maxReadyAge="1h")
        last = await tidy.cycle(lambda one: one["purged"] > 0, "a cycle has removed what is too old")
        in_cycle = requests(operator) - before

        async def replaced() -> bool:
            told = story(tmp_path / "vms.jsonl")
            fresh = [name for name in told.keys() - names(vms) if told[name][-1]["status"].get("phase") == "Ready"]
            ends = [event for event in watch_events(tmp_path / "vms.jsonl") if event["type"] == "DELETED"]
            return len(ends) >= BUDGET and len(fresh) >= BUDGET

        await while_running(operator, replaced, "what went is gone and replaced")
        await full(stage, operator)
        made = requests(operator) - before
    assert (last["found"], last["purged"], last["deferred"]) == (TOO_OLD, BUDGET, TOO_OLD - BUDGET)
    log.info("%d VMs: the cycle %s to %s", VMS, last["startedAt"], last["finishedAt"])
    log.info("requests of the cycle %s, until they are replaced %s", dict(in_cycle), dict(made))

    told = story(tmp_path / "vms.jsonl")
    gone = set(old[:BUDGET])
    assert set(told) & names(vms) == gone, "what stays is not written to"
    log.info("versions of a purged VM: %s", Counter(len(told[name]) for name in gone))
    for name in gone:
        first, *drain = told[name]
        assert (first["status"]["phase"], first["status"]["reason"]) == ("Completed", "Purged"), "one write ends Ready"
        assert {one["status"]["phase"] for one in drain} == {"Completed"}, "all that follow are the drain's"
    assert not made["GET", "pooledvms"], "no VM is read, and they are not listed either"
    assert made["POST", "pooledvms"] == BUDGET, "their successors"
    assert made["PATCH", "purgepolicies/status"] <= STATUS_WRITES


def story(file: Path) -> dict[str, list[Json]]:
    """The versions of each VM, in their order."""
    found: dict[str, list[Json]] = {}
    for event in watch_events(file):
        found.setdefault(event["object"]["metadata"]["name"], []).append(event["object"])
    return found
