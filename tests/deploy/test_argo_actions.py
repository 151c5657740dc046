"""What people can do in Argo CD: each action is offered when it makes sense, and the API server takes what it sends."""

from typing import Any

import pytest
import yaml

from tests.api import MERGE, STRICT, Answer, Api, Objects
from tests.deploy.argo import ROOT, Scripts
from tests.deploy.states import PLURALS, State, every, shown
from tests.objects import Json, pool, thing
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.cli import argocd

WITH_ACTIONS = {
    "VMPool": {"pause", "resume", "drain", "reset", "scale"},
    "VMProvider": {"pause", "resume"},
    "PurgePolicy": {"pause", "resume", "purge-now", "dry-run", "live"},
    "DeadLetter": {"redrive", "take-back", "discard"},
    "VMClaim": {"extend"},
}
PARAMS = {"scale": {"replicas": "7"}, "extend": {"lifetime": "3h"}}
STATES = [
    state for state in every() if state.kind in WITH_ACTIONS and "deletionTimestamp" not in state.found["metadata"]
]
AUTOSCALING = "/apis/autoscaling/v2"
SCALING_SECONDS = 90
SELDOM = {("DeadLetter", "redrive"), ("PurgePolicy", "resume")}
"""Of letters that nobody asked for yet, and of policies that were paused from Argo CD: each has a row above."""


def test_these_kinds_have_these_actions(scripts: Scripts) -> None:
    assert {kind: set(scripts.defined(kind)) for kind in scripts.kinds_with_actions()} == WITH_ACTIONS


@pytest.mark.parametrize("state", STATES, ids=str)
def test_what_is_offered_is_defined_in_every_state(scripts: Scripts, state: State) -> None:
    offered = scripts.offered(state.found)
    assert set(offered) == WITH_ACTIONS[state.kind]
    for told in offered.values():
        assert set(told) <= {"disabled", "displayName", "iconClass", "params"}
        assert isinstance(told.get("disabled", False), bool)
        assert all(isinstance(each["default"], str) and each["name"] for each in told.get("params", []))


@pytest.mark.parametrize(
    ("found", "enabled"),
    [
        (shown("VMPool", {}, {"paused": False, "replicas": 3}), {"pause", "drain", "reset", "scale"}),
        (shown("VMPool", {"desiredReplicas": 0}, {"paused": True}), {"resume", "reset", "scale"}),
        (shown("VMPool", {"desiredReplicas": 2}, {}), {"pause", "drain", "reset", "scale"}),
        (shown("VMProvider", {}, {"paused": True}), {"resume"}),
        (shown("VMProvider", {}, {}), {"pause"}),
        (shown("PurgePolicy", {}, {"dryRun": True}), {"pause", "purge-now", "live"}),
        (shown("PurgePolicy", {}, {"pauses": [{"name": "argo-cd"}]}), {"resume", "purge-now", "dry-run"}),
        (shown("PurgePolicy", {}, {"pauses": [{"name": "move"}]}), {"pause", "purge-now", "dry-run"}),
        (shown("DeadLetter", {"observedGeneration": -1}, {}), {"redrive", "discard"}),
        (shown("DeadLetter", {"observedGeneration": -1}, {"action": "redrive"}), {"discard"}),
        (shown("DeadLetter", {"observedGeneration": 1}, {"action": "redrive"}), {"take-back", "discard"}),
        (shown("VMClaim", {"phase": "Bound"}, {}), {"extend"}),
        (shown("VMClaim", {"phase": "Expired"}, {}), set()),
    ],
)
def test_an_action_is_enabled_when_it_would_change_something(scripts: Scripts, found: Json, enabled: set[str]) -> None:
    assert scripts.enabled(found) == enabled


PAUSES = [{"name": "move", "reason": "racks are moved"}]


