"""The end, what only goes forward, secrets, other pools, the process: each planted fault is found, and no other."""

import base64
import json
from typing import Any

import pytest

from tests.faults.gate.plan import Kind, Plan, Point
from tests.faults.oracle.facts import Terms
from tests.unit.faults.oracle_story import Story, condition, good, kill, plan

# --- I7 -----------------------------------------------------------------------------------------------------


def test_a_scenario_that_did_not_come_to_its_end() -> None:
    assert [one.what for one in good().broken("I7", failure="not done")] == ["not done"]


def test_an_end_that_came_too_late_after_the_last_fault() -> None:
    assert len(good().broken("I7", converged_after=61.0)) == 1
    assert good().broken("I7", converged_after=59.0) == []


def test_a_generation_that_nobody_has_looked_at() -> None:
    story = good()
    story.objects["vmproviders", "cloud"]["metadata"]["generation"] = 2
    story.write("vmproviders", "cloud", spec={"limits": {}}, told=False)
    assert [one.subject for one in story.broken("I7")] == ["vmproviders/cloud"]


def test_a_pool_that_is_not_full() -> None:
    story = good()
    story.end("three")
    assert len(story.broken("I7")) == 2, "it is not, and it says that it is"
    story.settle(0)
    assert len(story.broken("I7")) == 1
    assert story.broken("I7", Terms(unfilled=frozenset({"web"}))) == []


def test_a_vm_too_many_at_the_end() -> None:
    story = good()
    story.vm("more")
    assert len(story.broken("I7")) == 1


def test_a_paused_pool_is_left_as_it_is() -> None:
    story = good()
    story.write("vmpools", "web", spec={"paused": True, "replicas": 7})
    assert story.broken("I7") == []


def test_a_pool_that_does_not_say_that_it_is_ready() -> None:
    story = good()
    story.write("vmpools", "web", status={"conditions": [condition("Ready", "False")]})
    assert len(story.broken("I7")) == 1


# --- I9 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"observedGeneration": 1}, {"observedGeneration": -1}),
        ({}, {"observedGeneration": 2}),
        ({"machineId": "m"}, {"machineId": "n"}),
        ({"machineId": "m"}, {"machineId": None}),
        ({"attempt": 2}, {"attempt": 1}),
        ({"steps": [{"name": "create", "retries": 2}]}, {"steps": [{"name": "create", "retries": 1}]}),
        ({"steps": [{"name": "create", "retries": 2}]}, {"steps": []}),
        ({"conditions": [condition("A", "True", "2030")]}, {"conditions": [condition("A", "True", "2031")]}),
        ({"conditions": [condition("A", "True", "2030")]}, {"conditions": [condition("A", "False", "2029")]}),
    ],
)
def test_what_goes_back(before: dict[str, Any], after: dict[str, Any]) -> None:
    story = Story()
    story.pool(1)
    story.vm("one")
    story.write("pooledvms", "one", status=before)
    story.write("pooledvms", "one", status=after)
    assert len(story.broken("I9")) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"observedGeneration": -1}, {"observedGeneration": 1}),
        ({"attempt": 1, "steps": [{"name": "boot", "retries": 2}]}, {"attempt": 2, "steps": [{"name": "create"}]}),
        ({"steps": [{"name": "create", "retries": 1}]}, {"steps": [{"name": "create", "retries": 2}]}),
        ({"conditions": [condition("A", "True", "2030")]}, {"conditions": [condition("A", "False", "2031")]}),
        ({"conditions": [condition("A", "True", "2030")]}, {"conditions": [condition("B", "True", "2029")]}),
    ],
)
def test_what_goes_forward(before: dict[str, Any], after: dict[str, Any]) -> None:
    story = Story()
    story.pool(1)
    story.vm("one")
    story.write("pooledvms", "one", status=before)
    story.write("pooledvms", "one", status=after)
    assert story.broken("I9") == []


def test_how_often_its_request_failed_never_changes() -> None:
    story = good()
    story.write("pooledvms", "three", spec={"retryCount": 1})
    assert len(story.broken("I9")) == 1


# --- I10 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", ["hunter2", base64.b64encode(b"hunter2").decode()])
def test_a_secret_is_found_wherever_it_stands(secret: str) -> None:
    story = good()
    story.log.append({"event": f"refused {secret}"})
    assert len(story.broken("I10")) == 1
    story = good()
    story.write("pooledvms", "three", status={"message": f"refused {secret}"})
    assert len(story.broken("I10")) == 2, "in the object, and in the request that wrote it"
    story = good()
    story.call("create", "machines", far="cloud", body={"parameters": {"key": secret}}, step=True)
    assert len(story.broken("I10")) == 1


