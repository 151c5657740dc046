"""Which VMs a checkout gets: reserved together, claimed at the same time, replaced when lost; all of them or none.

Nothing is written before everything is reserved, so two requests never wait for each other's VMs. Whoever finds
nothing waits only for claims that are being written and may give a VM back; those all come to an end.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from vmpool.api.vm import Claim
from vmpool.engine import binding
from vmpool.engine.ready import ReadyIndex
from vmpool.gateway.claims_waiting import Waiting
from vmpool.gateway.context import Gateway
from vmpool.kube.errors import OutcomeUnknown
from vmpool.kube.mirror import Change, Mirror
from vmpool.plan.lifecycle import Phase
from vmpool.plan.names import hands_out, in_turn
from vmpool.plan.snapshot import VM, PoolFacts

T = TypeVar("T")

NEWS_SECONDS: Final = 0.5
"""How long to wait for the watch to tell who has got a lost VM: what it has not told yet is lost, too, most likely."""


class Lack(StrEnum):
    """Why there is no VM."""

    EMPTY = "empty"
    WAITING = "waiting"
    CLOSED = "closed"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Wish:
    """One VM that a request asks for."""

    slot: int
    name: str
    """As requested."""
    pools: tuple[PoolFacts, ...]
    """Where it may come from; at least one."""


class NotGot(Exception):
    """A wish that cannot be fulfilled now."""

    def __init__(self, wish: Wish, lack: Lack) -> None:
        self.wish = wish
        self.lack = lack
        super().__init__(f"{wish.name}: {lack}")


class Stopped(Exception):
    """Nobody waits for this request any more, or another of its VMs is not to be had."""


class Picker:
    """The reservations of one gateway's requests."""

    def __init__(self, ready: ReadyIndex, waiting: Waiting, vms: Mirror[VM], in_flight: int) -> None:
        self._ready = ready
        self._waiting = waiting
        self._vms = vms
        self.slots = asyncio.Semaphore(in_flight)
        """Bounds the claims being written: what waits here can still be called off, on its way it cannot."""
        self.keyed: dict[str, asyncio.Task[Mapping[int, VM]]] = {}
        """Requests with an Idempotency-Key that are being worked on, by claim id."""
        self._reserved: dict[str, int] = {}
        self._turn: asyncio.Future[None] | None = None
        self._lost: dict[str, asyncio.Future[None]] = {}
        vms.on_change(self._vm_changed)

    def reserve(self, wishes: Sequence[Wish]) -> list[VM]:
        """Reserve a VM for each wish. Raises ``NotGot`` for the first that has none, and then keeps nothing."""
        taken: list[VM] = []
        for wish in wishes:
            vm = self._take(wish)
            if vm is None:
                lack = self._why(wish)
                for other in taken:
                    # Wakes nobody: all is as it was, and two that wait would wake each other for ever.
                    self._ready.put_back(other)
                    self._release(other)
                raise NotGot(wish, lack)
            taken.append(vm)
        return taken

    def put_back(self, vm: VM) -> None:
        """Give up a reservation; the VM can be had again if it is still ready."""
        self._ready.put_back(vm)
        self._settle(vm)

    def lost(self, vm: VM) -> None:
        """Give up a reservation because another allocator has the VM."""
        self._ready.lost(vm)
        self._settle(vm)

    def got(self, vm: VM) -> None:
        """End a reservation because the VM is claimed."""
        self._settle(vm)

    def others(self, wish: Wish) -> bool:
        """Say whether a request in flight holds a VM that would do, and may still give it back."""
        return any(self._reserved.get(pool.uid) for pool in _open(wish))

    async def outcome(self) -> None:
        """Wait until any reservation has ended. Only to be called while there is one."""
        if self._turn is None or self._turn.done():
            self._turn = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._turn)

    async def news(self, vm: VM) -> None:
        """Wait until the mirror knows, too, that a lost VM is not to be had; at most ``NEWS_SECONDS``."""
        entry = self._vms.by_uid(vm.uid)
        if entry is None or entry.fact is None or not _free(entry.fact):
            return
        told = self._lost.setdefault(vm.uid, asyncio.get_running_loop().create_future())
        try:
            await asyncio.wait({told}, timeout=NEWS_SECONDS)
        finally:
            self._lost.pop(vm.uid, None)

    def _take(self, wish: Wish) -> VM | None:
        pools = _open(wish)
        # One roll a VM, as VMPooler does: many VMs by one alias are spread over its pools.
        for pool in in_turn(pools, random.random()) if len(pools) > 1 else pools:  # noqa: S311
            if not self._spare(pool.uid):
                continue
            vm = self._ready.take(pool.uid)
            if vm is not None:
                self._reserved[vm.pool_uid] = self._reserved.get(vm.pool_uid, 0) + 1
                return vm
        return None

    def _spare(self, pool_uid: str) -> bool:
        return self._ready.count(pool_uid) > self._waiting.lack(pool_uid)

    def _why(self, wish: Wish) -> Lack:
        pools = _open(wish)
        if not pools:
            return Lack.CLOSED
        return Lack.WAITING if any(self._ready.count(pool.uid) for pool in pools) else Lack.EMPTY

    def _settle(self, vm: VM) -> None:
        self._release(vm)
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    def _release(self, vm: VM) -> None:
        left = self._reserved[vm.pool_uid] - 1
        if left:
            self._reserved[vm.pool_uid] = left
        else:
            del self._reserved[vm.pool_uid]

    def _vm_changed(self, change: Change[VM]) -> None:
        if not self._lost:
            return
        told = self._lost.get(change.entry.uid)
        fact = change.new.fact if change.new is not None else None
        if told is not None and not told.done() and (fact is None or not _free(fact)):
            told.set_result(None)


