"""The table of a VM's life."""

import pytest

from vmpool.plan import lifecycle
from vmpool.plan.lifecycle import FINAL, INITIAL, SUCCESSORS, TRANSITIONS, Phase, may_become
from vmpool.plan.rules import successors_map
from vmpool.plan.snapshot import PLANNED, REPLACED, Reason


def test_every_phase_can_be_reached_and_left_but_the_last() -> None:
    reached, todo = {INITIAL}, [INITIAL]
    while todo:
        new = set(SUCCESSORS[todo.pop()]) - reached
        reached |= new
        todo.extend(new)
    assert reached == set(Phase)
    assert [phase for phase in Phase if not SUCCESSORS[phase]] == [FINAL]


def test_every_phase_ends_in_completed() -> None:
    assert all(phase is FINAL or FINAL in SUCCESSORS[phase] for phase in Phase)


def test_a_vm_that_was_claimed_is_never_ready_again() -> None:
    reached: set[Phase] = set()
    todo = [Phase.CLAIMED]
    while todo:
        new = set(SUCCESSORS[todo.pop()]) - reached
        reached |= new
        todo.extend(new)
    assert reached == {Phase.COMPLETED}


def test_no_step_is_named_twice() -> None:
    assert len({(step.before, step.after) for step in TRANSITIONS}) == len(TRANSITIONS)


@pytest.mark.parametrize("before", Phase)
@pytest.mark.parametrize("after", Phase)
def test_may_become_is_the_table_and_staying(before: Phase, after: Phase) -> None:
    assert may_become(before, after) == (before is after or after in SUCCESSORS[before])


def test_the_diagram_shows_every_arrow() -> None:
    lines = lifecycle.diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert len(lines) == len(TRANSITIONS) + 3
    assert "    Ready --> Claimed: claim was written" in lines
    assert all(";" not in line and line.count(": ") == 1 for line in lines[1:])


def test_the_rule_of_the_crd_is_made_from_the_table() -> None:
    table = successors_map()
    assert table.startswith("{'Pending':['Ready','Completed','Quarantined'],")
    assert table.endswith("'Completed':[]}")


def test_reasons_that_are_nobodys_failure() -> None:
    assert REPLACED < PLANNED
    assert set(Reason) - PLANNED == {
        Reason.MACHINE_GONE,
        Reason.MACHINE_FAILED,
        Reason.PENDING_TIMEOUT,
        Reason.NOT_ANSWERING,
        Reason.PURGED_PENDING,
    }
