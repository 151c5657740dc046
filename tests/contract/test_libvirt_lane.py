"""The threads under the libvirt plug-in: cancelled callers, broken connections, bounds."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from vmpool.providers.errors import MachineNotFound, Throttled

libvirt = pytest.importorskip("libvirt")

from vmpool.providers.libvirt import lane as lanes  # noqa: E402
from vmpool.providers.libvirt.lane import Lane, connect  # noqa: E402


@dataclass
class Link:
    connection: Any


@pytest.fixture
async def links() -> list[Link]:
    return []


@pytest.fixture
async def lane(links: list[Link]) -> AsyncIterator[Lane[Link]]:
    def open_link() -> Link:
        links.append(Link(connect("test:///default")))
        return links[-1]

    made = Lane(open_link)
    yield made
    await made.close()


async def test_calls_run_in_threads_of_the_lane(lane: Lane[Link]) -> None:
    name = await lane.run(lambda _: threading.current_thread().name)
    assert name.startswith("libvirt")


async def test_a_repeated_call_waits_for_the_cancelled_one_to_end(lane: Lane[Link]) -> None:
    began, go_on, order = threading.Event(), threading.Event(), []

    def slow(_: Link) -> None:
        began.set()
        go_on.wait()
        order.append("first")

    first = asyncio.ensure_future(lane.run(slow, alone_with="vm"))
    await asyncio.to_thread(began.wait)
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.ensure_future(lane.run(lambda _: order.append("second"), alone_with="vm"))
    assert await lane.run(lambda _: "other", alone_with="another vm") == "other"
    assert order == []
    go_on.set()
    await second
    assert order == ["first", "second"]


async def test_a_call_cancelled_before_it_began_never_runs(lane: Lane[Link]) -> None:
    began, go_on, ran = threading.Semaphore(0), threading.Event(), []

    def busy(_: Link) -> None:
        began.release()
        go_on.wait()

    all_threads = [asyncio.ensure_future(lane.run(busy)) for _ in range(lanes.THREADS)]
    for _ in all_threads:
        await asyncio.to_thread(began.acquire)
    late = asyncio.ensure_future(lane.run(lambda _: ran.append("late"), alone_with="vm"))
    await asyncio.sleep(0)
    late.cancel()
    await asyncio.wait([late])
    go_on.set()
    await asyncio.gather(*all_threads)
    await lane.run(lambda _: ran.append("next"), alone_with="vm")
    assert ran == ["next"]


async def test_too_many_calls_are_throttled_and_then_not(lane: Lane[Link], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_CALLS", 1)
    go_on = threading.Event()
    only = asyncio.ensure_future(lane.run(lambda _: go_on.wait()))
    await asyncio.sleep(0)
    with pytest.raises(Throttled):
        await lane.run(lambda _: None)
    go_on.set()
    await only
    assert await lane.run(lambda _: "again") == "again"


async def test_errors_are_typed_and_free_the_machine(lane: Lane[Link]) -> None:
    for _ in range(2):
        with pytest.raises(MachineNotFound):
            await lane.run(lambda link: link.connection.lookupByName("nobody"), alone_with="vm")


async def test_one_connection_serves_until_it_breaks(lane: Lane[Link], links: list[Link]) -> None:
    assert await lane.run(lambda link: link.connection.isAlive()) == 1
    assert await lane.run(lambda link: link.connection.isAlive()) == 1
    assert len(links) == 1
    links[0].connection = Broken()
    assert await lane.run(lambda link: link.connection.isAlive()) == 1
    assert len(links) == 2


class Broken:
    """A connection whose far side went away."""

    def isAlive(self) -> int:  # noqa: N802 - libvirt's own spelling
        return 0

    def close(self) -> None:
        raise libvirt.libvirtError("gone")
