"""What a fault inside the cloud is to the cloud itself, and what its ledger shows of it; on a real ledger."""

import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.gate.plan import Action, Fault, Kind, Point, Trigger
from tests.faults.rig.inside import FOR_EVER_SECONDS, STEPS, done, rows, rule_of
from tests.faults.trials.catalogue import END, FAULTS
from vmpool.simcloud.faults import Rule
from vmpool.simcloud.ledger import Ledger
from vmpool.simcloud.model import CreateSeconds, Fate, MachineSpec, Settings

TENANT = "one"
WELL = Fate()
EVERY = [(f"step {step}", action) for step in STEPS for action in FAULTS["step"]]
EVERY += [(END, action) for action in FAULTS["end"]]


def rule(signature: str, action: Action, occurrence: int = 1) -> Rule:
    """The cloud's rule, read as the cloud reads it."""
    trigger = Trigger(signature=signature, occurrence=occurrence, call="cloud create machines")
    return Rule.model_validate(rule_of(Fault(trigger=trigger, action=action)))


@pytest.mark.parametrize(("signature", "action"), EVERY, ids=lambda value: getattr(value, "name", value))
def test_the_cloud_takes_every_rule_and_lets_it_come_once(signature: str, action: Action) -> None:
    made = rule(signature, action, 3)
    assert (made.skip, made.count) == (2, 1)
    assert made.match.operation == ("delete" if signature == END else "create")


@pytest.mark.parametrize("step", STEPS)
def test_faults_leave_behind_what_they_say(step: str) -> None:
    number = STEPS.index(step)

    def fate(kind: Kind, point: Point = Point.BEFORE, **fields: int) -> Fate:
        return rule(f"step {step}", Action(kind=kind, point=point, **fields)).fate()

    assert fate(Kind.ANSWER, status=500) == Fate(steps_done=number)
    # Behind the last sub-step there is a machine.
    after = Fate(steps_done=number + 1) if number + 1 < len(STEPS) else Fate()
    assert fate(Kind.ANSWER, Point.COMMITTED, status=500) == after
    assert fate(Kind.RESET, Point.COMMITTED) == after
    assert fate(Kind.KILL, Point.COMMITTED) == after
    assert fate(Kind.FAIL).fail_step == step
    never = fate(Kind.NEVER)
    assert never.never_ready or (never.slow_step == step and never.slow_seconds == FOR_EVER_SECONDS)


def test_an_answer_is_the_one_that_was_planned() -> None:
    throttled = rule("step nic", Action(kind=Kind.ANSWER, status=429, retry_after=1))
    assert (throttled.answer_status, throttled.retry_after) == (429, 1)
    assert rule("step nic", Action(kind=Kind.ANSWER, point=Point.COMMITTED, status=504)).answer_status == 504


# --- the ledger ---------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(file: Path) -> Ledger:
    made = Ledger(file)
    takes(made, 0)
    return made


def takes(ledger: Ledger, seconds: float) -> None:
    """From now on each sub-step takes so long."""
    each = CreateSeconds(disk=seconds, nic=seconds, boot=seconds)
    ledger.put_settings(Settings(create_seconds=each, delete_seconds=0))


def make(ledger: Ledger, token: str, fate: Fate = WELL, tenant: str = TENANT) -> None:
    spec = MachineSpec.model_validate(
        {"name": token, "image": "sim/one", "cpus": 1, "memoryMiB": 1, "hostname": token, "token": token}
    )
    machine, _ = ledger.create(tenant, spec, fate)
    if token == "gone":
        assert machine is not None
        ledger.delete(machine)


def counts(file: Path, now: float | None = None) -> dict[str, int]:
    found = done(rows(file, TENANT), time.time() + 1 if now is None else now)
    return dict(Counter(signature for _, signature in found))


def test_a_machine_went_through_every_sub_step(ledger: Ledger, file: Path) -> None:
    make(ledger, "one")
    make(ledger, "gone")
    make(ledger, "of somebody else", tenant="two")
    assert counts(file) == {"step disk": 2, "step nic": 2, "step boot": 2, END: 1}
    assert counts(file, time.time() - 60) == {}


def test_what_broke_off_went_as_far_as_it_came(ledger: Ledger, file: Path) -> None:
    make(ledger, "broken", Fate(steps_done=1))
    assert counts(file) == {"step disk": 1}
    make(ledger, "broken")
    assert counts(file) == {"step disk": 1, "step nic": 1, "step boot": 1}


def test_a_sub_step_that_fails_is_not_over(ledger: Ledger, file: Path) -> None:
    takes(ledger, 0.01)
    make(ledger, "failed", rule("step boot", Action(kind=Kind.FAIL)).fate())
    assert counts(file) == {"step disk": 1, "step nic": 1}
    make(ledger, "failed early", rule("step nic", Action(kind=Kind.FAIL)).fate())
    assert counts(file) == {"step disk": 2, "step nic": 1}


def test_a_sub_step_that_takes_long_is_not_over(ledger: Ledger, file: Path) -> None:
    make(ledger, "slow", rule("step nic", Action(kind=Kind.DELAY, seconds=30)).fate())
    assert counts(file) == {"step disk": 1}
    (row,) = rows(file, TENANT)
    begin, end = row.spans()["nic"]
    assert begin == row.disk
    assert end - begin == pytest.approx(30)


def test_what_a_scenario_breaks_for_itself_is_not_counted(ledger: Ledger, file: Path) -> None:
    make(ledger, "never", Fate(never_ready=True))
    assert counts(file) == {}