class Attempt:
    """The work for one request. It is run to its end even when nobody waits for it any more."""

    def __init__(
        self,
        gateway: Gateway,
        wishes: Sequence[Wish],
        claim: Callable[[Wish, VM], Claim],
        earlier: Callable[[], Awaitable[Mapping[int, VM]]] | None = None,
    ) -> None:
        """``earlier`` finds what an equal request has got before, by slot; then what is got now is kept, too."""
        self._gateway = gateway
        self._picker = gateway.picker
        self._wishes = wishes
        self._claim = claim
        self._earlier = earlier
        self._over = False
        self._abandoned = False
        self._waits: set[asyncio.Timeout] = set()

    def abandon(self) -> None:
        """Begin nothing more: the client has been told no. What was got is given back unless it will be asked for."""
        self._abandoned = True
        self._end()

    async def run(self) -> Mapping[int, VM]:
        """Return the VMs by slot.

        Raises ``NotGot``, ``OutcomeUnknown`` and other ``KubeError``, ``Stopped``, and what ``earlier`` raises. Then
        what this attempt has got is given back, or with ``earlier`` kept for an equal request to find.
        """
        have = dict(await self._unless_over(self._earlier())) if self._earlier is not None else {}
        missing = [wish for wish in self._wishes if wish.slot not in have]
        outcomes = await self._all(missing)
        got = {wish.slot: vm for wish, vm in zip(missing, outcomes, strict=True) if isinstance(vm, VM)}
        errors = [error for error in outcomes if isinstance(error, BaseException)]
        if errors or (self._abandoned and self._earlier is None):
            # What an equal request can find is never ended: its client may have been told already that it has it.
            if self._earlier is None:
                self._give_back(got.values(), partly=bool(errors))
            raise min(errors, key=_telling, default=Stopped())
        return have | got

    def _give_back(self, vms: Collection[VM], *, partly: bool) -> None:
        if vms and partly:
            self._gateway.metrics.partial.inc()
        for vm in vms:
            self._gateway.followups.give_back(vm)

    def _end(self) -> None:
        """Begin nothing more, and wait for nothing more; what is being written is written to its end."""
        self._over = True
        now = asyncio.get_running_loop().time()
        while self._waits:
            self._waits.pop().reschedule(now)

    async def _unless_over(self, wait: Awaitable[T]) -> T:
        """Wait for something that writes nothing. Raises ``Stopped`` as soon as there is nothing to wait for."""
        try:
            async with asyncio.timeout(None) as cut:
                self._waits.add(cut)
                if self._over:
                    self._end()
                return await wait
        except TimeoutError:
            if not cut.expired():
                raise
            raise Stopped from None
        finally:
            self._waits.discard(cut)

    async def _all(self, wishes: Sequence[Wish]) -> Sequence[VM | BaseException]:
        if not wishes:
            return ()
        first = await self._reserved(lambda: self._picker.reserve(wishes))
        if len(wishes) == 1:
            return (await self._fill(wishes[0], first[0]),)
        fills = (self._fill(wish, vm) for wish, vm in zip(wishes, first, strict=True))
        return await asyncio.gather(*fills, return_exceptions=True)

    async def _reserved(self, reserve: Callable[[], list[VM]]) -> list[VM]:
        while True:
            if self._over:
                raise Stopped
            try:
                return reserve()
            except NotGot as error:
                if not self._picker.others(error.wish):
                    raise
            await self._unless_over(self._picker.outcome())

    async def _fill(self, wish: Wish, vm: VM) -> VM:
        try:
            losses = 0
            while (bound := await self._bind(wish, vm)) is None:
                losses += 1
                self._gateway.metrics.losses.labels(vm.namespace, vm.pool).inc()
                if losses >= self._gateway.own.checkout_losses:
                    raise NotGot(wish, Lack.LOST)
                await self._unless_over(self._picker.news(vm))
                (vm,) = await self._reserved(lambda: self._picker.reserve([wish]))
            return bound
        except BaseException:
            self._end()
            raise

    async def _bind(self, wish: Wish, vm: VM) -> VM | None:
        try:
            await self._unless_over(self._picker.slots.acquire())
            try:
                if self._over:
                    raise Stopped
                bound = await self._written(vm, self._claim(wish, vm))
            finally:
                self._picker.slots.release()
        except BaseException:
            self._picker.put_back(vm)
            raise
        if bound is None:
            self._picker.lost(vm)
        else:
            self._picker.got(vm)
        return bound

    async def _written(self, vm: VM, claim: Claim) -> VM | None:
        try:
            return await binding.bind(self._gateway.client, self._gateway.vms, vm, claim)
        except OutcomeUnknown:
            if self._earlier is None:
                self._gateway.followups.doubt(claim.id)
            raise


def _open(wish: Wish) -> list[PoolFacts]:
    return [pool for pool in wish.pools if hands_out(pool)]


def _free(vm: VM) -> bool:
    return vm.phase == Phase.READY and vm.claim is None and not vm.deleting


def _telling(error: BaseException) -> int:
    """Order errors by how much they tell: what stopped the others comes before what was stopped."""
    if isinstance(error, OutcomeUnknown):
        return 0
    return 2 if isinstance(error, Stopped) else 1


def wishes_of(wanted: Mapping[str, int], pools: Mapping[str, tuple[PoolFacts, ...]]) -> Iterator[Wish]:
    """Yield one wish a VM, in the order of the request."""
    slot = 0
    for name, count in wanted.items():
        for _ in range(count):
            yield Wish(slot, name, pools[name])
            slot += 1
