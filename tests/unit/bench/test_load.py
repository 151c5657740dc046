"""Who asks when, and how waits are told: on a clock that jumps to the next thing to do."""

import asyncio
import itertools
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load import arrivals, closed, opened, percentile

T = TypeVar("T")


class Jump(selectors.BaseSelector):
    """A selector without anything to select: instead of waiting, it moves the clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self._real = selectors.SelectSelector()

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "nothing is left to do, and somebody waits for it"
        self.now += timeout
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def get_map(self) -> Any:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


def played(work: Coroutine[Any, Any, T]) -> T:
    """Run on a loop whose time passes only by being waited for."""
    clock = Jump()
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = lambda: clock.now  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


class Server:
    """Answers one after the other, each after ``seconds`` of work."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked = self.there = self.most = 0
        self._turn = asyncio.Lock()

    async def ask(self) -> None:
        self.asked += 1
        self.there += 1
        self.most = max(self.most, self.there)
        async with self._turn:
            # On the loop's own clock, which these tests turn on without waiting.
            loop = asyncio.get_running_loop()
            worked = loop.create_future()
            loop.call_later(self.seconds, worked.set_result, None)
            await worked
        self.there -= 1


def test_one_client_waits_for_the_server_alone() -> None:
    server = Server(0.25)
    waits = played(closed(server.ask, 1, 8))
    assert waits.each_ms == (250.0,) * 8
    assert waits.seconds == pytest.approx(2.0)
    assert waits.per_second == pytest.approx(4.0)


def test_so_many_clients_ask_at_once_and_no_more_often_than_they_should() -> None:
    server = Server(0.25)
    waits = played(closed(server.ask, 4, 10))
    assert (server.asked, server.most) == (10, 4)
    assert len(waits.each_ms) == 10
    assert max(waits.each_ms) == 1000.0
    assert waits.seconds == pytest.approx(2.5)


def test_who_comes_waits_for_nobody_before_asking() -> None:
    server = Server(0.5)
    waits = played(opened(server.ask, (1.0, 1.25, 1.375, 5.0)))
    assert server.most == 3
    assert waits.each_ms == (500.0, 750.0, 1125.0, 500.0)
    assert waits.seconds == pytest.approx(5.5)


def test_a_wait_begins_when_the_client_was_to_come_though_the_process_was_busy() -> None:
    async def busy() -> Any:
        loop = asyncio.get_running_loop()
        server = Server(0.0)
        # As if something had kept the process for a second, just before the client was to come.
        loop.call_later(0.9, lambda: setattr(loop._selector, "now", loop.time() + 1.0))  # type: ignore[attr-defined]
        return await opened(server.ask, (1.0,))

    assert played(busy()).each_ms[0] >= 900.0


def test_a_client_that_fails_ends_all() -> None:
    async def refuse() -> None:
        raise AssertionError("503")

    with pytest.raises(ExceptionGroup):
        played(closed(refuse, 2, 10))
    with pytest.raises(ExceptionGroup):
        played(opened(refuse, (0.0, 9.0)))


@pytest.mark.parametrize(
    ("percent", "expected"),
    [
        pytest.param(50, 5.0, id="the lower of the two in the middle"),
        pytest.param(51, 6.0, id="just above the middle"),
        pytest.param(90, 9.0, id="one is above"),
        pytest.param(95, 10.0, id="none can be above"),
        pytest.param(100, 10.0, id="the largest"),
        pytest.param(0.1, 1.0, id="the smallest"),
    ],
)
def test_a_percentile_is_one_of_the_samples(percent: float, expected: float) -> None:
    assert percentile([7.0, 1.0, 3.0, 10.0, 2.0, 9.0, 4.0, 6.0, 5.0, 8.0], percent) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 100))
def test_so_many_samples_are_not_above_a_percentile_and_fewer_are_below(samples: list[float], percent: float) -> None:
    found = percentile(samples, percent)
    wanted = len(samples) * percent / 100
    assert sum(one <= found for one in samples) >= wanted - 1e-9
    assert sum(one < found for one in samples) < wanted + 1e-9


@pytest.mark.parametrize(("samples", "percent"), [([], 50), ([1.0], 0), ([1.0], 100.1)])
def test_no_percentile_of_nothing_or_outside_a_hundred(samples: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(samples, percent)


def test_arrivals_come_at_their_rate_at_random_and_the_same_again() -> None:
    times = arrivals(100.0, 20_000, seed=1)
    assert list(times) == sorted(times)
    assert times[-1] == pytest.approx(200.0, rel=0.05)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    # Of a Poisson process, the gaps' mean and deviation are the same; of a metronome, there is no deviation.
    mean = sum(gaps) / len(gaps)
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.05)
    assert arrivals(100.0, 20_000, seed=1) == times
    assert arrivals(100.0, 20_000, seed=2) != times
    assert arrivals(50.0, 20_000, seed=1)[-1] == pytest.approx(2 * times[-1])
