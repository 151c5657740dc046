"""How many ready VMs of each pool are spoken for by VMClaims that wait there."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from vmpool.engine.world import BY_CLAIM
from vmpool.kube.mirror import Change, Mirror
from vmpool.plan.demand import demand
from vmpool.plan.lifecycle import ClaimPhase
from vmpool.plan.snapshot import VM, PoolFacts, VMClaim

PAUSE_SECONDS: Final = 0.05
"""Least time between two counts while news keep coming: a long queue must not be counted for every request."""


class Waiting:
    """Counts again only after news of a waiting claim, of a pool, or of a VM that a waiting claim has got."""

    def __init__(
        self,
        claims: Mirror[VMClaim],
        pools: Mirror[PoolFacts],
        vms: Mirror[VM],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pools = pools
        self._vms = vms
        self._clock = clock
        self._claims: dict[str, VMClaim] = {
            entry.uid: entry.fact for entry in claims if entry.fact is not None and _waits(entry.fact)
        }
        self._lacks: Mapping[str, int] = {}
        self._news = True
        self._counted_at = float("-inf")
        claims.on_change(self._claim_changed)
        pools.on_change(self._pool_changed)
        vms.on_change(self._vm_changed)

    def lack(self, pool_uid: str) -> int:
        """Return what waiting claims still lack of this pool; at most ``PAUSE_SECONDS`` behind the mirrors.

        Whoever is refused because of it may have been refused by a claim that has just ended; 503 tells when to ask.
        """
        if self._news and self._clock() - self._counted_at >= PAUSE_SECONDS:
            self._count()
        return self._lacks.get(pool_uid, 0)

    def _count(self) -> None:
        self._news = False
        self._counted_at = self._clock()
        if not self._claims:
            self._lacks = {}
            return
        pools = {entry.key: entry.fact for entry in self._pools if entry.fact is not None}
        self._lacks = demand(self._claims.values(), pools, self._bound)

    def _bound(self, claim_uid: str) -> Sequence[VM]:
        return tuple(entry.fact for entry in self._vms.by_index(BY_CLAIM, claim_uid) if entry.fact is not None)

    def _claim_changed(self, change: Change[VMClaim]) -> None:
        uid = change.entry.uid
        before = self._claims.pop(uid, None)
        after = change.new.fact if change.new is not None else None
        if after is not None and _waits(after):
            self._claims[uid] = after
            self._news = True
        self._news = self._news or before is not None

    def _pool_changed(self, _: Change[PoolFacts]) -> None:
        self._news = self._news or bool(self._claims)

    def _vm_changed(self, change: Change[VM]) -> None:
        fact = change.entry.fact
        claim = fact.claim if fact is not None else None
        # Most are news of a VM whose VMClaim has all it wants.
        if claim is not None and claim.ref is not None and claim.ref.uid in self._claims:
            self._news = True


def _waits(claim: VMClaim) -> bool:
    return claim.phase == ClaimPhase.PENDING
