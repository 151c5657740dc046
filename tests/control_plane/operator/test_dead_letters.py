"""Dead letters: every failure is told once, before its VM ends; kept, trimmed, archived, removed and tried again."""

import asyncio
import gzip
import json
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.control_plane.operator.box import Box
from tests.control_plane.operator.stage import DEADLINE, OTHER_IMAGE, Stage, metric, names
from tests.control_plane.operator.test_claimed_vms import claimed
from tests.control_plane.operator.test_pool_failures import Guests
from tests.operators import Operator
from tests.planes import Kubectl
from tests.waiting import until

pytestmark = pytest.mark.control_plane

ONCE = {"attempts": 1, "backoff": "100ms", "maxBackoff": "1s"}
GUIDE = {"vm", "pool", "queueFrom", "errorClass", "errorMessage", "failedAt", "retryCount", "requestId", "poolAlias"}


@pytest.fixture
async def box(stage: Stage) -> Box:
    return Box(stage)


# --- what gets captured -----------------------------------------------------------------------------------------------


async def test_a_clone_failure_is_one_letter_written_before_its_vm_is_completed(box: Box, kubectl: Kubectl) -> None:
    stage = box.stage
    await box.make(poison={"failures": 1})
    version = await stage.version()
    stage.fault("failBefore", "create")
    retry = {"attempts": 2, "backoff": "100ms", "maxBackoff": "1s"}
    await box.pool(replicas=1, aliases=["lab"], retry=retry)
    (letter,) = await box.some(1)
    await stage.in_phase(letter["spec"]["vm"], "Gone")
    await stage.pool_says("Poisoned", "True", "SameFailure")

    spec = letter["spec"]
    assert spec.keys() >= GUIDE
    story = [one for one in stage.replay(kubectl, version) if one["metadata"]["name"] == spec["vm"]]
    first = next(one for one in story if one["status"]["phase"] == "Completed")
    assert int(letter["metadata"]["resourceVersion"]) < int(first["metadata"]["resourceVersion"])
    (known,) = (await stage.status())["recentFailures"]
    assert spec["errorMessage"] == known["message"]
    assert (spec["errorClass"], spec["queueFrom"], spec["step"]) == ("ProviderUnavailable", "clone", "create")
    assert (spec["pool"], spec["poolAlias"], spec["retryCount"]) == (stage.pool, "lab", 0)
    assert spec["requestId"] == known["requestId"] == story[0]["spec"]["requestId"]
    assert spec["vmUid"] == story[0]["metadata"]["uid"]
    assert len(spec["attempts"]) == 2
    assert letter["metadata"]["name"] == f"{spec['vm']}-clone-1"
    assert [one["metadata"]["name"] for one in await box.all()] == [letter["metadata"]["name"]]


async def test_a_vm_that_never_boots_is_in_pending_and_one_that_stops_answering_in_ready(box: Box) -> None:
    stage = box.stage
    await box.make()
    async with AsyncExitStack() as stack:
        guests = Guests(stack)
        rule = stage.fault("neverReady", "create", count=1)
        readiness = {"tcpSocket": {"port": guests.port}, "interval": "1s", "failureThreshold": 2, "timeout": "5s"}
        await box.pool(replicas=1, readiness=readiness)
        (late,) = await box.some(1, "pending")
        stage.mend(rule)
        address = (await until(lambda: stage.history()[-1]["addresses"], deadline=DEADLINE, what="an address"))[0]
        await guests.answer(address)
        (ready,) = await stage.full(1)
        await guests.hush(address)
        (silent,) = await box.some(1, "ready")
    assert late["spec"]["errorClass"] == "PendingTimeout"
    assert late["spec"]["step"] == "boot"
    assert silent["spec"]["vm"] == ready["metadata"]["name"]
    assert silent["spec"]["errorClass"] == "NotAnswering"
    assert "not answered" in silent["spec"]["diagnostics"]["probe"]
    assert silent["spec"]["requestId"] == late["spec"]["requestId"]
    assert silent["spec"]["retryCount"] == late["spec"]["retryCount"] + 1


async def test_a_claimed_machine_that_vanished_is_in_running(box: Box) -> None:
    stage = box.stage
    await box.make()
    await box.pool(replicas=1)
    (vm,) = await stage.full(1)
    await claimed(stage, vm)
    stage.cloud.fate(vm["status"]["machineId"], "vanish")
    (letter,) = await box.some(1)
    assert (letter["spec"]["queueFrom"], letter["spec"]["errorClass"]) == ("running", "MachineGone")
    assert letter["spec"]["vm"] == vm["metadata"]["name"]


