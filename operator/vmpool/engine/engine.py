"""The engine: mirrors that follow the server, a loop for every object, and an end when there is doubt."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from vmpool.engine.claims import ClaimsLoop
from vmpool.engine.deadletterqueues import QueueLoop
from vmpool.engine.facts import ProviderObject
from vmpool.engine.healthchecks import HealthLoop
from vmpool.engine.letters import Letters
from vmpool.engine.loop import Loop
from vmpool.engine.pace import Pace
from vmpool.engine.pool import PoolLoop
from vmpool.engine.probing import ProbeLoop
from vmpool.engine.provider import ProviderLoop
from vmpool.engine.purging import PurgeLoop
from vmpool.engine.sweep import SweepLoop
from vmpool.engine.world import World
from vmpool.kube.mirror import Change, Entry
from vmpool.plan.policies import HealthObject, Letter, PolicyObject, PurgeObject, QueueObject
from vmpool.plan.snapshot import VM, PoolFacts, VMClaim
from vmpool.telemetry import logs

log = logs.get(__name__)

S = TypeVar("S")
T = TypeVar("T")

SYNC_TIMEOUT_SECONDS = 60.0
"""How long the first lists may take before the process gives up."""
MEASURE_SECONDS = 5.0
"""Between two readings of the watches' ages."""


