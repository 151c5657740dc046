"""Dead letters against what is not there: archives out of reach, redrives of what is gone, a namespace that goes."""

import gzip
import json
import os
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.error import URLError

import obstore
import pytest
from obstore.store import S3Store

from tests.api import Api, Json
from tests.clouds import SimCloud
from tests.control_plane.operator.box import Box
from tests.control_plane.operator.stage import DEADLINE, Stage, metric, names
from tests.operators import Operator
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane

MOTO = os.environ.get("VMPOOL_MOTO_SERVER", "")
KEYS = {"accessKeyId": "someone", "secretAccessKey": "something"}
BUCKET = "failures"


@pytest.fixture
def box(stage: Stage) -> Box:
    return Box(stage)


def day(days_ago: float) -> str:
    """The day, in UTC, that was so long ago."""
    return (datetime.now(UTC) - timedelta(days=days_ago)).date().isoformat()


async def tried_again(box: Box, served: Operator) -> None:
    """Wait until the archive was out of reach once more."""
    labels = {"dead_letter_queue": box.queue}

    def tried() -> float:
        return metric(served, "vmpool_dead_letter_archive_errors_total", **labels)

    before = tried()
    await until(lambda: tried() > before, deadline=DEADLINE, what="the archive is tried again")


async def whole(box: Box) -> dict[str, Json]:
    """All letters as the server has them, by name."""
    return {one["metadata"]["name"]: one for one in await box.all()}


# --- archives out of reach --------------------------------------------------------------------------------------------


async def test_letters_wait_for_a_folder_that_cannot_be_written_to(box: Box, served: Operator, tmp_path: Path) -> None:
    # A file stands where the folder of the namespace has to be: root itself cannot write there.
    in_the_way = tmp_path / box.stage.namespace
    in_the_way.touch()
    await box.make(ttl="24h", archive={"folder": str(tmp_path)})
    says = (box.queues, box.queue, "Archiving")
    message = await box.stage.says(*says, "False", "ArchiveFailed")
    assert f"archive folder {tmp_path}: " in message
    for name in ("a", "b"):
        await box.put(f"{box.stage.pool}-{name}", 3)
    await box.holds(clone=2)
    before = await whole(box)
    await tried_again(box, served)
    assert await whole(box) == before, "nothing goes, and nothing is written to"
    assert not metric(served, "vmpool_dead_letters_removed_total", dead_letter_queue=box.queue)

    in_the_way.unlink()
    await box.some(0)
    await box.stage.says(*says, "True", "Archiving")
    file = tmp_path / box.stage.namespace / box.queue / f"{day(3)}.jsonl.gz"
    archived = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    assert {one["metadata"]["name"]: one for one in archived} == before
    assert len(archived) == 2, "each of them once"


