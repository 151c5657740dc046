"""What is left while everything is removed, and the words for it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.api import keys
from vmpool.cli.leftover import (
    OURS,
    Absence,
    Remains,
    is_held,
    is_taken,
    letting_go,
    served_by,
    unkept,
    without_ours,
)

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def thing(kind: str, name: str, spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    meta = {"namespace": "ci", "name": name, "uid": f"uid-of-{name}"}
    return {"kind": kind, "metadata": meta, "spec": spec or {}, "status": status}


def vm(name: str, **status: Any) -> dict[str, Any]:
    return thing("PooledVM", name, {"poolUid": "uid-of-web", "provider": "cloud"}, **status)


def test_nothing_left_is_done_and_says_so() -> None:
    assert Remains().done
    assert Remains().counted() == "nothing"
    assert not Remains().reasons()


@pytest.mark.parametrize("kind", ["claims", "pools", "vms", "providers"])
def test_anything_left_is_not_done(kind: str) -> None:
    assert not Remains(**{kind: (thing("Some", "one"),)}).done


def test_counts_are_words() -> None:
    left = Remains(vms=(vm("a"), vm("b")), pools=(thing("VMPool", "web"),))
    assert left.counted() == "2 VMs, 1 pool"


def test_each_object_says_why_it_is_there_and_vms_come_first() -> None:
    taken = vm("taken", phase="Claimed", machineId="m-1")
    taken["spec"]["claim"] = {"owner": "alice", "expiresAt": "2026-05-02T00:00:00Z"}
    stuck = vm("stuck", phase="Completed", reason="ProviderUnavailable", message="no answer", machineId="m-2")
    provider = thing("VMProvider", "cloud", circuit="Open", lastError="Timeout")
    left = Remains(
        claims=(thing("VMClaim", "build", message="waits"),),
        pools=(thing("VMPool", "web"), thing("VMPool", "other")),
        vms=(taken, stuck, vm("young")),
        providers=(provider, thing("VMProvider", "empty", circuit="Closed")),
    )
    assert [str(one) for one in left.reasons()] == [
        "PooledVM ci/taken: alice has it until 2026-05-02T00:00:00Z",
        "PooledVM ci/stuck: Completed: ProviderUnavailable no answer",
        "PooledVM ci/young: Pending",
        "VMPool ci/web: waits for its VMs, 3 of them",
        "VMPool ci/other: waits for its VMs, 0 of them",
        "VMClaim ci/build: waits",
        "VMProvider ci/cloud: waits for its machines, 3 known here; its circuit is Open; last error Timeout",
        "VMProvider ci/empty: waits for the operator",
    ]
    assert [one.machine for one in left.reasons()[:3]] == ["cloud: m-1", "cloud: m-2", ""]


def test_a_machine_of_the_same_name_elsewhere_is_not_the_providers() -> None:
    other = vm("a")
    other["metadata"]["namespace"] = "elsewhere"
    (_, said) = Remains(vms=(other,), providers=(thing("VMProvider", "cloud"),)).reasons()
    assert said.why == "waits for the operator"


def test_a_claim_that_has_ended_is_nobodys() -> None:
    one = vm("a")
    assert not is_taken(one)
    one["spec"]["claim"] = {"owner": "alice"}
    assert is_taken(one)
    assert Remains(vms=(one,)).taken == (one,)
    one["spec"]["claim"]["releasedAt"] = "2026-05-01T00:00:00Z"
    assert not is_taken(one)


@given(st.lists(st.sampled_from([*sorted(OURS), "kubernetes.io/pvc-protection", "example.com/theirs"]), unique=True))
def test_only_our_finalizers_are_taken_off_and_the_order_stays(held: list[str]) -> None:
    kept = without_ours(held)
    assert kept == [one for one in held if not one.startswith(f"{keys.GROUP}/")]


@pytest.mark.parametrize(
    ("age", "holder", "held"),
    [(1, "one", True), (29, "one", True), (31, "one", False), (1, "", False), (1, None, False)],
)
def test_an_operator_works_while_its_lease_is_renewed(age: float, holder: str | None, held: bool) -> None:
    renewed = (NOW - timedelta(seconds=age)).isoformat()
    lease = {"spec": {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 15}}
    assert is_held(lease, NOW) is held


def test_a_lease_that_was_let_go_is_nobodys() -> None:
    assert not is_held({}, NOW)
    assert not is_held({"spec": {"holderIdentity": "one"}}, NOW)


def test_a_claim_with_a_vm_is_not_idle_until_it_has_ended() -> None:
    taken, rest = vm("taken"), vm("rest")
    taken["spec"]["claim"] = {"owner": "alice", "ref": {"uid": "uid-of-has"}}
    rest["spec"]["claim"] = {"owner": "bob"}
    has, waits = thing("VMClaim", "has"), thing("VMClaim", "waits")
    left = Remains(claims=(has, waits), vms=(taken, rest, vm("free")))
    assert left.idle_claims == (waits,)
    taken["spec"]["claim"]["releasedAt"] = "2026-05-01T00:00:00Z"
    assert left.idle_claims == (has, waits)


def test_holders_are_the_finalizers() -> None:
    held, gone = thing("VMPool", "held"), thing("VMProvider", "gone")
    held["metadata"]["finalizers"] = ["example.com/theirs", keys.FINALIZER_DRAIN]
    assert [str(one) for one in Remains(pools=(held,), providers=(gone,)).holders()] == [
        f"VMPool ci/held: held by finalizer example.com/theirs, {keys.FINALIZER_DRAIN}",
        "VMProvider ci/gone: held by nothing, and not deleted yet",
    ]


def test_an_operator_is_gone_when_nobody_was_seen_for_the_whole_time_without_a_break() -> None:
    absence = Absence(60)
    assert not absence.lasts(False, 100)
    assert not absence.lasts(False, 159)
    assert not absence.lasts(True, 160), "the next one has the lease"
    assert not absence.lasts(False, 161)
    assert not absence.lasts(False, 220)
    assert absence.lasts(False, 221)


def test_letting_go_tests_the_list_that_it_was_made_from() -> None:
    one = vm("a")
    assert letting_go(one) == []
    one["metadata"]["finalizers"] = ["example.com/theirs"]
    assert letting_go(one) == []
    one["metadata"]["finalizers"] = ["example.com/theirs", keys.FINALIZER_MACHINE]
    assert letting_go(one) == [
        {"op": "test", "path": "/metadata/uid", "value": "uid-of-a"},
        {"op": "test", "path": "/metadata/finalizers", "value": ["example.com/theirs", keys.FINALIZER_MACHINE]},
        {"op": "replace", "path": "/metadata/finalizers", "value": ["example.com/theirs"]},
    ]


WATCHED = "VMPOOL_WATCH_NAMESPACE"


@pytest.mark.parametrize(
    ("environment", "served"),
    [
        pytest.param(None, "", id="no variables"),
        pytest.param([{"name": "OTHER", "value": "ci"}], "", id="others"),
        pytest.param([{"name": WATCHED, "value": ""}], "", id="empty"),
        pytest.param([{"name": WATCHED, "value": "ci"}], "ci", id="one"),
        pytest.param([{"name": WATCHED, "valueFrom": {"fieldRef": {}}}], None, id="from elsewhere"),
    ],
)
def test_a_deployment_says_which_namespace_it_serves(environment: list[Any] | None, served: str | None) -> None:
    container = {"name": "operator", **({"env": environment} if environment is not None else {})}
    assert served_by({"spec": {"template": {"spec": {"containers": [container]}}}}) == served


def test_definitions_that_helm_does_not_keep_are_found_in_its_manifest() -> None:
    manifest = """
---
# Source: vmpool/templates/crds.yaml
kind: CustomResourceDefinition
metadata: {name: kept, annotations: {helm.sh/resource-policy: keep}}
---
kind: CustomResourceDefinition
metadata: {name: bare}
---
kind: CustomResourceDefinition
metadata: {name: otherwise, annotations: {helm.sh/resource-policy: delete}}
---
kind: Secret
metadata: {name: bare}
---
"""
    assert unkept(manifest) == ["bare", "otherwise"]
    assert unkept("") == []
