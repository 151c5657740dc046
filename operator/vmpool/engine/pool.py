"""The loop of one VMPool: snapshot, plan, effects, status."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from vmpool.api import keys
from vmpool.api.conditions import ConditionType, find
from vmpool.api.pool import Failure, VMPoolStatus, template_digest
from vmpool.engine import writes
from vmpool.engine.doing import Doing
from vmpool.engine.durations import Durations
from vmpool.engine.effects import Effects
from vmpool.engine.failures import Failures, failure_in, failure_of
from vmpool.engine.lane import Urgency
from vmpool.engine.letters import has_letter, is_for_good
from vmpool.engine.loop import Done, Loop
from vmpool.engine.world import Refusal, World
from vmpool.kube.errors import Conflict, Forbidden, Invalid, KubeError, NotFound
from vmpool.kube.events import ObjectRef
from vmpool.kube.kinds import POOLEDVMS, VMPOOLS
from vmpool.plan.actions import Action, CreateVM, DestroyMachine, EndClaim, TagMachine
from vmpool.plan.health import pauses
from vmpool.plan.letters import is_poison
from vmpool.plan.lifecycle import Phase
from vmpool.plan.looks import look_grid
from vmpool.plan.nametaken import name_taken
from vmpool.plan.policies import Queue
from vmpool.plan.pool import Plan, plan_pool
from vmpool.plan.snapshot import VM, Outlook, PoolFacts, PoolSnapshot, ProviderFacts, Step
from vmpool.plan.status import health_conditions, pool_status, stalled_reason
from vmpool.providers.errors import InvalidConfig, InvalidTemplate, Terminal
from vmpool.telemetry import logs

log = logs.get(__name__)

TERMINAL_REASONS = frozenset(error.reason for error in (Terminal, InvalidTemplate, InvalidConfig))

TAGGING = "tag/"
TAGS_IN_FLIGHT = 4
"""Most machines of a pool that get their claim's tag at once: the second witness may take its time."""


