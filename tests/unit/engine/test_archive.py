"""The folder archive: every letter is in the file of its day, whatever was interrupted before."""

import asyncio
import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.waiting import until
from vmpool.api.deadletterqueue import Archive as ArchiveSpec
from vmpool.api.deadletterqueue import Bucket
from vmpool.engine import archive as archives
from vmpool.engine.archive import ArchiveError, FolderArchive, Shelf, open_archive
from vmpool.engine.bucket import BucketArchive
from vmpool.kube.resource import Json
from vmpool.settings import Settings

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def letter(number: int, failed_at: str = "2026-05-01T10:00:00.000000Z") -> Json:
    return {"metadata": {"uid": f"uid-{number}"}, "spec": {"failedAt": failed_at, "errorMessage": f"größer {number}"}}


def stored(file: Path) -> list[Json]:
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "archive"
    made.mkdir()
    return made


@pytest.fixture
def archive(folder: Path) -> FolderArchive:
    return FolderArchive(folder, "ci", "dlq")


async def test_letters_are_in_the_file_of_their_day_in_utc(archive: FolderArchive, folder: Path) -> None:
    evening = letter(2, "2026-04-30T23:30:00-02:00")
    await archive.store([letter(1), evening, letter(3, "2026-04-30T01:00:00Z")])
    await archive.store([letter(4)])
    assert stored(folder / "ci" / "dlq" / "2026-05-01.jsonl.gz") == [letter(1), evening, letter(4)]
    assert stored(folder / "ci" / "dlq" / "2026-04-30.jsonl.gz") == [letter(3, "2026-04-30T01:00:00Z")]


@pytest.mark.parametrize("cut", [1, 9, 20, -1])
async def test_what_a_crash_left_unfinished_is_cut_off(folder: Path, cut: int) -> None:
    await FolderArchive(folder, "ci", "dlq").store([letter(1)])
    file = folder / "ci" / "dlq" / "2026-05-01.jsonl.gz"
    half = gzip.compress(json.dumps(letter(2)).encode() + b"\n")[:cut]
    with file.open("ab") as out:
        out.write(half)
    # Another process: it does not know how long the file should be.
    await FolderArchive(folder, "ci", "dlq").store([letter(2)])
    assert stored(file) == [letter(1), letter(2)]


async def test_a_file_that_was_damaged_in_the_middle_is_kept_for_people(folder: Path) -> None:
    archive = FolderArchive(folder, "ci", "dlq")
    for number in range(3):
        await archive.store([letter(number)])
    file = folder / "ci" / "dlq" / "2026-05-01.jsonl.gz"
    content = bytearray(file.read_bytes())
    content[14] ^= 0xFF
    file.write_bytes(content)
    again = FolderArchive(folder, "ci", "dlq")
    with pytest.raises(ArchiveError, match="was damaged"):
        await again.store([letter(3)])
    await again.store([letter(3)])
    assert stored(file) == [letter(3)]
    (aside,) = file.parent.glob("*.damaged-*")
    assert aside.read_bytes() == bytes(content)


async def test_whole_members_of_somebody_else_stay(archive: FolderArchive, folder: Path) -> None:
    await archive.store([letter(1)])
    await FolderArchive(folder, "ci", "dlq").store([letter(2)])
    await archive.store([letter(3)])
    assert stored(folder / "ci" / "dlq" / "2026-05-01.jsonl.gz") == [letter(1), letter(2), letter(3)]


async def test_a_file_larger_than_a_chunk_is_checked_to_its_end(
    archive: FolderArchive, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "CHUNK", 7)
    for number in range(5):
        await archive.store([letter(number)])
    await FolderArchive(folder, "ci", "dlq").store([letter(5)])
    assert stored(folder / "ci" / "dlq" / "2026-05-01.jsonl.gz") == [letter(number) for number in range(6)]


async def test_a_folder_that_is_missing_is_named_and_not_made(tmp_path: Path) -> None:
    missing = tmp_path / "nfs"
    archive = FolderArchive(missing, "ci", "dlq")
    for work in (archive.check(), archive.store([letter(1)])):
        with pytest.raises(ArchiveError, match=f"archive folder {missing}: it does not exist"):
            await work
    assert not missing.exists()
    missing.write_text("no folder")
    with pytest.raises(ArchiveError, match="is no folder"):
        await archive.check()


