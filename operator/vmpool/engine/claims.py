"""The loop of all VMClaims: one queue, one plan, effects by claim."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from vmpool.engine.absence import Absence, Presence
from vmpool.engine.agenda import Agenda
from vmpool.engine.claimeffects import ClaimEffects
from vmpool.engine.claimwrites import say_missing
from vmpool.engine.doing import Doing
from vmpool.engine.held import HeldIndex
from vmpool.engine.loop import Loop
from vmpool.engine.ready import ReadyIndex
from vmpool.engine.reviews import AccessReviews, ReviewSettings
from vmpool.engine.trust import TrustFinder
from vmpool.engine.world import Key, World
from vmpool.engine.writes import end_claims
from vmpool.kube.mirror import Change
from vmpool.plan.actions import EndClaim
from vmpool.plan.claims import QueuePlan, plan_claims
from vmpool.plan.claimstatus import CLAIM_MISSING
from vmpool.plan.demand import demand
from vmpool.plan.queue import Bind, ClaimAction, Note, QueueSnapshot, Trust
from vmpool.plan.snapshot import VM, ClaimRefFacts, PoolFacts, VMClaim
from vmpool.telemetry import logs

log = logs.get(__name__)


class ClaimsLoop(Loop):
    """Serves the queue of VMClaims and follows what became of each. There is one, and it never ends.

    Make it before the mirrors run: it follows them from its making on.
    """

    kind = "VMClaims"

    def __init__(self, world: World) -> None:
        super().__init__(world.settings, world.metrics)
        own = world.settings
        self.world = world
        self.doing = Doing(self, world.metrics, own.error_pause_seconds)
        self.held = HeldIndex(world.vms)
        self._agenda = Agenda(world.claims, world.vms, world.pools)
        self._all_at: datetime | None = None
        """When every claim is looked at again, news or not."""
        self._ready = ReadyIndex(f"engine-{world.install_id}", world.vms, world.pools)
        self._notes: dict[str, Note] = {}
        namespaced = bool(own.watch_namespace)
        self._absence = Absence(world.client, world.claims, own.claim_review_seconds, namespaced=namespaced)
        self._trust = TrustFinder(
            world.client,
            namespaced=namespaced,
            seconds=own.claim_review_seconds,
            margin=timedelta(seconds=own.claim_policy_margin_seconds),
        )
        reviews = AccessReviews(world.client, ReviewSettings(seconds=own.claim_review_seconds))
        self._effects = ClaimEffects(world, self._ready, self._absence, reviews, self._notes)
        self._binding: dict[str, Mapping[int, str]] = {}
        self._plan = QueuePlan()
        self._again: dict[str, datetime] = {}
        """When a VMClaim that is not there is asked for again, by its uid."""

    def __str__(self) -> str:
        return "claims"

    def prime(self) -> None:
        """Count what waits by what is written, before the first pool decides what is too much."""
        pools = self._pools()
        claims = [entry.fact for entry in self.world.claims if entry.fact is not None]
        self._plan = QueuePlan(demand=demand(claims, pools, self.held.of))

    def waiting(self, pool_uid: str) -> int:
        """Return how many VMs the claims lack in a pool: as last planned, less what has been bound since."""
        count = self._plan.demand.get(pool_uid, 0)
        for claim_uid, places in self._plan.begun.items():
            slots = {slot for slot, uid in places.items() if uid == pool_uid}
            if slots:
                have = {vm.claim.slot for vm in self.held.of(claim_uid) if vm.claim is not None and vm.claimed}
                count -= len(slots & have)
        return max(0, count)

    def concerns(self, change: Change[VM]) -> bool:
        """Whether the news of a VM may matter to the queue."""
        return self._agenda.concerns(change)

    async def round(self, now: datetime) -> datetime | None:
        """Plan for everything that waits, and for what was handed out and has news; begin what the plan says."""
        if doubt := self.world.doubt():
            log.warning("frozen", queue=str(self), why=doubt)
            return now + timedelta(seconds=self.settings.stalled_pause_seconds)
        if self._all_at is None or now >= self._all_at:
            self._look_at_all(now)
        pending = self._agenda.pending
        trust = await self._trust.now() if pending else None
        # Whatever happened while that was asked for is in the mirrors; from here on nothing is waited for.
        seen = self._snapshot(trust, now)
        before = {pool.uid: self.waiting(pool.uid) for pool in seen.pools.values()}
        plan = plan_claims(seen, now)
        self._plan = plan
        self._agenda.settle(plan.settled)
        for uid in plan.recovered:
            self._notes[uid].checked = False
        for action in plan.actions:
            self._start(action)
        self._measure(seen.pools, plan)
        for uid, count in before.items():
            if count != self.waiting(uid):
                self.world.wake_pool(uid)
        times = [plan.wake_at, self._agenda.next(), self._all_at, self._look_for_missing(now)]
        if pending:
            times.append(now + timedelta(seconds=self.settings.claim_rounds_longest_seconds))
            if trust is None:
                times.append(now + timedelta(seconds=self.settings.claim_retry_seconds))
        return min((moment for moment in times if moment is not None), default=None)

    async def closed(self) -> None:
        """End what is in flight."""
        await self.doing.stop(self.world.stop_grace_seconds)

    def _pools(self) -> dict[Key, PoolFacts]:
        return {(entry.fact.namespace, entry.fact.name): entry.fact for entry in self.world.pools if entry.fact}

    def _look_at_all(self, now: datetime) -> None:
        """Put every claim on the agenda, and forget what is remembered of those that are gone."""
        self._agenda.everything(ref.uid for ref in self.held.refs())
        for uid in [uid for uid in self._notes if self.world.claims.by_uid(uid) is None]:
            del self._notes[uid]
        self._all_at = now + self.settings.resync

    def _remember(self, claims: list[VMClaim]) -> None:
        """Keep a note of every claim that is looked at, from the first time on."""
        for claim in claims:
            if claim.uid not in self._notes:
                self._notes[claim.uid] = Note(order=int(claim.resource_version))

    def _snapshot(self, trust: Trust | None, now: datetime) -> QueueSnapshot:
        busy = self.doing.keys
        pools = self._pools()
        claims = self._agenda.due(now)
        self._remember(claims)
        return QueueSnapshot(
            claims=claims,
            pools=pools,
            ready={pool.uid: self._ready.count(pool.uid) for pool in pools.values()},
            held={claim.uid: self.held.of(claim.uid) for claim in claims},
            trust=trust,
            served=self.held.served,
            notes=self._notes,
            begun=self._binding,
            busy=busy,
            room=self.settings.claim_effects_in_flight - len(busy),
            pause=timedelta(seconds=self.settings.status_pause_seconds),
            home=self.settings.namespace,
        )

    def _start(self, action: ClaimAction) -> None:
        uid = action.claim.uid
        if not isinstance(action, Bind):
            self.doing.start(uid, action, lambda: self._effects.run(action))
            return
        # Taken before anything is waited for: the next plan, of any kind, must not count them again.
        taken = self._effects.take(action)
        if taken is None:
            return
        self._binding[uid] = {slot: pool.uid for slot, pool in action.places}

        async def work() -> None:
            try:
                await self._effects.bind(action, taken)
            finally:
                del self._binding[uid]

        self.doing.start(uid, action, work)

    def _measure(self, pools: Mapping[Key, PoolFacts], plan: QueuePlan) -> None:
        for (namespace, name), pool in pools.items():
            self.metrics.claims_waiting.labels(namespace, name).set(plan.waiting.get(pool.uid, 0))

    # --- claims that are not there -----------------------------------------------------------------------------

    def _look_for_missing(self, now: datetime) -> datetime | None:
        """Ask for every VMClaim that has VMs and that the mirror lacks; return when to ask again."""
        missing = []
        for uid in self._agenda.astray():
            found = self.held.ref(uid)
            if found is None:
                self._agenda.found_out(uid)
            else:
                missing.append(found)
        self._again = {ref.uid: self._again[ref.uid] for ref in missing if ref.uid in self._again}
        busy = self.doing.keys
        room = self.settings.claim_effects_in_flight - len(busy)
        due: list[datetime] = []
        for ref in missing:
            live = [vm for vm in self.held.of(ref.uid) if vm.claimed]
            if not live or ref.uid in busy:
                continue
            again = self._again.get(ref.uid, now)
            if again > now:
                due.append(again)
            elif room > 0:
                room -= 1
                action = EndClaim(live[0], CLAIM_MISSING)
                self.doing.start(ref.uid, action, lambda ref=ref, live=live: self._prove(ref, live))  # type: ignore[misc]
        return min(due, default=None)

    async def _prove(self, ref: ClaimRefFacts, live: list[VM]) -> None:
        """End the claims of VMs whose VMClaim is proven gone; tell the others' owners that it is missing."""
        finding = await self._absence.find(ref)
        now = self.world.now()
        if finding.presence is Presence.GONE:
            log.info("claim_gone", claim=f"{ref.namespace}/{ref.name}", uid=ref.uid, vms=[vm.name for vm in live])
            await end_claims(self.world, live, CLAIM_MISSING, now)
            return
        self._again[ref.uid] = now + timedelta(seconds=self.settings.claim_proof_seconds)
        if finding.presence is Presence.UNPROVEN:
            log.warning("claim_missing", claim=f"{ref.namespace}/{ref.name}", uid=ref.uid, why=finding.why)
            for vm in live:
                if not vm.claim_missing:
                    await say_missing(self.world, vm, finding.why, now)
