"""Health: what is counted, which limits follow from the guide, and what keeps a verdict steady."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.queues import a_claim, a_pool
from tests.unit.plan.worlds import EAST, NOW, PLANS, WEST, ago, claim, pending, pool, soon, spec, vm
from vmpool.api.conditions import Condition, find, observed
from vmpool.api.health import HealthPolicySpec, HealthPolicyStatus, HealthThresholds, Hysteresis
from vmpool.api.pool import Creation, PoolProvider, VMPoolStatus
from vmpool.plan.health import (
    CONDITION_OF,
    Cause,
    Judgement,
    Level,
    State,
    filled_at,
    health_of,
    judge,
    pauses,
    policy_status,
    pool_readings,
    reason_of,
    restored_of,
    total_readings,
)
from vmpool.plan.healthnumbers import PoolNumbers, QueueNumbers, pool_numbers, totals
from vmpool.plan.lifecycle import Phase
from vmpool.plan.policies import HealthObject, Letter, PolicyObject
from vmpool.plan.snapshot import VM, PoolFacts, Reason, Step, StepFacts

LIMITS = HealthThresholds()
STEADY = Hysteresis()
BARE = Hysteresis(clear_percent=0, clear_checks=1)
TWO_HOURS = timedelta(hours=2)
MAX_EMPTY = LIMITS.empty_pool_max_age


def letter(name: str, queue_from: str = "clone", **changes: Any) -> Letter:
    made = Letter(
        uid=f"uid-{name}",
        namespace="ci",
        name=name,
        resource_version="1",
        queue="kept",
        queue_from=queue_from,
        vm=name,
        vm_uid=f"uid-of-{name}",
        pool="debian",
        pool_uid="pool-uid",
        provider=EAST,
        failed_at=ago(hours=1),
        fingerprint="abc",
        error_class="Terminal",
        error_message="no",
    )
    return replace(made, **changes)


def count(*vms: VM, of: PoolFacts | None = None, letters: Sequence[Letter] = (), **changes: Any) -> PoolNumbers:
    told: dict[str, Any] = {"stuck_after": TWO_HOURS, "waiting": 0, "filled": NOW, "now": NOW, **changes}
    return pool_numbers(of or pool(), vms, letters, **told)


def numbers(**fields: Any) -> PoolNumbers:
    """Numbers of a pool: sizes, ``dead`` letters, ``empty_for`` and the rest."""
    queues = {name: QueueNumbers(fields.pop(name)) for name in ("pending", "ready") if name in fields}
    dead = fields.pop("dead", 0)
    return PoolNumbers(letters={"clone": dead} if dead else {}, **queues, **fields)


def first(hysteresis: Hysteresis = STEADY, **fields: Any) -> Judgement:
    """The verdict of a first check."""
    return judge(State(), pool_readings(numbers(**fields), LIMITS), hysteresis).told


def run(letters: Sequence[int], hysteresis: Hysteresis = STEADY) -> list[Level]:
    """The verdicts of checks that find so many dead letters."""
    state, told = State(), []
    for dead in letters:
        state = judge(state, total_readings(dead, 0, LIMITS), hysteresis)
        told.append(state.told.level)
    return told


# --- numbers ------


def test_vms_count_by_what_they_are_and_how_long() -> None:
    found = count(
        pending("young", created_at=ago(minutes=10)),
        pending("booting", created_at=ago(hours=3), machine_id="m"),
        vm("idle", phase_since=ago(minutes=20)),
        vm("new", phase_since=ago(minutes=10)),
        vm("claimed-not-written", claim=claim(), phase_since=ago(days=9)),
        vm("claimed", Phase.CLAIMED),
        vm("kept", Phase.QUARANTINED),
        vm("going", Phase.COMPLETED, claim=claim(), phase_since=ago(minutes=1)),
    )
    assert found.pending == QueueNumbers(2, 10_800, (10_800 + 600) / 2)
    assert found.ready == QueueNumbers(2, 1200, 900)
    assert found.completed == QueueNumbers(1, 60, 60)
    assert (found.stuck, found.clones_active, found.clones_pending) == (1, 1, 0)


def test_stuck_is_longer_than_the_threshold() -> None:
    there = (pending("at", created_at=NOW - TWO_HOURS), pending("over", created_at=NOW - TWO_HOURS * 1.001))
    redriven = pending("again", created_at=ago(days=1), phase_since=ago(minutes=1))
    assert count(*there, redriven).stuck == 1


def test_letters_count_by_queue_name_unless_they_are_being_deleted() -> None:
    kept = [letter("a"), letter("b"), letter("c", "ready"), letter("d", deleting=True)]
    found = count(letters=kept)
    assert (dict(found.letters), found.dead) == ({"clone": 2, "ready": 1}, 3)


@pytest.mark.parametrize(
    ("of", "missing"),
    [
        (pool(spec(replicas=5)), 4),
        (pool(spec(replicas=5, paused=True)), 0),
        (pool(spec(replicas=5), deleting=True), 0),
        (pool(spec(replicas=None), status=VMPoolStatus(desired_replicas=3)), 2),
    ],
)
def test_what_is_missing_and_not_begun_is_pending_work(of: PoolFacts, missing: int) -> None:
    assert count(vm("one"), of=of).clones_pending == missing
    assert count(vm("one"), of=of, waiting=2).clones_pending == (missing + 2 if missing else 0)


def test_failures_in_a_row_are_those_of_the_pool() -> None:
    slowed = VMPoolStatus(creation=Creation(window=1, failures=7, not_before=NOW))
    assert (count(of=pool(status=slowed)).failures, count().failures) == (7, 0)


def test_sums_leave_out_what_is_others() -> None:
    pools = [a_pool(aliases=["large"]), a_pool("db", providers=[PoolProvider(name=WEST)])]
    strays = [
        vm(name, provider=where, namespace=namespace)
        for name, where, namespace in (
            ("a", "east", "ci"),
            ("b", "west", "ci"),
            ("c", "north", "ci"),
            ("d", "east", "x"),
        )
    ]
    asked = [
        a_claim("waits", ondemand="1"),
        a_claim("by-alias", requests=[{"alias": "large", "count": 1}, {"pool": "db", "count": 1}], ondemand="2"),
        a_claim("elsewhere", requests=[{"pool": "other", "count": 1}], ondemand="3"),
        a_claim("not-on-demand"),
    ]
    claims = [replace(one, ondemand="" if one.name == "not-on-demand" else "x") for one in asked]
    bound = replace(claims[1], status=claims[1].status.model_copy(update={"phase": "Bound"}))
    each = [numbers(dead=2, stuck=1, ready=3), numbers(dead=5, pending=4, clones_active=4, clones_pending=1)]
    total = totals(pools, each, strays, [claims[0], bound, *claims[2:]])
    assert (total.pending, total.ready, total.completed, total.stuck, total.dead) == (4, 3, 0, 1, 7)
    assert (total.orphans, total.clones_active, total.clones_pending) == (2, 4, 1)
    assert (total.ondemand_active, total.ondemand_pending) == (1, 1)


# --- since when a pool is empty ------


def ready_since(status: str, at: datetime, reason: str = "Filling") -> VMPoolStatus:
    made = observed(CONDITION_OF[Level.HEALTHY], True, "x", "", generation=1, now=at)
    return VMPoolStatus(conditions=(made.model_copy(update={"type": "Ready", "status": status, "reason": reason}),))


BOOTED = (StepFacts(Step.BOOT, finished_at=ago(hours=5)),)
OLD_POOL = pool(created_at=ago(days=9))
GIVEN_UP = vm("lost", Phase.COMPLETED, reason=Reason.MACHINE_FAILED, phase_since=ago(minutes=1))
TAKEN = vm("taken", Phase.CLAIMED, claim=claim(bound_at=ago(hours=2)), phase_since=ago(hours=1))
GONE_BAD = vm("bad", Phase.COMPLETED, reason=Reason.NOT_ANSWERING, steps=BOOTED, phase_since=ago(hours=3))


@pytest.mark.parametrize(
    ("of", "vms", "since"),
    [
        (pool(created_at=ago(hours=1)), (), ago(hours=1)),
        (pool(created_at=ago(hours=1)), (GIVEN_UP, pending("next")), ago(hours=1)),
        (replace(OLD_POOL, status=ready_since("False", ago(minutes=20))), (), ago(minutes=20)),
        (replace(OLD_POOL, status=ready_since("False", ago(hours=8))), (TAKEN, GONE_BAD), ago(hours=2)),
        (replace(OLD_POOL, status=ready_since("True", ago(days=8))), (TAKEN,), ago(hours=2)),
        (replace(OLD_POOL, status=ready_since("True", ago(days=8))), (GONE_BAD, GIVEN_UP), ago(hours=3)),
        (replace(OLD_POOL, status=ready_since("True", ago(days=8))), (), NOW),
        (OLD_POOL, (vm("there"),), NOW),
        (OLD_POOL, (vm("claimed-a-moment-ago", claim=claim(bound_at=ago(seconds=1))),), ago(seconds=1)),
        (replace(OLD_POOL, spec=spec(replicas=0)), (), NOW),
        (replace(OLD_POOL, spec=spec(paused=True)), (), NOW),
    ],
)
def test_since_when_a_pool_is_empty_is_told_by_what_is_stored(
    of: PoolFacts, vms: tuple[VM, ...], since: datetime
) -> None:
    assert filled_at(of, vms, None, MAX_EMPTY, NOW) == since


def test_a_pool_is_empty_from_the_check_that_still_saw_a_vm_or_from_the_last_departure() -> None:
    assert filled_at(OLD_POOL, (), ago(minutes=5), MAX_EMPTY, NOW) == ago(minutes=5)
    assert filled_at(OLD_POOL, (TAKEN,), ago(minutes=5), MAX_EMPTY, NOW) == ago(minutes=5)
    just = replace(TAKEN, claim=claim(bound_at=ago(minutes=1)))
    assert filled_at(OLD_POOL, (just,), ago(minutes=5), MAX_EMPTY, NOW) == ago(minutes=1)
    assert filled_at(OLD_POOL, (vm("back"),), ago(minutes=5), MAX_EMPTY, NOW) == NOW


def test_a_pool_that_was_empty_for_too_long_stays_so_over_a_restart() -> None:
    told = first(empty_for=timedelta(minutes=16))
    said = health_of(told.level, reason_of(told.causes), told.message, 1, ago(minutes=1))
    of = replace(OLD_POOL, status=VMPoolStatus(conditions=(*ready_since("True", ago(days=8)).conditions, *said)))
    filled = filled_at(of, (), None, MAX_EMPTY, NOW)
    assert count(of=of, filled=filled).empty_for > MAX_EMPTY


def test_only_a_pool_that_wants_vms_can_be_empty() -> None:
    hour = ago(hours=1)
    assert count(filled=hour).empty_for == timedelta(hours=1)
    assert count(vm("one"), filled=hour).empty_for == timedelta()
    assert count(of=pool(spec(replicas=0)), filled=hour).empty_for == timedelta()
    assert count(filled=soon(hours=1)).empty_for == timedelta(), "a clock that was put back"


# --- limits ------

GUIDE = [
    ("dead", 100, 1000, Cause.DEAD_LETTERS),
    ("stuck", 10, 50, Cause.STUCK),
    ("pending", 100, 200, Cause.PENDING),
    ("ready", 500, 1000, Cause.READY),
]


@pytest.mark.parametrize(("what", "elevated", "critical", "cause"), GUIDE)
def test_the_limits_of_the_guide(what: str, elevated: int, critical: int, cause: Cause) -> None:
    levels = [first(**{what: size}).level for size in (elevated, elevated + 1, critical, critical + 1)]
    assert levels == [Level.HEALTHY, Level.DEGRADED, Level.DEGRADED, Level.UNHEALTHY]
    assert first(**{what: elevated + 1}).causes == {cause}
    assert len(first(**{what: critical + 1}).findings) == 1


def test_the_limits_beyond_the_guide() -> None:
    assert first(empty_for=MAX_EMPTY).level is Level.HEALTHY
    assert first(empty_for=MAX_EMPTY + timedelta(seconds=1)).level is Level.UNHEALTHY
    assert [first(failures=failures).level for failures in (5, 6, 1000)] == [0, 1, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stuck": 12}, "12 VMs are stuck in pending for more than 2h, more than 10"),
        ({"stuck": 51}, "51 VMs are stuck in pending for more than 2h, more than 50"),
        ({"dead": 1001}, "there are 1001 dead letters, more than 1000"),
        ({"pending": 101}, "101 VMs are pending, more than 100"),
        ({"ready": 1001}, "1001 VMs are ready, more than 1000 (twice 500)"),
        ({"failures": 6}, "6 VMs failed in a row, more than 5"),
        ({"empty_for": timedelta(seconds=1000.5)}, "no VM has been ready for 16m40s, more than 15m"),
        (
            {"dead": 101, "pending": 201},
            "201 VMs are pending, more than 200 (twice 100); there are 101 dead letters, more than 100",
        ),
        ({}, "every number is within its limits"),
    ],
)
def test_a_finding_says_number_and_limit(fields: dict[str, Any], message: str) -> None:
    assert first(**fields).message == message


# --- hysteresis ------

H, D, U = Level.HEALTHY, Level.DEGRADED, Level.UNHEALTHY


@pytest.mark.parametrize(
    ("letters", "hysteresis", "told"),
    [
        ([101, 100, 95, 91, 90, 90], STEADY, [D, D, D, D, D, H]),
        ([100, 95, 91], STEADY, [H, H, H]),
        ([1001, 900, 90, 90], STEADY, [U, U, D, H]),
        ([1001, 901, 901, 901], STEADY, [U, U, U, U]),
        ([101, 0, 101, 0, 0], STEADY, [D, D, D, D, H]),
        ([0, 101, 1001], STEADY, [H, D, U]),
        ([101, 100, 101, 100], BARE, [D, H, D, H]),
        ([101, 0, 0, 0], Hysteresis(clear_checks=3), [D, D, D, H]),
    ],
)
def test_worse_is_believed_at_once_and_better_has_to_last(
    letters: list[int], hysteresis: Hysteresis, told: list[Level]
) -> None:
    assert run(letters, hysteresis) == told


def test_a_limit_that_is_not_clear_yet_is_told_so() -> None:
    state = judge(State(), total_readings(1001, 0, LIMITS), STEADY)
    for dead in (950, 95, 95):
        state = judge(state, total_readings(dead, 0, LIMITS), STEADY)
    assert state.told.message == "there are 95 dead letters, not yet 10% below 100"


def test_the_sentence_keeps_its_numbers_until_verdict_or_causes_change() -> None:
    state = judge(State(), total_readings(101, 0, LIMITS), STEADY)
    again = judge(state, total_readings(250, 0, LIMITS), STEADY)
    assert again.told is state.told
    more = judge(again, total_readings(260, 11, LIMITS), STEADY)
    assert more.told.message.startswith("there are 260 dead letters, more than 100; 11 VMs are stuck")


def test_a_check_that_was_not_due_can_only_make_things_worse() -> None:
    state = judge(State(), total_readings(101, 0, LIMITS), STEADY)
    for _ in range(5):
        state = judge(state, total_readings(0, 0, LIMITS), STEADY, counts=False)
        assert state.told.level is D
    assert judge(state, total_readings(1001, 0, LIMITS), STEADY, counts=False).told.level is U
    for _ in range(2):
        state = judge(state, total_readings(0, 0, LIMITS), STEADY)
    assert state.told.level is H


def test_a_limit_that_is_not_clear_yet_counts_after_a_restart_too_and_no_other_does() -> None:
    at_once = Hysteresis(clear_checks=1)
    found = restored_of(conditions_of(first(dead=101)))
    assert judge(found, pool_readings(numbers(dead=95), LIMITS), at_once).told.level is D
    assert judge(found, pool_readings(numbers(dead=90), LIMITS), at_once).told.level is H
    assert judge(found, pool_readings(numbers(ready=495), LIMITS), at_once).told.level is H
    worse = restored_of(conditions_of(first(dead=1001)))
    levels = [judge(worse, pool_readings(numbers(dead=dead), LIMITS), at_once).told.level for dead in (901, 900, 90)]
    assert levels == [U, D, H]


SIZES = st.fixed_dictionaries(
    {
        "dead": st.integers(0, 2500),
        "stuck": st.integers(0, 120),
        "pending": st.integers(0, 450),
        "ready": st.integers(0, 2200),
        "failures": st.integers(0, 20),
        "empty_for": st.integers(0, 3600).map(lambda seconds: timedelta(seconds=seconds)),
    }
)
KINDS_OF_HYSTERESIS = st.builds(Hysteresis, clear_percent=st.integers(0, 90), clear_checks=st.integers(1, 5))


@PLANS
@given(st.integers(2, 2000), KINDS_OF_HYSTERESIS, st.data())
def test_a_number_that_oscillates_at_its_limit_changes_the_verdict_once(
    limit: int, hysteresis: Hysteresis, data: st.DataObject
) -> None:
    """Unless neither way of hysteresis is on: then the user has asked for it."""
    steady = hysteresis.model_copy(update={"clear_percent": max(1, hysteresis.clear_percent)})
    limits = HealthThresholds(dlq_max_warning=limit, dlq_max_critical=4000)
    lowest = limit * (100 - steady.clear_percent) // 100 + 1
    state, told = State(), [Level.HEALTHY]
    for dead in data.draw(st.lists(st.integers(lowest, limit + 5), max_size=30)):
        state = judge(state, total_readings(dead, 0, limits), steady)
        told.append(state.told.level)
    assert sum(1 for before, after in pairwise(told) if before != after) <= 1


@PLANS
@given(st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=8), KINDS_OF_HYSTERESIS)
def test_no_number_that_grows_makes_a_verdict_better(
    checks: list[tuple[dict[str, Any], dict[str, Any]]], hysteresis: Hysteresis
) -> None:
    low, high = State(), State()
    for one, more in checks:
        larger = {name: max(value, more[name]) for name, value in one.items()}
        low = judge(low, pool_readings(numbers(**one), LIMITS), hysteresis)
        high = judge(high, pool_readings(numbers(**larger), LIMITS), hysteresis)
        assert low.told.level <= high.told.level


@PLANS
@given(st.lists(SIZES, min_size=1, max_size=6), KINDS_OF_HYSTERESIS)
def test_exactly_one_condition_is_true_and_a_restart_finds_the_verdict_in_it(
    checks: list[dict[str, Any]], hysteresis: Hysteresis
) -> None:
    state = State()
    for fields in checks:
        state = judge(state, pool_readings(numbers(**fields), LIMITS), hysteresis)
    told = state.told
    conditions = health_of(told.level, reason_of(told.causes), told.message, 3, NOW)
    assert [one.type for one in conditions if one.status == "True"] == [CONDITION_OF[told.level]]
    found = restored_of(conditions)
    assert (found.told.level, found.told.causes) == (told.level, told.causes)
    assert found.told.message == told.message
    # The same numbers again, and calm ones where a better verdict has to last: the very sentence stands.
    again = judge(found, pool_readings(numbers(**checks[-1]), LIMITS), hysteresis)
    assert again.told.level >= judge(State(), pool_readings(numbers(**checks[-1]), LIMITS), hysteresis).told.level
    if hysteresis.clear_checks > 1:
        assert judge(found, pool_readings(numbers(), LIMITS), hysteresis).told is found.told


# --- what is written ------


def policy(status: HealthPolicyStatus | None = None, **of: Any) -> HealthObject:
    return PolicyObject("policy-uid", "ci", "strict", 2, "1", HealthPolicySpec(**of), status or HealthPolicyStatus())


def conditions_of(told: Judgement) -> tuple[Condition, ...]:
    return health_of(told.level, reason_of(told.causes), told.message, 1, NOW)


def test_a_policy_tells_its_worst_pool_and_what_all_have_together() -> None:
    own = judge(State(), total_readings(120, 0, LIMITS), STEADY).told
    good, bad, worse = a_pool("good"), a_pool("bad"), a_pool("worse")
    told = [(good, first()), (bad, first(dead=110, failures=9)), (worse, first(ready=1001))]
    status = policy_status(policy(), own, told, NOW)
    assert (status.health, status.pools, status.observed_generation, status.since) == ("unhealthy", 3, 2, NOW)
    assert [(one.pool, one.health) for one in status.not_healthy] == [("worse", "unhealthy"), ("bad", "degraded")]
    assert status.message == (
        "there are 120 dead letters, more than 100; worse: 1001 VMs are ready, more than 1000 (twice 500); "
        "bad: 9 VMs failed in a row, more than 5"
    )
    stands = find(status.conditions, "Unhealthy")
    assert stands is not None
    assert (stands.status, stands.reason) == ("True", "DeadLettersAndReadyQueueAndFailuresInARow")


def test_a_status_changes_only_with_the_verdict_its_causes_or_the_pools() -> None:
    one, own = a_pool("one"), Judgement()
    status = policy_status(policy(), own, [(one, first())], NOW)
    known = policy(status)
    assert policy_status(known, own, [(one, first())], soon(hours=1)) is status
    assert policy_status(replace(known, generation=3), own, [(one, first())], NOW) is not status
    two = policy_status(known, own, [(one, first()), (a_pool("two"), first())], soon(hours=1))
    assert (two.pools, two.since, two.conditions[0].last_transition_time) == (2, NOW, NOW)
    bad = policy_status(known, own, [(one, first(ready=501))], soon(hours=1))
    assert (bad.health, bad.since) == ("degraded", soon(hours=1))
    assert policy_status(policy(bad), own, [(one, first(failures=6))], soon(hours=2)).since == soon(hours=1)
    assert policy_status(policy(bad), own, [(one, first(failures=6))], soon(hours=2)) is not bad


def test_a_policy_without_pools_says_so() -> None:
    status = policy_status(policy(), Judgement(), [], NOW)
    assert (status.health, status.message) == ("healthy", "no pool names this policy")
    assert policy_status(policy(status), Judgement(), [], soon(hours=1)) is status


def test_a_list_of_bad_pools_has_a_bound() -> None:
    many = [(a_pool(f"p{number}"), first(ready=501 + 1000 * (number == 77))) for number in range(100)]
    status = policy_status(policy(), Judgement(), many, NOW)
    assert (len(status.not_healthy), status.not_healthy[0].pool, status.pools) == (50, "p77", 100)
    assert HealthPolicyStatus.model_validate(status.wire()) == status


def test_only_what_the_policy_names_is_paused_and_only_for_an_unhealthy_pool() -> None:
    both = policy(on_unhealthy=("pauseCreates", "pausePurge"))
    why = "HealthPolicy strict: the pool is unhealthy: there are 1001 dead letters, more than 1000"
    bad = conditions_of(first(dead=1001))
    assert pauses(both, bad) == (why, why)
    assert pauses(policy(), bad) == ("", "")
    assert pauses(policy(on_unhealthy=("pausePurge",)), bad) == ("", why)
    assert pauses(both, conditions_of(first(dead=101))) == pauses(both, ()) == ("", "")


def test_an_empty_pool_may_create_for_nothing_else_would_fill_it() -> None:
    both = policy(on_unhealthy=("pauseCreates", "pausePurge"))
    creates, purge = pauses(both, conditions_of(first(empty_for=timedelta(hours=1))))
    assert (creates, bool(purge)) == ("", True)
    assert all(pauses(both, conditions_of(first(empty_for=timedelta(hours=1), dead=1001))))


@pytest.mark.parametrize(
    ("more", "creates"),
    [({"failures": 6}, False), ({"dead": 101}, False), ({"dead": 1001}, True), ({"failures": 6, "dead": 1001}, True)],
)
def test_what_is_only_degraded_does_not_lock_an_empty_pool(more: dict[str, int], creates: bool) -> None:
    """Creates that are paused because creates fail would never end."""
    both = policy(on_unhealthy=("pauseCreates",))
    told = first(empty_for=timedelta(hours=1), **more)
    assert bool(pauses(both, conditions_of(told), told)[0]) == creates
