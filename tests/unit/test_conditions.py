"""Conditions: transition times that tell the truth."""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vmpool.api.conditions import Condition, ConditionType, find, merge

BEFORE = datetime(2026, 1, 1, tzinfo=UTC)
NOW = BEFORE + timedelta(hours=1)


def condition(
    kind: str = "Ready", status: Literal["True", "False", "Unknown"] = "True", reason: str = "Filled", **more: Any
) -> Condition:
    return Condition(type=kind, status=status, reason=reason, last_transition_time=more.pop("since", BEFORE), **more)


def test_a_condition_is_found_by_its_type() -> None:
    ready, stalled = condition(), condition("Stalled")
    assert find([ready, stalled], ConditionType.STALLED) is stalled
    assert find([ready], "Stalled") is None


def test_the_time_stays_while_the_status_does_whatever_the_reason_says() -> None:
    old = condition(reason="Filled")
    (new,) = merge([old], [condition(reason="Filling", message="2 of 3 ready", since=NOW, observed_generation=2)], NOW)
    assert new.last_transition_time == BEFORE
    assert (new.reason, new.message, new.observed_generation) == ("Filling", "2 of 3 ready", 2)


def test_the_time_moves_when_the_status_does() -> None:
    (new,) = merge([condition(status="True")], [condition(status="False")], NOW)
    assert new.last_transition_time == NOW


def test_a_new_condition_begins_now_whatever_time_it_came_with() -> None:
    (new,) = merge([], [condition(since=BEFORE)], NOW)
    assert new.last_transition_time == NOW


def test_a_condition_that_is_not_named_again_is_dropped() -> None:
    assert merge([condition("Stalled"), condition()], [condition()], NOW) == (condition(),)


statuses = st.sampled_from(["True", "False", "Unknown"])
some = st.lists(st.builds(condition, st.sampled_from(list(ConditionType)), statuses), unique_by=lambda one: one.type)


@given(some, some)
def test_merging_twice_changes_nothing_more(old: list[Condition], new: list[Condition]) -> None:
    once = merge(old, new, NOW)
    assert merge(once, new, NOW + timedelta(days=1)) == once
    assert [one.type for one in once] == [one.type for one in new]


@given(some)
def test_an_unchanged_list_costs_no_write(old: list[Condition]) -> None:
    assert merge(old, old, NOW) == tuple(old)


def test_a_condition_reads_back_as_it_was_written() -> None:
    one = condition(message="all is well", observed_generation=3)
    assert one.wire() == {
        "type": "Ready",
        "status": "True",
        "reason": "Filled",
        "message": "all is well",
        "lastTransitionTime": "2026-01-01T00:00:00.000000Z",
        "observedGeneration": 3,
    }
    assert Condition.model_validate(one.wire()) == one


@pytest.mark.parametrize("wrong", [{"reason": "two words"}, {"reason": ""}, {"status": "true"}, {"kind": ""}])
def test_what_tools_could_not_read_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        condition(**wrong)
