"""Which VMClaims the queue has to look at: all that are Pending, and of the others those with news.

Thousands that have their VMs cost a round nothing.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from vmpool.kube.mirror import Change, Mirror
from vmpool.plan.lifecycle import ClaimPhase, Phase
from vmpool.plan.snapshot import VM, PoolFacts, VMClaim


class Agenda:
    """Follows the mirrors of VMClaims, VMs and pools from its making on; make it before they run.

    A claim stays on it until a plan has found nothing to do for it (``settle``).
    """

    def __init__(self, claims: Mirror[VMClaim], vms: Mirror[VM], pools: Mirror[PoolFacts]) -> None:
        self._claims = claims
        self._pending: dict[str, None] = {}
        self._news: set[str] = set()
        self._astray: set[str] = set()
        self._movable: set[str] = set()
        """uids of claims whose lifetime is not the one that was acted upon: a pool may allow it later."""
        self._named: dict[str, str] = {}
        """The claim's uid by the uid of each VM that its status names: also VMs that nobody has seen or can read."""
        self._times: dict[str, datetime] = {}
        self._heap: list[tuple[datetime, str]] = []
        claims.on_change(self._claim_changed)
        vms.on_change(self._vm_changed)
        pools.on_change(self._pool_changed)

    @property
    def pending(self) -> bool:
        """Whether any claim waits."""
        return bool(self._pending)

    def concerns(self, change: Change[VM]) -> bool:
        """Whether the news of a VM may matter to the queue: it is some claim's, or one that waits could get it."""
        if change.entry.uid in self._named or any(_claim_uids(change)):
            return True
        facts = [entry.fact for entry in (change.old, change.new) if entry is not None]
        return self.pending and any(vm.phase == Phase.READY for vm in facts if vm is not None)

    def everything(self, held: Iterable[str]) -> None:
        """Put every claim on it, and look again for those whose uids VMs carry."""
        self._news.update(entry.uid for entry in self._claims)
        self._astray.update(held)

    def due(self, now: datetime) -> list[VMClaim]:
        """Return the claims to look at now."""
        while self._heap and self._heap[0][0] <= now:
            at, uid = heapq.heappop(self._heap)
            if self._times.get(uid) == at:
                del self._times[uid]
                self._news.add(uid)
        found: list[VMClaim] = []
        for uid in (*self._pending, *(self._news - self._pending.keys())):
            entry = self._claims.by_uid(uid)
            if entry is not None and entry.fact is not None:
                found.append(entry.fact)
            else:
                self._news.discard(uid)
        return found

    def settle(self, settled: Mapping[str, datetime | None]) -> None:
        """Take off those for which there was nothing to do, until there is news or the given time has come."""
        for uid, at in settled.items():
            self._news.discard(uid)
            if at is None:
                self._times.pop(uid, None)
            elif self._times.get(uid) != at:
                self._times[uid] = at
                heapq.heappush(self._heap, (at, uid))

    def next(self) -> datetime | None:
        """Return when the first time comes."""
        while self._heap and self._times.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def astray(self) -> tuple[str, ...]:
        """Return the uids of claims that VMs were bound for, or that went, and that the mirror lacks."""
        self._astray = {uid for uid in self._astray if self._claims.by_uid(uid) is None}
        return tuple(self._astray)

    def found_out(self, uid: str) -> None:
        """Forget a claim that is astray: no VM carries its uid."""
        self._astray.discard(uid)

    def _claim_changed(self, change: Change[VMClaim]) -> None:
        uid = change.entry.uid
        before = change.old.fact if change.old is not None else None
        after = change.new.fact if change.new is not None else None
        self._news.add(uid)
        for one in before.status.vms if before is not None else ():
            self._named.pop(one.uid, None)
        for one in after.status.vms if after is not None else ():
            self._named[one.uid] = uid
        if after is not None and after.phase == ClaimPhase.PENDING:
            self._pending[uid] = None
        else:
            self._pending.pop(uid, None)
        if after is not None and after.spec.lifetime != after.status.lifetime:
            self._movable.add(uid)
        else:
            self._movable.discard(uid)
        if change.new is None:
            self._news.discard(uid)
            self._times.pop(uid, None)
            self._astray.add(uid)

    def _vm_changed(self, change: Change[VM]) -> None:
        named = self._named.get(change.entry.uid)
        if named is not None:
            self._news.add(named)
        for uid in _claim_uids(change):
            if self._claims.by_uid(uid) is None:
                self._astray.add(uid)
            else:
                self._news.add(uid)

    def _pool_changed(self, change: Change[PoolFacts]) -> None:
        old = change.old.fact if change.old is not None else None
        new = change.new.fact if change.new is not None else None
        # Its status changes with every VM and decides nothing here.
        if old is None or new is None or (old.generation, old.deleting) != (new.generation, new.deleting):
            self._news |= self._movable


def _claim_uids(change: Change[VM]) -> Iterator[str]:
    for entry in (change.old, change.new):
        vm = entry.fact if entry is not None else None
        if vm is not None and vm.claim is not None and vm.claim.ref is not None:
            yield vm.claim.ref.uid