async def test_a_destruction_that_keeps_failing_is_in_tasks_and_goes_on(box: Box) -> None:
    stage = box.stage
    await box.make()
    await box.pool(replicas=1, retry={"attempts": 2, "backoff": "200ms", "maxBackoff": "1h"})
    (vm,) = await stage.full(1)
    name = vm["metadata"]["name"]
    rule = stage.fault("failBefore", "delete", status=409)
    await stage.change(replicas=0)
    (letter,) = await box.some(1)
    assert (letter["metadata"]["name"], letter["spec"]["queueFrom"]) == (f"{name}-tasks-1", "tasks")
    assert letter["spec"]["step"] == "destroy"

    # Its next try is minutes away by then: a redrive makes it due at once.
    slow = {"attempts": 2, "backoff": "10m", "maxBackoff": "1h"}
    await stage.change(retry=slow)

    async def waits() -> bool:
        steps = {step["name"]: step for step in (await stage.vm(name))["status"]["steps"]}
        due = datetime.fromisoformat(steps["destroy"]["nextAt"])
        return due > datetime.now(UTC) + timedelta(minutes=2)

    await until(waits, deadline=DEADLINE, what="the next try is minutes away")
    assert len(await box.all()) == 1, "one letter, however often it fails"
    stage.mend(rule)
    await box.redrive(letter)
    status = await box.handled(letter["metadata"]["name"], "Redriven")
    assert status["successor"] == name
    await stage.in_phase(name, "Gone")
    assert not stage.alive()


async def test_a_pool_without_a_queue_has_no_letters_and_no_poison(box: Box) -> None:
    stage = box.stage
    await stage.put_provider()
    stage.fault("failStep", "create", count=2)
    await stage.put_pool(replicas=1)
    await stage.full(1)
    status = await stage.status()
    assert len(status["recentFailures"]) == 2
    assert "poison" not in status
    every = (await box.letters.list(fieldSelector=f"spec.pool={stage.pool}")).ok()["items"]
    assert not every


# --- what people see and ask for --------------------------------------------------------------------------------------


async def test_kubectl_shows_letters_and_discards_one(box: Box, kubectl: Kubectl, served: Operator) -> None:
    await box.make()
    await box.put(f"{box.stage.pool}-a", 1, retryCount=3)
    await box.put(f"{box.stage.pool}-b", 2)
    await box.holds(clone=2)
    lines = kubectl("get", "dl", "-n", box.stage.namespace).splitlines()
    assert lines[0].split() == ["NAME", "QUEUE", "CAUSE", "RETRIES", "STATUS", "FAILED"]
    row = next(line for line in lines if line.startswith(f"{box.stage.pool}-a ")).split()
    assert row[1:] == ["clone", "InvalidTemplate", "3", "Kept", "24h"]
    queue = kubectl("get", "dlq", box.queue, "-n", box.stage.namespace).splitlines()[1].split()
    assert queue[:6] == [box.queue, "2", "2d", "InvalidTemplate", "2", "Keeping"]

    patch = ("--type=merge", "-p", json.dumps({"spec": {"action": "discard"}}))
    kubectl("patch", "dl", f"{box.stage.pool}-a", "-n", box.stage.namespace, *patch)
    await box.some(1)
    status = await box.holds(clone=1)
    assert status["fingerprints"][0]["errorMessage"] == f"no image for {box.stage.pool}-b"
    labels = {"dead_letter_queue": box.queue}
    assert metric(served, "vmpool_dead_letters_removed_total", why="discarded", **labels) == 1
    assert metric(served, "vmpool_dead_letters", queue="clone", **labels) == 1


async def test_a_quarantined_vm_is_redriven_and_becomes_ready(box: Box) -> None:
    stage = box.stage
    await box.make(poison={"failures": 1})
    stage.fault("failStep", "create", count=1)
    await box.pool(replicas=1)
    (letter,) = await box.some(1)
    name = letter["spec"]["vm"]
    await stage.in_phase(name, "Quarantined")
    await stage.pool_says("Poisoned", "True")
    kept = await stage.vm(name)
    stage.cloud.fate(kept["status"]["machineId"], "revive")
    await box.redrive(letter)
    status = await box.handled(letter["metadata"]["name"], "Redriven")
    assert status["successor"] == name
    assert status["handledAt"]
    assert status["observedGeneration"] == 2
    (vm,) = await stage.full(1)
    assert vm["metadata"]["name"] == name
    assert vm["status"]["machineId"] == kept["status"]["machineId"]
    assert vm["status"]["attempt"] == 2
    assert not vm["status"].keys() & {"reason", "message", "expiresAt"}
    await box.unanswered(letter)
    await box.handled(letter["metadata"]["name"], "Redriven")
    assert (await stage.full(1))[0]["status"]["attempt"] == 2, "it is redriven once"
    assert len(await box.all()) == 1
    assert "poison" not in await stage.status()


