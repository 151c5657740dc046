"""The hammer's judge: each planted mistake is found and counted under its name, and what only looks like one is not."""

from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.faults.hammer.book import Denial, Hold, Mark
from tests.faults.hammer.judge import ASKED, GROUPS, Logs, counted, judge, processes, secrets_kept
from tests.faults.hammer.witness import beat, trimmed
from tests.faults.oracle.facts import Terms
from tests.faults.rig.trial import Evidence
from tests.unit.faults.oracle_story import BEGAN_AT, STEP, Story

TERMS = Terms()
CLEAN = dict.fromkeys(GROUPS, 0)


def iso(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Told:
    """A story of which one user was told something, on the clock of the cloud."""

    def __init__(self) -> None:
        self.story = Story()
        self.story.pool(2, deadLetterQueue="dlq")
        for name in ("one", "two"):
            self.story.fill(name)
        self.story.claim("one", "c1", boundAt=iso(self.now), expiresAt=iso(self.now + 60))
        self.hold = Hold("alice", "one", "rest", Mark.OWNER, "alice", self.now, self.now, self.now + 60)
        self.story.fill("three")
        self.story.phase("one", "Claimed")

    @property
    def now(self) -> float:
        return BEGAN_AT + self.story.now

    def pass_time(self, seconds: float) -> None:
        self.story.pass_time(seconds)

    def end_claim(self, reason: str = "Released") -> None:
        claim = self.story.objects["pooledvms", "one"]["spec"]["claim"]
        self.story.write(
            "pooledvms", "one", spec={"claim": {**claim, "releasedAt": iso(self.now), "endReason": reason}}
        )

    def give_back(self) -> None:
        self.hold.given_back = self.now
        self.end_claim()

    def finish(self) -> "Told":
        self.story.end("one", "ClaimEnded")
        self.story.settle(2)
        return self

    def evidence(self, **different: Any) -> Evidence:
        """As the hammer has it: no trace but of the pulse, which beats once a step."""
        moments = [(number, number * STEP) for number in range(1, self.story.number + 2)]
        beats = [asdict(beat(at - STEP / 2, at - STEP / 4, number)) for number, at in moments]
        return self.story.evidence(trace=beats, **different)

    def found(self, *more: Hold, **different: Any) -> dict[str, int]:
        """What the report would count."""
        return counted(judge(self.evidence(**different), [self.hold, *more], terms=TERMS))


@pytest.fixture
def told() -> Told:
    """Somebody was told to have a VM, keeps it for two seconds, and gives it back."""
    made = Told()
    made.pass_time(2)
    return made


def innocent(told: Told) -> Told:
    told.give_back()
    return told.finish()


def test_a_run_that_keeps_every_promise_is_found_innocent(told: Told) -> None:
    assert innocent(told).found() == CLEAN


def test_what_the_witness_keeps_is_enough_to_judge(told: Told) -> None:
    innocent(told).story.machine("m-lost", "lost")
    told.story.phase("two", "Pending")
    whole = told.evidence()
    history = [replace(one, object=trimmed(one.plural, dict(one.object))) for one in whole.history]
    found = judge(whole, [told.hold], terms=TERMS)
    assert found == judge(replace(whole, history=history), [told.hold], terms=TERMS)
    assert found


def test_every_code_is_counted_once() -> None:
    codes = [code for those in GROUPS.values() for code in those]
    assert sorted(codes) == sorted([*ASKED, "I10", "U1", "U2", "U3", "U4", "P1"])


# --- what the system promises --------------------------------------------------------------------------------


def test_a_machine_that_no_object_knows_is_a_leak(told: Told) -> None:
    innocent(told).story.machine("m-lost", "lost")
    assert told.found() == CLEAN | {"leaks": 2}, "nobody knows it, and whom it was made for never was"


def test_a_machine_that_is_made_before_its_object_is_a_leak(told: Told) -> None:
    innocent(told).story.machine("m-four", "four")
    told.pass_time(1)
    told.story.fill("four")
    told.story.machines["m-four"] |= {"createdAt": told.now - 2}
    told.story.scale(3)
    told.story.settle(3)
    assert told.found() == CLEAN | {"leaks": 1}


def test_a_disk_without_its_machine_is_a_leak(told: Told) -> None:
    assert innocent(told).found(leaked=[{"machine": "m-lost", "kind": "disk"}]) == CLEAN | {"leaks": 1}


def test_a_second_machine_of_one_vm_is_a_leak(told: Told) -> None:
    innocent(told).story.machine("m-again", "two")
    assert told.found() == CLEAN | {"leaks": 2}, "two were made for it, and nobody knows one of them"


def test_a_claim_that_becomes_another_is_a_double_checkout(told: Told) -> None:
    claim = told.story.objects["pooledvms", "one"]["spec"]["claim"]
    told.story.write("pooledvms", "one", spec={"claim": {**claim, "id": "c2"}})
    assert innocent(told).found() == CLEAN | {"double_checkouts": 1}


def test_a_failure_without_a_letter_is_a_lost_one(told: Told) -> None:
    told.story.vm("bad")
    told.story.end("bad", "CreateFailed")
    assert innocent(told).found() == CLEAN | {"lost_letters": 1}


def test_a_failure_whose_letter_came_first_is_told(told: Told) -> None:
    told.story.vm("bad")
    told.story.letter("bad")
    told.story.end("bad", "CreateFailed")
    assert innocent(told).found() == CLEAN


def test_a_letter_that_came_after_the_end_is_a_lost_one(told: Told) -> None:
    told.story.vm("bad")
    told.story.phase("bad", "Completed", "CreateFailed")
    told.story.letter("bad")
    told.story.remove("pooledvms", "bad")
    assert innocent(told).found() == CLEAN | {"lost_letters": 1}


def test_a_machine_that_goes_before_its_vm_is_completed_is_a_premature_destroy(told: Told) -> None:
    innocent(told)
    told.story.fill("four")
    told.story.destroy("m-four")
    told.pass_time(1)
    told.story.phase("four", "Completed", "Surplus")
    told.story.remove("pooledvms", "four")
    assert told.found() == CLEAN | {"premature_destroys": 1}
    blind = judge(replace(told.evidence(), trace=[]), [told.hold], terms=TERMS)
    assert counted(blind) == CLEAN, "without the pulse nobody could have known"


def test_what_never_comes_to_rest_or_too_late_is_told(told: Told) -> None:
    innocent(told)
    assert told.found(failure="pool web: 1 of 2 VMs are Ready")["others"] == 1
    assert told.found(converged_after=60.5)["others"] == 1
    assert told.found(converged_after=59.5) == CLEAN


# --- what users were told -------------------------------------------------------------------------------------


def test_a_vm_that_two_were_told_to_have_is_a_double_checkout(told: Told) -> None:
    second = replace(told.hold)
    assert innocent(told).found(replace(second, given_back=told.hold.given_back)) == CLEAN | {"double_checkouts": 1}


@pytest.mark.parametrize(
    "lie",
    [{"vm": "nowhere"}, {"vm": "two"}, {"value": "bob"}, {"mark": Mark.ID, "value": "c2"}, {"mark": Mark.REF}],
    ids=["no such VM", "nobody's", "somebody else's", "another claim", "no VMClaim's"],
)
def test_a_checkout_that_the_server_never_saw_is_a_double_checkout(told: Told, lie: dict[str, Any]) -> None:
    innocent(told)
    told.hold = replace(told.hold, **lie)
    assert told.found() == CLEAN | {"double_checkouts": 1}


def test_the_claims_id_marks_it_too(told: Told) -> None:
    innocent(told)
    told.hold = replace(told.hold, mark=Mark.ID, value="c1")
    assert told.found() == CLEAN


@pytest.mark.parametrize("reason", ["Released", "Expired", "Forced", "MachineGone"])
def test_a_claim_that_is_ended_while_its_user_has_it_is_a_premature_destroy(told: Told, reason: str) -> None:
    told.end_claim(reason)
    told.pass_time(5)
    told.hold.given_back = told.now
    told.finish()
    assert told.found()["premature_destroys"] == 1


def test_a_claim_whose_time_is_up_is_rightly_ended(told: Told) -> None:
    told.pass_time(60)
    told.end_claim("Expired")
    assert told.finish().found() == CLEAN


def test_a_machine_that_vanished_ends_its_claim_rightly(told: Told) -> None:
    told.story.letter("one", "running")
    told.story.machines["m-one"] |= {"goneAt": told.now, "endedBy": "vanished", "state": "Gone"}
    told.end_claim("MachineGone")
    told.pass_time(5)
    told.hold.given_back = told.now
    told.story.phase("one", "Completed", "MachineGone")
    told.story.remove("pooledvms", "one")
    told.story.settle(2)
    assert told.found() == CLEAN
    told.story.machines["m-one"]["endedBy"] = "deleted"
    assert told.found()["premature_destroys"] == 1


def test_a_machine_that_is_destroyed_while_its_user_has_it_is_a_premature_destroy(told: Told) -> None:
    told.story.destroy("m-one")
    told.pass_time(2)
    told.give_back()
    told.story.phase("one", "Completed", "ClaimEnded")
    told.story.remove("pooledvms", "one")
    told.story.settle(2)
    assert told.found() == CLEAN | {"premature_destroys": 2}, "before Completed, and before it was given back"


@pytest.mark.parametrize(("later", "lies"), [(-1.0, 1), (1.0, 0)], ids=["while it is theirs", "after its end"])
def test_nobody_is_told_that_a_vm_is_not_theirs_while_it_is(told: Told, later: float, lies: int) -> None:
    denial = Denial(told.hold, told.now + later, "there is no VM one")
    found = judge(innocent(told).evidence(), [told.hold], [denial], TERMS)
    assert counted(found) == CLEAN | {"double_checkouts": lies}


def test_a_denial_by_a_claim_that_never_ends_is_a_lie(told: Told) -> None:
    denial = Denial(told.hold, told.now, "there is no VM one")
    told.story.settle(2)
    assert counted(judge(told.evidence(), [told.hold], [denial], TERMS)) == CLEAN | {"double_checkouts": 1}


# --- processes ------------------------------------------------------------------------------------------------

DOUBT = '{"error": "LeaseLost: lease a/b is held by c", "event": "operator_ends", "level": "error"}\n'


def test_a_process_that_is_killed_or_doubts_has_done_nothing_wrong() -> None:
    assert list(processes([Logs("a", '{"event": "operator_starts"}\n', 0), Logs("b", DOUBT, 1)])) == []


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (DOUBT, 2),
        ("", 1),
        (DOUBT.replace("LeaseLost", "KeyError"), 1),
        ("Traceback (most recent call last):\n  File\n", 0),
        ("Task exception was never retrieved\n", 0),
    ],
    ids=["once without a word", "without a word", "a bug", "a bug that nobody caught", "one in a task"],
)
def test_a_process_that_ends_otherwise_is_told(text: str, ends: int) -> None:
    assert [one.code for one in processes([Logs("a", text, ends)])] == ["P1"]


def test_a_secret_in_a_log_or_an_object_is_told() -> None:
    logs = [Logs("a", "the key is hunter2\n", 0)]
    assert [one.code for one in secrets_kept(logs, [b"hunter2"], [])] == ["I10"]
    assert [one.code for one in secrets_kept(logs, [b"another"], ["pooledvms/one 7"])] == ["I10"]
    assert list(secrets_kept(logs, [b"another"], [])) == []
