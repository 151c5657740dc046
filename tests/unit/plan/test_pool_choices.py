"""How many VMs are made or given up, which ones, and where."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.worlds import (
    BROKEN,
    EAST,
    NOW,
    PLANS,
    WEST,
    claim,
    creation,
    down,
    names,
    of_kind,
    pending,
    pool,
    provider,
    snapshot,
    soon,
    spec,
    vm,
)
from vmpool.api.pool import VMPoolStatus
from vmpool.plan.actions import (
    Complete,
    CreateVM,
)
from vmpool.plan.lifecycle import Phase
from vmpool.plan.pool import desired, plan_pool
from vmpool.plan.snapshot import VM, Reason, Sight


def test_absent_replicas_hold_what_was_wanted_last() -> None:
    held = pool(spec(replicas=None), status=VMPoolStatus(desired_replicas=4))
    assert desired(snapshot(pool=held)) == 4
    assert len(of_kind(plan_pool(snapshot(pool=held), NOW), CreateVM)) == 4


def test_absent_replicas_of_a_new_pool_are_none() -> None:
    plan = plan_pool(snapshot(of=spec(replicas=None)), NOW)
    assert plan.actions == ()
    assert plan.counts.desired == 0


def test_weights_wait_for_a_provider_that_was_not_looked_at_yet() -> None:
    """After a start the first answer must not decide where all machines go; one that is down does not hold others."""
    shares = [{"name": EAST, "weight": 3}, {"name": WEST, "weight": 1}]
    unseen = replace(provider(EAST), usable=False, reachable=False, settling=True)
    seen = snapshot(of=spec(replicas=4, providers=shares), providers={EAST: unseen, WEST: provider(WEST)})
    plan = plan_pool(seen, NOW)
    assert plan.actions == ()
    assert EAST in plan.held_back
    looked = replace(seen, providers={EAST: replace(unseen, settling=False), WEST: provider(WEST)})
    assert [action.provider for action in of_kind(plan_pool(looked, NOW), CreateVM)] == [WEST] * 4


def test_surplus_goes_in_order_of_time_to_usable() -> None:
    seen = snapshot(
        vm("ready-old", phase_since=soon(minutes=-50)),
        vm("ready-new", phase_since=soon(minutes=-5)),
        pending("pending-old", created_at=soon(minutes=-9)),
        pending("pending-new", created_at=soon(minutes=-1)),
        of=spec(replicas=0, limits={"deletes": 100}),
    )
    assert names(of_kind(plan_pool(seen, NOW), Complete)) == ["pending-new", "pending-old", "ready-old", "ready-new"]


@pytest.mark.parametrize("wanted", range(5))
def test_surplus_takes_exactly_what_is_too_many(wanted: int) -> None:
    seen = snapshot(*(vm(f"r{number}") for number in range(4)), of=spec(replicas=wanted))
    assert len(of_kind(plan_pool(seen, NOW), Complete)) == max(0, 4 - wanted)


def test_waiting_claims_are_wanted_on_top() -> None:
    assert len(of_kind(plan_pool(snapshot(waiting=2), NOW), CreateVM)) == 5


@PLANS
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 60))
def test_shares_follow_the_weights_within_one(east: int, west: int, replicas: int) -> None:
    of = spec(replicas=replicas, providers=[{"name": EAST, "weight": east}, {"name": WEST, "weight": west}])
    made = Counter(create.provider for create in of_kind(plan_pool(snapshot(of=of), NOW), CreateVM))
    assert made[EAST] + made[WEST] == replicas
    assert abs(made[EAST] - replicas * east / (east + west)) <= 1


def test_what_is_there_counts_into_the_shares() -> None:
    of = spec(replicas=4, providers=[{"name": EAST}, {"name": WEST}])
    seen = snapshot(vm("a"), vm("b"), of=of)
    assert [create.provider for create in of_kind(plan_pool(seen, NOW), CreateVM)] == [WEST, WEST]


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param({WEST: down(WEST)}, id="cannot be reached"),
        pytest.param({WEST: provider(WEST, usable=False)}, id="takes no creates"),
        pytest.param({WEST: provider(WEST, room=0)}, id="is full"),
        pytest.param({}, id="does not exist"),
    ],
)
def test_the_share_of_a_provider_in_trouble_goes_to_the_others(trouble: dict) -> None:
    of = spec(replicas=4, providers=[{"name": EAST}, {"name": WEST, "weight": 3}])
    plan = plan_pool(snapshot(of=of, providers={EAST: provider()} | trouble), NOW)
    assert [create.provider for create in of_kind(plan, CreateVM)] == [EAST] * 4


def test_weight_0_gets_none() -> None:
    of = spec(replicas=4, providers=[{"name": EAST, "weight": 0}, {"name": WEST}])
    assert {create.provider for create in of_kind(plan_pool(snapshot(of=of), NOW), CreateVM)} == {WEST}


def test_owed_work_goes_on_first_with_one_more_try() -> None:
    seen = snapshot(of=spec(replicas=2), owed=(("req-7", 2),))
    first, second = of_kind(plan_pool(seen, NOW), CreateVM)
    assert (first.request_id, first.retry_count) == ("req-7", 3)
    assert (second.request_id, second.retry_count) == ("", 0)


def test_what_hangs_at_an_unreachable_provider_does_not_stop_creation_elsewhere() -> None:
    """A slow start lets one VM at a time through; a failed one that cannot be destroyed must not be it for ever."""
    of = spec(providers=[{"name": EAST}, {"name": WEST}])
    failed = vm("failed", Phase.COMPLETED, reason="CreateFailed", provider=WEST)
    seen = snapshot(failed, of=of, providers={EAST: provider(), WEST: down(WEST)}, creation=creation(1, 1, -1))
    assert [create.provider for create in of_kind(plan_pool(seen, NOW), CreateVM)] == [EAST]
    reachable = replace(seen, providers={EAST: provider(), WEST: provider(WEST)})
    assert not of_kind(plan_pool(reachable, NOW), CreateVM)


def test_machines_of_a_provider_that_is_being_deleted_are_drained() -> None:
    going = provider(WEST, usable=False, deleting=True)
    seen = snapshot(
        vm("ready", provider=WEST),
        vm("claimed", Phase.CLAIMED, provider=WEST, claim=claim()),
        vm("kept", Phase.QUARANTINED, provider=WEST),
        vm("elsewhere"),
        of=spec(providers=[{"name": EAST}, {"name": WEST}]),
        providers={EAST: provider(), WEST: going},
    )
    ends = of_kind(plan_pool(seen, NOW), Complete)
    assert sorted(names(ends)) == ["kept", "ready"]
    assert {end.reason for end in ends} == {Reason.PROVIDER_DELETED}


def test_a_provider_gets_no_more_than_it_has_room_for() -> None:
    of = spec(replicas=6, providers=[{"name": EAST}, {"name": WEST}])
    plan = plan_pool(snapshot(of=of, providers={EAST: provider(room=2), WEST: provider(WEST, room=1)}), NOW)
    assert Counter(create.provider for create in of_kind(plan, CreateVM)) == {EAST: 2, WEST: 1}
    assert plan.held_back == "every provider is full (VMProvider limits.machines) or has weight 0"


# --- who counts as usable -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(vm("x", claim=claim()), id="claimed"),
        pytest.param(vm("x", claim=claim(released_at=NOW)), id="released"),
        pytest.param(vm("x", deleting=True), id="deleted"),
        pytest.param(vm("x", Phase.QUARANTINED), id="in quarantine"),
        pytest.param(vm("x", Phase.COMPLETED), id="completed"),
    ],
)
def test_what_cannot_be_handed_out_is_made_up_for(one: VM) -> None:
    plan = plan_pool(snapshot(one, vm("a"), vm("b")), NOW)
    assert len(of_kind(plan, CreateVM)) == 1
    assert plan.counts.deficit == 1


def test_a_failing_vm_keeps_its_place_until_its_failure_is_written() -> None:
    """Its successor then goes on with its request id."""
    seen = snapshot(vm("a"), vm("b"), vm("bad"), sights={"uid-bad": BROKEN})
    assert names(plan_pool(seen, NOW).actions) == ["bad"]


def test_creates_in_flight_count_as_usable() -> None:
    assert len(of_kind(plan_pool(snapshot(creating=(EAST, EAST)), NOW), CreateVM)) == 1


def test_waiting_claims_keep_what_would_be_too_many() -> None:
    assert plan_pool(snapshot(*(vm(f"r{n}") for n in range(5)), waiting=2), NOW).actions == ()


@pytest.mark.parametrize("deleting", [False, True])
def test_a_listing_is_asked_for_where_one_is_waited_for(deleting: bool) -> None:
    gone = vm("gone", Phase.COMPLETED, provider=WEST)
    of = spec(replicas=0, providers=[{"name": EAST}, {"name": WEST}])
    missed = {gone.uid: Sight(misses=2, missed_at=NOW)}
    assert plan_pool(snapshot(gone, pool=pool(of, deleting=deleting), sights=missed), NOW).wants_listing == {WEST}