class Engine:
    """Runs until something fails for good; then it ends, and whoever runs the process starts it again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._loops: dict[str, tuple[Loop, asyncio.Task[None]]] = {}
        self._sweep = SweepLoop(world)
        self._claims = ClaimsLoop(world)
        self.ready = asyncio.Event()
        self._broken: asyncio.Queue[BaseException] = asyncio.Queue()
        world.wake_pool = self._wake_uid
        world.waiting = self._claims.waiting
        world.forgive = self._forgive
        world.pools.on_change(self._pool_changed)
        world.providers.on_change(self._provider_changed)
        world.vms.on_change(self._vm_changed)
        world.claims.on_change(self._claim_changed)
        world.letter_box = Letters(world)
        world.removals = Pace(world.settings.letters_per_second)
        world.letters.on_change(self._letter_changed)
        world.queues.on_change(self._queue_changed)
        world.purge_policies.on_change(self._purge_policy_changed)
        world.health_policies.on_change(self._health_policy_changed)

    async def run(self) -> None:
        """Follow and reconcile until cancelled. Raises what ended a mirror, the events or a loop: there is doubt."""
        async with asyncio.TaskGroup() as group:
            for work in self._background():
                group.create_task(work)
            await self._synced()
            self._claims.prime()
            for provider in [entry.fact for entry in self.world.providers if entry.fact is not None]:
                self._start_provider(provider)
            for pool in [entry.fact for entry in self.world.pools if entry.fact is not None]:
                self._start_pool(pool)
            self._start_policies()
            self._start("sweep", self._sweep)
            self._start("claims", self._claims)
            self.ready.set()
            log.info("engine_ready", pools=len(self.world.pools), vms=len(self.world.vms))
            group.create_task(self._measure())
            raise await self._broken.get()

    def _background(self) -> list[Coroutine[Any, Any, None]]:
        return [*(mirror.run() for mirror in self.world.mirrors), self.world.events.run()]

    async def _synced(self) -> None:
        async with asyncio.timeout(SYNC_TIMEOUT_SECONDS):
            for mirror in self.world.mirrors:
                await mirror.synced.wait()

    async def stop(self) -> None:
        """End every loop; effects in flight get the stop grace, and nothing new begins."""
        self.ready.clear()
        for view in self.world.views.values():
            view.lane.shut()
        # Providers last: effects in flight need their sessions.
        for of_providers in (False, True):
            tasks = [task for loop, task in self._loops.values() if isinstance(loop, ProviderLoop) is of_providers]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self, uid: str) -> None:
        """Somebody saw a change of this object: its loop should look."""
        self._wake_uid(uid)

    def healthy(self) -> str:
        """Return why this process should not be trusted now; empty when all is well."""
        if not self.ready.is_set():
            return "the first lists are not complete"
        for mirror in self.world.mirrors:
            if mirror.age() > mirror.settings.silence.total_seconds():
                return f"{mirror.selection} was last heard of {mirror.age():.0f} s ago"
        return self.world.doubt()

    @property
    def loops(self) -> tuple[Loop, ...]:
        """Every loop that runs now."""
        return tuple(loop for loop, _ in list(self._loops.values()))

    # --- loops -----------------------------------------------------------------------------------

    def _start(self, uid: str, loop: Loop) -> None:
        task = asyncio.create_task(loop.run(), name=f"{loop.kind}/{loop}")
        self._loops[uid] = (loop, task)
        task.add_done_callback(lambda done: self._ended(uid, done))

    def _ended(self, uid: str, task: asyncio.Task[None]) -> None:
        if uid in self._loops and self._loops[uid][1] is task:
            del self._loops[uid]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._broken.put_nowait(error)

    def _start_pool(self, pool: PoolFacts) -> None:
        # Each by itself: one may have ended while the other did not notice that the object was gone for a moment.
        if not self._runs(pool.uid):
            self._start(pool.uid, PoolLoop(self.world, pool))
        if not self._runs(_probes_of(pool.uid)):
            self._start(_probes_of(pool.uid), ProbeLoop(self.world, pool))

    def _runs(self, uid: str) -> bool:
        return uid in self._loops and not self._loops[uid][1].done()

    def _start_provider(self, obj: ProviderObject) -> None:
        if obj.uid not in self._loops:
            loop = ProviderLoop(self.world, obj)
            self.world.views[loop.key] = loop
            self._start(obj.uid, loop)

    def _wake_uid(self, uid: str) -> None:
        # What belongs to no living pool is the sweep's.
        (self._loops[uid][0] if uid in self._loops else self._sweep).wake()

    def _forgive(self, pool_uid: str) -> None:
        loop = self._loops[pool_uid][0] if pool_uid in self._loops else None
        if isinstance(loop, PoolLoop):
            loop.failures.forgive()
            loop.wake()

    # --- changes ---------------------------------------------------------------------------------

    def _pool_changed(self, change: Change[PoolFacts]) -> None:
        fact = change.entry.fact
        if not self.ready.is_set():
            return
        if change.new is not None and fact is not None:
            self._start_pool(fact)
        self._wake_uid(change.entry.uid)
        if change.old is None or change.new is None or _generation(change.old) != _generation(change.new):
            self._wake_probes(change.entry.uid)
            self._wake_named()
            self._wake_judges(change)
        if len(self.world.claims):
            self._claims.wake()
        if change.new is None:
            self._sweep.wake()
        if fact is not None:
            before = change.old.fact if change.old is not None else None
            named = {share.name for share in fact.spec.providers}
            was_named = {share.name for share in before.spec.providers} if before is not None else set()
            # A provider is held from before the first create: one that is newly named has to hurry.
            for name in named | was_named if change.new is None else named ^ was_named:
                self._wake_provider(fact.namespace, name)

    def _claim_changed(self, _: Change[VMClaim]) -> None:
        self._claims.wake()

    def _provider_changed(self, change: Change[ProviderObject]) -> None:
        fact = change.entry.fact
        if not self.ready.is_set() or fact is None:
            return
        if change.new is not None:
            self._start_provider(fact)
        self._wake_uid(fact.uid)
        for pool in self.world.pools_naming((fact.namespace, fact.name)):
            self._wake_uid(pool.uid)

    def _start_policies(self) -> None:
        for queue in [entry.fact for entry in self.world.queues if entry.fact is not None]:
            self._start(queue.uid, QueueLoop(self.world, queue))
        for purge in [entry.fact for entry in self.world.purge_policies if entry.fact is not None]:
            self._start(purge.uid, PurgeLoop(self.world, purge))
        for health in [entry.fact for entry in self.world.health_policies if entry.fact is not None]:
            self._start(health.uid, HealthLoop(self.world, health))

    def _queue_changed(self, change: Change[QueueObject]) -> None:
        self._policy_changed(change, QueueLoop, lambda pool: pool.spec.dead_letter_queue)

    def _purge_policy_changed(self, change: Change[PurgeObject]) -> None:
        self._policy_changed(change, PurgeLoop, lambda pool: pool.spec.purge_policy)

    def _health_policy_changed(self, change: Change[HealthObject]) -> None:
        self._policy_changed(change, HealthLoop, lambda pool: pool.spec.health_policy)

    def _policy_changed(
        self,
        change: Change[PolicyObject[S, T]],
        make: Callable[[World, PolicyObject[S, T]], Loop],
        names: Callable[[PoolFacts], str | None],
    ) -> None:
        """Start or wake the object's loop, and look again at the pools that name it when it came, went or changed."""
        if not self.ready.is_set():
            return
        old, new = change.old, change.new
        if new is not None and new.fact is not None and not self._runs(new.uid):
            self._start(new.uid, make(self.world, new.fact))
        if change.entry.uid in self._loops:
            self._wake_uid(change.entry.uid)
        if old is None or new is None or _generation(old) != _generation(new):
            namespace, name = change.entry.key
            for pool in self.world.pools_of_policy(namespace, names, name):
                self._wake_uid(pool.uid)

    def _letter_changed(self, change: Change[Letter]) -> None:
        letter = change.entry.fact
        if not self.ready.is_set() or letter is None:
            return
        entry = self.world.queues.by_name(letter.namespace, letter.queue)
        if entry is not None and entry.uid in self._loops:
            self._wake_uid(entry.uid)

    def _vm_changed(self, change: Change[VM]) -> None:
        vm = change.entry.fact
        if not self.ready.is_set() or vm is None:
            return
        self._wake_uid(vm.pool_uid)
        if change.new is None:
            self.world.sights.drop(vm.uid)
        if change.kind != "modified":
            self._wake_provider(vm.namespace, vm.provider)
        if self._sweep.concerns(vm):
            self._sweep.wake()
        if self._claims.concerns(change):
            self._claims.wake()

    def _wake_provider(self, namespace: str, name: str) -> None:
        view = self.world.views.get((namespace, name))
        if view is not None:
            view.wake()

    def _wake_named(self) -> None:
        """Wake the pools that chose a name for REST: another one may have it now, or have it no more."""
        for entry in self.world.pools:
            if entry.fact is not None and entry.fact.spec.rest_name is not None:
                self._wake_uid(entry.uid)

    def _wake_judges(self, change: Change[PoolFacts]) -> None:
        """Wake the health policies that a pool names or has named: it is judged at once, and by no one else."""
        for fact in [entry.fact for entry in (change.old, change.new) if entry is not None]:
            if fact is not None and fact.spec.health_policy is not None:
                policy = self.world.health_policies.by_name(fact.namespace, fact.spec.health_policy)
                if policy is not None and policy.uid in self._loops:
                    self._wake_uid(policy.uid)

    def _wake_probes(self, pool_uid: str) -> None:
        probes = self._loops.get(_probes_of(pool_uid))
        if probes is not None:
            probes[0].wake()

    async def _measure(self) -> None:
        while True:
            for mirror in self.world.mirrors:
                kind = mirror.selection.resource.kind
                self.world.metrics.watch_age.labels(kind).set(mirror.age())
                self.world.metrics.relists.labels(kind).set(mirror.stats.lists)
                self.world.metrics.miscounts.labels(kind).set(mirror.stats.miscounts)
            skew = self.world.client.clock_skew
            if skew is not None:
                self.world.metrics.clock_skew.set(-skew.total_seconds())
            await asyncio.sleep(MEASURE_SECONDS)


def _probes_of(pool_uid: str) -> str:
    """Name the loop that probes a pool's VMs."""
    return f"{pool_uid}/probes"


def _generation(entry: Entry[PoolFacts] | Entry[PolicyObject[S, T]]) -> int | None:
    return entry.fact.generation if entry.fact is not None else None
