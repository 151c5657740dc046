"""``fill``: from the manifest of a pool until its last VM is Ready."""

import time
from dataclasses import dataclass
from typing import Any

from bench.figures import Figures, Pair, Promise, Result
from bench.processes import Floor
from bench.rig import Field, Rig, since

COUNT = 500


@dataclass(frozen=True)
class Variant:
    """A cloud, and how many machines may be in the making at once."""

    name: str
    machine_seconds: float
    pending: int
    bound: float
    """Seconds that machines and their number alone take; 0 where only our own work counts."""
    slack: float
    """Allowed times of the bound."""


VARIANTS = (
    Variant("instant", 0.0, 100, 0.0, 0.0),
    Variant("1s_100", 1.0, 100, COUNT / 100 * 1.0, 1.3),
    Variant("1s_10", 1.0, 10, COUNT / 10 * 1.0, 1.1),
)


async def run(rig: Rig, pairs: int, only: str = "") -> Result:
    """Fill pools of every variant."""
    runs: list[Pair] = []
    variants = [one for one in VARIANTS if only in ("", one.name)]
    for number in range(pairs):
        ours: dict[str, float] = {}
        floor: dict[str, float] = {}
        for variant in variants:
            rig.cloud.settings(
                createSeconds={"disk": 0.0, "nic": 0.0, "boot": variant.machine_seconds}, deleteSeconds=0.0
            )
            rig.say(f"pair {number + 1}: {variant.name}")
            ours |= _named(variant, await _ours(rig, variant))
            floor |= _named(variant, await _floor(rig, variant))
        runs.append(Pair(ours, floor))
    promises = [Promise(f"writes_per_vm_{one.name}", 3.0) for one in variants]
    for one in variants:
        if one.bound:
            promises.append(Promise(f"seconds_{one.name}", one.bound * one.slack))
        else:
            promises.append(Promise(f"vms_per_second_{one.name}", 0.6, at_least=True, ratio=True))
    return Result("fill", runs, promises)


def _named(variant: Variant, figures: Figures) -> Figures:
    return {f"{name}_{variant.name}": value for name, value in figures.items()}


async def _ours(rig: Rig, variant: Variant) -> Figures:
    where = await rig.field()
    await rig.provider(where)
    operator = rig.operator(where)
    operator.start()
    await operator.ready()
    await rig.provider_ready(where)
    cpu = rig.cpu_seconds(operator.pid)
    limits: dict[str, Any] = {"pending": variant.pending}
    figures = await _until_full(rig, where, lambda: rig.pool(where, COUNT, limits=limits))
    figures["cpu_seconds"] = rig.cpu_seconds(operator.pid) - cpu
    operator.kill()
    await rig.clear(where)
    return figures


async def _floor(rig: Rig, variant: Variant) -> Figures:
    where = await rig.field()
    await rig.pool(where, COUNT)
    floor = await Floor.start(
        "fill",
        **rig.access(where),
        count=COUNT,
        pending=variant.pending if variant.machine_seconds else 32,
        machine_seconds=variant.machine_seconds,
    )

    async def go() -> None:
        floor.go()

    cpu = rig.cpu_seconds(floor.pid)
    figures = await _until_full(rig, where, go)
    figures["cpu_seconds"] = (await floor.ended())["cpu_seconds"] - cpu
    await rig.clear(where)
    return figures


async def _until_full(rig: Rig, where: Field, begin: Any) -> dict[str, float]:
    before = await rig.writes()
    ready = rig.each_ready(where)
    await anext(ready)
    began = time.monotonic()
    await begin()
    async for count in ready:
        if count >= COUNT:
            break
    seconds = time.monotonic() - began
    await ready.aclose()
    made = since(before, await rig.writes())
    ours = {name: count for name, count in made.items() if not name.startswith("leases")}
    rig.say(f"   {seconds:.2f} s {ours}")
    return {
        "seconds": seconds,
        "vms_per_second": COUNT / seconds,
        "writes_per_vm": sum(ours.values()) / COUNT,
    }
