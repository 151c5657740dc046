"""A rate: so many a second, whoever asks."""

import asyncio
import time


class Pace:
    """Gives out moments that are at least so far apart; nobody who waits keeps a place of anybody else."""

    def __init__(self, per_second: float) -> None:
        self._apart = 1 / per_second
        self._free_at = 0.0

    async def turn(self) -> None:
        """Wait for the next free moment."""
        now = time.monotonic()
        mine = max(now, self._free_at)
        self._free_at = mine + self._apart
        if mine > now:
            await asyncio.sleep(mine - now)
