"""Looks at single machines of one provider, merged: a few are asked for one by one, many at once by one listing.

A pool that fills looks at a hundred machines in the same second. Asked one by one that is a hundred requests, which
no provider likes; one listing tells the same.
"""

import asyncio
import copy
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

from vmpool.engine import farside
from vmpool.engine.lane import Lane, Slots, Urgency
from vmpool.providers.base import Machine
from vmpool.providers.errors import ProviderError

GATHER_SECONDS: Final = 0.005
"""How long a look waits for others to join it: less than one request takes."""
FEW: Final = 8
"""So many are always asked for one by one."""
LISTING_SHARE: Final = 0.1
"""From this share of all machines on, a listing costs the provider less than single requests."""

Listing = asyncio.Task[Mapping[str, Machine]]


class Glances:
    """The looks at one provider's machines; bounded by its PooledVMs, which have one effect at a time each."""

    def __init__(
        self,
        lane: Lane,
        machines: Callable[[], int],
        page: Callable[[], timedelta],
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``machines`` says how many the provider has, ``page`` how long one page of a listing may take.

        ``count`` is called for each look with what answered it: ``get`` or ``listing``.
        """
        self._lane = lane
        self._count = count
        self._machines = machines
        self._page = page
        self._together = 0
        self._running: Listing | None = None
        self._next: Listing | None = None

    async def look(self, machine_id: str) -> Machine:
        """Return the machine as the provider shows it, not earlier than now.

        Raises MachineNotFound, which only a request for this one machine can prove, and what ``Lane.call`` raises.
        """
        self._together += 1
        try:
            await asyncio.sleep(GATHER_SECONDS)
            if self._together > max(FEW, self._machines() * LISTING_SHARE):
                machine = (await self._listed()).get(machine_id)
                if machine is not None:
                    self._count("listing")
                    return machine
        finally:
            self._together -= 1
        self._count("get")
        return await self._lane.call("get", Slots.OBSERVE, Urgency.REFILL, lambda p: p.get(machine_id))

    def stop(self) -> None:
        """Cancel listings that are under way, and the looks that wait for them."""
        for listing in (self._running, self._next):
            if listing is not None:
                listing.cancel()

    async def _listed(self) -> Mapping[str, Machine]:
        """Return a listing that begins later than this call: one that runs already may be older than the question."""
        if self._next is None:
            self._next = asyncio.create_task(self._list_after(self._running))
            # Everybody who waited may have been cancelled: then its error is nobody's.
            self._next.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.shield(self._next)
        except ProviderError as error:
            # One error for each: whoever raises it writes its own way into it.
            raise copy.copy(error) from None

    async def _list_after(self, before: Listing | None) -> Mapping[str, Machine]:
        if before is not None:
            await asyncio.wait([before])
        this = self._running = self._next
        self._next = None
        try:
            return {machine.id: machine for machine in await farside.listing(self._lane, self._page(), "glance")}
        finally:
            if self._running is this:
                # Thousands of machines are not kept until the next one.
                self._running = None
