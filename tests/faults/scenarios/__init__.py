"""What users do in a trial, and what it has to come to, whatever goes wrong in between."""

from tests.faults.rig.trial import Scenario
from tests.faults.scenarios import claims, machines, policies

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario for scenario in (*machines.SCENARIOS, *claims.SCENARIOS, *policies.SCENARIOS)
}
