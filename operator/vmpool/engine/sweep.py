"""The sweep: VMs whose pool is gone are carried to their end, by the same steps and effects as all others."""

from datetime import datetime, timedelta

from vmpool.api.pool import Retry
from vmpool.engine.doing import Doing
from vmpool.engine.effects import Effects
from vmpool.engine.loop import Loop
from vmpool.engine.purging import governing
from vmpool.engine.stragglers import is_straggler
from vmpool.engine.world import Key, World
from vmpool.kube.errors import KubeError, NotFound
from vmpool.kube.kinds import VMPOOLS
from vmpool.plan.actions import CreateVM
from vmpool.plan.policies import PurgeObject
from vmpool.plan.snapshot import VM, ProviderFacts
from vmpool.plan.sweep import next_of_orphan
from vmpool.telemetry import logs

log = logs.get(__name__)

STARTED_AT_ONCE = 200
"""Most effects that the sweep has in flight: a thousand orphans are no reason to starve the pools."""
CHECKED_PER_ROUND = 50
"""Most pools that one round asks the server about: the rest waits for the next."""


class SweepLoop(Loop):
    """Looks after every PooledVM that no living pool owns. There is one, and it never ends."""

    kind = "Sweep"

    def __init__(self, world: World) -> None:
        super().__init__(world.settings, world.metrics)
        self.world = world
        self.doing = Doing(self, world.metrics, world.settings.error_pause_seconds)
        self._gone: set[str] = set()
        """uids of pools that the server itself said are gone; a uid never comes back."""
        self._effects = Effects(world, retry=Retry())

    def __str__(self) -> str:
        return "sweep"

    def concerns(self, vm: VM) -> bool:
        """Whether a VM is, as far as the mirror knows, without a pool."""
        return self.world.pools.by_uid(vm.pool_uid) is None

    async def round(self, now: datetime) -> datetime | None:
        """Prove for each such pool that it is gone, then take the next step of each of its VMs."""
        soon = now + timedelta(seconds=self.settings.sweep_seconds)
        orphans = [vm for vm in self.world.all_vms() if self.concerns(vm)]
        self.world.sights.keep(entry.uid for entry in self.world.vms)
        if not orphans or self.world.doubt():
            return soon
        await self._prove(orphans)
        busy = self.doing.keys
        room = STARTED_AT_ONCE - len(busy)
        known: dict[Key, ProviderFacts] = {}
        for vm in orphans:
            if vm.pool_uid not in self._gone or vm.uid in busy or room <= 0:
                continue
            key = (vm.namespace, vm.provider)
            view = self.world.views.get(key)
            if key not in known:
                known[key] = view.facts() if view is not None else ProviderFacts(vm.provider)
            facts = known[key]
            policy = governing(self.world, key) if is_straggler(vm) else None
            ttl = self._kept_for(policy) if is_straggler(vm) else None
            sight, order = self.world.sights.of(vm.uid), self.world.purges.get(vm.uid)
            step = next_of_orphan(vm, sight, facts, now, straggler_ttl=ttl, governed=policy is not None, order=order)
            if step.wants_listing and view is not None:
                view.want_listing()
            if step.wake_at is not None:
                soon = min(soon, step.wake_at)
            action = step.action
            if action is not None:
                assert not isinstance(action, CreateVM)
                room -= 1
                self.doing.start(vm.uid, action, lambda action=action: self._effects.run(action))  # type: ignore[misc]
        return soon

    def _kept_for(self, policy: PurgeObject | None) -> timedelta:
        """Return how long a straggler stays in quarantine."""
        if policy is None:
            return timedelta(seconds=self.settings.straggler_ttl_seconds)
        kept: timedelta = policy.spec.max_orphaned_age
        return kept

    async def closed(self) -> None:
        """End what is in flight."""
        await self.doing.stop(self.world.stop_grace_seconds)

    async def _prove(self, orphans: list[VM]) -> None:
        """Absence needs the server's own word: a 404 of the pool's name, or another uid under it."""
        self._gone &= {vm.pool_uid for vm in orphans}
        unproven = {vm.pool_uid: vm for vm in orphans if vm.pool_uid not in self._gone}
        for vm in list(unproven.values())[:CHECKED_PER_ROUND]:
            try:
                raw = await self.world.client.get(VMPOOLS, vm.namespace, vm.pool)
            except NotFound:
                proven = True
            except KubeError as error:
                log.info("pool_not_proven_gone", pool=f"{vm.namespace}/{vm.pool}", error=str(error))
                continue
            else:
                proven = raw["metadata"]["uid"] != vm.pool_uid
            if proven:
                self._gone.add(vm.pool_uid)
                log.warning("pool_is_gone", pool=f"{vm.namespace}/{vm.pool}", uid=vm.pool_uid)
