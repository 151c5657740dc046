"""The world that the plan benchmark plans for is the one that it says it is."""

from bench.plan import COUNTS, NOW, counted, snapshot
from vmpool.plan.lifecycle import Phase
from vmpool.plan.pool import plan_pool

COUNT = min(COUNTS)


def test_the_floor_looks_at_every_vm_and_at_what_was_seen_of_it() -> None:
    seen = snapshot(COUNT)
    phases, looked_at = counted(seen)
    assert phases.total() == looked_at == len({vm.uid for vm in seen.vms}) == COUNT
    assert phases[Phase.READY] > 0.9 * COUNT
    assert phases[Phase.PENDING] > phases[Phase.COMPLETED] > 0


def test_every_phase_has_work_and_most_vms_have_none() -> None:
    plan = plan_pool(snapshot(COUNT), NOW)
    kinds = {type(action).__name__ for action in plan.actions}
    assert {"Look", "DestroyMachine", "CreateVM"} <= kinds
    assert 0.01 * COUNT < len(plan.actions) < 0.2 * COUNT
    assert plan.counts.surplus == plan.counts.stale == 0
