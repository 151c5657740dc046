"""The line of claims that wait: what is kept back and for whom, what is written, what a user without rights learns."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.plan.queues import CHECKED, CI, a_claim, a_pool, binds, seen, statuses
from tests.unit.plan.worlds import NOW, ago, soon
from vmpool.api.claim import EXACT_POSITIONS, VMClaimStatus
from vmpool.api.conditions import ConditionType, observed
from vmpool.api.pool import VMPoolStatus
from vmpool.plan import claims as plans
from vmpool.plan import claimstatus
from vmpool.plan.claims import plan_claims
from vmpool.plan.queue import Check, Note, QueueSnapshot, Review, SetStatus, Trust, Why
from vmpool.plan.snapshot import PoolFacts, VMClaim

TOLD = VMClaimStatus(position="1")
WEB, BIG = "uid-ci-web", "uid-ci-big"
STALLED = VMPoolStatus(
    conditions=(observed(ConditionType.STALLED, True, "ProviderNotFound", "why", generation=1, now=NOW),)
)
FULL = VMPoolStatus(claimed_replicas=10)


def older(name: str, requests: Mapping[str, int], seconds: float = 9, **changes: Any) -> VMClaim:
    """A claim for so many VMs of each pool that came before others."""
    wish = [{"pool": pool, "count": count} for pool, count in requests.items()]
    return a_claim(name, requests=wish, created_at=ago(seconds=seconds), **changes)


# --- what is kept back --------------------------------------------------------------------------------------


def test_what_the_head_waits_with_stays_its_own_while_its_status_is_written() -> None:
    head, behind = older("head", {"web": 5}, status=TOLD), a_claim("behind")
    world = seen([head, behind], [a_pool()], {"web": 4}, busy=frozenset({head.uid}))
    plan = plan_claims(world, NOW)
    assert binds(plan) == []
    assert plan.demand == {WEB: 6}
    assert {name: status.position for name, status in statuses(plan).items()} == {"behind": "2"}
    enough = plan_claims(replace(world, ready={WEB: 6}), NOW)
    assert binds(enough) == ["behind"], "nothing is begun on what is in flight, and one is left"


@pytest.mark.parametrize(
    "note", [Note(verdicts={WEB: False}), Note(trouble=Why("BindFailed", "why"), retry_at=soon(seconds=3))]
)
def test_one_in_flight_that_could_not_be_served_anyway_keeps_nothing(note: Note) -> None:
    head = older("head", {"web": 5}, status=TOLD, requester="alice")
    notes = {head.uid: note}
    world = seen([head, a_claim("behind")], [a_pool()], {"web": 4}, busy=frozenset({head.uid}), notes=notes)
    assert binds(plan_claims(replace(world, trust=Trust(ago(hours=1))), NOW)) == ["behind"]


@pytest.mark.parametrize("stuck", [a_pool("big", paused=True), a_pool("big", status=STALLED)])
def test_a_claim_that_waits_for_a_human_keeps_nothing_of_another_pool(stuck: PoolFacts) -> None:
    head, several = older("head", {"web": 4, "big": 1}), older("several", {"web": 5}, 8)
    pools = [a_pool(), stuck]
    assert binds(plan_claims(seen([head, a_claim("single")], pools, {"web": 4}), NOW)) == ["single"]
    plan = plan_claims(seen([head, several, a_claim("single")], pools, {"web": 4}), NOW)
    assert binds(plan) == [], "nor does it stand in the way of the next one that waits with some"
    assert statuses(plan)["head"].reason in {"PoolPaused", "PoolStalled"}


def test_who_waits_for_another_pool_is_not_the_head_of_this_one() -> None:
    elsewhere, several = older("elsewhere", {"web": 1, "big": 1}), older("several", {"web": 3}, 8)
    claims = [elsewhere, several, a_claim("single")]
    pools = [a_pool(), a_pool("big")]
    assert binds(plan_claims(seen(claims, pools, {"web": 3}), NOW)) == []
    assert binds(plan_claims(seen(claims, pools, {"web": 4}), NOW)) == ["several"]
    assert binds(plan_claims(seen(claims, pools, {"web": 5}), NOW)) == ["several", "single"]


# --- what is written ----------------------------------------------------------------------------------------


def settled(world: QueueSnapshot) -> QueueSnapshot:
    """The same after everything was written."""
    said = statuses(plan_claims(replace(world, room=10_000), NOW))
    return replace(
        world, claims=tuple(replace(claim, status=said.get(claim.name, claim.status)) for claim in world.claims)
    )


def rewritten(world: QueueSnapshot) -> int:
    return sum(isinstance(action, SetStatus) for action in plan_claims(replace(world, room=10_000), NOW).actions)


def test_one_vm_given_back_in_a_full_pool_does_not_have_the_whole_line_written_anew() -> None:
    line = [a_claim(f"c{number:03}") for number in range(60)]
    world = settled(seen(line, [a_pool(status=FULL)]))
    assert world.claims[0].status.reason == "PoolFull"
    room = a_pool(status=VMPoolStatus(claimed_replicas=9))
    assert rewritten(replace(world, pools={(CI, "web"): room})) == EXACT_POSITIONS


def test_those_far_behind_are_not_told_which_of_their_pools_lacks_a_vm_now() -> None:
    line = [older(f"c{number:03}", {"web": 1, "big": 1}) for number in range(60)]
    world = settled(seen(line, [a_pool(), a_pool("big")], {"web": 60}))
    assert rewritten(world) == 0
    assert rewritten(replace(world, ready={BIG: 60})) == EXACT_POSITIONS


def test_those_far_behind_are_not_told_whose_turn_it_is() -> None:
    line = [older(f"c{number:03}", {"web": 2}) for number in range(60)]
    world = settled(seen(line, [a_pool()]))
    binding: dict[str, Any] = {"busy": frozenset({line[0].uid}), "begun": {line[0].uid: {0: WEB, 1: WEB}}}
    # The one in binding stands in no line any more: those behind it move up.
    assert rewritten(replace(world, ready={WEB: 9}, **binding)) == EXACT_POSITIONS


def test_a_word_in_flight_moves_nobody_up() -> None:
    line = [a_claim(f"c{number}") for number in range(5)]
    world = settled(seen(line, [a_pool()]))
    assert rewritten(replace(world, busy=frozenset({line[0].uid}))) == 0


# --- who learns what ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wish", "reason"), [({"lifetime": "200h"}, "LifetimeTooLong"), ({"count": 11}, "TooManyVMs")])
@pytest.mark.parametrize("by", [{"pool": "web"}, {"alias": "any"}])
def test_only_who_may_claim_learns_what_the_pool_allows(wish: dict[str, Any], reason: str, by: dict[str, str]) -> None:
    lifetime = {key: value for key, value in wish.items() if key == "lifetime"}
    claim = a_claim(
        requests=[{**by, "count": wish.get("count", 1)}], requester="alice", created_at=ago(seconds=5), **lifetime
    )
    world = seen([claim], [a_pool(aliases=["any"])], trust=Trust(ago(hours=1)))
    (review,) = plan_claims(world, NOW).actions
    assert isinstance(review, Review)
    for right, told in ((False, "NotPermitted"), (True, reason)):
        note = Note(verdicts={WEB: right})
        (check,) = plan_claims(replace(world, notes={claim.uid: note}), NOW).actions
        assert isinstance(check, Check)
        note.checked = True
        assert statuses(plan_claims(replace(world, notes={claim.uid: note}), NOW))["c"].reason == told


def test_a_check_counts_for_the_failure_that_it_was_made_for() -> None:
    claim = a_claim()
    notes = {claim.uid: CHECKED}
    assert plan_claims(seen([claim], [a_pool()], notes=notes), NOW).recovered == (claim.uid,)
    assert plan_claims(seen([claim], [], notes=notes), NOW).recovered == ()
    assert plan_claims(seen([claim], [a_pool()]), NOW).recovered == ()


# --- what it costs ------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often plans judged a claim and made a status."""
    count: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        real = getattr(module, name)

        def counting(*args: Any, **named: Any) -> Any:
            count[name] += 1
            return real(*args, **named)

        monkeypatch.setattr(module, name, counting)

    counted(plans, "judge")
    counted(claimstatus, "waiting_status")
    return count


