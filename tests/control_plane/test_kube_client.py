"""The client against a real API server: typed errors, preconditions, and answers that never came."""

import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.kube_help import CONFIGMAPS, NAMESPACES, QUICK, client_to, configmap, crd, proxy_to
from tests.planes import Kubectl
from tests.proxy import Proxy
from tests.waiting import until
from vmpool.dev.plane import ControlPlane
from vmpool.kube.client import Client, RequestSeen
from vmpool.kube.errors import (
    AlreadyExists,
    BadRequest,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KindNotFound,
    NamespaceTerminating,
    NotFound,
    OutcomeUnknown,
    Unauthorized,
    Unreachable,
)
from vmpool.kube.resource import Resource

pytestmark = pytest.mark.control_plane

GROUP = "client.test"
WIDGETS = Resource(GROUP, "v1", "widgets", "Widget")


@pytest.fixture(scope="module")
def widgets(kubectl: Kubectl) -> Iterator[None]:
    kubectl("apply", "--filename=-", input=json.dumps(crd(GROUP)))
    kubectl("wait", "--for=condition=Established", "--timeout=60s", f"crd/widgets.{GROUP}")
    yield
    kubectl("delete", f"crd/widgets.{GROUP}", "--wait=false")


@pytest.fixture
async def client(plane: ControlPlane) -> AsyncIterator[Client]:
    async with client_to(plane) as client:
        yield client


@pytest.fixture
async def proxy(plane: ControlPlane) -> AsyncIterator[Proxy]:
    async with proxy_to(plane) as proxy:
        yield proxy


@pytest.fixture
async def far(plane: ControlPlane, proxy: Proxy, tmp_path: Path) -> AsyncIterator[Client]:
    """A client whose way leads through ``proxy``."""
    async with client_to(plane, proxy, folder=tmp_path) as client:
        yield client


