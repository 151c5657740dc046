"""A live picture of one kind, projected to facts, that says how much it can be trusted.

One task lists and watches. Whatever looks wrong with the watch (an error event, a cut, silence) leads to a new
list, which is compared with what was known: so objects that vanished in between are noticed, and a server that
was restored into the past is found out. A list is believed when the server counts as many objects as it listed,
and repeated from time to time even if nothing looks wrong. Answers to own writes are laid over at once with ``saw``.

What this promises to its readers:

- after ``synced``, the picture holds every write that the server had confirmed ``age()`` seconds ago;
- an own write, once given to ``saw``, is never rolled back by late news (the rules are in ``store``);
- ``run`` ends with ``MirrorStale`` rather than let the picture grow older than ``max_age``.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Generic, NoReturn, TypeVar

from vmpool.kube.client import Client
from vmpool.kube.errors import Forbidden, KindNotFound, KubeError
from vmpool.kube.resource import Json, Resource
from vmpool.kube.store import GONE_KEPT, Change, Entry, Store

__all__ = ["Change", "Entry", "Mirror", "MirrorSettings", "MirrorStale", "MirrorStats", "Selection", "reopen_pause"]

log = logging.getLogger(__name__)

T = TypeVar("T")
NEVER = float("-inf")
WATCH_LEAST_SECONDS = 1.0
"""The server takes whole seconds, and none means that it chooses."""


class MirrorStale(Exception):
    """Nothing has proved for ``max_age`` that the picture is true: the process should end and start again."""


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """Bounds of a mirror; every default beside its reason."""

    page_limit: int = 500
    """Objects a page: a page of 1 MB decodes in about 10 ms, so the loop never stalls."""
    watch_timeout: timedelta = timedelta(minutes=5)
    """The server ends a watch then, after a last bookmark; spreads watches over API servers again."""
    silence: timedelta = timedelta(seconds=90)
    """Without a byte for so long a watch is given up: a server sends bookmarks about every 60 s."""
    relist: timedelta = timedelta(minutes=30)
    """A list is repeated so often: how long an event that never came stays unnoticed."""
    recounts: int = 3
    """How often a list is read that is not what the server counts; then it is believed, and said."""
    gone_kept: int = GONE_KEPT
    """Objects that are gone of which the mirror still knows it, so that old news brings none of them back."""
    max_age: timedelta = timedelta(seconds=180)
    """Older than this the picture must not be acted on: two silences, the second one being a fair chance."""
    missing_grace: timedelta = timedelta(seconds=60)
    """How long the kind may be unknown or forbidden: time for an install that applies CRDs and RBAC last."""
    pause_base: timedelta = timedelta(milliseconds=250)
    """Before the second fruitless try to list and watch; doubles, with jitter."""
    pause_max: timedelta = timedelta(seconds=10)
    """Longest pause: short against ``max_age``."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of which kind; ``namespace`` None is all namespaces."""

    resource: Resource
    namespace: str | None = None
    field_selector: str = ""
    label_selector: str = ""

    def __str__(self) -> str:
        return f"{self.resource.plural} of {self.namespace or 'all namespaces'}"


@dataclass(slots=True)
class MirrorStats:
    """Counters since the start, for metrics."""

    lists: int = 0
    listed_objects: int = 0
    watches: int = 0
    events: int = 0
    bookmarks: int = 0
    overlays: int = 0
    failures: int = 0
    miscounts: int = 0
    regressions: int = 0


def reopen_pause(fruitless: int, roll: float, settings: MirrorSettings) -> timedelta:
    """How long to wait after ``fruitless`` tries without news: none, then doubling, with jitter from ``roll``."""
    if fruitless == 0:
        return timedelta(0)
    doubled: timedelta = settings.pause_base * 2 ** min(fruitless - 1, 20)
    return min(doubled, settings.pause_max) * (0.5 + roll / 2)


