"""The life of a VM, once: the CEL rules of the CRD, the diagram in the docs and the tests are made from this table."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Phase(StrEnum):
    """The stored word of where a VM is in its life."""

    PENDING = "Pending"
    READY = "Ready"
    CLAIMED = "Claimed"
    QUARANTINED = "Quarantined"
    COMPLETED = "Completed"


class ClaimPhase(StrEnum):
    """The stored word of what became of a VMClaim."""

    PENDING = "Pending"
    BOUND = "Bound"
    RELEASED = "Released"
    EXPIRED = "Expired"
    FAILED = "Failed"

    @property
    def finished(self) -> bool:
        """Whether nothing more will come of it."""
        return self not in (ClaimPhase.PENDING, ClaimPhase.BOUND)


class LetterPhase(StrEnum):
    """The stored word of what became of a DeadLetter."""

    KEPT = "Kept"
    REDRIVEN = "Redriven"
    NOT_NEEDED = "NotNeeded"
    REFUSED = "Refused"


@dataclass(frozen=True, slots=True)
class Transition:
    """One legal step of a VM's life."""

    before: Phase
    after: Phase
    event: str
    """What happened, as the arrow of the diagram says it."""


TRANSITIONS: Final = (
    Transition(Phase.PENDING, Phase.READY, "machine runs and answers"),
    Transition(Phase.PENDING, Phase.COMPLETED, "not wanted, or failed"),
    Transition(Phase.PENDING, Phase.QUARANTINED, "failed, machine kept for a human"),
    Transition(Phase.READY, Phase.CLAIMED, "claim was written"),
    Transition(Phase.READY, Phase.COMPLETED, "not wanted, failed, or claim ended at once"),
    Transition(Phase.READY, Phase.QUARANTINED, "stopped answering, machine kept for a human"),
    Transition(Phase.CLAIMED, Phase.COMPLETED, "claim ended"),
    Transition(Phase.QUARANTINED, Phase.PENDING, "redriven"),
    Transition(Phase.QUARANTINED, Phase.COMPLETED, "time is up, or room is needed"),
)

SUCCESSORS: Final[Mapping[Phase, tuple[Phase, ...]]] = {
    phase: tuple(step.after for step in TRANSITIONS if step.before is phase) for phase in Phase
}

INITIAL: Final = Phase.PENDING
FINAL: Final = Phase.COMPLETED


def may_become(before: Phase, after: Phase) -> bool:
    """Say whether the step is legal; staying is always."""
    return before is after or after in SUCCESSORS[before]


def diagram() -> str:
    """Return the table as a Mermaid state diagram."""
    arrows = [f"    {step.before} --> {step.after}: {step.event}" for step in TRANSITIONS]
    return "\n".join(
        [
            "stateDiagram-v2",
            f"    [*] --> {INITIAL}: object is written",
            *arrows,
            f"    {FINAL} --> [*]: machine is gone",
        ]
    )
