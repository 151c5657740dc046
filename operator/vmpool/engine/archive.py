"""Where dead letters go before their end: JSON lines, compressed, by day.

An archive takes whole letters. A letter may be there twice, when the process ended between archive and removal;
readers tell them by uid.
"""

import asyncio
import fcntl
import gzip
import mmap
import os
import time
import zlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import orjson

from vmpool.api.deadletterqueue import Archive as ArchiveSpec
from vmpool.kube.resource import Json
from vmpool.settings import Settings

CHUNK = 1 << 20
GZIP = 16 + zlib.MAX_WBITS
SUFFIX = ".jsonl.gz"
MAGIC = b"\x1f\x8b\x08"
"""How a gzip member begins."""
SIZES_KEPT = 32
"""Files whose length after our last write is remembered; older days are checked anew when a letter of theirs comes."""


Secrets = Callable[[str], Awaitable[Mapping[str, str]]]
"""Reads the data of a Secret by name."""


class ArchiveError(Exception):
    """Letters did not get into the archive; the message names it and says why."""


class Archive(Protocol):
    """Takes whole letters for good."""

    async def check(self) -> None:
        """Return when letters could be stored now. Raises ArchiveError when not."""

    async def store(self, letters: Sequence[Json]) -> None:
        """Store whole DeadLetters; they outlast a loss of power once this returns.

        Raises ArchiveError; then some of them may be there, and they may be stored again.
        """


async def _no_secret(name: str) -> Mapping[str, str]:
    raise ValueError(f"Secret {name} cannot be read here")


def open_archive(
    spec: ArchiveSpec, namespace: str, queue: str, secrets: Secrets = _no_secret, *, seconds: float = 30.0
) -> Archive:
    """Return the archive that a queue names; nothing is asked of it yet.

    ``secrets`` reads a Secret of the queue's namespace, ``seconds`` bounds one request to a bucket. Raises
    ArchiveError when what buckets need is not installed.
    """
    if spec.folder is not None:
        return FolderArchive(Path(spec.folder), namespace, queue)
    assert spec.s3 is not None, "the kind's own rule: a folder or a bucket"
    try:
        from vmpool.engine.bucket import BucketArchive
    except ImportError as error:
        raise ArchiveError(f"archive bucket {spec.s3.bucket}: vmpool is installed without its extra s3") from error
    return BucketArchive(spec.s3, namespace, queue, secrets, timeout=timedelta(seconds=seconds))


class Shelf:
    """The archive of one queue, and whether letters get there. After a failure it is left alone for a time."""

    def __init__(
        self,
        namespace: str,
        queue: str,
        settings: Settings,
        failed: Callable[[], None],
        secrets: Secrets = _no_secret,
    ) -> None:
        self.error: str | None = None
        """Why letters do not get there; empty when they do, None while that is not known."""
        self.try_at: datetime | None = None
        """When it is tried again after a failure."""
        self._where = (namespace, queue)
        self._secrets = secrets
        self._settings = settings
        self._failed = failed
        self._spec: ArchiveSpec | None = None
        self._archive: Archive | None = None
        self._failures = 0
        self._checked_at: datetime | None = None
        self._last: asyncio.Future[None] | None = None

    @property
    def doubtful(self) -> bool:
        """Whether the last try failed: the next one should be a small one."""
        return self._failures > 0

    def use(self, spec: ArchiveSpec | None) -> None:
        """Take the archive that the queue names now; another one begins with a clean slate."""
        if spec != self._spec:
            self._spec, self._archive = spec, None
            self.error, self.try_at, self._checked_at, self._failures = None, None, None, 0

    async def ready(self, now: datetime, waiting: bool) -> bool:
        """Return whether letters may be stored now; looks at the archive when that is not known, or long ago.

        After a failure only storing proves anything: while letters are ``waiting`` one of them is the look.
        """
        if self._spec is None or (self.try_at is not None and now < self.try_at):
            return False
        if waiting and self.doubtful:
            return True
        fresh = self._checked_at is not None and now < self._checked_at + self._settings.resync
        return (fresh and not self.error) or await self._try(lambda archive: archive.check(), now)

    async def store(self, letters: Sequence[Json], now: datetime) -> bool:
        """Store whole letters; False when they may not be there."""
        return await self._try(lambda archive: archive.store(letters), now)

    async def _try(self, work: Callable[[Archive], Coroutine[Any, Any, None]], now: datetime) -> bool:
        assert self._spec is not None, "only a queue with an archive stores letters"
        late = f"archive {self._spec.folder or 'bucket'} has not answered for {self._settings.archive_seconds:g} s"
        try:
            if self._last is not None and not self._last.done():
                # A thread cannot be ended: while one hangs, no other is begun.
                raise ArchiveError(late)
            self._archive = self._archive or self._open(self._spec)
            self._last = asyncio.ensure_future(work(self._archive))
            self._last.add_done_callback(_heard)
            async with asyncio.timeout(self._settings.archive_seconds):
                await asyncio.shield(self._last)
        except (ArchiveError, TimeoutError) as error:
            self.error = str(error) if isinstance(error, ArchiveError) else late
            self._failures += 1
            doubled = self._settings.stalled_pause_seconds * 2 ** min(self._failures - 1, 16)
            pause = min(doubled, max(self._settings.error_pause_longest_seconds, self._settings.stalled_pause_seconds))
            self.try_at = now + timedelta(seconds=pause)
            self._failed()
            return False
        self.error, self.try_at, self._checked_at, self._failures = "", None, now, 0
        return True

    def _open(self, spec: ArchiveSpec) -> Archive:
        return open_archive(spec, *self._where, self._secrets, seconds=self._settings.archive_seconds)


