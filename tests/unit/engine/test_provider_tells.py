"""What a provider's loop tells its pools: every verdict that differs from what they heard last."""

from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from vmpool.api.provider import Circuit
from vmpool.engine.creates import Creates
from vmpool.engine.facts import provider_object
from vmpool.engine.lane import Slots, Urgency
from vmpool.engine.provider import ProviderLoop
from vmpool.engine.world import World
from vmpool.kube.errors import Conflict
from vmpool.plan.provider import Verdict
from vmpool.providers.errors import Unavailable
from vmpool.settings import Settings
from vmpool.telemetry.metrics import Metrics

RAW = {
    "metadata": {"uid": "u", "namespace": "team", "name": "east", "resourceVersion": "1", "generation": 1},
    "spec": {"type": "simulated", "circuitBreaker": {"failures": 2, "pause": "30s"}},
    "status": {"identity": "far"},
}


class Heard(ProviderLoop):
    """A loop whose rounds do what the test says; the pools it wakes are counted."""

    def __init__(self, world: Any) -> None:
        super().__init__(world, provider_object(RAW))
        self.told = 0
        self.then: Any = lambda: None

    async def _round(self, now: datetime) -> None:
        self.then()

    def _wake_pools(self) -> None:
        self.told += 1

    async def look(self) -> int:
        """Make a round; return how often the pools were woken by it."""
        before = self.told
        await self.round(datetime.now(UTC))
        return self.told - before


@pytest.fixture
def heard() -> Heard:
    world = SimpleNamespace(
        settings=Settings(), metrics=Metrics(), provider=lambda _: None, taken=lambda _: 0, views={}, install_id="i"
    )
    made = Heard(world)
    made.verdict, made._identity = Verdict(verified=True), "far"
    made._verified_generation, made.lane.session = 1, object()  # type: ignore[assignment]
    return made


async def test_the_first_round_tells_and_the_next_ones_only_what_changed(heard: Heard) -> None:
    assert heard.facts().settling
    assert [await heard.look() for _ in range(3)] == [1, 0, 0]
    assert not heard.facts().settling
    heard.verdict = Verdict("Unavailable", "down")
    assert [await heard.look() for _ in range(2)] == [1, 0]


async def test_a_round_that_fails_tells_as_well(heard: Heard) -> None:
    await heard.look()

    def fail() -> None:
        heard.verdict = Verdict("Unavailable", "down")
        raise ValueError("the write of the status was refused")

    heard.then = fail
    with pytest.raises(ValueError, match="refused"):
        await heard.look()
    assert heard.told == 2


async def test_a_round_that_lost_a_race_of_writes_has_not_looked_yet(heard: Heard) -> None:
    """Two providers on one Secret: who writes second must not lose its share of the machines to the first."""

    def lose() -> None:
        raise Conflict("somebody else wrote")

    heard.then = lose
    with pytest.raises(Conflict):
        await heard.look()
    assert heard.facts().settling
    heard.then = lambda: None
    await heard.look()
    assert not heard.facts().settling


async def test_a_session_that_was_opened_anew_is_told_although_the_verdict_is_the_same(heard: Heard) -> None:
    """Who looked in between was turned away and waits: with the same answer at the end nobody would wake it."""
    await heard.look()
    await heard._close_session()
    heard.lane.session = object()  # type: ignore[assignment]
    assert await heard.look() == 1


async def test_a_circuit_that_opened_and_closed_between_two_rounds_is_told(heard: Heard) -> None:
    await heard.look()
    heard._woken.clear()

    async def fails(_: Any) -> None:
        raise Unavailable("down")

    for _ in range(2):
        with pytest.raises(Unavailable):
            await heard.lane.call("get", Slots.OBSERVE, Urgency.REFILL, fails)
    assert heard.lane.breaker.state is Circuit.OPEN
    heard.lane._judge(None)  # one that was in flight all the time
    assert heard.lane.breaker.state is Circuit.CLOSED
    assert heard._woken.is_set()
    assert await heard.look() == 1


async def test_room_is_news_only_where_there_was_none(heard: Heard) -> None:
    await heard.look()
    limit = heard.obj.spec.limits.machines
    taken = iter([1, 5, limit, limit, limit - 1, limit - 2])
    found = []
    for count in taken:
        heard.world.taken = lambda _, count=count: count  # type: ignore[method-assign, misc]
        found.append(await heard.look())
    assert found == [0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("refused", [True, False])
async def test_room_that_a_create_gives_back_is_told_to_whoever_saw_none(heard: Heard, refused: bool) -> None:
    """A pool that looked in between saw no room; no object and no change of what was told would ever wake it."""
    await heard.look()
    heard._woken.clear()
    world: Any = SimpleNamespace(creates=Creates(), views={heard.key: heard})
    world.creates.begin("p1", heard.key)
    with suppress(Conflict), World.ends_create(world, "p1", heard.key):
        assert len(world.creates) == 1, "taken until its object is known"
        if refused:
            raise Conflict("a quota is used up")
    assert len(world.creates) == 0
    assert heard._woken.is_set() is refused
    assert await heard.look() == int(refused), "an object that is there tells of itself"
