"""A lane: slots, order, time-outs and the circuit, with a provider that does what the test says."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.waiting import until
from vmpool.api.provider import Circuit, VMProviderSpec
from vmpool.engine.lane import Lane, LaneClosed, Slots, Urgency
from vmpool.providers.base import Provider
from vmpool.providers.errors import Exhausted, Unavailable
from vmpool.telemetry.metrics import Metrics

Work = Callable[[Provider], Awaitable[Any]]


def spec(**changes: Any) -> VMProviderSpec:
    return VMProviderSpec.model_validate({"type": "simulated", **changes})


def lane(**changes: Any) -> Lane:
    made = Lane("team-a", "sim", spec(**changes), Metrics())
    made.session = object()  # type: ignore[assignment]  # the work of these tests never looks at it
    return made


def returns(value: Any) -> Work:
    async def work(_: Provider) -> Any:
        return value

    return work


def raises(error: Exception) -> Work:
    async def work(_: Provider) -> Any:
        raise error

    return work


async def call(made: Lane, work: Work, slots: Slots = Slots.OPERATE, urgency: Urgency = Urgency.REFILL) -> Any:
    return await made.call("test", slots, urgency, work)


async def test_never_more_calls_at_once_than_slots_and_the_classes_do_not_share_them() -> None:
    made = lane(limits={"operate": 2, "observe": 1})
    release = asyncio.Event()
    running = {Slots.OPERATE: 0, Slots.OBSERVE: 0}
    most = dict(running)

    def counting(slots: Slots) -> Work:
        async def work(_: Provider) -> None:
            running[slots] += 1
            most[slots] = max(most[slots], running[slots])
            await release.wait()
            running[slots] -= 1

        return work

    calls = [asyncio.create_task(call(made, counting(s), s)) for s in (*[Slots.OPERATE] * 6, *[Slots.OBSERVE] * 3)]
    await until(lambda: running == {Slots.OPERATE: 2, Slots.OBSERVE: 1}, what="all slots are taken")
    release.set()
    await asyncio.gather(*calls)
    assert most == {Slots.OPERATE: 2, Slots.OBSERVE: 1}


async def test_an_empty_pool_goes_first_and_equals_in_order() -> None:
    made = lane(limits={"operate": 1})
    release = asyncio.Event()
    order: list[str] = []

    def named(name: str) -> Work:
        async def work(_: Provider) -> None:
            order.append(name)

        return work

    async def hold(_: Provider) -> None:
        await release.wait()

    holder = asyncio.create_task(call(made, hold))
    await asyncio.sleep(0)
    waiting = []
    for name, urgency in (
        ("background", Urgency.BACKGROUND),
        ("refill 1", Urgency.REFILL),
        ("refill 2", Urgency.REFILL),
        ("empty", Urgency.EMPTY_POOL),
    ):
        waiting.append(asyncio.create_task(call(made, named(name), urgency=urgency)))
        await asyncio.sleep(0)
    release.set()
    await asyncio.gather(holder, *waiting)
    assert order == ["empty", "refill 1", "refill 2", "background"]


async def test_a_cancelled_waiter_leaves_its_place_and_a_cancelled_call_its_slot() -> None:
    made = lane(limits={"operate": 1})
    never = asyncio.Event()

    async def hold(_: Provider) -> None:
        await never.wait()

    holder = asyncio.create_task(call(made, hold))
    await asyncio.sleep(0)
    waiter = asyncio.create_task(call(made, returns("late")))
    await asyncio.sleep(0)
    waiter.cancel()
    holder.cancel()
    await asyncio.gather(waiter, holder, return_exceptions=True)
    assert await call(made, returns("next")) == "next"


async def test_a_call_that_takes_too_long_is_unavailable() -> None:
    made = lane(timeouts={"operate": "1s", "observe": "1s"})

    async def forever(_: Provider) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Unavailable, match="no answer within 1 s"):
        await call(made, forever)


async def test_failures_in_a_row_open_the_circuit_and_calls_are_not_made() -> None:
    made = lane(circuitBreaker={"failures": 3, "pause": "1h"})
    for _ in range(3):
        with pytest.raises(Unavailable):
            await call(made, raises(Unavailable("down")))
    assert made.breaker.state is Circuit.OPEN
    assert not made.open
    with pytest.raises(LaneClosed, match="ProviderUnavailable"):
        await call(made, returns("never"))


async def test_errors_of_one_request_do_not_open_the_circuit_and_prove_that_the_provider_answers() -> None:
    made = lane(circuitBreaker={"failures": 2, "pause": "1h"})
    for error in (Unavailable("down"), Exhausted("full"), Unavailable("down"), Exhausted("full")):
        with pytest.raises(type(error)):
            await call(made, raises(error))
    assert made.open


async def test_without_a_verified_session_nothing_is_called() -> None:
    made = lane()
    made.session = None
    with pytest.raises(LaneClosed, match="not verified"):
        await call(made, returns("never"))


async def test_trouble_is_told_at_once() -> None:
    made = lane()
    told: list[str] = []
    made.on_trouble = lambda: told.append("trouble")
    with pytest.raises(Unavailable):
        await call(made, raises(Unavailable("down")))
    with pytest.raises(Exhausted):
        await call(made, raises(Exhausted("full")))
    assert told == ["trouble"]


async def test_a_changed_limit_lets_waiting_calls_in() -> None:
    made = lane(limits={"operate": 1})
    release = asyncio.Event()
    running = []

    async def hold(_: Provider) -> None:
        running.append(1)
        await release.wait()

    calls = [asyncio.create_task(call(made, hold)) for _ in range(3)]
    await until(lambda: len(running) == 1, what="one call runs")
    made.configure(spec(limits={"operate": 3}))
    await until(lambda: len(running) == 3, what="all calls run")
    release.set()
    await asyncio.gather(*calls)


async def test_what_is_not_judged_opens_no_circuit_and_closes_none() -> None:
    """Diagnostics are a courtesy: a console that is down must not stop creates."""
    made = lane(circuitBreaker={"failures": 2, "pause": "30s"})
    for _ in range(5):
        with pytest.raises(Unavailable):
            await made.call("console", Slots.OBSERVE, Urgency.BACKGROUND, raises(Unavailable("down")), judged=False)
    assert made.breaker.state is Circuit.CLOSED
    with pytest.raises(Unavailable):
        await call(made, raises(Unavailable("down")))
    await made.call("console", Slots.OBSERVE, Urgency.BACKGROUND, returns(""), judged=False)
    with pytest.raises(Unavailable):
        await call(made, raises(Unavailable("down")))
    assert made.breaker.state is Circuit.OPEN
