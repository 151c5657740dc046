"""``memory``: how much more an operator that has settled keeps resident for each VM."""

import asyncio
import json
import time

import psutil
from prometheus_client.parser import text_string_to_metric_families
from tests.waiting import until

from bench.cold_start import settled
from bench.figures import Pair, Promise, Result
from bench.processes import Operator, child_figures
from bench.rig import INSTALL_ID, Field, Rig
from bench.stock import stocked

SIZES = (0, 1_000, 5_000)
LISTING_SECONDS = 5
"""Between two listings: short, so that two are done soon and one falls into the time of watching."""
LISTINGS = 2
WATCHED_SECONDS = 10.0
PAUSE_SECONDS = 0.2
SETTLE_SECONDS = 90.0
KB = 1024.0


async def run(rig: Rig, pairs: int) -> Result:
    """Measure operators over fields of every size.

    Those of one pair run at the same time: what is resident does not depend on who else is, and it takes a third of
    the time.
    """
    fields: dict[int, Field] = {}
    for size in SIZES:
        rig.say(f"stocking {size} VMs")
        fields[size] = await stocked(rig, size, provider={"observe": {"interval": f"{LISTING_SECONDS}s"}})
    runs: list[Pair] = []
    for number in range(pairs):
        rig.say(f"pair {number + 1}")
        ours = await asyncio.gather(*(_ours(rig, where, size) for size, where in fields.items()))
        floor = [await _floor(rig, where, size) for size, where in fields.items()]
        runs.append(Pair(_per_vm(list(ours)), _per_vm(floor)))
    for where in fields.values():
        await rig.clear(where)
    promises = [Promise(f"kb_per_vm_{size}", 20.0) for size in SIZES if size]
    return Result("memory", runs, promises, {"kb_per_vm_5000": "(RSS(5000) - RSS(0)) / 5000; 1 KB is 1024 bytes."})


def _per_vm(measured_kb: list[dict[str, float]]) -> dict[str, float]:
    """Return what each size adds per VM, and what is resident in all."""
    none, figures = measured_kb[0], {}
    for size, kb in zip(SIZES, measured_kb, strict=True):
        figures[f"rss_mb_{size}"] = kb["rss"] / KB
        if size:
            figures[f"kb_per_vm_{size}"] = (kb["rss"] - none["rss"]) / size
            if "uss" in kb:
                figures[f"uss_kb_per_vm_{size}"] = (kb["uss"] - none["uss"]) / size
    return figures


async def _ours(rig: Rig, where: Field, size: int) -> dict[str, float]:
    operator = rig.operator(where)
    operator.start()
    await settled(rig, where, operator, size)

    async def listed() -> bool:
        return await _listed(operator, size)

    await until(listed, deadline=SETTLE_SECONDS, what=f"{size} machines are listed twice")
    kb = await _most_resident(operator)
    assert await _listed(operator, size), "the machines have become fewer or more"
    # In a thread: the others are still being looked at.
    await asyncio.to_thread(operator.stop)
    rig.say(f"   {size} VMs: {kb['rss'] / KB:.1f} MB resident")
    return kb


async def _listed(operator: Operator, size: int) -> bool:
    """Say whether complete listings have shown so many machines, often enough, and the first plan is made."""
    assert operator.running, f"the operator ended:\n{operator.lines()[-3000:]}"
    text = await asyncio.to_thread(operator.http, "/metrics")
    machines, listings = None, 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "vmpool_machines":
                machines = sample.value
            elif sample.name == "vmpool_provider_call_seconds_count" and sample.labels["operation"] == "list":
                listings += sample.value
    return machines == size and listings >= LISTINGS and f'"vms": {size}' in operator.lines()


async def _most_resident(operator: Operator) -> dict[str, float]:
    """Return the largest resident and unique size, in KB, while a listing comes and goes."""
    process = psutil.Process(operator.pid)
    rss = uss = 0
    end = time.monotonic() + WATCHED_SECONDS
    while time.monotonic() < end:
        found = process.memory_full_info()
        rss, uss = max(rss, found.rss), max(uss, found.uss)
        await asyncio.sleep(PAUSE_SECONDS)
    return {"rss": rss / KB, "uss": uss / KB}


async def _floor(rig: Rig, where: Field, size: int) -> dict[str, float]:
    options = {**rig.access(where), "install": INSTALL_ID, "count": size}
    figures = await child_figures("bench.floor_read", "memory", json.dumps(options))
    return {"rss": figures["rss_kb"]}
