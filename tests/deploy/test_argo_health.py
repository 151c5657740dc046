"""What Argo CD shows, in every state of every kind, under the Lua that it runs."""

import pytest

from tests.deploy.argo import Scripts
from tests.deploy.kstatus import KStatus, compute
from tests.deploy.states import DEGRADED, HEALTHY, PROGRESSING, State, every, shown
from tests.objects import Json
from vmpool.api import crd
from vmpool.cli import argocd

STATES = list(every())


def test_every_kind_has_a_script(scripts: Scripts) -> None:
    keys = {f"resource.customizations.health.vmpool.dev_{kind.name}" for kind in crd.KINDS}
    applications = f"resource.customizations.health.{argocd.APPLICATION}"
    assert keys | {applications} == {key for key in scripts.data if ".health." in key}


@pytest.mark.parametrize("state", STATES, ids=str)
def test_argo_cd_shows_what_it_should(scripts: Scripts, state: State) -> None:
    assert scripts.health(state.found)["status"] == state.health


@pytest.mark.parametrize("state", [each for each in STATES if each.kind not in {"PooledVM", "DeadLetter"}], ids=str)
def test_nothing_is_healthy_before_the_present_generation_was_looked_at(scripts: Scripts, state: State) -> None:
    meta = state.found["metadata"]
    changed = {**state.found, "metadata": {**meta, "generation": meta["generation"] + 1}}
    assert scripts.health(changed)["status"] == PROGRESSING


@pytest.mark.parametrize("state", STATES, ids=str)
def test_what_is_healthy_is_not_in_progress_or_failed_for_flux(scripts: Scripts, state: State) -> None:
    if scripts.health(state.found)["status"] == HEALTHY and state.kind != "PooledVM":
        assert compute(state.found) is KStatus.CURRENT


@pytest.mark.parametrize("state", STATES, ids=str)
def test_what_flux_calls_failed_is_shown_as_such_unless_it_is_paused(scripts: Scripts, state: State) -> None:
    if compute(state.found) is KStatus.FAILED and not state.found["spec"].get("paused"):
        assert scripts.health(state.found)["status"] == DEGRADED


@pytest.mark.parametrize("state", STATES, ids=str)
def test_the_sentence_is_that_of_the_status(scripts: Scripts, state: State) -> None:
    """A human who sees red reads why, in the words of the operator."""
    said = scripts.health(state.found)["message"]
    status = state.found["status"]
    known = [one["message"] for one in status.get("conditions", ())] + [status.get("message")]
    if scripts.health(state.found)["status"] == DEGRADED and any(known):
        assert any(one and one in said for one in known), said


@pytest.mark.parametrize("kind", [kind.name for kind in crd.KINDS])
@pytest.mark.parametrize("status", [{}, {"conditions": []}, {"phase": "Hibernated", "observedGeneration": 1}])
def test_a_status_that_says_nothing_is_never_healthy(scripts: Scripts, kind: str, status: Json) -> None:
    found = shown(kind, status)
    assert scripts.health(found)["status"] == PROGRESSING
    del found["status"]
    assert scripts.health(found)["status"] == PROGRESSING


WELL, SYNCED, OUT_OF_SYNC = {"status": "Healthy"}, {"status": "Synced"}, {"status": "OutOfSync"}
APPLICATIONS = [
    pytest.param({}, PROGRESSING, "not looked", id="new"),
    pytest.param({"health": {}}, PROGRESSING, "not looked", id="not judged"),
    pytest.param({"health": {"status": "Missing"}, "sync": OUT_OF_SYNC}, "Missing", "worst", id="nothing is there"),
    pytest.param(
        {"health": {"status": DEGRADED, "message": "no image"}, "sync": SYNCED}, DEGRADED, "no image", id="degraded"
    ),
    pytest.param({"health": {"status": PROGRESSING}, "sync": SYNCED}, PROGRESSING, "worst", id="starting"),
    pytest.param({"health": WELL, "sync": OUT_OF_SYNC}, PROGRESSING, "never synced", id="definitions of a former life"),
    pytest.param(
        {"health": WELL, "sync": OUT_OF_SYNC, "operationState": {"phase": "Running", "message": "2 of 9"}},
        PROGRESSING,
        "2 of 9",
        id="an upgrade on its way",
    ),
    pytest.param(
        {"health": WELL, "sync": OUT_OF_SYNC, "operationState": {"phase": "Failed", "message": "refused"}},
        PROGRESSING,
        "could not be synced: refused",
        id="an object is missing",
    ),
    pytest.param(
        {"health": WELL, "sync": OUT_OF_SYNC, "operationState": {"phase": "Error"}}, PROGRESSING, "Error", id="error"
    ),
    pytest.param(
        {"health": WELL, "sync": OUT_OF_SYNC, "operationState": {"phase": "Succeeded"}}, HEALTHY, "well", id="drift"
    ),
    pytest.param(
        {"health": WELL, "sync": SYNCED, "operationState": {"phase": "Failed"}}, HEALTHY, "well", id="mended by hand"
    ),
    pytest.param(
        {"health": WELL, "sync": SYNCED, "operationState": {"phase": "Succeeded"}}, HEALTHY, "well", id="done"
    ),
]


@pytest.mark.parametrize(("status", "health", "said"), APPLICATIONS)
def test_an_application_is_healthy_when_the_next_wave_may_begin(
    scripts: Scripts, status: Json, health: str, said: str
) -> None:
    application = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Application", "metadata": {"name": "vmpool-operator"}}
    told = scripts.health({**application, "status": status})
    assert told["status"] == health
    assert said in told["message"]


def test_an_application_that_is_asked_to_sync_is_not_done(scripts: Scripts) -> None:
    status = {"health": WELL, "sync": SYNCED, "operationState": {"phase": "Succeeded"}}
    application = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Application", "metadata": {"name": "vmpool-operator"}}
    assert scripts.health({**application, "operation": {"sync": {}}, "status": status})["status"] == PROGRESSING
    assert scripts.health(application)["status"] == PROGRESSING


WANTED = ("string.len('x')", "('x'):len()", "io.open('x')", "os.getenv('x')", "require('os').exit()", "require('io')")


@pytest.mark.parametrize("wanted", WANTED)
def test_a_script_that_needs_what_argo_cd_does_not_lend_fails_here_too(scripts: Scripts, wanted: str) -> None:
    spoiled = Scripts({key: f"local x = {wanted}\n{text}" for key, text in scripts.data.items()})
    with pytest.raises(Exception, match=r"nil value|not found|index a string"):
        spoiled.health(STATES[0].found)