async def test_a_gone_vm_is_redriven_by_a_successor_with_its_request(box: Box, served: Operator) -> None:
    stage = box.stage
    await box.make(poison={"failures": 1})
    rule = stage.fault("failBefore", "create")
    await box.pool(replicas=1, retry=ONCE)
    (letter,) = await box.some(1)
    await stage.in_phase(letter["spec"]["vm"], "Gone")
    await stage.pool_says("Poisoned", "True")
    stage.mend(rule)
    # Asked for while nobody is there: it is done by whoever comes next.
    served.kill()
    await box.redrive(letter)
    served.start()
    await served.ready()
    status = await box.handled(letter["metadata"]["name"], "Redriven")
    (vm,) = await stage.full(1)
    assert vm["metadata"]["name"] == status["successor"]
    assert vm["spec"]["requestId"] == letter["spec"]["requestId"]
    assert vm["spec"]["retryCount"] == 1
    await box.unanswered(letter)
    assert (await box.handled(letter["metadata"]["name"], "Redriven"))["successor"] == vm["metadata"]["name"]
    assert names(await stage.full(1)) == {vm["metadata"]["name"]}
    assert len(stage.history()) == 1, "one redrive, one machine"

    # A pool that has what it wants needs no other, and one of another uid has nothing to do with it.
    uid = (await stage.pools.get(stage.pool)).ok()["metadata"]["uid"]
    await box.put(f"{stage.pool}-x", 0.1, poolUid=uid)
    await box.put(f"{stage.pool}-y", 0.1)
    await box.redrive(f"{stage.pool}-x")
    await box.redrive(f"{stage.pool}-y")
    assert "wants 1 VMs" in (await box.handled(f"{stage.pool}-x", "NotNeeded"))["message"]
    assert "made anew" in (await box.handled(f"{stage.pool}-y", "Refused"))["message"]
    assert names(await stage.full(1)) == {vm["metadata"]["name"]}
    for outcome, count in (("Redriven", 2), ("NotNeeded", 1), ("Refused", 1)):
        labels = {"dead_letter_queue": box.queue, "outcome": outcome}
        assert metric(served, "vmpool_dead_letter_redrives_total", **labels) == count


async def test_a_redrive_forgives_poison_before_anything_is_ready(box: Box) -> None:
    stage = box.stage
    await box.make(poison={"failures": 1})
    rule = stage.fault("failBefore", "create")
    await box.pool(replicas=1, retry=ONCE)
    (letter,) = await box.some(1)
    await stage.pool_says("Poisoned", "True")
    await stage.in_phase(letter["spec"]["vm"], "Gone")
    stage.mend(rule)
    stage.fault("neverReady", "create")
    await box.redrive(letter)

    async def forgiven() -> bool:
        return "poison" not in await stage.status()

    await until(forgiven, deadline=DEADLINE, what="the poison is forgiven")
    await box.handled(letter["metadata"]["name"], "Redriven")
    assert [vm["status"]["phase"] for vm in await stage.vms_of()] == ["Pending"], "only the successor, still on its way"


async def test_poison_stops_creates_until_the_template_changes(box: Box) -> None:
    stage = box.stage
    await box.make(poison={"failures": 3})
    await box.pool(replicas=2, template={"image": "debian-99"}, retry=ONCE)
    message = await stage.pool_says("Poisoned", "True", "SameFailure")
    assert "3 times in a row" in message
    letters = await box.all()
    assert 3 <= len(letters) <= 4, "what was on its way may still fail"
    assert len({one["spec"]["fingerprint"] for one in letters}) == 1
    status = await box.holds(clone=len(letters))
    assert status["fingerprints"][0]["entries"] == len(letters)
    await stage.change(template={"image": OTHER_IMAGE})
    await stage.full(2)
    assert "poison" not in await stage.status()
    assert len(await box.all()) == len(letters)


# --- how long they are kept -------------------------------------------------------------------------------------------


