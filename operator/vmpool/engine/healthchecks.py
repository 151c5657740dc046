"""The loop of one HealthPolicy: holds the numbers of its pools against the limits and says what follows."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from vmpool.api.health import HealthPolicyStatus
from vmpool.engine import writes
from vmpool.engine.loop import Done, Loop
from vmpool.engine.stragglers import STRAGGLER_POOL_UID
from vmpool.engine.world import BY_POOL, Verdict, World
from vmpool.kube.errors import Conflict, NotFound
from vmpool.kube.events import EventType, ObjectRef
from vmpool.kube.kinds import HEALTH_POLICIES, VMPOOLS
from vmpool.plan.health import (
    LEVEL_OF_WORD,
    TOTALLED,
    Judgement,
    Level,
    State,
    filled_at,
    health_of,
    judge,
    pauses,
    policy_status,
    pool_readings,
    reason_of,
    restored,
    restored_of,
    total_readings,
)
from vmpool.plan.healthnumbers import PoolNumbers, Totals, pool_numbers, totals
from vmpool.plan.policies import HealthObject, Queue
from vmpool.plan.snapshot import PoolFacts
from vmpool.telemetry import logs

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Judged:
    """What is known of one pool from the last check."""

    pool: PoolFacts
    state: State
    filled: datetime
    """See ``filled_at``."""
    verdict: Verdict


class HealthLoop(Loop):
    """Judges the pools that name one policy: at its interval, and at once when the policy or who names it changes."""

    kind = "HealthPolicy"

    def __init__(self, world: World, obj: HealthObject) -> None:
        super().__init__(world.settings, world.metrics)
        self.world = world
        self.uid = obj.uid
        self.key = (obj.namespace, obj.name)
        self._judged: dict[str, Judged] = {}
        self._own = State()
        self._due: datetime | None = None
        self._generation: int | None = None
        self._first = True

    def __str__(self) -> str:
        return "/".join(self.key)

    async def round(self, now: datetime) -> datetime | None:
        """Check what is due and write the status if the verdict changed. Raises Done when the policy is gone."""
        entry = self.world.health_policies.by_uid(self.uid)
        if entry is None or entry.fact is None:
            raise Done
        policy = entry.fact
        if doubt := self.world.doubt():
            log.warning("frozen", policy=str(self), why=doubt)
            return now + timedelta(seconds=self.settings.stalled_pause_seconds)
        namespace, name = self.key
        pools = self.world.pools_of_policy(namespace, lambda pool: pool.spec.health_policy, name)
        due = self._is_due(policy, now)
        known = {uid: judged.pool.generation for uid, judged in self._judged.items()}
        if due or known != {pool.uid: pool.generation for pool in pools}:
            self._check(policy, pools, now, counts=due)
        if due:
            self._due = now + policy.spec.interval
        await self._write(policy, now)
        return self._due

    def _is_due(self, policy: HealthObject, now: datetime) -> bool:
        """Whether a check is due: at the start, when the spec changed, and every interval; a clock may go back."""
        if self._due is None or policy.generation != self._generation:
            return True
        return now >= self._due or now < self._due - policy.spec.interval

    async def closed(self) -> None:
        """Take the verdicts off the board: without a policy nobody is judged."""
        for uid in list(self._judged):
            self._forget(uid)
        self.metrics.reliability.drop_health(*self.key)

    # --- checking --------------------------------------------------------------------------------

    def _check(self, policy: HealthObject, pools: list[PoolFacts], now: datetime, *, counts: bool) -> None:
        self._begin(policy)
        present = {pool.uid for pool in pools}
        for uid in [uid for uid in self._judged if uid not in present]:
            self._forget(uid)
        numbers = {pool.uid: self._look(policy, pool, now, counts=counts) for pool in pools}
        stragglers = [entry.fact for entry in self.world.vms.by_index(BY_POOL, STRAGGLER_POOL_UID)]
        claims = (entry.fact for entry in self.world.claims if entry.fact is not None)
        total = totals(pools, numbers.values(), (vm for vm in stragglers if vm is not None), claims)
        readings = total_readings(total.dead, total.stuck, policy.spec.thresholds)
        self._own = judge(self._own, readings, policy.spec.hysteresis, counts=counts)
        self._first = False
        level = self._level()
        self._measure(level, total, now)
        self.metrics.reliability.health_interval.labels(*self.key).set(policy.spec.interval.total_seconds())
        if counts:
            log.info(
                f"[*] [health] Status: {level.name} | Queues: P={total.pending} R={total.ready} C={total.completed} | "
                f"DLQ={total.dead} | Stuck={total.stuck} | Orphaned={total.orphans}",
                policy=str(self),
            )

    def _begin(self, policy: HealthObject) -> None:
        """Start from what the process before has written; other limits are judged afresh, and believed at once."""
        if policy.generation == self._generation:
            return
        before = policy.status
        self._first = self._generation is None and before.observed_generation == policy.generation
        self._generation = policy.generation
        self._own = State()
        self._judged = {
            uid: Judged(one.pool, State(told=one.state.told), one.filled, one.verdict)
            for uid, one in self._judged.items()
        }
        if self._first and (level := LEVEL_OF_WORD.get(before.health, Level.HEALTHY)) > Level.HEALTHY:
            stands = next((one for one in before.conditions if one.status == "True"), None)
            # Only which limits count as exceeded: the message speaks of single pools too, and the level may be theirs.
            past = restored(level, stands.reason if stands is not None else "", "", TOTALLED)
            self._own = State(exceeded=past.exceeded)

    def _look(self, policy: HealthObject, pool: PoolFacts, now: datetime, *, counts: bool) -> PoolNumbers:
        """Count one pool, judge it, and put the verdict on the board."""
        limits, vms = policy.spec.thresholds, self.world.vms_of_pool(pool.uid)
        before = self._judged.get(pool.uid)
        filled = filled_at(pool, vms, before.filled if before is not None else None, limits.empty_pool_max_age, now)
        found = pool_numbers(
            pool,
            vms,
            (entry.fact for entry in self.world.letters.by_index(BY_POOL, pool.uid) if entry.fact is not None),
            stuck_after=limits.stuck_vm_age_threshold,
            waiting=self.world.waiting(pool.uid),
            filled=filled,
            now=now,
        )
        past = before.state if before is not None else self._past(pool)
        state = judge(past, pool_readings(found, limits), policy.spec.hysteresis, counts=counts)
        told = state.told
        # Compared by identity: a verdict that still stands is the very same, with the numbers it came with.
        found_now = state.recent[-1]
        if before is not None and told is past.told and not _outdated(before, pool, policy, found_now):
            verdict = before.verdict
        else:
            verdict = _verdict(policy, pool, told, found_now, now)
        self._judged[pool.uid] = Judged(pool, state, filled, verdict)
        if self.world.verdicts.get(pool.uid) != verdict:
            self.world.verdicts[pool.uid] = verdict
            self.world.wake_pool(pool.uid)
        if told.level != past.told.level:
            self._tell(ObjectRef.of(VMPOOLS, pool.namespace, pool.name, pool.uid), told.level, told.message)
        self._measure_pool(pool, told.level, found)
        return found

    def _past(self, pool: PoolFacts) -> State:
        return restored_of(pool.status.conditions) if self._first else State()

    def _level(self) -> Level:
        return max((self._own.told.level, *(one.state.told.level for one in self._judged.values())))

    def _forget(self, uid: str) -> None:
        """A pool is not this policy's any more. What another policy has put on the board since is left alone."""
        judged = self._judged.pop(uid)
        if self.world.verdicts.get(uid) is not judged.verdict:
            return
        del self.world.verdicts[uid]
        self.metrics.reliability.drop_pool_health(judged.pool.namespace, judged.pool.name)
        self.world.wake_pool(uid)

    # --- telling ---------------------------------------------------------------------------------

    async def _write(self, policy: HealthObject, now: datetime) -> None:
        judged = [(one.pool, one.state.told) for one in self._judged.values()]
        status = policy_status(policy, self._own.told, judged, now)
        if status is policy.status:
            return
        body = {
            "metadata": {"uid": policy.uid, "resourceVersion": policy.resource_version},
            "status": writes.status_changes(policy.status, status),
        }
        try:
            written = await self.world.client.patch_merge(HEALTH_POLICIES, *self.key, body, "status")
        except (Conflict, NotFound):
            await self._look_again()
            return
        self.world.health_policies.saw(written)
        self._announce(policy.status, status)

    async def _look_again(self) -> None:
        """Somebody else wrote the object, or it is gone: learn how it is, and write on that."""
        try:
            await self.world.health_policies.quorum_get(*self.key)
        except NotFound:
            self.world.health_policies.saw_deleted(self.uid)
        self.wake()

    def _announce(self, before: HealthPolicyStatus, after: HealthPolicyStatus) -> None:
        level = LEVEL_OF_WORD[after.health]
        if after.health != (before.health or Level.HEALTHY.word):
            self._tell(ObjectRef.of(HEALTH_POLICIES, *self.key, self.uid), level, after.message or "")

    def _tell(self, ref: ObjectRef, level: Level, message: str) -> None:
        kind: EventType = "Normal" if level is Level.HEALTHY else "Warning"
        self.world.events.emit(ref, kind, level.name.capitalize(), message)

    def _measure(self, level: Level, total: Totals, now: datetime) -> None:
        metrics = self.metrics.reliability
        metrics.health.labels(*self.key).set(level)
        metrics.health_last.labels(*self.key).set(now.timestamp())
        metrics.health_letters.labels(*self.key).set(total.dead)
        for queue in Queue:
            metrics.health_letters_by_queue.labels(*self.key, queue.value).set(total.letters.get(queue, 0))
        metrics.stuck.labels(*self.key).set(total.stuck)
        metrics.orphaned.labels(*self.key).set(total.orphans)
        tasks: Mapping[tuple[str, str], int] = {
            ("clone", "active"): total.clones_active,
            ("clone", "pending"): total.clones_pending,
            ("ondemand", "active"): total.ondemand_active,
            ("ondemand", "pending"): total.ondemand_pending,
        }
        for (task, state), count in tasks.items():
            metrics.tasks.labels(*self.key, task, state).set(count)

    def _measure_pool(self, pool: PoolFacts, level: Level, found: PoolNumbers) -> None:
        metrics, labels = self.metrics.reliability, (pool.namespace, pool.name)
        metrics.pool_health.labels(*labels).set(level)
        for queue, numbers in (("pending", found.pending), ("ready", found.ready), ("completed", found.completed)):
            metrics.queue_size.labels(*labels, queue).set(numbers.size)
            metrics.queue_oldest.labels(*labels, queue).set(numbers.oldest)
            metrics.queue_average.labels(*labels, queue).set(numbers.average)
        metrics.queue_stuck.labels(*labels, Queue.PENDING.value).set(found.stuck)


def _verdict(policy: HealthObject, pool: PoolFacts, told: Judgement, found: Judgement, now: datetime) -> Verdict:
    conditions = health_of(told.level, reason_of(told.causes), told.message, pool.generation, now)
    creates, purge = pauses(policy, conditions, found)
    return Verdict(conditions, told.level is Level.UNHEALTHY, creates, purge)


def _outdated(before: Judged, pool: PoolFacts, policy: HealthObject, found: Judgement) -> bool:
    """Whether a verdict speaks of another generation, or its pauses are not what the policy says now."""
    stands = before.verdict
    if before.pool.generation != pool.generation:
        return True
    return (stands.creates_paused, stands.purge_paused) != pauses(policy, stands.conditions, found)
