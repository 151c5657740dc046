"""Who kills: one process, or both operators at once, every half second to every five seconds."""

import asyncio
import random
import time
from collections.abc import Sequence

from tests.faults.hammer.processes import Kept
from tests.faults.hammer.users import Office
from tests.faults.rig.nursery import GATEWAY, OPERATOR

SHORTEST_SECONDS, LONGEST_SECONDS = 0.5, 4.4
"""With what a gateway is spared, at most five seconds."""
BOTH = 0.08
"""Share of the kills that take all operators at once."""
GATEWAYS = 0.27
"""Share that takes a gateway."""


WAIT_SECONDS = 0.5
"""How long a gateway is spared until somebody asks it for something."""
MIDDLE_SECONDS = 0.04
"""How long after that at most: about as long as a checkout takes."""


class Killer:
    """Kills until the time is over."""

    def __init__(self, office: Office, processes: Sequence[Kept], seed: int) -> None:
        self._office = office
        self._of = {kind: [one for one in processes if one.program == kind] for kind in (OPERATOR, GATEWAY)}
        self._chance = random.Random(f"{seed}/killer")
        self.strikes = 0
        self.last = 0.0
        """When the last one was killed, in Unix seconds."""

    async def live(self, seconds: float) -> None:
        """Go on for so long, or until the load is over."""
        end = time.monotonic() + seconds
        while not self._office.over.is_set():
            pause = self._chance.uniform(SHORTEST_SECONDS, LONGEST_SECONDS)
            if time.monotonic() + pause > end:
                return
            await self._office.rest(pause)
            await self.strike()

    async def strike(self) -> None:
        """Kill whoever it is the turn of; somebody who has only just died is left alone."""
        pick, which, late = (self._chance.random() for _ in range(3))
        kind = GATEWAY if pick > 1.0 - GATEWAYS else OPERATOR
        number = int(which * len(self._of[kind]))
        one = self._of[kind][number]
        if kind == GATEWAY:
            await self._in_the_middle(self._office.gateways[number], late * MIDDLE_SECONDS)
        victims = self._of[OPERATOR] if pick < BOTH else [one]
        # All of them, not only the first that could be killed.
        if sum(victim.kill() for victim in victims):
            self.strikes += 1
            self.last = time.time()

    async def _in_the_middle(self, url: str, late: float) -> None:
        """Wait for the next request to a gateway, and a moment more: a blind kill hardly ever meets one."""
        sent = self._office.sent[url]
        sent.clear()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await sent.wait()
        except TimeoutError:
            return
        await asyncio.sleep(late)
