"""The queue of VMClaims as facts: what one round sees of it, and what a plan for it can ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from vmpool.api import keys
from vmpool.api.claim import ClaimedVM, VMClaimStatus
from vmpool.api.vm import MAX_OWNER
from vmpool.plan.demand import by_alias
from vmpool.plan.snapshot import VM, PoolFacts, VMClaim

EVERY_USER = "system:authenticated"
"""The group that Kubernetes puts every user in who is somebody."""


@dataclass(frozen=True, slots=True)
class Why:
    """A reason in one CamelCase word, and the same in one sentence with what to do about it."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Trust:
    """Whether ``spec.requester`` can be believed."""

    since: datetime | None = None
    """Claims made after this time were checked by the admission policy; None where there is no policy."""

    def believes(self, claim: VMClaim) -> bool:
        """Whether the requester of this claim is who made it."""
        return bool(claim.spec.requester) and self.since is not None and claim.created_at > self.since


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, as far as it can be believed."""

    user: str = ""
    """Empty: nobody in particular; whoever may make claims in that namespace."""
    groups: tuple[str, ...] = ()
    rest: bool = False
    """A user of the REST API, for whom the gateway made the claim: no namespace is his."""

    def owner(self, claim: VMClaim) -> str:
        """Return the owner of the claim's VMs."""
        name = f"{keys.CLAIM_OWNER_PREFIX}{claim.namespace}/{claim.name}"
        # The longest names do not fit behind their namespace; the uid says as much.
        return self.user or (name if len(name) <= MAX_OWNER else f"{keys.CLAIM_OWNER_PREFIX}{claim.uid}")


def asker(claim: VMClaim, trust: Trust, home: str) -> Asker:
    """Return who asks. ``home`` is the operator's own namespace, in which the gateway makes the claims of its users."""
    if not trust.believes(claim):
        return Asker()
    user, groups = claim.spec.requester, claim.spec.requester_groups
    if claim.namespace == home and user.startswith(keys.REST_USER_PREFIX):
        return Asker(user, groups or (keys.REST_GROUP,), rest=True)
    return Asker(user, groups or (EVERY_USER,))


@dataclass(slots=True)
class Note:
    """What this process remembers of one claim, besides what is written on it. A planner only reads it."""

    verdicts: dict[str, bool] = field(default_factory=dict)
    """Whether who asks may claim, by the pool's uid, as the API server last said."""
    checked: bool = False
    """The server itself was asked for the pools and the rights, after the mirror said that nothing can come of it."""
    trouble: Why | None = None
    """Why the last try to ask or to bind came to nothing."""
    retry_at: datetime | None = None
    """When that is tried again."""
    written_at: datetime | None = None
    """When its status was last written."""
    order: int = 0
    """Which of two claims of the same second comes first: the resourceVersion under which it was first seen."""


NO_NOTE = Note()


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """Everything that one round of the queue decides on."""

    claims: Sequence[VMClaim]
    """All that are Pending; of the others those that there may be something to do for."""
    pools: Mapping[tuple[str, str], PoolFacts]
    """By namespace and name."""
    ready: Mapping[str, int]
    """How many VMs can be taken now, by the pool's uid."""
    held: Mapping[str, Sequence[VM]]
    """VMs that carry the claim's uid, by that; those whose claims have ended included."""
    trust: Trust | None = None
    """None: nobody could say yet."""
    served: Mapping[str, datetime] = field(default_factory=dict)
    """When a namespace last got a VM."""
    notes: Mapping[str, Note] = field(default_factory=dict)
    """By the claim's uid."""
    begun: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Binds in flight: the pool's uid by slot, by the claim's uid."""
    busy: frozenset[str] = frozenset()
    """uids of claims with an effect in flight: nothing else is begun on them."""
    room: int = 32
    """How many effects more may be begun now."""
    pause: timedelta = timedelta(seconds=1)
    """Least time between two writes that tell only where a claim stands."""
    home: str = "default"
    """The operator's own namespace."""

    def note(self, claim: VMClaim) -> Note:
        """Return what is remembered of a claim."""
        return self.notes.get(claim.uid, NO_NOTE)

    def aliases(self) -> Mapping[tuple[str, str], tuple[PoolFacts, ...]]:
        """Return the pools by namespace and alias."""
        return by_alias(self.pools.values())


@dataclass(frozen=True, slots=True)
class Bind:
    """Hand out a VM of the named pool for each of these slots."""

    claim: VMClaim
    places: tuple[tuple[int, PoolFacts], ...]
    asker: Asker


@dataclass(frozen=True, slots=True)
class Review:
    """Ask the API server whether who asks may claim from these pools."""

    claim: VMClaim
    asker: Asker
    pools: tuple[PoolFacts, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """Read the pools and the rights from the server itself: by the mirror nothing can come of the claim."""

    claim: VMClaim
    asker: Asker


@dataclass(frozen=True, slots=True)
class EndHeld:
    """End the claims on VMs that carry this claim's uid, each on the very version that was decided on.

    Of a claim that is being deleted only those whose kind is still served: a deleted kind takes every claim with it.
    """

    claim: VMClaim
    vms: tuple[VM, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Extend:
    """Move the end of the claims on its VMs, forth or back."""

    claim: VMClaim
    ends: tuple[tuple[VM, datetime], ...]


@dataclass(frozen=True, slots=True)
class SetStatus:
    """Write the claim's status, on the very version of it that was decided on."""

    claim: VMClaim
    status: VMClaimStatus


@dataclass(frozen=True, slots=True)
class ProveGone:
    """Ask the server for VMs that the claim's status names and nobody sees; write ``Gone`` for those it has not."""

    claim: VMClaim
    unseen: tuple[ClaimedVM, ...]
    held: tuple[VM, ...]
    """What the status was decided on."""
    refused: Why | None
    """Why a changed lifetime was not acted upon."""


@dataclass(frozen=True, slots=True)
class SayFound:
    """Take back what VMs say of a claim that was missing: it is there."""

    claim: VMClaim
    vms: tuple[VM, ...]


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete the claim, by its uid and the very version that was decided on."""

    claim: VMClaim


ClaimAction = Bind | Review | Check | EndHeld | Extend | SetStatus | ProveGone | SayFound | Remove
"""Everything that a plan for the queue can ask for; one at a time for each claim."""
