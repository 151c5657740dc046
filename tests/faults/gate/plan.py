"""What goes wrong in a trial: at which call, event or list, and how."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

ANY = "*"
STEP_PREFIX = "step "
"""Signatures of the cloud's own sub-steps, such as ``step nic``: no call names them, the cloud itself breaks there."""


class Point(StrEnum):
    """When, in the life of a request."""

    BEFORE = "before"
    """Nothing has reached the far side."""
    COMMITTED = "committed"
    """The far side has done it, and nobody has been told."""
    REPLIED = "replied"
    """The reply was passed."""


class Kind(StrEnum):
    """What goes wrong."""

    KILL = "kill"
    """SIGKILL for the replica, at ``point``; the process is gone before anything else happens."""
    ANSWER = "answer"
    """``status`` instead of the far side's answer; ``point`` before: it never hears of the request."""
    RESET = "reset"
    """The connection is reset, at ``point``."""
    HANG = "hang"
    """``seconds`` without a byte, then a reset, at ``point``."""
    DUPLICATE = "duplicate"
    """The request is sent twice; the first answer is passed."""
    DELAY = "delay"
    """``seconds`` pass before it is forwarded."""
    TRUNCATE = "truncate"
    """Half of the answer's body, then a reset."""
    # Watches: the trigger is an event.
    FREEZE = "freeze"
    """From this event on no byte, for ``seconds``; then all that was held."""
    FREEZE_EVENTS = "freezeEvents"
    """The same, but bookmarks still come: it looks alive."""
    HOLD = "hold"
    """This event comes ``seconds`` later, or never if its object has changed again by then."""
    DROP = "drop"
    """This event never comes."""
    TWICE = "twice"
    """This event comes twice."""
    REPLAY = "replay"
    """This event, and then every earlier one of the stream once more."""
    ERROR = "error"
    """An ERROR event with code ``status`` instead of it, then the end of the stream."""
    CUT = "cut"
    """Half of the line, then a reset."""
    # Lists.
    STALE = "stale"
    """The list as it was when the replica listed this kind first."""
    EMPTY = "empty"
    """200 and no items."""
    PARTIAL = "partial"
    """200 and half of the items, said to be all."""
    # The cloud's sub-steps. For these a kill before is one while the cloud is at it, a kill after commit one before
    # anybody hears that the create broke off behind it; an answer, or a reset, breaks the create off there too, and
    # what was made by then stays.
    NEVER = "never"
    """The sub-step never ends, and nobody says so."""
    FAIL = "fail"
    """The sub-step fails behind an answer that all is well: the machine becomes Failed."""


WATCH_KINDS = frozenset(
    {Kind.FREEZE, Kind.FREEZE_EVENTS, Kind.HOLD, Kind.DROP, Kind.TWICE, Kind.REPLAY, Kind.ERROR, Kind.CUT}
)
LIST_KINDS = frozenset({Kind.STALE, Kind.EMPTY, Kind.PARTIAL})
STEP_ONLY_KINDS = frozenset({Kind.NEVER, Kind.FAIL})
STEP_KINDS = STEP_ONLY_KINDS | {Kind.KILL, Kind.ANSWER, Kind.RESET, Kind.DELAY}
NEEDS_STATUS = frozenset({Kind.ANSWER, Kind.ERROR})
NEEDS_SECONDS = frozenset({Kind.HANG, Kind.DELAY, Kind.FREEZE, Kind.FREEZE_EVENTS, Kind.HOLD})


class _Shape(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="forbid", frozen=True
    )


class Trigger(_Shape):
    """Where: the ``occurrence``-th call, or event, with this signature."""

    signature: str
    occurrence: Annotated[int, Field(ge=1)] = 1
    replica: str = ANY
    call: str = ""
    """Of a sub-step: the signature of the call that it is part of, where the gate has to act on that one."""

    @property
    def is_step(self) -> bool:
        """Whether it is a sub-step of the cloud."""
        return self.signature.startswith(STEP_PREFIX)


