"""Doubt about oneself: noticed within 30 s, told, and the end of the process; the next one carries on."""

import asyncio
import contextlib
import json
import os
import signal
import ssl
import time
import urllib.error
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.api import Json
from tests.clouds import SimCloud
from tests.crash import witness
from tests.crash.gate import HOP_BY_HOP, Gate
from tests.crash.site import DEADLINE, POOL, PROVIDER, Site
from tests.gateways import Gateway
from tests.operators import Operator
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane
from vmpool.rim.fence import EXIT_CODE

pytestmark = pytest.mark.crash

NOTICED_SECONDS = 30.0
"""What the watchdog promises."""
REPLICAS = 3
LINGER = {"VMPOOL_WATCHDOG_SECONDS": "0.2", "VMPOOL_WATCHDOG_LINGER_SECONDS": "4"}
SELDOM = {**LINGER, "VMPOOL_WATCHDOG_SECONDS": "5"}
"""A watchdog that looks so seldom that only the fence is there in time."""
SILENCE = {**LINGER, "VMPOOL_WATCH_SILENCE_SECONDS": "3", "VMPOOL_WATCHDOG_MARGIN_SECONDS": "2"}
BLOCK = {"VMPOOL_WATCHDOG_SECONDS": "0.2", "VMPOOL_LOOP_BLOCK_SECONDS": "1"}
PATIENT = {"VMPOOL_LEASE_SECONDS": "90", "VMPOOL_LEASE_RENEW_SECONDS": "60"}
"""A lease that is not what ends the process."""
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
JUMP = 7200
SECTIONS = {"process", "settings", "watchdog", "lease", "tasks", "threads", "loops", "lanes", "mirrors", "queues"}

Operators = Callable[..., Operator]


