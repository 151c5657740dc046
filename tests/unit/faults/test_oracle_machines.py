"""Machines: each planted fault is found, and what only looks like one is not."""

import pytest

from tests.faults.oracle.facts import Terms
from tests.faults.oracle.invariants import INVARIANTS
from tests.faults.oracle.judge import judge
from tests.faults.oracle.lint import RULES
from tests.unit.faults.oracle_story import BEGAN_AT, Story, good
from vmpool.api import keys


def test_a_story_that_keeps_every_promise_is_found_innocent() -> None:
    assert judge(good().evidence()) == []


def test_no_evidence_at_all_is_no_violation() -> None:
    assert judge(Story().evidence()) == []


@pytest.mark.parametrize("code", [*INVARIANTS, *RULES])
def test_the_number_of_a_judge_is_the_one_of_its_violations(code: str) -> None:
    assert good().broken(code) == []


# --- I1 -----------------------------------------------------------------------------------------------------


def test_a_machine_that_no_object_knows_is_a_leak() -> None:
    story = good()
    story.vm("lost")
    story.machine("m-lost", "lost")
    story.remove("pooledvms", "lost")
    assert [one.subject for one in story.broken("I1")] == ["m-lost"]


def test_a_machine_that_is_made_for_an_object_that_never_was_is_told_even_when_it_has_gone() -> None:
    story = good()
    story.machine("m-stray", "nobody", state="Gone", goneAt=1.0)
    (found,) = story.broken("I1")
    assert (found.subject, found.what) == ("m-stray", "it was made for uid-nobody, which never was")


def test_a_machine_whose_create_was_in_flight_at_a_broken_end_is_none() -> None:
    story = good()
    story.vm("new")
    story.machine("m-new", "new")
    assert story.broken("I1", failure="not done") == []
    assert len(story.broken("I1")) == 2, "at a good end the machine has to be recorded, and the object to have one"


def test_a_straggler_that_was_taken_in_is_known() -> None:
    story = good()
    story.vm("lost")
    story.machine("m-lost", "lost")
    story.remove("pooledvms", "lost")
    spec = {"pool": "web", "poolUid": "straggler", "provider": "cloud", "adopt": {"machineId": "m-lost"}}
    story.make("pooledvms", "straggler-1", spec, {"phase": "Quarantined"})
    assert story.broken("I1") == []


def test_a_ready_vm_without_a_machine_is_told_at_the_end() -> None:
    story = good()
    story.machines["m-three"]["state"] = "Gone"
    assert [one.subject for one in story.broken("I1")] == ["three"]


def test_a_disk_without_its_machine_is_a_leak() -> None:
    assert len(good().broken("I1", leaked=[{"kind": "disk", "machine": "m-one", "tenant": "t"}])) == 1


# --- I2 -----------------------------------------------------------------------------------------------------


def test_with_tokens_a_second_machine_of_a_vm_is_one_too_many_even_after_the_first() -> None:
    story = good()
    story.machine("m-again", "one")
    assert len(story.broken("I2")) == 1


def test_a_machine_that_was_taken_in_by_another_object_still_counts_for_whom_it_was_made() -> None:
    story = good()
    story.machine("m-again", "three", token=None, tags={keys.TAG_UID: "uid-straggler"})
    assert len(story.broken("I2")) == 1


@pytest.mark.parametrize(("seconds", "found"), [(2.0, 0), (60.0, 1)])
def test_without_tokens_a_second_machine_may_live_until_it_is_swept(seconds: float, found: int) -> None:
    story = _without_tokens()
    story.machine("m-twin", "one", token=None)
    story.pass_time(seconds)
    story.destroy("m-twin")
    assert len(story.broken("I2")) == found


def _without_tokens() -> Story:
    story = Story()
    story.pool(1)
    story.objects["vmproviders", "cloud"]["spec"]["config"] = {"tokenMode": "None"}
    story.write("vmproviders", "cloud", spec={}, told=False)
    story.vm("one")
    story.machine("m-one", "one", token=None)
    story.write("pooledvms", "one", status={"machineId": "m-one", "phase": "Ready"})
    return story


# --- I4 and L2 ----------------------------------------------------------------------------------------------


def test_a_machine_that_is_destroyed_though_its_vm_was_never_completed() -> None:
    story = good()
    story.destroy("m-three")
    assert len(story.broken("I4")) == 1
    assert len(story.broken("L2")) == 1


def test_a_machine_that_is_destroyed_before_completed() -> None:
    story = Story()
    story.pool(1)
    story.fill("one")
    story.pass_time(1)
    story.destroy("m-one")
    story.pass_time(1)
    story.phase("one", "Completed", "Surplus")
    assert len(story.broken("I4")) == 1
    assert len(story.broken("L2")) == 1


