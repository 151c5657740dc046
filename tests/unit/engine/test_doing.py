"""Effects in flight: one for a key, and a wake that is as soon as what they brought."""

import asyncio
import time
from datetime import timedelta

from tests.waiting import until
from vmpool.engine.doing import Doing
from vmpool.kube.errors import NotFound
from vmpool.plan.actions import CreateVM
from vmpool.telemetry.metrics import Metrics

ACTION = CreateVM("east", "", 0)


class Waker:
    def __init__(self) -> None:
        self.woken: list[float | None] = []

    def wake(self) -> None:
        self.woken.append(None)

    def wake_within(self, seconds: float) -> None:
        self.woken.append(seconds)


async def ended(doing: Doing, waker: Waker) -> list[float | None]:
    await until(lambda: waker.woken and not doing.keys, what="the effect has ended")
    return waker.woken


async def test_news_wakes_at_once() -> None:
    waker = Waker()
    doing = Doing(waker, Metrics(), 0.0)

    async def work() -> None:
        return None

    doing.start("a", ACTION, work)
    assert doing.keys == {"a"}
    assert await ended(doing, waker) == [None]


async def test_no_news_lets_the_loop_rest() -> None:
    waker = Waker()
    doing = Doing(waker, Metrics(), 0.0)

    async def work() -> timedelta:
        return timedelta(seconds=5)

    doing.start("a", ACTION, work)
    assert await ended(doing, waker) == [5.0]


async def test_refused_again_and_again_it_slows_down_until_it_is_not() -> None:
    """A picture that does not change must not make a loop of requests."""
    waker, pauses = Waker(), [0.0]
    doing = Doing(waker, Metrics(), 0.05)
    answers: list[Exception | None] = [*[NotFound("gone")] * 4, None, NotFound("gone")]

    async def work() -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    while answers:
        began = time.monotonic()
        doing.start("a", ACTION, work)
        await ended(doing, waker)
        pauses.append(time.monotonic() - began)
        waker.woken.clear()
    assert [pause > 0.05 for pause in pauses[1:]] == [False, False, True, True, False, False]


async def test_an_effect_that_was_refused_or_cancelled_wakes_at_once() -> None:
    """Whatever is not known to be calm has to be looked at."""
    waker = Waker()
    doing = Doing(waker, Metrics(), 0.0)

    async def refused() -> timedelta:
        raise NotFound("gone")

    async def endless() -> timedelta:
        await asyncio.Event().wait()
        return timedelta(seconds=5)

    doing.start("a", ACTION, refused)
    assert await ended(doing, waker) == [None]
    doing.start("b", ACTION, endless)
    await doing.stop(0.0)
    assert await ended(doing, waker) == [None, None]
