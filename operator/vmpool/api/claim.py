"""VMClaim: a wish for VMs, and what became of it."""

from typing import Annotated

from pydantic import Field

from vmpool.api.conditions import Conditions
from vmpool.api.meta import (
    Generation,
    ObjectName,
    OwnerName,
    Rule,
    Shape,
    Text,
    Time,
    Uid,
    Word,
    duration,
)
from vmpool.api.pool import RestName
from vmpool.api.vm import MAX_GROUPS, MAX_TAGS, TagKey

MAX_REQUESTS = 10
MAX_CLAIMED = 100
"""Most VMs of one claim; slots are counted from 0 to one less."""
EXACT_POSITIONS = 10
"""Up to here a position is told exactly; behind it stands a bucket, so that a long queue is not rewritten each time."""


class ClaimRequest(Shape):
    """Some VMs of one pool, or of any pool that has an alias. Exactly one of pool and alias is given."""

    pool: OwnerName | None = None
    """Name of a VMPool."""
    alias: RestName | None = None
    """An alias: the VMs come from any pool of the namespace that has it."""
    namespace: ObjectName | None = None
    """Namespace of the pool. Absent means the claim's own; another one must allow it in claims.allowedNamespaces."""
    count: Annotated[int, Field(ge=1, le=MAX_CLAIMED)] = 1
    """How many VMs, 1 to 100."""


class VMClaimSpec(Shape):
    """The wish. requests, requester and requesterGroups never change; lifetime, priority and deadline may."""

    requests: Annotated[
        tuple[ClaimRequest, ...],
        Field(min_length=1, max_length=MAX_REQUESTS, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ]
    """What is wanted: one to ten requests, at most 100 VMs together. All of them are given, or none."""
    requester: Annotated[str, Field(max_length=253)] = ""
    """Who asks. Filled in and checked by the admission policies where those are installed; else it is not trusted."""
    requester_groups: Annotated[
        tuple[Annotated[str, Field(max_length=253)], ...],
        Field(max_length=MAX_GROUPS, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """The groups of who asks, at most 64; filled in and checked like requester."""
    lifetime: duration("1m", "8760h") | None = None  # type: ignore[valid-type]
    """How long the VMs may be kept, counted from when they were handed out, for example 2h; may be changed later.

    Absent means the pool's claims.lifetime; the pool's claims.maxLifetime is the most.
    """
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Higher ones are served first; equal ones in turn over namespaces, the oldest first."""
    deadline: duration("1s", "720h") | None = None  # type: ignore[valid-type]
    """How long to wait for VMs before the claim fails, for example 10m. Absent means for ever."""
    ttl_after_finished: duration("0s", "720h") = Field(default="1h", alias="ttlAfterFinished")  # type: ignore[valid-type]
    """How long the claim is kept after it has ended, for example 1h."""
    tags: Annotated[dict[TagKey, Annotated[str, Field(max_length=255)]], Field(max_length=MAX_TAGS)] | None = None
    """Tags that each VM gets, at most 32; keys up to 63 and values up to 255 characters."""


class ClaimedVM(Shape):
    """One VM of a claim. The first VM written for a slot stays."""

    slot: Annotated[int, Field(ge=0, lt=MAX_CLAIMED)]
    """Which of the VMs asked for this is, counted from 0 in the order of the requests."""
    uid: Uid
    """uid of the PooledVM."""
    name: ObjectName
    """Name of the PooledVM: the short host name."""
    namespace: ObjectName
    """Namespace of the PooledVM."""
    pool: OwnerName
    """Name of its VMPool."""
    host_name: Annotated[str, Field(max_length=253)]
    """Host name to connect to, with the pool's domain where it has one."""
    address: Annotated[str, Field(max_length=64)] = ""
    """Its first IP address."""
    end_reason: Word | None = None
    """Why it is not the claim's any more: Released, Expired, MachineGone, Forced, Gone; absent while it is."""


class VMClaimStatus(Shape):
    """What became of the wish. Written by the operator alone."""

    phase: Word = "Pending"
    """Pending, Bound, Released, Expired or Failed."""
    observed_generation: Generation = -1
    """The metadata.generation last acted upon."""
    conditions: Conditions = ()
    """Ready, Reconciling and Stalled."""
    reason: Word | None = None
    """Why it is in this phase, in one CamelCase word."""
    message: Text | None = None
    """The same in one sentence, with what to do about it."""
    position: Annotated[str, Field(max_length=16)] = ""
    """Place in the queue while it waits: 1 to 10, then 11-100, 101-1000, >1000."""
    bound_at: Time | None = None
    """When all its VMs had been handed out."""
    expires_at: Time | None = None
    """When the first of its VMs is taken back unless the claim is extended."""
    lifetime: duration("1m", "8760h") | None = None  # type: ignore[valid-type]
    """The spec.lifetime that was last acted upon; absent where that was none."""
    finished_at: Time | None = None
    """When it became Released, Expired or Failed."""
    vms: Annotated[
        tuple[ClaimedVM, ...],
        Field(
            max_length=MAX_CLAIMED,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["slot"]},
        ),
    ] = ()
    """The VMs, by slot."""


CLAIM_SPEC_RULES = (
    Rule(
        rule="self.requests.all(r, has(r.pool) != has(r.alias))",
        message="each request must name either a pool or an alias",
        field_path=".requests",
    ),
    Rule(
        rule="self.requests.map(r, r.count).sum() <= 100",
        message="a claim must ask for at most 100 VMs together",
        field_path=".requests",
    ),
)
"""Rules on VMClaim's spec node."""
