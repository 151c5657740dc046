"""What a purge policy finds too old, and that the pool ends exactly that: nothing else, and nothing less."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.worlds import (
    BROKEN,
    EAST,
    NOW,
    PLANS,
    STORIES,
    WEST,
    ago,
    claim,
    down,
    names,
    of_kind,
    pool,
    provider,
    snapshot,
    snapshots,
    soon,
    spec,
    vm,
)
from vmpool.api.conditions import ConditionType, find
from vmpool.api.purge import MAX_PURGED_LISTED, PurgePolicySpec
from vmpool.plan import purge
from vmpool.plan.actions import Complete, CreateVM, DestroyMachine, Quarantine
from vmpool.plan.lifecycle import Phase
from vmpool.plan.pool import plan_pool
from vmpool.plan.purge import Found, Group, Stale, State, look
from vmpool.plan.snapshot import NOTHING_SEEN, VM, PoolSnapshot, Purge, Reason, Sight, Step, StepFacts
from vmpool.plan.sweep import next_of_orphan

POLICY = "tidy"
PURGES = (Reason.PURGED, Reason.PURGED_PENDING)


def rules(**changes: Any) -> PurgePolicySpec:
    return PurgePolicySpec.model_validate(changes)


def stuck(name: str, phase: str = Phase.READY, **changes: Any) -> VM:
    """A VM that has been in its phase for two days."""
    return vm(name, phase, **({"phase_since": ago(days=2), "created_at": ago(days=3)} | changes))


def found(*vms: VM, of: PurgePolicySpec | None = None, now: datetime = NOW, **group: Any) -> Found:
    return look([Group(vms, **group)], of or rules(), now)


def due(*vms: VM, **how: Any) -> list[str]:
    return [one.vm.name for one in found(*vms, **how).due]


def orders_of(seen: Found) -> dict[str, Purge]:
    return {one.vm.uid: one.order(POLICY, NOW) for one in seen.due}


# --- the same for a dry run and a live one ------------------------------------------------------------------------

ages = st.integers(1, 3600).map(lambda seconds: timedelta(seconds=seconds))
specs = st.builds(
    PurgePolicySpec,
    max_pending_age=ages,
    max_ready_age=ages,
    max_completed_age=ages,
    max_orphaned_age=ages,
    max_per_cycle=st.integers(1, 12),
)


def exempted(draw: st.DrawFn, vms: Sequence[VM]) -> tuple[VM, ...]:
    return tuple(replace(one, purge_exempt=draw(st.sampled_from([False, False, False, True]))) for one in vms)


@st.composite
def idle_pools(draw: st.DrawFn) -> PoolSnapshot:
    """Any pool that names the policy, has nothing in flight and may be without a ready VM for a while.

    How much a round may end is not the subject here.
    """
    seen = draw(snapshots())
    of = seen.pool.spec
    of = of.model_copy(
        update={
            "purge_policy": POLICY,
            "limits": of.limits.model_copy(update={"deletes": 100}),
            "update": of.update.model_copy(update={"max_unavailable": "100%"}),
        }
    )
    return replace(
        seen,
        pool=replace(seen.pool, spec=of, deleting=False),
        vms=exempted(draw, seen.vms),
        busy=frozenset(),
    )


def group_of(seen: PoolSnapshot) -> Group:
    homes = {one.provider for one in seen.vms}
    cut_off = {name for name in homes if name not in seen.providers or not seen.providers[name].reachable}
    paused = "spec.paused is true" if seen.pool.spec.paused else ""
    return Group(seen.vms, paused=paused, unreachable=frozenset(cut_off))


@STORIES
@given(idle_pools(), specs)
def test_what_a_dry_run_lists_is_what_the_pool_ends_and_begins_anew(seen: PoolSnapshot, of: PurgePolicySpec) -> None:
    listed = look([group_of(seen)], of, NOW)
    plan = plan_pool(replace(seen, purges=orders_of(listed)), NOW)
    ended = {action.vm.uid for action in of_kind(plan, Complete) if action.reason in PURGES}
    wanted = {one.vm.uid for one in listed.due if one.state is not State.COMPLETED}
    assert ended <= wanted
    # What is ended anyway, as broken or with its provider, keeps that reason.
    assert wanted <= {action.vm.uid for kind in (Complete, Quarantine) for action in of_kind(plan, kind)}
    late = {one.vm.uid for one in listed.due if one.state is State.COMPLETED}
    assert late <= {action.vm.uid for action in of_kind(plan, DestroyMachine)} | asked_since(seen, listed)
    for action in of_kind(plan, Complete):
        if action.reason in PURGES:
            assert action.vm.claim is None
            assert not action.vm.purge_exempt
            assert bool(action.step) == (action.vm.phase == Phase.PENDING), "only a pending one has failed"


def asked_since(seen: PoolSnapshot, listed: Found) -> set[str]:
    """What a drawn sight says was asked to go in this very second: nothing is left to begin."""
    orders = orders_of(listed)
    late = [one.vm for one in listed.due if one.state is State.COMPLETED]
    return {one.uid for one in late if purge.begun_anew(one, seen.sight(one), orders[one.uid])}


@STORIES
@given(idle_pools(), specs)
def test_the_counts_add_up_and_the_oldest_come_first_within_the_budget(seen: PoolSnapshot, of: PurgePolicySpec) -> None:
    listed = look([group_of(seen)], of, NOW)
    late = [one for one in listed.due if one.state is State.COMPLETED]
    assert max(len(late), len(listed.due) - len(late)) <= of.max_per_cycle
    assert listed.deferred == 0 or len(listed.due) >= of.max_per_cycle
    ages = [one.age for one in listed.due]
    assert ages == sorted(ages, reverse=True)
    every = [one for one in seen.vms if purge.stale(one, of, NOW) is not None]
    assert listed.total == len(every)
    assert {one.vm.uid for one in (*listed.due, *listed.kept)} <= {one.uid for one in every}
    assert not any(one.claimed for one in every)


@PLANS
@given(st.data(), specs, st.integers(0, 7200), st.booleans(), st.booleans(), st.booleans())
def test_the_sweep_ends_the_orphans_that_a_dry_run_lists(
    data: st.DataObject, of: PurgePolicySpec, age: int, exempt: bool, deleting: bool, claimed: bool
) -> None:
    phase = data.draw(st.sampled_from([Phase.QUARANTINED, Phase.PENDING, Phase.COMPLETED]))
    since = ago(seconds=age)
    one = vm("stray", phase, phase_since=since, created_at=ago(days=1), purge_exempt=exempt, deleting=deleting)
    if claimed and phase == Phase.QUARANTINED:
        one = replace(one, claim=claim())
    listed = found(one, of=of, orphans=True)
    step = next_of_orphan(
        one,
        NOTHING_SEEN,
        provider(EAST),
        NOW,
        straggler_ttl=of.max_orphaned_age,
        governed=True,
        order=orders_of(listed).get(one.uid),
    )
    ended = isinstance(step.action, Complete) and step.action.reason == Reason.PURGED
    assert ended == bool(listed.due)


# --- what is too old ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "limit", "state"),
    [
        (stuck("a", Phase.PENDING), 7200, State.PENDING),
        (stuck("a", Phase.READY), 86400, State.READY),
        (stuck("a", Phase.COMPLETED), 3600, State.COMPLETED),
    ],
)
def test_each_state_has_the_limit_of_the_guide_and_the_limit_itself_is_not_too_old(
    one: VM, limit: int, state: State
) -> None:
    at = NOW - timedelta(seconds=limit)
    assert not found(replace(one, phase_since=at)).total
    (seen,) = found(replace(one, phase_since=at - timedelta(seconds=1))).due
    assert (seen.state, seen.seconds, seen.most) == (state, limit + 1, limit)


def test_an_orphan_counts_from_its_quarantine_and_nothing_else_of_it_counts() -> None:
    one = stuck("stray", Phase.QUARANTINED)
    (seen,) = found(one, orphans=True).due
    assert (seen.state, seen.seconds, seen.most) == (State.ORPHANED, 172800, 86400)
    assert not due(one)
    assert not due(stuck("stray", Phase.PENDING), orphans=True)
    assert not due(stuck("stray", Phase.COMPLETED), orphans=True)


def test_what_a_claim_left_behind_is_begun_anew_but_what_has_a_claim_is_not_even_looked_at() -> None:
    over = claim(released_at=ago(days=2))
    assert due(stuck("done", Phase.COMPLETED, claim=over)) == ["done"]
    for one in (
        stuck("had", Phase.CLAIMED),
        stuck("taken", Phase.READY, claim=claim()),
        stuck("going", Phase.READY, claim=over),
        stuck("odd", Phase.COMPLETED, claim=claim()),
    ):
        assert not found(one).total


def test_what_is_being_deleted_is_on_its_way_already() -> None:
    assert not found(stuck("a", deleting=True), stuck("b", Phase.COMPLETED, deleting=True, held=False)).total
    assert due(stuck("c", Phase.COMPLETED, deleting=True)) == ["c"], "held until its machine is gone"


def test_exempt_and_paused_ones_are_counted_as_kept_and_cost_no_budget() -> None:
    old, spared = stuck("old"), stuck("spared", purge_exempt=True, phase_since=ago(days=3))
    groups = [Group((old, spared)), Group((stuck("other"),), paused="spec.paused is true")]
    seen = look(groups, rules(maxPerCycle=1), NOW)
    assert [one.vm.name for one in seen.due] == ["old"]
    assert {one.vm.name for one in seen.kept} == {"spared", "other"}
    assert (seen.deferred, seen.total) == (0, 3)


def test_the_oldest_go_first_and_the_rest_waits() -> None:
    vms = [stuck(f"vm-{days}", phase_since=ago(days=days)) for days in (2, 5, 3, 4)]
    assert due(*vms, of=rules(maxPerCycle=3)) == ["vm-5", "vm-4", "vm-3"]
    assert found(*vms, of=rules(maxPerCycle=3)).deferred == 1


def test_in_an_outage_the_stock_is_kept_and_only_what_is_stuck_is_told() -> None:
    vms = [stuck("p", Phase.PENDING), stuck("r"), stuck("c", Phase.COMPLETED)]
    seen = found(*vms, unreachable=frozenset({EAST}))
    assert [one.vm.name for one in seen.due] == ["p"]
    assert len(seen.kept) == 2
    assert due(*vms, unreachable=frozenset({WEST})) == ["c", "p", "r"]


# --- what the pool does with an order -----------------------------------------------------------------------------


def planned(*vms: VM, of: dict[str, Any] | None = None, orders: Found | None = None, **changes: Any) -> list[Any]:
    """What the pool does about VMs that a policy found two days old; by default about what it finds now."""
    orders = found(*vms) if orders is None else orders
    base = {"replicas": len(vms), "purgePolicy": POLICY, "update": {"maxUnavailable": "100%"}}
    facts = pool(spec(**(base | (of or {}))))
    plan = plan_pool(snapshot(*vms, pool=facts, purges=orders_of(orders), **changes), NOW)
    return [*(one for one in of_kind(plan, Complete) if one.reason in PURGES), *of_kind(plan, DestroyMachine)]


def test_a_stale_pending_vm_is_a_failure_and_a_stale_ready_one_is_not() -> None:
    first, second = planned(stuck("p", Phase.PENDING), stuck("r"))
    assert (first.reason, first.step) == (Reason.PURGED_PENDING, Step.BOOT)
    assert first.message == "pending for 172800 s; PurgePolicy tidy allows 7200 s"
    assert (second.reason, second.step) == (Reason.PURGED, "")


def test_ready_ones_are_replaced_as_fast_as_the_update_allows_and_no_faster() -> None:
    """A pool that was filled at once must not be emptied at once a day later."""
    vms = [stuck(f"vm-{number}") for number in range(8)]
    facts = pool(spec(replicas=8, purgePolicy=POLICY, update={"maxUnavailable": "25%", "maxSurge": 1}))
    plan = plan_pool(snapshot(*vms, pool=facts, purges=orders_of(found(*vms))), NOW)
    assert len([one for one in of_kind(plan, Complete) if one.reason is Reason.PURGED]) == 2
    assert len(of_kind(plan, CreateVM)) == 1


def test_one_that_is_going_just_now_leaves_no_other_as_surplus() -> None:
    """Its successor is there already: were it counted as one that stays, the oldest of the others would go."""
    vms = [stuck("going"), *(vm(f"vm-{number}") for number in range(3))]
    facts = pool(spec(replicas=3, purgePolicy=POLICY))
    seen = snapshot(*vms, pool=facts, purges=orders_of(found(*vms)), busy=frozenset({vms[0].uid}))
    assert of_kind(plan_pool(seen, NOW), Complete) == []


def test_destructions_that_do_not_end_use_up_nobody_elses_budget() -> None:
    late = [stuck(f"c-{number}", Phase.COMPLETED, phase_since=ago(days=9)) for number in range(3)]
    seen = found(*late, stuck("p", Phase.PENDING), stuck("r"), of=rules(maxPerCycle=2))
    assert {one.vm.name for one in seen.due} == {"c-0", "c-1", "p", "r"}
    assert (seen.deferred, seen.states[State.COMPLETED]) == (1, 3)


def test_who_was_taken_or_moved_on_since_the_order_is_left_alone() -> None:
    one = stuck("a")
    orders = found(one)
    assert names(planned(one, orders=orders)) == ["a"]
    for other in (
        replace(one, claim=claim()),
        replace(one, purge_exempt=True),
        replace(one, phase=Phase.QUARANTINED, expires_at=soon(hours=1)),
    ):
        assert not planned(other, orders=orders)
    assert not planned(one, orders=orders, busy=frozenset({one.uid}))
    assert not planned(one, orders=orders, of={"purgePolicy": None})
    assert not planned(one, orders=orders, of={"paused": True})
    assert not planned(one, orders=orders, providers={EAST: down(EAST)})


def test_an_order_to_destroy_goes_before_the_next_try_and_is_obeyed_once() -> None:
    waits = StepFacts(Step.DESTROY, ago(hours=1), retries=3, next_at=soon(minutes=9))
    one = stuck("c", Phase.COMPLETED, steps=(waits,))
    orders = found(one)
    assert not planned(one, orders=Found())
    assert planned(one, orders=orders) == [DestroyMachine(one)]
    at_once = replace(one, steps=())
    assert planned(at_once) == [DestroyMachine(at_once)], "once, also where it is due by itself"
    tried = replace(one, steps=(replace(waits, retries=4),))
    assert not planned(tried, orders=orders), "refused once more: its own pause counts again"
    for sight in (Sight(state="Deleting", looked_at=NOW), Sight(misses=1, missed_at=NOW)):
        assert not planned(one, orders=orders, sights={one.uid: sight})
    for sight in (Sight(state="Deleting", looked_at=ago(seconds=1)), Sight(state="Running", looked_at=NOW), BROKEN):
        assert planned(one, orders=orders, sights={one.uid: sight}) == [DestroyMachine(one)]
    assert not planned(one, orders=orders, providers={EAST: down(EAST)})


def test_an_orphan_without_a_policy_ends_with_its_time_and_with_one_only_by_its_order() -> None:
    over = stuck("stray", Phase.QUARANTINED, expires_at=ago(hours=1))
    ttl = timedelta(hours=4)
    step = next_of_orphan(over, NOTHING_SEEN, provider(EAST), NOW, straggler_ttl=ttl)
    assert isinstance(step.action, Complete)
    assert step.action.reason == Reason.QUARANTINE_ENDED
    assert next_of_orphan(over, NOTHING_SEEN, provider(EAST), NOW, straggler_ttl=ttl, governed=True).action is None
    order = orders_of(found(over, orphans=True))[over.uid]
    for one in (replace(over, purge_exempt=True), replace(over, claim=claim())):
        step = next_of_orphan(one, NOTHING_SEEN, provider(EAST), NOW, straggler_ttl=ttl, governed=True, order=order)
        assert getattr(step.action, "reason", "") != Reason.PURGED
    deleted = replace(over, deleting=True)
    step = next_of_orphan(deleted, NOTHING_SEEN, provider(EAST), NOW, straggler_ttl=ttl, governed=True)
    assert isinstance(step.action, Complete)
    assert step.action.reason == Reason.DELETED


# --- what is said -------------------------------------------------------------------------------------------------


def test_the_log_lines_are_those_of_the_guide() -> None:
    def line(state: State) -> Stale:
        one = vm("pooler-happy-elephant", machine_id="m-7")
        return Stale(one, state, timedelta(seconds=3650.9), timedelta(seconds=600))

    head = "[*] [purge][dry-run] Would purge stale"
    assert [line(state).would() for state in State] == [
        f"{head} {state} VM 'pooler-happy-elephant' (age: 3650s, max: 600s)"
        for state in ("pending", "ready", "completed", "orphaned")
    ]
    assert [line(state).done() for state in State] == [
        "[!] [purge] Purged stale pending VM 'pooler-happy-elephant' from 'debian' (age: 3650s)",
        "[!] [purge] Moved stale ready VM 'pooler-happy-elephant' from 'debian' to completed (age: 3650s)",
        "[!] [purge] Destroying stale completed VM 'pooler-happy-elephant' from 'debian' again (age: 3650s)",
        "[!] [purge] Purged orphaned machine 'm-7' of 'debian' (age: 3650s)",
    ]


def test_a_record_counts_what_came_of_everything_and_names_the_first_fifty() -> None:
    seen = found(*(stuck(f"vm-{number:02}") for number in range(60)), of=rules(maxPerCycle=55))
    dry = purge.cycle(seen, (NOW, NOW), dry_run=True)
    assert (dry.found, dry.purged, dry.deferred, dry.kept, len(dry.vms)) == (60, 0, 5, 0, MAX_PURGED_LISTED)
    assert dry.vms[0].vm == "vm-00"
    live = purge.cycle(seen, (NOW, NOW), dry_run=False, purged=seen.due[50::-1], kept=1)
    assert (live.found, live.purged, live.deferred, live.kept) == (60, 51, 5 + 3, 1)
    assert [one.vm for one in live.vms] == [f"vm-{number:02}" for number in range(50)]


def test_what_was_forgotten_for_years_can_be_recorded() -> None:
    (old,) = found(stuck("a", phase_since=ago(days=4000))).due
    assert old.listed().age_seconds == 4000 * 86400


def test_only_pauses_that_are_active_pause_and_the_one_that_lasts_longest_is_named() -> None:
    past = {"name": "past", "until": ago(seconds=1)}
    near, later = {"name": "near", "until": soon(hours=1)}, {"name": "later", "until": soon(hours=2)}
    assert purge.active_pause(rules(pauses=[past, {**past, "name": "now", "until": NOW}]), NOW) is None
    of = rules(pauses=[past, later, near])
    active = purge.active_pause(of, NOW)
    assert active is not None
    assert purge.paused_by(active) == "spec.pauses has later until 2030-01-01T02:00:00+00:00"
    assert purge.pause_ends(of, NOW) == soon(hours=1)
    endless = purge.active_pause(rules(pauses=[later, {"name": "move", "reason": "racks"}]), NOW)
    assert endless is not None
    assert purge.paused_by(endless) == "spec.pauses has move (racks)"


@pytest.mark.parametrize(
    ("changes", "pools", "removing", "reason", "paused"),
    [
        ({}, [], 0, "NoPools", None),
        ({}, [("web", "")], 0, "Idle", None),
        ({}, [("web", "")], 3, "Purging", None),
        ({"dryRun": True}, [("web", "")], 0, "DryRun", None),
        ({"pauses": [{"name": "move"}], "dryRun": True}, [("web", "")], 0, "Paused", "Paused"),
        ({}, [("db", ""), ("web", "spec.paused is true")], 0, "Idle", "PoolsPaused"),
    ],
)
def test_the_conditions_say_what_the_policy_does_and_who_stops_it(
    changes: dict[str, Any], pools: list[tuple[str, str]], removing: int, reason: str, paused: str | None
) -> None:
    def said(now: datetime) -> list[Any]:
        return purge.conditions(rules(**changes), pools=pools, removing=removing, generation=4, now=now)

    new = said(NOW)
    ready, stopped = find(new, ConditionType.READY), find(new, ConditionType.PAUSED)
    assert ready is not None
    assert (ready.status, ready.reason, ready.observed_generation) == ("True", reason, 4)
    assert (stopped.reason if stopped is not None else None) == paused
    assert [one.message for one in said(soon(hours=5))] == [one.message for one in new], "no sentence ticks"


def test_sentences_stay_short_however_many_pools_are_paused() -> None:
    pools = [(f"pool-{number}", "spec.paused is true") for number in range(40)]
    new = purge.conditions(rules(), pools=pools, removing=0, generation=1, now=NOW)
    stopped = find(new, ConditionType.PAUSED)
    assert stopped is not None
    assert stopped.message.endswith("VMPool pool-2: spec.paused is true and 37 more")


@pytest.mark.parametrize(
    ("machine", "adopt", "step"), [("", "", Step.CREATE), ("", "m-7", Step.ADOPT), ("m-1", "", Step.BOOT)]
)
def test_a_stuck_vm_tells_where_it_hangs_and_what_it_met_last(machine: str, adopt: str, step: Step) -> None:
    told = StepFacts(Step.CREATE, ago(hours=4), reason="CredentialsRefused", message="HTTP 403")
    hangs = vm("p", Phase.PENDING, phase_since=ago(hours=4), steps=(told,), machine_id=machine, adopt=adopt)
    (late,) = found(hangs).due
    order = late.order(POLICY, NOW)
    assert order.message.endswith(": CredentialsRefused: HTTP 403")
    (end,) = purge.ends(snapshot(hangs, pool=pool(spec(replicas=1, purgePolicy=POLICY)), purges={hangs.uid: order}))
    assert (end.step, end.message) == (step, order.message)


def test_a_late_destruction_tells_what_the_provider_said_last() -> None:
    told = StepFacts(Step.DESTROY, ago(hours=2), retries=3, reason="Refused", message="locked by a backup")
    (late,) = found(vm("c", Phase.COMPLETED, phase_since=ago(hours=2), steps=(told,))).due
    text = "not destroyed: completed for 7200 s; PurgePolicy tidy allows 3600 s"
    assert late.late_destruction(POLICY) == f"{text}: Refused: locked by a backup"
    assert replace(late, vm=replace(late.vm, steps=())).late_destruction(POLICY) == text
