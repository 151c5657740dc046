"""Fault rules: which request gets which trouble. Pure: counters come in, decisions go out.

A rule says where (``match``), what (``action``) and how often (``skip``, ``count``, ``probability`` with ``seed``).
The first rule that fires on a request wins; rules behind it do not see that request.

=================  =====================================================================================
action             what happens
=================  =====================================================================================
failBefore         ``status`` (default 500), no effect; with a create's ``step``: the steps before it stay
failAfterCommit    the effect happens, then ``status``; with a ``step``: the steps up to it stay
replyLost          the effect happens, then the connection is cut; ``step`` as above
status             like failBefore, for 401, 403, 404, 429 (``retryAfter``) and kin; ``status`` is required
slow               ``seconds`` pass before the effect, or after it with ``when: after``; with a ``step`` of a
                   create, the answer is quick and that step takes so much longer
hang               no answer until the client hangs up; ``when`` as above: was there an effect or not?
neverReady         the boot of the new machine never ends
failStep           the new machine becomes Failed at the end of ``step`` (default boot)
dieLater           the new machine becomes Failed ``seconds`` after its boot
vanish             the machine is gone without a delete: a new one ``seconds`` after its boot, one that is
                   asked for by id ``seconds`` after that request
neverGone          the deletion is accepted and never ends, until it is asked for again
listLag            machines younger than ``seconds`` are not in lists
emptyList          200 and no machines
partialList        200 and one page, said to be the last
=================  =====================================================================================
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Literal, Self

from pydantic import Field, model_validator

from vmpool.simcloud.model import STEPS, Fate, Name, Seconds, Shape, Step, Tags


class Operation(StrEnum):
    """What a request does. Putting tags is both ``tags`` and, in rules, ``adopt``."""

    IDENTITY = "identity"
    CREATE = "create"
    GET = "get"
    LIST = "list"
    DELETE = "delete"
    TAGS = "tags"
    POWER = "power"
    CONSOLE = "console"


class Action(StrEnum):
    """What goes wrong; the table in the module's docstring says how."""

    FAIL_BEFORE = "failBefore"
    FAIL_AFTER_COMMIT = "failAfterCommit"
    REPLY_LOST = "replyLost"
    STATUS = "status"
    SLOW = "slow"
    HANG = "hang"
    NEVER_READY = "neverReady"
    FAIL_STEP = "failStep"
    DIE_LATER = "dieLater"
    VANISH = "vanish"
    NEVER_GONE = "neverGone"
    LIST_LAG = "listLag"
    EMPTY_LIST = "emptyList"
    PARTIAL_LIST = "partialList"


ANYWHERE = frozenset(Operation)
APPLIES: Mapping[Action, frozenset[Operation]] = {
    Action.NEVER_READY: frozenset({Operation.CREATE}),
    Action.FAIL_STEP: frozenset({Operation.CREATE}),
    Action.DIE_LATER: frozenset({Operation.CREATE}),
    Action.VANISH: frozenset({Operation.CREATE, Operation.GET, Operation.TAGS, Operation.POWER}),
    Action.NEVER_GONE: frozenset({Operation.DELETE}),
    Action.LIST_LAG: frozenset({Operation.LIST}),
    Action.EMPTY_LIST: frozenset({Operation.LIST}),
    Action.PARTIAL_LIST: frozenset({Operation.LIST}),
}
"""Where an action makes sense; those not named do everywhere."""

STEP_ACTIONS = frozenset(
    {
        Action.FAIL_BEFORE,
        Action.FAIL_AFTER_COMMIT,
        Action.REPLY_LOST,
        Action.STATUS,
        Action.SLOW,
        Action.FAIL_STEP,
    }
)
TIMED_ACTIONS = frozenset({Action.SLOW, Action.DIE_LATER, Action.LIST_LAG})

CODES = {401: "Unauthorized", 403: "Forbidden", 404: "MachineNotFound", 429: "TooManyRequests", 500: "InternalError"}


class Match(Shape):
    """Which requests; globs are case-sensitive, and a list has no name or image but the tags of its filter."""

    operation: Literal["*", "adopt", "identity", "create", "get", "list", "delete", "tags", "power"] = "*"
    step: Step | None = None
    tenant: str = "*"
    name: str = "*"
    image: str = "*"
    tags: Tags = Field(default_factory=dict)

    def operations(self) -> frozenset[Operation]:
        """Return the operations it names."""
        if self.operation == "*":
            return ANYWHERE
        return frozenset({Operation("tags" if self.operation == "adopt" else self.operation)})


