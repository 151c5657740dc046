"""PooledVM: one machine of a pool, from the intent to make it until the proof that it is gone."""

from typing import Annotated

from pydantic import Field

from vmpool.api.conditions import Conditions
from vmpool.api.meta import Count, Generation, ObjectName, OwnerName, Shape, Text, Time, Uid, Word

MAX_STEPS = 8
MAX_ADDRESSES = 16
MAX_TAGS = 32
MAX_GROUPS = 64
MAX_OWNER = 253

TagKey = Annotated[str, Field(max_length=63)]


class ClaimRef(Shape):
    """The VMClaim that a claim was made for."""

    namespace: ObjectName
    """Namespace of the VMClaim."""
    name: ObjectName
    """Name of the VMClaim."""
    uid: Uid
    """uid of the VMClaim."""
    kind_uid: Uid
    """uid of the CustomResourceDefinition of VMClaim when the claim was bound; guards against its replacement."""


class Claim(Shape):
    """The one-time right of somebody to this VM. Written once; later only extended, tagged and released."""

    id: Annotated[str, Field(min_length=1, max_length=128)]
    """Identifies the claim; every later write on it repeats this id."""
    owner: Annotated[str, Field(min_length=1, max_length=MAX_OWNER)]
    """Who has the VM: a user name of Kubernetes or of the REST gateway."""
    bound_at: Time
    """When the VM was handed out."""
    expires_at: Time
    """When the claim ends unless it is extended."""
    ref: ClaimRef | None = None
    """The VMClaim behind it; absent for a checkout over REST."""
    slot: Annotated[int, Field(ge=0, le=99)] | None = None
    """Which of the VMs asked for by the VMClaim this is, counted from 0."""
    groups: Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=MAX_GROUPS)] | None = None
    """Groups of the owner when the claim was made."""
    token_id: Annotated[str, Field(max_length=64)] | None = None
    """Public id of the REST token that was used; never the token itself."""
    request_id: Annotated[str, Field(max_length=128)] | None = None
    """Id of the request that asked for it, for the logs."""
    released_at: Time | None = None
    """When the claim ended. Once set, the claim never changes again."""
    end_reason: Word | None = None
    """Why it ended.

    Released, Expired, MachineGone, ClaimMissing, Surplus, DeadlineExceeded, CheckoutFailed or Forced.
    """
    tags: Annotated[dict[TagKey, Annotated[str, Field(max_length=255)]], Field(max_length=MAX_TAGS)] | None = None
    """Tags of the owner, at most 32; keys up to 63 and values up to 255 characters."""


class Adopt(Shape):
    """An existing machine to take in instead of making one."""

    machine_id: Annotated[str, Field(min_length=1, max_length=253)]
    """The provider's id of the machine."""


class PooledVMSpec(Shape):
    """What this VM is meant to be. Written by the operator before the provider is asked for anything."""

    pool: OwnerName
    """Name of the VMPool it was made for; never changes."""
    pool_uid: Uid
    """uid of that VMPool; a pool re-created under the same name does not own this VM."""
    provider: OwnerName
    """Name of the VMProvider that makes the machine; never changes."""
    template_digest: Annotated[str, Field(max_length=80)] | None = None
    """Digest of the template it is made from, with the algorithm's name in front."""
    host_name: Annotated[str, Field(max_length=253)] | None = None
    """Host name that the guest is given: the object's name, with the pool's domain behind it."""
    request_id: Annotated[str, Field(max_length=64)] | None = None
    """Ties together all tries to fill one place in the pool."""
    retry_count: Count | None = None
    """How many VMs with this request id failed before this one."""
    adopt: Adopt | None = None
    """Take in this existing machine instead of making one."""
    claim: Claim | None = None
    """Who has the VM. Set by the one write that hands it out, possible only while the VM is Ready."""


class StepRecord(Shape):
    """One entry of the step ledger."""

    name: Word
    """Which step: create, boot, probe, adopt or destroy."""
    started_at: Time | None = None
    """When the step was first tried."""
    finished_at: Time | None = None
    """When it was done; a step that is done is never done again."""
    retries: Count | None = None
    """How often it failed and will be tried again."""
    failed_at: Time | None = None
    """When it failed last."""
    next_at: Time | None = None
    """Not before this time is it tried again."""
    reason: Word | None = None
    """Class of its last failure."""
    message: Text | None = None
    """Its last failure in one sentence."""


class PooledVMStatus(Shape):
    """What was seen of this VM, and where it is in its life. Written by the operator alone."""

    phase: Word = "Pending"
    """Where it is in its life: Pending, Ready, Claimed, Quarantined or Completed."""
    observed_generation: Generation = -1
    """The metadata.generation last acted upon."""
    conditions: Conditions = ()
    """Typed observations about the VM."""
    machine_id: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """The provider's id of the machine; written once."""
    addresses: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=MAX_ADDRESSES)] = ()
    """IP addresses of the machine, best one first."""
    phase_since: Time | None = None
    """When it came into its present phase."""
    ready_at: Time | None = None
    """When it was first Ready."""
    expires_at: Time | None = None
    """When a Quarantined VM is given up."""
    reason: Word | None = None
    """Why it is Quarantined or Completed, in one CamelCase word."""
    message: Text | None = None
    """The same in one sentence."""
    steps: Annotated[
        tuple[StepRecord, ...],
        Field(
            max_length=MAX_STEPS,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = ()
    """The step ledger: what was started, finished or is waiting to be tried again."""
    attempt: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Which attempt this is; counts up when a quarantined VM is redriven."""