@pytest.mark.parametrize(
    ("found", "action", "patch"),
    [
        (shown("VMPool", {}, {}), "pause", {"paused": True}),
        (shown("VMPool", {}, {"paused": True}), "resume", {"paused": False}),
        (shown("VMPool", {}, {"replicas": 3}), "drain", {"replicas": 0}),
        (shown("VMPool", {}, {"replicas": 3}), "scale", {"replicas": 7}),
        (shown("VMProvider", {}, {}), "pause", {"paused": True}),
        (shown("VMProvider", {}, {"paused": True}), "resume", {"paused": False}),
        (shown("DeadLetter", {}, {}), "redrive", {"action": "redrive"}),
        (shown("DeadLetter", {}, {}), "discard", {"action": "discard"}),
        (shown("DeadLetter", {}, {"queue": "failures", "action": "redrive"}), "take-back", {"action": None}),
        (shown("PurgePolicy", {}, {"dryRun": True}), "live", {"dryRun": False}),
        (shown("PurgePolicy", {}, {"dryRun": False}), "dry-run", {"dryRun": True}),
        (shown("PurgePolicy", {}, {"pauses": [*PAUSES, {"name": "argo-cd"}]}), "resume", {"pauses": PAUSES}),
        (shown("PurgePolicy", {}, {"pauses": [{"name": "argo-cd"}]}), "resume", {"pauses": []}),
        (shown("VMClaim", {}, {"lifetime": "1h"}), "extend", {"lifetime": "3h"}),
    ],
)
def test_an_action_changes_this_and_nothing_else(scripts: Scripts, found: Json, action: str, patch: Json) -> None:
    assert scripts.patch(found, action, **PARAMS.get(action, {})) == {"spec": patch}


def test_a_pause_and_a_wish_for_a_cycle_leave_other_peoples_pauses(scripts: Scripts) -> None:
    found = shown("PurgePolicy", {}, {"pauses": PAUSES})
    for action, name in (("pause", "argo-cd"), ("purge-now", "purge-now")):
        pauses = scripts.patch(found, action)["spec"]["pauses"]
        assert pauses[0] == PAUSES[0]
        assert [each["name"] for each in pauses] == ["move", name]
    again = shown("PurgePolicy", {}, {"pauses": [*PAUSES, {"name": "purge-now", "until": "2020-01-01T00:00:00Z"}]})
    assert len(scripts.patch(again, "purge-now")["spec"]["pauses"]) == 2


@pytest.mark.parametrize(
    ("action", "params"),
    [("scale", {}), ("scale", {"replicas": "-1"}), ("scale", {"replicas": "1.5"}), ("scale", {"replicas": "many"})],
)
def test_nonsense_is_refused_with_a_sentence(scripts: Scripts, action: str, params: dict[str, str]) -> None:
    with pytest.raises(Exception, match="replicas must be a whole number, 0 or more"):
        scripts.patch(shown("VMPool", {}, {"replicas": 3}), action, **params)


def test_a_claim_is_not_extended_by_nothing(scripts: Scripts) -> None:
    with pytest.raises(Exception, match="lifetime must be a duration"):
        scripts.patch(shown("VMClaim", {}, {}), "extend", lifetime="")


# On the real API server.


async def tried(objects: Objects, name: str, patch: Json) -> Answer:
    """Send a patch as Argo CD does, and have the server do everything but store."""
    path = f"{objects.path}/{name}"
    return await objects.api.call("PATCH", path, patch, content=MERGE, query={**STRICT, "dryRun": "All"})


@pytest.mark.control_plane
@pytest.mark.usefixtures("crds_installed")
@pytest.mark.parametrize("number", range(len(STATES)), ids=[str(state) for state in STATES])
async def test_the_server_takes_the_state_and_every_action_on_it(
    scripts: Scripts, api: Api, shared_namespace: str, number: int
) -> None:
    state = STATES[number]
    objects, name = api.kind(PLURALS[state.kind], shared_namespace), f"state-{number}"
    made = (await objects.create(thing(state.kind, name, state.found["spec"]))).ok()
    live = (await objects.merge(name, {"status": state.found["status"]}, "status")).ok()
    assert live["metadata"]["uid"] == made["metadata"]["uid"]
    for action in sorted(scripts.enabled(live)):
        patch = scripts.patch(live, action, **PARAMS.get(action, {}))
        assert set(patch) == {"spec"}, f"{action} changes more than the spec: {patch}"
        after = (await tried(objects, name, patch)).ok()
        assert after["metadata"]["generation"] == live["metadata"]["generation"] + 1, f"{action} changed nothing"


