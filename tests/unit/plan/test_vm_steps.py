"""The next step of one VM, phase by phase."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.worlds import (
    ADDRESS,
    BROKEN,
    GONE,
    NOW,
    PLANS,
    RUNNING,
    UNKNOWN_PHASE,
    ago,
    claim,
    down,
    pending,
    provider,
    soon,
    spec,
    vm,
)
from vmpool.api.pool import Readiness
from vmpool.plan.actions import (
    Complete,
    DestroyMachine,
    EndClaim,
    EnsureMachine,
    Forget,
    Look,
    MarkClaimed,
    MarkReady,
    Probe,
    TagMachine,
)
from vmpool.plan.lifecycle import Phase
from vmpool.plan.looks import LOOK_FIRST, LOOK_LONGEST
from vmpool.plan.snapshot import (
    NOTHING_SEEN,
    VM,
    ClaimRefFacts,
    Failed,
    Outlook,
    ProviderFacts,
    Reason,
    Sight,
    Step,
    StepFacts,
)
from vmpool.plan.vm import (
    BOUND_FIRST,
    ENDED_MACHINE_GONE,
    MISS_PAUSE,
    Next,
    machine_gone,
    next_step,
)

PLAIN: Readiness = spec(readiness={"timeout": "15m"}).readiness
PROBED: Readiness = spec(readiness={"timeout": "15m", "tcpSocket": {"port": 22}, "failureThreshold": 3}).readiness
TAGGED = replace(RUNNING, claim_tag="claim-1")
BOOTING = Sight(looked_at=ago(seconds=1), state="Creating")
MISSED = Sight(looked_at=ago(minutes=1), state="Running", addresses=ADDRESS, misses=1, missed_at=ago(seconds=2))


def step(
    one: VM,
    sight: Sight = NOTHING_SEEN,
    home: ProviderFacts | None = None,
    readiness: Readiness = PLAIN,
    now: datetime = NOW,
) -> Next:
    return next_step(one, sight, home or provider(), readiness, now)


def booting(**changes) -> VM:
    return pending("a", **({"machine_id": "m-a"} | changes))


# --- is it gone? --------------------------------------------------------------------------------------------------


def test_a_machine_is_gone_after_two_misses_and_a_later_listing_without_it() -> None:
    assert machine_gone(GONE, provider())


@pytest.mark.parametrize(
    ("sight", "home"),
    [
        pytest.param(replace(GONE, misses=1), provider(), id="missed only once"),
        pytest.param(replace(GONE, missed_at=None), provider(), id="nobody knows when it was missed"),
        pytest.param(replace(GONE, unlisted=False), provider(), id="the listing showed it"),
        pytest.param(GONE, provider(listed_at=None), id="never listed"),
        pytest.param(GONE, provider(listed_at=ago(seconds=31)), id="listing began before the last miss"),
        pytest.param(GONE, provider(listed_at=GONE.missed_at), id="listing began with the last miss"),
        pytest.param(GONE, down(), id="the provider cannot be reached"),
        pytest.param(GONE, down(reason="IdentityChanged"), id="it is another far side now"),
        pytest.param(Sight(unlisted=True), provider(), id="an empty listing alone"),
    ],
)
def test_each_missing_piece_leaves_it_unknown(sight: Sight, home: ProviderFacts) -> None:
    assert not machine_gone(sight, home)
    for one in (booting(), vm("r"), vm("c", Phase.CLAIMED), vm("done", Phase.COMPLETED)):
        found = step(one, sight, home)
        assert not isinstance(found.action, Forget | EndClaim | Complete)
        assert found.failed is None or found.failed.reason != Reason.MACHINE_GONE


def test_another_machine_with_its_token_ends_no_claim_and_no_object_but_is_not_handed_out() -> None:
    """It may be the same one under a new id, and somebody may work on it (design, section 2.5)."""
    seen = replace(GONE, namesake=True)
    claimed, done = vm("c", Phase.CLAIMED), vm("done", Phase.COMPLETED)
    assert step(claimed, seen).action is None
    assert step(claimed, seen).wake_at == claim().expires_at
    assert step(done, seen).action is None
    assert not step(done, seen).wants_listing, "every listing tells by itself"
    for one in (booting(), vm("r")):
        failed = step(one, seen).failed
        assert failed is not None
        assert failed.reason == Reason.MACHINE_GONE
    assert step(claimed, GONE).action == EndClaim(claimed, ENDED_MACHINE_GONE)
    assert step(done, GONE).action == Forget(done)


@pytest.mark.parametrize("one", [booting(), vm("r"), vm("c", Phase.CLAIMED)], ids=lambda one: one.phase)
def test_a_doubt_is_followed_up(one: VM) -> None:
    unlisted = replace(RUNNING, unlisted=True)
    if one.phase != Phase.PENDING:
        assert step(one, unlisted).action == Look(one)
        assert step(one, replace(MISSED, missed_at=NOW)).wake_at == NOW + MISS_PAUSE
    assert step(one, replace(MISSED, state="Creating")).action == Look(one)
    assert step(one, replace(MISSED, state="Creating", misses=2)).wants_listing


def test_waiting_for_a_listing_does_not_forget_what_else_is_due() -> None:
    missed = replace(MISSED, state="Creating", misses=2)
    assert step(vm("c", Phase.CLAIMED), missed).wake_at == claim().expires_at
    assert step(booting(created_at=ago(minutes=1)), missed).wake_at == soon(minutes=14)


# --- Pending ------------------------------------------------------------------------------------------------------


def test_a_new_vm_asks_for_its_machine() -> None:
    assert step(pending("a")).action == EnsureMachine(pending("a"))


def test_nothing_is_asked_of_a_provider_that_takes_no_creates() -> None:
    assert step(pending("a"), home=provider(usable=False)) == Next()


@pytest.mark.parametrize(("name", "adopt"), [(Step.CREATE, ""), (Step.ADOPT, "m-9")])
def test_a_failed_try_waits_for_its_time(name: Step, adopt: str) -> None:
    one = pending("a", adopt=adopt, steps=(StepFacts(name, next_at=soon(seconds=3)),))
    assert step(one) == Next(wake_at=soon(seconds=3))
    assert step(one, now=soon(seconds=3)).action == EnsureMachine(one)


def test_a_running_machine_with_an_address_is_ready() -> None:
    assert step(booting(), RUNNING).action == MarkReady(booting(), ADDRESS)


@pytest.mark.parametrize(
    "sight",
    [
        pytest.param(replace(RUNNING, addresses=()), id="no address"),
        pytest.param(BOOTING, id="not running"),
        pytest.param(replace(RUNNING, state="Stopped"), id="stopped"),
    ],
)
def test_anything_less_is_looked_at_again(sight: Sight) -> None:
    one = booting(created_at=ago(minutes=1))
    assert step(one, replace(sight, looked_at=ago(seconds=20))).action == Look(one)
    again = step(one, replace(sight, looked_at=NOW))
    assert again.action is None
    assert again.wake_at == NOW + LOOK_LONGEST


def test_a_probe_must_be_answered_first() -> None:
    one = booting()
    asked = replace(RUNNING, probed_at=None, probe_ok=False)
    assert step(one, asked, readiness=PROBED).action == Probe(one, ADDRESS[0], 22)
    assert step(one, replace(asked, probe_ok=True), readiness=PROBED).action == MarkReady(one, ADDRESS)


def test_a_failed_machine_fails_its_vm() -> None:
    assert step(booting(), BROKEN).failed == Failed(Step.BOOT, Reason.MACHINE_FAILED, "kernel panic")


def test_a_vanished_machine_fails_its_vm() -> None:
    failed = step(booting(), GONE).failed
    assert failed is not None
    assert (failed.reason, failed.message) == (Reason.MACHINE_GONE, "machine m-a is gone")


def test_the_verdict_on_a_step_is_taken_over() -> None:
    verdict = Failed(Step.CREATE, "InvalidTemplate", "no image debian-99")
    assert step(pending("a"), Sight(failure=verdict)).failed is verdict


@pytest.mark.parametrize(
    ("sight", "readiness", "why"),
    [
        (replace(BOOTING, looked_at=NOW), PLAIN, "the machine is Creating, not Running"),
        (replace(RUNNING, addresses=(), looked_at=NOW), PLAIN, "the machine runs but has no address"),
        (replace(RUNNING, probe_ok=False, probed_at=NOW), PROBED, "nothing answered on TCP port 22 of 10.0.0.1"),
    ],
)
def test_the_timeout_says_what_was_waited_for(sight: Sight, readiness: Readiness, why: str) -> None:
    one = booting(created_at=ago(minutes=15))
    failed = step(one, sight, readiness=readiness).failed
    assert failed == Failed(Step.BOOT, Reason.PENDING_TIMEOUT, f"not ready within 900 s: {why}")


@pytest.mark.parametrize(
    ("sight", "readiness", "kind"),
    [
        (NOTHING_SEEN, PLAIN, Look),
        (replace(BOOTING, looked_at=ago(minutes=5)), PLAIN, Look),
        (replace(RUNNING, probe_ok=False, probed_at=None, looked_at=NOW), PROBED, Probe),
        (replace(RUNNING, probe_ok=False, probed_at=ago(minutes=5), looked_at=NOW), PROBED, Probe),
    ],
)
def test_the_timeout_is_judged_by_a_look_after_it_only(sight: Sight, readiness: Readiness, kind: type) -> None:
    """After an outage or a restart what is remembered is too old to give a machine up for."""
    found = step(booting(created_at=ago(minutes=16)), sight, readiness=readiness)
    assert found.failed is None
    assert isinstance(found.action, kind)


def test_the_timeout_also_speaks_of_an_address_known_from_before() -> None:
    one = booting(created_at=ago(minutes=15), addresses=("10.0.0.7",))
    failed = step(one, Sight(state="Running", looked_at=NOW, probed_at=NOW), readiness=PROBED).failed
    assert failed is not None
    assert "10.0.0.7" in failed.message


def test_the_timeout_begins_with_the_first_try() -> None:
    one = booting(created_at=ago(hours=2), steps=(StepFacts(Step.CREATE, ago(minutes=14)),))
    assert step(one, replace(BOOTING, looked_at=NOW)).failed is None
    assert step(one, replace(BOOTING, looked_at=soon(minutes=1)), now=soon(minutes=1)).failed is not None


@pytest.mark.parametrize("home", [down(), down(reason="IdentityChanged", stalled=True)], ids=lambda home: home.reason)
def test_an_unreachable_provider_stops_the_clock_of_its_vms(home: ProviderFacts) -> None:
    for one in (booting(created_at=ago(days=9)), vm("r"), vm("d", Phase.COMPLETED)):
        for sight in (NOTHING_SEEN, BROKEN, GONE, replace(RUNNING, probe_failures=99)):
            assert step(one, sight, home, PROBED) == Next()


@PLANS
@given(st.integers(0, 10**6), st.integers(0, 10**5))
def test_one_look_needs_one_wake(waited: int, since_look: int) -> None:
    """At the moment that was named the look is due; it does not recede as time passes."""
    one = booting(created_at=ago(milliseconds=waited))
    last = max(one.created_at, ago(milliseconds=since_look))
    patient, sight = spec(readiness={"timeout": "24h"}).readiness, replace(BOOTING, looked_at=last)
    found = step(one, sight, readiness=patient)
    if found.action is None:
        assert found.wake_at is not None
        assert step(one, sight, readiness=patient, now=found.wake_at).action == Look(one)


def test_looks_follow_what_booting_has_taken_lately() -> None:
    """With a boot that should take 60 s, a machine that has booted for 58 s is looked at when it should be done."""
    one = vm("p", Phase.PENDING, created_at=ago(seconds=58), machine_id="m", steps=())
    sight = replace(BOOTING, looked_at=NOW)
    outlook = Outlook(expected={(one.provider, Step.BOOT): timedelta(seconds=60)})
    assert next_step(one, sight, provider(), PLAIN, NOW, outlook) == Next(wake_at=soon(seconds=2))
    assert step(one, sight) == Next(wake_at=NOW + LOOK_LONGEST)


def test_deletions_are_looked_at_when_they_should_be_done() -> None:
    gone = vm("d", Phase.COMPLETED)
    sight = replace(RUNNING, state="Deleting", looked_at=NOW, deletion_asked_at=NOW)
    outlook = Outlook(expected={(gone.provider, Step.DESTROY): timedelta(seconds=3)})
    assert next_step(gone, sight, provider(), PLAIN, NOW, outlook) == Next(wake_at=soon(seconds=3))
    assert step(gone, sight) == Next(wake_at=NOW + LOOK_FIRST)


# --- Ready --------------------------------------------------------------------------------------------------------


def test_a_ready_vm_without_a_probe_is_left_alone() -> None:
    assert step(vm("r"), RUNNING) == Next()


@pytest.mark.parametrize("state", ["Failed", "Stopped"])
def test_a_ready_machine_that_no_longer_runs_has_failed(state: str) -> None:
    failed = step(vm("r"), Sight(looked_at=NOW, state=state)).failed
    assert failed == Failed(Step.PROBE, Reason.MACHINE_FAILED, f"the machine is {state}")


def test_a_changed_address_is_written() -> None:
    moved = replace(RUNNING, addresses=("10.0.0.9",))
    assert step(vm("r"), moved).action == MarkReady(vm("r"), ("10.0.0.9",))
    assert step(vm("r"), replace(RUNNING, addresses=())) == Next()


def test_that_ready_vms_answer_is_not_for_the_plan_to_ask() -> None:
    assert step(vm("r"), replace(RUNNING, probed_at=ago(days=1)), readiness=PROBED) == Next()


def test_a_vm_is_given_up_at_the_failure_threshold() -> None:
    assert step(vm("r"), replace(RUNNING, probe_ok=False, probe_failures=2), readiness=PROBED).failed is None
    failed = step(vm("r"), replace(RUNNING, probe_ok=False, probe_failures=3), readiness=PROBED).failed
    assert failed is not None
    assert failed.reason == Reason.NOT_ANSWERING
    assert failed.message == "3 probes in a row of TCP port 22 at 10.0.0.1 were not answered"


# --- claims -------------------------------------------------------------------------------------------------------


def test_a_claim_makes_a_ready_vm_claimed_whatever_else_is_known() -> None:
    for sight in (NOTHING_SEEN, BROKEN, GONE):
        taken = vm("r", claim=claim(), deleting=True)
        assert step(taken, sight).action == MarkClaimed(taken)


def test_the_phase_of_a_vm_bound_for_a_vmclaim_leaves_the_first_word_to_the_vmclaim() -> None:
    ref = ClaimRefFacts("ci", "mine", "uid-of-claim", "uid-of-kind")
    taken = vm("r", claim=claim(ref=ref, bound_at=NOW))
    assert step(taken) == Next(wake_at=NOW + BOUND_FIRST)
    assert step(taken, now=NOW + BOUND_FIRST).action == MarkClaimed(taken)
    assert step(vm("r", claim=claim(bound_at=NOW))).action == MarkClaimed(vm("r", claim=claim(bound_at=NOW)))


def test_a_claim_runs_to_its_end() -> None:
    mine = vm("c", Phase.CLAIMED)
    assert step(mine, TAGGED) == Next(wake_at=claim().expires_at)
    assert step(mine, TAGGED, now=claim().expires_at).action == EndClaim(mine, "Expired")
    assert step(mine, GONE).action == EndClaim(mine, "MachineGone")


def test_a_claimed_machine_that_was_seen_without_its_tag_gets_it() -> None:
    mine = vm("c", Phase.CLAIMED)
    assert step(mine, RUNNING) == Next(TagMachine(mine), wake_at=claim().expires_at)
    assert step(mine, replace(RUNNING, claim_tag="of-another-life")).action == TagMachine(mine)
    assert step(mine, NOTHING_SEEN).action is None, "a restart tags nothing that it has not seen"
    assert step(mine, RUNNING, provider(usable=False, reachable=False)).action is None
    ended = vm("c", Phase.CLAIMED, claim=claim(released_at=NOW))
    assert isinstance(step(ended, RUNNING).action, Complete)


def test_a_tag_that_could_not_be_put_is_tried_again_later() -> None:
    mine, again = vm("c", Phase.CLAIMED), soon(minutes=1)
    assert step(mine, replace(RUNNING, tag_at=again)) == Next(wake_at=again)
    assert step(mine, replace(RUNNING, tag_at=again), now=again).action == TagMachine(mine)


@pytest.mark.parametrize(
    "sight",
    [replace(BROKEN, claim_tag="claim-1"), replace(TAGGED, state="Stopped"), replace(TAGGED, probe_failures=99)],
)
def test_a_sick_machine_keeps_its_claim(sight: Sight) -> None:
    assert step(vm("c", Phase.CLAIMED, deleting=True), sight, readiness=PROBED).action is None


@pytest.mark.parametrize("phase", [Phase.READY, Phase.CLAIMED])
def test_a_released_vm_is_completed(phase: Phase) -> None:
    action = step(vm("c", phase, claim=claim(released_at=NOW))).action
    assert isinstance(action, Complete)
    assert (action.reason, action.message) == (Reason.CLAIM_ENDED, "the claim of alice has ended (Released)")


# --- the way out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.READY, Phase.QUARANTINED])
def test_a_deleted_object_is_completed_first(phase: Phase) -> None:
    action = step(vm("d", phase, deleting=True)).action
    assert isinstance(action, Complete)
    assert action.reason == Reason.DELETED


def test_quarantine_ends_in_time() -> None:
    kept = vm("q", Phase.QUARANTINED, expires_at=soon(minutes=1))
    assert step(kept) == Next(wake_at=soon(minutes=1))
    action = step(kept, now=soon(minutes=1)).action
    assert isinstance(action, Complete)
    assert action.reason == Reason.QUARANTINE_ENDED


def test_a_phase_of_a_newer_release_is_left_alone() -> None:
    assert step(vm("x", UNKNOWN_PHASE), BROKEN) == Next()


def test_destroy_until_missed_twice_then_list_then_forget() -> None:
    done = vm("d", Phase.COMPLETED)
    assert step(done).action == DestroyMachine(done)
    started = Sight(looked_at=NOW, state="Deleting", deletion_asked_at=NOW)
    assert step(done, started) == Next(wake_at=NOW + LOOK_FIRST)
    assert step(done, started, now=NOW + LOOK_FIRST).action == DestroyMachine(done)
    once = Sight(misses=1, missed_at=NOW)
    assert step(done, once) == Next(wake_at=NOW + MISS_PAUSE)
    assert step(done, once, now=NOW + MISS_PAUSE).action == DestroyMachine(done)
    assert step(done, Sight(misses=2, missed_at=NOW)) == Next(wants_listing=True)
    assert step(done, GONE).action == Forget(done)


def test_the_pause_of_a_long_deletion_counts_from_its_beginning() -> None:
    """Not from the end of the VM: it may have waited for its provider for days."""
    done = vm("d", Phase.COMPLETED, phase_since=ago(days=2))
    begun = Sight(looked_at=NOW, state="Deleting", deletion_asked_at=ago(seconds=10))
    assert step(done, begun) == Next(wake_at=soon(seconds=2))


def test_a_failed_deletion_waits_for_its_time() -> None:
    done = vm("d", Phase.COMPLETED, steps=(StepFacts(Step.DESTROY, next_at=soon(seconds=9)),))
    assert step(done) == Next(wake_at=soon(seconds=9))
    assert step(done, now=soon(seconds=9)).action == DestroyMachine(done)


def test_an_object_that_lost_our_finalizer_is_still_cleaned_up_after() -> None:
    """Somebody took the finalizer off: while the object is there, its machine is ours to destroy."""
    stripped = vm("d", Phase.COMPLETED, held=False)
    assert step(stripped).action == DestroyMachine(stripped)
    assert step(stripped, GONE).action == Forget(stripped)
    assert step(replace(stripped, deleting=True)) == Next()
