"""Judge health: the numbers of pools, the limits that they are held against, and what keeps a verdict steady.

Two things do. A limit that was exceeded counts as exceeded until its number is well below it; and the verdict is the
worst of the last ``clearChecks`` checks, so that a worse one is believed at once and a better one has to last.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum

from vmpool.api.conditions import MAX_MESSAGE, Condition, ConditionType, find, merge, observed
from vmpool.api.health import MAX_POOLS_LISTED, HealthPolicyStatus, HealthThresholds, Hysteresis, PoolHealth
from vmpool.api.meta import format_duration
from vmpool.plan.healthnumbers import SECOND, PoolNumbers, wants
from vmpool.plan.lifecycle import Phase
from vmpool.plan.policies import HealthObject
from vmpool.plan.snapshot import VM, PoolFacts, Step


class Level(IntEnum):
    """The verdict; its number is the one in the metrics."""

    HEALTHY = 0
    DEGRADED = 1
    UNHEALTHY = 2

    @property
    def word(self) -> str:
        """As it stands in a status."""
        return self.name.lower()


CONDITION_OF = {
    Level.HEALTHY: ConditionType.HEALTHY,
    Level.DEGRADED: ConditionType.DEGRADED,
    Level.UNHEALTHY: ConditionType.UNHEALTHY,
}
LEVEL_OF_WORD = {level.word: level for level in Level}


class Cause(StrEnum):
    """What has a limit. The causes of a verdict, joined by ``And``, are the reason in its conditions."""

    DEAD_LETTERS = "DeadLetters"
    STUCK = "StuckVMs"
    PENDING = "PendingQueue"
    READY = "ReadyQueue"
    EMPTY = "EmptyPool"
    FAILURES = "FailuresInARow"


TOTALLED = (Cause.DEAD_LETTERS, Cause.STUCK)
"""Causes whose limits apply to all pools together too."""
JOINED = "And"
WITHIN = "WithinLimits"
NO_POOLS = "NoPools"
ALL_WELL = "every number is within its limits"


# --- limits ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """One number and one limit on it."""

    cause: Cause
    level: Level
    """The verdict above the limit."""
    number: float
    limit: float
    what: str
    """The number in a clause."""
    most: str
    """The limit in words."""


def pool_readings(numbers: PoolNumbers, limits: HealthThresholds) -> list[Reading]:
    """Hold one pool against every limit."""
    found = total_readings(numbers.dead, numbers.stuck, limits)
    for cause, size, name, most in (
        (Cause.PENDING, numbers.pending.size, "pending", limits.pending_queue_max),
        (Cause.READY, numbers.ready.size, "ready", limits.ready_queue_max),
    ):
        what = f"{_vms(size)} {name}"
        found.append(Reading(cause, Level.DEGRADED, size, most, what, str(most)))
        found.append(Reading(cause, Level.UNHEALTHY, size, 2 * most, what, f"{2 * most} (twice {most})"))
    for_seconds, longest = numbers.empty_for / SECOND, limits.empty_pool_max_age
    what = f"no VM has been ready for {format_duration(timedelta(seconds=int(for_seconds)))}"
    longest_said = format_duration(longest)
    found.append(Reading(Cause.EMPTY, Level.UNHEALTHY, for_seconds, longest / SECOND, what, longest_said))
    failed = f"{numbers.failures} VM{'' if numbers.failures == 1 else 's'} failed in a row"
    most = limits.failures_in_a_row_max
    found.append(Reading(Cause.FAILURES, Level.DEGRADED, numbers.failures, most, failed, str(most)))
    return found


def total_readings(dead: int, stuck: int, limits: HealthThresholds) -> list[Reading]:
    """Hold dead letters and stuck VMs, of one pool or of all together, against their limits."""
    letters = f"there {'is' if dead == 1 else 'are'} {dead} dead letter{'' if dead == 1 else 's'}"
    stuck_for = f"{_vms(stuck)} stuck in pending for more than {format_duration(limits.stuck_vm_age_threshold)}"
    return [
        Reading(cause, level, number, most, what, str(most))
        for cause, number, what, steps in (
            (Cause.DEAD_LETTERS, dead, letters, (limits.dlq_max_warning, limits.dlq_max_critical)),
            (Cause.STUCK, stuck, stuck_for, (limits.stuck_vm_max_warning, limits.stuck_vm_max_critical)),
        )
        for level, most in zip((Level.DEGRADED, Level.UNHEALTHY), steps, strict=True)
    ]


def _vms(count: int) -> str:
    return "1 VM is" if count == 1 else f"{count} VMs are"


# --- verdicts ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """One limit that counts as exceeded."""

    cause: Cause
    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one check found; without findings all is well."""

    findings: tuple[Finding, ...] = ()
    """One for each cause, the worst first."""

    @property
    def level(self) -> Level:
        """The worst of them."""
        return max((one.level for one in self.findings), default=Level.HEALTHY)

    @property
    def causes(self) -> frozenset[Cause]:
        """What is exceeded."""
        return frozenset(one.cause for one in self.findings)

    @property
    def message(self) -> str:
        """All findings in one sentence."""
        return ("; ".join(one.text for one in self.findings if one.text) or ALL_WELL)[:MAX_MESSAGE]