def _heard(done: asyncio.Future[None]) -> None:
    """Take note of an error that nobody waits for any more."""
    if not done.cancelled():
        done.exception()


class FolderArchive:
    """``<folder>/<namespace>/<queue>/<YYYY-MM-DD>.jsonl.gz``, by the day of the failure in UTC.

    Every batch is a gzip member of its own, written at once and synced. What a crash left unfinished at the end of a
    file is cut off before the next batch: it was never confirmed, so its letters are still there to be stored.
    """

    def __init__(self, folder: Path, namespace: str, queue: str) -> None:
        self.folder = folder
        self._place = folder / namespace / queue
        self._sizes: dict[Path, int] = {}

    async def check(self) -> None:
        """Return when the folder is there and can be written to. Raises ArchiveError when not."""
        await asyncio.to_thread(self._guarded, self._prepare)

    async def store(self, letters: Sequence[Json]) -> None:
        """Append the letters to the files of their days. Raises ArchiveError."""
        await asyncio.to_thread(self._guarded, lambda: self._store(letters))

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            self._sizes.clear()
            raise ArchiveError(f"archive folder {self.folder}: {error.strerror or error}") from error

    def _prepare(self) -> None:
        if not self.folder.is_dir():
            # Not made by us: where a volume is not mounted, letters would go onto a disk that nobody keeps.
            raise ArchiveError(f"archive folder {self.folder}: it does not exist, or is no folder")
        for place in (self._place.parent, self._place):
            if not place.is_dir():
                place.mkdir(exist_ok=True)
                _sync_folder(place.parent)
        # Asked of the system rather than computed from the mode: a mount can be read-only.
        if not os.access(self._place, os.W_OK | os.X_OK):
            raise ArchiveError(f"archive folder {self.folder}: the operator may not write into {self._place}")

    def _store(self, letters: Sequence[Json]) -> None:
        self._prepare()
        by_day: defaultdict[str, list[Json]] = defaultdict(list)
        for letter in letters:
            by_day[day_of(letter)].append(letter)
        for day, of_day in sorted(by_day.items()):
            lines = b"".join(orjson.dumps(letter) + b"\n" for letter in of_day)
            self._append(self._place / f"{day}{SUFFIX}", gzip.compress(lines))

    def _append(self, file: Path, member: bytes) -> None:
        new = not file.exists()
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            # Not waited for: an operator that lost its lease may still be at its last write.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            end = os.fstat(descriptor).st_size
            if end and end != self._sizes.get(file):
                end = whole_members(descriptor)
                if _more_behind(descriptor, end):
                    # No write that was cut short: something has damaged what was confirmed. It is kept for people.
                    aside = file.with_name(f"{file.name}.damaged-{time.time_ns()}")
                    file.rename(aside)
                    raise ArchiveError(f"archive folder {self.folder}: {file.name} was damaged, it is {aside.name} now")
                os.ftruncate(descriptor, end)
            try:
                _write_all(descriptor, member, end)
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)
        if new:
            _sync_folder(self._place)
        self._sizes.pop(file, None)
        self._sizes[file] = end + len(member)
        while len(self._sizes) > SIZES_KEPT:
            del self._sizes[next(iter(self._sizes))]


def day_of(letter: Json) -> str:
    """Return the day of a letter's failure in UTC, as ``YYYY-MM-DD``."""
    return datetime.fromisoformat(letter["spec"]["failedAt"]).astimezone(UTC).date().isoformat()


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], at + done)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _more_behind(descriptor: int, end: int) -> bool:
    """Whether another gzip member begins behind the first one that is not whole."""
    if os.fstat(descriptor).st_size <= end + len(MAGIC):
        return False
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content:
        return content.find(MAGIC, end + 1) >= 0


def whole_members(descriptor: int) -> int:
    """Return how many bytes from the beginning of a file are complete gzip members."""
    end, at, rest = 0, 0, b""
    member = zlib.decompressobj(GZIP)
    while True:
        data = rest or os.pread(descriptor, CHUNK, at)
        if not data:
            return end
        at += 0 if rest else len(data)
        rest = b""
        try:
            member.decompress(data)
        except zlib.error:
            return end
        if member.eof:
            rest = member.unused_data
            end = at - len(rest)
            member = zlib.decompressobj(GZIP)
