"""``idle``: what a full pool costs while nothing happens, beyond an operator that has nothing to do."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from bench.figures import Pair, Promise, Result
from bench.listener import Listener, free_port, listening
from bench.processes import Floor, Operator
from bench.rig import Field, Rig, since
from bench.stock import stocked
from vmpool.kube.kinds import POOLEDVMS, VMPOOLS, VMPROVIDERS

COUNT = 1000
WINDOW_SECONDS = 60
FEWEST_PROBES = 0.95
"""Of one a minute for each VM: with fewer the operator has saved by not doing its work."""
FEWEST_LISTINGS = 1.0
"""A minute; by default there are two, and the border of a window may cut one off."""
QUIET_SECONDS = 10.0
"""Without a change of any status: then the operators have settled."""
SETTLE_SECONDS = 180.0
LULL_SECONDS = 0.5
"""Without a probe: then a burst of them is over."""
BURST_SECONDS = 12.0
"""Within which a burst comes, or there are none: probes fall on a grid of a twelfth of their interval, 5 s."""
NOTES = {
    "cpu_seconds_per_minute": f"of the operator with {COUNT} VMs, less that of an empty one in the same minute",
    "writes_per_minute": "of both operators, leases left out",
    "reads_per_minute": f"requests to the API server by the operator with {COUNT} VMs that change nothing",
}


@dataclass(frozen=True)
class Scene:
    """Two operators, one with a full pool and one with an empty one, and who answers the probes of each client."""

    rig: Rig
    full: Field
    operator: Operator
    empty: Operator
    listener: Listener
    of_floor: Listener


@dataclass(frozen=True)
class Reading:
    """Counters at one moment. The CPU is read nearest to the window: reading the others costs the operators some."""

    at: float
    cpu: float
    cpu_empty: float
    probes: float
    writes: Mapping[str, float]
    reads: float
    listings: float


async def run(rig: Rig, pairs: int) -> Result:
    """Let a pool of ``COUNT`` VMs be, one minute for each pair; the floor does its probes and listings beside it.

    Raises AssertionError when the operator did not probe and list: its cost would say nothing.
    """
    port = free_port()
    rig.say(f"{COUNT} VMs are made")
    full = await stocked(rig, COUNT, readiness={"tcpSocket": {"port": port}})
    empty = await stocked(rig, 0)
    addresses = await _addresses(rig, full)
    # A port of its own for the floor: otherwise its connections would count as the operator's.
    async with listening(port, addresses) as listener, listening(free_port(), addresses) as of_floor:
        scene = Scene(rig, full, rig.operator(full), rig.operator(empty), listener, of_floor)
        for operator, where in ((scene.operator, full), (scene.empty, empty)):
            operator.start()
            await operator.ready()
            await rig.provider_ready(where)
        await _settled(scene, (full, empty))
        runs = [await _pair(scene, number) for number in range(pairs)]
        for operator in (scene.operator, scene.empty):
            operator.kill()
    await rig.clear(full)
    await rig.clear(empty)
    promises = [Promise("writes_per_minute", 0.0), Promise("cpu_seconds_per_minute", 0.3)]
    return Result("idle", runs, promises, NOTES)


async def _pair(scene: Scene, number: int) -> Pair:
    floor = await Floor.start("idle", **scene.rig.access(scene.full), port=scene.of_floor.port, seconds=WINDOW_SECONDS)
    await _after_burst(scene.listener)
    before = await _before(scene)
    floor.go()
    await asyncio.sleep(WINDOW_SECONDS)
    after = await _after(scene)
    bare = await floor.ended()
    answered = sum((await scene.of_floor.accepted()).values()) / (number + 1)
    assert answered == bare["connections"] == COUNT, f"the floor connected {answered:g} times instead of {COUNT}"
    minutes = (after.at - before.at) / 60.0
    ours = _figures(before, after, minutes)
    made = since(before.writes, after.writes)
    cost = f"{ours['full_cpu_seconds_per_minute']:.2f} s, empty {ours['empty_cpu_seconds_per_minute']:.2f} s"
    scene.rig.say(f"pair {number + 1}: CPU {cost}; writes {made}")
    assert ours["probes_per_minute"] >= COUNT * FEWEST_PROBES, f"only {ours['probes_per_minute']:.0f} probes a minute"
    assert ours["listings_per_minute"] >= FEWEST_LISTINGS, "the provider was not listed"
    per_minute = 60.0 / bare["seconds"]
    return Pair(
        ours,
        {
            "cpu_seconds_per_minute": bare["cpu_seconds"] * per_minute,
            "probes_per_minute": bare["connections"] * per_minute,
            "listings_per_minute": bare["listings"] * per_minute,
        },
    )


def _figures(before: Reading, after: Reading, minutes: float) -> dict[str, float]:
    made = since(before.writes, after.writes)
    leases = sum(count for name, count in made.items() if name.startswith("leases"))
    cpu, cpu_empty = after.cpu - before.cpu, after.cpu_empty - before.cpu_empty
    return {
        "writes_per_minute": (sum(made.values()) - leases) / minutes,
        "lease_writes_per_minute": leases / minutes,
        "cpu_seconds_per_minute": (cpu - cpu_empty) / minutes,
        "full_cpu_seconds_per_minute": cpu / minutes,
        "empty_cpu_seconds_per_minute": cpu_empty / minutes,
        "probes_per_minute": (after.probes - before.probes) / minutes,
        "listings_per_minute": (after.listings - before.listings) / minutes,
        "reads_per_minute": (after.reads - before.reads) / minutes,
    }


async def _before(scene: Scene) -> Reading:
    """Read everything, the CPU last."""
    writes = await scene.rig.writes()
    reads, listings = await _said(scene.operator)
    return await _now(scene, writes, reads, listings)


async def _after(scene: Scene) -> Reading:
    """Read everything, the CPU first."""
    now = await _now(scene, {}, 0.0, 0.0)
    reads, listings = await _said(scene.operator)
    return Reading(now.at, now.cpu, now.cpu_empty, now.probes, await scene.rig.writes(), reads, listings)


async def _now(scene: Scene, writes: Mapping[str, float], reads: float, listings: float) -> Reading:
    probes = sum((await scene.listener.accepted()).values())
    cpu, cpu_empty = (scene.rig.cpu_seconds(one.pid) for one in (scene.operator, scene.empty))
    return Reading(time.monotonic(), cpu, cpu_empty, probes, writes, reads, listings)


async def _said(operator: Operator) -> tuple[float, float]:
    """Return how often the operator has read from the API server and listed its provider, in its own words."""
    reads = listings = 0.0
    for family in text_string_to_metric_families(await asyncio.to_thread(operator.http, "/metrics")):
        for sample in family.samples:
            if sample.name == "vmpool_api_requests_total" and sample.labels["method"] == "GET":
                reads += sample.value
            elif sample.name == "vmpool_provider_call_seconds_count" and sample.labels["operation"] == "list":
                listings += sample.value
    return reads, listings


async def _settled(scene: Scene, fields: tuple[Field, ...]) -> None:
    """Wait until every VM was probed once and no status has changed for a while."""
    end = time.monotonic() + SETTLE_SECONDS
    seen: list[str] = []
    quiet_since = time.monotonic()
    while True:
        now = time.monotonic()
        versions = await _versions(scene.rig, fields)
        if versions != seen:
            seen, quiet_since = versions, now
        probed = len(await scene.listener.accepted())
        if probed == COUNT and now >= quiet_since + QUIET_SECONDS:
            return
        assert now < end, f"not settled: {probed} of {COUNT} VMs were probed, quiet for {now - quiet_since:.0f} s"
        await asyncio.sleep(1.0)


async def _after_burst(listener: Listener) -> None:
    """Wait until a burst of probes has just ended: a border of the window would cut one in two."""
    end = time.monotonic() + BURST_SECONDS
    last = sum((await listener.accepted()).values())
    came = False
    while time.monotonic() < end:
        await asyncio.sleep(LULL_SECONDS)
        now = sum((await listener.accepted()).values())
        if came and now == last:
            return
        came, last = now != last or came, now


async def _versions(rig: Rig, fields: tuple[Field, ...]) -> list[str]:
    found = []
    for where in fields:
        for resource in (VMPOOLS, VMPROVIDERS):
            page = await rig.client.list_page(resource, where.namespace)
            found += [item["metadata"]["resourceVersion"] for item in page.items]
    return found


async def _addresses(rig: Rig, where: Field) -> list[str]:
    found: list[str] = []
    async for page in rig.client.list_pages(POOLEDVMS, where.namespace):
        found += [item["status"]["addresses"][0] for item in page.items]
    assert len(set(found)) == COUNT, f"{len(set(found))} addresses"
    return found
