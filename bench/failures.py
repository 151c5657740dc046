"""``failures``: how fast pools of one provider fill while a thousand machines of another one fail at once."""

import asyncio
import base64
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import psutil
from prometheus_client.parser import text_string_to_metric_families
from tests.clouds import SimCloud

from bench.cold_start import settled
from bench.figures import Figures, Pair, Promise, Result
from bench.fill import Variant
from bench.processes import Operator
from bench.rig import PROVIDER, Field, Rig, pool_body, thing
from bench.stock import stocked
from vmpool.kube.errors import NotFound
from vmpool.kube.kinds import DEAD_LETTER_QUEUES, DEAD_LETTERS, POOLEDVMS, SECRETS, VMPOOLS, VMPROVIDERS
from vmpool.kube.resource import Json, Resource

FAILING = int(os.environ.get("VMPOOL_BENCH_FAILING", "1000"))
"""Machines that fail at once. With fewer a fill outlasts the failures, and that is told as an error."""
POOLS = ("one", "two")
OTHER = "other"
QUEUE = "failures"
LISTING_SECONDS = 10
"""Between two listings of the cloud whose machines fail: long enough for all of them to fail in between."""
LOOK_SECONDS = 0.02
DEADLINE_SECONDS = 300.0
FATES_AT_ONCE = 8
DROPS_AT_ONCE = 16
LEAST = 0.9
VARIANTS = (Variant("1s_20", 1.0, slots=20, pending=40, count=300, slack=1 / LEAST), Variant("instant", count=600))
"""Only where a cloud holds a fill back there is something to promise: at one that makes machines at once the fill takes
all the CPU that the machine has, and whatever else is done takes its part of that."""


@dataclass(frozen=True)
class Scene:
    """One half of a pair: a full pool on one cloud, nothing yet on the other, and an operator that has settled."""

    rig: Rig
    where: Field
    other: SimCloud
    operator: Operator


async def run(rig: Rig, pairs: int) -> Result:
    """Fill pools with and without the failures, in turns: what comes first in one pair comes second in the next."""
    other = SimCloud(rig.folder_for("cloud"))
    rig.exits.callback(other.stop)
    other.start()
    runs = []
    for number in range(pairs):
        found: dict[bool, dict[str, float]] = {True: {}, False: {}}
        for variant in VARIANTS:
            for failing in (True, False) if number % 2 else (False, True):
                rig.say(f"pair {number + 1}: {variant.name}, {'failures' if failing else 'calm'}")
                figures = await _half(rig, other, variant, failing=failing)
                found[failing] |= {f"{name}_{variant.name}": value for name, value in figures.items()}
        runs.append(Pair(found[True], found[False]))
    promises = [
        Promise(f"vms_per_second_{one.name}", LEAST, at_least=True, ratio=True) for one in VARIANTS if one.slack
    ]
    return Result("failures", runs, promises, NOTES)


