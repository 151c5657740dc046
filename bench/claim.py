"""``claim``: from making a VMClaim until a watch shows that it is Bound, while VMs stand ready."""

import asyncio
import statistics
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from tests.waiting import until

from bench.asking import stock_needed
from bench.figures import Figures, Pair, Promise, Result
from bench.load import Waits, percentile
from bench.processes import Clients, Floor
from bench.rig import POOL, Field, Rig, since
from bench.stock import stocked
from vmpool.kube.kinds import POOLEDVMS, VMCLAIMS
from vmpool.kube.resource import Json, Resource

COUNT = 1_000
"""Claims of each number of clients in each half of a pair: 5,000 samples in five pairs."""
CLIENTS = (1, 16)
FOLLOWED = 100
"""Claims whose every write is looked at, before those that are timed."""
STOCK = stock_needed(1, FOLLOWED) + sum(stock_needed(clients, COUNT) for clients in CLIENTS)
MIDDLE, TAIL = 50, 99
WATCH = timedelta(hours=1)
SILENCE = timedelta(minutes=5)
SETTLED_SECONDS = 60.0
OTHERS = ("vmpools", "vmproviders", "events")


@dataclass(frozen=True)
class Version:
    """One state of an object as a watch has told it."""

    uid: str
    version: int
    """The resourceVersion; larger is later, over all kinds."""
    phase: str
    vms: tuple[str, ...] = ()
    """Of a VMClaim: the uids of its VMs."""


@dataclass
class Eyes:
    """Every version of the VMClaims and PooledVMs of a field, from some moment on."""

    claims: list[Version] = field(default_factory=list)
    vms: list[Version] = field(default_factory=list)

    def settled(self, count: int) -> bool:
        """Say whether so many claims were seen Bound, and as many VMs Claimed."""
        bound = {one.uid for one in self.claims if one.phase == "Bound"}
        claimed = {one.uid for one in self.vms if one.phase == "Claimed"}
        return len(bound) == len(claimed) == count


def writes_before_bound(claims: Iterable[Version], vms: Iterable[Version]) -> list[int]:
    """Return for each claim how many writes, its making aside, there were on it and its VMs until it was Bound.

    Raises ValueError for a claim that was never Bound.
    """
    of_claim, of_vm = _by_uid(claims), _by_uid(vms)
    found = []
    for uid, versions in of_claim.items():
        made = versions[0].version
        bound = next((one for one in versions if one.phase == "Bound"), None)
        if bound is None:
            raise ValueError(f"claim {uid} was never Bound, but {[one.phase for one in versions]}")
        own = [*versions[1:], *(one for vm in bound.vms for one in of_vm.get(vm, ()))]
        found.append(sum(made < one.version <= bound.version for one in own))
    return found


def _by_uid(versions: Iterable[Version]) -> dict[str, list[Version]]:
    found: dict[str, list[Version]] = defaultdict(list)
    for one in sorted(versions, key=lambda one: one.version):
        found[one.uid].append(one)
    return found


async def run(rig: Rig, pairs: int) -> Result:
    """Make claims by one client and by several, ours and the floor in turns; who is first changes from pair to pair."""
    runs = []
    ours: dict[int, list[float]] = defaultdict(list)
    floor: dict[int, list[float]] = defaultdict(list)
    for number in range(pairs):
        before = await _floor(rig, floor) if number % 2 else None
        mine = await _ours(rig, ours)
        bare = before or await _floor(rig, floor)
        for clients in CLIENTS:
            both = (f"{half[f'p{MIDDLE}_ms_{clients}']:.1f} ms" for half in (mine, bare))
            rig.say(f"pair {number + 1}: {clients} clients: p50 {', floor '.join(both)}")
        runs.append(Pair(mine, bare))
    samples = {"samples": float(min(len(each) for each in ours.values()))}
    promises = [Promise("writes_before_bound", 2.0), Promise("writes_per_claim", 3.0)]
    return Result("claim", runs, promises, NOTES, Pair({**_tails(ours), **samples}, _tails(floor)))


async def _ours(rig: Rig, samples: dict[int, list[float]]) -> Figures:
    # No room for successors: the pool's refill would be measured, too.
    where = await stocked(rig, STOCK, maxVMs=STOCK)
    operator = rig.operator(where)
    operator.start()
    await operator.ready()
    await rig.provider_ready(where)
    cpu = rig.cpu_seconds(operator.pid)
    figures = await _claims(rig, where, samples)
    figures["cpu_ms_per_claim"] = (rig.cpu_seconds(operator.pid) - cpu) * 1000.0 / STOCK
    operator.kill()
    await rig.clear(where)
    return figures


