"""Loops: woken, never told; one object's error is its own."""

import asyncio
import time
from collections.abc import Coroutine
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import until
from vmpool.engine.loop import Done, Loop, Work, round_pause
from vmpool.settings import Settings
from vmpool.telemetry.metrics import Metrics

FAST = Settings(round_pause_seconds=0.0, error_pause_seconds=0.01, error_pause_longest_seconds=0.1)


class Counting(Loop):
    kind = "Test"

    def __init__(self, settings: Settings = FAST) -> None:
        super().__init__(settings, Metrics())
        self.rounds = 0
        self.errors = 0
        self.gone = False
        self.was_closed = False
        self.going_on = asyncio.Event()
        self.going_on.set()

    async def round(self, now: datetime) -> datetime | None:
        self.rounds += 1
        await self.going_on.wait()
        if self.gone:
            raise Done
        if self.errors:
            self.errors -= 1
            raise ValueError("a mistake")
        return None

    async def closed(self) -> None:
        self.was_closed = True

    def __str__(self) -> str:
        return "counting"


@pytest.fixture
async def loop():
    made = Counting()
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert made.was_closed


async def test_a_thousand_wakes_in_a_round_are_one_more_round(loop: Counting) -> None:
    loop.going_on.clear()
    await until(lambda: loop.rounds == 1, what="the first round")
    for _ in range(1000):
        loop.wake()
    loop.going_on.set()
    await until(lambda: loop.rounds == 2, what="the second round")
    for _ in range(20):
        await asyncio.sleep(0)
    assert loop.rounds == 2


async def test_an_error_is_counted_and_the_loop_goes_on(loop: Counting) -> None:
    loop.errors = 3
    loop.wake()
    await until(lambda: loop.errors == 0 and loop.rounds >= 4, what="the loop recovers")
    errors = loop.metrics.registry.get_sample_value("vmpool_rounds_total", {"kind": "Test", "outcome": "error"})
    assert errors == 3


async def test_the_loop_ends_with_its_object(loop: Counting) -> None:
    loop.gone = True
    loop.wake()
    await until(lambda: loop.was_closed, what="the loop ends")


async def test_without_news_a_round_comes_at_the_named_time_and_not_before(loop: Counting) -> None:
    await until(lambda: loop.rounds == 1, what="the first round")
    loop.wake_within(3600.0)
    loop.wake_within(0.01)
    loop.wake_within(3600.0)
    await until(lambda: loop.rounds == 2, what="the round that was asked for soonest")
    for _ in range(20):
        await asyncio.sleep(0)
    assert loop.rounds == 2


async def test_a_round_makes_an_earlier_wish_void(loop: Counting) -> None:
    await until(lambda: loop.rounds == 1, what="the first round")
    loop.wake_within(3600.0)
    wish = loop._calm
    assert wish is not None
    loop.wake()
    await until(lambda: loop.rounds == 2, what="the round")
    assert wish.cancelled()
    assert loop._calm is None


@given(spent=st.floats(0.0, 10.0), share=st.floats(0.01, 1.0))
def test_rounds_get_their_share_of_a_core(spent: float, share: float) -> None:
    settings = Settings(round_share=share)
    pause = round_pause(spent, settings)
    assert settings.round_pause_seconds <= pause <= settings.round_pause_longest_seconds
    if settings.round_pause_seconds < pause < settings.round_pause_longest_seconds:
        assert spent / (spent + pause) == pytest.approx(share)


async def test_work_is_what_a_coroutine_does_and_not_what_it_waits_for() -> None:
    going_on = asyncio.Event()
    work = Work()

    async def busy_then_waiting() -> str:
        end = time.perf_counter() + 0.02
        while time.perf_counter() < end:
            pass
        await going_on.wait()
        return "done"

    async def run() -> str:
        return await work.of(busy_then_waiting())

    task = asyncio.create_task(run())
    began = time.perf_counter()
    await until(lambda: time.perf_counter() > began + 0.2, what="some time has passed")
    going_on.set()
    assert await task == "done"
    assert 0.02 <= work.seconds < 0.15


async def test_work_passes_errors_and_cancellation_on() -> None:
    heard: list[str] = []

    async def refuses() -> None:
        raise ValueError("no")

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    async def run(coroutine: Coroutine[Any, Any, None]) -> None:
        await Work().of(coroutine)

    with pytest.raises(ValueError, match="no"):
        await run(refuses())
    task = asyncio.create_task(run(waits()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard == ["cancelled"]


def test_the_least_pause_holds_whatever_the_longest_one_is() -> None:
    assert round_pause(0.0, Settings(round_pause_seconds=1.0)) == 1.0
    assert round_pause(9.0, Settings()) == Settings().round_pause_longest_seconds
