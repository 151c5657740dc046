"""Events against a real API server: what kubectl shows, and how few writes it takes."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tests.kube_help import CONFIGMAPS, client_to, configmap
from tests.planes import Kubectl
from vmpool.dev.plane import ControlPlane
from vmpool.kube.client import Client, RequestSeen
from vmpool.kube.events import EventRecorder, EventSettings, ObjectRef
from vmpool.kube.resource import Json

pytestmark = pytest.mark.control_plane


class Clock:
    """Monotonic time that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, time: timedelta) -> None:
        self.now += time.total_seconds()


@pytest.fixture
def requests() -> list[RequestSeen]:
    return []


@pytest.fixture
async def client(plane: ControlPlane, requests: list[RequestSeen]) -> AsyncIterator[Client]:
    async with client_to(plane, on_request=requests.append) as client:
        yield client


async def about(client: Client, namespace: str, name: str = "a") -> ObjectRef:
    made = await client.create(CONFIGMAPS, namespace, configmap(name))
    return ObjectRef.of(CONFIGMAPS, namespace, name, made["metadata"]["uid"])


def recorder(client: Client, clock: Clock, **bounds: int) -> EventRecorder:
    return EventRecorder(client, "vmpool", "test-1", EventSettings(**bounds), clock)


def events(kubectl: Kubectl, namespace: str) -> list[Json]:
    listed = json.loads(kubectl("get", "events", "-n", namespace, "-o", "json"))["items"]
    return sorted((e for e in listed if e["source"].get("component") == "vmpool"), key=lambda e: str(e["reason"]))


async def test_kubectl_describe_shows_it(client: Client, namespace: str, kubectl: Kubectl) -> None:
    ref = await about(client, namespace)
    events = recorder(client, Clock())
    events.emit(ref, "Warning", "CreateFailed", "no room")
    await events.drain()
    described = kubectl("describe", "configmap", "a", "-n", namespace)
    assert "CreateFailed" in described
    assert "no room" in described


async def test_repetitions_are_counted_with_few_writes(
    client: Client, namespace: str, kubectl: Kubectl, requests: list[RequestSeen]
) -> None:
    ref, clock = await about(client, namespace), Clock()
    told = recorder(client, clock)
    requests.clear()
    for _ in range(50):
        told.emit(ref, "Normal", "Refilled", "made 3")
        await told.drain()
    assert [r.method for r in requests] == ["POST"]
    clock.pass_(EventSettings().patch_every)
    await told.drain()
    await told.drain()
    assert [r.method for r in requests] == ["POST", "PATCH"]
    (event,) = events(kubectl, namespace)
    assert event["count"] == 50

    clock.pass_(EventSettings().window * 2)
    told.emit(ref, "Normal", "Refilled", "made 3")
    await told.drain()
    assert [event["count"] for event in events(kubectl, namespace)] in ([50, 1], [1, 50])


async def test_a_count_whose_event_has_expired_is_told_anew(client: Client, namespace: str, kubectl: Kubectl) -> None:
    ref, clock = await about(client, namespace), Clock()
    told = recorder(client, clock)
    told.emit(ref, "Normal", "Refilled", "made 3")
    await told.drain()
    kubectl("delete", "events", "--all", "-n", namespace)
    told.emit(ref, "Normal", "Refilled", "made 3")
    clock.pass_(EventSettings().patch_every)
    await told.drain()
    assert [event["count"] for event in events(kubectl, namespace)] == [2]


async def test_a_full_queue_drops_its_oldest(client: Client, namespace: str, kubectl: Kubectl) -> None:
    ref = await about(client, namespace)
    told = recorder(client, Clock(), queue=2)
    for reason in ("First", "Second", "Third"):
        told.emit(ref, "Normal", reason, "")
    await told.drain()
    assert [event["reason"] for event in events(kubectl, namespace)] == ["Second", "Third"]
    assert told.dropped == 1


async def test_a_refused_event_harms_nobody(client: Client, namespace: str, kubectl: Kubectl) -> None:
    nowhere = ObjectRef.of(CONFIGMAPS, "no-such-place", "a", "uid-a")
    told = recorder(client, Clock())
    told.emit(nowhere, "Normal", "Lost", "")
    told.emit(await about(client, namespace), "Normal", "Kept", "")
    await told.drain()
    assert [event["reason"] for event in events(kubectl, namespace)] == ["Kept"]
    assert told.refused == 1


async def test_an_object_without_a_namespace_has_events(client: Client, namespace: str, kubectl: Kubectl) -> None:
    uid = json.loads(kubectl("get", "namespace", namespace, "-o", "json"))["metadata"]["uid"]
    told = recorder(client, Clock())
    told.emit(ObjectRef("v1", "Namespace", None, namespace, uid), "Normal", "Seen", "x" * 5000)
    await told.drain()
    assert told.refused == 0
    assert "Seen" in kubectl("describe", "namespace", namespace) or "Seen" in kubectl(
        "get", "events", "-n", "default", "--field-selector", f"involvedObject.uid={uid}"
    )
