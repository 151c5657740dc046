"""Pools that are full already: made by the bare client, so that what is measured begins with what it finds."""

import asyncio
from typing import Any

from bench.floor import REQUESTS, now
from bench.processes import Floor
from bench.rig import PROVIDER, Field, Rig
from vmpool.api.pool import template_digest
from vmpool.engine.facts import pool_facts
from vmpool.engine.writes import new_request_id, new_vm
from vmpool.kube.kinds import POOLEDVMS
from vmpool.plan.actions import CreateVM


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


async def shelf(rig: Rig, count: int) -> Field:
    """Return a new field with a pool of ``count`` VMs that say Ready and have no machine.

    Allocators need no more. An operator would destroy them: nobody may serve the field.
    """
    where = await rig.field()
    pool = pool_facts(await rig.pool(where, count))
    digest = template_digest(pool.spec.template)
    left = iter(range(count))

    async def worker() -> None:
        for number in left:
            name = f"{pool.name}-{number:08d}"
            body = new_vm(pool, digest, name, new_request_id(), CreateVM(PROVIDER, "", 0))
            # Nobody would take the finalizer off, and the garbage collector's questions about an owner would count.
            del body["metadata"]["finalizers"], body["metadata"]["ownerReferences"]
            await rig.client.create(POOLEDVMS, where.namespace, body)
            address = f"127.{64 + number // 65536}.{number // 256 % 256}.{number % 256}"
            at = now()
            ready = {"phase": "Ready", "phaseSince": at, "readyAt": at, "addresses": [address]}
            status = {"machineId": f"m-{number:08d}", **ready}
            await rig.client.patch_merge(POOLEDVMS, where.namespace, name, {"status": status}, "status")

    await asyncio.gather(*(worker() for _ in range(REQUESTS)))
    return where
