"""Many machines that fail at once: a letter for each, none twice, and no more a second than the server should bear."""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.api import Api, Json
from tests.clouds import SimCloud
from tests.control_plane.operator import scale
from tests.control_plane.operator.box import Box
from tests.control_plane.operator.scale import each, patient, requests, watch_events, watched, while_running
from tests.control_plane.operator.stage import Stage, machine_ids, phases
from tests.operators import Operator
from vmpool.dev.plane import ControlPlane
from vmpool.settings import Settings

pytestmark = pytest.mark.control_plane
plane, kubectl, crds_installed = scale.plane, scale.kubectl, scale.crds_installed

FAILING = int(os.environ.get("VMPOOL_TEST_FAILING", "250"))
"""The promise is about 1,000, which take minutes on a machine that is busy."""
SEEN_TOGETHER = {"interval": "15s"}
"""Between two listings of the cloud: long enough for all machines to fail in between."""
log = logging.getLogger(__name__)


@pytest.fixture
def operator(plane: ControlPlane, namespace: str, crds_installed: None, tmp_path: Path) -> Iterator[Operator]:
    made = patient(plane, namespace, tmp_path)
    yield made
    made.kill()


@pytest.fixture
async def box(api: Api, operator: Operator, namespace: str, make_simcloud: Callable[..., SimCloud]) -> Box:
    operator.start()
    await operator.ready()
    return Box(Stage(api, namespace, make_simcloud()))


async def filled(box: Box, operator: Operator, gone: frozenset[str] = frozenset()) -> list[Json]:
    """Wait until the pool is full and at rest, of VMs that are none of these uids; return them."""
    stage = box.stage

    async def settled() -> list[Json] | None:
        status = await stage.status()
        counted = [status.get(f"{kind}Replicas", 0) for kind in ("ready", "pending", "draining")]
        if counted != [FAILING, 0, 0]:
            return None
        ready = [vm for vm in await stage.vms_of() if vm["status"]["phase"] == "Ready"]
        fresh = len(ready) == FAILING and not gone & {vm["metadata"]["uid"] for vm in ready}
        return ready if fresh else None

    return await while_running(operator, settled, f"{FAILING} VMs are Ready") or []


async def fail_all(stage: Stage, vms: list[Json]) -> None:
    """Every second machine vanishes, and the others say that they have failed."""

    async def end(numbered: tuple[int, Json]) -> None:
        number, vm = numbered
        fate = "vanish" if number % 2 else "fail"
        await asyncio.to_thread(stage.cloud.fate, vm["status"]["machineId"], fate)

    await each(enumerate(vms), end)


async def test_machines_that_fail_at_once_have_a_letter_each_and_the_server_is_not_flooded(
    box: Box, operator: Operator, plane: ControlPlane, tmp_path: Path
) -> None:
    stage = box.stage
    await box.make()
    await stage.put_provider(observe=SEEN_TOGETHER)
    await stage.put_pool(
        replicas=FAILING, maxVMs=2 * FAILING, limits={"pending": 100, "quarantined": 2}, deadLetterQueue=box.queue
    )
    vms = await filled(box, operator)
    uids = frozenset(vm["metadata"]["uid"] for vm in vms)
    version = (await box.letters.list(limit="1")).ok()["metadata"]["resourceVersion"]
    before = requests(operator)
    with watched(plane, box.letters.path, version, tmp_path / "letters.jsonl"):
        await fail_all(stage, vms)
        await filled(box, operator, uids)
        status = await box.holds(ready=FAILING)
        made = requests(operator) - before

        async def told() -> list[Json] | None:
            events = watch_events(tmp_path / "letters.jsonl")
            found = [event["object"] for event in events if event["type"] == "ADDED"]
            return found if len(found) >= FAILING else None

        letters = await while_running(operator, told, "the watch has told every letter") or []

    assert Counter(one["spec"]["vmUid"] for one in letters) == Counter(uids), "a letter each, and none twice"
    assert {one["spec"]["queueFrom"] for one in letters} == {"ready"}
    classes = Counter(one["spec"]["errorClass"] for one in letters)
    assert classes == {"MachineGone": FAILING // 2, "MachineFailed": FAILING - FAILING // 2}
    assert sum(one["entries"] for one in status["fingerprints"]) == FAILING
    # A server that is overloaded may leave one without an answer; then it is sent again, and is the same one.
    assert FAILING <= made["POST", "deadletters"] <= FAILING * 1.1, "they are not asked for again and again"

    seconds = Counter(one["metadata"]["creationTimestamp"] for one in letters)
    log.info("%d failures: letters by second %s; requests %s", FAILING, sorted(seconds.values()), dict(made))
    # Written at this rate, and those that were on their way when a second began may come on top.
    assert max(seconds.values()) <= Settings().letters_per_second + Settings().letters_in_flight + 1

    left = await stage.vms_of()
    assert phases(left) == {"Ready": FAILING, "Quarantined": 2}
    assert stage.alive() == machine_ids(left), "no machine is left that nobody knows"
    assert "poison" not in await stage.status()
