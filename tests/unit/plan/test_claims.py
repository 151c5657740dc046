"""The plan of the queue: order, turns, all or nothing, reservations, reasons, ends."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.queues import CHECKED, CI, a_claim, a_pool, a_vm, binds, hold, seen, statuses
from tests.unit.plan.worlds import NOW, PLANS, ago, soon
from vmpool.api.conditions import ConditionType, find, observed
from vmpool.api.pool import VMPoolStatus
from vmpool.plan.claims import plan_claims
from vmpool.plan.claimstatus import position
from vmpool.plan.lifecycle import ClaimPhase
from vmpool.plan.queue import Bind, Check, EndHeld, Extend, Note, Remove, Review, SetStatus, Trust, Why
from vmpool.plan.snapshot import PoolFacts, VMClaim

SHORT = {"deadline": "10s"}


def bound(claim: VMClaim, pool: PoolFacts, **changes: Any) -> tuple[VMClaim, Any]:
    """A claim that has its VM, and the VM."""
    vm = a_vm(f"of-{claim.name}", pool, hold(claim))
    plan = plan_claims(seen([claim], [pool], held={claim.uid: (vm,)}), NOW)
    return replace(claim, status=statuses(plan)[claim.name]), replace(vm, **changes)


def test_what_is_ready_is_bound_without_a_word_before() -> None:
    plan = plan_claims(seen([a_claim()], [a_pool()], {"web": 1}), NOW)
    (action,) = plan.actions
    assert isinstance(action, Bind)
    assert [(slot, pool.name) for slot, pool in action.places] == [(0, "web")]
    assert action.asker.owner(action.claim) == "vmclaim:ci/c"
    assert plan.demand == {"uid-ci-web": 1}
    assert plan.begun == {action.claim.uid: {0: "uid-ci-web"}}


def test_higher_priority_then_age_then_what_was_seen_first() -> None:
    claims = [
        a_claim("young", created_at=ago(seconds=1)),
        a_claim("low", priority=-5, created_at=ago(hours=9)),
        a_claim("high", priority=5),
        a_claim("twin-b", created_at=ago(seconds=5)),
        a_claim("twin-a", created_at=ago(seconds=5)),
    ]
    notes = {"uid-ci-twin-b": Note(order=1), "uid-ci-twin-a": Note(order=2)}
    plan = plan_claims(seen(claims, [a_pool()], {"web": 9}, notes=notes), NOW)
    assert binds(plan) == ["high", "twin-b", "twin-a", "young", "low"]


def far(name: str, namespace: str, **changes: Any) -> VMClaim:
    """A claim from another namespace, which is trusted and may claim."""
    wish = {"requests": [{"pool": "web", "namespace": CI}], "requester": "alice", "created_at": ago(seconds=60)}
    return a_claim(name, namespace=namespace, **{**wish, **changes})


def open_to_all(claims: list[VMClaim], ready: int, **changes: Any) -> Any:
    pool = a_pool(claims={"allowedNamespaces": ["*"]}, maxVMs=100)
    notes = {claim.uid: Note(verdicts={pool.uid: True}) for claim in claims}
    return seen(claims, [pool], {"web": ready}, trust=Trust(ago(hours=2)), notes=notes, **changes)


def test_the_namespace_that_was_served_longest_ago_is_next() -> None:
    claims = [far("b", "second"), far("a", "first"), far("n", "never", created_at=ago(seconds=1))]
    served = {"first": ago(minutes=9), "second": ago(minutes=1)}
    assert binds(plan_claims(open_to_all(claims, 3, served=served), NOW)) == ["n", "a", "b"]
    assert binds(plan_claims(open_to_all(claims, 1, served=served), NOW)) == ["n"]


@PLANS
@given(
    backlog=st.dictionaries(st.sampled_from("abcde"), st.integers(0, 30), min_size=1),
    ages=st.dictionaries(st.sampled_from("abcdez"), st.integers(0, 100)),
)
def test_a_single_claim_waits_for_at_most_one_claim_of_every_other_namespace(
    backlog: dict[str, int], ages: dict[str, int]
) -> None:
    others = [
        far(f"{name}{number}", name, created_at=ago(hours=1))
        for name, size in backlog.items()
        for number in range(size)
    ]
    single = far("single", "z")
    served = {name: ago(seconds=age) for name, age in ages.items()}
    order = binds(plan_claims(open_to_all([*others, single], 200, served=served, room=200), NOW))
    ahead = Counter(name[0] for name in order[: order.index("single")])
    assert all(count == 1 for count in ahead.values())
    assert len(order) == len(others) + 1


def test_three_are_begun_only_when_three_are_ready_and_nobody_behind_takes_them() -> None:
    whole, behind = a_claim("whole", 3, created_at=ago(seconds=9)), a_claim("behind")
    plan = plan_claims(seen([behind, whole], [a_pool()], {"web": 2}), NOW)
    assert binds(plan) == []
    assert plan.demand == {"uid-ci-web": 4}
    assert {name: status.position for name, status in statuses(plan).items()} == {"whole": "1", "behind": "2"}
    assert binds(plan_claims(seen([behind, whole], [a_pool()], {"web": 3}), NOW)) == ["whole"]
    assert binds(plan_claims(seen([behind, whole], [a_pool()], {"web": 4}), NOW)) == ["whole", "behind"]


def test_only_what_the_head_lacks_is_kept_for_it() -> None:
    pools = [a_pool(), a_pool("big")]
    head = a_claim("head", requests=[{"pool": "web"}, {"pool": "big"}], created_at=ago(seconds=9))
    behind = a_claim("behind", 2)
    plan = plan_claims(seen([head, behind], pools, {"web": 3}), NOW)
    assert binds(plan) == ["behind"]
    assert binds(plan_claims(seen([head, behind], pools, {"web": 2}), NOW)) == []


def test_those_behind_the_head_that_cannot_be_begun_keep_nothing_idle() -> None:
    both = {"requests": [{"pool": "web"}, {"pool": "big"}]}
    head, second = (
        a_claim("head", created_at=ago(seconds=9), **both),
        a_claim("second", created_at=ago(seconds=8), **both),
    )
    plan = plan_claims(seen([head, second, a_claim("single")], [a_pool(), a_pool("big")], {"web": 2}), NOW)
    assert binds(plan) == ["single"]


def test_one_claim_of_several_vms_at_a_time_in_a_pool() -> None:
    first, second, single = a_claim("first", 2, created_at=ago(seconds=9)), a_claim("second", 2), a_claim("single")
    world = seen([first, second, single], [a_pool()], {"web": 10})
    plan = plan_claims(world, NOW)
    assert binds(plan) == ["first", "single"]
    assert statuses(plan)["second"].reason == "NotItsTurn"
    flying = replace(world, busy=frozenset({first.uid}), begun={first.uid: {0: "uid-ci-web", 1: "uid-ci-web"}})
    assert "second" not in binds(plan_claims(flying, NOW))
    done = replace(world, claims=(second, single))
    assert binds(plan_claims(done, NOW)) == ["second", "single"]


def test_what_was_begun_comes_first_keeps_what_it_has_and_takes_what_there_is() -> None:
    begun, urgent = a_claim("begun", 3, priority=-9), a_claim("urgent", priority=9)
    held = {begun.uid: (a_vm("one", a_pool(), hold(begun, 1)),)}
    plan = plan_claims(seen([urgent, begun], [a_pool()], {"web": 1}, held=held), NOW)
    (bind,) = (action for action in plan.actions if isinstance(action, Bind))
    assert (bind.claim.name, [slot for slot, _ in bind.places]) == ("begun", [0])
    assert plan.demand == {"uid-ci-web": 3}


def test_what_is_being_bound_stays_counted_until_it_is_seen() -> None:
    claim = a_claim("c", 2)
    flying = {"busy": frozenset({claim.uid}), "begun": {claim.uid: {0: "uid-ci-web", 1: "uid-ci-web"}}}
    assert plan_claims(seen([claim], [a_pool()], **flying), NOW).demand == {"uid-ci-web": 2}
    held = {claim.uid: (a_vm("one", a_pool(), hold(claim, 1)),)}
    plan = plan_claims(seen([claim], [a_pool()], held=held, **flying), NOW)
    assert plan.demand == {"uid-ci-web": 1}
    assert plan.begun == {claim.uid: {0: "uid-ci-web"}}


def test_a_claim_whose_first_word_is_being_written_stays_counted() -> None:
    claim = a_claim()
    assert plan_claims(seen([claim], [a_pool()], busy=frozenset({claim.uid})), NOW).demand == {"uid-ci-web": 1}


def test_all_slots_held_are_written_down() -> None:
    claim, pool = a_claim("c", 2, lifetime="24h"), a_pool()
    late = soon(hours=3)
    vms = (
        a_vm("one", pool, hold(claim, 1)),
        a_vm("nil", pool, hold(claim, 0, at=late)),
        a_vm("two", pool, hold(claim, 0)),
    )
    plan = plan_claims(seen([claim], [pool], {"web": 3}, held={claim.uid: vms}), NOW)
    (write,) = plan.actions
    assert isinstance(write, SetStatus)
    assert [(one.slot, one.name) for one in write.status.vms] == [(0, "two"), (1, "one")]
    assert (write.status.phase, write.status.lifetime) == ("Bound", timedelta(hours=24))
    assert write.status.expires_at == soon(hours=24)
    assert plan.demand == {}
    now_bound = replace(claim, status=write.status)
    (end,) = plan_claims(seen([now_bound], [pool], held={claim.uid: vms}), NOW).actions
    assert isinstance(end, EndHeld)
    assert ([vm.name for vm in end.vms], end.reason) == (["nil"], "Surplus")


@pytest.mark.parametrize(("reason", "fills"), [("Released", True), ("MachineGone", False), ("Expired", False)])
def test_a_vm_that_ended_before_the_claim_was_whole(reason: str, fills: bool) -> None:
    claim, pool = a_claim(), a_pool()
    vm = a_vm("one", pool, hold(claim, released_at=NOW, end_reason=reason))
    plan = plan_claims(seen([claim], [pool], {"web": 1}, held={claim.uid: (vm,)}), NOW)
    assert binds(plan) == ([] if fills else ["c"])
    assert ("c" in statuses(plan)) is fills


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("PoolNotFound", {"requests": [{"pool": "nope"}]}, {}, "VMPool ci/nope does not exist"),
    ("AliasNotFound", {"requests": [{"alias": "nope"}]}, {}, "alias nope"),
    ("PoolDeleting", {}, {"deleting": True}, "being deleted"),
    ("TooManyVMs", {"count": 3}, {"maxVMs": 2}, "raise spec.maxVMs of VMPool ci/web or ask for fewer"),
    ("TooManyVMs", {"requests": [{"pool": "web"}, {"pool": "web", "count": 2}]}, {"maxVMs": 2}, "3 VMs are asked for"),
    ("LifetimeTooLong", {"lifetime": "200h"}, {}, "at most 168h"),
    ("RequesterNotTrusted", {"requests": [{"pool": "web", "namespace": "lab"}]}, {}, "vmpool-claims"),
]


@pytest.mark.parametrize(("reason", "wish", "pool", "message"), REFUSED)
def test_what_can_never_be_served_is_checked_and_then_fails(
    reason: str, wish: dict[str, Any], pool: dict[str, Any], message: str
) -> None:
    claim = a_claim(**wish)
    world = seen([claim], [a_pool(**pool)], {"web": 9})
    (check,) = plan_claims(world, NOW).actions
    assert isinstance(check, Check)
    plan = plan_claims(replace(world, notes={claim.uid: CHECKED}), NOW)
    status = statuses(plan)["c"]
    assert (status.phase, status.reason, status.finished_at, status.position) == ("Failed", reason, NOW, "")
    assert message in (status.message or "")
    stalled = find(status.conditions, ConditionType.STALLED)
    assert stalled is not None
    assert stalled.status == "True"
    assert plan.demand == {}


def test_rights_are_asked_for_before_anything_is_handed_out() -> None:
    claim, pool = far("c", "dev"), a_pool(claims={"allowedNamespaces": ["dev"]})
    world = seen([claim], [pool], {"web": 1}, trust=Trust(ago(hours=1)))
    (review,) = plan_claims(world, NOW).actions
    assert isinstance(review, Review)
    assert (review.asker.user, review.asker.groups) == ("alice", ("system:authenticated",))
    assert plan_claims(world, NOW).demand == {}
    yes = {claim.uid: Note(verdicts={pool.uid: True})}
    assert binds(plan_claims(replace(world, notes=yes), NOW)) == ["c"]
    no = {claim.uid: Note(verdicts={pool.uid: False}, checked=True)}
    assert statuses(plan_claims(replace(world, notes=no), NOW))["c"].reason == "NotPermitted"


@pytest.mark.parametrize(
    ("trust", "namespaces", "reason"),
    [
        (Trust(), ["*"], "RequesterNotTrusted"),
        (Trust(ago(seconds=60)), ["*"], "RequesterNotTrusted"),
        (Trust(ago(seconds=61)), ["*"], None),
        (Trust(ago(seconds=61)), ["other"], "NamespaceNotAllowed"),
    ],
)
def test_another_namespace_needs_trust_and_permission(trust: Trust, namespaces: list[str], reason: str | None) -> None:
    claim, pool = far("c", "dev"), a_pool(claims={"allowedNamespaces": namespaces})
    notes = {claim.uid: Note(verdicts={pool.uid: True}, checked=True)}
    plan = plan_claims(seen([claim], [pool], {"web": 1}, trust=trust, notes=notes), NOW)
    assert binds(plan) == (["c"] if reason is None else [])
    assert statuses(plan).get("c", claim.status).reason == reason


def test_a_rest_user_has_no_namespace_but_needs_the_right() -> None:
    claim, pool = far("c", "home", requester="vmpool:ann"), a_pool()
    world = seen([claim], [pool], {"web": 1}, trust=Trust(ago(hours=1)), home="home")
    (review,) = plan_claims(world, NOW).actions
    assert isinstance(review, Review)
    assert review.asker.groups == ("vmpool:rest",)
    assert review.asker.owner(claim) == "vmpool:ann"
    notes = {claim.uid: Note(verdicts={pool.uid: True}, checked=True)}
    assert binds(plan_claims(replace(world, notes=notes), NOW)) == ["c"]
    elsewhere = replace(world, home="other", notes=notes)
    assert statuses(plan_claims(elsewhere, NOW))["c"].reason == "NamespaceNotAllowed"


def stalled_pool(reason: str) -> PoolFacts:
    told = observed(ConditionType.STALLED, True, reason, "why", generation=1, now=NOW)
    return a_pool(status=VMPoolStatus(conditions=(told,)))


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (a_pool(), "NothingReady"),
        (a_pool(paused=True), "PoolPaused"),
        (stalled_pool("ProviderNotFound"), "PoolStalled"),
        (stalled_pool("NameTaken"), "NothingReady"),
        (a_pool(maxVMs=2, status=VMPoolStatus(claimed_replicas=2)), "PoolFull"),
    ],
)
def test_what_may_pass_keeps_it_waiting_and_says_why(pool: PoolFacts, reason: str) -> None:
    ready = {"web": 5} if pool.spec.paused else {}
    plan = plan_claims(seen([a_claim()], [pool], ready), NOW)
    status = statuses(plan)["c"]
    assert (status.phase, status.reason, status.position) == ("Pending", reason, "1")
    assert "VMPool ci/web" in (status.message or "")
    assert plan.waiting == {pool.uid: 1}


def test_a_try_that_came_to_nothing_rests_and_says_so() -> None:
    claim = a_claim()
    note = Note(trouble=Why("KindUnreadable", "nothing is handed out now"), retry_at=soon(seconds=3))
    world = seen([claim], [a_pool()], {"web": 1}, notes={claim.uid: note})
    plan = plan_claims(world, NOW)
    assert (binds(plan), statuses(plan)["c"].reason, plan.wake_at) == ([], "KindUnreadable", soon(seconds=3))
    assert binds(plan_claims(world, soon(seconds=3))) == ["c"]


def test_at_the_deadline_it_is_given_up_by_its_status_and_then_gives_back_what_it_holds() -> None:
    """In that order: the status write is refused when another leader has made the claim Bound, with these very VMs."""
    claim, pool = a_claim("c", 2, **SHORT), a_pool()
    vm = a_vm("one", pool, hold(claim))
    world = seen([claim], [pool], held={claim.uid: (vm,)})
    assert plan_claims(world, NOW).wake_at == soon(seconds=10)
    (write,) = plan_claims(world, soon(seconds=10)).actions
    assert isinstance(write, SetStatus)
    assert write.claim.resource_version == claim.resource_version
    assert (write.status.phase, write.status.reason) == ("Failed", "DeadlineExceeded")
    failed = replace(claim, status=write.status)
    (end,) = plan_claims(replace(world, claims=(failed,)), soon(seconds=10)).actions
    assert isinstance(end, EndHeld)
    assert (end.vms, end.reason) == ((vm,), "DeadlineExceeded")


def test_a_changed_lifetime_moves_the_end_from_when_the_vm_was_handed_out() -> None:
    pool = a_pool()
    claim, vm = bound(a_claim(), pool)
    longer = replace(claim, spec=a_claim(lifetime="48h").spec)
    world = seen([longer], [pool], held={claim.uid: (vm,)})
    (extend,) = plan_claims(world, soon(hours=1)).actions
    assert isinstance(extend, Extend)
    assert extend.ends == ((vm, soon(hours=48)),)
    assert vm.claim is not None
    moved = replace(vm, claim=replace(vm.claim, expires_at=soon(hours=48)))
    (write,) = plan_claims(replace(world, held={claim.uid: (moved,)}), soon(hours=1)).actions
    assert isinstance(write, SetStatus)
    assert (write.status.lifetime, write.status.expires_at) == (timedelta(hours=48), soon(hours=48))


def test_an_end_that_was_moved_over_rest_stays_when_something_else_changes() -> None:
    pool = a_pool()
    claim, vm = bound(a_claim(lifetime="24h"), pool)
    assert vm.claim is not None
    moved = replace(vm, claim=replace(vm.claim, expires_at=soon(hours=90)))
    other = replace(claim, spec=a_claim(lifetime="24h", priority=4).spec, generation=2)
    (write,) = plan_claims(seen([other], [pool], held={claim.uid: (moved,)}), NOW).actions
    assert isinstance(write, SetStatus)
    assert (write.status.expires_at, write.status.observed_generation) == (soon(hours=90), 2)


def test_a_lifetime_that_was_changed_while_the_vm_was_bound_is_acted_upon_afterwards() -> None:
    pool = a_pool()
    claim = a_claim(lifetime="48h")
    vm = a_vm("one", pool, hold(claim, hours=2))
    world = seen([claim], [pool], held={claim.uid: (vm,)})
    status = statuses(plan_claims(world, NOW))["c"]
    assert (status.phase, status.lifetime) == ("Bound", timedelta(hours=2))
    (extend,) = plan_claims(replace(world, claims=(replace(claim, status=status),)), NOW).actions
    assert isinstance(extend, Extend)
    assert extend.ends == ((vm, soon(hours=48)),)


def test_a_pool_that_was_made_anew_says_nothing_about_the_lifetime_of_old_vms() -> None:
    claim, vm = bound(a_claim(), a_pool())
    longer = replace(claim, spec=a_claim(lifetime="48h").spec)
    for pools in ([], [a_pool(uid="another")]):
        (write,) = plan_claims(seen([longer], pools, held={claim.uid: (vm,)}), NOW).actions
        assert isinstance(write, SetStatus)
        refused = find(write.status.conditions, ConditionType.STALLED)
        assert refused is not None
        assert (refused.reason, write.status.expires_at) == ("PoolNotFound", soon(hours=24))


@pytest.mark.parametrize("phase", ["Failed", "Released", "Expired"])
def test_a_finished_claim_gives_back_what_it_was_never_given_before_it_goes(phase: str) -> None:
    claim, vm = bound(a_claim(ttlAfterFinished="0s"), a_pool())
    over = claim.status.model_copy(update={"phase": phase, "reason": phase, "finished_at": NOW, "vms": ()})
    (end,) = plan_claims(seen([replace(claim, status=over)], [a_pool()], held={claim.uid: (vm,)}), NOW).actions
    assert isinstance(end, EndHeld)
    assert (end.vms, end.reason) == ((vm,), "Surplus")


def test_a_lifetime_above_the_maximum_changes_nothing_but_the_condition() -> None:
    pool = a_pool()
    claim, vm = bound(a_claim(), pool)
    greedy = replace(claim, spec=a_claim(lifetime="200h").spec, generation=2)
    world = seen([greedy], [pool], held={claim.uid: (vm,)})
    (write,) = plan_claims(world, NOW).actions
    assert isinstance(write, SetStatus)
    refused = find(write.status.conditions, ConditionType.STALLED)
    assert refused is not None
    assert refused.reason == "LifetimeTooLong"
    assert (write.status.phase, write.status.expires_at, write.status.lifetime) == ("Bound", soon(hours=24), None)
    settled = replace(greedy, status=write.status)
    assert plan_claims(replace(world, claims=(settled,)), soon(minutes=1)).actions == ()


@pytest.mark.parametrize(
    ("reason", "phase"),
    [
        ("Released", ClaimPhase.RELEASED),
        ("ClaimMissing", ClaimPhase.RELEASED),
        ("Expired", ClaimPhase.EXPIRED),
        ("MachineGone", ClaimPhase.FAILED),
        ("Forced", ClaimPhase.FAILED),
    ],
)
def test_how_a_claim_ends(reason: str, phase: ClaimPhase) -> None:
    pool = a_pool()
    claim, vm = bound(a_claim(), pool)
    ended = replace(vm, claim=hold(claim, released_at=NOW, end_reason=reason))
    held = {claim.uid: (ended,)}
    (write,) = plan_claims(seen([claim], [pool], held=held), NOW).actions
    assert isinstance(write, SetStatus)
    assert (write.status.phase, write.status.finished_at, write.status.expires_at) == (phase, NOW, None)
    assert [one.end_reason for one in write.status.vms] == [reason]
    over = replace(claim, status=write.status)
    world = seen([over], [pool], held=held)
    assert (plan_claims(world, NOW).actions, plan_claims(world, NOW).wake_at) == ((), soon(hours=1))
    assert plan_claims(world, soon(hours=1)).actions == (Remove(over),)


def test_a_claim_that_is_being_deleted_gets_nothing_and_gives_back() -> None:
    pool = a_pool()
    going = a_claim(deleting=True)
    plan = plan_claims(seen([going], [pool], {"web": 3}), NOW)
    assert replace(plan, settled={}) == plan_claims(seen([], [pool], {"web": 3}), NOW)
    vm = a_vm("one", pool, hold(going))
    (end,) = plan_claims(seen([going], [pool], held={going.uid: (vm,)}), NOW).actions
    assert isinstance(end, EndHeld)
    assert end.reason == "Released"


def test_positions_are_exact_for_ten_and_then_a_bucket() -> None:
    assert [position(place) for place in (1, 10, 11, 100, 101, 1000, 1001)] == [
        "1",
        "10",
        "11-100",
        "11-100",
        "101-1000",
        "101-1000",
        ">1000",
    ]


def test_a_mere_change_of_place_is_written_at_most_once_a_second() -> None:
    first, second = a_claim("first", created_at=ago(seconds=5)), a_claim("second")
    world = seen([first, second], [a_pool()])
    waiting = replace(second, status=statuses(plan_claims(world, NOW))["second"])
    notes = {waiting.uid: Note(written_at=NOW)}
    alone = seen([waiting], [a_pool()], notes=notes)
    plan = plan_claims(alone, soon(seconds=0.4))
    assert (plan.actions, plan.wake_at) == ((), soon(seconds=1))
    assert statuses(plan_claims(alone, soon(seconds=1)))["second"].position == "1"


def test_nobody_is_judged_before_it_is_known_whom_to_believe() -> None:
    fresh, waiting = a_claim("fresh"), a_claim("waiting")
    told = statuses(plan_claims(seen([waiting], [a_pool()]), NOW))["waiting"]
    waiting = replace(waiting, status=told)
    plan = plan_claims(seen([fresh, waiting], [a_pool()], {"web": 5}, trust=None), NOW)
    assert plan.actions == ()
    assert plan.demand == {"uid-ci-web": 1}, "or the pool would destroy what was made for it"