class PoolLoop(Loop):
    """Keeps one pool as its spec says, until its object is gone."""

    kind = "VMPool"

    def __init__(self, world: World, pool: PoolFacts) -> None:
        super().__init__(world.settings, world.metrics)
        self.world = world
        self.uid = pool.uid
        self.name = f"{pool.namespace}/{pool.name}"
        self.pool = pool
        self.failures = Failures(pool)
        self.durations = Durations()
        self.doing = Doing(self, world.metrics, world.settings.error_pause_seconds)
        self._creates = 0
        self._status_lock = asyncio.Lock()
        self._status_at: datetime | None = None
        self._plan: tuple[PoolSnapshot, Plan] | None = None
        self._counted: frozenset[str] = frozenset()
        self._told: dict[str, int] = {}
        """Attempts whose destruction was kept as a dead letter, by PooledVM uid."""

    def __str__(self) -> str:
        return self.name

    async def round(self, now: datetime) -> datetime | None:
        """Look at everything once, start what the plan says, write the status if it changed."""
        pool = self.world.pool(self.uid)
        if pool is None:
            raise Done
        self.pool = pool
        if doubt := self.world.doubt():
            log.warning("frozen", pool=self.name, why=doubt)
            return now + timedelta(seconds=self.settings.stalled_pause_seconds)
        if not pool.held and not pool.deleting:
            # Before the first VM: a pool that is deleted must stay until its machines are gone.
            await self._hold(keep=True)
            pool = self.pool
        seen = self._snapshot(pool, now)
        if self.failures.template_is(seen.digest):
            self.durations.forget()
        plan = plan_pool(seen, now)
        if self._plan is None:
            log.info("first_plan", pool=self.name, vms=len(seen.vms))
        self._plan = (seen, plan)
        self._start(seen, plan)
        for name in plan.wants_listing:
            view = self.world.views.get((pool.namespace, name))
            if view is not None:
                view.want_listing()
        self._measure(seen, plan)
        if plan.release:
            await self._release(pool)
            return now + timedelta(seconds=self.settings.stalled_pause_seconds)
        late = await self._write_status(now)
        return min((moment for moment in (plan.wake_at, late) if moment is not None), default=None)

    async def closed(self) -> None:
        """End what is in flight: the object is gone, or the process stops."""
        self.metrics.drop_pool(self.pool.namespace, self.pool.name)
        await self.doing.stop(self.world.stop_grace_seconds)

    def _snapshot(self, pool: PoolFacts, now: datetime) -> PoolSnapshot:
        vms = self.world.vms_of_pool(pool.uid)
        self._note_ready(vms_ready=frozenset(vm.uid for vm in vms if vm.phase == Phase.READY), pool=pool)
        changing = sum(1 for vm in vms if vm.phase == Phase.PENDING and vm.machine_id)
        providers: dict[str, ProviderFacts] = {}
        # A VM's provider may have left the pool's list: its machine must still be watched and destroyed.
        for name in {share.name for share in pool.spec.providers} | {vm.provider for vm in vms}:
            view = self.world.views.get((pool.namespace, name))
            if view is not None:
                providers[name] = view.facts()
        return PoolSnapshot(
            pool=pool,
            digest=template_digest(pool.spec.template),
            vms=vms,
            providers=providers,
            sights=self.world.sights,
            busy=self.doing.keys,
            creating=self.world.creates.of_pool(pool.uid),
            creation=self.failures.creation,
            outlook=Outlook(self.durations.expected, look_grid(changing)),
            owed=self.failures.owed(vms, now),
            waiting=self.world.waiting(pool.uid),
            **self._policies(pool),
            name_taken=name_taken(pool, (entry.fact for entry in self.world.pools if entry.fact is not None)),
        )

    def _policies(self, pool: PoolFacts) -> dict[str, Any]:
        """Return what the objects that the pool names say to this round."""
        named = self.world.named(pool)
        verdict = self.world.verdicts.get(pool.uid) if named.health is not None else None
        known = verdict.conditions if verdict is not None else health_conditions(pool.status.conditions)
        creates_paused = ""
        if named.health is not None:
            # Before the first check after a restart, what was written before it still counts.
            creates_paused = verdict.creates_paused if verdict is not None else pauses(named.health, known)[0]
        queue = named.queue
        return {
            "poison": self.failures.poison if pool.spec.dead_letter_queue is not None else None,
            "poison_limit": queue.spec.poison.failures if queue is not None else 0,
            "creates_paused": creates_paused,
            "purges": self.world.purges if named.purge is not None else {},
            "missing": named.missing,
            "health": known if named.health is not None else (),
        }

    def _note_ready(self, vms_ready: frozenset[str], pool: PoolFacts) -> None:
        """Every VM that is newly Ready speeds up a slow start; those found at the start do not count."""
        if self._plan is not None:
            for uid in vms_ready - self._counted:
                self.failures.succeeded(pool)
                vm = self.world.vm(uid)
                if vm is not None:
                    seconds = (self.world.now() - vm.created_at).total_seconds()
                    self.metrics.ready_seconds.labels(pool.namespace, pool.name).observe(seconds)
        self._counted = vms_ready

    def _start(self, seen: PoolSnapshot, plan: Plan) -> None:
        spec = seen.pool.spec
        effects = Effects(
            self.world,
            retry=spec.retry,
            template=spec.template,
            readiness=spec.readiness,
            outlook=seen.outlook,
            durations=self.durations,
            # Whoever wants failures kept wants to read of these too; without a queue a VM waits until it may be made.
            patience=spec.readiness.timeout if spec.dead_letter_queue is not None else None,
        )
        effects.urgency = Urgency.REFILL if plan.counts.ready else Urgency.EMPTY_POOL
        for action in plan.actions:
            if isinstance(action, CreateVM):
                self._create(seen, action)
            else:
                self._act(effects, action)

    def _act(self, effects: Effects, action: Action) -> None:
        assert not isinstance(action, CreateVM)

        async def work() -> timedelta | None:
            failure = failure_in(action, self.world.now())
            if failure is not None:
                # What a claim had has its successor since the claim: nothing is owed for it.
                await self._record_failure(action.vm, failure, owed=not isinstance(action, EndClaim))
            calm = await effects.run(action)
            if isinstance(action, DestroyMachine):
                await self._tell_task(action.vm)
            return calm

        key = action.vm.uid
        if isinstance(action, TagMachine):
            # Beside the VM's own work: whoever waits for a slot to be tagged must be able to end meanwhile.
            key = f"{TAGGING}{key}"
            if key in self.doing.keys or sum(one.startswith(TAGGING) for one in self.doing.keys) >= TAGS_IN_FLIGHT:
                return
        self.doing.start(key, action, work)

    def _create(self, seen: PoolSnapshot, action: CreateVM) -> None:
        self._creates += 1
        key = f"create-{self._creates}"
        where = (seen.pool.namespace, action.provider)
        self.world.creates.begin(self.uid, where)

        async def work() -> None:
            try:
                with self.world.ends_create(self.uid, where):
                    await writes.create_vm(self.world, seen.pool, seen.digest, action)
                self.failures.paid(action.request_id)
            except (Invalid, Forbidden) as error:
                # A quota or an admission policy: it will say no again, so ask less and less often, and say why.
                self.failures.refused(seen.pool, self.world.now())
                self.world.events.emit(self._ref(), "Warning", "CreateRefused", f"PooledVM refused: {error.message}")
                raise

        self.doing.start(key, action, work)

    async def _record_failure(self, vm: VM, failure: Failure, *, owed: bool) -> None:
        """Write the failure down before the VM leaves its phase: a kill in between repeats it, and loses nothing."""
        pool, kept = self.world.pool(self.uid), False
        if pool is not None and pool.spec.dead_letter_queue is not None:
            kept = self._kept(vm, await self.world.letter_box.write(pool, vm, failure))
        # Behind the letter: one that has to be tried again is one failure all the same.
        if self.failures.add(self.world, self.pool, failure, digest=vm.digest, owed=owed):
            log.warning("vm_failed", pool=self.name, **failure.wire())
            self.world.events.emit(self._ref(), "Warning", failure.error_class, f"{failure.vm}: {failure.message}")
        if kept:
            return
        pool = self.world.pool(self.uid)
        written = pool.status.recent_failures if pool is not None else ()
        if self.failures.remembers(failure) and not any(known.is_of(failure) for known in written):
            await self._write_status(self.world.now(), must=True)

    def _kept(self, vm: VM, answer: Refusal | bool) -> bool:
        """Whether a letter is there; one that the server refuses for good is told."""
        if isinstance(answer, Refusal):
            self.world.events.emit(self._ref(), "Warning", "DeadLetterRefused", f"{vm.name}: {answer.message}")
            return False
        return True

    async def _tell_task(self, vm: VM) -> None:
        """Keep a destruction that does not end as a dead letter, once; it goes on whatever becomes of the letter."""
        before, pool = vm.step(Step.DESTROY), self.world.pool(self.uid)
        vm = self.world.vm(vm.uid) or vm
        step = vm.step(Step.DESTROY)
        if pool is None or pool.spec.dead_letter_queue is None:
            return
        if step.retries <= before.retries or step.retries < pool.spec.retry.attempts:
            return
        if has_letter(self.world, vm, Queue.TASKS) or self._told.get(vm.uid) == vm.attempt:
            return
        try:
            failure = failure_of(vm, Step.DESTROY, step.reason, step.message, self.world.now())
            self._kept(vm, await self.world.letter_box.write(pool, vm, failure))
        except KubeError as error:
            log.warning("task_not_told", vm=vm.name, error=str(error))
            return
        self._told = {uid: told for uid, told in self._told.items() if self.world.vm(uid) is not None}
        self._told[vm.uid] = vm.attempt

    def _ref(self) -> ObjectRef:
        return ObjectRef.of(VMPOOLS, self.pool.namespace, self.pool.name, self.pool.uid)

    async def _write_status(self, now: datetime, *, must: bool = False) -> datetime | None:
        """Write the status if it differs; return when to come back if a mere change of counts has to wait."""
        async with self._status_lock:
            if self._plan is None:
                return None
            seen, plan = self._plan
            pool = self.world.pool(self.uid)
            if pool is None:
                return None
            # Another write may have come since the plan was made: times of transition go on from what is written now.
            seen = replace(seen, pool=replace(seen.pool, status=pool.status))
            self.failures.learn(pool.status.recent_failures)
            stalled = stalled_reason(seen, self.failures.recent, TERMINAL_REASONS)
            status = pool_status(seen, plan, failures=self.failures.recent, stalled=stalled, now=now)
            changes = writes.status_changes(pool.status, status)
            if not changes:
                return None
            pause = timedelta(seconds=self.settings.status_pause_seconds)
            urgent = must or _verdicts(pool.status) != _verdicts(status)
            if not urgent and self._status_at is not None and now < self._status_at + pause:
                return self._status_at + pause
            await self._patch_status(pool, status, changes, must=must)
            self._status_at = now
            return None

    async def _patch_status(
        self, pool: PoolFacts, status: VMPoolStatus, changes: dict[str, object], *, must: bool
    ) -> None:
        body = {"metadata": {"uid": pool.uid, "resourceVersion": pool.resource_version}, "status": changes}
        try:
            written = await self.world.client.patch_merge(VMPOOLS, pool.namespace, pool.name, body, "status")
        except Conflict:
            await self.world.pools.quorum_get(pool.namespace, pool.name)
            if not must:
                self.wake()
                return
            newest = self.world.pool(self.uid)
            if newest is None:
                return
            body["metadata"] = {"uid": newest.uid, "resourceVersion": newest.resource_version}
            written = await self.world.client.patch_merge(VMPOOLS, pool.namespace, pool.name, body, "status")
        except KubeError as error:
            if not must or not is_for_good(error):
                # Nothing may end before its failure is written down: whoever wants it tries again.
                raise
            self.metrics.lost_letters.inc()
            log.error("failure_record_refused", pool=self.name, error=str(error), status=status.wire())
            return
        self.world.pools.saw(written)
        self._announce(pool.status, status)

    def _announce(self, before: VMPoolStatus, after: VMPoolStatus) -> None:
        """Tell people about verdicts that changed, in the condition's own sentence."""
        for kind in (ConditionType.READY, ConditionType.STALLED):
            old, new = find(before.conditions, kind), find(after.conditions, kind)
            if new is None or (old is not None and (old.status, old.reason) == (new.status, new.reason)):
                continue
            log.info("pool_condition", pool=self.name, type=kind, status=new.status, reason=new.reason, why=new.message)
            if kind is ConditionType.STALLED or new.status == "True":
                stalled = kind is ConditionType.STALLED
                self.world.events.emit(self._ref(), "Warning" if stalled else "Normal", new.reason, new.message)

    async def _hold(self, *, keep: bool) -> None:
        pool = self.pool
        raw = await self.world.client.get(VMPOOLS, pool.namespace, pool.name)
        if raw["metadata"]["uid"] != pool.uid:
            return
        patch = writes.finalizer_patch(raw, keys.FINALIZER_DRAIN, keep=keep)
        if patch:
            raw = await self.world.client.patch_json(VMPOOLS, pool.namespace, pool.name, patch)
        self.world.pools.saw(raw)
        self.pool = self.world.pool(self.uid) or pool

    async def _release(self, pool: PoolFacts) -> None:
        """Let a drained pool go, once the server itself says that no VM of its uid is left."""
        selector = f"spec.pool={pool.name}"
        async for page in self.world.client.list_pages(POOLEDVMS, pool.namespace, field_selector=selector):
            if any(item["spec"]["poolUid"] == pool.uid for item in page.items):
                return
        try:
            await self._hold(keep=False)
        except NotFound:
            return
        log.info("pool_drained", pool=self.name)

    def _measure(self, seen: PoolSnapshot, plan: Plan) -> None:
        labels = (seen.pool.namespace, seen.pool.name)
        counts = plan.counts
        poisoned = is_poison(seen.poison, seen.poison_limit)
        self.metrics.reliability.poisoned.labels(*labels).set(poisoned)
        self.metrics.reliability.paused.labels(*labels).set(seen.pool.spec.paused or seen.pool.deleting)
        self.metrics.desired.labels(*labels).set(counts.desired)
        for phase, count in (
            (Phase.PENDING, counts.pending),
            (Phase.READY, counts.ready),
            (Phase.CLAIMED, counts.claimed),
            (Phase.QUARANTINED, counts.quarantined),
            (Phase.COMPLETED, counts.draining),
        ):
            self.metrics.vms.labels(*labels, phase.value).set(count)


def _verdicts(status: VMPoolStatus) -> tuple[object, ...]:
    """What must be told at once; counts may wait for the next write."""
    return (
        status.observed_generation,
        status.selector,
        tuple((c.type, c.status, c.reason) for c in status.conditions),
    )
