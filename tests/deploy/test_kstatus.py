"""What Flux sees, in every state of every kind: done only when it is, failed only where a human is needed."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.deploy.kstatus import KStatus, compute
from tests.deploy.states import NO_IMAGE, State, every, pool_object, provider_object
from tests.objects import Json
from tests.unit.plan.worlds import PLANS, snapshots
from vmpool.api import crd
from vmpool.api.conditions import ConditionType
from vmpool.api.provider import Circuit
from vmpool.plan.circuit import Breaker
from vmpool.plan.lifecycle import ClaimPhase, LetterPhase, Phase
from vmpool.plan.provider import Verdict
from vmpool.plan.snapshot import PoolSnapshot

STATES = list(every())
DAY = timedelta(days=1)
PHASES = {"PooledVM": Phase, "DeadLetter": LetterPhase, "VMClaim": ClaimPhase}
WITHOUT_READY = {"PooledVM", "DeadLetter", "HealthPolicy"}
"""Two are the operator's own and never in Git; the third has a verdict in the place of it."""
COUNTS = {"Ready", "Reconciling", "Stalled"}


def conditions(found: Json) -> dict[str, Json]:
    return {one["type"]: one for one in found.get("status", {}).get("conditions", ())}


@pytest.mark.parametrize("state", STATES, ids=str)
def test_flux_sees_what_it_should(state: State) -> None:
    assert compute(state.found) is state.kstatus


@pytest.mark.parametrize("state", STATES, ids=str)
def test_nothing_is_current_that_is_not_ready_for_the_present_generation(state: State) -> None:
    if compute(state.found) is KStatus.CURRENT:
        assert state.found["status"]["observedGeneration"] == state.found["metadata"]["generation"]
        if state.kind not in WITHOUT_READY:
            ready = conditions(state.found)["Ready"]
            assert (ready["status"], ready["observedGeneration"]) == ("True", state.found["metadata"]["generation"])


@pytest.mark.parametrize("state", STATES, ids=str)
def test_what_was_changed_since_is_in_progress_until_it_was_looked_at(state: State) -> None:
    meta = state.found["metadata"]
    changed = {**state.found, "metadata": {**meta, "generation": meta["generation"] + 1}}
    assert compute(changed) is (KStatus.TERMINATING if "deletionTimestamp" in meta else KStatus.IN_PROGRESS)


def test_every_kind_every_phase_and_every_condition_is_among_the_states() -> None:
    assert {state.kind for state in STATES} == {kind.name for kind in crd.KINDS}
    for kind, phases in PHASES.items():
        seen = {state.found["status"].get("phase") for state in STATES if state.kind == kind}
        assert set(phases) <= seen
    told = {name for state in STATES for name in conditions(state.found)}
    assert told == set(ConditionType)
    assert {state.kstatus for state in STATES} == set(KStatus)


def test_the_conditions_that_kstatus_reads_are_written_as_it_reads_them() -> None:
    for state in STATES:
        known = conditions(state.found)
        assert {one["status"] for name, one in known.items() if name in {"Reconciling", "Stalled"}} <= {"True"}
        if state.kind in WITHOUT_READY:
            assert not COUNTS & set(known)


@PLANS
@given(snapshots(), st.booleans())
def test_a_pool_is_current_just_when_it_is_ready_and_nothing_stalls(seen: PoolSnapshot, failed: bool) -> None:
    found = pool_object(seen, *((NO_IMAGE,) if failed else ()))
    known, told = conditions(found), compute(found)
    if seen.pool.deleting:
        assert told is KStatus.TERMINATING
    elif "Stalled" in known:
        assert told is KStatus.FAILED
    else:
        assert (told is KStatus.CURRENT) == (known["Ready"]["status"] == "True")


verdicts = st.builds(
    lambda stalled, verified: Verdict("Reason", "why", stalled=stalled, verified=verified and not stalled),
    st.booleans(),
    st.booleans(),
)


@PLANS
@given(verdicts, st.sampled_from(Circuit), st.booleans(), st.booleans(), st.integers(0, 3))
def test_a_provider_is_current_just_when_it_is_ready(
    verdict: Verdict, circuit: Circuit, paused: bool, deleting: bool, vms: int
) -> None:
    breaker = Breaker(5, DAY, state=circuit, failures=5, last_error="Unavailable")
    found = provider_object(verdict=verdict, breaker=breaker, paused=paused, deleting=deleting, vms=vms)
    known, told = conditions(found), compute(found)
    if deleting:
        assert told is KStatus.TERMINATING
    elif verdict.stalled:
        assert told is KStatus.FAILED
    else:
        assert (told is KStatus.CURRENT) == (known["Ready"]["status"] == "True")
        assert (told is KStatus.CURRENT) == (verdict.verified and circuit is Circuit.CLOSED and not paused)


# The rules themselves, on objects of nobody's.

META = {"name": "x", "generation": 2}
READY = {"type": "Ready", "status": "True"}
BUSY, STUCK = {"type": "Reconciling", "status": "True"}, {"type": "Stalled", "status": "True"}


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ({}, KStatus.CURRENT),
        ({"observedGeneration": 1, "conditions": [READY]}, KStatus.IN_PROGRESS),
        ({"observedGeneration": 2, "conditions": [READY]}, KStatus.CURRENT),
        ({"conditions": [READY]}, KStatus.CURRENT),
        ({"conditions": [{**READY, "status": "Unknown"}]}, KStatus.IN_PROGRESS),
        ({"conditions": [READY, STUCK]}, KStatus.FAILED),
        ({"conditions": [STUCK, BUSY]}, KStatus.FAILED),
        ({"conditions": [BUSY, STUCK]}, KStatus.IN_PROGRESS),
        ({"conditions": [{**STUCK, "status": "False"}]}, KStatus.CURRENT),
    ],
)
def test_the_rules_are_those_of_kstatus(status: Json, told: KStatus) -> None:
    assert compute({"metadata": META, "status": status}) is told
    assert compute({"metadata": {**META, "deletionTimestamp": "now"}, "status": status}) is KStatus.TERMINATING
