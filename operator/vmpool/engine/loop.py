"""One loop per object: rounds that are woken, never told what to do."""

import asyncio
import time
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from typing import ClassVar

from vmpool.settings import Settings
from vmpool.telemetry import logs
from vmpool.telemetry.metrics import Metrics

log = logs.get(__name__)


class Loop(ABC):
    """Runs ``round`` when woken, when a moment has come, and at the latest after the resync time.

    A thousand wakes during a round are one more round. An unforeseen error is logged, counted and answered by a
    growing pause: one object's trouble never ends another's loop.
    """

    kind: ClassVar[str]

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self._woken = asyncio.Event()
        self._woken.set()
        self._failures = 0

    def wake(self) -> None:
        """Ask for a round soon."""
        self._woken.set()

    @abstractmethod
    async def round(self, now: datetime) -> datetime | None:
        """Observe, plan, act; return when to look again at the latest. Raises Done when the object is gone."""

    @abstractmethod
    async def closed(self) -> None:
        """Give back what the loop holds; called once at its end."""

    async def run(self) -> None:
        """Run until the object is gone or the task is cancelled."""
        try:
            while True:
                self._woken.clear()
                began = time.monotonic()
                pause = await self._one_round()
                spent = time.monotonic() - began
                self.metrics.round_seconds.labels(self.kind).observe(spent)
                await asyncio.sleep(self.settings.round_pause_seconds)
                await self._wait(pause)
        except Done:
            pass
        finally:
            await self.closed()

    async def _one_round(self) -> float:
        now = datetime.now(UTC)
        try:
            wake_at = await self.round(now)
        except Done:
            raise
        except Exception as error:  # the one place: whatever it is, only this object waits
            self._failures += 1
            self.metrics.rounds.labels(self.kind, "error").inc()
            doubled = self.settings.error_pause_seconds * 2 ** min(self._failures - 1, 16)
            pause = min(doubled, self.settings.error_pause_longest_seconds)
            log.warning("round_failed", kind=self.kind, loop=str(self), error=str(error), pause=pause, exc_info=error)
            # Not cut short by a wake: events that keep coming must not turn an error into a busy loop.
            await asyncio.sleep(pause)
            return 0.0
        self._failures = 0
        self.metrics.rounds.labels(self.kind, "ok").inc()
        longest = self.settings.resync_seconds
        if wake_at is None:
            return longest
        return min(max(0.0, (wake_at - datetime.now(UTC)).total_seconds()), longest)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass


class Done(Exception):
    """The object of this loop is gone."""
