"""Numbers: each planted fault is found, and what only looks like one is not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.gate.plan import Kind
from tests.faults.oracle.facts import Terms
from tests.unit.faults.oracle_story import Story, plan

FRESH = Terms(lag_seconds=0.5)
"""For stories that pass a second and mean that everybody knows by then."""


def _full(count: int, **spec: Any) -> Story:
    story = Story()
    story.pool(count, **spec)
    for number in range(count):
        story.fill(f"vm{number}")
    story.pass_time(1)
    return story


def test_never_more_vms_than_the_pool_may_have() -> None:
    story = _full(2, maxVMs=2)
    assert story.broken("I6", FRESH) == []
    story.vm("more")
    assert [one.subject for one in story.broken("I6", FRESH)] == ["more"]


def test_what_is_on_its_way_out_counts_too() -> None:
    story = _full(2, maxVMs=2)
    story.phase("vm0", "Completed", "Surplus")
    story.vm("more")
    assert any("maxVMs" in one.what for one in story.broken("I6", FRESH))


def test_the_bound_that_was_just_lowered_may_not_be_known_yet() -> None:
    story = _full(2, maxVMs=4)
    story.write("vmpools", "web", spec={"maxVMs": 2}, told=False)
    story.vm("more")
    assert story.broken("I6", FRESH) == []
    story.pass_time(1)
    story.vm("again")
    assert {one.subject for one in story.broken("I6", FRESH)} == {"again"}


def test_never_more_on_the_way_than_wanted_with_surge() -> None:
    story = _full(2, update={"maxSurge": 1, "maxUnavailable": 0})
    story.vm("surge")
    assert story.broken("I6", FRESH) == []
    story.vm("more")
    assert [one.subject for one in story.broken("I6", FRESH)] == ["more"]


def test_claims_that_wait_are_wanted_too() -> None:
    story = _full(1, update={"maxSurge": 0, "maxUnavailable": 1})
    story.make("vmclaims", "wish", {"requests": [{"pool": "web", "count": 2}]}, {"phase": "Pending"}, told=False)
    story.vm("first")
    story.vm("second")
    story.pass_time(1)
    assert story.broken("I6", FRESH) == []
    story.vm("third")
    assert len(story.broken("I6", FRESH)) == 1
    story = _full(1, update={"maxSurge": 0, "maxUnavailable": 1})
    story.make("vmclaims", "wish", {"requests": [{"pool": "web", "count": 2}]}, {"phase": "Pending"}, told=False)
    story.write("vmclaims", "wish", status={"phase": "Failed"}, told=False)
    story.pass_time(1)
    story.vm("first")
    assert len(story.broken("I6", FRESH)) == 1, "it does not wait any more"


def test_who_decides_on_a_watch_that_is_held_up_cannot_know() -> None:
    story = _full(3)
    story.scale(1)
    story.pass_time(30)
    story.phase("vm0", "Completed", "Surplus")
    story.phase("vm1", "Completed", "Surplus")
    story.vm("again")
    assert len(story.broken("I6", FRESH)) == 0, "the surge of one"
    story.vm("more")
    assert len(story.broken("I6", FRESH)) == 1
    assert story.broken("I6", FRESH, plan=plan(Kind.FREEZE, seconds=60)) == []


def test_a_scale_down_takes_what_is_too_many_and_no_more() -> None:
    story = _full(3)
    story.scale(1)
    story.pass_time(1)
    story.end("vm0")
    story.end("vm1")
    assert story.broken("I6", FRESH) == []
    story.end("vm2")
    assert len(story.broken("I6", FRESH)) == 1


def test_a_vm_that_was_lost_in_the_same_moment_is_not_held_against_who_took_another() -> None:
    story = _full(3)
    story.scale(2)
    story.pass_time(1)
    story.claim("vm0", "c1")
    story.end("vm1")
    assert story.broken("I6", FRESH) == []
    story.pass_time(1)
    story.end("vm2")
    assert len(story.broken("I6", FRESH)) == 1


@pytest.mark.parametrize(
    ("reason", "found"), [("TemplateChanged", 1), ("ReadyTTL", 1), ("Purged", 1), ("PoolReset", 0)]
)
def test_ready_vms_that_are_replaced_go_one_by_one_but_for_a_reset(reason: str, found: int) -> None:
    story = _full(4, update={"maxSurge": 0, "maxUnavailable": 1})
    story.phase("vm0", "Completed", reason)
    assert story.broken("I6", FRESH) == []
    story.phase("vm1", "Completed", reason)
    assert len(story.broken("I6", FRESH)) == found


def test_pending_ones_may_be_replaced_at_once() -> None:
    story = _full(2)
    story.vm("new")
    story.phase("new", "Completed", "TemplateChanged")
    assert story.broken("I6", FRESH) == []


def test_quarantine_has_its_own_bound() -> None:
    story = _full(3)
    for name in ("vm0", "vm1"):
        story.phase(name, "Quarantined", "NotAnswering")
    assert story.broken("I6", FRESH) == []
    story.phase("vm2", "Quarantined", "NotAnswering")
    assert len(story.broken("I6", FRESH)) == 1


def test_a_straggler_is_nobodys_and_counts_nowhere() -> None:
    story = _full(1, maxVMs=1)
    spec = {"pool": "web", "poolUid": "straggler", "provider": "cloud", "adopt": {"machineId": "m"}}
    story.make("pooledvms", "straggler-1", spec, {"phase": "Pending"})
    story.phase("straggler-1", "Quarantined", "Straggler")
    assert story.broken("I6", FRESH) == []


@given(st.integers(0, 6), st.integers(0, 10), st.integers(0, 3))
def test_exactly_those_above_what_is_wanted_with_surge_are_too_many(wanted: int, made: int, surge: int) -> None:
    story = Story()
    story.pool(wanted, update={"maxSurge": surge, "maxUnavailable": 1})
    for number in range(made):
        story.vm(f"vm{number}")
    assert len(story.broken("I6")) == max(0, made - max(0, wanted + (surge or (0 if wanted >= 0 else 1))))
