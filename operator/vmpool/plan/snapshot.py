"""The facts of one round, frozen: what the planners see, and nothing else.

Plain dataclasses with slots rather than pydantic: thousands of them are made from watch events, and they are read
far more often than checked (the API server has checked them already).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from vmpool.api.claim import VMClaimSpec, VMClaimStatus
from vmpool.api.conditions import Condition
from vmpool.api.pool import Creation, Poisoned, VMPoolSpec, VMPoolStatus
from vmpool.plan.lifecycle import Phase

BEGINNING = datetime.fromtimestamp(0, UTC)
"""The age of an object that does not tell it."""


class Step(StrEnum):
    """The steps of a VM's ledger."""

    CREATE = "create"
    ADOPT = "adopt"
    BOOT = "boot"
    PROBE = "probe"
    DESTROY = "destroy"


class Reason(StrEnum):
    """Why a VM is Quarantined or Completed. Any other word there is the class of a provider error."""

    SURPLUS = "Surplus"
    TEMPLATE_CHANGED = "TemplateChanged"
    READY_TTL = "ReadyTTL"
    POOL_DELETED = "PoolDeleted"
    POOL_GONE = "PoolGone"
    PROVIDER_DELETED = "ProviderDeleted"
    DELETED = "Deleted"
    CLAIM_ENDED = "ClaimEnded"
    QUARANTINE_ENDED = "QuarantineEnded"
    STRAGGLER = "Straggler"
    POOL_RESET = "PoolReset"
    PURGED = "Purged"
    PURGED_PENDING = "PurgedPending"
    MACHINE_GONE = "MachineGone"
    MACHINE_FAILED = "MachineFailed"
    PENDING_TIMEOUT = "PendingTimeout"
    NOT_ANSWERING = "NotAnswering"


PLANNED = frozenset(
    {
        Reason.SURPLUS,
        Reason.TEMPLATE_CHANGED,
        Reason.READY_TTL,
        Reason.POOL_DELETED,
        Reason.POOL_GONE,
        Reason.PROVIDER_DELETED,
        Reason.DELETED,
        Reason.CLAIM_ENDED,
        Reason.QUARANTINE_ENDED,
        Reason.STRAGGLER,
        Reason.POOL_RESET,
        Reason.PURGED,
    }
)
"""Reasons that are nobody's failure."""

REPLACED = frozenset({Reason.TEMPLATE_CHANGED, Reason.READY_TTL, Reason.POOL_RESET, Reason.PURGED})


@dataclass(frozen=True, slots=True)
class StepFacts:
    """One entry of the step ledger."""

    name: str
    started_at: datetime | None = None
    finished_at: datetime | None = None
    retries: int = 0
    next_at: datetime | None = None
    reason: str = ""
    message: str = ""
    failed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ClaimFacts:
    """What decides about a claim."""

    id: str
    owner: str
    expires_at: datetime
    released_at: datetime | None = None
    end_reason: str = ""
    bound_at: datetime | None = None
    token_id: str = ""
    """Public id of the REST token that was used; empty without one."""
    ref: "ClaimRefFacts | None" = None
    """The VMClaim behind it; None for a checkout over REST."""
    slot: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClaimRefFacts:
    """The VMClaim that a claim was made for."""

    namespace: str
    name: str
    uid: str
    kind_uid: str
    """uid of the CustomResourceDefinition of VMClaim when the claim was bound."""


@dataclass(frozen=True, slots=True)
class VM:
    """One PooledVM as the mirror shows it."""

    uid: str
    namespace: str
    name: str
    resource_version: str
    created_at: datetime
    pool: str
    pool_uid: str
    provider: str
    phase: str = Phase.PENDING
    """A word of ``Phase``, or one that a newer release wrote."""
    generation: int = 0
    deleting: bool = False
    held: bool = True
    """Whether our finalizer is on it."""
    digest: str = ""
    host_name: str = ""
    request_id: str = ""
    retry_count: int = 0
    adopt: str = ""
    claim: ClaimFacts | None = None
    phase_since: datetime | None = None
    expires_at: datetime | None = None
    machine_id: str = ""
    addresses: tuple[str, ...] = ()
    reason: str = ""
    message: str = ""
    steps: tuple[StepFacts, ...] = ()
    claim_missing: bool = False
    """Whether its owner was told that the VMClaim behind it is not there."""
    attempt: int = 1
    """Counts up when a quarantined VM is redriven."""
    purge_exempt: bool = False
    """Whether somebody has asked that no purge policy removes it."""

    @property
    def since(self) -> datetime:
        """When it came into its present phase."""
        return self.phase_since or self.created_at

    @property
    def claimed(self) -> bool:
        """Whether somebody has it: a claim counts from its write on, whatever the phase still says."""
        return self.claim is not None and self.claim.released_at is None

    @property
    def failed(self) -> bool:
        """Whether it was given up because of a failure and is not gone yet."""
        return self.phase == Phase.COMPLETED and self.reason not in PLANNED

    def step(self, name: str) -> StepFacts:
        """Return the ledger's entry, or an empty one."""
        return next((step for step in self.steps if step.name == name), StepFacts(name))

    @property
    def making(self) -> Step:
        """The step by which it gets its machine."""
        return Step.ADOPT if self.adopt else Step.CREATE


