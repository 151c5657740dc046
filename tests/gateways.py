"""A real gateway process for the tests, several of them if need be: started, killed and started again at will."""

import os
import secrets
import signal
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.programs import STOP_SECONDS, Program
from tests.waiting import until
from vmpool.dev.plane import ControlPlane

QUICK = {"VMPOOL_GATEWAY_PORT": "0", "VMPOOL_GATEWAY_STOP_SECONDS": "5"}
"""Settings that every one of these has."""


class Gateway(Program):
    """``vmpool gateway`` as a process of its own; its log is a file."""

    command = "gateway"
    base = QUICK

    def __init__(self, kubeconfig: Path, folder: Path, **settings: str) -> None:
        super().__init__(kubeconfig, folder / f"gateway-{secrets.token_hex(3)}.log", **settings)
        self._seen = 0

    @property
    def url(self) -> str:
        """Where it serves, of the present start: ``http://127.0.0.1:<port>``."""
        return self._since_start().rsplit('"url": "', 1)[1].split('"', 1)[0]

    def start(self) -> None:
        """Start it; returns at once. ``listens`` and ``ready`` wait."""
        self._seen = len(self.lines())
        super().start()

    def ask_to_stop(self) -> None:
        """Ask it to stop, and do not wait."""
        os.kill(self.pid, signal.SIGTERM)

    async def ended(self, deadline: float = STOP_SECONDS) -> int:
        """Wait until it has ended by itself; return its exit code."""
        process = self._process
        assert process is not None, "not started"
        await until(lambda: process.poll() is not None, deadline=deadline, what="the gateway has ended")
        return process.returncode

    async def listens(self, deadline: float = 30.0) -> None:
        """Wait until it accepts requests, ready or not."""
        await self.logs('"gateway_starts"', deadline)

    async def ready(self, deadline: float = 30.0) -> None:
        """Wait until its first lists are complete."""
        await self.logs('"gateway_ready"', deadline)

    async def logs(self, text: str, deadline: float = 30.0) -> None:
        """Wait until a text stands in its log since the present start."""

        def said() -> bool:
            if text in self._since_start():
                return True
            assert self.running, f"the gateway ended:\n{self.lines()[-3000:]}"
            return False

        await until(said, deadline=deadline, what=f"the gateway logs {text}")

    def http(self, path: str, trust: ssl.SSLContext | None = None) -> tuple[int, str]:
        """GET; return status and body, whatever the status. With TLS, ``trust`` says whom to believe."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=10, context=trust) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def _since_start(self) -> str:
        return self.lines()[self._seen :]


class MakeGateway(Protocol):
    """Makes a gateway; settings are environment variables (``VMPOOL_GATEWAY_AUTH="static"``). Not started yet."""

    def __call__(self, kubeconfig: Path | None = None, **settings: str) -> Gateway: ...


@pytest.fixture
def make_gateway(plane: ControlPlane, namespace: str, crds_installed: None, tmp_path: Path) -> Iterator[MakeGateway]:
    """Makes gateways that serve the test's namespace only; they are killed at the test's end."""
    made: list[Gateway] = []

    def make(kubeconfig: Path | None = None, **settings: str) -> Gateway:
        own = {"VMPOOL_WATCH_NAMESPACE": namespace, "VMPOOL_NAMESPACE": namespace}
        made.append(Gateway(kubeconfig or Path(plane.kubeconfig), tmp_path, **{**own, **settings}))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def gateway(make_gateway: MakeGateway) -> Gateway:
    """One such gateway with the default settings; not started yet."""
    return make_gateway()