class Rule(Shape):
    """One fault rule, as POSTed."""

    match: Match = Match()
    action: Action
    status: int | None = Field(default=None, ge=400, le=599)
    code: Name | None = None
    """``error.code`` of the answer; default: by status."""
    retry_after: Seconds | None = None
    seconds: Seconds = 0.0
    when: Literal["before", "after"] = "before"
    count: int | None = Field(default=None, ge=1)
    """Fires at most so often; None: no bound."""
    skip: int = Field(default=0, ge=0)
    """Lets so many matching requests pass first."""
    probability: float = Field(default=1.0, ge=0.0, le=1.0)
    seed: int = 0

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not self.match.operations() & APPLIES.get(self.action, ANYWHERE):
            raise ValueError(f"{self.action} cannot happen on {self.match.operation}")
        if self.match.step is not None and (self.match.operation != "create" or self.action not in STEP_ACTIONS):
            raise ValueError(f"a step goes with operation create and one of {', '.join(sorted(STEP_ACTIONS))}")
        if self.action is Action.STATUS and self.status is None:
            raise ValueError("action status needs a status")
        if self.action in TIMED_ACTIONS and self.seconds == 0:
            raise ValueError(f"action {self.action} needs seconds")
        return self

    @property
    def refuses(self) -> bool:
        """Whether the request is refused without any effect."""
        return self.action in {Action.FAIL_BEFORE, Action.STATUS} and self.match.step is None

    @property
    def fails_after(self) -> bool:
        """Whether an error is answered after the effect, or after the part of it that ``fate`` allows."""
        if self.action in {Action.FAIL_BEFORE, Action.STATUS}:
            return self.match.step is not None
        return self.action is Action.FAIL_AFTER_COMMIT

    @property
    def answer_status(self) -> int:
        """Status of the error that it answers."""
        return self.status or 500

    @property
    def answer_code(self) -> str:
        """``error.code`` of the error that it answers."""
        return self.code or CODES.get(self.answer_status, f"Status{self.answer_status}")

    def fate(self) -> Fate:
        """Return what this rule does to the timeline of a new machine."""
        step = self.match.step
        match self.action:
            case Action.NEVER_READY:
                return Fate(never_ready=True)
            case Action.FAIL_STEP:
                return Fate(fail_step=step or Step.BOOT)
            case Action.DIE_LATER:
                return Fate(die_after=self.seconds)
            case Action.VANISH:
                return Fate(vanish_after=self.seconds)
            case Action.SLOW if step is not None:
                return Fate(slow_step=step, slow_seconds=self.seconds)
            case Action.FAIL_BEFORE | Action.STATUS if step is not None:
                return Fate(steps_done=STEPS.index(step))
            case Action.FAIL_AFTER_COMMIT | Action.REPLY_LOST if step in {Step.DISK, Step.NIC}:
                return Fate(steps_done=STEPS.index(step) + 1)
        return Fate()


@dataclass(frozen=True, slots=True)
class Standing:
    """A rule in force, with what it has seen so far."""

    id: int
    rule: Rule
    seen: int = 0
    fired: int = 0


@dataclass(frozen=True, slots=True)
class Occasion:
    """One request, as rules look at it."""

    operation: Operation
    tenant: str
    name: str = ""
    image: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Draw:
    """What the rules say to one request."""

    fired: Standing | None
    changed: tuple[Standing, ...]
    """Rules whose counters moved, with their new values."""


def matches(rule: Rule, occasion: Occasion) -> bool:
    """Whether the rule speaks of this request."""
    want = rule.match
    return (
        occasion.operation in want.operations()
        and occasion.operation in APPLIES.get(rule.action, ANYWHERE)
        and fnmatchcase(occasion.tenant, want.tenant)
        and fnmatchcase(occasion.name, want.name)
        and fnmatchcase(occasion.image, want.image)
        and all(fnmatchcase(occasion.tags.get(key, ""), glob) for key, glob in want.tags.items())
        and want.tags.keys() <= occasion.tags.keys()
    )


def draw(standings: Sequence[Standing], occasion: Occasion) -> Draw:
    """Let the rules look at one request, in their order, until one fires."""
    changed: list[Standing] = []
    for standing in standings:
        if not matches(standing.rule, occasion):
            continue
        fires = _fires(standing)
        after = replace(standing, seen=standing.seen + 1, fired=standing.fired + fires)
        changed.append(after)
        if fires:
            return Draw(after, tuple(changed))
    return Draw(None, tuple(changed))


def _fires(standing: Standing) -> bool:
    rule = standing.rule
    if standing.seen < rule.skip or (rule.count is not None and standing.fired >= rule.count):
        return False
    # A generator per look, seeded with its number: the same requests meet the same faults after a restart too.
    return random.Random(f"{rule.seed}:{standing.seen}").random() < rule.probability  # noqa: S311 - dice
