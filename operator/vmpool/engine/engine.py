"""The engine: mirrors that follow the server, a loop for every object, and an end when there is doubt."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from vmpool.engine.claims import ClaimsLoop
from vmpool.engine.facts import ProviderObject
from vmpool.engine.loop import Loop
from vmpool.engine.pool import PoolLoop
from vmpool.engine.probing import ProbeLoop
from vmpool.engine.provider import ProviderLoop
from vmpool.engine.sweep import SweepLoop
from vmpool.engine.world import World
from vmpool.kube.mirror import Change, Entry
from vmpool.plan.snapshot import VM, PoolFacts, VMClaim
from vmpool.telemetry import logs

log = logs.get(__name__)

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
        world.pools.on_change(self._pool_changed)
        world.providers.on_change(self._provider_changed)
        world.vms.on_change(self._vm_changed)
        world.claims.on_change(self._claim_changed)

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
            skew = self.world.client.clock_skew
            if skew is not None:
                self.world.metrics.clock_skew.set(-skew.total_seconds())
            await asyncio.sleep(MEASURE_SECONDS)


def _probes_of(pool_uid: str) -> str:
    """Name the loop that probes a pool's VMs."""
    return f"{pool_uid}/probes"


def _generation(entry: Entry[PoolFacts]) -> int | None:
    return entry.fact.generation if entry.fact is not None else None
