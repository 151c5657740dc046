"""PurgePolicy: how old VMs may become in each state before they are removed."""

from typing import Annotated

from pydantic import Field

from vmpool.api.conditions import Conditions
from vmpool.api.meta import LABEL, Count, Generation, ObjectName, Shape, Text, Time, Word, duration

MAX_PAUSES = 16
MAX_PURGED_LISTED = 50
Seconds = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""An age: far above the longest limit, so that what was forgotten for years can be written too."""


class Pause(Shape):
    """Somebody's wish that nothing is purged for now."""

    name: Annotated[str, Field(min_length=1, max_length=63), LABEL]
    """Who or what pauses, for example datacenter-move."""
    reason: Text = ""
    """Why, in one sentence."""
    until: Time | None = None
    """When it ends by itself. Absent means when it is taken out."""


class PurgePolicySpec(Shape):
    """What is too old. It applies to the pools that name the policy."""

    max_pending_age: duration("1s", "8760h") = "2h"  # type: ignore[valid-type]
    """How long a VM may be on its way to ready, for example 2h."""
    max_ready_age: duration("1s", "8760h") = "24h"  # type: ignore[valid-type]
    """How long a VM may be ready without being taken, for example 24h."""
    max_completed_age: duration("1s", "8760h") = "1h"  # type: ignore[valid-type]
    """How long the destruction of a machine may take before it is begun anew and told as a failed task, e.g. 1h."""
    max_orphaned_age: duration("1s", "8760h") = "24h"  # type: ignore[valid-type]
    """How long a machine of ours that no pool owns is kept in quarantine before it is destroyed, for example 24h."""
    interval: duration("1s", "168h") = "1h"  # type: ignore[valid-type]
    """How often to look, for example 1h."""
    dry_run: bool = False
    """True: what is too old is listed in the status and in the log, and nothing is removed."""
    max_per_cycle: Annotated[int, Field(ge=1, le=10_000)] = 100
    """How many VMs one cycle may remove; the rest waits for the next one, oldest first."""
    pauses: Annotated[
        tuple[Pause, ...],
        Field(
            max_length=MAX_PAUSES,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = ()
    """While there is one, nothing is removed; at most 16."""


class PurgedVM(Shape):
    """One VM that was, or would be, removed."""

    vm: ObjectName
    """Name of the PooledVM."""
    pool: Annotated[str, Field(max_length=63)]
    """Name of its pool."""
    state: Word
    """pending, ready, completed or orphaned."""
    age_seconds: Seconds
    """Its age in seconds when the cycle looked."""
    max_seconds: Seconds
    """The limit in seconds."""


class PurgeCycle(Shape):
    """One cycle that found something."""

    started_at: Time
    """When it began."""
    finished_at: Time
    """When it ended."""
    dry_run: bool
    """Whether it only looked."""
    found: Count
    """How many VMs were too old."""
    purged: Count
    """How many of them were removed."""
    deferred: Count
    """How many wait for the next cycle because of maxPerCycle."""
    kept: Count
    """How many are too old and stay: exempt, or taken by somebody meanwhile."""
    vms: Annotated[
        tuple[PurgedVM, ...],
        Field(max_length=MAX_PURGED_LISTED, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """The first 50 of them, oldest first."""


class PurgePolicyStatus(Shape):
    """What the policy did."""

    observed_generation: Generation = -1
    """The metadata.generation that this status speaks of; -1 before the first look."""
    conditions: Conditions = ()
    """Ready, and Paused while nothing is removed."""
    pools: Count = 0
    """How many pools name this policy."""
    last_cycle: PurgeCycle | None = None
    """The last cycle that found something; those that find nothing are not written."""