class Mirror(Generic[T]):
    """All objects of a selection as facts, by uid, by name and by index.

    ``project`` turns an object into a fact; when it raises, the entry stays with fact None and ``broken`` says
    why. ``indexes`` give a value per fact, or None to leave it out. Listeners are called with every change, at
    once; they must not block, and what they raise ends the mirror.
    """

    def __init__(
        self,
        client: Client,
        selection: Selection,
        project: Callable[[Json], T],
        settings: MirrorSettings,
        indexes: Mapping[str, Callable[[T], Hashable | None]] | None = None,
    ) -> None:
        self.selection = selection
        self.settings = settings
        self.stats = MirrorStats()
        self.synced = asyncio.Event()
        """Set once the first list is complete; never cleared (``age`` tells the rest)."""
        self.regressed = False
        """The server was seen to go back in time: engines freeze until a human has looked."""
        self._client = client
        self._store: Store[T] = Store(project, indexes or {}, settings.gone_kept)
        self._listeners: list[Callable[[Change[T]], None]] = []
        self._regression_listeners: list[Callable[[], None]] = []
        self._proved_at = NEVER
        self._listed_at = NEVER
        self._guard: asyncio.Timeout | None = None
        self._fruitless = 0
        self._missing_since: float | None = None
        self._last_failure = ""

    # --- reading ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._store)

    def __iter__(self) -> Iterator[Entry[T]]:
        """Every entry, broken ones included; do not wait for anything while iterating."""
        return iter(self._store)

    def by_uid(self, uid: str) -> Entry[T] | None:
        """The object of this uid."""
        return self._store.by_uid(uid)

    def by_name(self, namespace: str | None, name: str) -> Entry[T] | None:
        """The object of this name; ``namespace`` None for cluster-wide kinds."""
        return self._store.by_key((namespace or "", name))

    def by_index(self, index: str, value: Hashable) -> tuple[Entry[T], ...]:
        """The objects for which this index gives ``value``; as many steps as there are of them."""
        return self._store.by_index(index, value)

    def count(self, index: str, value: Hashable) -> int:
        """How many objects ``by_index`` would return; one step."""
        return self._store.count(index, value)

    @property
    def broken(self) -> Mapping[str, str]:
        """Why an object has no fact, by uid."""
        return self._store.broken

    @property
    def progress(self) -> int:
        """The resourceVersion up to which list and watch have told everything."""
        return self._store.progress

    @property
    def unconfirmed_deletions(self) -> int:
        """Own deletions that list and watch have not confirmed yet."""
        return self._store.graves

    def age(self) -> float:
        """Seconds since list or watch last proved that the picture is true; infinite before the first list."""
        return time.monotonic() - self._proved_at

    def levels(self) -> dict[str, Any]:
        """What it holds and how it got it, for a report; ages are seconds, None before the first list."""
        return {
            "objects": len(self),
            "synced": self.synced.is_set(),
            "age_seconds": round(self.age(), 3) if self._proved_at > NEVER else None,
            "broken": len(self.broken),
            "regressed": self.regressed,
            **asdict(self.stats),
        }

    # --- learning --------------------------------------------------------------------------------

    def on_change(self, listener: Callable[[Change[T]], None]) -> None:
        """Call ``listener`` with every change from now on."""
        self._listeners.append(listener)

    def on_regression(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` each time the server is found to have gone back in time."""
        self._regression_listeners.append(listener)

    def saw(self, obj: Json) -> None:
        """Lay the server's answer to an own write, or to a quorum read, over the picture at once."""
        self.stats.overlays += 1
        self._tell(self._store.saw(obj))

    def saw_deleted(self, uid: str, resource_version: str | None = None) -> None:
        """Take an object out of the picture at once, because the server said that it is gone.

        ``resource_version``, the last one known, matters only for an object that the mirror was never told of.
        """
        self.stats.overlays += 1
        self._tell(self._store.saw_deleted(uid, int(resource_version or 0)))

    async def quorum_get(self, namespace: str | None, name: str) -> Json:
        """The object as the server has it now; the picture learns it too. Raises as ``Client.get`` does."""
        obj = await self._client.get(self.selection.resource, namespace, name)
        self.saw(obj)
        return obj

    # --- following -------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Follow the server until cancelled.

        Raises ``MirrorStale`` when nothing was proved for ``max_age``, ``Forbidden`` or ``KindNotFound`` when they
        last longer than ``missing_grace``, and whatever a listener raises.
        """
        try:
            async with asyncio.timeout(self.settings.max_age.total_seconds()) as self._guard:
                await self._follow()
        except TimeoutError as error:
            if self._guard is None or not self._guard.expired():
                raise
            raise MirrorStale(
                f"nothing proved {self.selection} for {self.settings.max_age}; last: {self._last_failure or 'silence'}"
            ) from error
        raise AssertionError("unreachable: following has no end")

    async def _follow(self) -> NoReturn:
        must_list = True
        while True:
            began = time.monotonic()
            self._fruitless += 1
            try:
                if must_list:
                    await self._list()
                await self._watch()
                must_list = time.monotonic() >= self._relist_at
            except KubeError as error:
                # Only a clean end may be resumed: behind anything else there may be a restored server.
                must_list = True
                self._bear(error)
            # What took long cannot become a hot loop: the pause is for what fails at once.
            if time.monotonic() - began > self.settings.pause_max.total_seconds():
                self._fruitless = 0
            pause = reopen_pause(self._fruitless, random.random(), self.settings)  # noqa: S311
            await asyncio.sleep(pause.total_seconds())

    def _bear(self, error: KubeError) -> None:
        """Count and log a failure; raise it when the kind has been out of reach for too long."""
        self.stats.failures += 1
        self._last_failure = str(error)
        log.info("%s: listing again after: %s", self.selection, error)
        if not isinstance(error, (Forbidden, KindNotFound)):
            return
        now = time.monotonic()
        if self._missing_since is None:
            self._missing_since = now
        if now - self._missing_since > self.settings.missing_grace.total_seconds():
            raise error

    async def _list(self) -> None:
        known_before = self._store.highest
        entries, version = await self._counted()
        self._listed_at = time.monotonic()
        self.stats.lists += 1
        self.stats.listed_objects += len(entries)
        # Lists and answers to writes are true at a quorum, so only a restored server can be behind them.
        regressed = version < known_before
        if regressed:
            self._note_regression(known_before, version)
        changes = self._store.replace(version, entries, forget=regressed)
        self._missing_since = None
        self._proved()
        self._tell(changes)
        self.synced.set()

    async def _counted(self) -> tuple[list[Entry[T]], int]:
        """Read a list until it has as many objects as the server counts at its version."""
        looks = 0
        while True:
            entries, version = await self._read()
            looks += 1
            counted = await self._count(version)
            if counted is None or counted == len(entries):
                return entries, version
            self.stats.miscounts += 1
            log.warning("%s: listed %d, the server counts %d", self.selection, len(entries), counted)
            if looks >= self.settings.recounts:
                return entries, version
            await asyncio.sleep(reopen_pause(looks, random.random(), self.settings).total_seconds())  # noqa: S311

    async def _count(self, version: int) -> int | None:
        """Ask for the number only where it is of the same objects: a server does not count what a selector leaves."""
        if self.selection.field_selector or self.selection.label_selector:
            return None
        return await self._client.count(self.selection.resource, self.selection.namespace, str(version))

    async def _read(self) -> tuple[list[Entry[T]], int]:
        entries: list[Entry[T]] = []
        version = 0
        pages = self._client.list_pages(
            self.selection.resource,
            self.selection.namespace,
            self.settings.page_limit,
            field_selector=self.selection.field_selector,
            label_selector=self.selection.label_selector,
        )
        async with aclosing(pages):
            async for page in pages:
                version = int(page.resource_version)
                entries += map(self._store.entry_of, page.items)
                del page
        return entries, version

    @property
    def _relist_at(self) -> float:
        return self._listed_at + self.settings.relist.total_seconds()

    async def _watch(self) -> None:
        self.stats.watches += 1
        until_list = timedelta(seconds=max(self._relist_at - time.monotonic(), WATCH_LEAST_SECONDS))
        events = self._client.watch(
            self.selection.resource,
            self.selection.namespace,
            str(self._store.progress),
            min(self.settings.watch_timeout, until_list),
            self.settings.silence,
            field_selector=self.selection.field_selector,
            label_selector=self.selection.label_selector,
        )
        async with aclosing(events):
            async for kind, obj in events:
                self._fruitless = 0
                if kind == "BOOKMARK":
                    self.stats.bookmarks += 1
                else:
                    self.stats.events += 1
                self._proved()
                self._tell(self._store.event(kind, obj))

    def _proved(self) -> None:
        self._proved_at = time.monotonic()
        assert self._guard is not None, "only run() learns from list and watch"
        now = asyncio.get_running_loop().time()
        self._guard.reschedule(now + self.settings.max_age.total_seconds())

    def _note_regression(self, known: int, listed: int) -> None:
        self.regressed = True
        self.stats.regressions += 1
        log.critical("%s: the server went back in time, from %d to %d", self.selection, known, listed)
        for listener in self._regression_listeners:
            listener()

    def _tell(self, changes: list[Change[T]]) -> None:
        for change in changes:
            new, old = change.new, change.old
            if new is not None and new.problem and (old is None or old.problem != new.problem):
                log.error("%s: %s is kept without a fact: %s", self.selection, "/".join(new.key), new.problem)
            for listener in self._listeners:
                listener(change)
