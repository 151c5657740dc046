"""Poison and paused creates: when nothing more is created, and what the pool says then."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.worlds import NOW, PLANS, of_kind, pool, snapshot, spec
from vmpool.api.conditions import ConditionType, find, observed
from vmpool.api.pool import Poisoned, VMPoolStatus
from vmpool.plan.actions import CreateVM
from vmpool.plan.letters import is_poison, poisoned_by
from vmpool.plan.pool import plan_pool
from vmpool.plan.snapshot import PoolSnapshot
from vmpool.plan.status import health_conditions, pool_status

PRINT = "0123456789ab"


def poison(failures: int) -> Poisoned:
    return Poisoned(fingerprint=PRINT, failures=failures, since=NOW, message="no such image")


def creates(seen: PoolSnapshot) -> int:
    return len(of_kind(plan_pool(seen, NOW), CreateVM))


def status(seen: PoolSnapshot) -> VMPoolStatus:
    return pool_status(seen, plan_pool(seen, NOW), failures=(), stalled=None, now=NOW)


@pytest.mark.parametrize(("failures", "limit", "wanted"), [(2, 3, 3), (3, 3, 0), (9, 3, 0), (9, 0, 3)])
def test_the_same_failure_stops_creates_from_its_limit_on_and_never_with_a_limit_of_0(
    failures: int, limit: int, wanted: int
) -> None:
    assert creates(replace(snapshot(), poison=poison(failures), poison_limit=limit)) == wanted


def test_a_poisoned_pool_says_what_came_how_often_and_what_helps() -> None:
    seen = replace(snapshot(), poison=poison(4), poison_limit=3)
    found = status(seen)
    said = find(found.conditions, ConditionType.POISONED)
    assert said is not None
    assert said.status == "True"
    for part in ("4 times in a row", PRINT, "no such image", "redrive"):
        assert part in said.message
    ready = find(found.conditions, ConditionType.READY)
    assert ready is not None
    assert "4 times in a row" in ready.message
    assert found.poison == poison(4)


def test_below_the_limit_it_is_counted_and_not_said() -> None:
    found = status(replace(snapshot(), poison=poison(2), poison_limit=3))
    assert find(found.conditions, ConditionType.POISONED) is None
    assert found.poison == poison(2)


def test_a_policy_that_pauses_creates_is_named() -> None:
    seen = replace(snapshot(), creates_paused="HealthPolicy fleet: the pool is unhealthy")
    assert creates(seen) == 0
    ready = find(status(seen).conditions, ConditionType.READY)
    assert ready is not None
    assert "HealthPolicy fleet: the pool is unhealthy" in ready.message


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (("PurgePolicy a",), "PurgePolicy a does not exist in namespace ci"),
        (("DeadLetterQueue b", "HealthPolicy c"), "DeadLetterQueue b and HealthPolicy c do not exist in namespace ci"),
    ],
)
def test_what_is_named_and_missing_is_said(missing: tuple[str, ...], said: str) -> None:
    found = find(status(replace(snapshot(), missing=missing)).conditions, ConditionType.POLICY_MISSING)
    assert found is not None
    assert found.message == said


def test_a_pool_that_names_nothing_has_no_condition_of_policies() -> None:
    told = {one.type for one in status(snapshot()).conditions}
    assert told <= {ConditionType.READY, ConditionType.RECONCILING}


def test_conditions_of_health_stand_beside_the_others_with_their_times() -> None:
    long_ago = NOW - timedelta(days=1)
    healthy = observed(ConditionType.HEALTHY, True, "Healthy", "", generation=1, now=long_ago)
    before = pool(spec(), status=VMPoolStatus(conditions=(healthy,)))
    again = observed(ConditionType.HEALTHY, True, "Healthy", "as before", generation=1, now=NOW)
    found = status(replace(snapshot(pool=before), health=(again,)))
    (kept,) = health_conditions(found.conditions)
    assert (kept.message, kept.last_transition_time) == ("as before", long_ago)


@PLANS
@given(st.lists(st.sampled_from(["a", "b"]), max_size=30))
def test_only_the_last_run_of_the_same_failure_counts(prints: list[str]) -> None:
    found: Poisoned | None = None
    for one in prints:
        found = poisoned_by(found, one, "why", NOW)
    run = 0
    for one in reversed(prints):
        if one != prints[-1]:
            break
        run += 1
    assert (found.failures if found else 0) == run
    assert is_poison(found, run) == bool(run)
    assert not is_poison(found, run + 1)