@dataclass(frozen=True, slots=True)
class Sight:
    """What was last seen of one VM's machine. Kept in memory only: after a restart we look again."""

    looked_at: datetime | None = None
    """When a get, an ensure or a listing last told something."""
    state: str = ""
    """State of the machine at that time; empty when it was never seen."""
    addresses: tuple[str, ...] = ()
    message: str = ""
    misses: int = 0
    """How often in a row its id (or, without one, its token) was not found."""
    missed_at: datetime | None = None
    deletion_asked_at: datetime | None = None
    """When the provider first began to delete it."""
    unlisted: bool = False
    """The last complete listing showed no machine with its id or, where none is known, with its token."""
    namesake: bool = False
    """That listing showed another machine with its token: a second one, or the same under a new id."""
    probed_at: datetime | None = None
    probe_ok: bool = False
    """Whether the last probe was answered."""
    probe_failures: int = 0
    """How many probes in a row were not."""
    failure: "Failed | None" = None
    """The verdict on a step that will not be tried again; becomes a write of its own."""
    claim_tag: str = ""
    """The claim that the machine's own tag names; empty without one."""
    tag_at: datetime | None = None
    """Not before this time is the tag tried again."""
    tag_tries: int = 0
    """How often it was tried."""
    machine_id: str = ""
    """What this process has had made for it, whether or not that was written."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a VM cannot go on."""

    step: str
    reason: str
    message: str


NOTHING_SEEN = Sight()


@dataclass(frozen=True, slots=True)
class Outlook:
    """What this process has learned about when to look. Kept in memory only."""

    expected: Mapping[tuple[str, Step], timedelta] = field(default_factory=dict)
    """How long a step takes at a provider lately, by the provider's name and the step."""
    grid: timedelta = timedelta()
    """On which looks at machines that boot fall, so that many of them are one listing."""


NO_OUTLOOK = Outlook()


@dataclass(frozen=True, slots=True)
class ProviderFacts:
    """What a pool needs to know of a provider."""

    name: str
    usable: bool = False
    """Creates may be asked for."""
    reachable: bool = False
    """Any calls may be made, and what they say may be believed."""
    reason: str = "ProviderNotFound"
    message: str = ""
    stalled: bool = False
    """It will not get better without a human."""
    settling: bool = False
    """Nobody has looked at it yet: whether it can be used is not known."""
    deleting: bool = False
    """Its object is being deleted: what it has is drained."""
    room: int = 0
    """How many machines more it may have."""
    listed_at: datetime | None = None
    """When the last complete listing began."""


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """One VMPool as the mirror shows it."""

    uid: str
    namespace: str
    name: str
    generation: int
    spec: VMPoolSpec
    status: VMPoolStatus
    resource_version: str = ""
    deleting: bool = False
    held: bool = False
    """Whether our finalizer is on it."""
    created_at: datetime = BEGINNING


@dataclass(frozen=True, slots=True)
class VMClaim:
    """One VMClaim as the mirror shows it."""

    uid: str
    namespace: str
    name: str
    resource_version: str
    generation: int
    created_at: datetime
    deleting: bool
    spec: VMClaimSpec
    status: VMClaimStatus
    ondemand: str = ""
    """What the gateway wrote on it about the on-demand request behind it; empty without one."""

    @property
    def phase(self) -> str:
        """A word of ``ClaimPhase``, or one that a newer release wrote."""
        return self.status.phase


@dataclass(frozen=True, slots=True)
class Purge:
    """A purge policy's wish to remove one VM."""

    phase: str
    """The phase that it was found in: in another one it is not too old any more."""
    message: str
    """Its age and the limit, in one sentence."""
    failed: bool
    """Whether being too old is a failure, to be kept as a dead letter."""
    at: datetime = BEGINNING
    """When it was ordered."""
    retries: int = 0
    """How often its destruction had failed by then."""


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """Everything that one round of a pool decides on."""

    pool: PoolFacts
    digest: str
    """Digest of the present template."""
    vms: tuple[VM, ...]
    providers: Mapping[str, ProviderFacts]
    sights: Mapping[str, Sight] = field(default_factory=dict)
    """By PooledVM uid."""
    busy: frozenset[str] = frozenset()
    """uids of VMs with an effect in flight: nothing else is begun on them."""
    creating: tuple[str, ...] = ()
    """Providers of the creates in flight whose objects the mirror does not show yet."""
    creation: Creation | None = None
    owed: tuple[tuple[str, int], ...] = ()
    """Request id and retry count of failed VMs that have no successor yet, oldest first."""
    outlook: Outlook = NO_OUTLOOK
    waiting: int = 0
    """VMs that waiting claims ask for on top."""
    poison: Poisoned | None = None
    """The failure that comes again and again; None while there is none, or nothing keeps the pool's failures."""
    poison_limit: int = 0
    """How often it may come before creates stop; 0 for ever."""
    creates_paused: str = ""
    """Why a policy lets nothing be created, in a clause; empty when none does."""
    purges: Mapping[str, "Purge"] = field(default_factory=dict)
    """What a purge policy wants removed, by PooledVM uid."""
    missing: tuple[str, ...] = ()
    """What the pool names and what does not exist, as ``Kind name``."""
    health: tuple[Condition, ...] = ()
    """The conditions of the pool's health policy; empty without one."""
    name_taken: str = ""
    """The older pool that has this one's ``restName`` already, as ``namespace/name``; empty when there is none."""

    def sight(self, vm: VM) -> Sight:
        """What was last seen of a VM's machine."""
        return self.sights.get(vm.uid, NOTHING_SEEN)
