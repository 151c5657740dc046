"""Lists that are not whole, and events that never come: what the mirror believes of a real API server."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.kube_help import QUICK
from tests.waiting import until
from vmpool.dev.plane import ControlPlane
from vmpool.kube.client import Client, Page
from vmpool.kube.mirror import Mirror, MirrorSettings, Selection
from vmpool.kube.resource import LEASES, Json

pytestmark = pytest.mark.control_plane

SETTINGS = MirrorSettings(pause_base=timedelta(milliseconds=20), pause_max=timedelta(milliseconds=500))


class Forgetful(Client):
    """Loses the second half of so many lists, and every event about some names."""

    halved = 0
    silent: frozenset[str] = frozenset()

    async def list_page(self, *args: Any, **options: Any) -> Page:
        page = await super().list_page(*args, **options)
        if self.halved == 0:
            return page
        self.halved -= 1
        return Page(page.items[: len(page.items) // 2], page.resource_version, page.continue_)

    async def watch(self, *args: Any, **options: Any) -> AsyncGenerator[tuple[str, Json]]:
        async for kind, obj in super().watch(*args, **options):
            if kind == "BOOKMARK" or obj["metadata"]["name"] not in self.silent:
                yield kind, obj


@pytest.fixture
async def client(plane: ControlPlane) -> AsyncIterator[Forgetful]:
    async with await Forgetful.from_kubeconfig(plane.kubeconfig, settings=QUICK) as made:
        assert isinstance(made, Forgetful)
        yield made


def lease(name: str, holder: str = "nobody") -> Json:
    return {
        "apiVersion": LEASES.api_version,
        "kind": "Lease",
        "metadata": {"name": name},
        "spec": {"holderIdentity": holder},
    }


async def put(client: Client, namespace: str, *names: str) -> None:
    for name in names:
        await client.create(LEASES, namespace, lease(name))


def mirror_of(client: Client, namespace: str, settings: MirrorSettings = SETTINGS) -> Mirror[str]:
    return Mirror(client, Selection(LEASES, namespace), lambda obj: str(obj["spec"]["holderIdentity"]), settings)


def values(mirror: Mirror[str]) -> dict[str, str | None]:
    return {entry.key[1]: entry.fact for entry in mirror}


async def test_the_server_counts_what_there_was_at_a_version(client: Forgetful, namespace: str) -> None:
    names = [f"one-{number}" for number in range(7)]
    await put(client, namespace, *names)
    full = (await client.list_page(LEASES, namespace)).resource_version
    for name in names[:3]:
        found = await client.get(LEASES, namespace, name)
        await client.delete(LEASES, namespace, name, uid=found["metadata"]["uid"])
    page = await client.list_page(LEASES, namespace, 2)
    assert page.continue_
    assert await client.count(LEASES, namespace, page.resource_version) == 4
    assert await client.count(LEASES, namespace, full) == 7


@pytest.mark.parametrize("there", [1, 2, 5])
async def test_a_list_that_lacks_objects_is_read_again(client: Forgetful, namespace: str, there: int) -> None:
    names = [f"one-{number}" for number in range(there)]
    await put(client, namespace, *names)
    client.halved = 1
    mirror = mirror_of(client, namespace)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        running = group.create_task(mirror.run())
        await mirror.synced.wait()
        assert sorted(values(mirror)) == names
        assert (mirror.stats.lists, mirror.stats.miscounts) == (1, 1)
        running.cancel()


async def test_a_server_that_cannot_count_is_believed_in_the_end(
    client: Forgetful, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    await put(client, namespace, "one", "two")
    client.halved = SETTINGS.recounts
    mirror = mirror_of(client, namespace)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        running = group.create_task(mirror.run())
        await mirror.synced.wait()
        assert len(mirror) == 1
        assert mirror.stats.miscounts == SETTINGS.recounts
        running.cancel()
    assert f"leases of {namespace}: listed 1, the server counts 2" in caplog.text


async def test_an_event_that_never_comes_is_made_good_by_the_next_list(client: Forgetful, namespace: str) -> None:
    client.silent = frozenset({"changed", "made", "gone"})
    await put(client, namespace, "changed", "gone")
    mirror = mirror_of(client, namespace, replace(SETTINGS, relist=timedelta(seconds=2)))
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        running = group.create_task(mirror.run())
        await mirror.synced.wait()
        gone = await client.get(LEASES, namespace, "gone")
        await client.delete(LEASES, namespace, "gone", uid=gone["metadata"]["uid"])
        await client.patch_merge(LEASES, namespace, "changed", {"spec": {"holderIdentity": "somebody"}})
        await put(client, namespace, "made", "seen")
        await until(lambda: "seen" in values(mirror), what="an event that is told")
        assert values(mirror)["changed"] == "nobody"
        there = {"changed": "somebody", "made": "nobody", "seen": "nobody"}
        await until(lambda: values(mirror) == there, what="the next list")
        assert mirror.stats.failures == 0
        running.cancel()