def widget(name: str, size: int) -> dict[str, object]:
    return {"apiVersion": f"{GROUP}/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"size": size}}


async def test_an_object_lives_and_dies(client: Client, namespace: str) -> None:
    made = await client.create(CONFIGMAPS, namespace, configmap("a", x="1"))
    patched = await client.patch_merge(CONFIGMAPS, namespace, "a", {"data": {"y": "2"}})
    assert patched["data"] == {"x": "1", "y": "2"}
    tested = [{"op": "test", "path": "/data/y", "value": "2"}, {"op": "remove", "path": "/data/y"}]
    assert (await client.patch_json(CONFIGMAPS, namespace, "a", tested))["data"] == {"x": "1"}
    with pytest.raises(Invalid):
        await client.patch_json(CONFIGMAPS, namespace, "a", tested[:1])
    assert (await client.get(CONFIGMAPS, namespace, "a"))["data"] == {"x": "1"}
    uid = made["metadata"]["uid"]
    assert await client.delete(CONFIGMAPS, namespace, "a", uid=uid) is None
    with pytest.raises(NotFound) as missing:
        await client.get(CONFIGMAPS, namespace, "a")
    assert (missing.value.name, missing.value.kind) == ("a", "configmaps")


async def test_every_write_says_who_made_it(client: Client, namespace: str) -> None:
    made = await client.create(CONFIGMAPS, namespace, configmap("a", x="1"))
    assert {field["manager"] for field in made["metadata"]["managedFields"]} == {"vmpool-operator"}


async def test_a_finalizer_holds_the_object(client: Client, namespace: str) -> None:
    body = configmap("held") | {"metadata": {"name": "held", "finalizers": ["client.test/hold"]}}
    uid = (await client.create(CONFIGMAPS, namespace, body))["metadata"]["uid"]
    held = await client.delete(CONFIGMAPS, namespace, "held", uid=uid)
    assert held is not None
    assert held["metadata"]["deletionTimestamp"]
    await client.patch_merge(CONFIGMAPS, namespace, "held", {"metadata": {"finalizers": None}})


async def test_a_delete_never_touches_another_object(client: Client, namespace: str) -> None:
    await client.create(CONFIGMAPS, namespace, configmap("a"))
    with pytest.raises(Conflict):
        await client.delete(CONFIGMAPS, namespace, "a", uid="11111111-2222-3333-4444-555555555555")
    assert await client.get(CONFIGMAPS, namespace, "a")


async def test_a_delete_can_insist_on_a_version(client: Client, namespace: str) -> None:
    metadata = (await client.create(CONFIGMAPS, namespace, configmap("a")))["metadata"]
    await client.patch_merge(CONFIGMAPS, namespace, "a", {"data": {"x": "1"}})
    with pytest.raises(Conflict):
        await client.delete(
            CONFIGMAPS, namespace, "a", uid=metadata["uid"], resource_version=metadata["resourceVersion"]
        )


async def test_a_write_on_an_old_version_is_a_conflict(client: Client, namespace: str) -> None:
    old = (await client.create(CONFIGMAPS, namespace, configmap("a")))["metadata"]["resourceVersion"]
    await client.patch_merge(CONFIGMAPS, namespace, "a", {"data": {"x": "1"}})
    with pytest.raises(Conflict):
        await client.patch_merge(CONFIGMAPS, namespace, "a", {"metadata": {"resourceVersion": old}, "data": {"x": "2"}})


async def test_a_taken_name_is_not_a_conflict(client: Client, namespace: str) -> None:
    await client.create(CONFIGMAPS, namespace, configmap("a"))
    with pytest.raises(AlreadyExists):
        await client.create(CONFIGMAPS, namespace, configmap("a"))


async def test_a_refused_object_names_its_causes(client: Client, namespace: str, widgets: None) -> None:
    with pytest.raises(Invalid) as refused:
        await client.create(WIDGETS, namespace, widget("w", size=11))
    (cause,) = refused.value.causes
    assert (cause.field, cause.reason) == ("spec", "FieldValueInvalid")
    assert "too big" in cause.message


async def test_another_uid_is_an_invalid_field(client: Client, namespace: str) -> None:
    await client.create(CONFIGMAPS, namespace, configmap("a"))
    with pytest.raises(Invalid) as refused:
        await client.patch_merge(CONFIGMAPS, namespace, "a", {"metadata": {"uid": "other"}, "data": {"x": "1"}})
    assert {cause.field for cause in refused.value.causes} == {"metadata.uid"}


async def test_the_status_has_its_own_door(client: Client, namespace: str, widgets: None) -> None:
    await client.create(WIDGETS, namespace, widget("w", size=1))
    await client.patch_merge(WIDGETS, namespace, "w", {"status": {"ok": True}, "spec": {"size": 2}}, "status")
    seen = await client.get(WIDGETS, namespace, "w")
    assert (seen["status"], seen["spec"]) == ({"ok": True}, {"size": 1})


async def test_apply_respects_what_others_own_unless_forced(client: Client, namespace: str) -> None:
    await client.create(CONFIGMAPS, namespace, configmap("a", x="theirs"))
    ours = configmap("a", x="ours")
    async with await _other(client) as other:
        with pytest.raises(Conflict):
            await other.apply(CONFIGMAPS, namespace, "a", ours)
        assert (await other.apply(CONFIGMAPS, namespace, "a", ours, force=True))["data"] == {"x": "ours"}


async def _other(client: Client) -> Client:
    settings = dataclasses.replace(QUICK, field_manager="somebody-else")
    return Client(client.api.configuration, settings)


async def test_a_missing_kind_is_not_a_missing_object(client: Client, namespace: str) -> None:
    with pytest.raises(KindNotFound):
        await client.get(Resource("nobody.test", "v1", "things", "Thing"), namespace, "a")
    with pytest.raises(KindNotFound):
        await client.get(Resource("", "v1", "things", "Thing"), namespace, "a")


async def test_a_kind_that_has_gone_is_not_a_missing_object(client: Client, namespace: str, kubectl: Kubectl) -> None:
    kubectl("apply", "--filename=-", input=json.dumps(crd("shortlived.test")))
    kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/widgets.shortlived.test")
    kubectl("delete", "crd/widgets.shortlived.test", "--timeout=60s")

    async def kind_is_missed() -> bool:
        try:
            await client.get(Resource("shortlived.test", "v1", "widgets", "Widget"), namespace, "a")
        except KindNotFound:
            return True
        except NotFound:
            return False  # the server learns of its own deletion a moment later
        raise AssertionError("an object that never was")

    await until(kind_is_missed, what="the kind to be missed")


async def test_a_missing_namespace_is_named(client: Client) -> None:
    with pytest.raises(NotFound) as missing:
        await client.create(CONFIGMAPS, "no-such-place", configmap("a"))
    assert (missing.value.kind, missing.value.name) == ("namespaces", "no-such-place")


async def test_a_namespace_that_is_going_is_told_from_missing_rights(client: Client, namespace: str) -> None:
    body = configmap("held") | {"metadata": {"name": "held", "finalizers": ["client.test/hold"]}}
    await client.create(CONFIGMAPS, namespace, body)
    uid = (await client.get(NAMESPACES, None, namespace))["metadata"]["uid"]
    await client.delete(NAMESPACES, None, namespace, uid=uid)
    with pytest.raises(NamespaceTerminating):
        await client.create(CONFIGMAPS, namespace, configmap("late"))
    await client.patch_merge(CONFIGMAPS, namespace, "held", {"metadata": {"finalizers": None}})


async def test_who_may_not_and_who_is_unknown(
    plane: ControlPlane, namespace: str, kubectl: Kubectl, tmp_path: Path
) -> None:
    kubectl("create", "serviceaccount", "poor", "-n", namespace)
    token = kubectl("create", "token", "poor", "-n", namespace).strip()
    for name, credential, error in (("poor", token, Forbidden), ("stranger", "nonsense", Unauthorized)):
        path = tmp_path / name
        path.write_text(plane.kubeconfig.read_text().replace(plane.token, credential))
        async with await Client.from_kubeconfig(path, settings=QUICK) as client:
            with pytest.raises(error) as refused:
                await client.list_page(CONFIGMAPS, namespace)
            assert not isinstance(refused.value, NamespaceTerminating)


async def test_pages_show_one_moment(client: Client, namespace: str) -> None:
    for name in "abcde":
        await client.create(CONFIGMAPS, namespace, configmap(name))
    names, versions = [], set()
    async for page in client.list_pages(CONFIGMAPS, namespace, limit=2):
        assert len(page.items) <= 2
        names += [item["metadata"]["name"] for item in page.items]
        versions.add(page.resource_version)
        await client.create(CONFIGMAPS, namespace, configmap(f"z{len(names)}"))
    ours = [name for name in names if len(name) == 1]
    assert (ours, len(versions)) == (list("abcde"), 1)
    assert not [name for name in names if name.startswith("z")]


async def test_a_foreign_continue_token_is_refused(client: Client, namespace: str) -> None:
    with pytest.raises((BadRequest, Gone)):
        await client.list_page(CONFIGMAPS, namespace, continue_="abc")


async def test_selectors_select(client: Client, namespace: str) -> None:
    for name in "ab":
        await client.create(CONFIGMAPS, namespace, configmap(name))
    page = await client.list_page(CONFIGMAPS, namespace, field_selector="metadata.name=b")
    assert [item["metadata"]["name"] for item in page.items] == ["b"]


async def test_requests_are_counted_and_the_clocks_compared(plane: ControlPlane, namespace: str) -> None:
    seen: list[RequestSeen] = []
    async with client_to(plane, on_request=seen.append) as client:
        assert client.clock_skew is None
        await client.create(CONFIGMAPS, namespace, configmap("a"))
        with pytest.raises(NotFound):
            await client.get(CONFIGMAPS, namespace, "b")
        assert client.clock_skew is not None
        assert abs(client.clock_skew) < timedelta(seconds=3)
    assert [(r.method, r.plural, r.status) for r in seen] == [("POST", "configmaps", 201), ("GET", "configmaps", 404)]
    assert all(r.seconds > 0 for r in seen)


async def test_a_write_whose_answer_is_lost_is_in_doubt_and_done_once(
    far: Client, client: Client, proxy: Proxy, namespace: str
) -> None:
    await far.create(CONFIGMAPS, namespace, configmap("a"))
    proxy.cut_next_reply()
    with pytest.raises(OutcomeUnknown):
        await far.patch_merge(CONFIGMAPS, namespace, "a", {"data": {"x": "1"}})
    assert (await client.get(CONFIGMAPS, namespace, "a"))["data"] == {"x": "1"}


async def test_a_write_that_hangs_is_in_doubt(
    plane: ControlPlane, proxy: Proxy, namespace: str, tmp_path: Path
) -> None:
    settings = dataclasses.replace(QUICK, request_timeout=timedelta(milliseconds=500))
    async with client_to(plane, proxy, settings, folder=tmp_path) as far:
        await far.list_page(CONFIGMAPS, namespace)
        proxy.freeze()
        with pytest.raises(OutcomeUnknown):
            await far.create(CONFIGMAPS, namespace, configmap("a"))


async def test_a_read_whose_answer_is_lost_is_asked_again(
    far: Client, client: Client, proxy: Proxy, namespace: str
) -> None:
    await far.create(CONFIGMAPS, namespace, configmap("a", x="1"))
    proxy.cut_next_reply()
    assert (await far.get(CONFIGMAPS, namespace, "a"))["data"] == {"x": "1"}


async def test_a_write_that_never_left_is_not_in_doubt(far: Client, proxy: Proxy, namespace: str) -> None:
    proxy.close_door()
    with pytest.raises(Unreachable):
        await far.create(CONFIGMAPS, namespace, configmap("a"))
    assert proxy.connections >= QUICK.tries
    proxy.open_door()
    assert await far.create(CONFIGMAPS, namespace, configmap("a"))


async def test_a_watch_of_a_missing_kind_is_typed(client: Client, namespace: str) -> None:
    things = Resource("nobody.test", "v1", "things", "Thing")
    with pytest.raises(KindNotFound):
        async for _ in client.watch(things, namespace, "1", timedelta(seconds=5), timedelta(seconds=5)):
            pass


async def test_a_kubeconfig_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="kubeconfig"):
        await Client.from_kubeconfig(tmp_path / "nowhere")
