"""DeadLetter: one failure, with everything that was known when it happened."""

from typing import Annotated, Literal

from pydantic import Field

from vmpool.api.conditions import Conditions
from vmpool.api.meta import Count, Fingerprint, Generation, ObjectName, OwnerName, Shape, Text, Time, Uid, Word

MAX_ATTEMPTS = 10
MAX_DIAGNOSTICS = 4096
"""Characters of all diagnostics together."""
QueueName = Literal["pending", "clone", "ready", "running", "tasks"]


class Attempt(Shape):
    """One failed try."""

    at: Time
    """When it failed."""
    reason: Word
    """Class of the failure."""
    message: Text
    """The failure in one sentence."""


class Diagnostics(Shape):
    """What was found out before the machine was destroyed; at most 4 KiB together."""

    console: Annotated[str, Field(max_length=MAX_DIAGNOSTICS)] = ""
    """The last lines of the machine's console, where the provider has one."""
    machine: Text = ""
    """State, addresses and message of the machine as last seen."""
    probe: Text = ""
    """What became of the last probes."""
    task: Text = ""
    """The provider's own name of what failed, where it has one."""
    missing: Text = ""
    """Why something of this is not here."""


class DeadLetterSpec(Shape):
    """The failure. Written once by the operator; action is for people."""

    queue: ObjectName
    """Name of the DeadLetterQueue that keeps it."""
    vm: ObjectName
    """Name of the PooledVM that failed: its short host name."""
    vm_uid: Uid
    """uid of that PooledVM."""
    pool: OwnerName
    """Name of its VMPool."""
    pool_uid: Uid
    """uid of that VMPool."""
    queue_from: QueueName
    """Where the VM was: clone while it was made, pending until it was ready, ready, running, or tasks for a task."""
    error_class: Word
    """Class of the failure in one CamelCase word."""
    error_message: Text
    """The failure in one sentence."""
    failed_at: Time
    """When it was given up."""
    retry_count: Count = 0
    """How many VMs with this request id had failed before."""
    request_id: Annotated[str, Field(max_length=64)] = ""
    """Ties together all tries to fill one place in the pool."""
    pool_alias: Annotated[str, Field(max_length=100)] = ""
    """The pool's first alias; empty without one."""
    provider: OwnerName
    """Name of the VMProvider."""
    step: Word
    """The step that failed: create, adopt, boot, probe or destroy."""
    template_digest: Annotated[str, Field(max_length=80)] = ""
    """Digest of the template that the machine was made from."""
    machine_id: Annotated[str, Field(max_length=253)] = ""
    """The provider's id of the machine; empty when there was none."""
    attempt: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Which attempt of the VM this was."""
    attempts: Annotated[
        tuple[Attempt, ...], Field(max_length=MAX_ATTEMPTS, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = ()
    """The tries that are known, oldest first."""
    fingerprint: Fingerprint
    """The same for failures that are alike but for names, numbers and addresses."""
    diagnostics: Diagnostics = Diagnostics()
    """What was found out before the machine was destroyed."""
    action: Literal["redrive", "discard"] | None = None
    """For people: redrive tries again, discard removes the letter."""


class DeadLetterStatus(Shape):
    """What became of the letter. Written by the operator alone."""

    phase: Word = "Kept"
    """Kept, Redriven, NotNeeded or Refused."""
    observed_generation: Generation = -1
    """The metadata.generation last acted upon."""
    conditions: Conditions = ()
    """Typed observations."""
    message: Text | None = None
    """What was done about it, or why nothing was, in one sentence."""
    handled_at: Time | None = None
    """When the action was done."""
    successor: ObjectName | None = None
    """Name of the PooledVM that goes on with its request."""
