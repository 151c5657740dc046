"""``cold_start``: what a new operator process costs until it has its first plan, over fields that are full already."""

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

from tests.waiting import until

from bench.figures import Pair, Promise, Result
from bench.processes import Operator, child_figures
from bench.rig import INSTALL_ID, Field, Rig
from bench.stock import stocked
from vmpool.kube.kinds import POOLEDVMS, VMPOOLS

SIZES = (0, 2_000, 4_000)
STARTS = 3
"""Turns in a pair. Of each size the least counts: noise only ever adds."""
PLAN_SECONDS = 60.0
LOOK_SECONDS = 0.002
"""Between two looks at the log: what the process does meanwhile is counted as if it came before the plan."""
FIRST_PLAN = b'"first_plan"'
CPU_CLOCK = 2
"""The kernel's number of the clock that counts a process' CPU time, of all its threads, exact to nanoseconds."""

Turn = dict[str, float]
"""One start at each size, one right after the other."""


async def run(rig: Rig, pairs: int) -> Result:
    """Start operators over fields of every size."""
    fields = {size: await _served(rig, size) for size in SIZES}
    runs: list[tuple[dict[str, float], dict[str, float]]] = []
    turns: list[Turn] = []
    floor_turns: list[Turn] = []
    for number in range(pairs):
        ours: dict[str, float] = {}
        floor: dict[str, float] = {}
        # All sizes in turn, not one after the other: what slows the machine for a while must not bend the growth.
        for start in range(STARTS):
            rig.say(f"pair {number + 1}, start {start + 1}")
            turn, floor_turn = dict[str, float](), dict[str, float]()
            for size, where in fields.items():
                turn |= _named(await _ours(rig, where, size), size)
                floor_turn |= _named(await _floor(rig, where, size), size)
            _keep_least(ours, turn)
            _keep_least(floor, floor_turn)
            turns.append(turn)
            floor_turns.append(floor_turn)
        runs.append((ours, floor))
    for where in fields.values():
        await rig.clear(where)
    return Result(
        "cold_start",
        [Pair({**one, "growth": growth(turns)}, {**other, "growth": growth(floor_turns)}) for one, other in runs],
        [Promise("cpu_seconds_2000", 2.0), Promise("growth", 1.2)],
        {"growth": "CPU(4000) - CPU(2000) as a multiple of CPU(2000) - CPU(0), medians over all turns."},
    )


def growth(turns: Sequence[Turn]) -> float:
    """Return how much more the second half of the VMs costs than the first; 1 when cost is in proportion.

    Both are differences of a tenth of a second between starts that take a whole one. So each is taken within a turn,
    whose starts follow each other, and the median is over all turns of the run.
    """
    none, half, whole = ([turn[f"cpu_seconds_{size}"] for turn in turns] for size in SIZES)
    first = statistics.median(b - a for a, b in zip(none, half, strict=True))
    second = statistics.median(b - a for a, b in zip(half, whole, strict=True))
    return second / first


def cpu_clock(pid: int) -> float:
    """Return the CPU seconds of a process and all its threads, also of those that have ended.

    Raises OSError when there is no such process.
    """
    return time.clock_gettime((~pid << 3) | CPU_CLOCK)


async def settled(rig: Rig, where: Field, operator: Operator, size: int) -> None:
    """Wait until an operator leads, its provider is Ready, and the pool's status says that ``size`` VMs are."""

    async def told() -> bool:
        pools = await rig.client.list_page(VMPOOLS, where.namespace)
        return all(raw.get("status", {}).get("readyReplicas") == size for raw in pools.items)

    await operator.ready()
    await rig.provider_ready(where)
    await until(told, what=f"the pool says that {size} VMs are ready")


async def _served(rig: Rig, size: int) -> Field:
    """Return a full field that an operator has served before: finalizers and status are written, as at a restart."""
    rig.say(f"stocking {size} VMs")
    where = await stocked(rig, size)
    operator = rig.operator(where)
    operator.start()
    await settled(rig, where, operator, size)
    operator.stop()
    return where


async def _ours(rig: Rig, where: Field, size: int) -> dict[str, float]:
    stock = await _stock(rig, where)
    assert len(stock) == size, f"{len(stock)} VMs instead of {size}"
    operator = rig.operator(where)
    began = time.monotonic()
    operator.start()
    await _planned(operator)
    figures = {"cpu_seconds": cpu_clock(operator.pid), "seconds": time.monotonic() - began}
    # Gently: it gives its lease back, for which the next one would have to wait otherwise.
    operator.stop()
    assert f'"vms": {size}' in operator.lines(), f"the plan was not over {size} VMs:\n{operator.lines()[-3000:]}"
    assert await _stock(rig, where) == stock, "the operator has changed what it was only to look at"
    rig.say(f"   {figures['cpu_seconds']:.3f} CPU s in {figures['seconds']:.2f} s")
    return figures


async def _planned(operator: Operator) -> None:
    end = time.monotonic() + PLAN_SECONDS
    while FIRST_PLAN not in operator.log.read_bytes():
        assert operator.running, f"the operator ended:\n{operator.lines()[-3000:]}"
        assert time.monotonic() < end, f"no plan within {PLAN_SECONDS:g} s:\n{operator.lines()[-3000:]}"
        await asyncio.sleep(LOOK_SECONDS)


async def _stock(rig: Rig, where: Field) -> dict[str, str]:
    """Return the resourceVersion of every Ready VM by uid: it stays while nobody writes."""
    found: dict[str, str] = {}
    async for page in rig.client.list_pages(POOLEDVMS, where.namespace):
        for raw in page.items:
            if raw["status"]["phase"] == "Ready" and "deletionTimestamp" not in raw["metadata"]:
                found[raw["metadata"]["uid"]] = raw["metadata"]["resourceVersion"]
    return found


async def _floor(rig: Rig, where: Field, size: int) -> dict[str, float]:
    options: dict[str, Any] = {**rig.access(where), "install": INSTALL_ID, "count": size}
    began = time.monotonic()
    figures = await child_figures("bench.floor_read", "cold_start", json.dumps(options))
    return {**figures, "seconds": time.monotonic() - began}


def _keep_least(kept: dict[str, float], figures: dict[str, float]) -> None:
    for name, value in figures.items():
        kept[name] = min(value, kept.get(name, value))


def _named(figures: dict[str, float], size: int) -> dict[str, float]:
    return {f"{name}_{size}": value for name, value in figures.items()}
