"""The leader lease: at most one holder makes progress, and it knows in time when it is no more.

``LeaseLock`` of the library does the requests, except ``create``, which version 37.0.2 refuses to send. Its elector
is not used: it has no deadline for a request, lets connection errors escape and writes local time as UTC. Here:

- a lease is held from the moment *before* the last successful renewal was sent, by the monotonic clock;
- another's lease has run out when its record did not change for its whole duration *while we looked*: no clock is
  compared with another machine's;
- ``hold`` raises ``LeaseLost`` at the renew deadline, whatever a request is doing by then.

Safety never rests on it: two leaders for a moment are slow and noisy, but cannot claim a VM twice.
"""

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NoReturn

import aiohttp
from kubernetes.aio.client import ApiException, V1Lease, V1ObjectMeta
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from vmpool.kube.client import Client
from vmpool.kube.identity import certainly_dead

log = logging.getLogger(__name__)

RECORD_TIME = "%Y-%m-%d %H:%M:%S.%f"
"""What ``LeaseLock`` parses; it appends the Z itself, so the time must be UTC and have its fraction."""

LATE_SECONDS = 0.05
"""How much later than the end of another's lease it is looked at."""


class LeaseLost(Exception):
    """We may not be the leader any more: end the process, do not clean up first."""


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """Timing of the lease; Kubernetes' own components use the same figures."""

    duration: timedelta = timedelta(seconds=15)
    """A rival waits this long for an unchanged record; so a killed leader is replaced within 17 s."""
    renew_deadline: timedelta = timedelta(seconds=10)
    """Not renewed for so long, the leader gives up: 5 s before a rival may begin."""
    retry_period: timedelta = timedelta(seconds=2)
    """Between renewals, and between looks of a rival."""
    dead_grace: timedelta = timedelta(seconds=3)
    """A rival that knows that the holder is dead waits no longer than this: what it had sent last lands meanwhile."""
    request_timeout: timedelta = timedelta(seconds=4)
    """One look or renewal: two of them fit into the renew deadline."""

    def __post_init__(self) -> None:
        if not self.retry_period < self.renew_deadline < self.duration:
            raise ValueError("a lease needs retry_period < renew_deadline < duration")


