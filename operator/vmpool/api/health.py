"""HealthPolicy: which numbers make pools degraded or unhealthy."""

from typing import Annotated, Literal

from pydantic import Field

from vmpool.api.conditions import Conditions
from vmpool.api.meta import Count, Generation, OwnerName, Rule, Shape, Text, Time, Word, duration

MAX_POOLS_LISTED = 50
Limit = Annotated[int, Field(ge=1, le=1_000_000)]


class HealthThresholds(Shape):
    """Above which numbers something is wrong. Queues are too long above the limit, and critical above twice of it."""

    pending_queue_max: Limit = 100
    """How many VMs of one pool may be on their way to ready; above is degraded, above twice of it unhealthy."""
    ready_queue_max: Limit = 500
    """How many VMs of one pool may be ready; above is degraded, above twice of it unhealthy."""
    dlq_max_warning: Limit = 100
    """Above so many dead letters the pools are degraded."""
    dlq_max_critical: Limit = 1000
    """Above so many dead letters the pools are unhealthy."""
    stuck_vm_age_threshold: duration("1s", "8760h") = Field(default="2h", alias="stuckVMAgeThreshold")  # type: ignore[valid-type]
    """A VM that is on its way to ready for longer is stuck, for example 2h."""
    stuck_vm_max_warning: Limit = Field(default=10, alias="stuckVMMaxWarning")
    """Above so many stuck VMs the pools are degraded."""
    stuck_vm_max_critical: Limit = Field(default=50, alias="stuckVMMaxCritical")
    """Above so many stuck VMs the pools are unhealthy."""
    empty_pool_max_age: duration("1s", "8760h") = "15m"  # type: ignore[valid-type]
    """A pool that wants VMs and has had none ready for longer is unhealthy, for example 15m."""
    failures_in_a_row_max: Limit = 5
    """Above so many failed VMs since the last one that became ready, a pool is degraded."""


class Hysteresis(Shape):
    """What keeps a number at its limit from switching the verdict to and fro."""

    clear_percent: Annotated[int, Field(ge=0, le=90)] = 10
    """A limit that was exceeded counts as exceeded until the number is so many percent below it."""
    clear_checks: Annotated[int, Field(ge=1, le=100)] = 2
    """So many checks in a row must find a better verdict before it is believed."""


class HealthPolicySpec(Shape):
    """How health is judged. It applies to the pools that name the policy."""

    interval: duration("1s", "24h") = "5m"  # type: ignore[valid-type]
    """How often to look, for example 5m."""
    thresholds: HealthThresholds = HealthThresholds()
    """The limits."""
    hysteresis: Hysteresis = Hysteresis()
    """What keeps the verdict steady."""
    on_unhealthy: Annotated[
        tuple[Literal["pausePurge", "pauseCreates"], ...],
        Field(max_length=2, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """What stops while a pool is unhealthy: pausePurge its purging, pauseCreates its creates. Empty means nothing."""


class PoolHealth(Shape):
    """The verdict on one pool that is not healthy."""

    namespace: Annotated[str, Field(max_length=63)]
    """Namespace of the pool."""
    pool: OwnerName
    """Name of the pool."""
    health: Word
    """degraded or unhealthy."""
    message: Text
    """Which limits are exceeded, with the numbers."""


class HealthPolicyStatus(Shape):
    """The verdict over all pools of the policy."""

    observed_generation: Generation = -1
    """The metadata.generation that this status speaks of; -1 before the first look."""
    conditions: Conditions = ()
    """Healthy, Degraded and Unhealthy: exactly one is True."""
    health: Annotated[str, Field(max_length=16)] = ""
    """healthy, degraded or unhealthy."""
    since: Time | None = None
    """When that began."""
    message: Text | None = None
    """Which limits are exceeded, with the numbers they had when the verdict changed."""
    pools: Count = 0
    """How many pools name this policy."""
    not_healthy: Annotated[
        tuple[PoolHealth, ...],
        Field(max_length=MAX_POOLS_LISTED, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """The first 50 pools that are not healthy, the worst first."""


HEALTH_SPEC_RULES = (
    Rule(
        rule="!has(self.thresholds) || self.thresholds.dlqMaxWarning <= self.thresholds.dlqMaxCritical",
        message="dlqMaxWarning must be at most dlqMaxCritical",
        field_path=".thresholds",
    ),
    Rule(
        rule="!has(self.thresholds) || self.thresholds.stuckVMMaxWarning <= self.thresholds.stuckVMMaxCritical",
        message="stuckVMMaxWarning must be at most stuckVMMaxCritical",
        field_path=".thresholds",
    ),
)
"""Rules on HealthPolicy's spec node."""
