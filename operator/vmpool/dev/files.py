"""Private files that are whole or absent, and locks that outlive no process."""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vmpool.dev.errors import Busy

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
LOCK_POLL_SECONDS = 0.1


def write_private(path: Path, data: str | bytes) -> None:
    """Write ``path`` with mode 0600; a reader, and a crash, see the old or the new content, never a part."""
    content = data.encode() if isinstance(data, str) else data
    draft = draft_of(path)
    draft.unlink(missing_ok=True)
    # The mode is given at creation: a chmod afterwards would leave a moment in which others can read.
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def draft_of(path: Path) -> Path:
    """The name under which ``path`` is made or unmade; whatever a crash leaves there may be removed."""
    return path.with_name(f".{path.name}.draft")


def remove_whole(path: Path) -> None:
    """Remove a file or a folder so that a crash in the middle leaves all of it or nothing under its name."""
    draft = draft_of(path)
    _remove(draft)
    with suppress(FileNotFoundError):
        path.rename(draft)
    _remove(draft)


def private_folder(path: Path) -> Path:
    """Create ``path`` (with its parents) and make it readable by its owner alone."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(PRIVATE_FOLDER)
    return path


@contextmanager
def locked(path: Path, *, deadline: float, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``; the kernel releases it with the process.

    ``on_wait`` is called once if another process holds it. Raises Busy after ``deadline`` seconds.
    """
    end = time.monotonic() + deadline
    waited = False
    while (descriptor := _try_lock(path)) is None:
        if time.monotonic() > end:
            raise Busy(f"another process has held {path} for more than {deadline:g} s; end it and try again")
        if not waited:
            on_wait()
            waited = True
        time.sleep(LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _try_lock(path: Path) -> int | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A purge removes the folder with its lock file: then we hold a file that nobody else can see.
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    os.close(descriptor)
    return None
