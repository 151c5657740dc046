"""The Ready VMs that nobody has, by pool: what an allocator picks from without asking the server.

It may be behind the truth; the server decides (``engine.binding``). Each allocator begins at a place of its own, so
that several of them do not race for the same VM: the order is a hash of the allocator's name and the VM's uid.
"""

import hashlib
import heapq
from collections.abc import Iterator
from typing import Final

from vmpool.api.pool import template_digest
from vmpool.kube.mirror import Change, Mirror
from vmpool.plan.lifecycle import Phase
from vmpool.plan.snapshot import VM, PoolFacts

Rank = tuple[bool, bytes, str]
"""Sort key: present template first, then the allocator's own order; the uid last."""


LEFT_BEHIND: Final = 2
FEW: Final = 64
"""An order may hold so many entries for each VM, and a few more, before it is made anew."""


class ReadyIndex:
    """Follows the mirrors of VMs and pools from its making on; make it before they run."""

    def __init__(self, place: str, vms: Mirror[VM], pools: Mirror[PoolFacts]) -> None:
        self._place = place.encode()
        self._vms = vms
        self._ready: dict[str, dict[str, VM]] = {}
        self._order: dict[str, list[Rank]] = {}
        self._taken: set[str] = set()
        self._digests: dict[str, str] = {}
        vms.on_change(self._vm_changed)
        pools.on_change(self._pool_changed)

    def count(self, pool_uid: str) -> int:
        """How many VMs of this pool can be taken."""
        return len(self._ready.get(pool_uid, ()))

    def of(self, pool_uid: str) -> Iterator[VM]:
        """Yield the VMs of this pool that can be taken, in no order."""
        yield from self._ready.get(pool_uid, {}).values()

    def take(self, pool_uid: str) -> VM | None:
        """Return the best VM and reserve it for the caller; None when there is none.

        It stays out of the index until it is put back or its object says that it is Ready and unclaimed anew.
        """
        ready, order = self._ready.get(pool_uid), self._order.get(pool_uid)
        while ready and order:
            vm = ready.get(heapq.heappop(order)[-1])
            # An entry of an earlier stay of this VM in the index is passed over.
            if vm is None:
                continue
            self._drop(vm)
            self._taken.add(vm.uid)
            return vm
        return None

    def put_back(self, vm: VM) -> None:
        """Give up a reservation: the VM was not claimed, as far as the caller knows."""
        self._taken.discard(vm.uid)
        entry = self._vms.by_uid(vm.uid)
        if entry is not None and entry.fact is not None:
            self._look_at(entry.fact)

    def lost(self, vm: VM) -> None:
        """Give up a reservation because the server refused the claim: only news of the VM brings it back."""
        self._taken.discard(vm.uid)

    def _vm_changed(self, change: Change[VM]) -> None:
        fact = change.entry.fact
        if change.new is not None and fact is not None:
            self._look_at(fact)
            return
        self._taken.discard(change.entry.uid)
        if change.old is not None and change.old.fact is not None:
            self._drop(change.old.fact)

    def _look_at(self, vm: VM) -> None:
        free = vm.phase == Phase.READY and vm.claim is None and not vm.deleting
        if not free:
            self._taken.discard(vm.uid)
            self._drop(vm)
        elif vm.uid not in self._taken:
            pool = self._ready.setdefault(vm.pool_uid, {})
            new = vm.uid not in pool
            pool[vm.uid] = vm
            if new:
                self._line_up(vm)

    def _line_up(self, vm: VM) -> None:
        pool, order = self._ready[vm.pool_uid], self._order.setdefault(vm.pool_uid, [])
        heapq.heappush(order, self._rank(vm))
        # VMs that others took have left entries behind, which come to the top late or never.
        if len(order) > LEFT_BEHIND * len(pool) + FEW:
            self._order[vm.pool_uid] = sorted(map(self._rank, pool.values()))

    def _drop(self, vm: VM) -> None:
        pool = self._ready.get(vm.pool_uid, {})
        if pool.pop(vm.uid, None) is not None and not pool:
            del self._ready[vm.pool_uid]
            self._order.pop(vm.pool_uid, None)

    def _pool_changed(self, change: Change[PoolFacts]) -> None:
        uid = change.entry.uid
        if change.new is None or change.new.fact is None:
            self._digests.pop(uid, None)
            return
        digest = template_digest(change.new.fact.spec.template)
        if self._digests.get(uid) == digest:
            return
        self._digests[uid] = digest
        if uid in self._ready:
            self._order[uid] = sorted(self._rank(vm) for vm in self._ready[uid].values())

    def _is_stale(self, vm: VM) -> bool:
        return vm.digest != self._digests.get(vm.pool_uid)

    def _rank(self, vm: VM) -> Rank:
        return self._is_stale(vm), hashlib.blake2b(vm.uid.encode(), digest_size=8, key=self._place).digest(), vm.uid
