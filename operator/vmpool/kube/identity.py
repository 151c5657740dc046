"""Names of processes that want a lease, and what one can know of another by its name.

A process that was killed cannot let go of its lease. Its successor, in the same pod or on the same machine, can know
that it is dead: then nobody has to wait until the lease has run out.
"""

import hashlib
import os
import secrets
import socket
from pathlib import Path
from typing import Final

POD: Final = "pod"
PARTS: Final = 5


def new_identity(pod_uid: str = "") -> str:
    """Return host name, place, process id, its start and chance: two lives of one pod are two candidates."""
    pid = os.getpid()
    return "_".join((socket.gethostname(), _place(pod_uid), str(pid), _started(pid), secrets.token_hex(4)))


def certainly_dead(other: str, mine: str) -> bool:
    """Return whether the process called ``other`` cannot be running any more.

    ``mine`` is our own name. In the same pod there is one of us at a time: the other one was before us. In the same pid
    namespace of the same boot the kernel says. Of any other place, and of a name that says none, nothing is known.
    """
    theirs, ours = other.rsplit("_", PARTS - 1), mine.rsplit("_", PARTS - 1)
    if other == mine or len(theirs) != PARTS or len(ours) != PARTS or not theirs[1] or theirs[1] != ours[1]:
        return False
    if theirs[1].startswith(POD):
        return True
    _, _, pid, started, _ = theirs
    return pid.isdecimal() and bool(started) and _started(int(pid)) != started


def _place(pod_uid: str) -> str:
    """Return a word that is the same for all who can see each other's end; empty when that cannot be known."""
    if pod_uid:
        return f"{POD}{_short(pod_uid)}"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        return f"ns{_short(f'{boot}/{namespace}')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process began, in ticks since boot; empty when there is no such process, or it is only a corpse."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return ""
    state, ticks = fields[0], fields[19]
    return "" if state in {"Z", "X"} else ticks


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
