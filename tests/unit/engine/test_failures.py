"""What a pool remembers of its failures: slow starts, poison, and what says nothing about the next VM."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from vmpool.api.pool import MAX_RECENT_FAILURES, Failure, VMPoolSpec, VMPoolStatus
from vmpool.engine.failures import Failures
from vmpool.plan.snapshot import PoolFacts, Reason
from vmpool.telemetry.metrics import Metrics

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SPEC = VMPoolSpec.model_validate({"template": {"image": "debian-12"}, "providers": [{"name": "east"}]})
POOL = PoolFacts("pool-uid", "ci", "debian", 1, SPEC, VMPoolStatus(template_digest="v1:new"))


def failure(number: int, **changes: Any) -> Failure:
    base = {"vm": f"vm-{number}", "provider": "east", "step": "create", "error_class": "InvalidTemplate"}
    base |= {"message": "no such image", "fingerprint": "aaaa", "failed_at": NOW + timedelta(seconds=number)}
    return Failure.model_validate(base | changes)


@pytest.fixture
def failures() -> Failures:
    return Failures(POOL)


WORLD: Any = SimpleNamespace(metrics=Metrics())


def test_the_same_failure_in_a_row_is_counted_and_a_success_ends_it(failures: Failures) -> None:
    for number in range(3):
        assert failures.add(WORLD, POOL, failure(number), digest="v1:new")
    assert failures.poison is not None
    assert failures.poison.failures == 3
    assert failures.creation is not None
    failures.succeeded(POOL)
    assert failures.poison is None


def test_one_failure_is_one_however_often_it_is_told(failures: Failures) -> None:
    assert failures.add(WORLD, POOL, failure(1), digest="v1:new")
    assert not failures.add(WORLD, POOL, failure(1), digest="v1:new")
    assert failures.add(WORLD, POOL, failure(1, attempt=2), digest="v1:new"), "a redriven VM may fail again"
    assert failures.poison is not None
    assert failures.poison.failures == 2


def test_what_an_older_template_fails_with_does_not_stop_the_present_one(failures: Failures) -> None:
    failures.template_is("v1:newer")
    for number in range(12):
        failures.add(WORLD, POOL, failure(number), digest="v1:new")
    assert failures.poison is None
    assert failures.creation is None
    assert len(failures.recent) == 10, "it is remembered all the same"


def test_having_waited_for_too_long_says_nothing_of_the_next_vm(failures: Failures) -> None:
    """After a long outage every pending VM is purged: creates must go on when the provider is back."""
    for number in range(12):
        old = failure(number, step="boot", error_class=Reason.PURGED_PENDING.value)
        failures.add(WORLD, POOL, old, digest="v1:new")
    assert failures.poison is None
    assert failures.creation is None
    assert failures.owed((), NOW), "its place is filled anew"


def test_what_another_leader_has_written_is_kept(failures: Failures) -> None:
    for number in (2, 5):
        failures.add(WORLD, POOL, failure(number), digest="v1:new")
    failures.learn([failure(4), failure(2)])
    assert [one.vm for one in failures.recent] == ["vm-5", "vm-4", "vm-2"]
    other = Failures(POOL)
    other.learn(failures.recent)
    other.learn([])
    assert other.recent == failures.recent
    failures.learn([failure(number) for number in range(10, 10 + MAX_RECENT_FAILURES)])
    assert [one.vm for one in failures.recent] == [f"vm-{number}" for number in range(9 + MAX_RECENT_FAILURES, 9, -1)]


def test_a_new_template_begins_with_a_clean_slate(failures: Failures) -> None:
    failures.add(WORLD, POOL, failure(1), digest="v1:new")
    assert failures.template_is("v1:newer")
    assert failures.poison is None
    assert not failures.template_is("v1:newer")
