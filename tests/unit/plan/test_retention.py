"""Which letters of a queue go and when, and what its status says."""

import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.worlds import NOW, PLANS, ago
from vmpool.api.conditions import find
from vmpool.api.deadletterqueue import Archive, DeadLetterQueueSpec, DeadLetterQueueStatus
from vmpool.plan.lifecycle import LetterPhase
from vmpool.plan.policies import Letter, PolicyObject, Queue, QueueObject
from vmpool.plan.retention import holdings, plan_retention, queue_status

DAY = timedelta(days=1)


def a_letter(number: int = 0, **changes: Any) -> Letter:
    """A clone failure of a minute ago."""
    plain: dict[str, Any] = {
        "uid": f"uid-{number}",
        "namespace": "ci",
        "name": f"web-{number}-clone-1",
        "resource_version": "1",
        "queue": "dlq",
        "queue_from": Queue.CLONE.value,
        "vm": f"web-{number}",
        "vm_uid": f"vm-{number}",
        "pool": "debian",
        "pool_uid": "pool-uid",
        "provider": "east",
        "failed_at": ago(minutes=1),
        "fingerprint": "f0",
        "error_class": "InvalidTemplate",
        "error_message": "no image",
    }
    return Letter(**{**plain, **changes})


def spec(**changes: Any) -> DeadLetterQueueSpec:
    return DeadLetterQueueSpec.model_validate({"ttl": "24h", "maxEntries": 5, **changes})


moments = st.integers(0, 40).map(lambda hours: ago(hours=hours))
letters = st.lists(
    st.builds(
        lambda **changes: changes,
        failed_at=moments,
        queue_from=st.sampled_from([queue.value for queue in Queue][:3]),
        fingerprint=st.sampled_from(["f0", "f1", "f2"]),
        action=st.sampled_from(["", "", "", "discard", "redrive"]),
        generation=st.integers(1, 3),
        observed_generation=st.sampled_from([-1, 1, 2, 3]),
        deleting=st.booleans(),
    ),
    max_size=60,
).map(lambda drawn: [a_letter(number, **changes) for number, changes in enumerate(drawn)])
limits = st.integers(1, 8)


@PLANS
@given(letters, limits)
def test_every_letter_has_at_most_one_end_and_enough_go(drawn: list[Letter], most: int) -> None:
    plan = plan_retention(drawn, spec(maxEntries=most), NOW)
    parts = (plan.discard, plan.redrive, plan.expired, plan.trimmed)
    named = [letter.uid for part in parts for letter in part]
    assert len(named) == len(set(named))
    assert not [letter for part in parts for letter in part if letter.deleting]
    for part in (*parts, plan.overflow):
        assert list(part) == sorted(part, key=lambda one: (one.failed_at, one.uid))
    gone = {letter.uid for part in (plan.discard, plan.expired, plan.trimmed) for letter in part}
    left = [letter for letter in drawn if not letter.deleting and letter.uid not in gone]
    sizes = Counter(letter.queue_from for letter in left)
    assert all(size <= most for size in sizes.values())
    for letter in plan.trimmed:
        kept = [one for one in left if one.queue_from == letter.queue_from]
        assert len(kept) == most, "no more are trimmed than have to"
        assert all((letter.failed_at, letter.uid) < (one.failed_at, one.uid) for one in kept)
    assert {one.uid for one in plan.discard} == {
        one.uid for one in drawn if one.action == "discard" and not one.deleting
    }
    assert all(one.failed_at <= NOW - DAY for one in plan.expired)
    assert all(one.failed_at > NOW - DAY or one in plan.redrive for one in left)
    assert all(one.action == "redrive" and one.generation > one.observed_generation for one in plan.redrive)


@PLANS
@given(letters, limits)
def test_without_an_archive_never_more_than_twice_the_limit_wait(drawn: list[Letter], most: int) -> None:
    plan = plan_retention(drawn, spec(maxEntries=most), NOW)
    going = {letter.uid for letter in (*plan.expired, *plan.trimmed)}
    over = {letter.uid for letter in plan.overflow}
    assert over <= going
    there = [one for one in drawn if not one.deleting and one.action != "discard"]
    left = Counter(one.queue_from for one in there if one.uid not in over)
    assert all(size <= 2 * most for size in left.values())
    for name, count in Counter(one.queue_from for one in plan.overflow).items():
        assert left[name] == 2 * most, f"{count} go without, and not one more than has to"


@PLANS
@given(letters, limits)
def test_nothing_is_due_before_the_time_that_is_named(drawn: list[Letter], most: int) -> None:
    plan = plan_retention(drawn, spec(maxEntries=most), NOW)
    done = {one.uid for part in (plan.discard, plan.redrive, plan.expired, plan.trimmed) for one in part}
    left = [one for one in drawn if one.uid not in done and not one.deleting]
    if plan.next_at is None:
        assert not left
        return
    assert plan.next_at > NOW
    early = plan_retention(left, spec(maxEntries=most), plan.next_at - timedelta(microseconds=1))
    assert not early.expired
    if left and not plan.trimmed:
        assert plan_retention(left, spec(maxEntries=most), plan.next_at).expired


