"""The linter: each rule finds the request that breaks it, and no other."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.gate.plan import Kind
from tests.faults.oracle.facts import Terms
from tests.unit.faults.oracle_story import Story, good, plan
from vmpool.api import keys

META = {"uid": "uid-web", "resourceVersion": "7"}


def _after(verb: str, plural: str, name: str = "web", **different: Any) -> Story:
    """A good story with one more call."""
    story = good()
    story.call(verb, plural, name, step=True, **different)
    return story


# --- L1 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plural", ["pooledvms", "deadletters", "vmclaims"])
@pytest.mark.parametrize("body", [None, {}, {"preconditions": {}}, {"preconditions": {"resourceVersion": "7"}}])
def test_a_delete_by_name_alone(plural: str, body: Any) -> None:
    assert len(_after("delete", plural, body=body).broken("L1")) == 1
    assert _after("delete", plural, body={"preconditions": {"uid": "u"}}).broken("L1") == []


def test_a_lease_is_deleted_as_it_may() -> None:
    assert _after("delete", "leases").broken("L1") == []


# --- L3 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plural", ["pooledvms", "vmpools", "vmproviders", "vmclaims", "deadletters", "purgepolicies"])
@pytest.mark.parametrize(("meta", "found"), [(META, 0), ({"uid": "u"}, 1), ({"resourceVersion": "7"}, 1), ({}, 2)])
def test_a_status_is_written_on_a_version(plural: str, meta: dict[str, str], found: int) -> None:
    body = {"metadata": meta, "status": {"phase": "Ready"}}
    assert len(_after("patch", plural, sub="status", body=body).broken("L3")) == found


@pytest.mark.parametrize(
    ("claim", "found"),
    [
        ({"id": "c", "boundAt": "2030"}, 0),
        ({"id": "c", "expiresAt": "2030"}, 0),
        ({"id": "c", "releasedAt": "2030"}, 1),
    ],
    ids=["bind", "extend", "end"],
)
def test_only_the_end_of_a_claim_needs_the_version_it_was_decided_on(claim: dict[str, str], found: int) -> None:
    body = {"metadata": {"uid": "u"}, "spec": {"claim": claim}}
    assert len(_after("patch", "pooledvms", body=body).broken("L3")) == found
    with_version = {**body, "metadata": META}
    assert _after("patch", "pooledvms", body=with_version).broken("L3") == []


def test_poison_is_forgiven_on_whatever_version() -> None:
    body = {"metadata": {"uid": "u"}, "status": {"poison": None}}
    assert _after("patch", "vmpools", sub="status", body=body).broken("L3") == []
    more = {**body, "status": {"poison": None, "replicas": 1}}
    assert len(_after("patch", "vmpools", sub="status", body=more).broken("L3")) == 1


UID_TEST = {"op": "test", "path": "/metadata/uid", "value": "u"}
LIST_TEST = {"op": "test", "path": "/metadata/finalizers", "value": ["a"]}
REPLACE = {"op": "replace", "path": "/metadata/finalizers", "value": []}
ADD = {"op": "add", "path": "/metadata/finalizers", "value": ["a"]}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ([UID_TEST, LIST_TEST, REPLACE], 0),
        ([UID_TEST, ADD], 0),
        ([LIST_TEST, REPLACE], 1),
        ([UID_TEST, REPLACE], 1),
        ([REPLACE], 2),
    ],
)
def test_a_json_patch_tests_whom_it_means_and_what_it_replaces(body: list[dict[str, Any]], found: int) -> None:
    assert len(_after("patch", "vmpools", body=body).broken("L3")) == found


# --- L4 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "plural", "name", "body"),
    [
        ("create", "pods", "x", None),
        ("delete", "secrets", "cloud", None),
        ("patch", "secrets", "cloud", {"data": {"a": "b"}}),
        ("patch", "secrets", "cloud", [UID_TEST, {"op": "replace", "path": "/data/apiKey", "value": ""}]),
        ("create", "configmaps", "", {"metadata": {"name": "other"}}),
        ("patch", "configmaps", keys.IDENTITY_CONFIGMAP, {}),
        ("update", "leases", "another", None),
        ("patch", "customresourcedefinitions", "vmpools.vmpool.dev", None),
    ],
)
def test_what_is_not_ours_is_not_written(verb: str, plural: str, name: str, body: Any) -> None:
    assert len(_after(verb, plural, name, body=body).broken("L4")) == 1


@pytest.mark.parametrize(
    ("verb", "plural", "name", "body"),
    [
        ("patch", "secrets", "cloud", [UID_TEST, LIST_TEST, REPLACE]),
        ("create", "configmaps", "", {"metadata": {"name": keys.IDENTITY_CONFIGMAP}}),
        ("create", "leases", "", {"metadata": {"name": keys.LEASE_NAME}}),
        ("update", "leases", keys.LEASE_NAME, None),
        ("create", "events", "", {}),
        ("create", "pooledvms", "", {}),
    ],
)
def test_what_is_ours_may_be_written(verb: str, plural: str, name: str, body: Any) -> None:
    assert _after(verb, plural, name, body=body).broken("L4") == []


def test_nothing_is_written_elsewhere_and_questions_lie_nowhere() -> None:
    assert len(_after("patch", "pooledvms", body={}, namespace="another").broken("L4")) == 1
    assert _after("create", "subjectaccessreviews", body={}, namespace="").broken("L4") == []
    assert _after("list", "pooledvms", namespace="").broken("L4") == []


# --- L5 -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 60))
def test_the_rate_is_that_of_the_busiest_second(first: int, second: int) -> None:
    story = Story()
    for count in (first, second):
        for _ in range(count):
            story.call("get", "vmpools")
        story.number += 12
    most = max(first, second)
    assert story.broken("L5", Terms(requests_per_second=most)) == []
    assert len(story.broken("L5", Terms(requests_per_second=most - 1))) == 1


def test_the_rate_counts_for_each_replica() -> None:
    story = Story()
    for replica in ("a", "b"):
        for _ in range(10):
            story.call("get", "vmpools", replica=replica)
    assert story.broken("L5", Terms(requests_per_second=10)) == []
    assert len(story.broken("L5", Terms(requests_per_second=9))) == 2


# --- L6 and L7 ----------------------------------------------------------------------------------------------


def test_what_is_written_in_the_quiet_at_the_end() -> None:
    body = {"metadata": META, "status": {}}
    story = _after("patch", "vmpools", sub="status", body=body)
    assert story.broken("L6") == [], "five seconds before the last look"
    assert len(story.broken("L6", looked=story.now + 1.45)) == 1
    assert story.broken("L6", looked=story.now + 1.45, failure="not done") == []
    story = _after("update", "leases", keys.LEASE_NAME)
    assert story.broken("L6", looked=story.now + 1.45) == []
    story = _after("delete", "machines", far="cloud")
    assert len(story.broken("L6", looked=story.now + 1.45)) == 1


def test_a_write_that_changed_nothing() -> None:
    body = {"metadata": META, "status": {}}
    story = _after("patch", "vmpools", sub="status", body=body, changed=False)
    assert len(story.broken("L7")) == 1
    assert story.broken("L7", plan=plan(Kind.DROP)) == [], "who is kept in the dark cannot know"
    story.trace[0]["fault"] = "reset-committed"
    assert story.broken("L7") == [], "nor who got no answer"


def test_a_write_that_was_refused_changed_nothing_rightly() -> None:
    assert _after("patch", "vmpools", sub="status", body={}, changed=False, status=409).broken("L7") == []
