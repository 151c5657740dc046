"""Loops: woken, never told; one object's error is its own."""

import asyncio
from datetime import datetime

import pytest

from tests.waiting import until
from vmpool.engine.loop import Done, Loop
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
