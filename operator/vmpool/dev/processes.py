"""Processes that outlive us, found again without ever mistaking a stranger for one of them.

A pid alone proves nothing, for the kernel reuses it. A process counts as ours when its start time is the one
we recorded, or when its environment carries our marker; a stranger with a reused pid has neither.
"""

import os
import select
import signal
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
MARKER = "VMPOOL_DEV_PLANE"
KILL_DEADLINE_SECONDS = 10.0


@dataclass(frozen=True)
class ProcessId:
    """One process for all time: its pid and the kernel's start time of it, in clock ticks since boot."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether exactly this process still runs; a zombie does not."""
        stat = _stat(self.pid)
        return stat is not None and stat.started == self.started and stat.state not in "ZX"


@dataclass(frozen=True)
class _Stat:
    state: str
    started: int


def spawn(argv: Iterable[str], *, log: Path, marker: str, environment: Mapping[str, str] | None = None) -> ProcessId:
    """Start a process in a session of its own that writes to ``log`` and carries ``marker``.

    It gets a bare environment and what is given: etcd alone would read a dozen ``ETCD_*`` variables from ours.
    """
    arguments = list(argv)
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    pid = os.posix_spawn(
        arguments[0],
        arguments,
        {"PATH": os.defpath, "HOME": str(log.parent), **(environment or {}), MARKER: marker},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
    )
    stat = _stat(pid)
    assert stat is not None, "our own child stays in /proc until we reap it"
    return ProcessId(pid, stat.started)


def marked(marker: str, names: Collection[str]) -> Iterator[ProcessId]:
    """Every living process of this user that carries ``marker`` and runs one of the binaries ``names``."""
    wanted = f"{MARKER}={marker}".encode()
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        # A process may end, or belong to somebody else, at any moment of this walk.
        with suppress(OSError):
            if entry.stat().st_uid != os.getuid():
                continue
            program = entry.joinpath("cmdline").read_bytes().split(b"\0", 1)[0].decode(errors="replace")
            if os.path.basename(program) not in names:
                continue
            if wanted not in entry.joinpath("environ").read_bytes().split(b"\0"):
                continue
            if (stat := _stat(int(entry.name))) is not None:
                yield ProcessId(int(entry.name), stat.started)


def send(process: ProcessId, number: signal.Signals) -> None:
    """Send a signal to exactly this process; to nobody if it is gone."""
    with _pinned(process) as descriptor:
        if descriptor is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)


def end(process: ProcessId, *, grace: float) -> None:
    """End the process: ask it to, wait up to ``grace`` seconds, then kill it."""
    with _pinned(process) as descriptor:
        if descriptor is None:
            return
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, KILL_DEADLINE_SECONDS)):
            if patience == 0:
                continue
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if _ended(descriptor, patience):
                break
    # Only a parent can, and should; everybody else leaves that to the parent.
    with suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)


def resident_bytes(process: ProcessId) -> int:
    """Resident memory in bytes; 0 when the process is gone."""
    with suppress(OSError):
        pages = int(PROC.joinpath(str(process.pid), "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")
    return 0


@contextmanager
def _pinned(process: ProcessId) -> Iterator[int | None]:
    """A descriptor of exactly this process, or None if it is gone: no pid can be reused under it."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield descriptor if process.alive else None
    finally:
        os.close(descriptor)


def _ended(descriptor: int, within: float) -> bool:
    # Readable once all threads are gone; /proc calls the process a zombie while some still hold its files.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(within * 1000))


def _stat(pid: int) -> _Stat | None:
    try:
        text = PROC.joinpath(str(pid), "stat").read_text()
    except OSError:
        return None
    # The second field is the program's name and may hold blanks and parentheses.
    fields = text.rpartition(")")[2].split()
    return _Stat(state=fields[0], started=int(fields[19]))