class Action(_Shape):
    """How."""

    kind: Kind
    point: Point = Point.BEFORE
    status: Annotated[int, Field(ge=400, le=599)] | None = None
    seconds: Annotated[float, Field(gt=0, le=600)] | None = None
    retry_after: Annotated[int, Field(ge=0, le=60)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind in NEEDS_STATUS and self.status is None:
            raise ValueError(f"{self.kind} needs a status")
        if self.kind in NEEDS_SECONDS and self.seconds is None:
            raise ValueError(f"{self.kind} needs seconds")
        return self

    @property
    def name(self) -> str:
        """The action in one word, as it stands in plans' names and in the report."""
        parts = [self.kind.value]
        if self.status is not None:
            parts.append(str(self.status))
        if self.kind in {Kind.KILL, Kind.ANSWER, Kind.RESET, Kind.HANG}:
            parts.append(self.point.value)
        return "-".join(parts)


class Fault(_Shape):
    """One thing that goes wrong."""

    trigger: Trigger
    action: Action

    @model_validator(mode="after")
    def _fits(self) -> Self:
        kind = self.action.kind
        if kind in STEP_ONLY_KINDS and not self.trigger.is_step:
            raise ValueError(f"{kind} is for sub-steps")
        if self.trigger.is_step and kind not in STEP_KINDS:
            raise ValueError(f"{kind} cannot happen inside the cloud")
        if self.trigger.is_step and kind == Kind.KILL and self.action.point == Point.REPLIED:
            raise ValueError("a create is answered before its sub-steps are over")
        if self.needs_call and not self.trigger.call:
            raise ValueError("a kill that follows a sub-step needs its call")
        return self

    @property
    def needs_call(self) -> bool:
        """Whether the gate kills at the call whose sub-step breaks."""
        return self.trigger.is_step and self.action.kind == Kind.KILL and self.action.point == Point.COMMITTED


class Plan(_Shape):
    """What goes wrong in one trial; each fault is armed when the one before it has come, or all are from the beginning.

    One of a sub-step stands last.
    """

    version: Literal[1] = 1
    scenario: str = ""
    seed: int = 0
    faults: tuple[Fault, ...] = ()
    together: bool = False
    """All are armed from the beginning, and come in whatever order: each stands for the pair that it is alone."""

    @model_validator(mode="after")
    def _steps_last(self) -> Self:
        if any(fault.trigger.is_step for fault in self.faults[:-1]):
            raise ValueError("a fault of a sub-step comes last")
        if len(self.faults) > 1 and self.faults[-1].needs_call:
            # The cloud and the gate would have to count the same calls from a moment that neither knows of the other.
            raise ValueError("a kill that follows a sub-step stands alone")
        return self

    @property
    def in_cloud(self) -> Fault | None:
        """What goes wrong inside the cloud; None: nothing does."""
        return self.faults[-1] if self.faults and self.faults[-1].trigger.is_step else None

    @property
    def at_gate(self) -> "Plan":
        """The part that the gate has to do."""
        fault = self.in_cloud
        if fault is None:
            return self
        rest = self.faults[:-1]
        if fault.needs_call:
            where = Trigger(signature=fault.trigger.call, occurrence=fault.trigger.occurrence)
            rest = (*rest, Fault(trigger=where, action=fault.action))
        return self.model_copy(update={"faults": rest})


@dataclass
class Progress:
    """How far a plan has come in a trial."""

    plan: Plan
    done: list[str] = field(default_factory=list)
    """What came: the names of the actions, in the order in which they did."""
    _left: list[Fault] = field(init=False)

    def __post_init__(self) -> None:
        self._left = list(self.plan.faults)

    @property
    def met(self) -> bool:
        """Whether everything of the plan has come."""
        return not self._left

    @property
    def armed(self) -> Sequence[Fault]:
        """What may come next."""
        return self._left if self.plan.together else self._left[:1]

    def strike(self, signature: str, replica: str, occurrence: int, of: frozenset[Kind] | None = None) -> Action | None:
        """Return what goes wrong here, and note that it has; None: nothing does."""
        fault = next((one for one in self.armed if self._fits(one.trigger, signature, replica, occurrence)), None)
        if fault is None or (of is not None and fault.action.kind not in of):
            return None
        self._left.remove(fault)
        self.done.append(fault.action.name)
        return fault.action

    def _fits(self, where: Trigger, signature: str, replica: str, occurrence: int) -> bool:
        if where.signature != signature or where.replica not in {ANY, replica}:
            return False
        # What follows another fault counts on from it: its occurrence is the first one that is not too early.
        counts_on = bool(self.done) and not self.plan.together
        return occurrence >= where.occurrence if counts_on else occurrence == where.occurrence
