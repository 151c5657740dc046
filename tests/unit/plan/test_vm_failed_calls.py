"""What becomes of a call that failed: another try, a verdict, or neither where the VM is not to blame."""

from datetime import timedelta

import pytest

from tests.unit.plan.worlds import NOW, ago, pending, provider, soon, spec, vm
from vmpool.api.pool import Readiness, Retry
from vmpool.plan.lifecycle import Phase
from vmpool.plan.snapshot import VM, Failed, Sight, Step, StepFacts
from vmpool.plan.vm import CallError, Next, after_error, next_step

RETRY: Retry = spec(retry={"attempts": 3, "backoff": "2s", "maxBackoff": "10s"}).retry
TRY_LATER = CallError("Unavailable", "no answer")


def tried(times: int, name: Step = Step.CREATE) -> VM:
    return pending("a", steps=(StepFacts(name, ago(minutes=1), retries=times),))


def test_a_failed_call_is_tried_again_until_the_attempts_are_used_up() -> None:
    first = after_error(pending("a"), Step.CREATE, TRY_LATER, RETRY, NOW)
    assert isinstance(first, StepFacts)
    assert (first.retries, first.started_at, first.reason, first.message) == (1, NOW, "Unavailable", "no answer")
    assert first.next_at is not None
    assert timedelta(seconds=1.6) <= first.next_at - NOW <= timedelta(seconds=2)
    second = after_error(tried(1), Step.CREATE, TRY_LATER, RETRY, NOW)
    assert isinstance(second, StepFacts)
    assert second.started_at == ago(minutes=1)
    assert after_error(tried(2), Step.CREATE, TRY_LATER, RETRY, NOW) == Failed(
        Step.CREATE, "Unavailable", "no answer (3 tries)"
    )


def test_a_terminal_error_is_not_tried_again() -> None:
    error = CallError("InvalidTemplate", "no such image", terminal=True)
    assert after_error(pending("a"), Step.CREATE, error, RETRY, NOW) == Failed(
        Step.CREATE, "InvalidTemplate", "no such image"
    )


@pytest.mark.parametrize("before", [0, 2, 3, 9])
def test_a_failure_of_the_provider_costs_the_vm_nothing(before: int) -> None:
    error = CallError("ProviderThrottled", "slow down", blames_vm=False, retry_after=timedelta(minutes=3))
    found = after_error(tried(before), Step.CREATE, error, RETRY, NOW)
    assert isinstance(found, StepFacts)
    assert (found.retries, found.next_at) == (before, soon(minutes=3))


def test_a_refusal_is_borne_for_so_long_and_judged_by_one_that_comes_after_it() -> None:
    def after(waited: timedelta, patience: timedelta | None) -> StepFacts | Failed:
        error = CallError("CredentialsRefused", "HTTP 403", blames_vm=False, patience=patience)
        there = vm("p", steps=(StepFacts(Step.CREATE, started_at=NOW - waited),))
        return after_error(there, Step.CREATE, error, RETRY, NOW)

    minutes = timedelta(minutes=15)
    early = after(minutes - timedelta(seconds=1), minutes)
    assert isinstance(early, StepFacts)
    assert early.failed_at == NOW
    assert after(minutes, minutes) == Failed(Step.CREATE, "CredentialsRefused", "HTTP 403 (for 900 s)")
    assert isinstance(after(timedelta(days=9), None), StepFacts), "without a queue it waits until it may be made"


@pytest.mark.parametrize(
    "error", [TRY_LATER, CallError("Terminal", "no", terminal=True), CallError("Throttled", "wait", blames_vm=False)]
)
def test_destroying_is_never_given_up(error: CallError) -> None:
    found = after_error(tried(99, Step.DESTROY), Step.DESTROY, error, RETRY, NOW)
    assert isinstance(found, StepFacts)
    assert found.retries == 100
    assert found.next_at is not None
    assert found.next_at - NOW <= RETRY.max_backoff


def test_a_destroy_that_was_put_off_waits_also_after_it_was_not_found_once() -> None:
    done = vm("d", Phase.COMPLETED, steps=(StepFacts(Step.DESTROY, next_at=soon(seconds=9)),))
    assert next_step(done, Sight(misses=1, missed_at=ago(minutes=1)), provider(), Readiness(), NOW) == Next(
        wake_at=soon(seconds=9)
    )


def test_the_pause_after_a_blameless_failure_grows_with_the_time_waited_and_costs_no_attempt() -> None:
    full = CallError("ProviderExhausted", "quota", blames_vm=False)
    long_ago = vm("p", steps=(StepFacts(Step.CREATE, started_at=ago(minutes=2)),))
    entry = after_error(long_ago, Step.CREATE, full, Retry(), NOW)
    assert isinstance(entry, StepFacts)
    assert entry.retries == 0
    assert entry.next_at == soon(minutes=1)
    ages_ago = vm("p", steps=(StepFacts(Step.CREATE, started_at=ago(days=2)),))
    entry = after_error(ages_ago, Step.CREATE, full, Retry(), NOW)
    assert isinstance(entry, StepFacts)
    assert entry.next_at == NOW + Retry().max_backoff
