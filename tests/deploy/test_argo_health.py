"""What Argo CD shows, in every state of every kind, under the Lua that it runs."""

import pytest

from tests.deploy.argo import Scripts
from tests.deploy.kstatus import KStatus, compute
from tests.deploy.states import DEGRADED, HEALTHY, PROGRESSING, State, every, shown
from tests.objects import Json
from vmpool.api import crd

STATES = list(every())


def test_every_kind_has_a_script(scripts: Scripts) -> None:
    keys = {f"resource.customizations.health.vmpool.dev_{kind.name}" for kind in crd.KINDS}
    assert keys == {key for key in scripts.data if ".health." in key}


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


WANTED = ("string.len('x')", "('x'):len()", "io.open('x')", "os.getenv('x')", "require('os').exit()", "require('io')")


@pytest.mark.parametrize("wanted", WANTED)
def test_a_script_that_needs_what_argo_cd_does_not_lend_fails_here_too(scripts: Scripts, wanted: str) -> None:
    spoiled = Scripts({key: f"local x = {wanted}\n{text}" for key, text in scripts.data.items()})
    with pytest.raises(Exception, match=r"nil value|not found|index a string"):
        spoiled.health(STATES[0].found)
