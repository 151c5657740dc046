"""The files for Flux and for Argo CD name what is there; Flux's expressions, on a real server, say what they should."""

import re
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
import yaml

from tests.api import Api
from tests.deploy.conftest import DEPLOY, ROOT
from tests.deploy.kstatus import KStatus, compute
from tests.deploy.states import PLURALS, State, every
from tests.objects import Json, thing
from tests.waiting import until
from vmpool.cli import argocd

FLUX = [each for file in sorted((DEPLOY / "flux").glob("*.yaml")) for each in yaml.safe_load_all(file.read_text())]
ARGO = [
    each
    for file in sorted((DEPLOY / "argocd" / "applications").glob("*.yaml"))
    for each in yaml.safe_load_all(file.read_text())
]
EXPRESSIONS = {
    each["kind"]: each for one in FLUX for each in one["spec"].get("healthCheckExprs", ()) if each["apiVersion"]
}
JUDGED = [
    state
    for state in every()
    if state.kind in EXPRESSIONS
    and "deletionTimestamp" not in state.found["metadata"]
    and state.found["status"].get("observedGeneration") == state.found["metadata"]["generation"]
]
"""Flux evaluates nothing of an object whose present generation was not looked at."""
POLICIES = "/apis/admissionregistration.k8s.io/v1"
ACTIVE_SECONDS = 60
ANSWER = re.compile(r"failed=(yes|no) current=(yes|no)")


def test_every_path_is_there_and_machines_come_after_the_operator() -> None:
    paths = {one["metadata"]["name"]: one["spec"]["path"] for one in FLUX}
    assert set(paths) == {"vmpool-operator", "vmpool-machines"}
    for path in paths.values():
        assert (ROOT / path / "kustomization.yaml").exists()
    machines = next(one for one in FLUX if one["metadata"]["name"] == "vmpool-machines")
    assert machines["spec"]["dependsOn"] == [{"name": "vmpool-operator"}]
    assert all(one["spec"]["wait"] is True for one in FLUX), "else nothing is waited for"


def test_argo_cds_applications_are_the_same_folders_in_the_same_order() -> None:
    applications = [one for one in ARGO if one["kind"] == "Application"]
    paths = [one["spec"]["source"]["path"] for one in applications]
    assert paths == [one["spec"]["path"].removeprefix("./") for one in FLUX]
    waves = [int(one["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"]) for one in applications]
    assert waves == sorted(set(waves))
    # Without it Argo CD calls an Application nothing at all, and every wave begins at once.
    told = yaml.safe_load((ROOT / argocd.MADE).read_text())["data"]
    assert f"{argocd.PREFIX}.health.{argocd.APPLICATION}" in told
    machines = applications[1]["spec"]["syncPolicy"]
    # By hand, without an app of apps, both begin at once: the definitions may come later than the machines.
    assert "SkipDryRunOnMissingResource=true" in machines["syncOptions"]
    assert machines["retry"] == {"limit": 10, "backoff": {"duration": "10s", "factor": 2, "maxDuration": "3m"}}
    projects = {one["metadata"]["name"] for one in ARGO if one["kind"] == "AppProject"}
    assert {one["spec"]["project"] for one in applications} <= projects
    for one in applications:
        assert "ServerSideApply=true" in one["spec"]["syncPolicy"]["syncOptions"]
        # An Application has no destination.namespace: each object says its own.
        assert "namespace" not in one["spec"]["destination"]


def for_a_policy(expression: str) -> str:
    """The same expression where the object is called ``object``."""
    return re.sub(r"(?<![\w.'])(spec|status|metadata)\b", r"object.\1", expression)


def telling(kind: str, name: str, namespace: str) -> tuple[Json, Json]:
    """A policy that refuses every status of a kind, in one namespace, with what the expressions make of it."""
    said = EXPRESSIONS[kind]
    failed, current = (for_a_policy(said[name]) for name in ("failed", "current"))
    message = f"'failed=' + (({failed}) ? 'yes' : 'no') + ' current=' + (({current}) ? 'yes' : 'no')"
    api = {"apiVersion": "admissionregistration.k8s.io/v1"}
    rule = {
        "apiGroups": ["vmpool.dev"], "apiVersions": ["*"], "operations": ["UPDATE"],
        "resources": [f"{PLURALS[kind]}/status"],
    }  # fmt: skip
    policy = {
        **api,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {
                "resourceRules": [rule],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            },
            "validations": [{"expression": "false", "messageExpression": message}],
        },
    }
    binding = {
        **api,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    }
    return policy, binding


@pytest.fixture
async def judge(api: Api, crds_installed: None, shared_namespace: str) -> AsyncIterator[Any]:
    """Ask the server what Flux's expressions make of a state."""
    made = []
    for kind in EXPRESSIONS:
        name = f"flux-{kind.lower()}-{secrets.token_hex(3)}"
        for plural, body in zip(("validatingadmissionpolicies", "validatingadmissionpolicybindings"),
                                telling(kind, name, shared_namespace), strict=True):  # fmt: skip
            (await api.call("POST", f"{POLICIES}/{plural}", body)).ok()
            made.append(f"{POLICIES}/{plural}/{name}")

    async def ask(state: State, number: int) -> KStatus:
        objects, name = api.kind(PLURALS[state.kind], shared_namespace), f"flux-{number}"
        (await objects.create(thing(state.kind, name, state.found["spec"]))).ok()

        async def told() -> re.Match[str] | None:
            answer = await objects.merge(name, {"status": state.found["status"]}, "status")
            # Until the server has the policy, it takes the status.
            return ANSWER.search(answer.message) if answer.status == 422 else None

        said = await until(told, deadline=ACTIVE_SECONDS, what="the policy's word")
        assert said is not None
        failed, current = said.groups()
        return KStatus.FAILED if failed == "yes" else KStatus.CURRENT if current == "yes" else KStatus.IN_PROGRESS

    yield ask
    for path in reversed(made):
        (await api.call("DELETE", path)).ok()


@pytest.mark.control_plane
async def test_flux_waits_as_ever_but_not_for_what_is_paused(judge: Any) -> None:
    assert {state.kind for state in JUDGED} == {"VMPool", "VMProvider"}
    for number, state in enumerate(JUDGED):
        usual = compute(state.found)
        # While a pool stalls and still works on something, kstatus would wait; to fail at once is right too.
        wanted = {KStatus.FAILED} if state.name == "a name that is taken, and filling" else {usual}
        if state.found["spec"].get("paused"):
            wanted = {KStatus.CURRENT}
        assert await judge(state, number) in wanted, str(state)
