"""Between the event loop and the world: what must be seen before the loop goes on, or while it cannot.

``Fence`` looks each time the loop has waited, before anything runs that became possible meanwhile: a process that stood
still (stopped, frozen, moved to another host) acts on nothing once its lease may be another's, nor by a clock that
jumped. ``Sentry`` is a thread: it ends a process whose loop is held up. Where not even a thread can run, because a C
library keeps the interpreter, the interpreter's own ``faulthandler`` ends it.
"""

import asyncio
import faulthandler
import io
import os
import selectors
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from vmpool.rim.watchdog import Verdict, Watchdog, judge_from_outside

EXIT_CODE = 70
"""``EX_SOFTWARE``: ended from outside the loop."""
LAST_WORDS_SECONDS = 3.0
"""How long the log line and the report may take then: whoever holds up the loop may hold the log too."""
PAUSE_SECONDS = 2.0
"""A thread that comes so much too late was stopped together with the whole process."""
FAULT_SECONDS = 10.0
"""How much later than the thread ``faulthandler`` ends the process."""


class Fence(selectors.DefaultSelector):
    """The loop's selector, with a look before what it has found is acted on."""

    check: Callable[[], None] | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait as the selector does, then look."""
        ready = super().select(timeout)
        if self.check is not None:
            self.check()
        return ready


class Sentry:
    """Looks after a watchdog's loop from a thread, and from the loop's fence."""

    def __init__(self, watchdog: Watchdog, fence: Fence) -> None:
        self._watchdog = watchdog
        self._fence = fence
        self._excused_until = float("-inf")
        self._thread = threading.Thread(target=self._watch, name="sentry", daemon=True)
        self._ending = threading.Lock()
        self._over = threading.Event()
        self._fault_armed_at = float("-inf")
        try:
            self._stderr: int | None = sys.stderr.fileno()
        except (io.UnsupportedOperation, AttributeError, ValueError):
            self._stderr = None

    def start(self) -> None:
        """Begin to look."""
        self._fence.check = self.check
        self._thread.start()

    def stop(self) -> None:
        """Look no more: the loop ends."""
        self._over.set()
        self._fence.check = None
        faulthandler.cancel_dump_traceback_later()

    def check(self) -> None:
        """Look once from inside the loop: at what may have happened while it waited."""
        lease = self._watchdog.lease
        if lease is not None and lease.overdue:
            self._judge(time.monotonic())
        self._watchdog.look_at_clock()
        self._arm()

    def _arm(self) -> None:
        now = time.monotonic()
        if self._stderr is None or now - self._fault_armed_at < self._watchdog.limits.look or self._over.is_set():
            return
        self._fault_armed_at = now
        faulthandler.dump_traceback_later(self._watchdog.limits.block + FAULT_SECONDS, exit=True, file=self._stderr)

    def _watch(self) -> None:
        pause = min(1.0, self._watchdog.limits.look, self._watchdog.limits.block / 4)
        before = time.monotonic()
        while not self._over.wait(pause):
            now = time.monotonic()
            if now - before > pause + PAUSE_SECONDS:
                self._excused_until = now
            before = now
            self._judge(now)

    def _judge(self, now: float) -> None:
        facts = self._watchdog.outside_facts(now, self._excused_until)
        verdict = judge_from_outside(facts, self._watchdog.limits)
        if verdict is not None:
            self._end_now(verdict)

    def _end_now(self, verdict: Verdict) -> NoReturn:
        # Thread and loop may see the same: one of them speaks, the other waits and so does nothing more.
        with self._ending:
            words = threading.Thread(target=self._watchdog.tell, args=(verdict,), name="last words", daemon=True)
            try:
                words.start()
                words.join(LAST_WORDS_SECONDS)
            finally:
                os._exit(EXIT_CODE)


def fenced_loop(fence: Fence) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes an event loop behind this fence."""
    return lambda: asyncio.SelectorEventLoop(fence)
