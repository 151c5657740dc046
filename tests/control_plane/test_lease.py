"""The leader lease against a real API server, also one that hangs."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.kube_help import client_to, proxy_to
from tests.planes import Kubectl
from tests.proxy import Proxy
from tests.waiting import until
from vmpool.dev.plane import ControlPlane
from vmpool.dev.state import API_SERVER
from vmpool.kube.client import Client
from vmpool.kube.identity import new_identity
from vmpool.kube.lease import Lease, LeaseLost, LeaseSettings
from vmpool.kube.resource import LEASES, Json

pytestmark = pytest.mark.control_plane

NAME = "vmpool-operator"
SETTINGS = LeaseSettings(
    duration=timedelta(seconds=3),
    renew_deadline=timedelta(seconds=2),
    retry_period=timedelta(milliseconds=100),
    request_timeout=timedelta(milliseconds=500),
)


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
    async with client_to(plane, proxy, folder=tmp_path) as client:
        yield client


def candidate(client: Client, namespace: str, name: str) -> Lease:
    return Lease(client, namespace, NAME, name, SETTINGS)


SOMEBODY = "from vmpool.kube.identity import new_identity; print(new_identity())"
SAME_PATH = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


async def spec_of(client: Client, namespace: str) -> Json:
    spec: Json = (await client.get(LEASES, namespace, NAME))["spec"]
    return spec


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_one_holds_and_the_other_waits(client: Client, namespace: str) -> None:
    first, second = candidate(client, namespace, "first"), candidate(client, namespace, "second")
    await first.acquire()
    holding = asyncio.create_task(first.hold())
    waiting = asyncio.create_task(second.acquire())
    began = (await spec_of(client, namespace))["renewTime"]
    versions: set[str] = set()

    async def renewed_for_longer_than_the_lease() -> bool:
        spec = await spec_of(client, namespace)
        assert spec["holderIdentity"] == "first"
        versions.add(spec["renewTime"])
        return datetime.fromisoformat(spec["renewTime"]) - datetime.fromisoformat(began) > SETTINGS.duration * 1.5

    await until(renewed_for_longer_than_the_lease, what="renewals")
    assert len(versions) > 2
    assert (first.held, second.held, waiting.done()) == (True, False, False)
    await stop(waiting)
    await stop(holding)


async def test_a_dead_holder_is_replaced_after_its_lease(client: Client, namespace: str) -> None:
    dead, heir = candidate(client, namespace, "dead"), candidate(client, namespace, "heir")
    await dead.acquire()
    started = time.monotonic()
    await heir.acquire()
    assert time.monotonic() - started >= SETTINGS.duration.total_seconds()
    spec = await spec_of(client, namespace)
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("heir", 1)
    assert not dead.held


async def test_a_holder_that_is_known_to_be_dead_is_replaced_after_a_grace(client: Client, namespace: str) -> None:
    gone = await asyncio.to_thread(
        subprocess.check_output, [sys.executable, "-c", SOMEBODY], env=SAME_PATH, text=True, timeout=60
    )
    long = replace(SETTINGS, duration=timedelta(seconds=60), dead_grace=timedelta(seconds=0.5))
    dead = Lease(client, namespace, NAME, gone.strip(), long)
    await dead.acquire()
    started = time.monotonic()
    async with asyncio.timeout(30):
        await Lease(client, namespace, NAME, new_identity(), long).acquire()
    assert time.monotonic() - started >= long.dead_grace.total_seconds()


async def test_a_released_lease_is_free_at_once(client: Client, namespace: str) -> None:
    first, second = candidate(client, namespace, "first"), candidate(client, namespace, "second")
    await first.acquire()
    await first.release()
    assert not first.held
    started = time.monotonic()
    await second.acquire()
    assert time.monotonic() - started < SETTINGS.duration.total_seconds() / 2
    await first.release()
    assert (await spec_of(client, namespace))["holderIdentity"] == "second"


async def test_a_crowd_has_one_winner(client: Client, namespace: str) -> None:
    crowd = [candidate(client, namespace, f"c{number}") for number in range(8)]
    tasks = [asyncio.create_task(lease.acquire()) for lease in crowd]
    await until(lambda: any(task.done() for task in tasks), what="a winner")
    assert [lease.held for lease in crowd].count(True) == 1
    for task in tasks:
        await stop(task)


async def test_a_holder_that_was_replaced_gives_up_at_once(client: Client, namespace: str) -> None:
    lease = candidate(client, namespace, "first")
    await lease.acquire()
    await client.patch_merge(LEASES, namespace, NAME, {"spec": {"holderIdentity": "usurper"}})
    started = time.monotonic()
    with pytest.raises(LeaseLost, match="usurper"):
        await lease.hold()
    assert time.monotonic() - started < SETTINGS.renew_deadline.total_seconds()


async def test_a_connection_that_hangs_loses_the_lease_in_time(far: Client, proxy: Proxy, namespace: str) -> None:
    lease = candidate(far, namespace, "first")
    await lease.acquire()
    proxy.freeze()
    await _loses_in_time(lease)


async def test_a_connection_that_is_refused_loses_the_lease_in_time(far: Client, proxy: Proxy, namespace: str) -> None:
    lease = candidate(far, namespace, "first")
    await lease.acquire()
    proxy.close_door()
    await _loses_in_time(lease)


async def test_a_server_that_hangs_loses_the_lease_in_time(plane: ControlPlane, client: Client, namespace: str) -> None:
    lease = candidate(client, namespace, "first")
    await lease.acquire()
    plane.pause(API_SERVER)
    try:
        await _loses_in_time(lease)
    finally:
        plane.resume(API_SERVER)


async def _loses_in_time(lease: Lease) -> None:
    started = time.monotonic()
    with pytest.raises(LeaseLost):
        async with asyncio.timeout(SETTINGS.duration.total_seconds() * 3):
            await lease.hold()
    assert not lease.held
    assert time.monotonic() - started < SETTINGS.duration.total_seconds(), "a rival may have begun"


async def test_a_short_hiccup_does_not_lose_the_lease(far: Client, proxy: Proxy, namespace: str) -> None:
    lease = candidate(far, namespace, "first")
    await lease.acquire()
    holding = asyncio.create_task(lease.hold())
    before = proxy.connections
    proxy.close_door()
    await until(lambda: proxy.connections > before + 1, what="a failed renewal")
    proxy.open_door()
    renewed = (await spec_of(far, namespace))["renewTime"]

    async def later() -> bool:
        return bool((await spec_of(far, namespace))["renewTime"] > renewed)

    await until(later, what="a renewal")
    assert not holding.done()
    await stop(holding)


HOLDER_ELSEWHERE = """
import asyncio, sys
from vmpool.kube.client import Client
from vmpool.kube.lease import Lease, LeaseSettings