@dataclass(frozen=True, slots=True)
class State:
    """What one check hands to the next."""

    exceeded: frozenset[tuple[Cause, Level]] = frozenset()
    """Limits that count as exceeded."""
    recent: tuple[Judgement, ...] = ()
    """What the last checks found, the newest last."""
    told: Judgement = Judgement()
    """The verdict. Its numbers are those of the check that brought it."""


def judge(before: State, readings: Iterable[Reading], hysteresis: Hysteresis, *, counts: bool = True) -> State:
    """Return the state after one more check. One that does not count (it was not due) can only make things worse."""
    exceeded, worst = set(), dict[Cause, Finding]()
    for one in readings:
        held = (one.cause, one.level) in before.exceeded and _not_clear(one, hysteresis)
        if one.number > one.limit:
            text = f"{one.what}, more than {one.most}"
        elif held:
            text = f"{one.what}, not yet {hysteresis.clear_percent}% below {one.most}"
        else:
            continue
        exceeded.add((one.cause, one.level))
        if one.cause not in worst or worst[one.cause].level < one.level:
            worst[one.cause] = Finding(one.cause, one.level, text)
    found = Judgement(tuple(sorted(worst.values(), key=lambda one: (-one.level, list(Cause).index(one.cause)))))
    if counts or not before.recent:
        recent = (*before.recent, found)[-hysteresis.clear_checks :]
    else:
        recent = (*before.recent[:-1], _worse(before.recent[-1], found))
    told = recent[0]
    for one_check in recent[1:]:
        told = _worse(told, one_check)
    same = (told.level, told.causes) == (before.told.level, before.told.causes)
    return State(frozenset(exceeded), recent, before.told if same else told)


def _not_clear(one: Reading, hysteresis: Hysteresis) -> bool:
    return one.number * 100 > one.limit * (100 - hysteresis.clear_percent)


def _worse(first: Judgement, second: Judgement) -> Judgement:
    """The worse of two; the newer of two that are alike."""
    return first if first.level > second.level else second


def causes(reason: str) -> tuple[Cause, ...]:
    """Return the causes that a condition's reason names."""
    return tuple(cause for cause in Cause if cause in reason.split(JOINED))


def restored(level: Level, reason: str, message: str, only: Sequence[Cause] = tuple(Cause)) -> State:
    """Return the state of the process before, as far as conditions tell: a restart must not change a verdict."""
    known = [cause for cause in causes(reason) if cause in only] if level > Level.HEALTHY else []
    texts = [message, *("" for _ in known)]
    told = Judgement(tuple(Finding(cause, level, text) for cause, text in zip(known, texts, strict=False)))
    exceeded = frozenset((cause, one) for cause in known for one in Level if Level.HEALTHY < one <= level)
    return State(exceeded, (told,) if known else (), told)


def restored_of(conditions: Sequence[Condition]) -> State:
    """``restored`` from the three conditions of a pool."""
    for level in (Level.UNHEALTHY, Level.DEGRADED):
        one = find(conditions, CONDITION_OF[level])
        if one is not None and one.status == "True":
            return restored(level, one.reason, one.message)
    return State()


def filled_at(
    pool: PoolFacts, vms: Sequence[VM], before: datetime | None, empty_max: timedelta, now: datetime
) -> datetime:
    """Return when the pool last had a VM ready, or wanted none, as far as that is known; ``now`` if it is so now.

    ``before`` is what the check before this one returned. Without one, after a restart, it is told from what is
    stored: the last VM that left Ready and is still there, the pool's creation, and since when it is not Ready. A pool
    that was full once, and of whose last VMs nothing is left, has the benefit of the doubt: its time starts now. One
    that is said to be empty for too long already stays so.
    """
    if not wants(pool) or any(vm.phase == Phase.READY and vm.claim is None for vm in vms):
        return now
    left = [at for vm in vms if (at := _left_ready(vm)) is not None]
    if before is None:
        before = _stored(pool, empty_max) or (max(left) if left else now)
    return max((before, *left))


