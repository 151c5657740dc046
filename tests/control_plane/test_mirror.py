"""The mirror against a real API server, through a connection that is cut, frozen and held back."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.kube_help import CONFIGMAPS, QUICK, client_to, configmap, crd, proxy_to
from tests.planes import Kubectl
from tests.proxy import Proxy
from tests.waiting import until
from vmpool.dev.plane import ControlPlane
from vmpool.dev.state import API_SERVER
from vmpool.kube.client import Client
from vmpool.kube.errors import Forbidden, Gone, KindNotFound
from vmpool.kube.mirror import Change, Mirror, MirrorSettings, MirrorStale, Selection
from vmpool.kube.resource import Json, Resource

pytestmark = pytest.mark.control_plane

SETTINGS = MirrorSettings(pause_base=timedelta(milliseconds=20), pause_max=timedelta(milliseconds=500))
IDLE = replace(SETTINGS, silence=timedelta(milliseconds=300), max_age=timedelta(seconds=2))


def project(obj: Json) -> str:
    """The value of ``x``; objects without data cannot be projected."""
    value: str = obj["data"]["x"]
    return value


def mirror_of(client: Client, namespace: str | None, settings: MirrorSettings = SETTINGS) -> Mirror[str]:
    # Every namespace is given this one by its controller, at any time: without it, all changes are the test's own.
    selection = Selection(CONFIGMAPS, namespace, field_selector="metadata.name!=kube-root-ca.crt")
    return Mirror(client, selection, project, settings, {"value": lambda x: x})


@asynccontextmanager
async def following(*mirrors: Mirror[str]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(mirror.run()) for mirror in mirrors]
    synced = asyncio.gather(*(mirror.synced.wait() for mirror in mirrors))
    try:
        async with asyncio.timeout(20):
            await asyncio.wait([synced, *tasks], return_when=asyncio.FIRST_COMPLETED)
            assert synced.done(), [task.exception() for task in tasks if task.done()]
        yield
        assert not any(task.done() for task in tasks), "a mirror has ended"
    finally:
        for task in (synced, *tasks):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


@pytest.fixture
async def proxy(plane: ControlPlane) -> AsyncIterator[Proxy]:
    async with proxy_to(plane) as proxy:
        yield proxy


@pytest.fixture
async def client(plane: ControlPlane) -> AsyncIterator[Client]:
    """Straight to the server: what others do there."""
    async with client_to(plane) as client:
        yield client


@pytest.fixture
async def far(plane: ControlPlane, proxy: Proxy, tmp_path: Path) -> AsyncIterator[Client]:
    """The mirror's way, through ``proxy``."""
    async with client_to(plane, proxy, folder=tmp_path) as client:
        yield client


def values(mirror: Mirror[str]) -> dict[str, str | None]:
    return {entry.key[1]: entry.fact for entry in mirror}


async def set_x(client: Client, namespace: str, name: str, x: str) -> Json:
    return await client.patch_merge(CONFIGMAPS, namespace, name, {"data": {"x": x}})


async def test_the_picture_follows_and_finds(client: Client, namespace: str) -> None:
    for name in "abcde":
        await client.create(CONFIGMAPS, namespace, configmap(name, x="old"))
    mirror = mirror_of(client, namespace, replace(SETTINGS, page_limit=2))
    changes: list[Change[str]] = []
    mirror.on_change(changes.append)
    async with following(mirror):
        assert values(mirror) == dict.fromkeys("abcde", "old")
        assert {change.kind for change in changes} == {"added"}
        changes.clear()

        made = await set_x(client, namespace, "a", "new")
        await until(lambda: mirror.by_index("value", "new"), what="the change to be seen")
        (entry,) = mirror.by_index("value", "new")
        assert entry == mirror.by_name(namespace, "a") == mirror.by_uid(made["metadata"]["uid"])
        assert len(mirror.by_index("value", "old")) == 4

        await client.delete(CONFIGMAPS, namespace, "b", uid=uid_of(mirror, namespace, "b"))
        await until(lambda: mirror.by_name(namespace, "b") is None, what="the deletion to be seen")
        assert [(c.kind, c.entry.key[1], c.old and c.old.fact, c.new and c.new.fact) for c in changes] == [
            ("modified", "a", "old", "new"),
            ("deleted", "b", "old", None),
        ]
        assert mirror.age() < 20
    assert mirror.stats.lists == 1


