"""The queues that the plan benchmark plans for are those that it says they are."""

from dataclasses import replace

import pytest

from bench import claim_queue
from bench.claim_queue import NAMESPACES, NOW, READY
from vmpool.plan.claims import plan_claims
from vmpool.plan.lifecycle import ClaimPhase
from vmpool.plan.queue import Bind

COUNT = 200


def test_everybody_has_a_vm_and_there_is_nothing_to_do() -> None:
    seen = claim_queue.checked(claim_queue.bound(COUNT), ClaimPhase.BOUND)
    assert plan_claims(seen, NOW).actions == ()
    phases, vms = claim_queue.counted(seen)
    assert phases == {ClaimPhase.BOUND: COUNT}
    assert vms == COUNT


def test_everybody_waits_and_as_many_are_served_as_may_be_at_once() -> None:
    seen = claim_queue.checked(claim_queue.waiting(COUNT), ClaimPhase.PENDING)
    assert claim_queue.counted(seen) == ({ClaimPhase.PENDING: COUNT}, 0)
    assert {claim.namespace for claim in seen.claims} == {f"team-{number}" for number in range(NAMESPACES)}
    assert sum(seen.ready.values()) == NAMESPACES * READY > seen.room
    plan = plan_claims(seen, NOW)
    assert [type(action) for action in plan.actions] == [Bind] * seen.room
    assert sum(plan.demand.values()) == COUNT


def test_a_queue_that_is_not_what_it_should_be_is_an_error() -> None:
    with pytest.raises(AssertionError):
        claim_queue.checked(claim_queue.bound(COUNT), ClaimPhase.PENDING)
    with pytest.raises(AssertionError):
        claim_queue.checked(replace(claim_queue.waiting(COUNT), ready={}), ClaimPhase.PENDING)