def test_a_request_to_destroy_too_early_is_told_although_it_never_arrived() -> None:
    story = good()
    story.call("delete", "machines", "m-three", far="cloud", step=True, status=499, changed=False)
    assert story.broken("I4") == []
    assert len(story.broken("L2")) == 1


def test_completed_without_its_entry_in_the_trace_is_proven_by_what_was_read_later() -> None:
    story = Story()
    story.pool(0)
    story.fill("one")
    story.write("pooledvms", "one", status={"phase": "Completed", "reason": "Surplus"}, told=False)
    story.destroy("m-one")
    assert len(story.broken("L2")) == 1, "nobody can have known"
    story = Story()
    story.pool(0)
    story.fill("one")
    story.write("pooledvms", "one", status={"phase": "Completed", "reason": "Surplus"}, told=False)
    story.call("list", "pooledvms", version=story.number)
    story.destroy("m-one")
    assert story.broken("L2") == []


def test_completed_that_is_on_its_way_together_with_the_delete_is_too_early() -> None:
    story = Story()
    story.pool(0)
    story.fill("one")
    story.phase("one", "Completed", "Surplus")
    asked = story.trace[-1]["asked"]
    story.destroy("m-one")
    story.trace[-1] |= {"asked": asked + 0.001}
    assert len(story.broken("L2")) == 1


def test_another_replica_may_know_from_its_watch() -> None:
    story = Story()
    story.pool(0)
    story.fill("one")
    story.phase("one", "Completed", "Surplus")
    asked = story.trace[-1]["asked"]
    story.destroy("m-one")
    story.trace[-1] |= {"asked": asked + 0.001, "replica": "b"}
    assert story.broken("L2") == []


def test_the_younger_twin_may_be_destroyed_at_once_and_the_older_one_may_not() -> None:
    story = _without_tokens()
    story.machine("m-twin", "one", token=None)
    story.destroy("m-twin")
    assert story.broken("I4") == []
    assert story.broken("L2") == []
    story.destroy("m-one")
    assert len(story.broken("I4")) == 1
    assert len(story.broken("L2")) == 1


def test_a_vm_that_records_another_machine_has_no_say_over_one_that_was_made_for_it() -> None:
    story = good()
    story.machine("m-again", "three")
    story.phase("three", "Completed", "Surplus")
    story.destroy("m-again")
    assert [one.subject for one in story.broken("I4")] == ["m-again"]
    assert len(story.broken("L2")) == 1


def test_machines_that_somebody_else_deletes_are_not_judged_where_the_scenario_says_so() -> None:
    story = good()
    story.destroy("m-three", asked=False)
    assert len(story.broken("I4")) == 1
    assert story.broken("I4", Terms(foreign_deletes=True)) == []


# --- I8 -----------------------------------------------------------------------------------------------------


def test_a_finalizer_that_goes_before_the_machine() -> None:
    story = Story()
    story.pool(0)
    story.fill("one")
    story.phase("one", "Completed", "Surplus")
    story.remove("pooledvms", "one")
    assert len(story.broken("I8")) == 1, "the machine is there for ever"
    story.pass_time(1)
    story.destroy("m-one")
    assert len(story.broken("I8")) == 1, "it went later"


def test_a_machine_that_is_gone_in_the_very_moment_is_no_violation() -> None:
    story = good()
    freed = next(entry for entry in story.trace if entry["plural"] == "pooledvms" and entry["verb"] == "delete")
    story.machines["m-one"]["goneAt"] = BEGAN_AT + freed["asked"]
    assert story.broken("I8") == []


@pytest.mark.parametrize(("plural", "name"), [("pooledvms", "three"), ("vmpools", "web"), ("vmproviders", "cloud")])
def test_what_is_being_deleted_is_gone_at_the_end(plural: str, name: str) -> None:
    story = good()
    story.write(plural, name, metadata={"deletionTimestamp": "2030-01-01T00:00:00Z"})
    assert len(story.broken("I8")) == 1
    assert story.broken("I8", Terms(kept=frozenset({name}))) == []
    assert story.broken("I8", failure="not done") == []


@pytest.mark.parametrize(("plural", "name"), [("pooledvms", "three"), ("vmpools", "web"), ("vmproviders", "cloud")])
def test_what_a_claim_holds_need_not_be_gone(plural: str, name: str) -> None:
    story = good()
    story.claim("three", "c2")
    story.phase("three", "Claimed")
    story.write(plural, name, metadata={"deletionTimestamp": "2030-01-01T00:00:00Z"})
    assert story.broken("I8") == []
