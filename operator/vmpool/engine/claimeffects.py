"""Carry out one action of the queue's plan.

Each may be repeated: a kill at any point leaves something that the next plan sees and goes on from.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from vmpool.api.vm import Claim, ClaimRef
from vmpool.engine import binding, claimwrites
from vmpool.engine.absence import Absence, KindUnreadable, vm_is_gone
from vmpool.engine.ready import ReadyIndex
from vmpool.engine.reviews import AccessReviews
from vmpool.engine.world import BY_CLAIM, World
from vmpool.engine.writes import end_claims
from vmpool.kube.errors import Conflict, KubeError, NotFound
from vmpool.kube.kinds import VMPOOLS
from vmpool.plan.claimstatus import bound_status, followed_status
from vmpool.plan.demand import claim_size, filled
from vmpool.plan.follow import lifetime
from vmpool.plan.lifecycle import ClaimPhase
from vmpool.plan.queue import (
    Asker,
    Bind,
    Check,
    ClaimAction,
    EndHeld,
    Extend,
    Note,
    ProveGone,
    Remove,
    Review,
    SayFound,
    SetStatus,
    Why,
)
from vmpool.plan.snapshot import VM, PoolFacts, VMClaim
from vmpool.telemetry import logs

log = logs.get(__name__)

Taken = Sequence[tuple[int, PoolFacts, VM]]
"""Slots with the VMs that are reserved for them."""


class ClaimEffects:
    """The effects of the queue; what they learn of a claim goes into its note."""

    def __init__(
        self, world: World, ready: ReadyIndex, absence: Absence, reviews: AccessReviews, notes: dict[str, Note]
    ) -> None:
        self.world = world
        self.ready = ready
        self.absence = absence
        self.reviews = reviews
        self.notes = notes

    async def run(self, action: ClaimAction) -> timedelta | None:
        """Carry out an action that hands out nothing; return how long the next look at its claim may wait."""
        match action:
            case Review(claim, who, pools):
                await self._review(claim, who, pools)
            case Check(claim, who):
                await self._check(claim, who)
            case EndHeld(claim, vms, reason):
                return await self._end_held(claim, vms, reason)
            case Extend(_, ends):
                await self._extend(ends)
            case ProveGone():
                return await self._prove_gone(action)
            case SayFound(_, vms):
                for vm in vms:
                    await claimwrites.say_found(self.world, vm)
            case SetStatus(claim, status):
                await claimwrites.write_status(self.world, claim, status)
                self._written(claim, status.phase, status.reason or "", status.message or "")
            case Remove(claim):
                await claimwrites.remove(self.world, claim)
            case Bind():
                raise AssertionError("a bind needs the VMs that were taken for it")
        return None

    # --- asking -------------------------------------------------------------------------------------------------

    def _note(self, claim: VMClaim) -> Note:
        return self.notes.setdefault(claim.uid, Note())

    def _trouble(self, claim: VMClaim, why: Why) -> None:
        note = self._note(claim)
        note.trouble = why
        note.retry_at = self.world.now() + timedelta(seconds=self.world.settings.claim_retry_seconds)
        log.warning("claim_held_up", claim=f"{claim.namespace}/{claim.name}", reason=why.reason, why=why.message)

    async def _review(self, claim: VMClaim, who: Asker, pools: Sequence[PoolFacts]) -> bool:
        """Ask for the right to claim from each pool; return whether there is an answer for all."""
        try:
            for pool in pools:
                allowed = await self.reviews.may_claim(who.user, who.groups, pool.namespace, pool.name)
                self._note(claim).verdicts[pool.uid] = allowed
        except KubeError as error:
            what = f"nobody can say now whether {who.user} may claim from it: {error}"
            self._trouble(claim, Why("AccessUnknown", what))
            return False
        return True

    async def _check(self, claim: VMClaim, who: Asker) -> None:
        """Read the pools that the claim names from the server, and ask for refused rights anew.

        The mirror of pools may be behind that of claims, and a right may be younger than the answer that we remember.
        """
        try:
            pools = await self._read_pools(claim)
        except KubeError as error:
            self._trouble(claim, Why("PoolUnreadable", f"what it asks for cannot be read now: {error}"))
            return
        if pools is None:
            # Why is in the log: a stranger who asks has no right to it.
            what = "what it asks for is there, but cannot be read by this version of the operator"
            self._trouble(claim, Why("PoolUnreadable", f"{what}: the operator's log says why"))
            return
        refused = [pool for pool in pools if self._note(claim).verdicts.get(pool.uid) is False]
        for pool in refused:
            self.reviews.forget(who.user, who.groups, pool.namespace, pool.name)
        if await self._review(claim, who, refused):
            self._note(claim).checked = True

    async def _read_pools(self, claim: VMClaim) -> list[PoolFacts] | None:
        """Return the pools that may serve the claim; None when one of them cannot be read."""
        named: list[Any] = []
        mirror, serves = self.world.pools, self.world.settings.watch_namespace
        for request in claim.spec.requests:
            where = request.namespace or claim.namespace
            if serves and where != serves:
                # Nobody here follows the pools of other namespaces: they are never served.
                continue
            if request.pool is not None:
                try:
                    named.append(await mirror.quorum_get(where, request.pool))
                except NotFound:
                    known = mirror.by_name(where, request.pool)
                    if known is not None:
                        mirror.saw_deleted(known.uid, str(known.resource_version))
            else:
                async for page in self.world.client.list_pages(VMPOOLS, where):
                    for item in page.items:
                        mirror.saw(item)
                        if request.alias in _aliases(item):
                            named.append(item)
        entries = [mirror.by_uid(raw["metadata"]["uid"]) for raw in named]
        # One that is not there any more has been deleted meanwhile.
        facts = [entry.fact for entry in entries if entry is not None]
        pools = {pool.uid: pool for pool in facts if pool is not None}
        return None if None in facts else list(pools.values())

    # --- following ----------------------------------------------------------------------------------------------

    async def _end_held(self, claim: VMClaim, vms: Sequence[VM], reason: str) -> timedelta | None:
        """End the claims on VMs; of a claim that is being deleted only where its kind is not what goes."""
        doubts: dict[str, str] = {}
        if claim.deleting:
            for kind in {_kind(vm) for vm in vms}:
                doubts[kind] = await self.absence.doubt(kind)
        await end_claims(self.world, [vm for vm in vms if not doubts.get(_kind(vm))], reason, self.world.now())
        why = next(filter(None, doubts.values()), "")
        if not why:
            return None
        log.warning("claim_deletion_not_proven", claim=f"{claim.namespace}/{claim.name}", uid=claim.uid, why=why)
        return self._look_again(claim, self.world.settings.claim_proof_seconds)

    async def _extend(self, ends: Sequence[tuple[VM, datetime]]) -> None:
        """Move each end on the version that was decided on; raise what was refused after all were tried."""
        errors: list[KubeError] = []
        for vm, end in ends:
            try:
                await binding.extend(self.world.client, self.world.vms, vm, end, vm.resource_version)
            except binding.ClaimGone as gone:
                log.info("claim_ended_first", vm=vm.name, why=str(gone))
            except KubeError as error:
                log.info("claim_not_extended", vm=vm.name, error=str(error))
                errors.append(error)
        if errors:
            raise next((error for error in errors if not isinstance(error, (Conflict, NotFound))), errors[0])

    async def _prove_gone(self, action: ProveGone) -> timedelta | None:
        """Write that VMs are gone that the server has no object of; one that it has is followed once it is seen."""
        claim, world = action.claim, self.world
        gone: set[str] = set()
        for one in action.unseen:
            try:
                if await vm_is_gone(world.client, world.vms, one):
                    gone.add(one.uid)
            except KubeError as error:
                log.warning("vm_not_looked_at", vm=one.name, uid=one.uid, error=str(error))
        away = [one for one in action.unseen if one.uid not in gone and not self._shows(one.uid, claim)]
        if away:
            # Told rarely: the object is there, and nothing can be said of it until this release can read it.
            names = [one.name for one in away]
            log.warning("vms_not_seen", claim=f"{claim.namespace}/{claim.name}", uid=claim.uid, vms=names)
        pause = self._look_again(claim, world.settings.claim_retry_seconds) if away else None
        if gone:
            held = {vm.uid: vm for vm in action.held}
            status = followed_status(claim, held, action.refused, world.now(), gone)
            await claimwrites.write_status(world, claim, status)
            self._written(claim, status.phase, status.reason or "", status.message or "")
        return pause

    def _shows(self, vm_uid: str, claim: VMClaim) -> bool:
        """Whether the mirror shows a VM as this claim's."""
        vm = self.world.vm(vm_uid)
        ref = vm.claim.ref if vm is not None and vm.claim is not None else None
        return ref is not None and ref.uid == claim.uid

    def _look_again(self, claim: VMClaim, seconds: float) -> timedelta:
        pause = timedelta(seconds=seconds)
        self._note(claim).retry_at = self.world.now() + pause
        return pause

    # --- binding ------------------------------------------------------------------------------------------------

    def take(self, action: Bind) -> Taken | None:
        """Reserve a ready VM for every place of a bind; None, and nothing reserved, when there are too few."""
        taken: list[tuple[int, PoolFacts, VM]] = []
        for slot, pool in action.places:
            vm = self.ready.take(pool.uid)
            if vm is None:
                self._give_back(taken)
                return None
            taken.append((slot, pool, vm))
        return taken

    async def bind(self, action: Bind, taken: Taken) -> None:
        """Write the claims, then the status that says Bound; what was got is kept, whatever becomes of the rest."""
        claim = action.claim
        try:
            wishes = await self._wishes(action, taken)
        except BaseException:
            self._give_back(taken)
            raise
        if not wishes:
            self._give_back(taken)
            return
        tries = [self._slot(pool, vm, wish) for (_, pool, vm), wish in zip(taken, wishes, strict=True)]
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for error in errors:
            if not isinstance(error, KubeError):
                raise error
        if errors:
            self._trouble(claim, Why("BindFailed", f"its VMs could not be written down: {errors[0]}"))
            return
        entry = self.world.claims.by_uid(claim.uid)
        latest = entry.fact if entry is not None else None
        have = filled(claim, self._held(claim))
        if latest is not None and latest.phase == ClaimPhase.PENDING and len(have) == claim_size(claim):
            status = bound_status(claim, have, self.world.now())
            await claimwrites.write_status(self.world, claim, status)
            self._written(claim, status.phase, status.reason or "", status.message or "")

    async def _wishes(self, action: Bind, taken: Taken) -> list[Claim]:
        """Return what is to be written on each VM; nothing after noting why the claim may not be served now."""
        kind_uid = await self._may_bind(action)
        if kind_uid is None:
            return []
        now = self.world.now()
        return [self._wire(action.claim, action.asker, slot, pool, kind_uid, now) for slot, pool, _ in taken]

    async def _may_bind(self, action: Bind) -> str | None:
        """Return the uid of the kind if the claim may still be served; None after noting why not."""
        claim, who = action.claim, action.asker
        try:
            kind_uid = await self.absence.kind_uid()
        except KindUnreadable as error:
            self._trouble(claim, Why("KindUnreadable", f"nothing is handed out now: {error}"))
            return None
        pools = {pool.uid: pool for _, pool in action.places}
        if who.user:
            if not await self._review(claim, who, list(pools.values())):
                return None
            if not all(self._note(claim).verdicts.get(uid) for uid in pools):
                return None
        return kind_uid

    async def _slot(self, pool: PoolFacts, vm: VM | None, wish: Claim) -> None:
        """Bind one VM for a slot; one that another allocator was faster with is replaced, within a bound."""
        binds = self.world.metrics.claim_binds
        for _ in range(self.world.settings.claim_losses):
            if vm is None:
                return
            try:
                won = await binding.bind(self.world.client, self.world.vms, vm, wish)
            except BaseException:
                # Perhaps it is ours after all: then the server refuses the next one who asks for it.
                self.ready.put_back(vm)
                binds.labels("error").inc()
                raise
            if won is not None:
                binds.labels("bound").inc()
                return
            binds.labels("lost").inc()
            self.ready.lost(vm)
            vm = self.ready.take(pool.uid)
        if vm is not None:
            self.ready.put_back(vm)

    def _wire(self, claim: VMClaim, who: Asker, slot: int, pool: PoolFacts, kind_uid: str, now: datetime) -> Claim:
        return Claim(
            id=claim.uid,
            owner=who.owner(claim),
            bound_at=now,
            expires_at=now + lifetime(claim, pool),
            ref=ClaimRef(namespace=claim.namespace, name=claim.name, uid=claim.uid, kind_uid=kind_uid),
            slot=slot,
            groups=who.groups or None,
            request_id=claim.uid,
            tags=claim.spec.tags,
        )

    def _give_back(self, taken: Taken) -> None:
        for _, _, vm in taken:
            self.ready.put_back(vm)

    def _held(self, claim: VMClaim) -> list[VM]:
        return [entry.fact for entry in self.world.vms.by_index(BY_CLAIM, claim.uid) if entry.fact is not None]

    def _written(self, claim: VMClaim, phase: str, reason: str, message: str) -> None:
        """Note that a status was written, and tell the log and the metrics what is new in it."""
        now = self.world.now()
        self._note(claim).written_at = now
        if phase == claim.phase:
            return
        log.info("claim_phase", claim=f"{claim.namespace}/{claim.name}", phase=phase, reason=reason, why=message)
        if phase == ClaimPhase.BOUND:
            self.world.metrics.claim_wait.observe(max(0.0, (now - claim.created_at).total_seconds()))


def _aliases(pool: Any) -> Sequence[str]:
    """Return the aliases of a VMPool as it is on the wire, also of one that cannot be read as a whole."""
    spec = pool.get("spec")
    aliases = spec.get("aliases") if isinstance(spec, dict) else None
    return aliases if isinstance(aliases, list) else ()


def _kind(vm: VM) -> str:
    """Return the uid of the definition under which a VM was handed out to a VMClaim."""
    assert vm.claim is not None, "only a claimed VM is held"
    return vm.claim.ref.kind_uid if vm.claim.ref is not None else ""
