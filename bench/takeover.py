"""``takeover``: how long nothing useful is written after the leader is gone.

The floor is no other program but the length of the lease: so long a rival waits when the leader has told nobody of its
end. Who hands its lease over, or finds its own after a restart, should be far below.
"""

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from tests.api import REQUEST_TIMEOUT_SECONDS, Api
from tests.crash.site import Site
from tests.crash.test_standby import RESTART_SECONDS, TAKEOVER_SECONDS, first_write_after

from bench.figures import Pair, Promise, Result
from bench.processes import Operator
from bench.rig import Rig
from vmpool.settings import Settings

REPLICAS = 30
"""VMs that the next leader finds when it comes."""
LEASE_SECONDS: float = Settings.model_fields["lease_seconds"].default
READY_SECONDS = 60.0
NOTES = {
    "killed_seconds": "from SIGKILL of the leader, with a standby, until a VM is begun that was asked for after it",
    "restarted_seconds": "the same without a standby: it is started again at once, in the same pod",
    "stopped_seconds": "the same from SIGTERM, with a standby: the lease is handed over",
}


@dataclass(frozen=True)
class End:
    """One way for a leader to go."""

    act: Callable[[Operator], None]
    standby: bool


def _restart(leader: Operator) -> None:
    leader.kill()
    leader.start()


def _stop(leader: Operator) -> None:
    code = leader.stop()
    assert code == 0, f"told to stop, the leader ended with {code}"


ENDS: Mapping[str, End] = {
    "killed_seconds": End(Operator.kill, standby=True),
    "restarted_seconds": End(_restart, standby=False),
    "stopped_seconds": End(_stop, standby=True),
}


async def run(rig: Rig, pairs: int) -> Result:
    """Let a leader go in each way, one after the other, as often as there are pairs."""
    turns: list[dict[str, float]] = []
    for number in range(pairs):
        rig.say(f"pair {number + 1}")
        figures: dict[str, float] = {}
        for name, end in ENDS.items():
            figures[name] = await _turn(rig, end)
            rig.say(f"   {name}: {figures[name]:.2f}")
        turns.append(figures)
    return Result(
        "takeover",
        [Pair(ours, dict.fromkeys(ours, LEASE_SECONDS)) for ours in turns],
        [
            Promise("killed_seconds", TAKEOVER_SECONDS),
            Promise("restarted_seconds", RESTART_SECONDS),
            Promise("stopped_seconds", 1.0, ratio=True),
        ],
        NOTES,
    )


async def _turn(rig: Rig, end: End) -> float:
    """Let a leader fill a pool and go, and return the seconds until somebody carries on."""
    where = await rig.field()
    rig.cloud.settings(createSeconds={"disk": 0.0, "nic": 0.0, "boot": 0.0}, deleteSeconds=0.0)
    # Pods of their own: of each other's end they know nothing but that the lease is not renewed.
    leader, standby = (rig.operator(where, VMPOOL_POD_UID=uid) for uid in ("one", "two"))
    try:
        async with _api(rig) as api:
            site = Site(api, where.namespace, rig.cloud, where.tenant)
            leader.start()
            await leader.ready(READY_SECONDS)
            if end.standby:
                standby.start()
                await standby.said("operator_starts", READY_SECONDS)
            await site.build(REPLICAS)
            await site.full(REPLICAS)
            return await first_write_after(site, lambda: end.act(leader), REPLICAS + 1)
    finally:
        leader.kill()
        standby.kill()
        await rig.clear(where)


@asynccontextmanager
async def _api(rig: Rig) -> AsyncIterator[Api]:
    """Yield the users' side of the API server."""
    trust = ssl.create_default_context(cafile=str(rig.plane.ca))
    async with aiohttp.ClientSession(
        rig.plane.url,
        connector=aiohttp.TCPConnector(ssl=trust),
        headers={"Authorization": f"Bearer {rig.plane.token}"},
        timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS),
    ) as session:
        yield Api(session)
