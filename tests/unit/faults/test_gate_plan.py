"""When a fault of a plan comes, and that it comes once."""

import pytest
from pydantic import ValidationError

from tests.faults.gate.plan import Action, Fault, Kind, Plan, Point, Progress, Trigger


def fault(signature: str, occurrence: int = 1, kind: Kind = Kind.RESET, replica: str = "*") -> Fault:
    return Fault(trigger=Trigger(signature=signature, occurrence=occurrence, replica=replica), action=Action(kind=kind))


def test_a_fault_comes_at_its_occurrence_and_never_again() -> None:
    going = Progress(Plan(faults=(fault("w", 2),)))
    assert going.strike("w", "a", 1) is None
    assert going.strike("v", "a", 2) is None
    struck = going.strike("w", "a", 2)
    assert struck is not None
    assert going.met
    assert going.strike("w", "a", 2) is None


def test_the_second_fault_is_armed_by_the_first_and_comes_at_the_next_that_is_not_too_early() -> None:
    going = Progress(Plan(faults=(fault("w"), fault("v", 2))))
    assert going.strike("v", "a", 2) is None
    assert going.strike("w", "a", 1) is not None
    assert not going.met
    assert going.strike("v", "a", 1) is None
    assert going.strike("v", "a", 3) is not None
    assert going.met


def test_a_fault_of_one_replica_is_no_other_ones() -> None:
    going = Progress(Plan(faults=(fault("w", replica="b"),)))
    assert going.strike("w", "a", 1) is None
    assert going.strike("w", "b", 1) is not None


def test_only_kinds_that_are_asked_for_come() -> None:
    going = Progress(Plan(faults=(fault("w", kind=Kind.EMPTY),)))
    assert going.strike("w", "a", 1, of=frozenset({Kind.KILL})) is None
    assert going.strike("w", "a", 1, of=frozenset({Kind.EMPTY})) is not None


@pytest.mark.parametrize("kind", [Kind.ANSWER, Kind.HANG, Kind.DELAY, Kind.FREEZE, Kind.HOLD, Kind.ERROR])
def test_an_action_without_what_it_needs_is_refused(kind: Kind) -> None:
    with pytest.raises(ValidationError, match="needs"):
        Action(kind=kind)


def test_a_plan_comes_back_from_its_file_as_it_was() -> None:
    made = Plan(
        scenario="fill",
        seed=7,
        faults=(
            Fault(trigger=Trigger(signature="w"), action=Action(kind=Kind.ANSWER, point=Point.COMMITTED, status=504)),
        ),
    )
    assert Plan.model_validate_json(made.model_dump_json(by_alias=True)) == made
    assert made.faults[0].action.name == "answer-504-committed"


def test_faults_that_are_armed_together_come_in_any_order_each_at_its_occurrence() -> None:
    going = Progress(Plan(faults=(fault("w", 2), fault("v")), together=True))
    assert going.strike("v", "a", 1) is not None
    assert going.strike("w", "a", 1) is None
    assert not going.met
    assert going.strike("w", "a", 2) is not None
    assert going.met
    assert going.strike("v", "a", 1) is None
