"""Start, stop and look at one control plane.

Safe to repeat and to kill at any point: the next ``start`` or ``stop`` finds what runs, by the record and by
the marker, ends it, and goes on with etcd's data as they are.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vmpool.dev import credentials, processes
from vmpool.dev.binaries import Binaries
from vmpool.dev.components import (
    LOOPBACK,
    PORT_NAMES,
    Component,
    api_url,
    components,
    controller_manager_kubeconfig,
    healthy,
)
from vmpool.dev.credentials import Credentials
from vmpool.dev.errors import ComponentFailed, NotRunning, PortTaken
from vmpool.dev.files import remove_whole, write_private
from vmpool.dev.processes import ProcessId
from vmpool.dev.state import API_SERVER, CONTROLLER_MANAGER, ETCD, START_ORDER, Home, Phase, State

READY_DEADLINE_SECONDS = 120.0
READY_POLL_SECONDS = 0.05
PORT_ATTEMPTS = 5
LOG_LINES = 20
# The API server waits up to a minute for its watchers; nothing is lost when it does not.
GRACE_SECONDS = {ETCD: 5.0, API_SERVER: 2.0, CONTROLLER_MANAGER: 2.0}
PORT_TAKEN = "address already in use"

Report = Callable[[str], None]


@dataclass(frozen=True)
class ComponentStatus:
    """What is known of one component now; ``resident`` is in bytes."""

    name: str
    pid: int | None
    address: str
    healthy: bool
    resident: int


class ControlPlane:
    """One control plane in one state folder.

    ``throwaway`` trades durability for speed: etcd does not wait for the disk, and the end is a SIGKILL.
    ``api_server_flags`` are added to those that the API server is always started with.
    """

    def __init__(
        self,
        home: Home,
        binaries: Binaries,
        *,
        throwaway: bool = False,
        api_server_flags: Sequence[str] = (),
        report: Report = lambda _: None,
    ) -> None:
        self.home = home
        self.binaries = binaries
        self._throwaway = throwaway
        self._api_server_flags = tuple(api_server_flags)
        self._report = report

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig of the administrator."""
        return self.home.kubeconfig

    @property
    def ca(self) -> Path:
        """The certificate that verifies the API server."""
        return self._files.authority

    @property
    def token(self) -> str:
        """The administrator's bearer token."""
        return self._files.admin_token.read_text()

    @property
    def url(self) -> str:
        """Where the API server answers. Raises NotRunning before the first start."""
        state = self.home.load()
        if not state.ports:
            raise NotRunning(f"no control plane was started in {self.home.path}")
        return api_url(state.ports)

    def start(self, *, fresh: bool = False) -> bool:
        """Bring everything up and wait until it is ready; False if it already was.

        ``fresh`` throws etcd's data away first. Raises ComponentFailed and Busy.
        """
        with _locked(self.home, self._report):
            state = self.home.load()
            if not fresh and healthy_throughout(self.home):
                return False
            end_all(self.home, graceful=not self._throwaway)
            if fresh:
                remove_whole(self.home.etcd_data)
            files = credentials.ensure(self.home.credentials)
            ports = _free_ports(state.ports)
            for attempt in range(1, PORT_ATTEMPTS + 1):
                try:
                    self._start_all(files, ports)
                    return True
                except PortTaken:
                    if attempt == PORT_ATTEMPTS:
                        raise
                    self._report("a port was taken in the meantime; choosing others")
                    ports = _free_ports({})
        raise AssertionError("the loop above returns or raises")

    def stop(self) -> bool:
        """End everything; False if nothing ran. The data stay."""
        return stop(self.home, graceful=not self._throwaway, report=self._report)

    def kill(self, component: str) -> None:
        """Kill one component with SIGKILL and wait until it is gone."""
        processes.end(self._process(component), grace=0)

    def pause(self, component: str) -> None:
        """Freeze one component: its connections stay open and nobody answers."""
        processes.send(self._process(component), signal.SIGSTOP)

    def resume(self, component: str) -> None:
        """Let a paused component go on."""
        processes.send(self._process(component), signal.SIGCONT)

    def start_component(self, component: str) -> None:
        """Start one component that is down, on its old port, and wait until it is ready."""
        with _locked(self.home, self._report):
            state = self.home.load()
            if (old := state.processes.get(component)) is not None:
                processes.end(old, grace=0)
            wanted = {item.name: item for item in self._components(self._files, state.ports)}
            self._start_one(wanted[component], self._files, state)

    @property
    def _files(self) -> Credentials:
        return Credentials(self.home.credentials)

    def _process(self, component: str) -> ProcessId:
        process = self.home.load().processes.get(component)
        if process is None:
            raise NotRunning(f"{component} is not running")
        return process

    def _components(self, files: Credentials, ports: dict[str, int]) -> tuple[Component, ...]:
        wanted = components(self.home, files, self.binaries, ports, throwaway=self._throwaway)
        more = {API_SERVER: self._api_server_flags}
        return tuple(replace(each, argv=(*each.argv, *more.get(each.name, ()))) for each in wanted)

    def _start_all(self, files: Credentials, ports: dict[str, int]) -> None:
        state = State(phase=Phase.STARTING, ports=ports, binaries=self.binaries.folder)
        self.home.save(state)
        self._write_kubeconfigs(files, ports)
        try:
            for component in self._components(files, ports):
                state = self._start_one(component, files, state)
        except BaseException:
            end_all(self.home, graceful=False)
            raise
        self.home.save(state.model_copy(update={"phase": Phase.RUNNING}))

    def _write_kubeconfigs(self, files: Credentials, ports: dict[str, int]) -> None:
        for path, token in (
            (self.home.kubeconfig, files.admin_token),
            (controller_manager_kubeconfig(self.home), files.controller_manager_token),
        ):
            text = credentials.kubeconfig(url=api_url(ports), authority=files.authority, token=token)
            write_private(path, text)

    def _start_one(self, component: Component, files: Credentials, state: State) -> State:
        begin = time.monotonic()
        name, log = component.name, self.home.log(component.name)
        environment = component.environment
        process = processes.spawn(component.argv, log=log, marker=self.home.marker, environment=environment)
        state = state.model_copy(update={"processes": {**state.processes, name: process}})
        self.home.save(state)
        while not healthy(name, state.ports[name], files):
            if not process.alive:
                end = _end_of(log)
                kind = PortTaken if PORT_TAKEN in end else ComponentFailed
                raise kind(f"{name} ended before it was ready; the end of {log}:\n{end}")
            if time.monotonic() - begin > READY_DEADLINE_SECONDS:
                end = _end_of(log)
                raise ComponentFailed(
                    f"{name} was not ready within {READY_DEADLINE_SECONDS:g} s; the end of {log}:\n{end}"
                )
            time.sleep(READY_POLL_SECONDS)
        self._report(f"{name} is ready after {time.monotonic() - begin:.1f} s")
        return state


