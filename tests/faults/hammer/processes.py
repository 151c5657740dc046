"""A process that is started again whenever it ends, as orchestrators do, and that can be killed at any moment."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from tests.faults.rig.nursery import Nursery

AGAIN_SECONDS = 0.2
"""Between an end that nobody asked for and the next start; who was killed is started at once."""
MAX_ENDS = 200
"""A process that ends by itself so often does so in a loop."""
GONE_SECONDS = 10.0
"""How long a killed process may take to be gone."""


class Kept:
    """One place in the deployment: it has one process after the other, from ``start`` to ``stop``.

    A process is known by its descriptor, so that a signal never reaches another one that has got its number.
    """

    def __init__(self, name: str, program: str, nursery: Nursery, log: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.program = program
        self.log = log
        self.lives = 0
        self.kills = 0
        self.ends = 0
        """Ends that nobody asked for."""
        self._nursery = nursery
        self.environment = environment
        self._descriptor = -1
        self._killed = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin its first life and look after it from now on."""
        self._task = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    def kill(self) -> bool:
        """End the process that runs with SIGKILL; False: none runs just now, and nothing was done."""
        if self._descriptor < 0 or self._killed:
            return False
        try:
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self._killed = True
        self.kills += 1
        return True

    async def stop(self) -> None:
        """Kill it for good; returns when it is gone. Raises what has ended its keeping."""
        if self._task is None:
            return
        task, self._task = self._task, None
        failed = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if self._descriptor >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
            async with asyncio.timeout(GONE_SECONDS):
                await _ended(self._descriptor)
            self._close()
        if failed:
            await task

    async def _keep(self) -> None:
        while True:
            self.lives += 1
            self._killed = False
            pid = self._nursery.start(self.log, self.environment, self.program)
            # It may be gone already.
            with contextlib.suppress(ProcessLookupError):
                self._descriptor = os.pidfd_open(pid)
                await _ended(self._descriptor)
                self._close()
            if not self._killed:
                self.ends += 1
                assert self.ends <= MAX_ENDS, f"{self.name} has ended {MAX_ENDS} times by itself"
                await asyncio.sleep(AGAIN_SECONDS)

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


async def _ended(descriptor: int) -> None:
    """Return when the process of a descriptor has ended."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(descriptor)