def uid_of(mirror: Mirror[str], namespace: str, name: str) -> str:
    entry = mirror.by_name(namespace, name)
    assert entry is not None
    return entry.uid


async def test_one_namespace_or_all(client: Client, namespace: str, kubectl: Kubectl) -> None:
    other = f"{namespace}-b"
    kubectl("create", "namespace", other)
    narrow, wide = mirror_of(client, namespace), mirror_of(client, None)
    async with following(narrow, wide):
        for place in (namespace, other):
            await client.create(CONFIGMAPS, place, configmap("a", x=place))
        await until(lambda: wide.by_name(namespace, "a") and wide.by_name(other, "a"), what="both to be seen")
        await until(lambda: narrow.by_name(namespace, "a"), what="ours to be seen")
        assert narrow.by_name(other, "a") is None
    kubectl("delete", "namespace", other, "--wait=false")


async def test_what_vanished_while_nobody_watched_is_noticed(
    far: Client, client: Client, proxy: Proxy, namespace: str
) -> None:
    for name in "ab":
        await client.create(CONFIGMAPS, namespace, configmap(name, x="1"))
    mirror = mirror_of(far, namespace)
    gone: list[str] = []
    async with following(mirror):
        mirror.on_change(lambda change: gone.append(change.entry.key[1]) if change.kind == "deleted" else None)
        proxy.close_door()
        await client.delete(CONFIGMAPS, namespace, "a", uid=uid_of(mirror, namespace, "a"))
        await client.delete(CONFIGMAPS, namespace, "b", uid=uid_of(mirror, namespace, "b"))
        again = await client.create(CONFIGMAPS, namespace, configmap("b", x="2"))
        assert set(values(mirror)) == {"a", "b"}
        proxy.open_door()
        await until(lambda: values(mirror) == {"b": "2"}, what="the gap to be noticed")
    assert sorted(gone) == ["a", "b"]
    assert uid_of(mirror, namespace, "b") == again["metadata"]["uid"]


async def test_own_writes_are_seen_at_once_and_not_rolled_back(
    far: Client, client: Client, proxy: Proxy, namespace: str
) -> None:
    await client.create(CONFIGMAPS, namespace, configmap("a", x="0"))
    mirror = mirror_of(far, namespace)
    shown: list[str | None] = []
    async with following(mirror):
        mirror.on_change(lambda change: shown.append(change.entry.fact))
        proxy.freeze()
        for x in ("1", "2"):
            await set_x(client, namespace, "a", x)
        last = await set_x(client, namespace, "a", "3")
        mirror.saw(last)
        assert values(mirror) == {"a": "3"}
        proxy.thaw()
        version = int(last["metadata"]["resourceVersion"])
        await until(lambda: mirror.progress >= version, what="the watch to catch up")
    assert shown == ["3"]


async def test_own_deletions_stay_deleted(far: Client, client: Client, proxy: Proxy, namespace: str) -> None:
    uid = (await client.create(CONFIGMAPS, namespace, configmap("a", x="0")))["metadata"]["uid"]
    mirror = mirror_of(far, namespace)
    shown: list[tuple[str, str]] = []
    async with following(mirror):
        mirror.on_change(lambda change: shown.append((change.kind, change.entry.key[1])))
        proxy.freeze()
        late = await set_x(client, namespace, "a", "1")
        assert await client.delete(CONFIGMAPS, namespace, "a", uid=uid) is None
        mirror.saw_deleted(uid)
        mirror.saw(late)
        assert (values(mirror), mirror.unconfirmed_deletions) == ({}, 1)
        proxy.thaw()
        await until(lambda: mirror.unconfirmed_deletions == 0, what="the watch to confirm the deletion")
        mirror.saw(late)
        assert values(mirror) == {}
    assert shown == [("deleted", "a")]


