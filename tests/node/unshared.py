"""Makes a node of this machine, within one `unshare`: no package registry, no container engine, nothing left behind."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tests.node.cluster import Cluster
from tests.node.configs import Files, Programs
from vmpool.dev.binaries import cache_folder
from vmpool.dev.files import locked, write_private

ROOT = Path(__file__).parents[2]
UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
TOOLS = ("unshare", "nsenter", "ip", "nft", "runc", "mount", "chroot", "debootstrap")
CGROUPS = Path("/sys/fs/cgroup")
SYSCTLS = ("kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory")
"""What kubelet sets for the whole machine."""
GROUP = "vmpool-node-"
TURN_SECONDS = 1800.0
"""How long a second run waits for the first: both would put back what the other's kubelet has set."""
END_SECONDS = 30.0
CLEAN_SECONDS = 10.0
POLL_SECONDS = 0.1


def missing() -> str:
    """Why this machine cannot be a node; empty when it can."""
    if sys.platform != "linux":
        return "not Linux"
    if os.geteuid() != 0:
        return "not root"
    lacking = [name for name in TOOLS if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed"
    if closed := [str(home) for home in _hierarchies() if not os.access(home, os.W_OK)]:
        return f"control groups are read-only: {', '.join(closed)}"
    # A bridge, a pair of interfaces, an overlay: what a container of little privilege may not make.
    with tempfile.TemporaryDirectory(prefix="vmpool-probe-") as folder:
        names = [Path(folder) / name for name in ("lower", "upper", "work", "root")]
        for path in names:
            path.mkdir()
        lower, upper, work, root = names
        script = (
            "set -e; ip link add name b0 type bridge; ip link add name v1 type veth peer name v2; nft add table ip t;"
            f"mount -t overlay o -o lowerdir={lower},upperdir={upper},workdir={work} {root}"
        )
        done = subprocess.run(
            [*UNSHARE, "/bin/sh", "-c", script], capture_output=True, text=True, check=False, timeout=30
        )
    return f"this machine allows no node: {done.stderr.strip()}" if done.returncode != 0 else ""


@contextmanager
def node(programs: Programs, helm: Path, images: Sequence[Path], tell: Callable[[str], None]) -> Iterator[Cluster]:
    """Run a node until the block ends. Raises AssertionError with the reason when it does not come up."""
    # A terminated run takes the way of an interrupted one, through the fixtures' ends. Of a killed one all processes
    # end too, for their input does; what else it leaves the next run removes.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    lock = cache_folder(os.environ) / "node.lock"
    try:
        with (
            locked(lock, deadline=TURN_SECONDS, on_wait=lambda: tell("node: waits for another run")),
            _machine() as group,
        ):
            folder = Path(tempfile.mkdtemp(prefix=GROUP))
            try:
                with _running(folder, group, programs, images, tell) as pid:
                    enter = ("nsenter", f"--target={pid}", "--mount", "--net", "--pid", "--")
                    yield Cluster(
                        kubectl_argv=(*enter, str(programs.plane / "kubectl")),
                        helm_argv=(*enter, str(helm)),
                        kubeconfig=Files(folder, group).kubeconfig("admin"),
                        home=folder,
                    )
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _machine() -> Iterator[str]:
    """Make control groups for a run; put everything of the machine back afterwards.

    What was set before is written down first: after a run that was killed, the next one puts it back.
    """
    note = cache_folder(os.environ) / "node.settings.json"
    if note.exists():
        _put_back(note)
    _remove_groups([old for home in _hierarchies() for old in home.glob(f"{GROUP}*")])
    for old in Path(tempfile.gettempdir()).glob(f"{GROUP}*"):
        shutil.rmtree(old, ignore_errors=True)
    name = f"/{GROUP}{secrets.token_hex(4)}"
    write_private(note, json.dumps({setting: Path("/proc/sys", setting).read_text() for setting in SYSCTLS}))
    groups = _make_groups(name)
    try:
        yield name
    finally:
        _put_back(note)
        left = _remove_groups(groups)
        assert not left, f"control groups that stayed: {left}"


def _put_back(note: Path) -> None:
    for setting, value in json.loads(note.read_text()).items():
        Path("/proc/sys", setting).write_text(value)
    note.unlink()


@contextmanager
def _running(
    folder: Path, cgroup: str, programs: Programs, images: Sequence[Path], tell: Callable[[str], None]
) -> Iterator[int]:
    """Run everything; yield the first process of the namespaces, by its number out here."""
    told = {
        "cgroup": cgroup,
        "programs": {name: str(path) for name, path in asdict(programs).items()},
        "images": [str(image) for image in images],
    }
    (folder / "told.json").write_text(json.dumps(told))
    process = subprocess.Popen(
        [*UNSHARE, sys.executable, "-m", "tests.node.inside", str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        _follow(process, tell)
        yield int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    finally:
        _end(process)


def _follow(process: subprocess.Popen[str], tell: Callable[[str], None]) -> None:
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if line == "ready\n":
            return
        if line.startswith("failed: "):
            said += process.stdout.readlines()
            break
        tell(f"node: {line.strip()}")
    raise AssertionError(f"the node did not come up:\n{''.join(said)}")


def _end(process: subprocess.Popen[str]) -> None:
    try:
        # The end of its input is the word to end; what it says last, of a program that failed, is for the reader.
        said, _ = process.communicate(timeout=END_SECONDS)
        sys.stderr.write(said)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _hierarchies() -> list[Path]:
    """Where groups are made: one place, or with the old kind one for each controller."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if (path / "cgroup.procs").exists()]


def _make_groups(name: str) -> list[Path]:
    """The same folder in each hierarchy: kubelet puts its own below, and does not make this one."""
    groups = [home / name.lstrip("/") for home in _hierarchies()]
    for group in groups:
        group.mkdir()
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # A set of the old kind begins empty, and takes no process until it is filled.
            if group.parent != CGROUPS and (group / setting).exists():
                (group / setting).write_text((group.parent / setting).read_text())
    return groups


def _remove_groups(groups: Sequence[Path]) -> list[Path]:
    """Remove the folders from the inside out; return what stayed in use until the deadline."""
    end = time.monotonic() + CLEAN_SECONDS
    while True:
        for group in groups:
            for path in sorted(group.rglob("*"), key=lambda path: -len(path.parts)):
                _remove_group(path)
            _remove_group(group)
        left = [group for group in groups if group.exists()]
        if not left or time.monotonic() > end:
            return left
        time.sleep(POLL_SECONDS)


def _remove_group(path: Path) -> None:
    if path.is_dir():
        try:
            path.rmdir()
        except OSError:
            return
