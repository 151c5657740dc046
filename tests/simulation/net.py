"""The way between a replica and the far sides: time passes, answers get lost, requests land late, watches break.

A request that has left its process lands whatever becomes of the process: so a killed or slow leader's last write may
still happen, as on a real network.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson

from tests.simulation.api import Answer
from tests.simulation.clock import VirtualLoop
from vmpool.api import keys
from vmpool.kube.client import Client
from vmpool.kube.errors import KubeError, OutcomeUnknown, ServerError, Unreachable, error_from_answer
from vmpool.kube.transport import ClientSettings, Request
from vmpool.providers.errors import Unavailable
from vmpool.providers.simulated import Config, SimulatedProvider, TokenMode

if TYPE_CHECKING:
    from datetime import timedelta

    from tests.simulation.run import Site

T = TypeVar("T")

BOOKMARKS: Final = 55.0
"""Seconds between two bookmarks of a watch without news."""
GIVEN_UP: Final = 3.0
"""Seconds until a client takes a request that has not landed for lost."""


class Fate(Enum):
    """What becomes of one request."""

    FINE = auto()
    REFUSED = auto()
    """The server says no, and does nothing."""
    LOST = auto()
    """It is carried out, and nobody hears of it."""
    LATE = auto()
    """It is carried out long after its sender has given it up."""
    KILLED_BEFORE = auto()
    """The sender dies, and it is not carried out."""
    KILLED_AFTER = auto()
    """It is carried out, and the sender dies before the answer."""


@dataclass(frozen=True)
class Weather:
    """How often what goes wrong: shares of requests, or of watch events."""

    refused: float = 0.0
    lost: float = 0.0
    late: float = 0.0
    kills: float = 0.0
    cuts: float = 0.0
    slow_news: float = 0.0
    """Watch events that come seconds late; what follows of the same kind waits behind them."""


CALM: Final = Weather()


class Lost:
    """No answer."""


LOST: Final = Lost()


class Party:
    """Somebody who sends requests: a replica, the gateway."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.held_until = 0.0
        """Nothing reaches it before: its process is stopped, or its network is."""
        self.listed_at = -1.0
        """When the cloud made the last complete listing that it has had an answer to."""


class Net:
    """All requests of one story."""

    def __init__(self, site: "Site", loop: VirtualLoop, random: Random, weather: Weather) -> None:
        self.site, self.loop, self.random, self.weather = site, loop, random, weather
        self.late_landings = 0
        """How many requests landed after their sender had given them up, or had died."""

    def _fate(self, who: Party) -> Fate:
        weather, roll = self.weather, self.random.random()
        kills = weather.kills if who.name.startswith("replica") else 0.0
        for share, fate in (
            (weather.refused, Fate.REFUSED),
            (weather.lost, Fate.LOST),
            (weather.late, Fate.LATE),
            (kills / 2, Fate.KILLED_BEFORE),
            (kills / 2, Fate.KILLED_AFTER),
        ):
            roll -= share
            if roll < 0:
                return fate
        return Fate.FINE

    async def ask(self, who: Party, what: Callable[[], str], act: Callable[[], T], refuse: Callable[[], T]) -> T | Lost:
        """Send one request; return the answer, the refusal, or LOST."""
        if who.dead:
            raise asyncio.CancelledError
        fate, random = self._fate(who), self.random
        answer: asyncio.Future[T | Lost] = self.loop.create_future()
        there, back = random.uniform(0.001, 0.02), random.uniform(0.001, 0.02)

        def give(result: T | Lost) -> None:
            if self.loop.time() < who.held_until and not who.dead:
                self.loop.call_at(who.held_until, give, result)
            elif not answer.done():
                answer.set_result(result)

        def land() -> None:
            if fate is not Fate.FINE:
                self.site.tell(f"  {fate.name.lower()}: {who.name} {what()}")
            if fate is Fate.REFUSED:
                self.loop.call_later(back, give, refuse())
                return
            if fate is Fate.KILLED_BEFORE:
                self.site.kill(who)
                return
            late = who.dead or fate is Fate.LATE
            self.late_landings += late
            self.site.cloud.late, self.site.cloud.asker = late, who.name
            result = act()
            if fate is Fate.KILLED_AFTER:
                self.site.kill(who)
            elif fate in (Fate.LOST, Fate.LATE):
                self.loop.call_later(back, give, LOST)
            else:
                self.loop.call_later(back, give, result)

        if fate is Fate.LATE:
            self.loop.call_later(GIVEN_UP, give, LOST)
            there = random.uniform(0.1, 12.0)
        self.loop.call_later(there, land)
        return await answer


# --- the API server --------------------------------------------------------------------------------------------------


