"""What claims change for a pool: the refill for those that wait, a reset, and a name that is taken."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.unit.plan.worlds import NOW, ago, down, pending, pool, provider, snapshot, soon, spec, vm
from vmpool.api.conditions import ConditionType, find
from vmpool.plan.actions import Complete, CreateVM
from vmpool.plan.nametaken import name_taken
from vmpool.plan.pool import Plan, plan_pool
from vmpool.plan.snapshot import PoolFacts, PoolSnapshot
from vmpool.plan.status import pool_status


def resets(plan: Plan) -> set[str]:
    return {one.vm.name for one in plan.actions if isinstance(one, Complete) and one.reason == "PoolReset"}


def creates(plan: Plan) -> int:
    return sum(isinstance(one, CreateVM) for one in plan.actions)


def world(*vms: Any, **changes: Any) -> PoolSnapshot:
    of = spec(**changes)
    return snapshot(*vms, of=of)


def test_claims_that_wait_raise_the_refill_within_the_maximum() -> None:
    seen = replace(world(vm("a"), replicas=1, maxVMs=5), waiting=3)
    assert creates(plan_pool(seen, NOW)) == 3
    assert creates(plan_pool(replace(seen, waiting=30), NOW)) == 4
    kept = plan_pool(replace(world(vm("a"), vm("b"), replicas=0), waiting=2), NOW)
    assert not kept.actions, "what was made for a claim is not surplus before the claim has it"
    assert pool_status(seen, kept, failures=(), stalled=None, now=NOW).waiting_replicas == 3


def test_a_reset_replaces_at_once_what_was_made_before_it() -> None:
    old = [vm(name, created_at=ago(minutes=9)) for name in "abcd"]
    young = pending("new", created_at=ago(seconds=1))
    seen = world(
        *old, young, vm("mine", "Claimed"), replicas=5, resetBefore=ago(seconds=2), update={"maxUnavailable": 0}
    )
    plan = plan_pool(seen, NOW)
    assert resets(plan) == {"a", "b", "c", "d"}
    few = world(*old, replicas=4, resetBefore=ago(seconds=2), limits={"deletes": 3})
    assert len(resets(plan_pool(few, NOW))) == 3


def test_a_reset_to_come_waits_and_wakes() -> None:
    seen = world(*(vm(name) for name in "abc"), resetBefore=soon(hours=1))
    plan = plan_pool(seen, NOW)
    assert (resets(plan), plan.wake_at) == (set(), soon(hours=1))
    assert resets(plan_pool(seen, soon(hours=1))) == {"a", "b", "c"}


def test_a_reset_within_a_second_knows_its_own_successors_from_what_was_there() -> None:
    """Objects tell their age in whole seconds, so nothing is made until the second of the reset is over."""
    at = NOW + timedelta(milliseconds=300)
    seen = world(vm("a", created_at=NOW), replicas=2, resetBefore=at)
    plan = plan_pool(seen, at)
    assert resets(plan) == {"a"}
    assert creates(plan) == 0
    assert plan.wake_at == soon(seconds=1)
    assert creates(plan_pool(world(replicas=2, resetBefore=at), soon(seconds=1))) == 2
    fresh = world(vm("b", created_at=soon(seconds=1)), vm("c", created_at=soon(seconds=1)), replicas=2, resetBefore=at)
    assert not plan_pool(fresh, soon(seconds=1)).actions


def test_an_outage_does_not_eat_up_the_stock_by_a_reset() -> None:
    seen = replace(world(*(vm(name) for name in "abc"), resetBefore=ago(seconds=2)), providers={"east": down()})
    assert resets(plan_pool(seen, NOW)) == set()


def named(name: str, namespace: str, age: int, rest_name: str | None = None) -> PoolFacts:
    of = spec(restName=rest_name) if rest_name else spec()
    return pool(of, uid=f"{namespace}/{name}", namespace=namespace, name=name, created_at=ago(hours=age))


OLD = named("web", "old", 9)


@pytest.mark.parametrize(
    ("mine", "others", "taken"),
    [
        (named("mine", "ci", 1, "web"), [OLD], "old/web"),
        (named("mine", "ci", 1, "web"), [named("other", "lab", 5, "web"), OLD], "old/web"),
        (named("mine", "ci", 10, "web"), [OLD], ""),
        (named("web", "ci", 1), [OLD], ""),
        (named("mine", "ci", 1, "fine"), [OLD], ""),
        (named("mine", "ci", 1, "web"), [named("web", "lab", 5, "other")], ""),
    ],
)
def test_only_a_name_that_was_chosen_and_is_taken_is_a_mistake(
    mine: PoolFacts, others: list[PoolFacts], taken: str
) -> None:
    assert name_taken(mine, [mine, *others]) == taken


def test_a_name_that_is_taken_stalls_and_says_what_to_do_while_the_pool_goes_on() -> None:
    seen = replace(world(*(vm(name) for name in "abc"), restName="big"), name_taken="old/web")
    plan = plan_pool(seen, NOW)
    status = pool_status(seen, plan, failures=(), stalled=None, now=NOW)
    stalled, ready = (find(status.conditions, kind) for kind in (ConditionType.STALLED, ConditionType.READY))
    assert stalled is not None
    assert ready is not None
    assert (stalled.reason, ready.status) == ("NameTaken", "True")
    assert "old/web" in stalled.message
    assert "ci_debian" in stalled.message
    worse = pool_status(seen, plan, failures=(), stalled=("ProviderNotFound", "no cloud"), now=NOW)
    assert [one.reason for one in worse.conditions if one.type == "Stalled"] == ["NameTaken"]
    assert provider().usable
