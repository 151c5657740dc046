"""The loop of one PurgePolicy: finds what is too old and has the pools remove it."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from vmpool.api.conditions import merge
from vmpool.api.purge import PurgeCycle, PurgePolicyStatus
from vmpool.engine import writes
from vmpool.engine.doing import Doing
from vmpool.engine.failures import failure_of
from vmpool.engine.letters import has_letter
from vmpool.engine.loop import Done, Loop
from vmpool.engine.stragglers import is_straggler
from vmpool.engine.world import Key, Refusal, World
from vmpool.kube.errors import Conflict, NotFound
from vmpool.kube.events import ObjectRef
from vmpool.kube.kinds import PURGE_POLICIES, VMPOOLS
from vmpool.plan import purge
from vmpool.plan.policies import PurgeObject, Queue
from vmpool.plan.purge import Found, Group, Stale, State
from vmpool.plan.snapshot import VM, PoolFacts, Purge, Step
from vmpool.telemetry import logs
from vmpool.telemetry.reliability import drop

log = logs.get(__name__)

WATCH_PAUSE = timedelta(seconds=0.25)
"""Between two looks at what becomes of the orders of a cycle."""
LINES_AT_ONCE = 100
"""So many log lines are written before others get a turn."""


@dataclass(frozen=True, slots=True)
class TellLate:
    """Write the dead letter of a destruction that does not end."""

    vm: VM


@dataclass(slots=True)
class Cycle:
    """A live cycle on its way: what was found, and what became of it so far."""

    began: datetime
    clock: float
    """Its start on the monotonic clock."""
    generation: int
    found: Found
    orders: dict[str, tuple[Stale, Purge]] = field(default_factory=dict)
    """On the board, by uid."""
    untold: dict[str, Stale] = field(default_factory=dict)
    """Late destructions whose dead letter comes first, by uid."""
    purged: list[Stale] = field(default_factory=list)
    kept: int = 0

    @property
    def open(self) -> int:
        """How many are still waited for."""
        return len(self.orders) + len(self.untold)


class PurgeLoop(Loop):
    """Looks after the age of the VMs of the pools that name one policy."""

    kind = "PurgePolicy"

    def __init__(self, world: World, obj: PurgeObject) -> None:
        super().__init__(world.settings, world.metrics)
        self.world = world
        self.uid = obj.uid
        self.key = (obj.namespace, obj.name)
        self.policy = obj
        self.doing = Doing(self, world.metrics, world.settings.error_pause_seconds)
        self._cycle: Cycle | None = None
        self._last: PurgeCycle | None = obj.status.last_cycle
        self._began: datetime | None = None
        self._generation = -1
        self._covered: frozenset[str] = frozenset()
        """Uids of the pools that the last cycle spoke for."""
        self._started = time.monotonic()

    def __str__(self) -> str:
        return "/".join(self.key)

    async def round(self, now: datetime) -> datetime | None:
        """Begin the cycle that is due, or see what became of the one on its way."""
        entry = self.world.purge_policies.by_uid(self.uid)
        if entry is None or entry.fact is None:
            raise Done
        self.policy = entry.fact
        if doubt := self.world.doubt():
            log.warning("frozen", purge_policy=str(self), why=doubt)
            return now + timedelta(seconds=self.settings.stalled_pause_seconds)
        if self._cycle is not None:
            await self._follow(self._cycle, now)
        if self._cycle is None and self._due(now) and not self._too_early():
            await self._begin(now)
        await self._write_status(now)
        return self._wake_at(now)

    async def closed(self) -> None:
        """Take back every order; the policy is gone, or the process stops."""
        if self._cycle is not None:
            self._take_back(self._cycle.orders)
            self._cycle = None
        namespace, name = self.key
        reliability = self.metrics.reliability
        for gauge in (reliability.purge_last, reliability.purge_interval, reliability.purge_found):
            drop(gauge, namespace=namespace, purge_policy=name)
        await self.doing.stop(self.world.stop_grace_seconds)

    # --- when ------------------------------------------------------------------------------------

    def _due(self, now: datetime) -> bool:
        """Whether a cycle begins: at the start, every interval, and when the spec changed or another pool names it.

        A clock may go back.
        """
        if self._began is None or self.policy.generation != self._generation:
            return True
        if any(pool.uid not in self._covered for pool in self._pools()):
            return True
        return now < self._began or now >= self._began + self.policy.spec.interval

    def _too_early(self) -> bool:
        """Just started, and a provider, or a pool's health, was not looked at yet: wait for it, but not for ever."""
        if time.monotonic() >= self._started + self.settings.purge_start_seconds:
            return False
        pools = self._pools()
        views = [self.world.views.get((pool.namespace, share.name)) for pool in pools for share in pool.spec.providers]
        settling = any(view is not None and view.facts().settling for view in views)
        return settling or any(self._unjudged(pool) for pool in pools)

    def _wake_at(self, now: datetime) -> datetime:
        moments = [now + timedelta(seconds=self.settings.purge_look_seconds)]
        if self._cycle is not None:
            moments.append(now + WATCH_PAUSE)
        elif self._began is None:
            moments.append(now + timedelta(seconds=1))
        else:
            moments.append(self._began + self.policy.spec.interval)
        ends = purge.pause_ends(self.policy.spec, now)
        if ends is not None:
            moments.append(ends)
        return min(moments)

    # --- what ------------------------------------------------------------------------------------

    def _pools(self) -> list[PoolFacts]:
        namespace, name = self.key
        return self.world.pools_of_policy(namespace, lambda pool: pool.spec.purge_policy, name)

    def _unjudged(self, pool: PoolFacts) -> bool:
        health = self.world.named(pool).health
        return health is not None and "pausePurge" in health.spec.on_unhealthy and pool.uid not in self.world.verdicts

    def _paused(self, pool: PoolFacts) -> str:
        """Say in a clause why nothing of a pool may be removed; empty when it may."""
        if pool.spec.paused:
            return "spec.paused is true"
        if self._unjudged(pool):
            return f"HealthPolicy {pool.spec.health_policy} has not judged it yet"
        verdict = self.world.verdicts.get(pool.uid)
        if pool.spec.health_policy is not None and verdict is not None and verdict.purge_paused:
            return f"HealthPolicy {pool.spec.health_policy} finds it unhealthy"
        return ""

    def _groups(self) -> list[Group]:
        namespace = self.key[0]
        around = purge.Surroundings(
            vms_of=lambda pool: self.world.vms_of_pool(pool.uid),
            orphans_of=lambda name: tuple(filter(is_straggler, self.world.vms_of_provider((namespace, name)))),
            paused=self._paused,
            reachable=lambda name: self._reachable(namespace, name),
            governs=lambda name: self._governs((namespace, name)),
        )
        return purge.groups(self._pools(), around)

    def _reachable(self, namespace: str, name: str) -> bool:
        view = self.world.views.get((namespace, name))
        return view is not None and view.facts().reachable

    def _governs(self, key: Key) -> bool:
        policy = governing(self.world, key)
        return policy is not None and policy.uid == self.uid

    # --- a cycle ---------------------------------------------------------------------------------

    async def _begin(self, now: datetime) -> None:
        clock = time.monotonic()
        self._began, self._generation = now, self.policy.generation
        self._covered = frozenset(pool.uid for pool in self._pools())
        self.metrics.reliability.purge_interval.labels(*self.key).set(self.policy.spec.interval.total_seconds())
        policy, spec = str(self), self.policy.spec
        log.info("[*] [purge] Starting stale queue entry purge cycle", policy=policy)
        found = purge.look(self._groups(), spec, now)
        for state in State:
            self.metrics.reliability.purge_found.labels(*self.key, state.value).set(found.states.get(state, 0))
        pause = purge.active_pause(spec, now)
        if pause is not None:
            log.warning(f"[!] [purge] Nothing is removed: {purge.paused_by(pause)}", policy=policy)
        if pause is not None or spec.dry_run:
            for number, one in enumerate(found.due, 1):
                log.info(one.would(), policy=policy, pool=one.vm.pool)
                if number % LINES_AT_ONCE == 0:
                    await asyncio.sleep(0)
            record = purge.cycle(found, (now, self.world.now()), dry_run=True)
            self._end(record, clock, "paused" if pause is not None else "dry_run")
            return
        self._cycle = Cycle(now, clock, self.policy.generation, found)
        for one in found.due:
            if one.state is State.COMPLETED and self._lacks_letter(one.vm):
                self._cycle.untold[one.vm.uid] = one
            else:
                self._give(self._cycle, one, now)
        self._wake_pools(found.due)
        await self._follow(self._cycle, now)

    def _give(self, cycle: Cycle, one: Stale, now: datetime) -> None:
        order = one.order(self.key[1], now)
        cycle.orders[one.vm.uid] = (one, order)
        self.world.purges[one.vm.uid] = order

    def _wake_pools(self, ordered: Iterable[Stale]) -> None:
        for uid in {one.vm.pool_uid for one in ordered}:
            self.world.wake_pool(uid)

    async def _follow(self, cycle: Cycle, now: datetime) -> None:
        """See what became of each order; end the cycle when nothing is waited for, or its time is over."""
        stopped = cycle.generation != self.policy.generation or purge.active_pause(self.policy.spec, now) is not None
        late = time.monotonic() - cycle.clock >= self.settings.purge_cycle_seconds
        allowed = frozenset() if stopped else self._allowed()
        for number, uid in enumerate(list(cycle.orders), 1):
            self._settle(cycle, uid, allowed)
            if number % LINES_AT_ONCE == 0:
                await asyncio.sleep(0)
        for uid, one in list(cycle.untold.items()):
            vm = self.world.vm(uid)
            if vm is None or uid not in allowed or not purge.may_go(vm, one.order(self.key[1], now)):
                del cycle.untold[uid]
                cycle.kept += 1
        if cycle.open and not late and not stopped:
            self._tell(cycle)
            return
        self._take_back(cycle.orders)
        self._cycle = None
        record = purge.cycle(
            cycle.found, (cycle.began, self.world.now()), dry_run=False, purged=cycle.purged, kept=cycle.kept
        )
        self._end(record, cycle.clock, "live")

    def _allowed(self) -> frozenset[str]:
        """Return the uids of what the policy still speaks for: its pools and what pauses them may have changed."""
        return frozenset(vm.uid for group in self._groups() if not group.paused for vm in group.vms)

    def _settle(self, cycle: Cycle, uid: str, allowed: frozenset[str]) -> None:
        one, order = cycle.orders[uid]
        vm = self.world.vm(uid)
        again = vm is not None and one.state is State.COMPLETED
        if vm is None or purge.removed(vm, order) or (again and purge.begun_anew(vm, self.world.sights.of(uid), order)):
            cycle.purged.append(one)
            self.metrics.reliability.purged.labels(*self.key, one.state.value).inc()
            log.warning(one.done(), policy=str(self), vm=one.vm.name)
        elif uid not in allowed or not purge.may_go(vm, order):
            cycle.kept += 1
        else:
            return
        self._take_back({uid: cycle.orders.pop(uid)})

    def _take_back(self, orders: dict[str, tuple[Stale, Purge]]) -> None:
        for uid, (_, order) in orders.items():
            if self.world.purges.get(uid) is order:
                del self.world.purges[uid]

    def _end(self, record: PurgeCycle, clock: float, outcome: str) -> None:
        seconds = time.monotonic() - clock
        metrics = self.metrics.reliability
        metrics.purge_cycles.labels(*self.key, outcome).inc()
        metrics.purge_seconds.labels(*self.key).observe(seconds)
        metrics.purge_last.labels(*self.key).set(self.world.now().timestamp())
        done = f"[*] [purge] Completed purge cycle in {seconds:.2f}s: {record.purged} entries purged"
        log.info(done, policy=str(self), found=record.found, deferred=record.deferred, kept=record.kept)
        if purge.is_news(self._last, record):
            self._last = record

    # --- late destructions -----------------------------------------------------------------------

    def _lacks_letter(self, vm: VM) -> bool:
        pool = self.world.pool(vm.pool_uid)
        if pool is None or pool.spec.dead_letter_queue is None:
            return False
        return not has_letter(self.world, vm, Queue.TASKS)

    def _tell(self, cycle: Cycle) -> None:
        """Write dead letters, so many at once; what is told is ordered next."""
        room = self.settings.letters_in_flight - len(self.doing.keys)
        for uid in [uid for uid in cycle.untold if uid not in self.doing.keys][: max(0, room)]:
            self._write_letter(cycle, cycle.untold[uid])

    def _write_letter(self, cycle: Cycle, one: Stale) -> None:
        async def work() -> None:
            pool, now = self.world.pool(one.vm.pool_uid), self.world.now()
            if pool is not None and pool.spec.dead_letter_queue is not None:
                text = one.late_destruction(self.key[1])
                failure = failure_of(one.vm, Step.DESTROY, purge.NOT_DESTROYED, text, now)
                refusal = await self.world.letter_box.write(pool, one.vm, failure)
                if isinstance(refusal, Refusal):
                    ref = ObjectRef.of(VMPOOLS, pool.namespace, pool.name, pool.uid)
                    self.world.events.emit(ref, "Warning", "DeadLetterRefused", f"{one.vm.name}: {refusal.message}")
            if self._cycle is cycle and cycle.untold.pop(one.vm.uid, None) is not None:
                self._give(cycle, one, now)
                self._wake_pools((one,))

        self.doing.start(one.vm.uid, TellLate(one.vm), work)

    # --- telling ---------------------------------------------------------------------------------

    def _status(self, now: datetime) -> PurgePolicyStatus:
        before, pools = self.policy.status, self._pools()
        new = purge.conditions(
            self.policy.spec,
            pools=sorted((pool.name, self._paused(pool)) for pool in pools),
            removing=len(self._cycle.found.due) if self._cycle is not None else 0,
            generation=self.policy.generation,
            now=now,
        )
        return PurgePolicyStatus(
            observed_generation=self.policy.generation,
            conditions=merge(before.conditions, new, now),
            pools=len(pools),
            last_cycle=self._last,
        )

    async def _write_status(self, now: datetime) -> None:
        """Write what differs; after a lost race the next round does."""
        policy = self.policy
        changes = writes.status_changes(policy.status, self._status(now))
        if not changes:
            return
        body = {"metadata": {"uid": policy.uid, "resourceVersion": policy.resource_version}, "status": changes}
        try:
            written = await self.world.client.patch_merge(PURGE_POLICIES, *self.key, body, "status")
        except Conflict:
            await self._learn()
        except NotFound:
            self.world.purge_policies.saw_deleted(policy.uid, policy.resource_version)
        else:
            self.world.purge_policies.saw(written)

    async def _learn(self) -> None:
        try:
            await self.world.purge_policies.quorum_get(*self.key)
        except NotFound:
            self.world.purge_policies.saw_deleted(self.uid, self.policy.resource_version)
        self.wake()


def governing(world: World, key: Key) -> PurgeObject | None:
    """Return the policy that decides about the orphans of a provider: of several, the first by name."""

    def found(name: str) -> PurgeObject | None:
        entry = world.purge_policies.by_name(key[0], name)
        return entry.fact if entry is not None else None

    return found(purge.governor(world.pools_naming(key), lambda name: found(name) is not None))
