"""What a dead letter says: the queue name, its own name, which failures are alike, and when they are poison."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.test_health import letter
from tests.unit.plan.worlds import NOW, PLANS, claim, vm
from vmpool.api.deadletter import MAX_ATTEMPTS
from vmpool.api.pool import Failure
from vmpool.plan.letters import (
    attempts_of,
    fingerprint,
    is_poison,
    is_settled,
    letter_name,
    poisoned,
    poisoned_by,
    queue_of,
    shortened,
)
from vmpool.plan.lifecycle import Phase
from vmpool.plan.policies import Queue
from vmpool.plan.snapshot import VM, Step, StepFacts


@pytest.mark.parametrize(
    ("phase", "step", "queue"),
    [
        (Phase.PENDING, Step.CREATE, Queue.CLONE),
        (Phase.PENDING, Step.ADOPT, Queue.CLONE),
        (Phase.PENDING, Step.BOOT, Queue.PENDING),
        (Phase.READY, Step.PROBE, Queue.READY),
        (Phase.CLAIMED, Step.PROBE, Queue.RUNNING),
        (Phase.COMPLETED, Step.DESTROY, Queue.TASKS),
    ],
)
def test_the_queue_name_is_where_the_vm_was(phase: Phase, step: Step, queue: Queue) -> None:
    assert queue_of(vm("a", phase), step) is queue


def test_a_claim_counts_whatever_the_phase_still_says_but_not_for_a_task() -> None:
    held = vm("a", Phase.READY, claim=claim())
    assert queue_of(held, Step.PROBE) is Queue.RUNNING
    assert queue_of(vm("a", Phase.COMPLETED, claim=claim(released_at=NOW)), Step.DESTROY) is Queue.TASKS


def test_the_name_is_the_same_for_the_same_failure_and_another_for_the_next_attempt() -> None:
    failed = vm("web-a", Phase.PENDING)
    assert letter_name(failed, Queue.PENDING) == "web-a-pending-1"
    assert letter_name(vm("web-a", Phase.PENDING, attempt=2), Queue.PENDING) == "web-a-pending-2"


words = st.text(alphabet=" abcghxyz:-", max_size=30)


@PLANS
@given(words, words, st.integers(0, 10**9), st.uuids(), st.ip_addresses(v=4))
def test_names_numbers_ids_and_addresses_do_not_tell_failures_apart(
    front: str, back: str, number: int, uuid: object, address: object
) -> None:
    def failing(name: str, *parts: object) -> str:
        middle = " ".join(str(part) for part in (name, f"m-{name}", *parts))
        return fingerprint(vm(name), Step.BOOT, "Timeout", f"{front} {middle} {back}")

    assert failing("web-k2jq", number, uuid, address) == failing(
        "web-zzp5", 7, "0" * 8 + "-0000" * 3 + "-" + "0" * 12, 1
    )


def test_step_class_and_words_do() -> None:
    one = vm("web-a")
    prints = {
        fingerprint(one, Step.BOOT, "Timeout", "no address"),
        fingerprint(one, Step.CREATE, "Timeout", "no address"),
        fingerprint(one, Step.BOOT, "MachineFailed", "no address"),
        fingerprint(one, Step.BOOT, "Timeout", "no answer"),
    }
    assert len(prints) == 4
    assert all(len(one) == 12 for one in prints)


def test_an_image_that_differs_is_another_cause() -> None:
    one = vm("web-a")
    made = [fingerprint(one, Step.CREATE, "InvalidTemplate", f"image {name} does not exist") for name in ("db", "web")]
    assert made[0] != made[1]


def a_failure(**changes: object) -> Failure:
    plain = {"vm": "web-a", "provider": "east", "step": "boot", "error_class": "Timeout", "message": "late"}
    return Failure.model_validate({**plain, "failed_at": NOW, **changes})


def test_the_attempts_are_the_failed_tries_of_the_ledger_and_the_last_one() -> None:
    failed = NOW - timedelta(minutes=50)
    tried = StepFacts("create", NOW - timedelta(hours=1), None, 1, NOW, "Busy", "try later", failed)
    done = StepFacts("adopt", NOW - timedelta(hours=2), NOW - timedelta(hours=1), 1, None, "Busy", "tried and done")
    attempts = attempts_of(vm("web-a", steps=(tried, done)), a_failure())
    assert [(one.reason, one.message, one.at) for one in attempts] == [
        ("Busy", "try later", failed),
        ("Timeout", "late", NOW),
    ]
    many = tuple(StepFacts(f"s{n}", NOW, None, 1, None, "Busy", str(n)) for n in range(20))
    kept = attempts_of(vm("web-a", steps=many), a_failure())
    assert len(kept) == MAX_ATTEMPTS
    assert kept[-1].reason == "Timeout"


@PLANS
@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=30), st.integers(0, 5))
def test_poison_is_the_same_failure_so_often_in_a_row(prints: list[str], limit: int) -> None:
    poison = None
    for number, print_of in enumerate(prints):
        poison = poisoned_by(poison, print_of, f"failure {number}", NOW + timedelta(seconds=number))
    run = len(prints) - len("".join(prints).rstrip(prints[-1]))
    assert poison is not None
    assert (poison.fingerprint, poison.failures) == (prints[-1], run)
    assert poison.since == NOW + timedelta(seconds=len(prints) - run)
    assert is_poison(poison, limit) == (0 < limit <= run)
    assert poison.message == f"failure {len(prints) - 1}"


def test_no_failure_is_no_poison_and_the_sentence_says_what_helps() -> None:
    assert not is_poison(None, 1)
    said = poisoned(poisoned_by(None, "abc", "x" * 2000, NOW))
    assert len(said) <= 1024
    assert "1 times in a row (abc: x" in said


def test_what_is_empty_is_left_out_and_the_rest_cut() -> None:
    assert shortened(("a", "", "b"), 10) == "a; b"
    assert shortened(("a" * 9, "b"), 5) == "aaaaa"


HOLD = timedelta(seconds=60)
RELEASED = claim(released_at=NOW)


@pytest.mark.parametrize(
    ("made", "changes", "settled"),
    [
        pytest.param(None, {}, True, id="its VM is gone"),
        pytest.param(vm("a", Phase.PENDING), {}, False, id="its VM has not left yet"),
        pytest.param(vm("a", Phase.READY), {"queue_from": Queue.READY}, False, id="nor has a ready one"),
        pytest.param(vm("a", Phase.CLAIMED), {"queue_from": Queue.RUNNING}, False, id="its claim has not ended"),
        pytest.param(vm("a", Phase.CLAIMED, claim=RELEASED), {"queue_from": Queue.RUNNING}, True, id="it has ended"),
        pytest.param(vm("a", Phase.QUARANTINED), {}, True, id="its VM is kept for a human"),
        pytest.param(vm("a", Phase.COMPLETED), {}, True, id="its VM is given up"),
        pytest.param(vm("a", Phase.PENDING, attempt=2), {}, True, id="its VM tries again"),
        pytest.param(vm("a", Phase.COMPLETED), {"queue_from": Queue.TASKS}, True, id="what is discarded goes on"),
        pytest.param(vm("a", Phase.READY), {"failed_at": NOW - HOLD}, True, id="its VM has recovered"),
    ],
)
def test_a_letter_is_settled_when_nobody_would_write_it_again(
    made: VM | None, changes: dict[str, Any], settled: bool
) -> None:
    kept = letter("a", **{"queue_from": Queue.PENDING, "failed_at": NOW - HOLD / 2, "vm_uid": "uid-a", **changes})
    assert is_settled(kept, made, NOW, NOW - 2 * HOLD, HOLD) is settled


@pytest.mark.parametrize(
    ("failed", "began", "settled"),
    [
        pytest.param(-10 * HOLD, -2 * HOLD, True, id="long ago"),
        pytest.param(-10 * HOLD, -HOLD / 2, False, id="we have hardly begun: nobody may have looked at the VM since"),
        pytest.param(HOLD, -2 * HOLD, True, id="a letter from the future is held no longer than others"),
        pytest.param(HOLD, -HOLD / 2, False, id="nor shorter"),
    ],
)
def test_a_letter_of_a_vm_that_stays_is_held_since_its_failure_and_our_begin(
    failed: timedelta, began: timedelta, settled: bool
) -> None:
    kept = letter("a", queue_from=Queue.PENDING, failed_at=NOW + failed, vm_uid="uid-a")
    assert is_settled(kept, vm("a", Phase.PENDING), NOW, NOW + began, HOLD) is settled
