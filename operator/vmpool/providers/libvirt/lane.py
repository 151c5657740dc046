"""The threads in which libvirt's blocking calls run, and the one connection that they share.

A cancelled caller leaves its call running, for libvirt cannot be interrupted. So a call that changes a machine
keeps that machine's lock until it has really ended, and whoever repeats it waits and then finds what it made.
No thread waits forever: a connection whose host stops answering is cut after KEEPALIVE_SECONDS * KEEPALIVE_COUNT,
and the calls on it fail.
"""

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import libvirt

from vmpool.providers.errors import Throttled
from vmpool.providers.libvirt.faults import translate, translate_open

T = TypeVar("T")

THREADS = 4
MAX_CALLS = 256
"""Calls that run or wait; one more is refused as Throttled."""
KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3
CLOSE_SECONDS = 10.0


class Link(Protocol):
    """What hangs on one connection."""

    @property
    def connection(self) -> libvirt.virConnect:
        """The connection it was made for."""


LinkT = TypeVar("LinkT", bound=Link)


def connect(uri: str) -> libvirt.virConnect:
    """Open a connection that is cut when its far side falls silent. Blocks.

    Raises CredentialsRefused, InvalidConfig or Unavailable.
    """
    _prepare_library()
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise translate_open(error, uri) from error
    # A driver that lives in our own process has nothing to keep alive, and says so.
    with suppress(libvirt.libvirtError):
        connection.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
    return connection


class Lane(Generic[LinkT]):
    """Runs calls on a link: opened at the first one, and again after the connection broke."""

    def __init__(self, open_link: Callable[[], LinkT]) -> None:
        self._open_link = open_link
        self._opening = threading.Lock()
        self._link: LinkT | None = None
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="libvirt")
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._calls = 0

    async def run(self, call: Callable[[LinkT], T], *, alone_with: str | None = None) -> T:
        """Return what ``call`` returns in a thread; never two at once that name the same ``alone_with``.

        Raises typed errors only. When cancelled, a call that has not begun never runs; one that has goes on.
        """
        if self._calls >= MAX_CALLS:
            raise Throttled(f"{MAX_CALLS} calls already wait for libvirt")
        self._calls += 1
        lock = asyncio.Lock() if alone_with is None else self._locks.setdefault(alone_with, asyncio.Lock())
        try:
            await lock.acquire()
        except asyncio.CancelledError:
            self._calls -= 1
            raise

        def ended(done: asyncio.Future[T]) -> None:
            self._calls -= 1
            lock.release()
            if not done.cancelled():
                done.exception()  # seen here, for a cancelled caller will never look

        job: Future[T] = self._executor.submit(self._call, call)
        outcome = asyncio.wrap_future(job)
        outcome.add_done_callback(ended)
        try:
            return await asyncio.shield(outcome)
        except asyncio.CancelledError:
            job.cancel()
            raise

    async def close(self) -> None:
        """Close the connection and end the threads; waits at most CLOSE_SECONDS for calls under way."""
        with suppress(RuntimeError):  # closed before
            last = asyncio.wrap_future(self._executor.submit(self._close_link))
            self._executor.shutdown(wait=False)
            await asyncio.wait([last], timeout=CLOSE_SECONDS)

    def _call(self, call: Callable[[LinkT], T]) -> T:
        try:
            return call(self._linked())
        except libvirt.libvirtError as error:
            raise translate(error) from error

    def _linked(self) -> LinkT:
        with self._opening:
            if self._link is None or not self._link.connection.isAlive():
                self._disconnect()
                self._link = self._open_link()
            return self._link

    def _close_link(self) -> None:
        with self._opening:
            self._disconnect()

    def _disconnect(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            with suppress(libvirt.libvirtError):
                link.connection.close()


@functools.cache
def _prepare_library() -> None:
    """Once per process, before the first connection: no errors on stderr, and a thread that keeps time."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_keep_time, name="libvirt-events", daemon=True).start()


def _keep_time() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
