"""What every loop shares: the mirrors, the client, the sights, the providers' views. One per process."""

import asyncio
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

from vmpool.api.conditions import Condition
from vmpool.api.pool import Failure
from vmpool.engine.creates import Creates
from vmpool.engine.facts import ProviderObject
from vmpool.engine.glances import Glances
from vmpool.engine.lane import Lane
from vmpool.engine.pace import Pace
from vmpool.engine.sights import Sights
from vmpool.kube.client import Client
from vmpool.kube.events import EventRecorder
from vmpool.kube.mirror import Mirror
from vmpool.plan.policies import HealthObject, Letter, PurgeObject, QueueObject
from vmpool.plan.snapshot import VM, PoolFacts, ProviderFacts, Purge, VMClaim
from vmpool.settings import Settings
from vmpool.telemetry.metrics import Metrics

P = TypeVar("P")
Key = tuple[str, str]
"""Namespace and name."""


class ProviderView(Protocol):
    """What pools and the sweep see of a provider's loop."""

    lane: Lane
    glances: Glances

    def facts(self) -> ProviderFacts:
        """Return what a planner needs to know now."""

    def want_listing(self) -> None:
        """Ask for a complete listing soon: machines wait to be proven gone."""

    def wake(self) -> None:
        """Ask for a round soon."""

    def tell_again(self) -> None:
        """Look again, and wake whoever may have seen something else meanwhile: no room, say."""

    async def console(self, machine_id: str, limit: timedelta) -> tuple[str, str]:
        """Return the end of a machine's console, or an empty text and why there is none. Never raises."""


class LetterBox(Protocol):
    """Takes the dead letters of all pools."""

    async def write(self, pool: PoolFacts, vm: VM, failure: Failure) -> "Refusal | bool":
        """Write the letter of a failure and say whether it is new; or why the server refuses it for good.

        Raises KubeError.
        """


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the server takes no letter for a failure."""

    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a health policy thinks of one pool. Kept in memory; the conditions stand in the pool's status."""

    conditions: tuple[Condition, ...]
    """Healthy, Degraded and Unhealthy."""
    unhealthy: bool = False
    creates_paused: str = ""
    """Why nothing may be created, in a clause; empty when it may."""
    purge_paused: str = ""
    """Why nothing may be purged, in a clause; empty when it may."""


@dataclass(frozen=True, slots=True)
class Named:
    """The objects that a pool names; None where it names none, or one that does not exist."""

    queue: QueueObject | None
    purge: PurgeObject | None
    health: HealthObject | None
    missing: tuple[str, ...]
    """What is named and does not exist, as ``Kind name``."""


