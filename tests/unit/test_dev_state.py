"""The state folder of the local control plane, and the processes in its record."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import until
from vmpool.dev import processes
from vmpool.dev.errors import Busy, DevError
from vmpool.dev.files import locked, remove_whole, write_private
from vmpool.dev.processes import ProcessId
from vmpool.dev.state import Home, Phase, State, default_home


def no_waiting() -> None:
    return None


def test_the_folder_is_the_named_one_or_the_users(tmp_path: Path) -> None:
    assert default_home({"VMPOOL_DEV_HOME": str(tmp_path / "mine")}).path == tmp_path / "mine"
    assert default_home({"XDG_STATE_HOME": str(tmp_path)}).path == tmp_path / "vmpool" / "dev"
    assert default_home({}).path == (Path.home() / ".local/state/vmpool/dev").resolve()


def test_two_spellings_of_one_folder_are_one_home(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert Home(tmp_path / "link").marker == Home(tmp_path / "real").marker


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.load() == State()
    state = State(
        phase=Phase.STARTING,
        binaries=Path("/somewhere"),
        ports={"etcd": 1},
        processes={"etcd": ProcessId(pid=1, started=2)},
    )
    home.save(state)
    assert home.load() == state
    assert stat.S_IMODE(home.state_file.stat().st_mode) == 0o600


def test_a_broken_record_is_that_of_a_stopped_control_plane(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.state_file.write_text('{"phase": "sta')
    assert home.load() == State()


def test_a_private_file_replaces_what_a_crash_left(tmp_path: Path) -> None:
    (tmp_path / ".token.draft").write_text("half")
    (tmp_path / ".token.draft").chmod(0o644)
    write_private(tmp_path / "token", "whole")
    assert (tmp_path / "token").read_text() == "whole"
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def test_removal_also_removes_what_a_crashed_removal_left(tmp_path: Path) -> None:
    folder, half = tmp_path / "etcd", tmp_path / ".etcd.draft"
    for each in (folder, half):
        each.mkdir()
        (each / "file").touch()
    remove_whole(folder)
    assert not list(tmp_path.iterdir())
    remove_whole(folder)


def test_only_one_holds_the_lock(tmp_path: Path) -> None:
    waits: list[str] = []
    lock = tmp_path / "lock"
    with (
        locked(lock, deadline=0, on_wait=no_waiting),
        pytest.raises(Busy),
        locked(lock, deadline=0.05, on_wait=lambda: waits.append("waited")),
    ):
        pytest.fail("two held it")
    assert waits == ["waited"]
    with locked(lock, deadline=0, on_wait=no_waiting):
        pass


def test_a_removed_home_is_gone_and_can_be_made_again(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    for _ in range(2):
        with home.locked(no_waiting):
            home.save(State())
            home.remove()
        assert not home.path.exists()


def test_a_home_that_holds_somebody_elses_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DevError, match="not ours"), Home(tmp_path).locked(no_waiting):
        pytest.fail("took it")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_removal_keeps_what_somebody_put_beside_our_files(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with home.locked(no_waiting):
        (home.path / "notes").touch()
        home.remove()
    assert [path.name for path in home.path.iterdir()] == ["notes"]


def test_a_process_is_recognised_by_its_start_not_by_its_pid() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        pid = child.pid
        begun = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        ours, reused = ProcessId(pid, begun), ProcessId(pid, begun - 1)
        try:
            assert ours.alive
            assert not reused.alive
            processes.end(reused, grace=0)
            assert child.poll() is None
        finally:
            child.kill()
    assert not ours.alive


async def test_a_spawned_process_is_found_by_its_marker_and_ended(tmp_path: Path) -> None:
    name = os.path.basename(sys.executable)
    script = "import signal; signal.pause()"
    process = processes.spawn([sys.executable, "-c", script], log=tmp_path / "log.log", marker=str(tmp_path))
    try:
        assert process.alive
        # The kernel shows a new program's environment a moment after its spawn has returned.
        found = await until(lambda: list(processes.marked(str(tmp_path), {name})), what="the marker to be seen")
        assert found == [process]
        assert not list(processes.marked(f"{tmp_path}-other", {name}))
        assert not list(processes.marked(str(tmp_path), {"etcd"}))
        assert os.getsid(process.pid) == process.pid
        assert processes.resident_bytes(process) > 0
    finally:
        processes.end(process, grace=5)
    assert not process.alive


async def test_a_process_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    log = tmp_path / "log.log"
    process = processes.spawn([sys.executable, "-c", script], log=log, marker=str(tmp_path))
    await until(lambda: "deaf" in log.read_text(), what="the process to be deaf")
    processes.end(process, grace=0.1)
    assert not process.alive
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_the_log_of_the_run_before_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "etcd.log"
    log.write_text("why it died")
    process = processes.spawn([sys.executable, "-c", "pass"], log=log, marker=str(tmp_path))
    processes.end(process, grace=10)
    assert (tmp_path / "etcd.previous.log").read_text() == "why it died"