def test_those_who_ask_for_the_same_are_judged_once_and_told_nothing_again(calls: Counter[str]) -> None:
    same = [a_claim(f"c{number:03}") for number in range(100)]
    longer = [a_claim(f"d{number:03}", lifetime="1h") for number in range(100)]
    world = settled(seen([*same, *longer], [a_pool()]))
    assert calls == {"judge": 2, "waiting_status": 200}
    calls.clear()
    assert rewritten(world) == 0
    assert calls == {"judge": 2}


def test_a_judgement_is_shared_only_by_those_it_is_true_of() -> None:
    wishes: list[dict[str, Any]] = [
        {},
        {"requests": [{"pool": "nope"}]},
        {"requests": [{"pool": "web", "count": 11}]},
        {"requests": [{"alias": "any"}]},
        {"lifetime": "200h"},
        {"namespace": "dev"},
        {"requester": "alice"},
        {"requester": "bob"},
    ]
    claims = [a_claim(f"c{number}", created_at=ago(seconds=5), **wish) for number, wish in enumerate(wishes)]
    notes = {claim.uid: Note(checked=True, verdicts={WEB: claim.spec.requester != "bob"}) for claim in claims}
    world = seen(claims, [a_pool()], notes=notes, trust=Trust(ago(hours=1)))
    together = {claim.name: statuses(plan_claims(world, NOW))[claim.name].reason for claim in claims}
    alone = {
        claim.name: statuses(plan_claims(replace(world, claims=(claim,)), NOW))[claim.name].reason for claim in claims
    }
    assert together == alone
    assert len(set(alone.values())) == 6


@pytest.mark.parametrize("reason", ["NothingReady", "PoolFull"])
@pytest.mark.parametrize("place", [1, 2, 11, 12])
@pytest.mark.parametrize("generation", [1, 2])
def test_a_status_that_tells_already_is_one_that_would_not_change(reason: str, place: int, generation: int) -> None:
    fresh = a_claim()
    why = Why("NothingReady", "none is ready")
    told = replace(fresh, status=claimstatus.waiting_status(fresh, why, 1, NOW), generation=generation)
    for claim in (fresh, told, replace(told, status=told.status.model_copy(update={"conditions": ()}))):
        wish = Why(reason, why.message)
        same = claimstatus.waiting_status(claim, wish, place, soon(seconds=9)) == claim.status
        assert claimstatus.tells(claim, wish, place) is same