@dataclass
class World:
    """The shared facts and tools."""

    client: Client
    settings: Settings
    metrics: Metrics
    events: EventRecorder
    install_id: str
    stop_grace_seconds: float
    """How long effects in flight may go on when their loop ends; 0 once there is doubt."""
    pools: Mirror[PoolFacts]
    vms: Mirror[VM]
    providers: Mirror[ProviderObject]
    claims: Mirror[VMClaim]
    queues: Mirror[QueueObject]
    letters: Mirror[Letter]
    purge_policies: Mirror[PurgeObject]
    health_policies: Mirror[HealthObject]
    probes: asyncio.Semaphore
    """Bounds TCP probes over all pools."""
    sights: Sights = field(default_factory=Sights)
    views: dict[Key, ProviderView] = field(default_factory=dict)
    purges: dict[str, Purge] = field(default_factory=dict)
    """What purge policies want removed, by PooledVM uid; the pools' own rounds do it."""
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """What health policies think, by pool uid."""
    creates: Creates = field(default_factory=Creates)
    wake_pool: Callable[[str], None] = lambda _: None
    """Wakes the loop of a pool by uid; set by the engine."""
    forgive: Callable[[str], None] = lambda _: None
    """Lets a poisoned pool create again, by its uid: somebody redrives a failure; set by the engine."""
    suspicion: Callable[[], str] = lambda: ""
    """Why the process is about to end, if it is; set by whoever watches over it."""
    waiting: Callable[[str], int] = lambda _: 0
    """How many VMs waiting claims lack in a pool, by its uid; set by the engine."""

    letter_box: LetterBox = field(init=False)
    """The one way to a new DeadLetter; set by the engine."""
    removals: Pace = field(init=False)
    """The rate at which dead letters are removed, one for all queues; set by the engine."""

    @property
    def mirrors(self) -> tuple[Mirror[Any], ...]:
        """Every mirror that the engine decides on."""
        return (
            self.pools,
            self.vms,
            self.providers,
            self.claims,
            self.queues,
            self.letters,
            self.purge_policies,
            self.health_policies,
        )

    def now(self) -> datetime:
        """Return the present time; the planners get it as an argument."""
        return datetime.now(UTC)

    def pool(self, uid: str) -> PoolFacts | None:
        """Return the facts of a pool; None when it is gone, or cannot be read (then ``unreadable`` says why)."""
        entry = self.pools.by_uid(uid)
        return entry.fact if entry is not None else None

    def vm(self, uid: str) -> VM | None:
        """Return the facts of a PooledVM, as new as we know them."""
        entry = self.vms.by_uid(uid)
        return entry.fact if entry is not None else None

    def provider(self, uid: str) -> ProviderObject | None:
        """Return the facts of a VMProvider."""
        entry = self.providers.by_uid(uid)
        return entry.fact if entry is not None else None

    def all_vms(self) -> Iterator[VM]:
        """Yield every PooledVM; do not wait for anything while iterating."""
        return (entry.fact for entry in self.vms if entry.fact is not None)

    def vms_of_pool(self, uid: str) -> tuple[VM, ...]:
        """Return the VMs that belong to this pool's uid."""
        return tuple(entry.fact for entry in self.vms.by_index(BY_POOL, uid) if entry.fact is not None)

    def vms_of_provider(self, key: Key) -> tuple[VM, ...]:
        """Return all VMs whose machines are made by this provider, whatever their pool."""
        return tuple(entry.fact for entry in self.vms.by_index(BY_PROVIDER, key) if entry.fact is not None)

    def taken(self, key: Key) -> int:
        """Return how many machines this provider has been or is being asked for."""
        return self.vms.count(BY_PROVIDER, key) + self.creates.of_provider(key)

    @contextmanager
    def ends_create(self, pool_uid: str, provider: Key) -> Iterator[None]:
        """What was begun at ``creates`` ends with the block; if that fails its room is back, and no object tells it."""
        try:
            yield
        except BaseException:
            self.creates.end(pool_uid, provider)
            if (view := self.views.get(provider)) is not None:
                view.tell_again()
            raise
        self.creates.end(pool_uid, provider)

    def pools_naming(self, key: Key) -> list[PoolFacts]:
        """Return the pools that name this provider."""
        namespace, name = key
        facts = (entry.fact for entry in self.pools if entry.fact is not None)
        return [
            pool for pool in facts if pool.namespace == namespace and any(p.name == name for p in pool.spec.providers)
        ]

    def named(self, pool: PoolFacts) -> Named:
        """Return the policies of a pool, and which of them are missing."""
        spec, missing = pool.spec, []

        def look(mirror: Mirror[P], kind: str, name: str | None) -> P | None:
            if name is None:
                return None
            entry = mirror.by_name(pool.namespace, name)
            if entry is None:
                missing.append(f"{kind} {name}")
            return entry.fact if entry is not None else None

        return Named(
            look(self.queues, "DeadLetterQueue", spec.dead_letter_queue),
            look(self.purge_policies, "PurgePolicy", spec.purge_policy),
            look(self.health_policies, "HealthPolicy", spec.health_policy),
            tuple(missing),
        )

    def pools_of_policy(self, namespace: str, names: Callable[[PoolFacts], str | None], name: str) -> list[PoolFacts]:
        """Return the pools of a namespace that name an object; ``names`` reads the field."""
        facts = (entry.fact for entry in self.pools if entry.fact is not None)
        return [pool for pool in facts if pool.namespace == namespace and names(pool) == name]

    def doubt(self) -> str:
        """Return why nothing may be begun or ended now; empty when there is no doubt.

        Either our clock differs from the API server's, or the server was restored into its past: then what we
        know of claims may be older than what people were told. Or the process is about to end.
        """
        if suspicion := self.suspicion():
            return suspicion
        skew = self.client.clock_skew
        if skew is not None and abs(skew.total_seconds()) > self.settings.max_clock_skew_seconds:
            return f"the clock differs from the API server's by {skew.total_seconds():.1f} s"
        for mirror in self.mirrors:
            if mirror.regressed:
                return f"{mirror.selection}: the API server went back in time"
        return ""


BY_POOL = "pool"
BY_PROVIDER = "provider"
BY_NAME = "name"
BY_CLAIM = "claim"
BY_QUEUE = "queue"
VM_INDEXES: Mapping[str, Callable[[VM], Hashable | None]] = {
    BY_POOL: lambda vm: vm.pool_uid,
    BY_PROVIDER: lambda vm: (vm.namespace, vm.provider),
    BY_NAME: lambda vm: vm.name,
    BY_CLAIM: lambda vm: vm.claim.id if vm.claim is not None else None,
}
"""Indexes of the PooledVM mirror."""
LETTER_INDEXES: Mapping[str, Callable[[Letter], Hashable | None]] = {
    BY_QUEUE: lambda letter: (letter.namespace, letter.queue),
    BY_POOL: lambda letter: letter.pool_uid,
}
"""Indexes of the DeadLetter mirror."""
