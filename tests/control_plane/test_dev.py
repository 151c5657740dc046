"""`vmpool dev` on a state folder of its own: repeatable, killable, private, and blind to strangers."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vmpool
from tests.waiting import until
from vmpool.dev.binaries import Binaries
from vmpool.dev.plane import ControlPlane, end_all, purge, statuses
from vmpool.dev.processes import ProcessId, marked
from vmpool.dev.state import API_SERVER, CONTROLLER_MANAGER, ETCD, START_ORDER, Home, Phase

pytestmark = pytest.mark.control_plane

CLI_TIMEOUT_SECONDS = 120
ROOT = Path(vmpool.__file__).parent.parent


class DevCommand:
    """`vmpool dev` as its user runs it: a process of its own, with a home folder of its own."""

    def __init__(self, home: Home, user_home: Path) -> None:
        self.home = home
        self._environment = {
            **os.environ,
            "HOME": str(user_home),
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
            "VMPOOL_DEV_HOME": str(home.path),
            "PYTHONPATH": str(ROOT),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        # A run in the background ignores interrupts, and what it starts would inherit that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(
                [sys.executable, "-m", "vmpool.cli.dev", *arguments],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        finally:
            signal.signal(signal.SIGINT, before)

    def __call__(self, *arguments: str, code: int = 0) -> str:
        with self.start(*arguments) as process:
            output, _ = process.communicate(timeout=CLI_TIMEOUT_SECONDS)
        assert process.returncode == code, output
        return output


@pytest.fixture
def user_home(tmp_path: Path) -> Path:
    """The home folder of a user who has a kubeconfig already."""
    config = tmp_path / "user" / ".kube" / "config"
    config.parent.mkdir(parents=True)
    config.write_text("the user's own")
    return tmp_path / "user"


@pytest.fixture
def dev(tmp_path: Path, user_home: Path, plane_binaries: Binaries) -> Iterator[DevCommand]:
    command = DevCommand(Home(tmp_path / "dev"), user_home)
    yield command
    purge(command.home, report=print)
    assert survivors(command.home) == []


def survivors(home: Home) -> list[ProcessId]:
    return list(marked(home.marker, START_ORDER))


def pids(home: Home) -> dict[str, int | None]:
    return {status.name: status.pid for status in statuses(home)}


def test_a_second_up_changes_nothing(dev: DevCommand) -> None:
    dev("status", code=1)
    assert "the control plane is up\n" in dev("up", "--unsafe-no-fsync")
    before = pids(dev.home)
    assert set(before) == set(START_ORDER)
    assert "up already" in dev("up", "--unsafe-no-fsync")
    assert pids(dev.home) == before


async def test_status_tells_health_by_its_exit_code(dev: DevCommand) -> None:
    dev("up", "--unsafe-no-fsync")
    table = dev("status")
    assert all(name in table for name in START_ORDER)
    os.kill(dev.home.load().processes[CONTROLLER_MANAGER].pid, signal.SIGKILL)
    await until(lambda: pids(dev.home)[CONTROLLER_MANAGER] is None, what="the end of one component")
    assert "no" in dev("status", code=1)
    dev("up", "--unsafe-no-fsync")
    dev("status")
    dev("down")
    dev("status", code=1)


def test_what_is_stored_survives_down_and_up_but_not_fresh(dev: DevCommand) -> None:
    dev("up", "--unsafe-no-fsync")
    dev("kubectl", "create", "namespace", "kept")
    dev("down")
    assert survivors(dev.home) == []
    dev("up", "--unsafe-no-fsync")
    dev("kubectl", "get", "namespace", "kept")
    dev("up", "--fresh", "--unsafe-no-fsync")
    dev("kubectl", "get", "namespace", "kept", code=1)


def test_the_users_own_kubectl_setup_is_neither_read_nor_written(dev: DevCommand, user_home: Path) -> None:
    dev("up", "--unsafe-no-fsync")
    dev("kubectl", "get", "namespaces")
    dev("down", "--purge")
    assert [path.name for path in user_home.rglob("*")] == [".kube", "config"]
    assert (user_home / ".kube" / "config").read_text() == "the user's own"
    assert not dev.home.path.exists()


def test_every_secret_is_its_owners_alone(dev: DevCommand) -> None:
    dev("up", "--unsafe-no-fsync")
    assert stat.S_IMODE(dev.home.path.stat().st_mode) == 0o700
    files = [dev.home.kubeconfig, dev.home.state_file, *dev.home.credentials.iterdir()]
    assert len(files) > 10
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def starting(home: Home) -> bool:
    return home.load().phase is Phase.STARTING


def started(component: str) -> Callable[[Home], bool]:
    return lambda home: component in home.load().processes


def wait_without_pause(condition: Callable[[], bool]) -> None:
    """Some moments last a few milliseconds; a polite poll would miss them."""
    end = time.monotonic() + CLI_TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < end


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(starting, id="ports-recorded"),
        pytest.param(started(ETCD), id="etcd-spawned"),
        pytest.param(started(API_SERVER), id="apiserver-spawned"),
        pytest.param(started(CONTROLLER_MANAGER), id="controller-manager-spawned"),
    ],
)
def test_up_may_be_killed_at_any_moment(dev: DevCommand, moment: Callable[[Home], bool]) -> None:
    with dev.start("up", "--unsafe-no-fsync") as process:
        wait_without_pause(lambda: moment(dev.home))
        process.kill()
    assert dev.home.load().phase is Phase.STARTING
    dev("status", code=1)
    dev("up", "--unsafe-no-fsync")
    dev("status")
    assert len(survivors(dev.home)) == len(START_ORDER)
    dev("down")
    assert survivors(dev.home) == []


def test_a_process_whose_pid_was_never_recorded_is_found(dev: DevCommand) -> None:
    dev("up", "--unsafe-no-fsync")
    dev.home.save(dev.home.load().model_copy(update={"processes": {}}))
    assert len(survivors(dev.home)) == len(START_ORDER)
    dev("down")
    assert survivors(dev.home) == []


def test_an_interrupted_up_leaves_nothing_behind(dev: DevCommand) -> None:
    with dev.start("up", "--unsafe-no-fsync") as process:
        wait_without_pause(lambda: started(API_SERVER)(dev.home))
        process.send_signal(signal.SIGINT)
        assert process.wait(CLI_TIMEOUT_SECONDS) != 0
    assert survivors(dev.home) == []


def test_a_stranger_with_a_recorded_pid_is_never_killed(dev: DevCommand) -> None:
    dev("up", "--unsafe-no-fsync")
    dev("down")
    with subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            state = dev.home.load()
            reused = {ETCD: ProcessId(stranger.pid, started=1)}
            dev.home.save(state.model_copy(update={"processes": reused, "phase": Phase.RUNNING}))
            dev("status", code=1)
            dev("down")
            dev("up", "--unsafe-no-fsync")
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_folder_of_somebody_else_is_left_alone(dev: DevCommand) -> None:
    dev.home.path.mkdir()
    precious = dev.home.path / "precious"
    precious.write_text("data")
    assert "not ours" in dev("up", "--unsafe-no-fsync", code=1)
    dev("down", "--purge")
    assert list(dev.home.path.iterdir()) == [precious]


def test_a_failing_component_shows_the_end_of_its_log(dev: DevCommand) -> None:
    dev("up", "--unsafe-no-fsync")
    dev("down")
    dev.home.credentials.joinpath("tokens.csv").write_text("a line that is no token\n")
    output = dev("up", "--unsafe-no-fsync", code=1)
    assert "kube-apiserver ended before it was ready" in output
    assert "tokens.csv" in output or "token" in output.split("the end of", 1)[1]
    assert survivors(dev.home) == []


def test_a_port_that_is_taken_in_the_last_moment_is_replaced(tmp_path: Path, plane_binaries: Binaries) -> None:
    home = Home(tmp_path / "dev")
    rival = socket.socket()
    rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    rival.bind(("127.0.0.1", 0))
    notes: list[str] = []

    def steal_after_etcd(line: str) -> None:
        notes.append(line)
        if line.startswith(ETCD):
            rival.listen()

    plane = ControlPlane(home, plane_binaries, throwaway=True, report=steal_after_etcd)
    with home.locked(lambda: None):
        # Bound but not yet listening: the choice of ports passes, the API server's own listen does not.
        ports = {API_SERVER: rival.getsockname()[1]}
        home.save(home.load().model_copy(update={"ports": ports}))
    try:
        with rival:
            plane.start()
        assert home.load().ports[API_SERVER] != ports[API_SERVER]
        assert any("port was taken" in note for note in notes)
    finally:
        purge(home, report=print)


def test_assets_without_controllers_are_used_and_said_to_lack_them(
    dev: DevCommand, tmp_path: Path, plane_binaries: Binaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    for name in ("etcd", "kube-apiserver", "kubectl"):
        assets.joinpath(name).symlink_to(plane_binaries.folder / name)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    lean = DevCommand(dev.home, tmp_path / "user")
    assert "no kube-controller-manager" in lean("up", "--unsafe-no-fsync")
    assert set(pids(dev.home)) == {ETCD, API_SERVER}
    lean("status")
    lean("kubectl", "run", "pod", "--image=none")


def test_end_all_says_whether_there_was_anything(tmp_path: Path) -> None:
    assert not end_all(Home(tmp_path), graceful=False)


def test_the_record_names_no_secret(dev: DevCommand) -> None:
    dev("up", "--unsafe-no-fsync")
    record = dev.home.state_file.read_text()
    token = (dev.home.credentials / "admin.token").read_text()
    assert token not in record
    assert set(json.loads(record)) == {"phase", "binaries", "ports", "processes"}
    arguments = "".join(Path(f"/proc/{process.pid}/cmdline").read_text() for process in survivors(dev.home))
    assert token not in arguments
