"""Claims and failures: each planted fault is found, and what only looks like one is not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.faults.oracle_story import Story, good
from vmpool.plan.lifecycle import Phase, may_become

CLAIM: dict[str, Any] = {"id": "c1", "owner": "alice", "boundAt": "2030-01-01T00:00:00Z"}


def _claimed() -> Story:
    story = Story()
    story.pool(1)
    story.fill("one")
    story.claim("one", "c1")
    story.phase("one", "Claimed")
    return story


# --- I3 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claim",
    [
        {**CLAIM, "id": "c2"},
        {**CLAIM, "owner": "bob"},
        {**CLAIM, "boundAt": "2030-01-02T00:00:00Z"},
        None,
    ],
    ids=["another", "another owner", "another time", "none"],
)
def test_a_claim_never_becomes_another(claim: dict[str, Any] | None) -> None:
    story = _claimed()
    story.write("pooledvms", "one", spec={"claim": claim})
    assert len(story.broken("I3")) == 1


def test_a_claim_may_be_extended_tagged_and_ended_and_then_never_changes() -> None:
    story = _claimed()
    story.write("pooledvms", "one", spec={"claim": {**CLAIM, "expiresAt": "2031-01-01T00:00:00Z", "tags": {"a": "b"}}})
    story.release("one")
    assert story.broken("I3") == []
    story.write("pooledvms", "one", spec={"claim": CLAIM})
    assert len(story.broken("I3")) == 1


@pytest.mark.parametrize("phase", ["Pending", "Quarantined", "Completed"])
def test_only_what_is_ready_is_claimed(phase: str) -> None:
    story = Story()
    story.pool(1)
    story.vm("one")
    if phase != "Pending":
        story.phase("one", phase)
    story.claim("one", "c1")
    assert len(story.broken("I3")) == 1


def test_a_claim_that_was_over_when_it_began() -> None:
    story = Story()
    story.pool(1)
    story.fill("one")
    story.claim("one", "c1", releasedAt="2030-01-01T00:00:00Z")
    assert len(story.broken("I3")) == 1


def test_a_vm_is_not_born_with_a_claim() -> None:
    story = Story()
    story.pool(1)
    story.make("pooledvms", "one", {"poolUid": "uid-web", "provider": "cloud", "claim": CLAIM}, {"phase": "Pending"})
    assert len(story.broken("I3")) == 1


def test_a_vm_that_was_claimed_is_never_ready_again() -> None:
    story = _claimed()
    story.phase("one", "Ready")
    assert len(story.broken("I3")) == 2, "no legal step, and somebody has it"


def test_completed_is_not_written_while_somebody_has_it() -> None:
    story = _claimed()
    story.phase("one", "Completed")
    assert len(story.broken("I3")) == 1


@given(st.lists(st.sampled_from(list(Phase)), max_size=6))
def test_exactly_the_legal_lives_without_a_claim_are_passed(phases: list[Phase]) -> None:
    phases = [phase for phase in phases if phase is not Phase.CLAIMED]
    story = Story()
    story.pool(1)
    story.vm("one")
    for phase in phases:
        story.phase("one", phase)
    steps = zip([Phase.PENDING, *phases], phases, strict=False)
    illegal = [step for step in steps if not may_become(*step)]
    assert len(story.broken("I3")) == len(illegal)


def _wish(*slots: tuple[int, str]) -> tuple[Story, list[dict[str, Any]]]:
    """A VMClaim with VMs bound for slots."""
    story = Story()
    story.pool(len(slots))
    story.make("vmclaims", "wish", {"requests": [{"pool": "web", "count": 2}]}, {"phase": "Pending"}, told=False)
    for slot, name in slots:
        story.fill(name)
        story.claim(name, "uid-wish", slot=slot, ref={"uid": "uid-wish"})
    return story, [{"slot": slot, "uid": f"uid-{name}", "name": name} for slot, name in slots]


def test_each_slot_has_one_vm() -> None:
    story, vms = _wish((0, "one"), (1, "two"))
    story.write("vmclaims", "wish", status={"phase": "Bound", "vms": vms})
    assert story.broken("I3") == []


def test_two_vms_for_one_slot_are_one_too_many_unless_one_is_ended() -> None:
    story, _ = _wish((0, "one"), (0, "two"))
    assert len(story.broken("I3")) == 1
    story.release("two", "Surplus")
    assert story.broken("I3") == []


def test_what_a_claim_was_told_stays_so() -> None:
    story, vms = _wish((0, "one"), (1, "two"))
    story.write("vmclaims", "wish", status={"phase": "Bound", "vms": vms})
    story.write("vmclaims", "wish", status={"vms": [{**vms[0], "uid": "uid-two"}, vms[1]]})
    assert len(story.broken("I3")) == 1


def test_a_vm_that_is_told_to_two_claims_or_never_was_the_claims() -> None:
    story, vms = _wish((0, "one"))
    story.write("vmclaims", "wish", status={"phase": "Bound", "vms": vms})
    story.make("vmclaims", "other", {"requests": []}, {"phase": "Bound", "vms": vms}, told=False)
    found = story.broken("I3")
    assert len(found) == 2
    assert {one.subject for one in found} == {"other"}


# --- I5 -----------------------------------------------------------------------------------------------------


def _failing(**spec: Any) -> Story:
    story = Story()
    story.pool(1, **spec)
    story.vm("bad")
    return story


@pytest.mark.parametrize(
    ("phase", "reason"),
    [("Completed", "CreateFailed"), ("Quarantined", "MachineFailed"), ("Completed", "PurgedPending")],
)
def test_a_failure_without_a_letter_is_lost(phase: str, reason: str) -> None:
    story = _failing(deadLetterQueue="dlq")
    story.phase("bad", phase, reason)
    assert len(story.broken("I5")) == 1


@pytest.mark.parametrize("reason", ["Surplus", "PoolDeleted", "TemplateChanged"])
def test_what_is_not_wanted_any_more_has_not_failed(reason: str) -> None:
    story = _failing(deadLetterQueue="dlq")
    story.phase("bad", "Completed", reason)
    assert story.broken("I5") == []


def test_the_letter_comes_before_the_end() -> None:
    story = _failing(deadLetterQueue="dlq")
    story.phase("bad", "Completed", "CreateFailed")
    story.letter("bad")
    assert len(story.broken("I5")) == 1
    story = _failing(deadLetterQueue="dlq")
    story.letter("bad")
    story.phase("bad", "Completed", "CreateFailed")
    assert story.broken("I5") == []


def test_the_letter_of_another_attempt_does_not_do() -> None:
    story = _failing(deadLetterQueue="dlq")
    story.letter("bad", attempt=2)
    story.phase("bad", "Completed", "CreateFailed")
    assert len(story.broken("I5")) == 1


def test_a_failure_is_told_once_in_each_queue_and_attempt() -> None:
    story = _failing(deadLetterQueue="dlq")
    story.letter("bad")
    story.letter("bad", "tasks")
    story.letter("bad", attempt=2)
    assert story.broken("I5") == []
    story.remove("deadletters", "bad-clone-1")
    story.letter("bad", uid="another")
    assert len(story.broken("I5")) == 1


def test_letters_of_a_vm_that_was_never_here_are_not_ours() -> None:
    story = good()
    story.letter("stranger", uid="first")
    story.remove("deadletters", "stranger-clone-1")
    story.letter("stranger", uid="second")
    assert story.broken("I5") == []


def test_a_claimed_vm_whose_machine_is_gone_has_failed() -> None:
    story = good()
    story.claim("three", "c3")
    story.phase("three", "Claimed")
    story.release("three", "MachineGone")
    assert len(story.broken("I5")) == 1
    story = good()
    story.claim("three", "c3")
    story.phase("three", "Claimed")
    story.letter("three", "running")
    story.release("three", "MachineGone")
    assert story.broken("I5") == []


def test_a_pool_without_a_queue_writes_it_down_itself_and_first() -> None:
    story = _failing()
    story.write("vmpools", "web", status={"recentFailures": [{"vm": "bad"}]})
    story.phase("bad", "Completed", "CreateFailed")
    assert story.broken("I5") == []
    story = _failing()
    story.phase("bad", "Completed", "CreateFailed")
    story.write("vmpools", "web", status={"recentFailures": [{"vm": "bad"}]})
    assert len(story.broken("I5")) == 1


def test_a_letter_that_the_server_refuses_is_logged_whole_and_kept_by_the_pool() -> None:
    story = _failing(deadLetterQueue="dlq")
    body = {"spec": {"vm": "bad", "attempt": 1}}
    story.call("create", "deadletters", body=body, step=True, status=422, changed=False)
    story.write("vmpools", "web", status={"recentFailures": [{"vm": "bad"}]})
    story.phase("bad", "Completed", "CreateFailed")
    assert len(story.broken("I5")) == 1, "it was not logged"
    story.log.append({"event": "dead_letter_refused"})
    assert story.broken("I5") == []


@pytest.mark.parametrize(("code", "holds"), [(422, True), (403, False), (500, False)])
def test_a_status_that_the_server_refuses_for_good_is_logged_and_told_by_the_next(code: int, holds: bool) -> None:
    story = _failing()
    recent = {"recentFailures": [{"vm": "bad"}]}
    story.call("patch", "vmpools", body=[{"op": "add", "path": "/metadata/finalizers", "value": []}], step=True)
    story.call("patch", "vmpools", body={"status": recent}, step=True, status=code, changed=False)
    story.phase("bad", "Completed", "CreateFailed")
    story.log.append({"event": "failure_record_refused"})
    assert len(story.broken("I5")) == 1, "nobody can see it"
    story.write("vmpools", "web", status=recent)
    assert (story.broken("I5") == []) is holds


def test_a_straggler_has_not_failed() -> None:
    story = good()
    spec = {"pool": "web", "poolUid": "straggler", "provider": "cloud", "adopt": {"machineId": "m"}}
    story.make("pooledvms", "straggler-1", spec, {"phase": "Pending"})
    story.phase("straggler-1", "Quarantined", "Straggler")
    assert story.broken("I5") == []
