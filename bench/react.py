"""``react``: from the DELETE of a Ready VM until its machine is gone and its successor asked for."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from tests.waiting import until

from bench.figures import Figures, Pair, Promise, Result
from bench.processes import Floor
from bench.rig import Field, Rig
from bench.stock import stocked
from vmpool.kube.kinds import POOLEDVMS
from vmpool.kube.resource import Json

COUNT = 50
DELETIONS = 10
ROOM = 10
"""VMs that the pool may have beyond its replicas: without any, a successor waits until its predecessor is forgotten."""
DELETE_SECONDS = {"instant": 0.0, "1s": 1.0}
BOUND_SECONDS = 0.3
WATCH = timedelta(hours=1)
SILENCE = timedelta(minutes=5)
NOTES = {
    f"react_seconds_{name}": f"the later of both, less the {seconds:g} s that the machine takes to go; median of "
    f"{DELETIONS} deletions one after another"
    for name, seconds in DELETE_SECONDS.items()
}


@dataclass(frozen=True)
class Deleted:
    """One VM that was deleted; times are Unix seconds, as the cloud's."""

    uid: str
    machine_id: str
    asked_at: float
    forgotten_at: float


@dataclass
class Eyes:
    """The PooledVMs of a field as the API server tells them, and when each went."""

    vms: dict[str, Json] = field(default_factory=dict)
    gone_at: dict[str, float] = field(default_factory=dict)

    def ready(self) -> list[Json]:
        """Return those that are Ready and stay."""
        return [
            vm
            for vm in self.vms.values()
            if vm["status"]["phase"] == "Ready" and "deletionTimestamp" not in vm["metadata"]
        ]

    def full(self) -> bool:
        """Say whether as many are Ready as should be, and none besides."""
        return len(self.ready()) == len(self.vms) == COUNT

    def replaced(self, uid: str) -> bool:
        """Say whether this VM is gone and the pool is full again."""
        return uid in self.gone_at and self.full()

    def see(self, kind: str, raw: Json) -> None:
        """Take an event in, now."""
        uid = raw["metadata"].get("uid", "")
        if kind in ("ADDED", "MODIFIED"):
            self.vms[uid] = raw
        elif kind == "DELETED":
            self.gone_at[uid] = time.time()
            self.vms.pop(uid, None)


async def run(rig: Rig, pairs: int) -> Result:
    """Delete VMs of a full pool, at a cloud that deletes at once and at one that takes a second."""
    ours = await stocked(rig, COUNT, maxVMs=COUNT + ROOM)
    bare = await stocked(rig, COUNT, maxVMs=COUNT + ROOM)
    operator = rig.operator(ours)
    operator.start()
    await operator.ready()
    await rig.provider_ready(ours)
    runs: list[Pair] = []
    for number in range(pairs):
        of_ours: dict[str, float] = {}
        of_floor: dict[str, float] = {}
        for name, seconds in DELETE_SECONDS.items():
            rig.cloud.settings(deleteSeconds=seconds)
            of_ours |= _named(name, await _deletions(rig, ours, seconds))
            floor = await Floor.start("react", **rig.access(bare), count=DELETIONS, delete_seconds=seconds)
            floor.go()
            of_floor |= _named(name, await _deletions(rig, bare, seconds))
            await floor.ended()
        for name in DELETE_SECONDS:
            both = f"{of_ours[f'react_seconds_{name}']:.3f} s, floor {of_floor[f'react_seconds_{name}']:.3f} s"
            rig.say(f"pair {number + 1}: {name} {both}")
        runs.append(Pair(of_ours, of_floor))
    operator.kill()
    for where in (ours, bare):
        await rig.clear(where)
    return Result("react", runs, [Promise(f"react_seconds_{name}", BOUND_SECONDS) for name in DELETE_SECONDS], NOTES)


def _named(variant: str, figures: Figures) -> Figures:
    return {f"{name}_{variant}": value for name, value in figures.items()}


async def _deletions(rig: Rig, where: Field, delete_seconds: float) -> Figures:
    """Delete one VM after another, each once the pool is full again and holds nothing else."""
    deleted: list[Deleted] = []
    async with _watched(rig, where) as eyes:
        await until(eyes.full, what="the pool is full")
        for _ in range(DELETIONS):
            vm = min(eyes.ready(), key=lambda vm: str(vm["metadata"]["name"]))
            name, uid = vm["metadata"]["name"], vm["metadata"]["uid"]
            asked_at = time.time()
            await rig.client.delete(POOLEDVMS, where.namespace, name, uid=uid)
            await until(partial(eyes.replaced, uid), what=f"{name} is replaced")
            deleted.append(Deleted(uid, vm["status"]["machineId"], asked_at, eyes.gone_at[uid]))
    # Once, afterwards: telling its whole history keeps the cloud busy.
    told = (await asyncio.to_thread(rig.cloud.ledger))["machines"]
    return _figures(deleted, [machine for machine in told if machine["tenant"] == where.tenant.name], delete_seconds)


def _figures(deleted: Sequence[Deleted], machines: Sequence[dict[str, Any]], delete_seconds: float) -> Figures:
    """Return the medians, from the cloud's own times."""
    by_id = {machine["id"]: machine for machine in machines}
    destroy, successor, react = [], [], []
    for one, following in zip(deleted, [*deleted[1:], None], strict=True):
        gone_at = by_id[one.machine_id]["goneAt"]
        assert gone_at is not None, f"machine {one.machine_id} is still there"
        made = [
            machine["createdAt"]
            for machine in machines
            if one.asked_at <= machine["createdAt"] and (following is None or machine["createdAt"] < following.asked_at)
        ]
        assert len(made) == 1, f"{len(made)} machines were made for one that was deleted"
        destroy.append(gone_at - delete_seconds - one.asked_at)
        successor.append(made[0] - one.asked_at)
        react.append(max(destroy[-1], successor[-1]))
    return {
        "react_seconds": statistics.median(react),
        "destroy_seconds": statistics.median(destroy),
        "successor_seconds": statistics.median(successor),
        "longest_react_seconds": max(react),
        "forget_seconds": statistics.median(one.forgotten_at - one.asked_at for one in deleted),
    }


@asynccontextmanager
async def _watched(rig: Rig, where: Field) -> AsyncIterator[Eyes]:
    """Yield eyes that follow the field's PooledVMs."""
    eyes = Eyes()
    page = await rig.client.list_page(POOLEDVMS, where.namespace)
    for item in page.items:
        eyes.see("ADDED", item)

    async def follow() -> None:
        async for event in rig.client.watch(POOLEDVMS, where.namespace, page.resource_version, WATCH, SILENCE):
            eyes.see(*event)

    task = asyncio.create_task(follow())
    try:
        yield eyes
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
