"""The state folder: where everything of one control plane lies, and the record that survives us.

Intents are written before effects. ``state.json`` says "starting" and names the ports before the first
process is spawned, and each pid is added right after its spawn; what a kill loses in between carries our
marker.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vmpool.dev.errors import DevError
from vmpool.dev.files import locked, private_folder, remove_whole, write_private
from vmpool.dev.processes import ProcessId

ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
START_ORDER = (ETCD, API_SERVER, CONTROLLER_MANAGER)

# Longer than a start with all its deadlines, so that a second `up` waits for the first.
LOCK_DEADLINE_SECONDS = 300.0


class Phase(StrEnum):
    """How far the last `up` or `down` came."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"


class State(BaseModel):
    """The content of ``state.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: Phase = Phase.STOPPED
    binaries: Path | None = None
    ports: dict[str, int] = {}
    processes: dict[str, ProcessId] = {}


class Home:
    """One state folder, private to its owner."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.etcd_data = self.path / "etcd"
        self.credentials = self.path / "credentials"
        self.logs = self.path / "logs"
        self.kubeconfig = self.path / "kubeconfig"
        self.kubectl_cache = self.path / "kubectl-cache"
        self.state_file = self.path / "state.json"
        self._lock = self.path / "vmpool-dev.lock"

    @property
    def marker(self) -> str:
        """What the environment of every process of this folder carries."""
        return str(self.path)

    @property
    def exists(self) -> bool:
        """Whether there is a folder, and it is one of ours."""
        return self._lock.exists()

    def log(self, component: str) -> Path:
        """Where a component writes."""
        return self.logs / f"{component}.log"

    def load(self) -> State:
        """Return the recorded state; an absent or unreadable record is that of a stopped control plane."""
        try:
            return State.model_validate_json(self.state_file.read_bytes())
        except (FileNotFoundError, ValidationError):
            # Nothing is lost with the record: the marker finds what still runs.
            return State()

    def save(self, state: State) -> None:
        """Record ``state``: whole or not at all."""
        write_private(self.state_file, state.model_dump_json(indent=2))

    @contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Create the folder if need be and exclude every other `up` and `down` of it.

        Raises Busy, and DevError when the folder holds other people's files.
        """
        if self.path.exists() and not self.exists and any(self.path.iterdir()):
            raise DevError(f"{self.path} holds files that are not ours; choose another VMPOOL_DEV_HOME")
        with locked(self._lock, deadline=LOCK_DEADLINE_SECONDS, on_wait=on_wait):
            private_folder(self.path)
            private_folder(self.logs)
            yield

    def remove(self) -> None:
        """Remove everything that we put into the folder, and the folder if nothing else is in it.

        The caller holds the lock, which goes last: until then the folder is recognised as ours.
        """
        for entry in (
            self.kubeconfig,
            self.state_file,
            self.etcd_data,
            self.kubectl_cache,
            self.credentials,
            self.logs,
        ):
            remove_whole(entry)
        self._lock.unlink()
        with suppress(OSError):
            self.path.rmdir()


def default_home(environ: Mapping[str, str]) -> Home:
    """The folder of `vmpool dev`: ``$VMPOOL_DEV_HOME``, or ``vmpool/dev`` in the user's state folder."""
    if named := environ.get("VMPOOL_DEV_HOME"):
        return Home(Path(named).expanduser())
    return Home(user_folder(environ, "XDG_STATE_HOME", ".local/state") / "vmpool" / "dev")


def user_folder(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    """A folder by the XDG rules: ``variable`` if it is absolute, else ``fallback`` in the home folder."""
    named = environ.get(variable, "")
    return Path(named) if os.path.isabs(named) else Path.home() / fallback
