"""Kill -9 before or after any write, again and again, through the whole life of a pool."""

import os
import random
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from tests.clouds import SimCloud
from tests.crash import witness
from tests.crash.gate import Gate
from tests.crash.site import DEADLINE, OTHER_IMAGE, POOL, Site
from tests.operators import Operator
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.crash

REPLICAS = 3
SURGE = 1
DEADLY = 0.08
"""Chance to be killed before a write reaches its server, and again before its answer reaches the operator."""
MAX_LIVES = 80
"""Lives that one stage of the pool may cost; about ten are normal."""

Operators = Callable[..., Operator]
Done = Callable[[], Awaitable[bool]]


class Reaper:
    """Kills the operator at writes that the dice choose."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._dice = random.Random(seed)
        self._victim: Operator | None = None
        self.kills = 0

    def watch(self, operator: Operator) -> None:
        self._victim = operator

    def strike(self) -> bool:
        if self._victim is None or not self._victim.running or self._dice.random() >= DEADLY:
            return False
        os.kill(self._victim.pid, signal.SIGKILL)
        self._victim = None
        self.kills += 1
        return True


@pytest.fixture
def reaper(request: pytest.FixtureRequest) -> Reaper:
    return Reaper(request.param)


@pytest.fixture
async def gates(plane: ControlPlane, simcloud: SimCloud, reaper: Reaper) -> AsyncIterator[tuple[Gate, Gate]]:
    """The ways to the API server and to the cloud."""
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(plane.ca)), limit=0)
    async with (
        aiohttp.ClientSession(
            connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
        ) as session,
        Gate(plane.url, reaper.strike, session) as to_api,
        Gate(simcloud.url, reaper.strike, session) as to_cloud,
    ):
        yield to_api, to_cloud


@pytest.mark.parametrize("reaper", range(3), indirect=True)
async def test_killed_at_any_write(
    site: Site,
    operators: Operators,
    plane: ControlPlane,
    reaper: Reaper,
    gates: tuple[Gate, Gate],
    tmp_path: Path,
) -> None:
    to_api, to_cloud = gates
    detour = tmp_path / "kubeconfig"
    detour.write_text(plane.kubeconfig.read_text().replace(plane.url, to_api.url))
    await replace(site, endpoint=to_cloud.url).build(REPLICAS, tokens=reaper.seed % 2 == 0)

    async def live_until(done: Done) -> None:
        """Start the operator again and again until it has brought the pool there."""
        for _ in range(MAX_LIVES):
            life = operators(VMPOOL_KUBECONFIG=str(detour))
            reaper.watch(life)

            async def over(life: Operator = life) -> bool:
                return not life.running or await done()

            await until(over, deadline=DEADLINE, what="the operator is killed or done")
            life.kill()
            await witness.every_machine_has_its_object(site)
            # Who leads next need not wait: this is about writes, not about the lease.
            await site.api.kind("leases", site.namespace, api="/apis/coordination.k8s.io/v1").delete(keys.LEASE_NAME)
            if await done():
                return
        raise AssertionError(f"not done after {MAX_LIVES} lives")

    await live_until(lambda: site.is_full(REPLICAS))
    await witness.machines_match_objects(site)
    witness.never_more_than(site, REPLICAS)

    (await site.pools.merge(POOL, {"spec": {"template": {"image": OTHER_IMAGE}}})).ok()
    await live_until(lambda: site.is_full(REPLICAS, OTHER_IMAGE))
    await witness.machines_match_objects(site)
    witness.never_more_than(site, REPLICAS + SURGE)

    await site.drain()
    await live_until(site.is_empty)
    await site.release()
    await live_until(site.is_released)
    witness.never_two(site)
    await witness.nothing_left(site)
    assert reaper.kills >= 5, f"only {reaper.kills} kills at {to_api.writes + to_cloud.writes} writes prove little"
