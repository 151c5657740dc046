"""Ten thousand dead letters in one queue, and one more: what goes, what people see, and what it costs in memory."""

import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.api import Api, Json
from tests.clouds import SimCloud
from tests.control_plane.operator import scale
from tests.control_plane.operator.box import Box
from tests.control_plane.operator.scale import DEADLINE, each, memory_kb, patient, while_running
from tests.control_plane.operator.stage import Stage, metric
from tests.objects import thing
from tests.operators import Operator
from tests.planes import Kubectl
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane
plane, kubectl, crds_installed = scale.plane, scale.kubectl, scale.crds_installed

LETTERS = int(os.environ.get("VMPOOL_TEST_LETTERS", "10000"))
"""The default of maxEntries. With fewer the bound on memory stays as it is: a part of it is no matter of letters."""
GROWTH_KB = 30 * 1024
METADATA = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
KINDS = 7
"""Fingerprints: few, as the failures of one place mostly are alike."""
log = logging.getLogger(__name__)


@pytest.fixture
def operator(plane: ControlPlane, namespace: str, crds_installed: None, tmp_path: Path) -> Iterator[Operator]:
    made = patient(plane, namespace, tmp_path)
    yield made
    made.kill()


@pytest.fixture
async def box(api: Api, operator: Operator, namespace: str, simcloud: SimCloud) -> Box:
    operator.start()
    await operator.ready()
    return Box(Stage(api, namespace, simcloud))


def letter(box: Box, number: int) -> Json:
    """A letter as the operator writes it: with labels, attempts, and as much console as one may carry."""
    failed = datetime.now(UTC) - timedelta(days=3) + timedelta(seconds=10 * number)
    at = failed.isoformat(timespec="microseconds").replace("+00:00", "Z")
    vm, kind = f"{box.stage.pool}-{number:06d}", f"{number % KINDS:012x}"
    message = f"the image sim/one of {vm} could not be copied: machine m-{number:08d} at host-{number % 40}: I/O error"
    body = thing(
        "DeadLetter",
        f"{vm}-clone-1",
        {
            "queue": box.queue,
            "vm": vm,
            "vmUid": f"00000000-0000-4000-8000-{number:012d}",
            "pool": box.stage.pool,
            "poolUid": "00000000-0000-4000-9000-000000000000",
            "queueFrom": "clone",
            "errorClass": "ProviderUnavailable",
            "errorMessage": message,
            "failedAt": at,
            "retryCount": number % 5,
            "requestId": f"req-{number:016x}",
            "provider": box.stage.provider,
            "step": "create",
            "templateDigest": "v1:0123456789abcdef0123456789abcdef",
            "machineId": f"m-{number:08d}",
            "attempts": [{"at": at, "reason": "ProviderUnavailable", "message": message}] * 4,
            "fingerprint": kind,
            "diagnostics": {
                "console": "".join(f"[{line:5}.{number:06d}] systemd[1]: waits\n" for line in range(105))[:4096],
                "machine": f"machine m-{number:08d}, Failed, {message}",
                "probe": f"last probe {at}: not answered, 3 in a row",
            },
        },
    )
    body["metadata"]["labels"] = {
        keys.LABEL_POOL: box.stage.pool,
        keys.LABEL_QUEUE: "clone",
        keys.LABEL_DEAD_LETTER_QUEUE: box.queue,
        keys.LABEL_FINGERPRINT: kind,
    }
    return body


async def put_all(box: Box) -> None:
    """Write the letters, the oldest first but for those that are on their way together."""

    async def put(number: int) -> None:
        (await box.letters.create(letter(box, number))).ok()

    await each(range(LETTERS), put)


async def there(box: Box) -> set[str]:
    """The names of all letters."""
    answer = await box.stage.api.call(
        "GET", box.letters.path, accept=METADATA, query={"fieldSelector": f"spec.queue={box.queue}"}
    )
    return {item["metadata"]["name"] for item in answer.ok()["items"]}


async def counted(box: Box, operator: Operator, count: int) -> Json:
    """Wait until the queue's status says so many under ``clone``; return it."""

    async def said() -> Json | None:
        status = await box.status()
        return status if {one["name"]: one["entries"] for one in status.get("queues", ())} == {"clone": count} else None

    return await while_running(operator, said, f"{count} letters are counted") or {}


