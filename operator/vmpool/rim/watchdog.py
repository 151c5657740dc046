"""The watchdog: what it sees, what it thinks of it, and how the process ends.

``judge`` and ``judge_from_outside`` are pure. ``Watchdog`` looks from inside the event loop; what the loop cannot see
of itself (that it stands still, that the whole process did) is seen by ``fence``.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from vmpool.kube.lease import Lease
from vmpool.kube.mirror import Mirror
from vmpool.settings import Settings
from vmpool.telemetry import logs
from vmpool.telemetry.metrics import WatchdogMetrics

log = logs.get(__name__)

Doubt = Literal["kopf", "mirror", "loop", "lease", "clock"]
KOPF_WATCHER = "watcher for "
KOPF_NAMED = "credentials retriever"
"""Tasks that kopf does not return: those that follow a kind, and the one that logs in."""
END_SECONDS = 8.0
"""How long an orderly end may take once the reason was shown; then the process is ended from outside the loop."""
CLOCK_READ_SECONDS = 0.05
"""Two clocks are read at the same moment if no more than this has passed meanwhile."""


class Condemned(Exception):
    """The watchdog has found a reason to end the process."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is still normal, in seconds."""

    look: float
    margin: float
    linger: float
    block: float
    jump: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why the process must end."""

    what: Doubt
    why: str
    seconds: float
    """How long, or how far."""
    allowed: float
    """What would have been normal."""

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What can be seen from inside the loop at one moment."""

    ended: tuple[tuple[str, str], ...] = ()
    """Tasks of kopf's that are over, and how."""
    unwatched: tuple[str, ...] = ()
    """Kinds that no task of kopf's watches."""
    kopf_seconds: float = 0.0
    """Since kopf was started."""
    mirrors: tuple[tuple[str, float, float], ...] = ()
    """What each mirror shows, its age, and how long silence is normal."""
    jump: float = 0.0
    """How far the wall clock went away from the monotonic one since the last look."""


@dataclass(frozen=True, slots=True)
class OutsideFacts:
    """What can be seen while the loop may stand still."""

    beat_age: float
    """Since the loop was last seen at work, the time not counted in which the whole process stood still."""
    lease_age: float
    """Since the lease was renewed; infinite without one."""
    lease_overdue: bool
    condemned_age: float = 0.0
    """Since there is a verdict."""


def limits_of(settings: Settings) -> Limits:
    """Return what the settings say is normal."""
    return Limits(
        look=settings.watchdog_seconds,
        margin=settings.watchdog_margin_seconds,
        linger=settings.watchdog_linger_seconds,
        block=settings.loop_block_seconds,
        jump=settings.clock_jump_seconds,
    )


def judge(facts: Facts, limits: Limits) -> Verdict | None:
    """Return the gravest reason to end the process, if there is one."""
    if abs(facts.jump) > limits.jump:
        way = "ahead" if facts.jump > 0 else "back"
        return Verdict("clock", f"the wall clock jumped {abs(facts.jump):.1f} s {way}", facts.jump, limits.jump)
    for name, how in facts.ended:
        return Verdict("kopf", f"kopf's task {name!r} has ended: {how}", 0.0, 0.0)
    if facts.unwatched and facts.kopf_seconds > limits.margin:
        kinds = ", ".join(facts.unwatched)
        return Verdict("kopf", f"kopf does not watch {kinds}", facts.kopf_seconds, limits.margin)
    for shown, age, silence in sorted(facts.mirrors, key=lambda mirror: mirror[2] - mirror[1]):
        if age > silence + limits.margin:
            why = f"nothing was heard of {shown} for {age:.1f} s"
            return Verdict("mirror", why, age, silence + limits.margin)
    return None


def judge_from_outside(facts: OutsideFacts, limits: Limits) -> Verdict | None:
    """Return the gravest reason to end a process whose loop cannot do it."""
    if facts.lease_overdue:
        why = f"the lease was last renewed {facts.lease_age:.1f} s ago: another may be leading"
        return Verdict("lease", why, facts.lease_age, 0.0)
    if facts.beat_age > limits.block:
        why = f"the event loop has been held up for {facts.beat_age:.1f} s"
        return Verdict("loop", why, facts.beat_age, limits.block)
    if facts.condemned_age > limits.linger + END_SECONDS:
        why = f"the process did not end within {facts.condemned_age:.1f} s"
        return Verdict("loop", why, facts.condemned_age, limits.linger + END_SECONDS)
    return None


def clock_offset() -> float:
    """Return how far the wall clock is ahead of the monotonic one, in seconds."""
    for _ in range(10):
        before = time.monotonic()
        wall = time.time()
        after = time.monotonic()
        if after - before < CLOCK_READ_SECONDS:
            break
    return wall - (before + after) / 2


def _nothing_more() -> None:
    """Stands in for a report that nobody has named."""


