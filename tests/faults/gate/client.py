"""Speak to a gate's process."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

from tests.faults.gate.calls import Far
from tests.faults.gate.plan import Plan

ROOT = Path(__file__).parents[3]
START_SECONDS = 30.0
POLL_SECONDS = 0.01


class GateProcess:
    """A gate that runs as a process of its own; ``start`` it, and ``stop`` it."""

    def __init__(self, folder: Path, ca: Path) -> None:
        self.socket = folder / "gate.sock"
        self._ca = ca
        self._log = folder / "gate.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        argv = [sys.executable, "-m", "tests.faults.gate", "--socket", str(self.socket), "--ca", str(self._ca)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)
        end = time.monotonic() + START_SECONDS
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the gate did not start: {self._log.read_text()}")
            time.sleep(POLL_SECONDS)  # a step of a wait with a deadline

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def session(self) -> aiohttp.ClientSession:
        """A session with its control side."""
        return aiohttp.ClientSession("http://gate", connector=aiohttp.UnixConnector(str(self.socket)))


class GatedTrial:
    """One trial at a gate."""

    def __init__(self, session: aiohttp.ClientSession, name: str) -> None:
        self._session = session
        self.name = name
        self.ports: dict[str, dict[Far, int]] = {}

    async def begin(self, plan: Plan, upstreams: dict[Far, str], replicas: list[str]) -> None:
        """Open the doors."""
        asked = {"plan": plan.model_dump(mode="json"), "upstreams": upstreams, "replicas": replicas}
        self.ports = await self._call("POST", "", asked)

    def url(self, replica: str, far: Far) -> str:
        """Where a replica finds a far side."""
        return f"http://127.0.0.1:{self.ports[replica][far]}"

    async def runs(self, replica: str, pid: int) -> None:
        """Say which process the replica is now."""
        await self._call("PUT", f"/replicas/{replica}", {"pid": pid})

    async def state(self) -> dict[str, Any]:
        """How far the plan has come."""
        return dict(await self._call("GET", ""))

    async def trace(self) -> dict[str, Any]:
        """The state with everything that was said."""
        return dict(await self._call("GET", "?trace=1"))

    async def end(self) -> None:
        """Close the doors."""
        await self._call("DELETE", "")

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        async with self._session.request(method, f"/trials/{self.name}{path}", json=body) as answer:
            text = await answer.text()
            assert answer.status == 200, f"{method} {path}: {answer.status} {text}"
            return await answer.json()
