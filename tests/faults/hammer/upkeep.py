"""What an administrator does meanwhile: pools roll and change their size, machines vanish, letters are answered."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence

from tests.api import Json, Objects
from tests.clouds import SimCloud
from tests.faults.hammer.users import FLAKY, WEB, Office

IMAGES = {WEB: ("sim/one", "sim/two"), FLAKY: ("sim/flaky-one", "sim/flaky-two")}
SIZES = {WEB: range(8, 21), FLAKY: range(3, 7)}
FAILURES = (("failStep", 0.25), ("failBefore", 0.2), ("replyLost", 0.1), ("neverReady", 0.05))
"""What becomes of the creates of the pool whose clones fail, each with its probability."""


class Upkeep:
    """One administrator."""

    def __init__(self, office: Office, cloud: SimCloud, pools: Objects, letters: Objects, seed: int) -> None:
        self._office = office
        self._cloud = cloud
        self._pools = pools
        self._letters = letters
        self._seed = seed
        self._chance = random.Random(f"{seed}/upkeep")
        self._images = {name: itertools.cycle(images[::-1]) for name, images in IMAGES.items()}
        self.done: Counter[str] = Counter()

    def break_clones(self) -> None:
        """From now on clones of the one pool fail now and then."""
        for number, (action, probability) in enumerate(FAILURES):
            match = {"operation": "create", "image": "sim/flaky*"}
            self._cloud.fault(action, match, probability=probability, seed=self._seed + number)

    def mend_clones(self) -> None:
        """From now on nothing fails."""
        self._cloud.clear_faults()

    async def live(self) -> None:
        """Do one thing after the other until the load is over."""
        jobs = (self._roll, self._scale, self._scale, self._vanish, self._fail, self._delete, self._redrive)
        # Clones fail from the beginning on, not only when somebody has taken what was there before.
        await self._roll(0.0)
        while not self._office.over.is_set():
            await self._office.rest(self._chance.uniform(2.0, 6.0))
            job = self._chance.choice(jobs)
            if not self._office.over.is_set() and await job(self._chance.random()):
                self.done[job.__name__.strip("_")] += 1

    async def _roll(self, pick: float) -> bool:
        name = FLAKY if pick < 0.3 else WEB
        template = {"image": next(self._images[name])}
        (await self._pools.merge(name, {"spec": {"template": template}})).ok()
        return True

    async def _scale(self, pick: float) -> bool:
        name = FLAKY if pick < 0.3 else WEB
        (await self._pools.merge(name, {"spec": {"replicas": self._chance.choice(SIZES[name])}})).ok()
        return True

    async def _vanish(self, pick: float) -> bool:
        return await self._fate(pick, "vanish")

    async def _fail(self, pick: float) -> bool:
        return await self._fate(pick, "fail")

    async def _fate(self, pick: float, fate: str) -> bool:
        """Something happens to a machine that nobody has just now."""
        vm = _picked(await self._free(), pick)
        if vm is not None:
            await asyncio.to_thread(self._cloud.fate, vm["status"]["machineId"], fate)
        return vm is not None

    async def _delete(self, pick: float) -> bool:
        """Somebody deletes a VM by hand that nobody has just now."""
        vm = _picked(await self._free(), pick)
        return vm is not None and (await self._office.vms.delete(vm["metadata"]["name"])).status == 200

    async def _redrive(self, pick: float) -> bool:
        """Answer one letter that nobody has answered yet."""
        kept = [one for one in (await self._letters.list()).ok()["items"] if not one["spec"].get("action")]
        letter = _picked(kept, pick)
        if letter is None:
            return False
        action = {"spec": {"action": self._chance.choice(["redrive", "redrive", "discard"])}}
        # 404: it is gone by its queue's own rules.
        return (await self._letters.merge(letter["metadata"]["name"], action)).status == 200

    async def _free(self) -> list[Json]:
        listed = (await self._office.vms.list(fieldSelector="status.phase=Ready")).ok()["items"]
        return [vm for vm in listed if not vm["spec"].get("claim")]


def _picked(things: Sequence[Json], pick: float) -> Json | None:
    return things[int(pick * len(things))] if things else None
