"""A provider's lane: slots, order, time-outs and the circuit breaker between us and one far side.

Whatever happens on one lane, the others go on: nothing here is shared between providers.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from enum import IntEnum, StrEnum
from typing import TypeVar

from vmpool.api.provider import Circuit, VMProviderSpec
from vmpool.engine.redaction import Redaction
from vmpool.plan.circuit import Breaker
from vmpool.providers.base import Provider
from vmpool.providers.errors import ProviderError, Unavailable
from vmpool.telemetry.metrics import Metrics

T = TypeVar("T")

SECONDS_PER_LEVEL = 5.0
"""A call waits at most this much longer for each more urgent level that overtakes it: nothing starves."""


class Slots(StrEnum):
    """The two classes of calls, each with slots of its own: a hundred creates must not blind us."""

    OPERATE = "operate"
    OBSERVE = "observe"


class Urgency(IntEnum):
    """Who goes first among those that wait."""

    EMPTY_POOL = 0
    REFILL = 1
    DESTROY = 2
    BACKGROUND = 3


class LaneClosed(Unavailable):
    """The circuit is open or the session is not verified: the call was not made."""

    reason = "CircuitOpen"
    counts_against_circuit = False


class _Waiters:
    """A bounded resource handed out in order of urgency and age."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.running = 0
        self._queue: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def acquire(self, urgency: Urgency) -> None:
        if self.running < self.size and not self._queue:
            self.running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        key = time.monotonic() + urgency * SECONDS_PER_LEVEL
        heapq.heappush(self._queue, (key, next(self._order), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()
            raise

    def release(self) -> None:
        self.running -= 1
        self.fill()

    def fill(self) -> None:
        """Wake as many as there is room for; called again when the size grew."""
        while self.running < self.size and self._queue:
            _, _, turn = heapq.heappop(self._queue)
            if not turn.done():
                self.running += 1
                turn.set_result(None)


class Lane:
    """All calls to one provider go through its lane."""

    def __init__(self, namespace: str, name: str, spec: VMProviderSpec, metrics: Metrics) -> None:
        self._labels = (namespace, name)
        self._metrics = metrics
        self.session: Provider | None = None
        """The verified far side; None while it is unknown or not the one that has our machines."""
        self.redaction = Redaction()
        """What must not be in its answers: the values of the Secret that the session was opened with."""
        self._waiters = {Slots.OPERATE: _Waiters(1), Slots.OBSERVE: _Waiters(1)}
        self._timeouts: dict[Slots, timedelta] = {}
        self.breaker = Breaker(1, timedelta())
        self._probing = False
        self._shut = False
        self.on_trouble: Callable[[], None] = lambda: None
        """Called when a call failed in a way that speaks of the provider's health."""
        self.on_switch: Callable[[], None] = lambda: None
        """Called when the circuit opens or closes."""
        self.configure(spec)

    def configure(self, spec: VMProviderSpec) -> None:
        """Take over changed limits, time-outs and breaker settings; calls in flight keep theirs."""
        for slots, size in ((Slots.OPERATE, spec.limits.operate), (Slots.OBSERVE, spec.limits.observe)):
            self._waiters[slots].size = size
            self._waiters[slots].fill()
        self._timeouts = {Slots.OPERATE: spec.timeouts.operate, Slots.OBSERVE: spec.timeouts.observe}
        limits = spec.circuit_breaker
        self.breaker = Breaker(
            limits.failures,
            limits.pause,
            self.breaker.state,
            self.breaker.failures,
            self.breaker.open_until,
            self.breaker.last_error,
        )

    @property
    def open(self) -> bool:
        """Whether calls are made at all; false from the opening of the circuit until a call has succeeded again."""
        return self.session is not None and self.breaker.at(datetime.now(UTC)).state is Circuit.CLOSED

    @property
    def levels(self) -> dict[Slots, tuple[int, int, int]]:
        """Calls in flight, calls that wait, and slots, by class of calls."""
        return {slots: (one.running, one.waiting, one.size) for slots, one in self._waiters.items()}

    def shut(self) -> None:
        """Begin no further call; those in flight go on."""
        self._shut = True

    async def call(
        self,
        operation: str,
        slots: Slots,
        urgency: Urgency,
        work: Callable[[Provider], Awaitable[T]],
        *,
        limit: timedelta | None = None,
        judged: bool = True,
    ) -> T:
        """Make one call when it is its turn; ``limit`` replaces the time-out of its class.

        What is not ``judged`` tells the circuit breaker nothing: nobody depends on it.

        No answer and no error holds a value of the provider's Secret: it would be shown to everybody.

        Raises LaneClosed when it was not made, Unavailable when it took too long, else what the provider raises.
        """
        waiters = self._waiters[slots]
        labels = (*self._labels, slots.value)
        self._metrics.lane_waiting.labels(*labels).inc()
        try:
            await waiters.acquire(urgency)
        finally:
            self._metrics.lane_waiting.labels(*labels).dec()
        try:
            self._metrics.lane_running.labels(*labels).inc()
            return await self._guarded(operation, limit or self._timeouts[slots], work, judged=judged)
        finally:
            self._metrics.lane_running.labels(*labels).dec()
            waiters.release()

    async def _guarded(
        self, operation: str, limit: timedelta, work: Callable[[Provider], Awaitable[T]], *, judged: bool
    ) -> T:
        if self._shut:
            raise LaneClosed("the process stops")
        self.breaker = self.breaker.at(datetime.now(UTC))
        if self.session is None:
            raise LaneClosed("the provider is not verified")
        if self.breaker.state is Circuit.OPEN or (self.breaker.state is Circuit.HALF_OPEN and self._probing):
            raise LaneClosed(f"the circuit is open after {self.breaker.failures} failures ({self.breaker.last_error})")
        self._probing = self.breaker.state is Circuit.HALF_OPEN
        began = time.monotonic()
        result = "cancelled"
        try:
            # This very session's, although another one may be open when the answer comes.
            redaction = self.redaction
            with redaction.guard():
                answer = redaction.answer(await self._timed(limit, work, self.session))
            result = "ok"
            if judged:
                self._judge(None)
            return answer
        except ProviderError as error:
            result = error.reason
            if judged:
                self._judge(error)
            raise
        finally:
            self._probing = False
            self._metrics.calls.labels(*self._labels, operation, result).observe(time.monotonic() - began)

    async def _timed(self, limit: timedelta, work: Callable[[Provider], Awaitable[T]], session: Provider) -> T:
        try:
            async with asyncio.timeout(limit.total_seconds()):
                return await work(session)
        except TimeoutError as error:
            raise Unavailable(f"no answer within {limit.total_seconds():g} s") from error

    def _judge(self, error: ProviderError | None) -> None:
        """Tell the breaker. An error that speaks of one request only proves that the provider answers."""
        before = self.breaker.state
        if error is not None and error.counts_against_circuit:
            self.breaker = self.breaker.failed(datetime.now(UTC), error.reason)
            self.on_trouble()
        else:
            self.breaker = self.breaker.succeeded()
        if self.breaker.state is not before:
            self.on_switch()
        self._metrics.circuit.labels(*self._labels).set(self.breaker.state is not Circuit.CLOSED)
