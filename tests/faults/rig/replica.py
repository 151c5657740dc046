"""One replica of the operator in a trial: runs until told to stop, and is started again when it dies."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.rig.nursery import Nursery
from tests.waiting import until

LOOK_SECONDS = 0.02
"""How often its process is looked for."""
AGAIN_SECONDS = 0.1
"""Between a death and the next start."""
MAX_LIVES = 40
"""A process that ends so often does so in a loop."""


def state_of(pid: int) -> str:
    """The state of a process as one letter; empty: it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


@dataclass
class Replica:
    """Supervised from ``start`` to ``stop``."""

    name: str
    nursery: Nursery
    log: Path
    environment: dict[str, str]
    on_start: Callable[[str, int], Awaitable[None]]
    """Told the process id of every life before it can have said anything that matters."""
    on_death: Callable[[], Awaitable[None]]
    """Called after each death that nobody asked for."""
    lives: int = 0
    exits: list[str] = field(default_factory=list)
    pid: int = 0
    _task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin its first life."""
        await self._live()
        self._task = asyncio.create_task(self._watch_over(), name=f"replica {self.name}")

    async def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.send(number)
        await until(lambda: not self.pid or state_of(self.pid) in {"", "Z", "X"}, what=f"replica {self.name} is gone")
        self.pid = 0

    @property
    def leads(self) -> bool:
        """Whether its present life has the lease and its first lists."""
        log = self.log.read_text(errors="replace") if self.log.exists() else ""
        return state_of(self.pid) not in {"", "Z", "X"} and '"engine_ready"' in log.rpartition('"operator_starts"')[2]

    def send(self, number: signal.Signals) -> None:
        """Send its process a signal, if there is one."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def failed(self) -> BaseException | None:
        """What ended its supervision; None: nothing."""
        return self._task.exception() if self._task is not None and self._task.done() else None

    async def _live(self) -> None:
        self.lives += 1
        assert self.lives <= MAX_LIVES, f"replica {self.name} has ended {MAX_LIVES} times"
        self.pid = self.nursery.start(self.log, self.environment)
        await self.on_start(self.name, self.pid)

    async def _watch_over(self) -> None:
        while True:
            if state_of(self.pid) in {"", "Z", "X"}:
                await self.on_death()
                await asyncio.sleep(AGAIN_SECONDS)
                await self._live()
            await asyncio.sleep(LOOK_SECONDS)
