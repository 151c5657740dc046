"""VMProvider: one place that makes machines, how to reach it and how carefully to treat it."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from vmpool.api.conditions import Conditions
from vmpool.api.meta import LABEL, Count, Generation, ObjectName, Shape, Time, Word, duration


class SecretRef(Shape):
    """A Secret in the provider's own namespace."""

    name: ObjectName
    """Name of the Secret; its keys are said by the provider's documentation."""


class ProviderLimits(Shape):
    """Bounds on what is asked of the provider."""

    machines: Annotated[int, Field(ge=0, le=10_000)] = 5000
    """Most machines that all pools together may have here."""
    operate: Annotated[int, Field(ge=1, le=1000)] = 20
    """Creates and deletes in flight at once."""
    observe: Annotated[int, Field(ge=1, le=1000)] = 10
    """Reads in flight at once."""


class ProviderTimeouts(Shape):
    """How long one call may take."""

    operate: duration("1s", "1h") = "2m"  # type: ignore[valid-type]
    """One create or delete call, for example 2m."""
    observe: duration("1s", "10m") = "30s"  # type: ignore[valid-type]
    """One read, or one page of a listing, for example 30s."""


class CircuitBreaker(Shape):
    """When to leave a failing provider alone."""

    failures: Annotated[int, Field(ge=1, le=1000)] = 5
    """How many failures in a row open the circuit."""
    pause: duration("1s", "1h") = "30s"  # type: ignore[valid-type]
    """How long an open circuit stays open before one call tries again, for example 30s."""


class Observe(Shape):
    """How the provider's machines are watched."""

    interval: duration("1s", "1h") = "30s"  # type: ignore[valid-type]
    """How often all machines are listed, for example 30s."""


class VMProviderSpec(Shape):
    """How to reach the provider."""

    type: Annotated[str, Field(min_length=1, max_length=63), LABEL]
    """Which plug-in: simulated, libvirt, or one that was installed beside the operator."""
    config: Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})] = Field(
        default_factory=dict
    )
    """Settings of the plug-in, checked by the plug-in's own model; an error shows in the condition Stalled."""
    secret_ref: SecretRef | None = None
    """Where the credentials are. Absent means that the plug-in needs none."""
    limits: ProviderLimits = ProviderLimits()
    """Bounds on what is asked of the provider."""
    timeouts: ProviderTimeouts = ProviderTimeouts()
    """How long one call may take."""
    circuit_breaker: CircuitBreaker = CircuitBreaker()
    """When to leave a failing provider alone."""
    observe: Observe = Observe()
    """How the provider's machines are watched."""
    paused: bool = False
    """True: no calls that create or delete are made until it is false again."""


class Circuit(StrEnum):
    """State of the circuit breaker."""

    CLOSED = "Closed"
    OPEN = "Open"
    HALF_OPEN = "HalfOpen"


class VMProviderStatus(Shape):
    """What was seen of the provider."""

    observed_generation: Generation = -1
    """The metadata.generation that this status speaks of; -1 before the first look."""
    conditions: Conditions = ()
    """Ready, Reconciling and Stalled."""
    identity: Annotated[str, Field(max_length=253)] | None = None
    """Stable name of the far side, written once while there are machines: another one is Stalled/IdentityChanged."""
    held_secret: ObjectName | None = None
    """Secret that must not be deleted while there are machines: it carries the finalizer vmpool.dev/in-use."""
    circuit: Circuit = Circuit.CLOSED
    """State of the circuit breaker: Closed lets calls through, Open none, HalfOpen one."""
    machines: Count = 0
    """PooledVMs whose machines are made here."""
    last_error: Word | None = None
    """Class of the error that opened the circuit."""
    open_until: Time | None = None
    """When an open circuit lets one call through."""
