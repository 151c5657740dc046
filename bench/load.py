"""Load on something that answers: so many clients that each wait for their answer, or arrivals that wait for nobody.

Belongs here: when requests are made and how their waits are told. What is asked for, and of whom, is in
``bench.asking``.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

Ask = Callable[[], Awaitable[None]]
"""One request with its answer; raises for every answer but the one that is wanted."""

MILLISECONDS = 1000.0
PRECISION = 3
"""Decimals of a wait in milliseconds: the clock's own noise is larger than a microsecond."""


@dataclass(frozen=True)
class Waits:
    """How long each request took, and all of them together."""

    seconds: float
    """From the beginning until the last answer."""
    each_ms: tuple[float, ...]
    """Milliseconds of each, in the order of the answers."""
    cpu_seconds: float = 0.0
    """What the clients' own process has used meanwhile, where somebody has measured it."""

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return len(self.each_ms) / self.seconds


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that so many per cent of all are not above (nearest rank).

    Raises ValueError without samples, and for a percentage that is not above 0 and at most 100.
    """
    if not samples or not 0 < percent <= 100:
        raise ValueError(
            f"the {percent:g}th percentile of {len(samples)} samples: there must be some, and 0 < p <= 100"
        )
    return sorted(samples)[math.ceil(len(samples) * percent / 100.0) - 1]


def arrivals(rate: float, count: int, seed: int) -> tuple[float, ...]:
    """Return when ``count`` clients that know nothing of each other come, in seconds from the beginning.

    A Poisson process of ``rate`` a second; the same seed gives the same times at every rate, only scaled.
    """
    chance = random.Random(seed)
    at, times = 0.0, []
    for _ in range(count):
        at += chance.expovariate(1.0)
        times.append(at / rate)
    return tuple(times)


async def closed(ask: Ask, clients: int, count: int) -> Waits:
    """Ask ``count`` times by so many clients, each of which asks again as soon as it has its answer."""
    now = asyncio.get_running_loop().time
    waits: list[float] = []
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            asked = now()
            await ask()
            waits.append(now() - asked)

    began = now()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return _told(now() - began, waits)


async def opened(ask: Ask, times: Sequence[float]) -> Waits:
    """Ask at these seconds from the beginning, whoever is still waiting.

    A wait begins when the client was to come: one that could not even ask in time has waited, too.
    """
    now = asyncio.get_running_loop().time
    waits: list[float] = []

    async def client(due: float) -> None:
        await ask()
        waits.append(now() - due)

    began = now()
    async with asyncio.TaskGroup() as group:
        for offset in times:
            early = began + offset - now()
            if early > 0:
                await asyncio.sleep(early)
            group.create_task(client(began + offset))
    return _told(now() - began, waits)


def _told(seconds: float, waits: Sequence[float]) -> Waits:
    return Waits(seconds, tuple(round(one * MILLISECONDS, PRECISION) for one in waits))
