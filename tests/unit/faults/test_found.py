"""What trials have found is kept where it says, and can be played again."""

from pathlib import Path

from tests.faults.scenarios import SCENARIOS
from tests.faults.trials.choose import pair_of
from tests.faults.trials.found import findings, kept_plans

ROOT = Path(__file__).parents[3]


def test_every_finding_names_tests_that_are_there() -> None:
    for finding in findings():
        for kept in finding.kept.split(","):
            assert (ROOT / kept.strip().split("::")[0]).is_file(), finding.kept


def test_every_kept_plan_is_of_a_scenario_and_has_a_place() -> None:
    plans = kept_plans()
    assert len(plans) >= 6
    for plan in plans:
        assert plan.scenario in SCENARIOS
        assert all(pair_of(plan))