class _Lock(LeaseLock):  # type: ignore[misc]
    """The library's lock with a ``create`` that works."""

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        """True when the lease is made and ours; False when another was faster, or it is refused."""
        # The library passes `pretty=True` here, and its own validation wants a string.
        body = V1Lease(metadata=V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        try:
            await self.api_instance.create_namespaced_lease(namespace, body)
        except ApiException as error:
            log.info("lease %s/%s was not made: %s", namespace, name, _words(error))
            return False
        return True


class Lease:
    """One candidate for one lease."""

    def __init__(self, client: Client, namespace: str, name: str, identity: str, settings: LeaseSettings) -> None:
        self.identity = identity
        self._settings = settings
        self._lock = _Lock(name, namespace, identity, client.api)
        self._name = f"{namespace}/{name}"
        self._renewed_at = float("-inf")
        self._record: tuple[object, ...] | None = None
        self._record_since = 0.0
        self._free_at = float("-inf")
        """When another's lease will have run out, if it stays as it is."""
        self._acquire_time = ""
        self._said = ""

    @property
    def held(self) -> bool:
        """True while the last renewal is younger than the renew deadline."""
        return time.monotonic() < self._renewed_at + self._settings.renew_deadline.total_seconds()

    @property
    def left(self) -> float:
        """Seconds until the renew deadline; negative after it, and infinitely so when it was never held."""
        return self._renewed_at + self._settings.renew_deadline.total_seconds() - time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the last renewal was sent; infinite before the first, and once let go."""
        return time.monotonic() - self._renewed_at

    @property
    def overdue(self) -> bool:
        """True midway from the renew deadline to the moment when a rival may begin; never once let go.

        By then ``hold`` has raised, unless the process stood still.
        """
        last = (self._settings.renew_deadline + self._settings.duration) / 2
        return last.total_seconds() < self.age < float("inf")

    async def acquire(self) -> None:
        """Return once the lease is ours; waits as long as that takes."""
        await self._until_done()
        log.info("lease %s is held by us, %s", self._name, self.identity)

    async def hold(self) -> NoReturn:
        """Renew until cancelled. Raises ``LeaseLost`` at the renew deadline, or as soon as we were replaced."""
        while True:
            left = self._renewed_at + self._settings.renew_deadline.total_seconds() - time.monotonic()
            try:
                async with asyncio.timeout(max(left, 0)):
                    await asyncio.sleep(self._settings.retry_period.total_seconds())
                    await self._until_done()
            except TimeoutError:
                raise LeaseLost(f"lease {self._name} was not renewed in time: {self._said or 'no answer'}") from None

    async def release(self) -> None:
        """Let go at a clean stop, so that the next candidate starts at once. Failures are logged, never raised."""
        self._renewed_at = float("-inf")
        try:
            async with asyncio.timeout(self._settings.request_timeout.total_seconds()):
                found, record = await self._lock.get(self._lock.name, self._lock.namespace)
                if not found or record.holder_identity != self.identity:
                    return
                # Not `LeaseLock.update`: it insists on a holder.
                lease = self._lock.lease_reference
                lease.spec.holder_identity = None
                lease.spec.renew_time = datetime.now(UTC)
                await self._lock.api_instance.replace_namespaced_lease(self._lock.name, self._lock.namespace, lease)
                log.info("lease %s is released", self._name)
        except (ApiException, aiohttp.ClientError, TimeoutError) as error:
            log.warning("lease %s runs out by itself: %s", self._name, _words(error))

    async def _until_done(self) -> None:
        # A lease has no event to wait for: a rival's silence is what we look for.
        while not await self._try():
            retry = self._settings.retry_period.total_seconds()
            # A lease that is about to run out is looked at when it has, not up to a period later.
            left = self._free_at - time.monotonic() + LATE_SECONDS
            await asyncio.sleep(min(retry, left) if left > 0 else retry)

    async def _try(self) -> bool:
        """Take or renew the lease; False when that is not possible now."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.request_timeout.total_seconds()):
                done = await self._take()
        except (aiohttp.ClientError, TimeoutError) as error:
            self._say(_words(error))
            return False
        if done:
            # Counted from before the request: the server may have stored it any time since.
            self._renewed_at = started
            self._said = ""
        return done

    async def _take(self) -> bool:
        found, record = await self._lock.get(self._lock.name, self._lock.namespace)
        if not found:
            if record.status != 404:
                self._say(_words(record))
                return False
            self._acquire_time = _now()
            return bool(await self._lock.create(self._lock.name, self._lock.namespace, self._wish()))
        holder = record.holder_identity
        if holder == self.identity:
            return bool(await self._lock.update(self._lock.name, self._lock.namespace, self._wish()))
        if self.held:
            raise LeaseLost(f"lease {self._name} is held by {holder or 'nobody'}")
        if holder and not self._has_run_out(record):
            self._say(f"held by {holder}")
            return False
        spec = self._lock.lease_reference.spec
        if spec is not None:
            spec.lease_transitions = (spec.lease_transitions or 0) + 1
        self._acquire_time = _now()
        return bool(await self._lock.update(self._lock.name, self._lock.namespace, self._wish()))

    def _has_run_out(self, record: LeaderElectionRecord) -> bool:
        seen = (record.holder_identity, record.renew_time, record.acquire_time)
        now = time.monotonic()
        if seen != self._record:
            self._record, self._record_since = seen, now
        wait = max(timedelta(seconds=int(record.lease_duration or 0)), self._settings.duration)
        if certainly_dead(str(record.holder_identity), self.identity):
            wait = min(wait, self._settings.dead_grace)
        self._free_at = self._record_since + wait.total_seconds()
        return now > self._free_at

    def _wish(self) -> LeaderElectionRecord:
        # The API counts whole seconds; rounded up, because a rival believes it.
        duration = math.ceil(self._settings.duration.total_seconds())
        return LeaderElectionRecord(self.identity, str(duration), self._acquire_time, _now())

    def _say(self, what: str) -> None:
        if what != self._said:
            log.info("lease %s: %s", self._name, what)
        self._said = what


def _now() -> str:
    return datetime.now(UTC).strftime(RECORD_TIME)


def _words(error: BaseException) -> str:
    if isinstance(error, ApiException):
        return f"{error.reason} ({error.status})"
    return str(error) or type(error).__name__