@contextmanager
def moto(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """moto's S3 at this port; not serving yet."""
    argv = [MOTO, "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield server
        finally:
            server.terminate()
            server.wait()


async def made_bucket(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the service answers, and make the bucket."""

    def made() -> bool:
        assert server.poll() is None, "moto's server has ended"
        try:
            urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=5).close()
        except (URLError, OSError):
            return False
        return True

    await until(made, deadline=DEADLINE, what="the bucket is made")


def stored(url: str) -> dict[str, list[Json]]:
    """What is in the bucket: the JSON of each line, by key."""
    config = {"endpoint": url, "access_key_id": "a", "secret_access_key": "b", "region": "us-east-1"}
    store = S3Store(BUCKET, config=config, client_options={"allow_http": True})
    keys = [one["path"] for page in obstore.list(store) for one in page]
    return {
        key: [json.loads(line) for line in gzip.decompress(bytes(obstore.get(store, key).bytes())).splitlines()]
        for key in keys
    }


@pytest.mark.skipif(not os.path.exists(MOTO), reason="moto's server is set up by make test")
async def test_letters_wait_for_a_bucket_that_refuses_connections_and_get_there_by_day(
    box: Box, served: Operator
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    await box.stage.put_secret(box.queue, **KEYS)
    s3 = {"endpoint": url, "bucket": BUCKET, "prefix": "vmpool/", "secretRef": {"name": box.queue}}
    await box.make(ttl="24h", archive={"s3": s3})
    says = (box.queues, box.queue, "Archiving")
    message = await box.stage.says(*says, "False", "ArchiveFailed")
    assert f"archive bucket {BUCKET}: " in message
    assert "letters are kept" in message
    assert KEYS["secretAccessKey"] not in message
    for name, age in (("a", 3), ("b", 3), ("c", 2), ("new", 0.5)):
        await box.put(f"{box.stage.pool}-{name}", age, errorMessage="žluťoučký", diagnostics={"console": "panic\n\tat"})
    await box.holds(clone=4)
    before = await whole(box)
    await tried_again(box, served)
    assert await whole(box) == before, "nothing goes, and nothing is written to"

    with moto(port) as server:
        await made_bucket(url, server)
        (left,) = await box.some(1)
        await box.stage.says(*says, "True", "Archiving")
        there = stored(url)
    assert left["metadata"]["name"] == f"{box.stage.pool}-new"
    place = f"vmpool/{box.stage.namespace}/{box.queue}"
    by_day: dict[str, list[str]] = {}
    for key, lines in there.items():
        by_day.setdefault(key.rpartition("/")[0], []).extend(one["metadata"]["name"] for one in lines)
        assert all(one == before[one["metadata"]["name"]] for one in lines), "whole, as they were"
    wanted = {f"{place}/{day(3)}": ["a", "b"], f"{place}/{day(2)}": ["c"]}
    assert {key: sorted(found) for key, found in by_day.items()} == {
        key: [f"{box.stage.pool}-{name}" for name in some] for key, some in wanted.items()
    }
    labels = {"dead_letter_queue": box.queue}
    assert metric(served, "vmpool_dead_letters_archived_total", **labels) == 3
    assert metric(served, "vmpool_dead_letters_removed_total", why="expired", **labels) == 3


# --- redrives of what is gone -----------------------------------------------------------------------------------------


async def test_a_redrive_for_a_pool_that_is_gone_is_refused_by_name(box: Box) -> None:
    await box.make()
    await box.put(f"{box.stage.pool}-a", 1)
    await box.redrive(f"{box.stage.pool}-a")
    status = await box.handled(f"{box.stage.pool}-a", "Refused")
    assert status["message"] == f"VMPool {box.stage.pool} does not exist any more"
    assert status["observedGeneration"] == 2
    assert status["handledAt"]
    assert "successor" not in status
    await box.holds(clone=1)


async def test_a_redrive_of_a_destruction_whose_vm_is_gone_is_not_needed(box: Box) -> None:
    stage = box.stage
    await box.make()
    await box.pool(replicas=1)
    (vm,) = await stage.full(1)
    uid = (await stage.pools.get(stage.pool)).ok()["metadata"]["uid"]
    gone = f"{stage.pool}-gone"
    await box.put(gone, 1, queueFrom="tasks", step="destroy", errorClass="ProviderConflict", poolUid=uid)
    await box.redrive(gone)
    message = (await box.handled(gone, "NotNeeded"))["message"]
    assert message == f"{gone} is gone: its destruction has ended"
    assert names(await stage.full(1)) == names([vm])


async def test_a_redrive_without_a_provider_says_so_and_is_done_when_there_is_one(box: Box) -> None:
    stage = box.stage
    # Poisoned, the pool makes nothing by itself.
    await box.make(poison={"failures": 1})
    rule = stage.fault("failBefore", "create")
    await box.pool(replicas=1, retry={"attempts": 1, "backoff": "100ms", "maxBackoff": "1s"})
    (letter,) = await box.some(1)
    await stage.in_phase(letter["spec"]["vm"], "Gone")
    await stage.pool_says("Poisoned", "True")
    stage.mend(rule)
    (await stage.providers.delete(stage.provider)).ok()
    await stage.gone(stage.providers, stage.provider)
    await box.redrive(letter)
    name = letter["metadata"]["name"]

    async def told() -> Json | None:
        found = (await box.letters.get(name)).ok()["status"]
        return found if found.get("message") else None

    waiting = await until(told, deadline=DEADLINE, what="the letter says why it waits") or {}
    assert waiting["phase"] == "Kept"
    assert waiting["message"] == f"no VMProvider of VMPool {stage.pool} takes another machine now"
    await stage.put_provider()
    status = await box.handled(name, "Redriven")
    (vm,) = await stage.full(1)
    assert (vm["metadata"]["name"], vm["spec"]["requestId"]) == (status["successor"], letter["spec"]["requestId"])
    assert vm["spec"]["retryCount"] == 1
    assert len(await box.all()) == 1


async def test_a_redrive_in_a_queue_that_is_gone_is_answered_when_there_is_one(box: Box, served: Operator) -> None:
    name = f"{box.stage.pool}-a"
    await box.make()
    await box.put(name, 1)
    await box.holds(clone=1)
    (await box.queues.delete(box.queue)).ok()
    await box.stage.gone(box.queues, box.queue)
    await box.redrive(name)
    await until(lambda: _levels_gone(box, served), deadline=DEADLINE, what="the queue is forgotten")
    kept = (await box.letters.get(name)).ok()
    assert (kept["spec"]["action"], kept["status"]["phase"]) == ("redrive", "Kept")
    await box.make()
    await box.handled(name, "Refused")
    await box.holds(clone=1)


def _levels_gone(box: Box, served: Operator) -> bool:
    return f'dead_letter_queue="{box.queue}",namespace="{box.stage.namespace}",queue=' not in served.http("/metrics")


# --- a namespace that goes --------------------------------------------------------------------------------------------


@pytest.fixture
def outsider(
    plane: ControlPlane, doomed: str, namespace: str, crds_installed: None, tmp_path: Path
) -> Iterator[Operator]:
    """An operator that serves the namespace from outside, as most do."""
    made = Operator(plane.kubeconfig, tmp_path, VMPOOL_WATCH_NAMESPACE=doomed, VMPOOL_NAMESPACE=namespace)
    made.start()
    yield made
    made.kill()


async def test_failures_in_a_namespace_that_is_being_deleted_are_logged_whole_and_its_machines_go(
    api: Api, outsider: Operator, doomed: str, kubectl: Kubectl, make_simcloud: Callable[..., SimCloud]
) -> None:
    await outsider.ready()
    stage = Stage(api, doomed, make_simcloud())
    box = Box(stage)
    await box.make()
    await box.pool(replicas=3, retry={"attempts": 2, "backoff": "100ms", "maxBackoff": "1s"})
    vms = await stage.full(3)
    rule = stage.fault("failBefore", "delete", status=409)
    kubectl("delete", "namespace", doomed, "--wait=false")

    def refused() -> list[Json]:
        lines = [json.loads(line) for line in outsider.lines().splitlines() if '"dead_letter_refused"' in line]
        return lines if len(lines) >= len(vms) else []

    lines = await until(refused, deadline=DEADLINE, what="the letters are refused")
    assert {one["letter"]["spec"]["vmUid"] for one in lines} == {vm["metadata"]["uid"] for vm in vms}
    for one in lines:
        assert one["level"] == "error"
        assert "being terminated" in one["error"]
        assert one["letter"]["spec"]["queueFrom"] == "tasks"
        assert one["letter"]["spec"]["errorMessage"]
    assert len(stage.alive()) == len(vms), "the cloud lets none go yet"

    stage.mend(rule)
    await until(lambda: not stage.alive(), deadline=DEADLINE, what="no machine is left")

    async def gone() -> bool:
        return (await api.call("GET", f"/api/v1/namespaces/{doomed}")).status == 404

    await until(gone, deadline=DEADLINE, what="the namespace is gone")
    assert len(refused()) == len(vms), "each failure is told once"
    assert metric(outsider, "vmpool_failure_records_refused_total") == len(vms)
    assert len(stage.history()) == len(vms), "nothing was made anew"