async def _half(rig: Rig, other: SimCloud, variant: Variant, *, failing: bool) -> Figures:
    async with _scene(rig, other, variant) as scene:
        # The calm half waits for the same listings: both begin when the operator has just looked.
        await _listed_again(scene)
        if failing:
            await _fail_all(scene)
        await _listed_again(scene)
        before, letters = _cpu(scene), _letters(scene.operator)
        began = time.monotonic()
        each = variant.count // len(POOLS)
        for name in POOLS:
            spec = {"providers": [{"name": OTHER}], "limits": {"pending": variant.pending // len(POOLS)}}
            await rig.client.create(VMPOOLS, scene.where.namespace, pool_body(each, name, **spec))
        await asyncio.gather(*(_filled(scene, name, each) for name in POOLS))
        seconds = time.monotonic() - began
        letters = _letters(scene.operator) - letters
        used = {f"{name}_cpu_seconds": value - before[name] for name, value in _cpu(scene).items()}
        rig.say(f"  {seconds:.2f} s, {letters:.0f} letters, {used}")
        assert not failing or 0 < letters < FAILING, "the failures must last as long as the fill"
        return {"vms_per_second": each * len(POOLS) / seconds, "letters_per_second": letters / seconds, **used}


@asynccontextmanager
async def _scene(rig: Rig, other: SimCloud, variant: Variant) -> AsyncIterator[Scene]:
    observe = {"interval": f"{LISTING_SECONDS}s"}
    where = await stocked(rig, FAILING, provider={"observe": observe}, deadLetterQueue=QUEUE)
    for cloud in (rig.cloud, other):
        steps = {"disk": 0.0, "nic": 0.0, "boot": variant.machine_seconds}
        cloud.settings(createSeconds=steps, deleteSeconds=0.0, buildSlots=variant.slots if cloud is other else None)
    await rig.client.create(DEAD_LETTER_QUEUES, where.namespace, thing(DEAD_LETTER_QUEUES, QUEUE, {}))
    await _other_provider(rig, where, other)
    operator = rig.operator(where)
    operator.start()
    await settled(rig, where, operator, FAILING)
    try:
        yield Scene(rig, where, other, operator)
    finally:
        operator.kill()
        await rig.clear(where)
        await _drop_letters(rig, where)


async def _other_provider(rig: Rig, where: Field, cloud: SimCloud) -> None:
    key = base64.b64encode(cloud.tenant().key.encode()).decode()
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": OTHER}, "data": {"apiKey": key}}
    await rig.client.create(SECRETS, where.namespace, secret)
    spec = {"type": "simulated", "config": {"endpoint": cloud.url}, "secretRef": {"name": OTHER}}
    await rig.client.create(VMPROVIDERS, where.namespace, thing(VMPROVIDERS, OTHER, spec))


async def _fail_all(scene: Scene) -> None:
    """Let every second machine vanish, and the others say that they have failed."""
    found = scene.rig.cloud.ledger()["machines"]
    mine = [one["id"] for one in found if one["tenant"] == scene.where.tenant.name and one["state"] != "Gone"]
    assert len(mine) == FAILING, f"{len(mine)} machines"
    left = iter(enumerate(mine))

    async def worker() -> None:
        for number, machine in left:
            await asyncio.to_thread(scene.rig.cloud.fate, machine, "vanish" if number % 2 else "fail")

    await asyncio.gather(*(worker() for _ in range(FATES_AT_ONCE)))


async def _filled(scene: Scene, pool: str, count: int) -> None:
    """Watch until a pool has so many Ready VMs; nothing of the failing pool is read."""
    client, namespace = scene.rig.client, scene.where.namespace
    selector = f"spec.pool={pool},status.phase=Ready"
    page = await client.list_page(POOLEDVMS, namespace, field_selector=selector)
    ready = {item["metadata"]["uid"] for item in page.items}
    limits = (timedelta(seconds=DEADLINE_SECONDS), timedelta(seconds=DEADLINE_SECONDS))
    events = client.watch(POOLEDVMS, namespace, page.resource_version, *limits, field_selector=selector)
    async for kind, obj in events:
        if kind in ("ADDED", "MODIFIED"):
            ready.add(obj["metadata"]["uid"])
        if len(ready) >= count:
            break
    await events.aclose()
    assert len(ready) >= count, f"pool {pool} has {len(ready)} Ready VMs after {DEADLINE_SECONDS:g} s"


# --- looking ---------------------------------------------------------------------------------------


async def _listed_again(scene: Scene) -> None:
    """Wait until a complete listing of the cloud whose machines fail has just ended."""
    calls = {"provider": PROVIDER, "operation": "list"}

    def listings() -> float:
        return _counted(scene.operator, "vmpool_provider_call_seconds_count", calls)

    before, end = await asyncio.to_thread(listings), time.monotonic() + DEADLINE_SECONDS
    while await asyncio.to_thread(listings) == before:
        assert time.monotonic() < end, "the operator does not list machines"
        await asyncio.sleep(LOOK_SECONDS)


def _letters(operator: Operator) -> float:
    return _counted(operator, "vmpool_dead_letters_written_total", {})


def _counted(operator: Operator, name: str, labels: Mapping[str, str]) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(operator.http("/metrics"))
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def _cpu(scene: Scene) -> dict[str, float]:
    """Return the CPU seconds so far of everybody who shares the machine."""
    rig, own = scene.rig, psutil.Process().cpu_times()
    return {
        "operator": rig.cpu_seconds(scene.operator.pid),
        "plane": rig.plane_cpu_seconds(),
        "failing_cloud": rig.cpu_seconds(rig.cloud.pid),
        "other_cloud": rig.cpu_seconds(scene.other.pid),
        "eyes": float(own.user + own.system),
    }


# --- clearing --------------------------------------------------------------------------------------


async def _drop_letters(rig: Rig, where: Field) -> None:
    limit = asyncio.Semaphore(DROPS_AT_ONCE)

    async def drop(resource: Resource, raw: Json) -> None:
        async with limit:
            with suppress(NotFound):
                await rig.client.delete(resource, where.namespace, raw["metadata"]["name"], uid=raw["metadata"]["uid"])

    for resource in (DEAD_LETTERS, DEAD_LETTER_QUEUES):
        async for page in rig.client.list_pages(resource, where.namespace):
            await asyncio.gather(*(drop(resource, item) for item in page.items))


NOTES = {
    "vms_per_second": f"VMs of {len(POOLS)} pools; the floor is the same while nothing fails",
    "letters_per_second": "dead letters written meanwhile",
    "1s_20": "300 VMs; the cloud makes 20 machines at a time, 1 s each",
    "instant": "600 VMs; machines run at once: only API server and operator count, and nothing is promised",
}