class Wire:
    """The transport of a real ``Client`` that ends at the model."""

    def __init__(self, site: "Site", who: Party) -> None:
        self._site, self._who = site, who
        self.clock_skew: timedelta | None = None

    async def send(self, request: Request) -> bytes:
        """Return the body of a success; raises as ``Transport.send`` does."""
        api, net, listed_at = self._site.api, self._site.net, self._who.listed_at

        def act() -> Answer:
            self._site.witness.proven_at, self._site.witness.writer = listed_at, self._who.name
            return api.handle(
                request.method, request.path, request.query, request.body, request.content_type, who=self._who.name
            )

        def what() -> str:
            return f"{request.method} {request.path} {(request.body or b'').decode()[:160]}"

        answer = await net.ask(self._who, what, act, lambda: self._refuse(request))
        if isinstance(answer, Lost):
            error: type[KubeError] = OutcomeUnknown if request.is_write else Unreachable
            raise error(f"{request.method} {request.path}: no answer")
        status, document = answer
        if status < 300:
            if request.is_write and self._site.lines is not None:
                self._site.tell(f"  {status} {self._who.name} {what()}")
            return orjson.dumps(document)
        self._site.tell(f"  {status} {self._who.name} {what()}: {document['message']}")
        said = error_from_answer(status, orjson.dumps(document))
        if request.is_write and isinstance(said, ServerError):
            raise OutcomeUnknown(f"{request.method} {request.path}: {said.message}", status=status) from said
        raise said

    def _refuse(self, request: Request) -> Answer:
        """Choose one of the ways in which a server that does nothing answers."""
        codes = [(429, "TooManyRequests"), (500, "InternalError")]
        if request.method == "PATCH":
            codes.append((409, "Conflict"))
        code, reason = self._site.net.random.choice(codes)
        return code, {"kind": "Status", "status": "Failure", "message": "not now", "reason": reason, "code": code}

    async def lines(self, request: Request, *, silence: "timedelta", total: "timedelta") -> AsyncGenerator[bytes]:
        """Yield what a watch tells, in order; it may come late, and may break off. The model is never silent."""
        del silence, total
        feed = Feed(self._site, self._who, request)
        try:
            async for line in feed.lines():
                yield line
        finally:
            feed.close()


class Feed:
    """One watch of one party."""

    def __init__(self, site: "Site", who: Party, request: Request) -> None:
        self._site, self._who = site, who
        self.plural = request.plural
        self._from = int((request.query or {})["resourceVersion"])
        self.news = asyncio.Event()
        site.feeds.append(self)

    def close(self) -> None:
        """Hear of nothing any more."""
        self._site.feeds.remove(self)

    async def lines(self) -> AsyncGenerator[bytes]:
        """Yield every event that is newer than the given version, then the news as it comes."""
        site, loop, random = self._site, self._site.loop, self._site.net.random
        history = site.history[self.plural]
        place = next((at for at, (_, event) in enumerate(history) if event.version > self._from), len(history))
        while True:
            while place < len(history):
                at, event = history[place]
                weather = site.net.weather
                delay = random.uniform(0.001, 0.02)
                if random.random() < weather.slow_news:
                    delay = random.uniform(0.2, 3.0)
                # A kind's events stay in order: what comes behind a slow one waits with it.
                await self._until(at + delay)
                if random.random() < weather.cuts:
                    site.tell(f"  watch of {self.plural} breaks for {self._who.name}")
                    if random.random() < 0.5:
                        yield orjson.dumps({"type": "ERROR", "object": {"code": 410, "reason": "Expired"}})
                    raise Unreachable(f"watch of {self.plural}: cut")
                place += 1
                yield event.line
            self.news.clear()
            timer = loop.call_later(BOOKMARKS, self.news.set)
            await self.news.wait()
            timer.cancel()
            if place == len(history):
                version = str(site.api.version)
                yield orjson.dumps({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}})

    async def _until(self, moment: float) -> None:
        wait = max(moment, self._who.held_until) - self._site.loop.time()
        if wait > 0:
            await asyncio.sleep(wait)


def client_of(site: "Site", who: Party) -> Client:
    """Return a real client whose transport ends at the model."""
    client = Client.__new__(Client)
    client.settings = ClientSettings()
    client._transport = Wire(site, who)  # type: ignore[assignment]
    client._slots = asyncio.Semaphore(client.settings.in_flight)
    client._refresh = None
    return client


# --- the cloud -------------------------------------------------------------------------------------------------------


class Session(SimulatedProvider):
    """The real plug-in, whose requests end at the model."""

    def __init__(self, site: "Site", who: Party, install_id: str) -> None:
        mode = TokenMode.TOKEN if site.cloud.script.tokens else TokenMode.NONE
        super().__init__(Config(endpoint="http://127.0.0.1:1", token_mode=mode), "key", install_id)
        self._site, self._who = site, who

    async def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        params: Mapping[str, str] | list[tuple[str, str]] | None = None,
    ) -> dict[str, Any]:
        cloud, random = self._site.cloud, self._site.net.random

        def what() -> str:
            return f"{method} {path}"

        def refuse() -> Answer:
            code = random.choice([429, 500, 503])
            return code, {"error": {"code": "Trouble", "message": "not now"}}

        landed_at = 0.0

        def act() -> Answer:
            nonlocal landed_at
            landed_at = cloud.now()
            return cloud.handle(method, path, body, params)

        answer = await self._site.net.ask(self._who, what, act, refuse)
        if isinstance(answer, Lost):
            raise Unavailable("no answer")
        status, document = answer
        if (method, path, status) == ("GET", "v1/machines", 200) and not _asks_for_one(params):
            self._who.listed_at = landed_at
        if method != "GET":
            self._site.tell(f"  cloud {status} {self._who.name} {what()} {document.get('id', '')}")
        if status < 300:
            return document
        raise self._refusal(status, {}, orjson.dumps(document))


def _asks_for_one(params: Mapping[str, str] | list[tuple[str, str]] | None) -> bool:
    values = params.values() if isinstance(params, Mapping) else [value for _, value in params or ()]
    return any(value.startswith(f"{keys.TAG_UID}=") for value in values)


@dataclass(frozen=True)
class Registry:
    """Stands for the plug-ins' registry: every provider is a session of one replica with the model."""

    site: "Site"
    who: Callable[[], Party]

    def open_provider(self, *_: object) -> Session:
        """Return a session for whoever asks."""
        return Session(self.site, self.who(), self.site.install_id)
