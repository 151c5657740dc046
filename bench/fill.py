"""``fill``: from the manifest of a pool until its last VM is Ready."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bench.figures import Figures, Pair, Promise, Result
from bench.floor import REQUESTS
from bench.processes import Floor
from bench.rig import Field, Rig, since

COUNT = 500


@dataclass(frozen=True)
class Variant:
    """A cloud, and how much of it a pool may use."""

    name: str
    machine_seconds: float = 0.0
    """How long the cloud takes to make one machine."""
    slots: int | None = None
    """How many machines the cloud makes at a time; later ones queue. None: no limit."""
    pending: int = 100
    """``limits.pending`` of the pool: how many VMs may be on their way at a time."""
    count: int = COUNT
    slack: float = 0.0
    """Allowed times of the bound; 0: nothing is promised."""

    @property
    def bound(self) -> float:
        """Seconds that the machines alone take."""
        return self.count * self.machine_seconds / min(self.slots or self.count, self.pending)


VARIANTS = (
    Variant("instant"),
    Variant("1s_100", 1.0, slots=100, pending=200, slack=1.3),
    Variant("1s_10", 1.0, slots=10, pending=20, slack=1.1),
    # The pool itself holds back: no machine is asked for before another one is known to be Ready.
    Variant("held_100", 1.0, pending=100),
    Variant("held_10", 1.0, pending=10, count=100),
)


async def run(rig: Rig, pairs: int, only: str = "", among: Sequence[Variant] = VARIANTS) -> Result:
    """Fill pools of every variant."""
    runs: list[Pair] = []
    variants = [one for one in among if only in ("", one.name)]
    for number in range(pairs):
        ours: dict[str, float] = {}
        floor: dict[str, float] = {}
        for variant in variants:
            rig.say(f"pair {number + 1}: {variant.name}")
            steps = {"disk": 0.0, "nic": 0.0, "boot": variant.machine_seconds}
            rig.cloud.settings(createSeconds=steps, deleteSeconds=0.0, buildSlots=variant.slots)
            ours |= _named(variant, await _ours(rig, variant))
            floor |= _named(variant, await _floor(rig, variant))
        runs.append(Pair(ours, floor))
    promises = [Promise(f"writes_per_vm_{one.name}", 3.0) for one in variants]
    for one in variants:
        if one.slack:
            promises.append(Promise(f"seconds_{one.name}", one.bound * one.slack))
        elif not one.machine_seconds:
            promises.append(Promise(f"vms_per_second_{one.name}", 0.6, at_least=True, ratio=True))
    return Result("fill", runs, promises, NOTES)


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

    async def begin() -> None:
        await rig.pool(where, variant.count, limits={"pending": variant.pending})

    figures = await _until_full(rig, where, variant.count, begin)
    figures["cpu_seconds"] = rig.cpu_seconds(operator.pid) - cpu
    operator.kill()
    await rig.clear(where)
    return figures


async def _floor(rig: Rig, variant: Variant) -> Figures:
    where = await rig.field()
    await rig.pool(where, variant.count)
    floor = await Floor.start(
        "fill",
        **rig.access(where),
        count=variant.count,
        # It decides nothing, so it gains nothing from a queue at the cloud: it asks for what is made at a time.
        pending=(variant.slots or variant.pending) if variant.machine_seconds else REQUESTS,
        machine_seconds=variant.machine_seconds,
    )

    async def go() -> None:
        floor.go()

    cpu = rig.cpu_seconds(floor.pid)
    figures = await _until_full(rig, where, variant.count, go)
    figures["cpu_seconds"] = (await floor.ended())["cpu_seconds"] - cpu
    await rig.clear(where)
    return figures


async def _until_full(rig: Rig, where: Field, count: int, begin: Callable[[], Awaitable[None]]) -> dict[str, float]:
    """Begin, and watch until ``count`` VMs are Ready."""
    ready = rig.each_ready(where)
    await anext(ready)
    before = await rig.writes()
    began = time.monotonic()
    await begin()
    async for there in ready:
        if there >= count:
            break
    seconds = time.monotonic() - began
    await ready.aclose()
    made = since(before, await rig.writes())
    on_vms = sum(number for name, number in made.items() if name.startswith("pooledvms"))
    others = sum(number for name, number in made.items() if name.startswith(("vmpools", "vmproviders", "events")))
    rig.say(f"  {seconds:.2f} s, {made}")
    return {
        "seconds": seconds,
        "vms_per_second": count / seconds,
        "writes_per_vm": on_vms / count,
        "other_writes": others,
    }


NOTES = {
    "writes_per_vm": "writes on PooledVMs, by the API server's count",
    "other_writes": "all writes on pools, providers and events during the whole fill",
    "1s_100": "the cloud makes 100 machines at a time, 1 s each",
    "1s_10": "the cloud makes 10 machines at a time, 1 s each",
    "held_100": "the cloud has no limit, the pool holds itself to 100 on their way",
    "held_10": "the same with 10, for 100 VMs",
}
