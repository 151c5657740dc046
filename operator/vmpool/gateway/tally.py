"""How many VMs of each pool are where in their life: counted as the mirror changes, so that asking costs nothing."""

from collections import Counter
from enum import StrEnum

from vmpool.kube.mirror import Change, Mirror
from vmpool.plan.lifecycle import Phase
from vmpool.plan.snapshot import VM


class Place(StrEnum):
    """Where a VM counts; the words of VMPooler's queues."""

    CLONING = "cloning"
    BOOTING = "booting"
    READY = "ready"
    RUNNING = "running"
    COMPLETED = "completed"


def place(vm: VM) -> Place | None:
    """Return where a VM counts; None for one that is kept for a human, or in a phase that a newer release wrote."""
    if vm.claimed:
        return Place.RUNNING
    if vm.claim is not None or vm.phase == Phase.COMPLETED:
        return Place.COMPLETED
    if vm.phase == Phase.PENDING:
        made = vm.step(vm.making).finished_at is not None
        return Place.BOOTING if made else Place.CLONING
    if vm.phase == Phase.READY:
        return Place.COMPLETED if vm.deleting else Place.READY
    return None


class Tally:
    """Follows the mirror of VMs from its making on; make it before that runs."""

    def __init__(self, vms: Mirror[VM]) -> None:
        self._pools: dict[str, Counter[Place]] = {}
        vms.on_change(self._changed)

    def of(self, pool_uid: str) -> Counter[Place]:
        """Return a pool's counts by place; those that are missing are 0."""
        return Counter(self._pools.get(pool_uid))

    def _changed(self, change: Change[VM]) -> None:
        if change.old is not None and change.old.fact is not None:
            self._count(change.old.fact, -1)
        if change.new is not None and change.new.fact is not None:
            self._count(change.new.fact, 1)

    def _count(self, vm: VM, by: int) -> None:
        where = place(vm)
        if where is None:
            return
        counts = self._pools.setdefault(vm.pool_uid, Counter())
        counts[where] += by
        if not counts[where]:
            del counts[where]
        if not counts:
            del self._pools[vm.pool_uid]