async def test_the_answer_that_drops_the_last_finalizer_is_a_deletion(client: Client, namespace: str) -> None:
    body = configmap("a", x="1")
    body["metadata"]["finalizers"] = ["mirror.test/hold"]
    uid = (await client.create(CONFIGMAPS, namespace, body))["metadata"]["uid"]
    mirror = mirror_of(client, namespace)
    async with following(mirror):
        held = await client.delete(CONFIGMAPS, namespace, "a", uid=uid)
        assert held is not None
        mirror.saw(held)
        assert set(values(mirror)) == {"a"}
        mirror.saw(await client.patch_merge(CONFIGMAPS, namespace, "a", {"metadata": {"finalizers": None}}))
        assert values(mirror) == {}


async def test_a_quorum_read_is_learned(far: Client, client: Client, proxy: Proxy, namespace: str) -> None:
    await client.create(CONFIGMAPS, namespace, configmap("a", x="0"))
    mirror = mirror_of(client, namespace)
    async with following(mirror):
        await set_x(client, namespace, "a", "1")
        assert (await mirror.quorum_get(namespace, "a"))["data"] == {"x": "1"}
        assert values(mirror) == {"a": "1"}


async def test_bookmarks_advance_the_version_of_an_idle_kind(client: Client, namespace: str) -> None:
    mirror = mirror_of(client, namespace, replace(SETTINGS, watch_timeout=timedelta(seconds=4)))
    async with following(mirror):
        elsewhere = await client.create(CONFIGMAPS, "default", configmap(f"beside-{namespace}"))
        metadata = elsewhere["metadata"]
        await until(lambda: mirror.progress >= int(metadata["resourceVersion"]), what="a bookmark")
        watches = mirror.stats.watches
        await until(lambda: mirror.stats.watches > watches, what="the watch to be opened again")
        assert mirror.stats.bookmarks > 0
        assert mirror.stats.lists == 1, "a clean end is resumed, not listed again"
    await client.delete(CONFIGMAPS, "default", metadata["name"], uid=metadata["uid"])


async def test_an_idle_kind_is_listed_again_instead_of_growing_old(client: Client, namespace: str) -> None:
    mirror = mirror_of(client, namespace, IDLE)
    async with following(mirror):
        await until(lambda: mirror.stats.lists > 8, what="several silences")
        assert mirror.age() < IDLE.max_age.total_seconds()
        assert not mirror.regressed


async def test_a_connection_that_lets_nothing_through_ends_the_mirror(
    far: Client, proxy: Proxy, namespace: str
) -> None:
    mirror = mirror_of(far, namespace, IDLE)
    running = asyncio.create_task(mirror.run())
    await until(mirror.synced.is_set, what="the first list")
    proxy.freeze()
    with pytest.raises(MirrorStale):
        async with asyncio.timeout(20):
            await running
    assert mirror.stats.failures > 0, "the silent watch was given up first"
    assert mirror.age() >= IDLE.max_age.total_seconds()


async def test_a_server_that_was_away_for_a_moment_is_followed_again(
    far: Client, client: Client, proxy: Proxy, namespace: str
) -> None:
    mirror = mirror_of(far, namespace)
    async with following(mirror):
        for x in range(3):
            proxy.cut()
            await client.create(CONFIGMAPS, namespace, configmap(f"a{x}", x="1"))
            await until(lambda: mirror.by_name(namespace, f"a{x}"), what="the new object")  # noqa: B023


async def test_a_killed_server_and_a_version_it_has_forgotten(
    plane: ControlPlane, client: Client, namespace: str
) -> None:
    old = await client.create(CONFIGMAPS, namespace, configmap("a", x="0"))
    mirror = mirror_of(client, namespace, replace(SETTINGS, watch_timeout=timedelta(seconds=2)))
    async with following(mirror):
        await set_x(client, namespace, "a", "0.5")
        plane.kill(API_SERVER)
        await asyncio.to_thread(plane.start_component, API_SERVER)
        await set_x(client, namespace, "a", "1")
        await until(lambda: values(mirror) == {"a": "1"}, what="the mirror to go on")

        with pytest.raises(Gone):
            async for _ in client.watch(
                CONFIGMAPS, namespace, old["metadata"]["resourceVersion"], timedelta(seconds=5), timedelta(seconds=5)
            ):
                pass
        # A mirror falls so far behind only while nobody can look; so it is put there, at a clean end of its watch.
        lists = mirror.stats.lists
        mirror._store.progress = 1
        await until(lambda: mirror.stats.lists > lists, what="the server to say 410")
        await set_x(client, namespace, "a", "2")
        await until(lambda: values(mirror) == {"a": "2"}, what="the mirror to go on")


