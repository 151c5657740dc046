"""Conditions: typed observations on a status, and how to set them without a needless write."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from vmpool.api.meta import Generation, Shape, Time

MAX_MESSAGE: Final = 1024
"""Characters of a message."""


class ConditionType(StrEnum):
    """The condition types of all kinds."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    MACHINE_GONE = "MachineGone"
    CLAIM_MISSING = "ClaimMissing"
    HEALTHY = "Healthy"
    DEGRADED = "Degraded"
    UNHEALTHY = "Unhealthy"
    POISONED = "Poisoned"
    """On a VMPool: the same failure has come so often that nothing is created any more."""
    POLICY_MISSING = "PolicyMissing"
    """On a VMPool: something that it names does not exist."""
    ARCHIVING = "Archiving"
    """On a DeadLetterQueue with an archive: whether letters get there."""
    PAUSED = "Paused"
    """On a PurgePolicy: nothing is removed for now."""


class Condition(Shape):
    """One typed observation, in the form that ``kubectl wait`` and kstatus read."""

    type: Annotated[str, Field(min_length=1, max_length=64)]
    """Which observation this is, for example Ready."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds: True, False or Unknown."""
    reason: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z][A-Za-z0-9]*$")]
    """One CamelCase word for programs: why it is so."""
    message: Annotated[str, Field(max_length=MAX_MESSAGE)] = ""
    """One sentence for people; the same sentence stands in the log and the event."""
    last_transition_time: Time
    """When the status last changed from one value to another."""
    observed_generation: Generation | None = None
    """The metadata.generation that this observation speaks of."""


Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]


def observed(
    kind: ConditionType, value: bool, reason: str, message: str, *, generation: int, now: datetime
) -> Condition:
    """Return a condition observed now, on this generation of the object."""
    return Condition(
        type=kind,
        status="True" if value else "False",
        reason=reason,
        message=message[:MAX_MESSAGE],
        last_transition_time=now,
        observed_generation=generation,
    )


def find(conditions: Iterable[Condition], kind: str) -> Condition | None:
    """Return the condition of this type, or None."""
    return next((c for c in conditions if c.type == kind), None)


def merge(old: Sequence[Condition], new: Iterable[Condition], now: datetime) -> tuple[Condition, ...]:
    """Return ``new`` with the transition times of ``old`` wherever the status did not change.

    A type that only ``old`` has is dropped: whoever decides names all conditions every time.
    """
    merged = []
    for condition in new:
        before = find(old, condition.type)
        since = before.last_transition_time if before and before.status == condition.status else now
        merged.append(condition.model_copy(update={"last_transition_time": since}))
    return tuple(merged)