async def test_of_ten_thousand_letters_and_one_more_the_oldest_goes(
    box: Box, operator: Operator, kubectl: Kubectl
) -> None:
    stage = box.stage
    await box.make(maxEntries=LETTERS)
    await box.pool(replicas=3, retry={"attempts": 1, "backoff": "100ms", "maxBackoff": "1s"})
    await stage.full(3)
    await stage.says(box.queues, box.queue, "Ready", "True")
    before = memory_kb(operator.pid)
    await put_all(box)
    status = await counted(box, operator, LETTERS)
    grown = {name: size - before[name] for name, size in memory_kb(operator.pid).items()}
    log.info("%d letters: %s KB more than %s", LETTERS, grown, before)
    assert grown["rss"] < GROWTH_KB, f"memory has grown by {grown} KB"
    first, second = (letter(box, number)["metadata"]["name"] for number in range(2))
    oldest = (await box.letters.get(first)).ok()["spec"]["failedAt"]
    assert (status["entries"], status["oldestSince"]) == (LETTERS, oldest)
    written = await there(box)
    assert len(written) == LETTERS

    # One more, of a machine that really cannot be made.
    stage.fault("failBefore", "create", count=1)
    await stage.change(replicas=4)
    await stage.gone(box.letters, first)
    await stage.full(4)
    left = await there(box)
    assert written - left == {first}, "the oldest goes, and only it"
    (new,) = left - written
    told = (await box.letters.get(new)).ok()["spec"]
    assert (told["pool"], told["queueFrom"], told["errorClass"]) == (stage.pool, "clone", "ProviderUnavailable")

    since = (await box.letters.get(second)).ok()["spec"]["failedAt"]

    async def told_anew() -> Json | None:
        status = await box.status()
        return status if status["oldestSince"] == since else None

    status = await while_running(operator, told_anew, "the status tells the next oldest") or {}
    (size,) = status["queues"]
    assert (size["name"], size["entries"], size["oldestSince"]) == ("clone", LETTERS, since)
    assert status["entries"] == LETTERS
    assert sum(one["entries"] for one in status["fingerprints"]) == LETTERS
    labels = {"dead_letter_queue": box.queue}
    assert metric(operator, "vmpool_dead_letters", queue="clone", **labels) == LETTERS
    assert metric(operator, "vmpool_dead_letters_removed_total", **labels) == 1

    seen(box, kubectl, second)
    await restarted(box, operator, before)


def seen(box: Box, kubectl: Kubectl, oldest: str) -> None:
    """What kubectl shows is what there is."""
    where = ("-n", box.stage.namespace)
    rows = kubectl("get", "dl", *where, "--no-headers", "-l", f"{keys.LABEL_QUEUE}=clone").splitlines()
    assert len(rows) == LETTERS
    assert next(row.split() for row in rows if row.startswith(oldest))[1:5] == [
        "clone",
        "ProviderUnavailable",
        "1",
        "Kept",
    ]
    others = kubectl("get", "dl", *where, "-o", "name", "-l", f"{keys.LABEL_FINGERPRINT}={3:012x}").splitlines()
    assert len(others) == len(range(3, LETTERS, KINDS))
    chosen = kubectl("get", "dl", *where, "-o", "name", "--field-selector", f"spec.pool={box.stage.pool}").splitlines()
    assert len(chosen) == LETTERS
    row = kubectl("get", "dlq", box.queue, *where, "--no-headers").split()
    assert (row[0], row[1], row[5]) == (box.queue, str(LETTERS), "Keeping")
    (top, *_) = json.loads(kubectl("get", "dlq", box.queue, *where, "-o", "json"))["status"]["fingerprints"]
    assert (row[3], row[4]) == (top["errorClass"], str(top["entries"]))


async def restarted(box: Box, operator: Operator, before: dict[str, int]) -> None:
    """A new operator, which reads them page by page, needs no more than one that was told of each."""
    written, version = await there(box), (await box.queues.get(box.queue)).ok()["metadata"]["resourceVersion"]
    operator.stop()
    operator.start()
    await operator.ready(DEADLINE)

    async def said() -> bool:
        return metric(operator, "vmpool_dead_letters", dead_letter_queue=box.queue) == LETTERS

    await while_running(operator, said, "they are counted")
    grown = {name: size - before[name] for name, size in memory_kb(operator.pid).items()}
    log.info("%d letters, after a restart: %s KB more", LETTERS, grown)
    assert grown["rss"] < GROWTH_KB, f"memory has grown by {grown} KB"
    assert await there(box) == written
    now = (await box.queues.get(box.queue)).ok()["metadata"]["resourceVersion"]
    assert now == version, "nothing is written when nothing changed"