def _left_ready(vm: VM) -> datetime | None:
    """Return when a VM that was ready stopped being so."""
    if vm.claim is not None:
        return vm.claim.bound_at
    if vm.phase in (Phase.COMPLETED, Phase.QUARANTINED) and vm.step(Step.BOOT).finished_at is not None:
        return vm.since
    return None


def _stored(pool: PoolFacts, empty_max: timedelta) -> datetime | None:
    """Return since when the pool's own conditions say that it is empty; None when they do not tell."""
    bad = find(pool.status.conditions, ConditionType.UNHEALTHY)
    if bad is not None and bad.status == "True" and Cause.EMPTY in causes(bad.reason):
        return bad.last_transition_time - empty_max - SECOND
    ready = find(pool.status.conditions, ConditionType.READY)
    if ready is None:
        return pool.created_at
    return max(pool.created_at, ready.last_transition_time) if ready.status == "False" else None


# --- what is written ---------------------------------------------------------------------------------------------


def reason_of(named: Iterable[Cause]) -> str:
    """Return the reason word of these causes."""
    found = set(named)
    return JOINED.join(cause for cause in Cause if cause in found) or WITHIN


def health_of(level: Level, reason: str, message: str, generation: int, now: datetime) -> tuple[Condition, ...]:
    """Return Healthy, Degraded and Unhealthy, exactly one of them True."""
    return tuple(
        observed(kind, one is level, reason, message, generation=generation, now=now)
        for one, kind in CONDITION_OF.items()
    )


def pauses(policy: HealthObject, conditions: Sequence[Condition], found: Judgement | None = None) -> tuple[str, str]:
    """Return why creates, and why purging, are paused by a pool's conditions; empty where they are not.

    A pool that is unhealthy only because it is empty may create: nothing else would fill it again. ``found`` is what
    the last check found; without it the conditions' reason has to do, which also names what is only degraded.
    """
    bad = find(conditions, ConditionType.UNHEALTHY)
    if bad is None or bad.status != "True":
        return "", ""
    why = f"HealthPolicy {policy.name}: the pool is unhealthy: {bad.message}"
    if found is not None:
        serious = {one.cause for one in found.findings if one.level is Level.UNHEALTHY}
    else:
        serious = set(causes(bad.reason)) - {Cause.FAILURES}
    stops, empty = policy.spec.on_unhealthy, serious == {Cause.EMPTY}
    return why if "pauseCreates" in stops and not empty else "", why if "pausePurge" in stops else ""


def policy_status(
    policy: HealthObject, own: Judgement, pools: Sequence[tuple[PoolFacts, Judgement]], now: datetime
) -> HealthPolicyStatus:
    """Return the status over all pools: the very one that stands while verdict, causes and pools are the same."""
    before, level = policy.status, max((own.level, *(told.level for _, told in pools)))
    bad = sorted(
        ((pool, told) for pool, told in pools if told.level > Level.HEALTHY),
        key=lambda one: (-one[1].level, one[0].namespace, one[0].name),
    )
    listed = tuple(
        PoolHealth(namespace=pool.namespace, pool=pool.name, health=told.level.word, message=told.message)
        for pool, told in bad[:MAX_POOLS_LISTED]
    )
    reason = reason_of(cause for told in (own, *(told for _, told in bad)) for cause in told.causes)
    if not pools and reason == WITHIN:
        reason = NO_POOLS
    stands = find(before.conditions, CONDITION_OF[level])
    if (
        (before.observed_generation, before.health, before.pools) == (policy.generation, level.word, len(pools))
        and before.not_healthy == listed
        and (stands is not None and stands.reason == reason)
    ):
        return before
    message = _summary(own, bad) if reason != NO_POOLS else "no pool names this policy"
    return HealthPolicyStatus(
        observed_generation=policy.generation,
        conditions=merge(before.conditions, health_of(level, reason, message, policy.generation, now), now),
        health=level.word,
        since=before.since if before.health == level.word and before.since is not None else now,
        message=message,
        pools=len(pools),
        not_healthy=listed,
    )


def _summary(own: Judgement, bad: Sequence[tuple[PoolFacts, Judgement]]) -> str:
    """The findings on all pools together, then those on single pools that are not said by that."""
    said = [one.text for one in own.findings if one.text]
    for pool, told in bad:
        more = [one.text for one in told.findings if one.text and one.cause not in own.causes]
        said.extend([f"{pool.name}: {', and '.join(more)}"] if more else [])
    return ("; ".join(said) or ALL_WELL)[:MAX_MESSAGE]