async def _floor(rig: Rig, samples: dict[int, list[float]]) -> Figures:
    where = await stocked(rig, STOCK)
    floor = await Floor.start("bind", **rig.access(where), count=STOCK)
    cpu = rig.cpu_seconds(floor.pid)
    floor.go()
    figures = await _claims(rig, where, samples)
    figures["cpu_ms_per_claim"] = ((await floor.ended())["cpu_seconds"] - cpu) * 1000.0 / STOCK
    await rig.clear(where)
    return figures


async def _claims(rig: Rig, where: Field, samples: dict[int, list[float]]) -> dict[str, float]:
    """Make ``STOCK`` claims in a field that somebody serves."""
    before = await rig.writes()
    followed = stock_needed(1, FOLLOWED)
    async with _eyes(rig, where) as eyes:
        await _waits(rig, where, 1, FOLLOWED)
        await until(partial(eyes.settled, followed), deadline=SETTLED_SECONDS, what="all are Bound and Claimed")
    figures = {"writes_before_bound": statistics.fmean(writes_before_bound(eyes.claims, eyes.vms))}
    for clients in CLIENTS:
        waits = await _waits(rig, where, clients, COUNT)
        samples[clients] += waits.each_ms
        figures[f"p{MIDDLE}_ms_{clients}"] = percentile(waits.each_ms, MIDDLE)
        figures[f"claims_per_second_{clients}"] = waits.per_second
    await until(partial(_all_claimed, rig, where), deadline=SETTLED_SECONDS, what="every VM is Claimed")
    made = since(before, await rig.writes())
    rig.say(f"  {made}")
    figures["writes_per_claim"] = (_on(made, "vmclaims", "pooledvms") - STOCK) / STOCK
    figures["other_writes_per_claim"] = _on(made, *OTHERS) / STOCK
    return figures


async def _waits(rig: Rig, where: Field, clients: int, count: int) -> Waits:
    address = {"kubeconfig": str(rig.plane.kubeconfig), "namespace": where.namespace, "pool": POOL}
    return await (await Clients.start("claim", **address, clients=clients, count=count)).waits()


async def _all_claimed(rig: Rig, where: Field) -> bool:
    found = 0
    async for page in rig.client.list_pages(POOLEDVMS, where.namespace, field_selector="status.phase=Claimed"):
        found += len(page.items)
    return found == STOCK


@asynccontextmanager
async def _eyes(rig: Rig, where: Field) -> AsyncIterator[Eyes]:
    """Yield eyes that see what happens from now on."""
    eyes = Eyes()

    async def follow(resource: Resource, version: str, seen: list[Version]) -> None:
        async for kind, raw in rig.client.watch(resource, where.namespace, version, WATCH, SILENCE):
            if kind in ("ADDED", "MODIFIED"):
                seen.append(_version(raw))

    tasks = []
    for resource, seen in ((VMCLAIMS, eyes.claims), (POOLEDVMS, eyes.vms)):
        page = await rig.client.list_page(resource, where.namespace, limit=1)
        tasks.append(asyncio.create_task(follow(resource, page.resource_version, seen)))
    try:
        yield eyes
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def _version(raw: Json) -> Version:
    meta, status = raw["metadata"], raw.get("status", {})
    vms = tuple(vm["uid"] for vm in status.get("vms", ()))
    return Version(meta["uid"], int(meta["resourceVersion"]), status.get("phase", ""), vms)


def _tails(samples: dict[int, list[float]]) -> Figures:
    """Return the percentile that one pair has too few samples for."""
    return {f"p{TAIL}_ms_{clients}": percentile(each, TAIL) for clients, each in samples.items()}


def _on(made: Figures, *kinds: str) -> float:
    return sum(number for name, number in made.items() if name.startswith(kinds))


NOTES = {
    "p99_ms": "over all samples of all pairs",
    "writes_before_bound": "on the VMClaim and its VM, by their versions in a watch, its making aside",
    "writes_per_claim": "on VMClaims and PooledVMs by the API server's count, its making aside",
    "other_writes_per_claim": "on pools, providers and events",
}