async def main(kubeconfig, namespace, name):
    async with await Client.from_kubeconfig(kubeconfig) as client:
        await Lease(client, namespace, name, "tokyo", LeaseSettings()).acquire()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_times_are_utc_wherever_we_are(
    plane: ControlPlane, client: Client, namespace: str, kubectl: Kubectl
) -> None:
    environment = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLDER_ELSEWHERE, str(plane.kubeconfig), namespace, NAME]
    await asyncio.to_thread(subprocess.run, command, env=environment, check=True, timeout=60)
    spec = json.loads(kubectl("get", "lease", NAME, "-n", namespace, "-o", "json"))["spec"]
    for field in ("acquireTime", "renewTime"):
        assert abs(datetime.fromisoformat(spec[field]) - datetime.now(UTC)) < timedelta(minutes=5)


def test_two_lives_are_two_candidates() -> None:
    assert new_identity() != new_identity()


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"renew_deadline": timedelta(seconds=15)}, id="no time between giving up and replacement"),
        pytest.param({"retry_period": timedelta(seconds=10)}, id="no second try"),
    ],
)
def test_timing_that_cannot_work_is_refused(wrong: dict[str, timedelta]) -> None:
    with pytest.raises(ValueError, match="a lease needs"):
        LeaseSettings(**wrong)
