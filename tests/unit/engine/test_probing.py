"""Probes: what counts as an answer, and a loop that tells the pool about silence only."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.plan.worlds import EAST, NOW, RUNNING, ago, claim, spec, vm
from vmpool.engine import probing
from vmpool.engine.loop import Done
from vmpool.engine.probing import ProbeLoop, answers
from vmpool.engine.sights import Sights
from vmpool.plan.snapshot import VM, PoolFacts
from vmpool.settings import Settings
from vmpool.telemetry.metrics import Metrics

QUICK, PATIENT = 0.05, 10.0


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A port of 127.0.0.1 and ::1 that accepts."""
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        number = server.sockets[0].getsockname()[1]
        async with await asyncio.start_server(lambda _, writer: writer.close(), "::1", number):
            yield number


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost"])
async def test_a_connection_that_is_accepted_is_an_answer(port: int, address: str) -> None:
    assert await answers(address, port, PATIENT)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost", "no such name", "a\0b", "", "1.2.3"])
async def test_whatever_else_happens_is_none(address: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can
        assert not await answers(address, taken.getsockname()[1], QUICK)


async def test_a_full_backlog_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first connections wait to be accepted; those after them get no answer at all."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        number = deaf.getsockname()[1]
        with socket.create_connection(("127.0.0.1", number)):
            assert not await answers("127.0.0.1", number, QUICK)


async def test_a_family_that_the_host_lacks_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(97, "address family not supported")

    monkeypatch.setattr(socket, "socket", refuse)
    assert not await answers("fd00::1", 22, QUICK)


# --- the loop -----------------------------------------------------------------------------------------------------


@dataclass
class World:
    """As much of the world as the loop asks for."""

    vms: dict[str, VM]
    facts: PoolFacts | None
    settings: Settings = field(default_factory=Settings)
    metrics: Metrics = field(default_factory=Metrics)
    sights: Sights = field(default_factory=Sights)
    probes: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    reachable: bool = True
    why: str = ""
    woken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        facts = SimpleNamespace(facts=lambda: SimpleNamespace(reachable=self.reachable))
        self.views = {(one.namespace, one.provider): facts for one in self.vms.values()}

    def now(self) -> datetime:
        return NOW

    def pool(self, uid: str) -> PoolFacts | None:
        return self.facts

    def vm(self, uid: str) -> VM | None:
        return self.vms.get(uid)

    def vms_of_pool(self, uid: str) -> tuple[VM, ...]:
        return tuple(self.vms.values())

    def doubt(self) -> str:
        return self.why

    def wake_pool(self, uid: str) -> None:
        self.woken.append(uid)


PROBED = spec(readiness={"tcpSocket": {"port": 22}})


def world(**changes: Any) -> World:
    vms = [vm(f"r{number}", provider=EAST, phase_since=ago(days=1)) for number in range(5)]
    made = World({one.uid: one for one in vms}, PoolFacts("u", "ns", "p", 1, PROBED, None), **changes)  # type: ignore[arg-type]
    for one in vms:
        made.sights._by_uid[one.uid] = replace(RUNNING, probed_at=ago(hours=1))
    return made


def loop(made: World) -> ProbeLoop:
    return ProbeLoop(made, made.facts)  # type: ignore[arg-type]


def hear(monkeypatch: pytest.MonkeyPatch, *silent: str, then: Any = lambda: None) -> list[str]:
    asked: list[str] = []

    async def answer(address: str, port: int, timeout: float) -> bool:
        asked.append(address)
        then()
        return address not in silent

    monkeypatch.setattr(probing, "answers", answer)
    return asked


async def test_answers_as_expected_are_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = world(), hear(monkeypatch)
    due = await loop(made).round(NOW)
    assert len(asked) == 5
    assert made.woken == []
    assert {made.sights.of(uid).probed_at for uid in made.vms} == {NOW}
    assert due is not None
    assert NOW < due <= NOW + PROBED.readiness.interval


async def test_silence_is_counted_and_wakes_the_pool_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = world()
    hear(monkeypatch, *(one.addresses[0] for one in made.vms.values()))
    await loop(made).round(NOW)
    assert made.woken == ["u"]
    assert {made.sights.of(uid).probe_failures for uid in made.vms} == {1}


async def test_an_answer_about_a_vm_that_was_taken_in_between_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = world(settings=Settings(probes_in_flight=1))

    def all_are_claimed() -> None:
        made.vms |= {uid: replace(one, claim=claim()) for uid, one in made.vms.items()}

    asked = hear(monkeypatch, *(one.addresses[0] for one in made.vms.values()), then=all_are_claimed)
    await loop(made).round(NOW)
    assert len(asked) == 1, "the others are not asked any more"
    assert {made.sights.of(uid).probe_failures for uid in made.vms} == {0}
    assert made.woken == []


@pytest.mark.parametrize(
    ("changes", "pool"),
    [
        ({"reachable": False}, {}),
        ({"why": "the clock differs"}, {}),
        ({}, {"deleting": True}),
        ({}, {"spec": spec(readiness={"tcpSocket": {"port": 22}}, paused=True)}),
        ({}, {"spec": spec()}),
    ],
)
async def test_nothing_is_probed_where_silence_would_say_nothing(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], pool: dict[str, Any]
) -> None:
    made, asked = world(**changes), hear(monkeypatch)
    assert made.facts is not None
    made.facts = replace(made.facts, **pool)
    await loop(made).round(NOW)
    assert asked == []


async def test_the_loop_ends_with_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    made = world()
    probes = loop(made)
    made.facts = None
    with pytest.raises(Done):
        await probes.round(NOW)


async def test_a_mistake_stops_all_workers_and_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    made = world()
    silent = next(iter(made.vms.values())).addresses[0]
    calls = iter(range(100))

    def break_third() -> None:
        if next(calls) == 2:
            raise RuntimeError("a mistake")

    hear(monkeypatch, silent, then=break_third)
    with pytest.raises(ExceptionGroup):
        await loop(made).round(NOW + timedelta(seconds=1))
    assert made.woken == ["u"]
    assert made.probes._value == 2, "no worker is left behind"
