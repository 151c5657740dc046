"""Effects in flight: one per VM at a time, started by a round, reported by a wake when they brought news."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Protocol

from vmpool.engine.lane import LaneClosed
from vmpool.kube.errors import Conflict, KubeError, NotFound
from vmpool.providers.errors import ProviderError
from vmpool.telemetry import logs
from vmpool.telemetry.metrics import Metrics

log = logs.get(__name__)

LOOK_AGAIN = (Conflict, NotFound, LaneClosed)
"""Answers that mean: the world is not what was decided on. The next round decides anew."""
FREE_LOOKS = 2
"""Refusals in a row that are answered at once: by then the picture has what was refused for, or it will not get it."""
REFUSED_KEPT = 10_000
"""Keys whose refusals are counted; beyond it the oldest begins anew."""


class Waker(Protocol):
    """Whom to tell that an effect has ended."""

    def wake(self) -> None:
        """Ask for a round soon."""

    def wake_within(self, seconds: float) -> None:
        """Ask for a round at most this much later."""


Work = Callable[[], Awaitable[timedelta | None]]
"""An effect: None when it brought news, else how long the next look at its object may wait."""


class Doing:
    """The running effects of one loop, by a key (a VM's uid) that only one effect may hold at a time.

    Bounded by the plan: one effect a VM, and creates within the pool's limits.
    """

    def __init__(self, waker: Waker, metrics: Metrics, error_pause: float) -> None:
        self._waker = waker
        self._metrics = metrics
        self._error_pause = error_pause
        self._tasks: dict[str, asyncio.Task[timedelta | None]] = {}
        self._refused: dict[str, int] = {}
        """How often in a row the last effect of a key was told to look again."""

    @property
    def keys(self) -> frozenset[str]:
        """Return the keys that are held now."""
        return frozenset(self._tasks)

    def start(self, key: str, action: object, work: Work) -> None:
        """Start an effect; a key that is held already is a mistake of the caller."""
        assert key not in self._tasks, f"{key} is busy"
        task = asyncio.create_task(self._run(key, action, work), name=f"{type(action).__name__}/{key}")
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._finished(key, done))

    def _finished(self, key: str, task: "asyncio.Task[timedelta | None]") -> None:
        self._tasks.pop(key, None)
        calm = None if task.cancelled() else task.result()
        if calm is None:
            self._waker.wake()
        else:
            self._waker.wake_within(calm.total_seconds())

    async def _run(self, key: str, action: object, work: Work) -> timedelta | None:
        name = type(action).__name__
        outcome = "ok"
        calm = None
        with self._metrics.in_flight.labels(name).track_inprogress():
            try:
                calm = await work()
            except LOOK_AGAIN as error:
                outcome = "look_again"
                log.info("effect_refused", action=name, error=str(error))
                await self._refusal(key)
            except (KubeError, ProviderError) as error:
                outcome = "error"
                log.warning("effect_failed", action=name, error=str(error))
                await asyncio.sleep(self._error_pause)
            except Exception as error:  # an effect's mistake must not end its pool's loop
                outcome = "error"
                log.error("effect_broken", action=name, error=str(error), exc_info=error)
                await asyncio.sleep(self._error_pause)
        if outcome != "look_again":
            self._refused.pop(key, None)
        self._metrics.effects.labels(name, outcome).inc()
        return calm

    async def _refusal(self, key: str) -> None:
        """Pause where looking again has not helped: a picture that does not change makes no loop of requests."""
        self._refused[key] = self._refused.pop(key, 0) + 1
        while len(self._refused) > REFUSED_KEPT:
            del self._refused[next(iter(self._refused))]
        if self._refused[key] > FREE_LOOKS:
            await asyncio.sleep(self._error_pause)

    async def stop(self, grace: float) -> None:
        """Let what is in flight end, at most for ``grace`` seconds, then cancel it."""
        tasks = list(self._tasks.values())
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=grace)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