def test_every_action_is_taken_in_some_state(scripts: Scripts) -> None:
    had = {(state.kind, action) for state in STATES for action in scripts.enabled(state.found)}
    assert had >= {(kind, action) for kind, actions in WITH_ACTIONS.items() for action in actions} - SELDOM


# What the ConfigMap does to an Argo CD that has settings of its own, and whose writes it is told to overlook.


@pytest.mark.control_plane
def test_the_configmap_adds_its_keys_and_touches_no_other(kubectl: Kubectl) -> None:
    kubectl("create", "namespace", "argocd")
    try:
        kubectl("create", "configmap", "argocd-cm", "-n", "argocd", "--from-literal=url=https://argocd.example.com")
        apply = ("apply", "--server-side", "--field-manager=vmpool", "-f", str(ROOT / argocd.MADE))
        kubectl(*apply)
        kubectl(*apply)
        told = yaml.safe_load(kubectl("get", "configmap", "argocd-cm", "-n", "argocd", "-o", "yaml"))["data"]
    finally:
        kubectl("delete", "namespace", "argocd", "--wait=false")
    assert told.pop("url") == "https://argocd.example.com"
    assert told == yaml.safe_load((ROOT / argocd.MADE).read_text())["data"]


def overlooked(scripts: Scripts) -> list[str]:
    told = yaml.safe_load(scripts.data["resource.customizations.ignoreDifferences.vmpool.dev_VMPool"])
    assert set(told) == {"managedFieldsManagers"}
    return list(told["managedFieldsManagers"])


def owners(found: Json) -> set[str]:
    """Who owns spec.replicas."""
    managed = found["metadata"]["managedFields"]
    return {each["manager"] for each in managed if "f:replicas" in each["fieldsV1"].get("f:spec", {})}


@pytest.mark.control_plane
@pytest.mark.usefixtures("crds_installed")
async def test_what_an_autoscaler_writes_is_overlooked_and_what_a_person_writes_is_not(
    scripts: Scripts, api: Api, shared_namespace: str, kubectl: Kubectl
) -> None:
    pools = api.kind("vmpools", shared_namespace)
    (await pools.apply(pool("scaled"), "argocd-controller")).ok()
    status = {"desiredReplicas": 1, "replicas": 1, "selector": "vmpool.dev/pool=scaled"}
    (await pools.merge("scaled", {"status": status}, "status")).ok()
    target = {"apiVersion": "vmpool.dev/v1alpha1", "kind": "VMPool", "name": "scaled"}
    wish = {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 4}
    autoscaler: Json = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "scaled"},
        "spec": wish,
    }
    autoscalers = api.kind("horizontalpodautoscalers", shared_namespace, api=AUTOSCALING)
    (await autoscalers.create(autoscaler)).ok()

    async def resting() -> bool:
        known = (await autoscalers.get("scaled")).ok().get("status", {}).get("conditions", [])
        return "FailedGetScale" in {one["reason"] for one in known}

    # docs/gitops.md: nothing comes of it until somebody has given the pool a size.
    await until(resting, deadline=SCALING_SECONDS, what="the autoscaler rests")
    assert "replicas" not in (await pools.get("scaled")).ok()["spec"]
    kubectl("scale", "vmpool", "scaled", "-n", shared_namespace, "--replicas=1")
    assert not owners((await pools.get("scaled")).ok()) & set(overlooked(scripts))

    async def scaled() -> Any:
        found = (await pools.get("scaled")).ok()
        return found if found["spec"]["replicas"] == 2 else None

    found = await until(scaled, deadline=SCALING_SECONDS, what="the autoscaler's write")
    assert owners(found) <= set(overlooked(scripts))
    # Git says nothing of the size, so applying it again takes nothing back.
    again = (await pools.apply(pool("scaled"), "argocd-controller")).ok()
    assert again["spec"]["replicas"] == 2
