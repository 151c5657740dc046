"""The gate on a real API server: without a plan it is not there; with one it breaks exactly what it says."""

import asyncio
import contextlib
import os
import random
import secrets
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest

from tests.api import Api
from tests.faults.gate.client import GatedTrial
from tests.faults.gate.plan import Action, Fault, Kind, Plan, Point, Trigger
from tests.objects import thing
from tests.waiting import until
from vmpool.dev.plane import ControlPlane

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("crds_installed")]

REQUESTS = int(os.environ.get("VMPOOL_TEST_GATE_REQUESTS", "400"))
SEED = 7
OF_THE_MOMENT = {"date", "audit-id", "x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid"}
OF_ONE_HOP = {"content-length", "transfer-encoding"}
"""How one connection frames a body; what is in it is compared byte by byte."""
CREATE = "create deadletterqueues"
PATCH = "patch deadletterqueues spec.ttl"


class Way:
    """One way to the API server: straight, or through the gate."""

    def __init__(self, session: aiohttp.ClientSession, namespace: str) -> None:
        self.session = session
        self.path = f"/apis/vmpool.dev/v1alpha1/namespaces/{namespace}/deadletterqueues"

    async def ask(
        self, method: str, path: str, body: Any = None, kind: str = "application/json"
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers but for those of the moment, and the bytes of the body."""
        data = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": kind} if data else {}
        async with self.session.request(method, path, data=data, headers=headers) as answer:
            kept = {k.lower(): v for k, v in answer.headers.items() if k.lower() not in OF_THE_MOMENT | OF_ONE_HOP}
            return answer.status, kept, await answer.read()

    async def create(self, name: str) -> int:
        return (await self.ask("POST", self.path, thing("DeadLetterQueue", name, {})))[0]

    async def patch(self, name: str, ttl: str) -> int:
        path, kind = f"{self.path}/{name}", "application/merge-patch+json"
        return (await self.ask("PATCH", path, {"spec": {"ttl": ttl}}, kind))[0]

    async def ttl(self, name: str) -> str | None:
        status, _, body = await self.ask("GET", f"{self.path}/{name}")
        return str(orjson.loads(body)["spec"]["ttl"]) if status == 200 else None


@asynccontextmanager
async def way(plane: ControlPlane, url: str, namespace: str) -> AsyncIterator[Way]:
    trust = ssl.create_default_context(cafile=str(plane.ca))
    async with aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(ssl=trust),
        headers={"Authorization": f"Bearer {plane.token}", "User-Agent": "vmpool/test"},
        auto_decompress=False,
        read_bufsize=2**22,
    ) as session:
        yield Way(session, namespace)


@asynccontextmanager
async def gated(
    gate: aiohttp.ClientSession, plane: ControlPlane, namespace: str, *faults: Fault
) -> AsyncIterator[tuple[GatedTrial, Way]]:
    """A trial with these faults, and the way through it."""
    trial = GatedTrial(gate, secrets.token_hex(4))
    await trial.begin(Plan(faults=faults), {"api": plane.url}, ["a"])
    async with way(plane, trial.url("a", "api"), namespace) as made:
        yield trial, made
    await trial.end()


def fault(signature: str, kind: Kind, occurrence: int = 1, **fields: Any) -> Fault:
    return Fault(trigger=Trigger(signature=signature, occurrence=occurrence), action=Action(kind=kind, **fields))


async def test_without_a_plan_the_bytes_are_those_of_the_straight_way(
    gate: aiohttp.ClientSession, plane: ControlPlane, namespace: str, api: Api
) -> None:
    dice = random.Random(SEED)
    straight_names, gated_names = [f"s-{n}" for n in range(20)], [f"g-{n}" for n in range(20)]
    queues = api.kind("deadletterqueues", namespace)
    for name in (*straight_names, *gated_names):
        (await queues.create(thing("DeadLetterQueue", name, {}))).ok()
    async with way(plane, plane.url, namespace) as straight, gated(gate, plane, namespace) as (trial, through):
        for number in range(REQUESTS):
            name = f"s-{dice.randrange(25)}"
            asked = dice.choice(
                [
                    ("GET", f"{straight.path}/{name}", None, ""),
                    ("GET", straight.path, None, ""),
                    ("GET", f"{straight.path}?limit={dice.randint(1, 9)}", None, ""),
                    ("GET", "/apis/vmpool.dev/v1alpha1", None, ""),
                    ("GET", "/no/such/path?x=%2F", None, ""),
                    ("PATCH", f"{straight.path}/{name}", {"spec": {"maxEntries": 0}}, "application/merge-patch+json"),
                    ("DELETE", f"{straight.path}/{name}", {"preconditions": {"uid": "no"}}, "application/json"),
                    ("POST", straight.path, {"not": "valid"}, "application/json"),
                ]
            )
            method, path, body, kind = asked
            first, second = await asyncio.gather(
                straight.ask(method, path, body, kind), through.ask(method, path, body, kind)
            )
            if "continue" not in path and "limit" in path:
                # A continue token is another one each time.
                assert _untoken(first) == _untoken(second), f"request {number}: {asked}"
                continue
            assert first == second, f"request {number}: {asked}"
        told = await trial.trace()
        assert len(told["trace"]) == REQUESTS
        assert not any(entry["changed"] for entry in told["trace"]), "every write was refused"


def _untoken(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, dict[str, str], object]:
    status, headers, body = answer
    page = orjson.loads(body)
    page.get("metadata", {}).pop("continue", None)
    return status, headers, page


@pytest.mark.parametrize(
    ("action", "answer", "stands"),
    [
        ({"kind": Kind.ANSWER, "status": 503}, 503, False),
        ({"kind": Kind.ANSWER, "status": 504, "point": Point.COMMITTED}, 504, True),
        ({"kind": Kind.RESET}, 0, False),
        ({"kind": Kind.RESET, "point": Point.COMMITTED}, 0, True),
        ({"kind": Kind.HANG, "seconds": 0.3}, 0, False),
        ({"kind": Kind.HANG, "seconds": 0.3, "point": Point.COMMITTED}, 0, True),
        ({"kind": Kind.DELAY, "seconds": 0.3}, 200, True),
        ({"kind": Kind.DUPLICATE}, 200, True),
        ({"kind": Kind.TRUNCATE}, 0, True),
    ],
    ids=lambda value: "-".join(str(part) for part in value.values()) if isinstance(value, dict) else None,
)
async def test_a_write_is_broken_once_and_where_the_plan_says(
    gate: aiohttp.ClientSession, plane: ControlPlane, namespace: str, action: dict[str, Any], answer: int, stands: bool
) -> None:
    async with gated(gate, plane, namespace, fault(PATCH, occurrence=2, **action)) as (trial, through):
        assert await through.create("one") == 201
        assert await through.patch("one", "1h") == 200
        began = time.monotonic()
        try:
            status = await through.patch("one", "2h")
        except aiohttp.ClientError:
            status = 0
        assert status == answer
        assert time.monotonic() - began >= action.get("seconds", 0)
        assert await through.ttl("one") == ("2h" if stands else "1h")
        assert await through.patch("one", "3h") == 200
        state = await trial.trace()
        assert state["met"]
        assert [entry["fault"] for entry in state["trace"] if entry["verb"] == "patch"].count("") == 2


@pytest.mark.parametrize("point", list(Point))
async def test_a_kill_is_exact(
    gate: aiohttp.ClientSession, plane: ControlPlane, namespace: str, api: Api, point: Point
) -> None:
    victim = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(600)")
    async with gated(gate, plane, namespace, fault(CREATE, Kind.KILL, point=point)) as (trial, through):
        await trial.runs("a", victim.pid)
        with contextlib.suppress(aiohttp.ClientError):
            status = await through.create("one")
            assert (status, point) == (201, Point.REPLIED)
        async with asyncio.timeout(10):
            assert await victim.wait() == -signal.SIGKILL
        found = await api.kind("deadletterqueues", namespace).get("one")
        assert found.status == (404 if point is Point.BEFORE else 200)


async def test_lists_are_stale_empty_or_half(gate: aiohttp.ClientSession, plane: ControlPlane, namespace: str) -> None:
    listed = "list deadletterqueues"
    faults = [fault(listed, kind, occurrence=number) for number, kind in enumerate((Kind.STALE, Kind.EMPTY), 2)]
    async with gated(gate, plane, namespace, *faults, fault(listed, Kind.PARTIAL)) as (_, through):

        async def names() -> list[str]:
            _, _, body = await through.ask("GET", through.path)
            return sorted(item["metadata"]["name"] for item in orjson.loads(body)["items"])

        await through.create("one")
        assert await names() == ["one"]
        await through.create("two")
        assert await names() == ["one"], "as it was first"
        assert await names() == []
        assert len(await names()) == 1
        assert await names() == ["one", "two"]


async def test_watches_are_broken_at_an_event(
    gate: aiohttp.ClientSession, plane: ControlPlane, namespace: str, api: Api
) -> None:
    queues = api.kind("deadletterqueues", namespace)
    version = (await queues.list()).ok()["metadata"]["resourceVersion"]
    dropped = fault("event deadletterqueues ADDED", Kind.DROP, occurrence=2)
    error = fault("event deadletterqueues ADDED", Kind.ERROR, occurrence=4, status=500)
    async with gated(gate, plane, namespace, dropped, error) as (trial, through):
        for name in "abcd":
            (await queues.create(thing("DeadLetterQueue", name, {}))).ok()
        path = f"{through.path}?watch=1&resourceVersion={version}"
        seen: list[tuple[str, str]] = []
        async with through.session.get(path) as answer:
            async for line in answer.content:
                event = orjson.loads(line)
                seen.append((event["type"], event["object"].get("metadata", {}).get("name", "")))
        assert seen == [("ADDED", "a"), ("ADDED", "c"), ("ERROR", "")]
        told = await trial.trace()
        assert told["met"]
        assert told["metAt"] > 0
        assert [event[3] for event in told["events"]] == [1, 2, 3, 4]


async def test_an_effective_write_is_told_from_one_without_effect(
    gate: aiohttp.ClientSession, plane: ControlPlane, namespace: str
) -> None:
    async with gated(gate, plane, namespace) as (trial, through):
        await through.create("one")
        for ttl in ("1h", "1h", "2h"):
            await through.patch("one", ttl)
        told = await trial.trace()
        assert [entry["changed"] for entry in told["trace"]] == [True, True, False, True]


async def test_doors_close_with_their_trial(gate: aiohttp.ClientSession, plane: ControlPlane, namespace: str) -> None:
    async with gated(gate, plane, namespace) as (trial, through):
        assert await through.create("one") == 201
    async with gate.get(f"/trials/{trial.name}") as answer:
        assert answer.status != 200

    async def closed() -> bool:
        try:
            async with aiohttp.ClientSession() as fresh, fresh.get(trial.url("a", "api")):
                return False
        except aiohttp.ClientError:
            return True

    await until(closed, what="the door is closed")