def stop(home: Home, *, graceful: bool, report: Report) -> bool:
    """End everything that belongs to ``home``; False if nothing ran. Raises Busy."""
    if not home.exists:
        return False
    with _locked(home, report):
        state = home.load()
        ended = end_all(home, graceful=graceful)
        home.save(state.model_copy(update={"phase": Phase.STOPPED, "processes": {}}))
    return ended


def purge(home: Home, *, report: Report) -> None:
    """End everything that belongs to ``home`` and remove its data. Raises Busy."""
    if not home.exists:
        return
    with _locked(home, report):
        end_all(home, graceful=False)
        home.remove()


def end_all(home: Home, *, graceful: bool) -> bool:
    """End whatever the record or the marker proves to be ours, the store last; False if there was nothing."""
    recorded = home.load().processes
    found = [(name, process) for name, process in recorded.items() if process.alive]
    known = {process for _, process in found}
    for name in START_ORDER:
        strays = processes.marked(home.marker, {name})
        found += [(name, stray) for stray in strays if stray not in known]
    for name, process in sorted(found, key=lambda item: -START_ORDER.index(item[0])):
        processes.end(process, grace=GRACE_SECONDS[name] if graceful else 0)
    return bool(found)


def statuses(home: Home) -> list[ComponentStatus]:
    """What is known of each component that was started; empty if none was."""
    state, files = home.load(), Credentials(home.credentials)
    found = []
    for name, process in state.processes.items():
        port, alive = state.ports[name], process.alive
        found.append(
            ComponentStatus(
                name=name,
                pid=process.pid if alive else None,
                address=f"https://{LOOPBACK}:{port}",
                healthy=alive and healthy(name, port, files),
                resident=processes.resident_bytes(process) if alive else 0,
            )
        )
    return found


def healthy_throughout(home: Home) -> bool:
    """Whether the last start came to its end and every component is well."""
    return home.load().phase is Phase.RUNNING and all(status.healthy for status in statuses(home))


def kubectl_call(home: Home, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of kubectl for the control plane in ``home``.

    The user's kubeconfig, preferences and discovery cache are not touched. Raises NotRunning.
    """
    state = home.load()
    if state.binaries is None or not home.kubeconfig.exists():
        raise NotRunning("no control plane was started here; type: vmpool dev up")
    own = {"KUBECONFIG": str(home.kubeconfig), "KUBECACHEDIR": str(home.kubectl_cache), "KUBERC": "off"}
    return [str(Binaries(state.binaries).kubectl), *arguments], {**os.environ, **own}


@contextmanager
def _locked(home: Home, report: Report) -> Iterator[None]:
    with home.locked(lambda: report("waiting for another vmpool dev to finish")):
        yield


def _free_ports(preferred: dict[str, int]) -> dict[str, int]:
    """A free loopback port for every name, the preferred one where nobody took it, all different."""
    taken = []
    try:
        for name in PORT_NAMES:
            taken.append(_bind(preferred.get(name, 0)))
        return dict(zip(PORT_NAMES, (sock.getsockname()[1] for sock in taken), strict=True))
    finally:
        for sock in taken:
            sock.close()


def _bind(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # As Go's listeners do: a port in TIME_WAIT is free.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((LOOPBACK, port))
    except OSError:
        sock.close()
        if port == 0:
            raise
        return _bind(0)
    return sock


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-LOG_LINES:])
