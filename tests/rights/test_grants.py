"""The comparison of rights: what is granted, what was used, and what of either is too much."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rights.grants import Granted, Request, Right, deficit, grants, request, surplus

ME = "system:serviceaccount:here:me"
RIGHTS = st.builds(
    Right,
    st.sampled_from(["", "vmpool.dev"]),
    st.sampled_from(["secrets", "vmpools", "vmpools/status"]),
    st.sampled_from(["get", "patch"]),
    st.sampled_from(["", "one", "two"]),
)


def role(*rules: dict[str, Any], kind: str = "ClusterRole", name: str = "mine") -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name}, "rules": list(rules)}


def rule(resource: str, *verbs: str, group: str = "", names: tuple[str, ...] = ()) -> dict[str, Any]:
    made: dict[str, Any] = {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
    return {**made, "resourceNames": list(names)} if names else made


def use(right: Right, by: str = "ClusterRole mine") -> Request:
    return Request(ME, right, "here", bool(by), by, 200)


def test_a_role_grants_each_verb_on_each_resource_and_name() -> None:
    found = grants([role(rule("secrets", "get", "patch", names=("one", "two")), rule("pods", "list"))])
    assert [str(one) for one in found] == [
        "ClusterRole mine: get secrets 'one'",
        "ClusterRole mine: get secrets 'two'",
        "ClusterRole mine: patch secrets 'one'",
        "ClusterRole mine: patch secrets 'two'",
        "ClusterRole mine: list pods",
    ]


@pytest.mark.parametrize(
    "loose",
    [rule("*", "get"), rule("pods", "*"), rule("pods", "get", group="*"), {"nonResourceURLs": ["/"], "verbs": ["get"]}],
)
def test_what_has_no_name_cannot_be_proven(loose: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no one can tell"):
        grants([role(loose)])


def test_an_audit_event_tells_role_name_and_subresource() -> None:
    thing = {"apiGroup": "vmpool.dev", "resource": "vmpools", "subresource": "status", "namespace": "ci", "name": "web"}
    reason = 'RBAC: allowed by RoleBinding "b/ci" of Role "mine" to ServiceAccount "me/here"'
    event = {
        "user": {"username": ME},
        "verb": "patch",
        "objectRef": thing,
        "annotations": {"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": reason},
        "responseStatus": {"code": 409},
    }
    assert request(event) == Request(
        ME, Right("vmpool.dev", "vmpools/status", "patch", "web"), "ci", True, "Role mine", 409
    )
    event["annotations"] = {"authorization.k8s.io/decision": "forbid", "authorization.k8s.io/reason": ""}
    refused = request(event)
    assert refused is not None
    assert (refused.allowed, refused.role) == (False, "")


def test_paths_that_are_no_objects_are_nobodys_right() -> None:
    assert request({"user": {"username": ME}, "verb": "get", "requestURI": "/apis"}) is None


@given(st.lists(RIGHTS, unique=True), st.lists(RIGHTS))
def test_surplus_and_deficit_are_the_two_sides_of_one_comparison(held: list[Right], made: list[Right]) -> None:
    granted = [Granted("ClusterRole mine", right) for right in held]
    asked = [use(right, "ClusterRole mine" if any(one.covers(right) for one in held) else "") for right in made]
    left_over = {one.right for one in surplus(granted, asked)}
    assert left_over == {one for one in held if not any(one.covers(right) for right in made)}
    assert {right for _, right in deficit(asked)} == {
        one for one in made if not any(held_.covers(one) for held_ in held)
    }


def test_a_use_counts_for_the_role_that_allowed_it_alone() -> None:
    right = Right("", "secrets", "get")
    first, second = Granted("ClusterRole mine", right), Granted("Role other", right)
    assert surplus([second], [use(right)]) == [second]
    # Granted twice is once too often, used or not.
    assert surplus([first, second], [use(right)]) == [first, second]


def test_the_name_of_a_right_matters() -> None:
    one = Granted("ClusterRole mine", Right("", "secrets", "get", "one"))
    assert surplus([one], [use(Right("", "secrets", "get", "two"))]) == [one]
    assert not surplus([one], [use(Right("", "secrets", "get", "one"))])
    assert not Right("", "secrets", "get", "one").covers(Right("", "secrets", "get"))
