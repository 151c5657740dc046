"""Faults inside the cloud: what a plan may say of them, where they are found, and which are chosen."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.faults.gate.plan import Action, Fault, Kind, Plan, Point, Trigger
from tests.faults.trials.catalogue import END, FAULTS, Place, places
from tests.faults.trials.choose import double, is_single, pair_of, singles

CALL = "cloud create machines image token"
WRITE = Place("write", "patch pooledvms/status phase=Ready", 3)
CREATE = Place("cloud", CALL, 3)
STEPS = [Place("step", f"step {name}", 3) for name in ("boot", "disk", "nic")]
GONE = Place("end", END, 2)
EVERY = [WRITE, CREATE, *STEPS, GONE]


def inside(action: Action, call: str = CALL, signature: str = "step nic") -> Fault:
    return Fault(trigger=Trigger(signature=signature, call=call), action=action)


def reset(signature: str) -> Fault:
    return Fault(trigger=Trigger(signature=signature), action=Action(kind=Kind.RESET))


KILL = Action(kind=Kind.KILL, point=Point.COMMITTED)
FAILS = Action(kind=Kind.FAIL)

# --- the plan ---------------------------------------------------------------------------------------------------


def test_a_plan_of_before_there_were_sub_steps_is_read_as_it_was() -> None:
    text = '{"scenario":"fill","faults":[{"trigger":{"signature":"w","occurrence":2},"action":{"kind":"reset"}}]}'
    plan = Plan.model_validate_json(text)
    assert plan.in_cloud is None
    assert plan.at_gate == plan


@pytest.mark.parametrize("action", [*FAULTS["step"], *FAULTS["end"]], ids=lambda action: action.name)
def test_a_plan_comes_back_from_its_file_as_it_was(action: Action) -> None:
    made = Plan(scenario="fill", faults=(inside(action),))
    assert Plan.model_validate_json(made.model_dump_json(by_alias=True)) == made
    assert made.in_cloud == made.faults[0]


def test_the_gate_gets_what_is_not_inside_the_cloud() -> None:
    plan = Plan(scenario="fill", faults=(reset("w"), inside(FAILS)))
    assert plan.at_gate.faults == (reset("w"),)
    assert plan.at_gate.scenario == "fill"
    assert Plan(faults=(inside(FAILS),)).at_gate.faults == ()


def test_a_kill_behind_a_sub_step_is_the_gates_at_the_same_call() -> None:
    fault = Fault(trigger=Trigger(signature="step nic", occurrence=2, call=CALL), action=KILL)
    (at_gate,) = Plan(faults=(fault,)).at_gate.faults
    assert at_gate == Fault(trigger=Trigger(signature=CALL, occurrence=2), action=KILL)


@pytest.mark.parametrize(
    ("signature", "action"),
    [
        ("step nic", Action(kind=Kind.DUPLICATE)),
        ("step nic", Action(kind=Kind.DROP)),
        ("step nic", Action(kind=Kind.KILL, point=Point.REPLIED)),
        ("cloud create machines", Action(kind=Kind.NEVER)),
        ("patch pooledvms", FAILS),
    ],
    ids=["duplicate", "drop", "kill-replied", "never", "fail"],
)
def test_what_cannot_happen_is_refused(signature: str, action: Action) -> None:
    with pytest.raises(ValidationError):
        inside(action, signature=signature)


def test_a_kill_behind_a_sub_step_without_its_call_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs its call"):
        inside(KILL, call="")


def test_a_fault_inside_the_cloud_comes_last() -> None:
    with pytest.raises(ValidationError, match="comes last"):
        Plan(faults=(inside(FAILS), reset("w")))
    with pytest.raises(ValidationError, match="stands alone"):
        Plan(faults=(reset("w"), inside(KILL)))


# --- where they are -----------------------------------------------------------------------------------------------


def run(*steps: str) -> dict[str, Any]:
    """What a clean run tells, its calls apart; a call follows each sub-step, so that an event would count."""
    calls = [
        {"at": at + 0.1, "far": "api", "changed": True, "signature": "w", "verb": "patch", "plural": "pooledvms"}
        for at in range(len(steps))
    ]
    return {"trace": calls, "events": [(float(at), "cloud", step, 1) for at, step in enumerate(steps)]}


def test_sub_steps_are_places_of_their_own_sorts() -> None:
    found, some = places([run("step disk", "step nic", "step disk", END), run("step disk", END, END)])
    assert [place for place in found if place.sort != "write"] == [Place("end", END, 1), Place("step", "step disk", 1)]
    assert some == ["step nic"]


# --- which are chosen ---------------------------------------------------------------------------------------------


def test_every_fault_of_every_sub_step_is_chosen_once() -> None:
    plans = [plan for plan in singles("fill", EVERY) if plan.in_cloud is not None]
    pairs = Counter(pair_of(plan) for plan in plans)
    wanted = {("fill", place.signature, action.name) for place in (*STEPS, GONE) for action in FAULTS[place.sort]}
    assert set(pairs) == wanted
    assert set(pairs.values()) == {1}
    assert all(is_single(plan) for plan in plans)


def test_the_gate_is_told_which_call_a_sub_step_is_of() -> None:
    kills = [plan for plan in singles("fill", EVERY) if plan.in_cloud is not None and plan.in_cloud.needs_call]
    assert len(kills) == len(STEPS)
    assert {plan.at_gate.faults[0].trigger.signature for plan in kills} == {CALL}


def test_a_sub_step_comes_no_more_often_than_it_was_seen() -> None:
    for plan in singles("fill", EVERY):
        seen = next(place for place in EVERY if place.signature == plan.faults[-1].trigger.signature)
        assert 1 <= plan.faults[-1].trigger.occurrence <= seen.occurrences


@given(seed=st.integers(0, 10**9))
def test_of_two_faults_the_second_alone_may_be_inside_the_cloud(seed: int) -> None:
    plan = double(seed, {"fill": EVERY})
    assert plan == double(seed, {"fill": EVERY})
    first, last = plan.faults
    assert not first.trigger.is_step
    if last.trigger.is_step:
        assert last.trigger.occurrence == 1
        assert not last.needs_call


def test_two_faults_reach_every_sub_step() -> None:
    lasts = {double(seed, {"fill": EVERY}).faults[-1].trigger.signature for seed in range(200)}
    assert lasts == {place.signature for place in EVERY}
