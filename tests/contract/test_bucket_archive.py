"""The archive in a bucket, against moto's S3: what gets there, and what is said when it does not."""

import asyncio
import gzip
import os
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any
from urllib.error import URLError

import obstore
import orjson
import pytest
from obstore.store import S3Store

from tests.waiting import until
from vmpool.api.deadletterqueue import Bucket
from vmpool.engine.archive import ArchiveError
from vmpool.engine.bucket import BucketArchive

SERVER = os.environ.get("VMPOOL_MOTO_SERVER", "")
pytestmark = pytest.mark.skipif(not os.path.exists(SERVER), reason="moto's server is set up by make test")

KEYS = {"accessKeyId": "someone", "secretAccessKey": "something"}
UNUSED = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [SERVER, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def answers() -> bool:
        assert server.poll() is None, "moto's server has ended"
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except (URLError, OSError):
            return False
        return True

    try:
        asyncio.run(until(answers, deadline=60, what="moto's server answers"))
        put(f"{url}/failures")
        yield url
    finally:
        server.terminate()
        server.wait()


def put(url: str) -> None:
    urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=5).close()


def archive(endpoint: str, *, keys: Mapping[str, str] = KEYS, **changes: Any) -> BucketArchive:
    given = {"endpoint": endpoint, "bucket": "failures", "prefix": "vmpool/", "secretRef": {"name": "keys"}, **changes}

    async def secret(name: str) -> Mapping[str, str]:
        assert name == "keys"
        return keys

    spec = Bucket.model_validate(given)
    return BucketArchive(spec, "ci", "failures", secret, timeout=timedelta(seconds=5))


def letter(uid: str, day: int = 1) -> dict[str, Any]:
    spec = {"vm": f"vm-{uid}", "failedAt": f"2026-01-{day:02}T23:59:59.000000Z", "errorMessage": "žluťoučký"}
    return {"metadata": {"name": f"vm-{uid}-clone-1", "uid": uid}, "spec": spec}


def stored(endpoint: str) -> dict[str, list[dict[str, Any]]]:
    store = S3Store(
        "failures",
        config={"endpoint": endpoint, "access_key_id": "a", "secret_access_key": "b", "region": "us-east-1"},
        client_options={"allow_http": True},
    )
    paths = [one["path"] for page in obstore.list(store) for one in page]
    return {
        path: [orjson.loads(line) for line in gzip.decompress(bytes(obstore.get(store, path).bytes())).splitlines()]
        for path in paths
    }


async def test_letters_are_stored_whole_by_the_day_of_their_failure(endpoint: str) -> None:
    box = archive(endpoint, prefix="days/")
    await box.check()
    letters = [letter("a"), letter("b"), letter("c", day=2)]
    await box.store(letters)
    found = {path.rpartition("/")[0]: lines for path, lines in stored(endpoint).items() if path.startswith("days/")}
    assert found == {"days/ci/failures/2026-01-01": letters[:2], "days/ci/failures/2026-01-02": letters[2:]}


async def test_a_batch_that_is_stored_again_replaces_itself(endpoint: str) -> None:
    box = archive(endpoint, prefix="again/")
    for _ in range(2):
        await box.store([letter("a"), letter("b")])
    found = [path for path in stored(endpoint) if path.startswith("again/")]
    assert len(found) == 1
    assert found[0].endswith("-2.jsonl.gz")


async def test_a_batch_never_replaces_another_one(endpoint: str) -> None:
    """A letter that changed while it was archived comes again, with others behind it."""
    box = archive(endpoint, prefix="others/")
    await box.store([letter("a"), letter("b"), letter("c")])
    await box.store([letter("a"), letter("d"), letter("e")])
    found = [one for path, lines in stored(endpoint).items() if path.startswith("others/") for one in lines]
    assert {one["metadata"]["uid"] for one in found} == set("abcde")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bucket": "nowhere"}, "archive bucket nowhere: .*(404|NoSuchBucket|not found)"),
        ({"endpoint": UNUSED}, "archive bucket failures: .*error"),
        ({"keys": {"accessKeyId": "only"}}, "Secret keys lacks secretAccessKey"),
    ],
)
async def test_what_is_wrong_is_said_in_one_line(endpoint: str, changes: dict[str, Any], said: str) -> None:
    box = archive(**({"endpoint": endpoint} | changes))
    with pytest.raises(ArchiveError, match=said) as refused:
        await box.store([letter("a")])
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert "something" not in str(refused.value), "no credential is told"
    with pytest.raises(ArchiveError):
        await box.check()


async def test_it_goes_on_when_the_trouble_is_over(endpoint: str) -> None:
    box = archive(endpoint, bucket="later-made")
    with pytest.raises(ArchiveError):
        await box.store([letter("a")])
    put(f"{endpoint}/later-made")
    await box.store([letter("a")])
    await box.check()