FULL_DISK = """
import asyncio, pathlib, resource, signal, sys
from tests.unit.engine.test_archive import letter
from vmpool.engine.archive import ArchiveError, FolderArchive

folder = pathlib.Path(sys.argv[1])
archive = FolderArchive(folder, "ci", "dlq")
asyncio.run(archive.store([letter(1)]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
large = [letter(number, f"2026-05-01T10:00:00.{number * 7919 % 10**6:06}Z") for number in range(200)]
try:
    asyncio.run(archive.store(large))
except ArchiveError as error:
    print(error)
"""
"""No file of the process may grow beyond 400 bytes: the write in the middle of it fails. In a process of its own, for
the limit would hold for the tests' own output too."""


def test_a_disk_that_is_full_in_the_middle_leaves_what_was_there(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"archive folder {folder}: File too large\n"
    assert stored(folder / "ci" / "dlq" / "2026-05-01.jsonl.gz") == [letter(1)]


def test_a_queue_names_a_folder_or_a_bucket() -> None:
    assert isinstance(open_archive(ArchiveSpec(folder="/x"), "ci", "dlq"), FolderArchive)
    bucket = ArchiveSpec.model_validate({"s3": {"bucket": "failures"}})
    assert isinstance(open_archive(bucket, "ci", "dlq"), BucketArchive)


def settings(archive_seconds: float = 0.2) -> Settings:
    return Settings(archive_seconds=archive_seconds, stalled_pause_seconds=1, error_pause_longest_seconds=5)


class Hanging:
    """An archive that does not answer before it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.calls = 0

    async def check(self) -> None:
        self.calls += 1
        await asyncio.to_thread(self.go.wait)

    async def store(self, letters: Sequence[Json]) -> None:
        await self.check()


async def test_an_archive_that_hangs_counts_as_out_of_reach_and_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, failed = Hanging(), []
    monkeypatch.setattr(archives, "open_archive", lambda *_, **__: hanging)
    shelf = Shelf("ci", "dlq", settings(), lambda: failed.append(1))
    shelf.use(ArchiveSpec(folder="/slow"))
    try:
        assert not await shelf.ready(NOW, waiting=False)
        assert shelf.error == "archive /slow has not answered for 0.2 s"
        assert not await shelf.ready(NOW + timedelta(seconds=1), waiting=False)
        assert hanging.calls == 1, "while one hangs no other is begun"
        assert len(failed) == 2
    finally:
        hanging.go.set()
    await until(lambda: shelf._last is not None and shelf._last.done(), what="it has answered")
    assert await shelf.ready(NOW + timedelta(hours=1), waiting=False)
    assert shelf.error == ""


async def test_a_shelf_is_left_alone_ever_longer_and_one_letter_proves_that_it_works(tmp_path: Path) -> None:
    folder, failed = tmp_path / "archive", []
    shelf = Shelf("ci", "dlq", settings(), lambda: failed.append(1))
    assert not await shelf.ready(NOW, waiting=True), "a queue without an archive stores nothing"
    shelf.use(ArchiveSpec(folder=str(folder)))
    assert not await shelf.ready(NOW, waiting=True)
    pauses, now = [], NOW
    for _ in range(5):
        assert shelf.try_at is not None
        pauses.append((shelf.try_at - now).total_seconds())
        assert not await shelf.ready(shelf.try_at - timedelta(microseconds=1), waiting=True)
        now = shelf.try_at
        assert await shelf.ready(now, waiting=True), "storing is the look"
        assert not await shelf.store([letter(1)], now)
    assert pauses == [1, 2, 4, 5, 5]
    assert len(failed) == 6
    folder.mkdir()
    assert await shelf.store([letter(1)], now)
    assert (shelf.error, shelf.try_at, shelf.doubtful) == ("", None, False)


async def test_another_archive_begins_with_a_clean_slate(tmp_path: Path) -> None:
    # It refuses at once, for want of a key; the time is for a machine that has no time.
    shelf = Shelf("ci", "dlq", settings(archive_seconds=30.0), lambda: None)
    shelf.use(ArchiveSpec(s3=Bucket(bucket="letters")))
    assert not await shelf.ready(NOW, waiting=False)
    assert shelf.error is not None
    assert "letters" in shelf.error
    shelf.use(ArchiveSpec(folder=str(tmp_path)))
    assert shelf.error is None
    assert await shelf.ready(NOW, waiting=False)
