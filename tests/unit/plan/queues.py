"""Facts for the tests of the queue: builders with calm defaults, and a small server that carries out its plans."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from typing import Any

from tests.unit.plan.worlds import NOW, spec
from vmpool.api.claim import VMClaimSpec, VMClaimStatus
from vmpool.api.pool import VMPoolStatus
from vmpool.plan.claims import QueuePlan, plan_claims
from vmpool.plan.claimstatus import bound_status
from vmpool.plan.demand import claim_size, filled
from vmpool.plan.follow import lifetime
from vmpool.plan.lifecycle import Phase
from vmpool.plan.queue import (
    Bind,
    Check,
    ClaimAction,
    EndHeld,
    Extend,
    Note,
    QueueSnapshot,
    Remove,
    Review,
    SetStatus,
    Trust,
)
from vmpool.plan.snapshot import VM, ClaimFacts, ClaimRefFacts, PoolFacts, VMClaim

CI = "ci"
CHECKED = Note(checked=True)


def a_pool(name: str = "web", namespace: str = CI, **changes: Any) -> PoolFacts:
    """A pool of at most ten VMs; what the server defaults is defaulted."""
    facts = {"status", "deleting", "uid"}
    own = {key: value for key, value in changes.items() if key not in facts}
    others = {key: value for key, value in changes.items() if key in facts}
    made = spec(**{"replicas": 0, "maxVMs": 10, **own})
    base = PoolFacts(f"uid-{namespace}-{name}", namespace, name, 1, made, VMPoolStatus(), "1", held=True)
    return replace(base, **others)


def a_claim(name: str = "c", count: int = 1, *, namespace: str = CI, **changes: Any) -> VMClaim:
    """A claim that was just made for VMs of the pool ``web``; spec fields are given as they stand in YAML."""
    facts = {"status", "created_at", "deleting", "generation"}
    wish = {key: value for key, value in changes.items() if key not in facts}
    others = {key: value for key, value in changes.items() if key in facts}
    base = {"requests": [{"pool": "web", "count": count}]}
    made = VMClaim(
        uid=f"uid-{namespace}-{name}",
        namespace=namespace,
        name=name,
        resource_version="1",
        generation=1,
        created_at=NOW,
        deleting=False,
        spec=VMClaimSpec.model_validate({**base, **wish}),
        status=VMClaimStatus(),
    )
    return replace(made, **others)


def a_vm(name: str, pool: PoolFacts, claim: ClaimFacts | None = None, **changes: Any) -> VM:
    """A Ready VM of a pool, or one that is claimed."""
    made = VM(
        uid=f"uid-{name}",
        namespace=pool.namespace,
        name=name,
        resource_version="1",
        created_at=NOW,
        pool=pool.name,
        pool_uid=pool.uid,
        provider="east",
        phase=Phase.READY,
        host_name=f"{name}.example.com",
        addresses=("10.0.0.1",),
        claim=claim,
    )
    return replace(made, **changes)


def hold(claim: VMClaim, slot: int = 0, *, at: datetime = NOW, hours: float = 24, **changes: Any) -> ClaimFacts:
    """The claim on a VM that was bound for a slot."""
    ref = ClaimRefFacts(claim.namespace, claim.name, claim.uid, "uid-of-kind")
    end = at + timedelta(hours=hours)
    return replace(ClaimFacts(claim.uid, "alice", end, bound_at=at, ref=ref, slot=slot), **changes)


def seen(
    claims: Iterable[VMClaim], pools: Iterable[PoolFacts], ready: dict[str, int] | None = None, **changes: Any
) -> QueueSnapshot:
    """What a round sees; ``ready`` is by the pool's name; nobody is trusted."""
    by_key = {(pool.namespace, pool.name): pool for pool in pools}
    counts = {pool.uid: (ready or {}).get(pool.name, 0) for pool in by_key.values()}
    base = QueueSnapshot(claims=tuple(claims), pools=by_key, ready=counts, held={}, trust=Trust())
    return replace(base, **changes)


def binds(plan: QueuePlan) -> list[str]:
    """Names of the claims that a plan binds, in its order."""
    return [action.claim.name for action in plan.actions if isinstance(action, Bind)]


def statuses(plan: QueuePlan) -> dict[str, VMClaimStatus]:
    """The statuses that a plan writes, by the claim's name."""
    return {action.claim.name: action.status for action in plan.actions if isinstance(action, SetStatus)}


class Killed(Exception):
    """The process ends here."""


