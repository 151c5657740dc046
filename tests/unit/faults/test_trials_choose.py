"""Which trials come next: two pairs share a trial only where neither hides what the other breaks."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.faults.gate.plan import Kind, Plan
from tests.faults.trials.catalogue import Place
from tests.faults.trials.choose import HEALING, is_single, joined, pair_of, paired, parted, singles
from tests.faults.trials.report import report
from tests.faults.trials.state import Outcome, State, Trialled

PLACES = [
    Place("cloud", "cloud create machines image", 1),
    Place("write", "patch pooledvms/status phase", 3),
    Place("write", "create deadletters", 1),
    Place("event", "event pooledvms MODIFIED Ready", 2),
    Place("event", "event vmpools MODIFIED", 1),
    Place("list", "list vmpools", 1),
    Place("step", "step nic", 1),
    Place("end", "step gone", 1),
]
EVERY = list(singles("fill", PLACES))


@given(st.integers(0, 2**32), st.lists(st.sampled_from(EVERY), unique_by=pair_of))
def test_every_plan_is_played_once_and_nothing_hides_anything(seed: int, plans: list[Plan]) -> None:
    trials = paired(plans, seed)
    assert sorted(pair_of(one) for trial in trials for one in parted(trial)) == sorted(map(pair_of, plans))
    for trial in trials:
        if not trial.together:
            assert is_single(trial)
            continue
        first, second = trial.faults
        kinds = {first.action.kind, second.action.kind}
        assert first.trigger.signature != second.trigger.signature
        assert len(kinds & HEALING) in {0, len(kinds)}, "a death mends what a lost event has broken"
        assert kinds != {Kind.REPLAY, Kind.DROP}
        assert not first.trigger.is_step


def test_most_plans_find_a_partner() -> None:
    assert len(paired(EVERY, 0)) < 0.7 * len(EVERY)


def test_a_plan_that_shares_a_trial_is_as_it_was_when_they_part() -> None:
    one, other = (plan for plan in EVERY if pair_of(plan)[2] == "drop")
    assert parted(joined(one, other)) == (one, other)
    assert parted(one) == (one,)


def test_a_trial_of_two_pairs_counts_for_both_and_a_double_fault_for_none(tmp_path: Path) -> None:
    state = State(tmp_path / "trials.jsonl")
    events = [place for place in PLACES if place.sort == "event"]
    a, b = (("fill", place.signature, "drop") for place in events)
    state.add(Trialled(*a, 1, Outcome.HELD, second=f"{b[1]} cut", seed=7))
    assert state.done() == set()
    state.add(Trialled(*a, 1, Outcome.VIOLATED, second=f"{b[1]} {b[2]}", together=True))
    assert State(tmp_path / "trials.jsonl").violated() == {a, b}
    state.add(Trialled(*a, 1, Outcome.HELD, second=f"{b[1]} {b[2]}", together=True))
    state.add(Trialled(*a, 1, Outcome.HELD))
    assert state.done() == {a, b}
    assert state.doubles() == {7}
    told = report(state, {"fill": [(place.sort, place.signature, place.occurrences) for place in events]})
    assert {key: told[key] for key in ("covered", "alone", "single", "double", "together", "violations")} == {
        "covered": 2,
        "alone": 1,
        "single": 1,
        "double": 2,
        "together": 1,
        "violations": 0,
    }