def test_a_letter_expires_at_its_very_time_and_one_that_waits_for_its_redrive_does_not() -> None:
    due, not_yet = a_letter(1, failed_at=NOW - DAY), a_letter(2, failed_at=NOW - DAY + timedelta(seconds=1))
    asked = a_letter(3, failed_at=NOW - 2 * DAY, action="redrive")
    handled = a_letter(4, failed_at=NOW - 2 * DAY, action="redrive", generation=2, observed_generation=2)
    plan = plan_retention([not_yet, due, asked, handled], spec(), NOW)
    assert plan.expired == (handled, due)
    assert plan.redrive == (asked,)
    assert plan.next_at == NOW + timedelta(seconds=1)


def test_a_letter_that_was_answered_is_tried_again_when_somebody_asks_anew() -> None:
    answered = {"phase": LetterPhase.NOT_NEEDED, "observed_generation": 2}
    same = a_letter(1, action="redrive", generation=2, **answered)
    taken_back = a_letter(2, generation=3, **answered)
    anew = a_letter(3, action="redrive", generation=4, **answered)
    assert plan_retention([same, taken_back, anew], spec(), NOW).redrive == (anew,)


def test_nothing_is_due_in_an_empty_queue() -> None:
    plan = plan_retention([], spec(), NOW)
    assert (plan.expired, plan.trimmed, plan.overflow, plan.next_at) == ((), (), (), None)


@PLANS
@given(letters)
def test_the_status_counts_what_is_there(drawn: list[Letter]) -> None:
    held = holdings(drawn)
    there = [one for one in drawn if not one.deleting]
    assert held.entries == len(there) == sum(size.entries for size in held.queues)
    assert held.oldest_since == min((one.failed_at for one in there), default=None)
    for size in held.queues:
        mine = [one.failed_at for one in there if one.queue_from == size.name]
        assert (size.entries, size.oldest_since) == (len(mine), min(mine))
    counted = Counter(one.fingerprint for one in there)
    assert {one.fingerprint: one.entries for one in held.fingerprints} == counted
    assert [one.entries for one in held.fingerprints] == sorted(counted.values(), reverse=True)
    assert holdings(reversed(drawn)) == held, "the order of the mirror does not matter"


def test_ten_causes_are_named_each_with_its_newest_message() -> None:
    many = [
        a_letter(
            kind * 100 + number, fingerprint=f"{kind:x}", error_message=f"{number}", failed_at=ago(hours=number + 1)
        )
        for kind in range(12)
        for number in range(kind + 1)
    ]
    held = holdings(many)
    assert [(one.fingerprint, one.entries) for one in held.fingerprints[:2]] == [("b", 12), ("a", 11)]
    assert len(held.fingerprints) == 10
    assert {one.error_message for one in held.fingerprints} == {"0"}


def a_queue(**changes: Any) -> QueueObject:
    return PolicyObject("uid", "ci", "dlq", 3, "1", spec(**changes), DeadLetterQueueStatus())


def test_the_status_says_whether_letters_get_into_the_archive() -> None:
    held = holdings([a_letter()])
    plain = queue_status(a_queue(), held, None, NOW)
    assert [(one.type, one.status) for one in plain.conditions] == [("Ready", "True")]
    assert plain.observed_generation == 3

    queue = a_queue(archive=Archive(folder="/archive"))
    assert find(queue_status(queue, held, None, NOW).conditions, "Archiving") is None, "not known yet"
    works = queue_status(queue, held, "", NOW)
    archiving = find(works.conditions, "Archiving")
    assert archiving is not None
    assert archiving.status == "True"
    fails = find(queue_status(queue, held, "x" * 2000, NOW).conditions, "Archiving")
    assert fails is not None
    assert (fails.status, fails.reason, len(fails.message)) == ("False", "ArchiveFailed", 1024)
    assert fails.message.endswith("at most 10 by queue name; above that the oldest go without")


def test_a_status_that_is_the_same_later_is_equal() -> None:
    queue = a_queue()
    held = holdings([a_letter()])
    first = queue_status(queue, held, None, NOW)
    later = queue_status(replace(queue, status=first), held, None, NOW + DAY)
    assert later == first


def test_ten_thousand_letters_are_looked_at_in_a_moment() -> None:
    many = [a_letter(n, failed_at=NOW - timedelta(seconds=n % 7919), fingerprint=f"{n % 97:x}") for n in range(10_001)]
    began = time.process_time()
    plan, held = plan_retention(many, spec(maxEntries=10_000), NOW), holdings(many)
    spent = time.process_time() - began
    assert len(plan.trimmed) == 1
    assert held.entries == 10_001
    # About 20 ms; a pass that grows with the square takes minutes.
    assert spent < 2.0
