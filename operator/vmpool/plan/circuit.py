"""The circuit breaker of a provider: when failures in a row mean that it should be left alone.

::

    Closed --failures in a row--> Open --pause is over--> HalfOpen --one success--> Closed
                                   ^                         |
                                   +------one failure--------+

A success closes the circuit from any state: a call that began before it opened may still be answered.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from vmpool.api.provider import Circuit


@dataclass(frozen=True, slots=True)
class Breaker:
    """State of one circuit; every method returns the next state."""

    threshold: int
    pause: timedelta
    state: Circuit = Circuit.CLOSED
    failures: int = 0
    open_until: datetime | None = None
    last_error: str = ""

    def at(self, now: datetime) -> "Breaker":
        """Return the state at this time: an open circuit becomes half open when its pause is over."""
        if self.state is Circuit.OPEN and self.open_until is not None and now >= self.open_until:
            return replace(self, state=Circuit.HALF_OPEN)
        return self

    def succeeded(self) -> "Breaker":
        """A call was answered."""
        if self.state is Circuit.CLOSED and not self.failures:
            return self
        return replace(self, state=Circuit.CLOSED, failures=0, open_until=None, last_error="")

    def failed(self, now: datetime, reason: str) -> "Breaker":
        """A call failed in a way that speaks of the provider's health."""
        failures = self.failures + 1
        if self.state is Circuit.OPEN:
            return self
        if self.state is Circuit.HALF_OPEN or failures >= self.threshold:
            return replace(self, state=Circuit.OPEN, failures=failures, open_until=now + self.pause, last_error=reason)
        return replace(self, failures=failures, last_error=reason)
