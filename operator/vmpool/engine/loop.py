"""One loop per object: rounds that are woken, never told what to do."""

import asyncio
import time
import types
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Generator
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar, cast

from vmpool.settings import Settings
from vmpool.telemetry import logs
from vmpool.telemetry.metrics import Metrics

log = logs.get(__name__)

T = TypeVar("T")


class Loop(ABC):
    """Runs ``round`` when woken, when a moment has come, and at the latest after the resync time.

    A thousand wakes during a round are one more round, and what a round costs decides how long the loop rests after
    it. An unforeseen error is logged, counted and answered by a growing pause: one object's trouble never ends
    another's loop.
    """

    kind: ClassVar[str]

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self._woken = asyncio.Event()
        self._woken.set()
        self._calm: asyncio.TimerHandle | None = None
        self._failures = 0
        self._began_at: float | None = None

    @property
    def errors_in_a_row(self) -> int:
        """How many rounds in a row have ended with an error."""
        return self._failures

    @property
    def idle_seconds(self) -> float | None:
        """Seconds since the last round began; None before the first."""
        return None if self._began_at is None else time.monotonic() - self._began_at

    def wake(self) -> None:
        """Ask for a round soon."""
        self._woken.set()

    def wake_within(self, seconds: float) -> None:
        """Ask for a round at most this much later: there is nothing new, only something to look at again."""
        loop = asyncio.get_running_loop()
        if self._woken.is_set() or (self._calm is not None and self._calm.when() <= loop.time() + seconds):
            return
        self._rest()
        self._calm = loop.call_later(seconds, self.wake)

    def _rest(self) -> None:
        calm, self._calm = self._calm, None
        if calm is not None:
            calm.cancel()

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
                self._rest()
                self._began_at = time.monotonic()
                work = Work()
                pause = await work.of(self._one_round())
                self.metrics.round_seconds.labels(self.kind).observe(work.seconds)
                await asyncio.sleep(round_pause(work.seconds, self.settings))
                await self._wait(pause)
        except Done:
            pass
        finally:
            self._rest()
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


class Work:
    """Measures what a coroutine itself takes of the processor: the time between its waits, and not the waits."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @types.coroutine
    def of(self, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Run a coroutine and return its result, as if it were awaited."""
        answer: Any = None
        error: BaseException | None = None
        while True:
            began = time.perf_counter()
            try:
                waits_for = coroutine.send(answer) if error is None else coroutine.throw(error)
            except StopIteration as end:
                return cast("T", end.value)
            finally:
                self.seconds += time.perf_counter() - began
            answer, error = None, None
            try:
                answer = yield waits_for
            except BaseException as raised:  # noqa: BLE001 - a cancellation too is for the coroutine to hear
                error = raised


def round_pause(spent: float, settings: Settings) -> float:
    """Return the pause after a round that took ``spent`` seconds of work.

    Rounds get their share of one core, and more where the pause for that would be longer than the longest.
    """
    share = spent * (1.0 / settings.round_share - 1.0)
    return max(settings.round_pause_seconds, min(share, settings.round_pause_longest_seconds))


class Done(Exception):
    """The object of this loop is gone."""