# --- I11 ----------------------------------------------------------------------------------------------------


CONTROL = Terms(control_pool="web")


def _control() -> Story:
    story = Story()
    story.pool(1)
    story.fill("one")
    story.settle(1)
    return story


def test_the_control_pool_stays_full_once_it_is() -> None:
    story = _control()
    assert story.broken("I11", CONTROL) == []
    story.phase("one", "Completed", "MachineGone")
    assert len(story.broken("I11", CONTROL)) == 1
    story = _control()
    story.write("vmpools", "web", status={"conditions": [condition("Ready", "False")]})
    assert len(story.broken("I11", CONTROL)) == 1


def test_a_control_pool_that_is_not_there_or_never_was_full() -> None:
    assert len(_control().broken("I11", Terms(control_pool="other"))) == 1
    story = Story()
    story.pool(1)
    assert [one.what for one in story.broken("I11", CONTROL)] == ["it was never full"]


# --- I12 ----------------------------------------------------------------------------------------------------


def _killed() -> Story:
    story = good()
    story.trace[-1]["fault"] = "kill-committed"
    return story


def test_a_life_for_each_kill() -> None:
    assert _killed().broken("I12", plan=kill(), lives=2) == []
    assert len(_killed().broken("I12", plan=kill(), lives=1)) == 1, "it was not started again"
    assert len(_killed().broken("I12", plan=kill(), lives=3)) == 1, "it ended without a word"


@pytest.mark.parametrize(
    ("faults", "allowed"),
    [
        (plan(Kind.ERROR, status=500), True),
        (plan(Kind.ERROR, status=410), False),
        (plan(Kind.FREEZE_EVENTS, seconds=60), True),
        (plan(Kind.FREEZE, seconds=2), False),
        (plan(Kind.HANG, "patch pooledvms/status", seconds=60), True),
        (plan(Kind.ANSWER, "update leases", status=500), True),
        (plan(Kind.ANSWER, "list vmpools", status=403), True),
        (plan(Kind.ANSWER, "patch vmpools/status", status=403), False),
        (plan(Kind.RESET, "create pooledvms", point=Point.COMMITTED), False),
        (Plan(), False),
    ],
)
def test_doubt_is_right_only_where_the_plan_explains_it(faults: Plan, allowed: bool) -> None:
    story = good()
    story.log.append({"event": "operator_ends", "error": "Condemned: kopf: its task has ended"})
    assert bool(story.broken("I12", plan=faults, lives=2)) is not allowed
    assert story.broken("I12", Terms(exits=1), lives=2) == []


def test_an_end_that_was_only_told_by_the_watchdog_counts_as_one() -> None:
    story = good()
    story.log.append({"event": "watchdog_verdict", "what": "loop", "why": "it stands still"})
    assert story.broken("I12", Terms(exits=1), lives=2) == []
    assert len(story.broken("I12", lives=2)) == 1


def test_a_life_that_tells_of_its_end_twice_ended_once() -> None:
    story = good()
    ends = {"event": "operator_ends", "error": "Condemned: kopf: its task has ended"}
    story.log += [{"event": "operator_starts"}, {"event": "watchdog_verdict"}, ends, {"event": "watchdog_verdict"}]
    assert story.broken("I12", Terms(exits=1), lives=2) == []
    story.log += [{"event": "operator_starts"}, ends]
    assert len(story.broken("I12", Terms(exits=1), lives=3)) == 1
    assert story.broken("I12", Terms(exits=2), lives=3) == []


def test_any_other_error_is_no_doubt() -> None:
    story = good()
    story.log.append({"event": "operator_ends", "error": "KeyError: 'x'"})
    assert [one.what for one in story.broken("I12", Terms(exits=1), lives=2)] == ["it ended with KeyError: 'x'"]
    story.log[-1]["error"] = "CancelledError: ; LeaseLost: not renewed"
    assert story.broken("I12", Terms(exits=1), lives=2) == []


def test_an_error_that_nobody_has_caught() -> None:
    quoted = json.dumps({"event": "x", "exception": "Traceback (most recent call last)"})
    assert good().broken("I12", log=quoted) == [], "it was caught, and logged"
    assert len(good().broken("I12", log="Traceback (most recent call last):\n  File")) == 1
    assert len(good().broken("I12", log="Task exception was never retrieved")) == 1
