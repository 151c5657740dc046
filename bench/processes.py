"""The processes that are measured: the operator as users run it, and the floor as a process of the same kind."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from tests import gateways, operators
from tests.waiting import until

from bench.load import Waits

START_SECONDS = 60.0
CHILD_SECONDS = 300.0
"""One half of a pair takes seconds; on a busy machine it may take many."""
LINE_BYTES = 2**22
"""Longest line that a child prints: a wait is about 8 bytes, and there are thousands."""


class Operator(operators.Operator):
    """An operator with the settings that users get; only its port is any free one."""

    base: ClassVar = {"VMPOOL_HTTP_PORT": "0"}

    async def said(self, event: str, deadline: float = START_SECONDS) -> None:
        """Wait until the log has an event of this name."""
        wanted = f'"{event}"'

        def found() -> bool:
            assert self.running, f"the operator ended:\n{self.lines()[-3000:]}"
            return wanted in self.lines()

        await until(found, deadline=deadline, what=f"the operator says {event}")


class Gateway(gateways.Gateway):
    """A gateway with the settings that users get; only its port is any free one."""

    base: ClassVar = {"VMPOOL_GATEWAY_PORT": "0"}


async def child_figures(module: str, *arguments: str) -> dict[str, float]:
    """Run a module of ``bench`` in a process of its own and return the figures that it prints as JSON.

    Raises AssertionError when it fails or takes longer than ``CHILD_SECONDS``.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    try:
        async with asyncio.timeout(CHILD_SECONDS):
            said, _ = await process.communicate()
    except TimeoutError:
        raise AssertionError(f"{module} took longer than {CHILD_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{module} ended with {process.returncode}"
    figures: dict[str, float] = json.loads(said)
    return figures


class Floor:
    """A bare client that does the requests of ours and decides nothing, in a process of its own.

    It says ``ready`` once everything is imported and connected, begins when it is told to, and ends with one line of
    JSON: its figures.
    """

    module: ClassVar = "bench.floor"

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, task: str, **options: Any) -> Self:
        """Start a task of the module and wait until it is ready."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            cls.module,
            task,
            json.dumps(options, default=str),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )
        made = cls(process)
        line = await asyncio.wait_for(made._line(), START_SECONDS)
        assert line == "ready", line
        return made

    @property
    def pid(self) -> int:
        """Of the running process."""
        return self._process.pid

    def go(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")

    async def ended(self) -> Mapping[str, Any]:
        """Wait for its end and return its figures. Raises AssertionError when it fails."""
        line = await self._line()
        assert await self._process.wait() == 0, f"{self.module} ended with {self._process.returncode}"
        figures: dict[str, Any] = json.loads(line)
        return figures

    async def kill(self) -> None:
        """End it, whatever it does."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def _line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()


class Clients(Floor):
    """Clients of ``bench.asking``, in a process of their own; they warm up before they say that they are ready."""

    module: ClassVar = "bench.asking"

    async def waits(self) -> Waits:
        """Let them begin, wait for their end, and return how long each request took."""
        self.go()
        told = await self.ended()
        return Waits(told["seconds"], tuple(told["each_ms"]), told["cpu_seconds"])