async def test_the_oldest_above_the_limit_go_by_queue_name(box: Box, served: Operator) -> None:
    await box.make(maxEntries=3)
    for number in range(5):
        await box.put(f"{box.stage.pool}-{number}", 5 - number, fingerprint=f"f{number % 2}")
    await box.put(f"{box.stage.pool}-p", 6, queueFrom="pending", fingerprint="f1")
    status = await box.holds(clone=3, pending=1)
    left = [one["metadata"]["name"] for one in await box.all()]
    assert left == [f"{box.stage.pool}-{suffix}" for suffix in ("p", "2", "3", "4")]
    oldest = (await box.letters.get(f"{box.stage.pool}-p")).ok()["spec"]["failedAt"]
    assert status["oldestSince"] == oldest
    assert [one["name"] for one in status["queues"]] == ["pending", "clone"]
    assert [(one["fingerprint"], one["entries"]) for one in status["fingerprints"]] == [("f0", 2), ("f1", 2)]
    assert "oldest entries from vmpooler__dlq__clone" in served.lines()
    assert metric(served, "vmpool_dead_letters_removed_total", why="trimmed", dead_letter_queue=box.queue) == 2


async def test_many_letters_at_once_are_few_looks_and_few_writes(box: Box, kubectl: Kubectl) -> None:
    await box.make()
    await box.stage.says(box.queues, box.queue, "Ready", "True")
    version = (await box.queues.list(limit="1")).ok()["metadata"]["resourceVersion"]
    began = time.monotonic()
    await asyncio.gather(*(box.put(f"{box.stage.pool}-{number}", 1) for number in range(60)))
    await box.holds(clone=60)
    took = time.monotonic() - began
    lines = kubectl("get", "--raw", f"{box.queues.path}?watch=1&resourceVersion={version}&timeoutSeconds=1")
    mine = [line for line in lines.splitlines() if json.loads(line)["object"]["metadata"]["name"] == box.queue]
    assert 1 <= len(mine) <= took + 2, "one write a second, whatever comes in"


async def test_expired_letters_are_archived_first_and_wait_for_their_archive(
    box: Box, served: Operator, tmp_path: Path
) -> None:
    folder = tmp_path / "archive"
    await box.make(ttl="24h", archive={"folder": str(folder)})
    says = (box.queues, box.queue, "Archiving")
    message = await box.stage.says(*says, "False", "ArchiveFailed")
    assert f"archive folder {folder}: it does not exist" in message
    assert "letters are kept" in message
    await box.put(f"{box.stage.pool}-old", 3, diagnostics={"console": "kernel panic"})
    await box.put(f"{box.stage.pool}-new", 0.5)
    await box.holds(clone=2)
    whole = (await box.letters.get(f"{box.stage.pool}-old")).ok()
    labels = {"dead_letter_queue": box.queue}

    def tried() -> float:
        return metric(served, "vmpool_dead_letter_archive_errors_total", **labels)

    before = tried()
    await until(lambda: tried() > before, deadline=DEADLINE, what="the archive is tried again")
    assert len(await box.all()) == 2, "nothing goes before it is archived"

    folder.mkdir()
    (left,) = await box.some(1)
    assert left["metadata"]["name"] == f"{box.stage.pool}-new"
    await box.stage.says(*says, "True", "Archiving")
    await box.holds(clone=1)
    day = whole["spec"]["failedAt"][:10]
    lines = gzip.decompress((folder / box.stage.namespace / box.queue / f"{day}.jsonl.gz").read_bytes()).splitlines()
    (archived,) = [json.loads(line) for line in lines]
    assert archived == whole
    assert metric(served, "vmpool_dead_letters_removed_total", why="expired", **labels) == 1
    assert metric(served, "vmpool_dead_letters_archived_total", **labels) == 1


async def test_above_twice_the_limit_the_oldest_go_without_an_archive(box: Box, served: Operator) -> None:
    await box.make(maxEntries=2, archive={"folder": "/does/not/exist"})
    await box.stage.says(box.queues, box.queue, "Archiving", "False")
    for number in range(6):
        await box.put(f"{box.stage.pool}-{number}", 6 - number)
    await box.holds(clone=4)
    assert [one["metadata"]["name"][-1] for one in await box.all()] == ["2", "3", "4", "5"]
    logged = [json.loads(line) for line in served.lines().splitlines() if "dead_letter_not_archived" in line]
    mine = [one["letter"]["spec"]["vm"] for one in logged if one["letter"]["spec"]["queue"] == box.queue]
    assert mine == [f"{box.stage.pool}-0", f"{box.stage.pool}-1"]
    assert metric(served, "vmpool_dead_letters_removed_total", why="unarchived", dead_letter_queue=box.queue) == 2
