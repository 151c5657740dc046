"""Looks, merged: few by single requests, many by one listing, and never by what is older than the question."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tests.unit.engine.test_lane import lane
from tests.waiting import until
from vmpool.engine import glances as glances_module
from vmpool.engine.glances import FEW, Glances
from vmpool.providers.base import Machine, MachineState
from vmpool.providers.errors import MachineNotFound, Unavailable

MANY = 3 * FEW


@pytest.fixture(autouse=True)
def gathered_in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks that begin together are gathered by the loop's next turn: on a busy machine five milliseconds are not."""
    monkeypatch.setattr(glances_module, "GATHER_SECONDS", 0)


class Far:
    """A provider that counts what it is asked; its listing waits until it may go on."""

    def __init__(self, machines: int = MANY) -> None:
        self.state = MachineState.CREATING
        self.ids = [f"m{number}" for number in range(machines)]
        self.gets: list[str] = []
        self.lists = 0
        self.error: Exception | None = None
        self.going_on = asyncio.Event()
        self.going_on.set()

    async def get(self, machine_id: str) -> Machine:
        self.gets.append(machine_id)
        if machine_id not in self.ids:
            raise MachineNotFound("gone")
        return Machine(machine_id, machine_id, self.state)

    async def machines(self) -> AsyncIterator[Machine]:
        self.lists += 1
        seen = [Machine(one, one, self.state) for one in self.ids]
        await self.going_on.wait()
        if self.error is not None:
            raise self.error
        for one in seen:
            yield one


def glances(far: Far, machines: int = MANY) -> Glances:
    road = lane(circuitBreaker={"failures": 1000})
    road.session = far  # type: ignore[assignment]  # the two methods are all that is asked of it
    return Glances(road, lambda: machines, lambda: timedelta(seconds=10))


async def looks(made: Glances, ids: list[str]) -> list[Machine | BaseException]:
    return await asyncio.gather(*(made.look(one) for one in ids), return_exceptions=True)


async def test_a_few_are_asked_for_one_by_one() -> None:
    far = Far()
    found = await looks(glances(far), far.ids[:FEW])
    assert [one.id for one in found if isinstance(one, Machine)] == far.ids[:FEW]
    assert (sorted(far.gets), far.lists) == (sorted(far.ids[:FEW]), 0)


async def test_many_at_once_are_one_listing() -> None:
    far = Far()
    found = await looks(glances(far), far.ids)
    assert [one.id for one in found if isinstance(one, Machine)] == far.ids
    assert (far.gets, far.lists) == ([], 1)


async def test_what_counts_as_many_grows_with_the_provider() -> None:
    far = Far()
    await looks(glances(far, machines=100 * MANY), far.ids)
    assert (len(far.gets), far.lists) == (MANY, 0)


async def test_only_a_request_of_its_own_proves_that_a_machine_is_not_found() -> None:
    far = Far()
    *found, missing = await looks(glances(far), [*far.ids, "late"])
    assert all(isinstance(one, Machine) for one in found)
    assert isinstance(missing, MachineNotFound)
    assert far.gets == ["late"]


async def test_a_listing_that_runs_already_is_not_the_answer_to_a_later_question() -> None:
    far = Far()
    made = glances(far)
    far.going_on.clear()
    first = asyncio.create_task(looks(made, far.ids))
    await until(lambda: far.lists == 1, what="the first listing runs")
    far.state = MachineState.RUNNING
    second = asyncio.create_task(looks(made, far.ids))
    await until(lambda: made._next is not None, what="the second looks wait for another listing")
    assert far.lists == 1, "one at a time"
    far.going_on.set()
    assert {one.state for one in await first if isinstance(one, Machine)} == {MachineState.CREATING}
    assert {one.state for one in await second if isinstance(one, Machine)} == {MachineState.RUNNING}
    assert far.lists == 2


async def test_a_listing_that_fails_fails_every_look_and_the_next_one_begins_anew() -> None:
    far = Far()
    made = glances(far)
    far.error = Unavailable("down")
    assert {type(one) for one in await looks(made, far.ids)} == {Unavailable}
    far.error = None
    assert {type(one) for one in await looks(made, far.ids)} == {Machine}


async def test_stopping_ends_the_looks_that_wait() -> None:
    far = Far()
    made = glances(far)
    far.going_on.clear()
    waiting = asyncio.create_task(looks(made, far.ids))
    await until(lambda: far.lists == 1, what="the listing runs")
    made.stop()
    assert {type(one) for one in await waiting} == {asyncio.CancelledError}


@pytest.mark.parametrize("count", [1, MANY])
async def test_nothing_is_left_behind(count: int) -> None:
    far = Far()
    made = glances(far)
    await looks(made, far.ids[:count])
    assert (made._together, made._next) == (0, None)