@dataclass
class Watchdog:
    """Looks from inside the loop, and keeps the verdict for everybody."""

    limits: Limits
    metrics: WatchdogMetrics
    lease: Lease | None = None
    mirrors: Collection[Mirror[Any]] = ()
    report: Callable[[], None] = _nothing_more
    """Writes the report of the live process; called once with the first verdict, whatever it raises is ignored."""
    verdict: Verdict | None = None
    condemned_at: float = 0.0
    beat_at: float = field(default_factory=time.monotonic)
    """When the loop was last seen at work, by the monotonic clock."""
    at_ease: bool = False
    """The process is stopping because it was told to: what ends now may."""
    longest_lag: float = 0.0
    _offset: float = field(default_factory=clock_offset)
    _due_at: float | None = None
    _kopf: set["asyncio.Task[Any]"] = field(default_factory=set)
    _kinds: tuple[str, ...] = ()
    _kopf_since: float = 0.0
    _condemned: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> None:
        """Begin to look, from now until the loop ends."""
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        due, self._due_at = self._due_at, now + self.limits.look
        # First of all: what follows may fail, and then this has to be told, not to stop.
        loop.call_later(self.limits.look, self.start)
        self.beat_at = now
        if due is not None:
            self._note_lag(max(0.0, now - due))
        self._note_ages()
        self._offset_kept()
        if self.verdict is None and not self.at_ease:
            self.condemn(judge(self.facts(now), self.limits))

    def follow(self, tasks: Iterable["asyncio.Task[Any]"], kinds: Iterable[str]) -> None:
        """Watch kopf's tasks from now on, and that it watches these kinds (plural names)."""
        self._kopf |= set(tasks)
        self._kinds = tuple(kinds)
        self._kopf_since = time.monotonic()

    @property
    def followed(self) -> list[str]:
        """The names of kopf's tasks that are watched."""
        return sorted(task.get_name() for task in self._kopf)

    def facts(self, now: float) -> Facts:
        """Return what can be seen now."""
        if self._kinds:
            self._kopf |= {task for task in asyncio.all_tasks() if _is_kopfs(task.get_name())}
        watched = [task.get_name() for task in self._kopf if task.get_name().startswith(KOPF_WATCHER)]
        # The cause first: when one task of kopf's fails, kopf cancels the others.
        ended = sorted((task for task in self._kopf if task.done()), key=_rank)
        return Facts(
            ended=tuple((task.get_name(), _end_of(task)) for task in ended),
            unwatched=tuple(
                kind for kind in self._kinds if not any(name.startswith(f"{KOPF_WATCHER}{kind}.") for name in watched)
            ),
            kopf_seconds=now - self._kopf_since,
            mirrors=tuple(
                (str(mirror.selection), mirror.age(), mirror.settings.silence.total_seconds())
                for mirror in self.mirrors
                if mirror.synced.is_set()
            ),
        )

    def look_at_clock(self) -> None:
        """Notice a jump of the wall clock before anything is decided by it; cheap enough for each turn of the loop."""
        jump = clock_offset() - self._offset
        if abs(jump) > self.limits.jump and self.verdict is None and not self.at_ease:
            self.condemn(judge(Facts(jump=jump), self.limits))

    def _offset_kept(self) -> None:
        """Let a clock that is being slewed drift: what is compared is the time since the last look."""
        self.look_at_clock()
        self._offset = clock_offset()

    def condemn(self, verdict: Verdict | None) -> None:
        """Take a verdict, say it once, and let whoever waits end the process."""
        if verdict is None or self.verdict is not None:
            return
        self.verdict = verdict
        self.condemned_at = time.monotonic()
        self.tell(verdict)
        self._condemned.set()

    def tell(self, verdict: Verdict) -> None:
        """Count and log a verdict, and write the report."""
        self.metrics.verdicts.labels(verdict.what).inc()
        log.critical(
            "watchdog_verdict",
            what=verdict.what,
            why=verdict.why,
            seconds=round(verdict.seconds, 3),
            allowed=round(verdict.allowed, 3),
        )
        try:
            self.report()
        except Exception as error:  # the report must never stand in the way of the end
            log.warning("report_failed", error=str(error), exc_info=error)

    def trouble(self) -> str:
        """Return why the process is about to end; empty when it is not."""
        return str(self.verdict) if self.verdict is not None else ""

    async def wait(self) -> None:
        """Wait for a verdict, show it for a while, and raise ``Condemned``."""
        await self._condemned.wait()
        await asyncio.sleep(self.limits.linger)
        raise Condemned(self.trouble())

    def outside_facts(self, now: float, excused_until: float) -> OutsideFacts:
        """Return what a thread can see; the process is known to have stood still until ``excused_until``."""
        lease = self.lease
        return OutsideFacts(
            beat_age=now - max(self.beat_at, excused_until),
            lease_age=lease.age if lease is not None else float("inf"),
            lease_overdue=lease is not None and lease.overdue,
            condemned_age=now - self.condemned_at if self.verdict is not None else 0.0,
        )

    def _note_lag(self, lag: float) -> None:
        self.longest_lag = max(self.longest_lag, lag)
        self.metrics.lag.observe(lag)
        self.metrics.longest_lag.set(self.longest_lag)

    def _note_ages(self) -> None:
        ages = [mirror.age() for mirror in self.mirrors if mirror.synced.is_set()]
        self.metrics.age.labels("mirror").set(max(ages, default=0.0))
        if self.lease is not None and self.lease.age < float("inf"):
            self.metrics.age.labels("lease").set(self.lease.age)


def silence_of(settings: Settings) -> tuple[timedelta, timedelta]:
    """Return how long a watch may be silent, and how old its mirror may get before the mirror itself gives up."""
    silence = timedelta(seconds=settings.watch_silence_seconds)
    return silence, 2 * silence


def _is_kopfs(name: str) -> bool:
    return name.startswith(KOPF_WATCHER) or name == KOPF_NAMED


def _rank(task: "asyncio.Task[Any]") -> tuple[bool, bool, str]:
    return task.cancelled(), not _is_kopfs(task.get_name()), task.get_name()


def _end_of(task: "asyncio.Task[Any]") -> str:
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return f"{type(error).__name__}: {error}" if error is not None else "it returned"
