"""A real operator process for the tests: started, killed and started again at will, on one namespace of its own."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.planes import Kubectl
from tests.programs import Program
from tests.waiting import until
from vmpool.dev.plane import ControlPlane

FAST = {
    "VMPOOL_HTTP_PORT": "0",
    "VMPOOL_LEASE_SECONDS": "3",
    "VMPOOL_LEASE_RENEW_SECONDS": "2.5",
    "VMPOOL_LEASE_RETRY_SECONDS": "0.3",
    "VMPOOL_STALLED_PAUSE_SECONDS": "0.5",
    "VMPOOL_LISTING_PAUSE_SECONDS": "0.3",
    "VMPOOL_SWEEP_SECONDS": "1",
    "VMPOOL_STOP_GRACE_SECONDS": "3",
}
"""Settings that make a test short; none of them changes what is decided."""


class Operator(Program):
    """``vmpool operator`` as a process of its own; its log is a file."""

    command = "operator"
    base = FAST

    def __init__(self, kubeconfig: Path, folder: Path, **settings: str) -> None:
        super().__init__(kubeconfig, folder / "operator.log", **settings)
        self._led_before = 0

    def start(self) -> None:
        """Start it; returns at once."""
        self._led_before = self.lines().count('"engine_ready"')
        super().start()

    async def ready(self, deadline: float = 30.0) -> None:
        """Wait until this life of it leads and its first lists are complete."""

        def leads() -> bool:
            assert self.running, f"the operator ended:\n{self.lines()[-3000:]}"
            return self.lines().count('"engine_ready"') > self._led_before

        await until(leads, deadline=deadline, what="the operator is ready")

    def http(self, path: str) -> str:
        """GET from its probes' port; the port is read from its log."""
        port = self.lines().rsplit('"http": "127.0.0.1:', 1)[1].split('"', 1)[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.read().decode()


@contextmanager
def serving(plane: ControlPlane, namespace: str, folder: Path, **settings: str) -> Iterator[Operator]:
    """An operator that serves one namespace from within, started, until the context ends."""
    made = Operator(plane.kubeconfig, folder, VMPOOL_WATCH_NAMESPACE=namespace, VMPOOL_NAMESPACE=namespace, **settings)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def operator(plane: ControlPlane, namespace: str, crds_installed: None, tmp_path: Path) -> Iterator[Operator]:
    """An operator that serves the test's namespace only; not started yet."""
    made = Operator(Path(plane.kubeconfig), tmp_path, VMPOOL_WATCH_NAMESPACE=namespace, VMPOOL_NAMESPACE=namespace)
    yield made
    made.kill()


def manifest(kubectl: Kubectl, namespace: str, text: str) -> None:
    """Apply a manifest in the test's namespace."""
    kubectl("apply", "--server-side", "--force-conflicts", "-n", namespace, "-f", "-", input=text)