@dataclass
class Server:
    """Claims, pools and VMs as an API server keeps them, and a queue that works on them.

    ``writes_left`` is how many writes the process lives for; None for ever.
    """

    pools: dict[str, PoolFacts]
    claims: dict[str, VMClaim] = field(default_factory=dict)
    vms: dict[str, VM] = field(default_factory=dict)
    notes: dict[str, Note] = field(default_factory=dict)
    now: datetime = NOW
    trust: Trust = field(default_factory=Trust)
    writes_left: int | None = None
    lose: int = 0
    """How many binds are lost to another allocator."""
    _names: Any = field(default_factory=count)

    # --- what others do ---------------------------------------------------------------------------------------

    def make(self, **wish: Any) -> VMClaim:
        """Somebody makes a claim."""
        number = next(self._names)
        made = a_claim(f"c{number:04}", created_at=self.now, **wish)
        self.claims[made.uid] = made
        return made

    def ready(self, pool: str) -> VM | None:
        """A machine of this pool becomes ready, if there may be one more."""
        owner = self.pools[pool]
        if sum(vm.pool_uid == owner.uid for vm in self.vms.values()) >= owner.spec.max_vms:
            return None
        made = a_vm(f"vm{next(self._names):04}", owner)
        self.vms[made.uid] = made
        return made

    def free(self, pool: PoolFacts) -> list[VM]:
        """The VMs of a pool that can be handed out."""
        return [vm for vm in self.vms.values() if vm.pool_uid == pool.uid and vm.claim is None]

    def held(self, claim_uid: str) -> tuple[VM, ...]:
        """The VMs that carry a claim's uid."""
        return tuple(vm for vm in self.vms.values() if vm.claim is not None and vm.claim.id == claim_uid)

    def end(self, vm: VM, reason: str) -> None:
        """The claim on a VM ends."""
        assert vm.claim is not None
        if vm.claim.released_at is None:
            self.vms[vm.uid] = replace(vm, claim=replace(vm.claim, released_at=self.now, end_reason=reason))

    def destroyed(self) -> None:
        """The pools destroy what was given back, once the queue has written down why."""
        for vm in [vm for vm in self.vms.values() if vm.claim is not None and not vm.claimed]:
            assert vm.claim is not None
            claim = self.claims.get(vm.claim.id)
            told = claim is None or all(one.uid != vm.uid or one.end_reason for one in claim.status.vms)
            if told:
                del self.vms[vm.uid]

    # --- what the queue does ----------------------------------------------------------------------------------

    def snapshot(self, **changes: Any) -> QueueSnapshot:
        """What the queue sees now."""
        for uid in self.claims:
            self.notes.setdefault(uid, Note())
        base = QueueSnapshot(
            claims=tuple(self.claims.values()),
            pools={(pool.namespace, pool.name): pool for pool in self.pools.values()},
            ready={pool.uid: len(self.free(pool)) for pool in self.pools.values()},
            held={uid: self.held(uid) for uid in self.claims},
            trust=self.trust,
            notes=self.notes,
            pause=timedelta(),
            room=1000,
        )
        return replace(base, **changes)

    def round(self, **changes: Any) -> QueuePlan:
        """Plan and carry out; a process that is killed forgets its notes and nothing else."""
        for vm in list(self.vms.values()):
            if vm.claim is not None and vm.claim.ref is not None and vm.claim.ref.uid not in self.claims:
                self.end(vm, "ClaimMissing")
        plan = plan_claims(self.snapshot(**changes), self.now)
        try:
            for action in plan.actions:
                self.carry_out(action)
        except Killed:
            self.notes.clear()
            self.writes_left = None
        return plan

    def carry_out(self, action: ClaimAction) -> None:
        """One effect, write by write."""
        match action:
            case Bind(claim, places):
                self._bind(claim, places)
            case Review(claim, _, pools):
                self.notes[claim.uid].verdicts.update({pool.uid: True for pool in pools})
            case Check(claim):
                self.notes[claim.uid].checked = True
            case EndHeld(_, vms, reason):
                for vm in vms:
                    self._write()
                    self.end(self.vms[vm.uid], reason)
            case Extend(_, ends):
                for vm, end in ends:
                    self._write()
                    now = self.vms[vm.uid]
                    assert now.claim is not None
                    self.vms[vm.uid] = replace(now, claim=replace(now.claim, expires_at=end))
            case SetStatus(claim, status):
                self.set_status(claim, status)
            case Remove(claim):
                self._write()
                del self.claims[claim.uid]

    def set_status(self, claim: VMClaim, status: VMClaimStatus) -> None:
        """Write a status, as the rules of the kind allow it."""
        self._write()
        before = self.claims[claim.uid]
        kept = {one.slot: one.uid for one in status.vms}
        assert all(kept.get(one.slot) == one.uid for one in before.status.vms), "a slot is filled once"
        # As it comes back from the wire.
        stored = VMClaimStatus.model_validate(status.wire())
        self.claims[claim.uid] = replace(before, status=stored)

    def _bind(self, claim: VMClaim, places: Sequence[tuple[int, PoolFacts]]) -> None:
        for slot, pool in places:
            free = self.free(pool)
            if free and self.lose > 0:
                self.lose -= 1
                taken = replace(free[0], claim=ClaimFacts("rest", "bob", self.now, bound_at=self.now))
                self.vms[taken.uid] = taken
                free = self.free(pool)
            if not free:
                continue
            self._write()
            end = self.now + lifetime(claim, pool)
            facts = replace(hold(claim, slot, at=self.now), expires_at=end)
            self.vms[free[0].uid] = replace(free[0], claim=facts)
        have = filled(claim, self.held(claim.uid))
        if len(have) == claim_size(claim):
            self.set_status(claim, bound_status(claim, have, self.now))

    def _write(self) -> None:
        if self.writes_left is not None:
            if self.writes_left == 0:
                raise Killed
            self.writes_left -= 1