class Detour(Gate):
    """The way to the API server that can fall silent on one kind, and break kopf's watches of it."""

    def __init__(self, target: str, session: aiohttp.ClientSession) -> None:
        super().__init__(target, lambda: False, session)
        self.all_writes = 0
        """Of every kind, leases and events too."""
        self._silent: set[str] = set()
        self._broken: set[str] = set()
        self._refused: set[str] = set()
        self._changed = asyncio.Event()

    def fall_silent(self, plural: str) -> None:
        """Let nothing pass any more that was asked about a kind, open watches included."""
        self._silent.add(plural)
        self._turn()

    def break_watches(self, plural: str) -> None:
        """Cut kopf's watches of a kind, and answer the next ones with an error event that is not 410."""
        self._broken.add(plural)
        self._turn()

    def refuse_watches(self, plural: str) -> None:
        """Cut kopf's watches of a kind, and answer every one that follows with 503."""
        self._broken.add(plural)
        self._refused.add(plural)
        self._turn()

    def _turn(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        self.all_writes += request.method != "GET"
        plural = request.path.split("/")[-1]
        kopf = request.headers.get("User-Agent", "").startswith("kopf/")
        watch = request.query.get("watch") == "true"
        if request.method != "GET":
            return await super()._pass(request)
        if plural in self._silent:
            await asyncio.Event().wait()
        if watch and kopf and plural in self._refused:
            return web.Response(status=503)
        if watch and kopf and plural in self._broken:
            status = {"kind": "Status", "code": 500, "reason": "InternalError", "message": "the store is gone"}
            return web.json_response({"type": "ERROR", "object": status})
        if watch:
            return await self._watch(request, plural, kopf=kopf)
        return await super()._pass(request)

    async def _watch(self, request: web.Request, plural: str, *, kopf: bool) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        async with self._session.get(f"{self._target}{request.raw_path}", headers=headers) as answer:
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                async for chunk in self._chunks(answer):
                    if kopf and plural in self._broken:
                        break
                    while plural in self._silent:
                        await self._changed.wait()
                    await response.write(chunk)
            return response

    async def _chunks(self, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Yield what comes; nothing whenever the rules change."""
        while True:
            changed = asyncio.ensure_future(self._changed.wait())
            read = asyncio.ensure_future(answer.content.readany())
            try:
                await asyncio.wait({changed, read}, return_when=asyncio.FIRST_COMPLETED)
                if not read.done():
                    yield b""
                    chunk = await read
                else:
                    chunk = read.result()
            finally:
                changed.cancel()
                read.cancel()
            if not chunk:
                return
            yield chunk


@pytest.fixture
async def session(plane: ControlPlane) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(plane.ca)), limit=0)
    async with aiohttp.ClientSession(
        connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
    ) as made:
        yield made


@pytest.fixture
async def detour(plane: ControlPlane, session: aiohttp.ClientSession) -> AsyncIterator[Detour]:
    async with Detour(plane.url, session) as made:
        yield made


@pytest.fixture
def by_detour(plane: ControlPlane, detour: Detour, tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "kubeconfig"
    path.write_text(plane.kubeconfig.read_text().replace(plane.url, detour.url))
    return {"VMPOOL_KUBECONFIG": str(path)}


def events(program: Operator | Gateway, name: str) -> list[Json]:
    """What a program has logged under a name."""
    lines = [line for line in program.lines().splitlines() if line.startswith("{")]
    return [event for event in map(json.loads, lines) if event.get("event") == name]


def unhealthy(operator: Operator) -> str:
    """What /healthz says while it is red."""
    try:
        operator.http("/healthz")
    except urllib.error.HTTPError as error:
        return error.read().decode() if error.code == 503 else ""
    except OSError:
        return ""
    return ""


async def ends(operator: Operator) -> int:
    """Wait until a process has ended by itself, as soon as is promised; return its exit code."""
    await until(lambda: not operator.running, deadline=NOTICED_SECONDS, what="the process ends")
    return operator.stop()


def verdict(operator: Operator) -> Json:
    """The one verdict, told with its report."""
    (told,) = events(operator, "watchdog_verdict")
    shown = {one["section"] for one in events(operator, "report")}
    assert shown >= {"process", "tasks", "threads", "watchdog", "lease"}, "the report is missing"
    return told


async def next_one_carries_on(site: Site, operators: Operators) -> None:
    second = operators()
    await second.ready(DEADLINE)
    await site.full(REPLICAS)
    await site.drain()
    await site.drained()
    await witness.nothing_left(site)


async def shown_in(operator: Operator, what: str) -> None:
    """The reason is in /healthz and /metrics before the process is gone."""
    said = await until(lambda: unhealthy(operator), deadline=NOTICED_SECONDS, what="/healthz turns red")
    assert said.startswith(f"{what}: "), said
    assert f'vmpool_watchdog_verdicts_total{{what="{what}"}} 1.0' in operator.http("/metrics")


@pytest.mark.parametrize(("way", "why"), [("break_watches", "the store is gone"), ("refuse_watches", "APIServerError")])
async def test_a_watcher_of_kopf_that_dies(
    site: Site, operators: Operators, detour: Detour, by_detour: dict[str, str], way: str, why: str
) -> None:
    await site.build(REPLICAS)
    operator = operators(**LINGER, **by_detour)
    await site.full(REPLICAS)
    assert operator.http("/healthz") == "ok\n"

    getattr(detour, way)("vmpools")
    await shown_in(operator, "kopf")
    # Ended in order, or from outside when that took longer than its lease.
    assert await ends(operator) in {1, 70}
    told = verdict(operator)
    assert told["what"] == "kopf"
    assert "watcher for vmpools.v1alpha1.vmpool.dev" in told["why"]
    assert why in told["why"]
    await next_one_carries_on(site, operators)


async def test_a_mirror_that_hears_nothing(
    site: Site, operators: Operators, detour: Detour, by_detour: dict[str, str]
) -> None:
    await site.build(REPLICAS)
    operator = operators(**SILENCE, **by_detour)
    await site.full(REPLICAS)
    relists = operator.http("/metrics")
    assert 'vmpool_relists{kind="DeadLetter"}' in relists

    detour.fall_silent("pooledvms")
    await shown_in(operator, "mirror")
    # Ended in order, or from outside when that took longer than its lease.
    assert await ends(operator) in {1, 70}
    told = verdict(operator)
    assert told["what"] == "mirror"
    assert "pooledvms of" in told["why"]
    assert told["seconds"] > told["allowed"] == 5.0
    await next_one_carries_on(site, operators)


PLUGIN = """
import ctypes
import time
from pydantic import BaseModel

class Config(BaseModel):
    way: str

class StuckPlugin:
    Config = Config

    def open(self, session):
        if session.config.way == "sleep":
            time.sleep(600)
        ctypes.PyDLL(None).sleep(600)  # keeps the interpreter: no thread runs
"""


@pytest.fixture
def stuck(tmp_path: Path) -> dict[str, str]:
    """A plug-in that was installed beside the operator, and holds up the loop."""
    folder = tmp_path / "site"
    info = folder / "stuck-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "stuck.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stuck\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vmpool.providers]\nstuck = stuck:StuckPlugin\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))}


@pytest.mark.parametrize("way", ["sleep", "keep the interpreter"])
async def test_a_loop_that_is_held_up(site: Site, operators: Operators, stuck: dict[str, str], way: str) -> None:
    operator = operators(**BLOCK, **PATIENT, **stuck)
    await operator.ready(DEADLINE)
    spec = {"type": "stuck", "config": {"way": way}}
    body = {"apiVersion": keys.API_VERSION, "kind": "VMProvider", "metadata": {"name": PROVIDER}, "spec": spec}
    (await site.providers.create(body)).ok()

    code = await ends(operator)
    if way == "sleep":
        assert code == EXIT_CODE
        told = verdict(operator)
        assert told["what"] == "loop"
        # Told with three digits: a hair more than allowed may read the same.
        assert told["seconds"] >= told["allowed"] == 1.0
        (threads,) = [one["content"] for one in events(operator, "report") if one["section"] == "threads"]
        (main,) = [stack for name, stack in threads["stacks"].items() if name.startswith("MainThread")]
        assert "stuck.py" in main[-1], "the frame that blocks is not shown"
    else:
        assert code == 1
        assert "Timeout (" in operator.lines()
        assert "stuck.py" in operator.lines(), "the frame that blocks is not shown"
    (await site.providers.delete(PROVIDER)).ok()
    # Who leads next need not wait: this is not about the lease.
    (await site.api.kind("leases", site.namespace, api="/apis/coordination.k8s.io/v1").delete(keys.LEASE_NAME)).ok()
    await operators().ready(DEADLINE)


@pytest.fixture
async def writes(
    plane: ControlPlane, simcloud: SimCloud, session: aiohttp.ClientSession, detour: Detour
) -> AsyncIterator[tuple[Detour, Detour]]:
    """The ways to the API server and to the cloud."""
    async with Detour(simcloud.url, session) as to_cloud:
        yield detour, to_cloud


async def test_a_process_that_stood_still_beyond_its_lease_does_nothing_more(
    site: Site, operators: Operators, writes: tuple[Detour, Detour], by_detour: dict[str, str]
) -> None:
    many = 40
    site.fault("slow", "create", seconds=0.3)
    await replace(site, endpoint=writes[1].url).build(many)
    operator = operators(**by_detour)
    await site.machines(many // 8)
    os.kill(operator.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    assert site.alive() < many, "the pause came too late to prove anything"
    # Its lease is long over, and the answers to all that it had asked for wait at its door.
    await until(lambda: time.monotonic() > stopped + 5.0, what="the lease is over")
    before = [way.all_writes for way in writes]

    os.kill(operator.pid, signal.SIGCONT)
    code = await ends(operator)
    assert [way.all_writes for way in writes] == before, "something was written after the lease"
    assert code == EXIT_CODE
    assert verdict(operator)["what"] == "lease"

    second = operators()
    await second.ready(DEADLINE)
    await site.full(many)
    await witness.machines_match_objects(site)
    await site.drain()
    await site.drained()
    await witness.nothing_left(site)


async def test_a_short_pause_is_no_reason_to_end(site: Site, operators: Operators) -> None:
    await site.build(REPLICAS)
    operator = operators(**BLOCK, **PATIENT)
    await site.full(REPLICAS)
    os.kill(operator.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    await until(lambda: time.monotonic() > stopped + 5.0, what="longer than the loop may be held up")
    os.kill(operator.pid, signal.SIGCONT)
    await until(lambda: operator.http("/healthz") == "ok\n", what="it answers")
    await site.drain()
    await site.drained()
    assert operator.running
    assert not events(operator, "watchdog_verdict")


@pytest.fixture
def clock(tmp_path: Path) -> Callable[[int], dict[str, str]]:
    """Sets by how many seconds the wall clock is wrong; returns what makes a process believe it."""
    if not FAKETIME.exists():
        pytest.skip(f"{FAKETIME} is missing (Debian package faketime)")
    file = tmp_path / "clock"

    def wrong_by(seconds: int) -> dict[str, str]:
        file.write_text(f"{seconds:+d}\n")
        return {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    return wrong_by


async def claim(site: Site) -> Json:
    """Take a VM that is claimed for less long than the clock will jump."""
    vm = (await site.objects())[0]
    now = datetime.now(UTC)
    taken: dict[str, Any] = {
        "id": "one",
        "owner": "vmpool:alice",
        "boundAt": now.isoformat(timespec="seconds"),
        "expiresAt": (now + timedelta(seconds=JUMP / 2)).isoformat(timespec="seconds"),
    }
    name = vm["metadata"]["name"]
    change = {"metadata": {"uid": vm["metadata"]["uid"]}, "spec": {"claim": taken}}
    return (await site.vms.merge(name, change)).ok()


async def phases(site: Site, ready: int = REPLICAS) -> bool:
    """Whether one VM is claimed and so many are ready."""
    found = sorted(one["status"]["phase"] for one in await site.objects())
    return found == ["Claimed", *["Ready"] * ready]


@pytest.mark.parametrize("jump", [JUMP, -JUMP], ids=["ahead", "back"])
async def test_a_wall_clock_that_jumps(
    site: Site,
    operators: Operators,
    clock: Callable[[int], dict[str, str]],
    by_detour: dict[str, str],
    jump: int,
) -> None:
    await site.build(REPLICAS)
    operator = operators(**SELDOM, **clock(0), **by_detour)
    await site.full(REPLICAS)
    vm = await claim(site)
    await until(lambda: phases(site), deadline=DEADLINE, what="the claim is noticed, and its place is filled")

    clock(jump)
    # A reason to decide something before the watchdog's next look.
    (await site.pools.merge(POOL, {"spec": {"replicas": REPLICAS + 1}})).ok()
    await shown_in(operator, "clock")
    # Ended in order, or from outside when that took longer than its lease.
    assert await ends(operator) in {1, 70}
    told = verdict(operator)
    assert abs(told["seconds"] - jump) < 10

    # The next one believes the API server, not its own clock: the claim would have run out by that.
    # By the detour, which speaks no TLS: to a clock that is far back no certificate is valid yet.
    second = operators(**clock(jump), **by_detour)
    await second.ready(DEADLINE)

    def in_doubt() -> str:
        try:
            second.http("/readyz")
        except urllib.error.HTTPError as error:
            return error.read().decode()
        return ""

    assert "clock differs" in await until(in_doubt, what="it doubts its clock")
    clock(0)
    await ends(second)
    third = operators()
    await third.ready(DEADLINE)
    await until(lambda: phases(site, REPLICAS + 1), deadline=DEADLINE, what="the pool is full")
    kept = (await site.vms.get(vm["metadata"]["name"])).ok()
    assert "releasedAt" not in kept["spec"]["claim"], "the jump has ended a claim"
    released = {"id": "one", "releasedAt": datetime.now(UTC).isoformat(timespec="seconds"), "endReason": "Released"}
    (await site.vms.merge(vm["metadata"]["name"], {"spec": {"claim": released}})).ok()
    await site.drain()
    await site.drained()
    assert third.running


async def asked(program: Operator | Gateway) -> dict[str, Json]:
    """Ask a process for its report; return its sections."""
    before = len(events(program, "report_ends"))
    os.kill(program.pid, signal.SIGUSR1)
    await until(lambda: len(events(program, "report_ends")) > before, what="the report is written")
    count = events(program, "report_ends")[-1]["sections"]
    return {one["section"]: one["content"] for one in events(program, "report")[-count:]}


async def test_a_report_of_the_live_process(site: Site, operators: Operators) -> None:
    await site.build(REPLICAS)
    operator = operators()
    await site.full(REPLICAS)

    async def kopf_watches() -> bool:
        return any("watcher for vmpools" in name for name in (await asked(operator))["watchdog"]["kopf"])

    await until(kopf_watches, deadline=DEADLINE, what="kopf's watchers are followed")
    shown = await asked(operator)
    assert shown.keys() == SECTIONS
    assert not [name for name, content in shown.items() if "error" in content]
    assert shown["lease"]["held"]
    assert shown["mirrors"][f"pooledvms of {site.namespace}"]["objects"] == REPLICAS
    assert shown["loops"]["kinds"]["VMPool"]["count"] == 1
    assert shown["lanes"]["lanes"][f"{site.namespace}/{PROVIDER}"]["circuit"] == "Closed"
    assert shown["settings"]["watch_namespace"] == site.namespace
    assert all(len(line) < 60_000 for line in operator.lines().splitlines())
    assert operator.http("/healthz") == "ok\n"

    await site.drain()
    await site.drained()
    assert operator.stop() == 0


async def test_a_report_of_a_live_gateway(plane: ControlPlane, site: Site, tmp_path: Path) -> None:
    own = {"VMPOOL_WATCH_NAMESPACE": site.namespace, "VMPOOL_NAMESPACE": site.namespace}
    gateway = Gateway(plane.kubeconfig, tmp_path, **own)
    gateway.start()
    try:
        await gateway.ready()
        shown = await asked(gateway)
        assert shown.keys() == {"process", "settings", "gateway_settings", "tasks", "threads", "mirrors", "gateway"}
        assert shown["gateway"] == {"unready": ""}
        assert gateway.stop() == 0
    finally:
        gateway.kill()
