"""Simulated clouds for the tests: real processes with real ledgers, which can be killed and started again."""

import http.client
import itertools
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import vmpool

START_SECONDS = 30.0
STOP_SECONDS = 10.0
CALL_SECONDS = 30.0
POLL_SECONDS = 0.01

FAST = ("--disk-seconds=0.01", "--nic-seconds=0.01", "--boot-seconds=0.05", "--delete-seconds=0.02")
"""Latencies that a test does not notice but that still are there."""

Document = dict[str, Any]


@dataclass(frozen=True)
class Tenant:
    """An account at a simulated cloud."""

    name: str
    key: str


class SimCloud:
    """One simulated cloud: a process, its ledger, and the admin's view of it."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self._folder = folder
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._admin_key = secrets.token_hex(8)
        self._tenant_numbers = itertools.count(1)
        self.ledger_file = folder / "ledger.sqlite"
        self.port = 0

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running cloud."""
        assert self._process is not None, "the cloud does not run"
        return self._process.pid

    # --- process ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it, at the same port and on the same ledger if it ran before."""
        assert self._process is None, "the cloud runs already"
        port_file = self._folder / "port"
        port_file.unlink(missing_ok=True)
        first = not self.ledger_file.exists()
        argv = [sys.executable, "-m", "vmpool.simcloud", f"--ledger={self.ledger_file}", f"--port={self.port}"]
        # Flags would overwrite settings that the test has changed since the first start.
        argv += [f"--port-file={port_file}", *(self._flags if first else ())]
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(vmpool.__file__).parent.parent),
            "SIMCLOUD_ADMIN_KEY": self._admin_key,
        }
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log)
        self._guard = _guard(self._process.pid)
        self._await_port(port_file)

    def kill(self) -> None:
        """End it as kill -9 does."""
        assert self._process is not None, "the cloud does not run"
        self._process.kill()
        self._ended()

    def stop(self) -> None:
        """End it if it runs, the gentle way."""
        if self._process is not None:
            self._process.terminate()
            self._ended()

    # --- HTTP ---------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> tuple[int, Any]:
        """Send one request, as admin unless a key is given; return status and document (None: an empty one).

        Raises OSError or http.client.HTTPException when there is no whole answer.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CALL_SECONDS)
        try:
            headers = {"Authorization": f"Bearer {self._admin_key if key is None else key}"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read()
            return response.status, json.loads(content) if content else None
        finally:
            connection.close()

    def _done(self, method: str, path: str, body: Any = None) -> Any:
        status, document = self.call(method, path, body)
        assert 200 <= status < 300, f"{method} {path}: {status} {document}"
        return document

    def tenant(self) -> Tenant:
        """Make a tenant of its own."""
        tenant = Tenant(f"tenant-{next(self._tenant_numbers)}-{secrets.token_hex(3)}", secrets.token_hex(12))
        self._done("PUT", f"/v1/tenants/{tenant.name}", {"key": tenant.key})
        return tenant

    def create(self, tenant: Tenant, **fields: Any) -> tuple[int, Document]:
        """Ask for a machine past any provider; ``fields`` (camelCase) replace those of a plain one."""
        plain = {"name": "vm", "hostname": "vm", "image": "debian-12", "cpus": 1, "memoryMiB": 256}
        return self.call("POST", "/v1/machines", {**plain, **fields}, key=tenant.key)

    def made(self, tenant: Tenant, **fields: Any) -> str:
        """Make a machine and return its id."""
        status, machine = self.create(tenant, **fields)
        assert status == 201, machine
        return str(machine["id"])

    def state(self, tenant: Tenant, machine_id: str) -> str:
        """Return the state that the tenant sees; ``Gone`` for a machine that is not there."""
        status, machine = self.call("GET", f"/v1/machines/{machine_id}", key=tenant.key)
        return str(machine["state"]) if status == 200 else "Gone"

    def listed(self, tenant: Tenant, query: str = "") -> list[str]:
        """Return the ids of one page of the tenant's listing."""
        status, page = self.call("GET", f"/v1/machines?{query}", key=tenant.key)
        assert status == 200, page
        return [machine["id"] for machine in page["machines"]]

    def fault(self, action: str, match: Document | None = None, **fields: Any) -> int:
        """Add a fault rule, such as ``fault("slow", {"operation": "get"}, seconds=1)``; return its id."""
        rule = {"action": action, "match": match or {}, **fields}
        return int(self._done("POST", "/v1/faults", rule)["id"])

    def faults(self) -> list[Document]:
        """Return the rules with their counters."""
        return list(self._done("GET", "/v1/faults")["faults"])

    def clear_faults(self) -> None:
        """Remove all rules."""
        self._done("DELETE", "/v1/faults")

    def settings(self, **changes: Any) -> Document:
        """Change settings (camelCase) and return them all."""
        return dict(self._done("PUT", "/v1/settings", changes))

    def ledger(self, *, machines: bool = True, tenant: str = "") -> Document:
        """Return the whole truth, or that about one tenant."""
        only = f"&tenant={tenant}" if tenant else ""
        return dict(self._done("GET", f"/v1/ledger?machines={str(machines).lower()}{only}"))

    def fate(self, machine_id: str, fate: str) -> None:
        """Let a machine ``vanish``, ``fail`` or ``revive``."""
        self._done("POST", f"/v1/ledger/{machine_id}/{fate}")

    # --- inside -------------------------------------------------------------------------------------------------

    def _await_port(self, port_file: Path) -> None:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while not port_file.exists():
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the cloud did not start: {(self._folder / 'log').read_text()}")
            _pause()
        self.port = int(port_file.read_text())

    def _ended(self) -> None:
        assert self._process is not None
        assert self._guard is not None
        self._process.wait(STOP_SECONDS)
        self._guard.kill()
        self._guard.communicate()
        self._process = self._guard = None


def _pause() -> None:
    time.sleep(POLL_SECONDS)  # a step of a wait with a deadline, for fixtures that have no event loop


def _guard(pid: int) -> subprocess.Popen[bytes]:
    """A process that ends the cloud when ours is killed: its standard input ends with us."""
    script = f"cat >/dev/null; kill -9 {pid}"
    return subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)


@pytest.fixture(scope="session")
def shared_simcloud() -> Iterator[SimCloud]:
    """The process behind ``simcloud``; tests use that one."""
    with tempfile.TemporaryDirectory(prefix="vmpool-simcloud-") as folder:
        cloud = SimCloud(Path(folder), *FAST)
        cloud.start()
        try:
            yield cloud
        finally:
            cloud.stop()


@pytest.fixture
def simcloud(shared_simcloud: SimCloud) -> Iterator[SimCloud]:
    """A cloud that all tests share: keep to a tenant of your own, and leave process and settings alone.

    Fault rules are removed afterwards.
    """
    yield shared_simcloud
    shared_simcloud.clear_faults()


@pytest.fixture
def tenant(simcloud: SimCloud) -> Tenant:
    """A tenant of the test's own in the shared cloud."""
    return simcloud.tenant()


@pytest.fixture
def make_simcloud(tmp_path: Path) -> Iterator[Callable[..., SimCloud]]:
    """Start clouds of the test's own, with command-line flags; they may be killed and started again."""
    clouds: list[SimCloud] = []

    def make(*flags: str) -> SimCloud:
        folder = tmp_path / f"simcloud-{len(clouds)}"
        folder.mkdir()
        cloud = SimCloud(folder, *(flags or FAST))
        clouds.append(cloud)
        cloud.start()
        return cloud

    yield make
    for cloud in clouds:
        cloud.stop()
