"""Pools that are full already: made by the bare client, so that what is measured begins with what it finds."""

from typing import Any

from bench.floor import REQUESTS
from bench.processes import Floor
from bench.rig import Field, Rig


async def stocked(rig: Rig, count: int, *, provider: dict[str, Any] | None = None, **pool: Any) -> Field:
    """Return a new field with a provider and a pool of ``count`` Ready VMs whose machines run at the cloud.

    ``pool`` adds to the pool's spec, ``provider`` to the provider's. Nobody serves the field yet.
    """
    where = await rig.field()
    rig.cloud.settings(createSeconds={"disk": 0.0, "nic": 0.0, "boot": 0.0}, deleteSeconds=0.0)
    await rig.provider(where, **(provider or {}))
    await rig.pool(where, count, **pool)
    if count:
        floor = await Floor.start("fill", **rig.access(where), count=count, pending=REQUESTS, machine_seconds=0.0)
        floor.go()
        await floor.ended()
    return where