async def test_a_server_that_went_back_in_time_is_found_out(
    far: Client, client: Client, proxy: Proxy, namespace: str
) -> None:
    await client.create(CONFIGMAPS, namespace, configmap("a", x="0"))
    mirror = mirror_of(far, namespace)
    alarms: list[dict[str, str | None]] = []
    async with following(mirror):
        mirror.on_regression(lambda: alarms.append(values(mirror)))
        # What the mirror would know of a server that has since been restored from a backup.
        ghost = configmap("ghost", x="9")
        ghost["metadata"] |= {"uid": "ghost", "namespace": namespace, "resourceVersion": "1000000000"}
        mirror.saw(ghost)
        assert not mirror.regressed
        await until(lambda: proxy.cut() or mirror.regressed, what="the regression to be noticed")
        assert values(mirror) == {"a": "0"}
        lists = mirror.stats.lists
        await until(lambda: proxy.cut() or mirror.stats.lists > lists, what="another list")
    assert (alarms, mirror.stats.regressions) == ([{"a": "0", "ghost": "9"}], 1)


async def test_an_object_that_cannot_be_projected_is_kept_without_a_fact(
    client: Client, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    uid = (await client.create(CONFIGMAPS, namespace, configmap("odd", y="1")))["metadata"]["uid"]
    await client.create(CONFIGMAPS, namespace, configmap("even", x="1"))
    mirror = mirror_of(client, namespace, IDLE)
    async with following(mirror):
        assert values(mirror) == {"odd": None, "even": "1"}
        assert "KeyError" in mirror.broken[uid]
        await until(lambda: mirror.stats.lists > 2, what="it to be listed again")
        assert len([record for record in caplog.records if "odd" in record.getMessage()]) == 1
        await set_x(client, namespace, "odd", "2")
        await until(lambda: values(mirror)["odd"] == "2", what="the repaired object")
        assert uid not in mirror.broken


async def test_a_kind_that_stays_unknown_ends_the_mirror(client: Client) -> None:
    nobody = Selection(Resource("nobody.test", "v1", "things", "Thing"))
    mirror = Mirror(client, nobody, project, replace(SETTINGS, missing_grace=timedelta(milliseconds=200)))
    with pytest.raises(KindNotFound):
        async with asyncio.timeout(20):
            await mirror.run()


async def test_a_kind_that_comes_in_time_is_followed(client: Client, namespace: str, kubectl: Kubectl) -> None:
    gadgets = Selection(Resource("mirror.test", "v1", "gadgets", "Gadget"), namespace)
    mirror = Mirror(client, gadgets, project, SETTINGS)
    running = asyncio.create_task(mirror.run())
    await until(lambda: mirror.stats.failures > 0, what="the kind to be missed")
    kubectl("apply", "--filename=-", input=json.dumps(crd("mirror.test", "gadgets", "Gadget")))
    await until(mirror.synced.is_set, what="the kind to be served")
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    kubectl("delete", "crd/gadgets.mirror.test", "--wait=false")


async def test_missing_rights_end_the_mirror(
    plane: ControlPlane, namespace: str, kubectl: Kubectl, tmp_path: Path
) -> None:
    kubectl("create", "serviceaccount", "poor", "-n", namespace)
    token = kubectl("create", "token", "poor", "-n", namespace).strip()
    path = tmp_path / "poor"
    path.write_text(plane.kubeconfig.read_text().replace(plane.token, token))
    async with await Client.from_kubeconfig(path, settings=QUICK) as client:
        mirror = mirror_of(client, namespace, replace(SETTINGS, missing_grace=timedelta(milliseconds=200)))
        with pytest.raises(Forbidden):
            async with asyncio.timeout(20):
                await mirror.run()
