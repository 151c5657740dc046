"""What our admission policies refuse, fill in and let pass, as we ship them, on a real server."""

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import yaml

from tests.api import Api, Json, Objects
from tests.objects import vm
from tests.planes import Kubectl
from tests.users import (
    ADMISSION,
    MAKE_CLAIMS,
    User,
    Users,
    apply,
    grant,
    guarded_kubectl,
    guarded_plane,
    held_to_policies,
    permitted,
    rule,
    users,
    wish,
)
from tests.waiting import until
from vmpool.api import keys
from vmpool.api.claim import MAX_REQUESTS
from vmpool.api.vm import MAX_GROUPS

__all__ = ["guarded_kubectl", "guarded_plane", "users"]

pytestmark = pytest.mark.control_plane

ALICE = User("alice", ("builders", "testers"))
BOB = User("bob")
GATEWAY = User("gateway")
IMPOSTOR = User("vmpool:bob")
OPERATOR = User("operator")
OD_NAME = "od-" + "0123456789" * 4
REST = {"requester": "vmpool:bob", "requesterGroups": ["vmpool:rest"]}


@pytest.fixture(scope="module")
def home(guarded_kubectl: Kubectl) -> Iterator[str]:
    """A namespace whose users may claim from every pool in it; the gateway's account may stamp."""
    name = f"home-{secrets.token_hex(3)}"
    guarded_kubectl("create", "namespace", name)
    rights = [rule("vmclaims", MAKE_CLAIMS), rule("vmpools", ["claim"])]
    operator = [rule("vmclaims", ["get", "delete"]), rule("vmclaims/status", ["patch"])]
    people = [grant(name, user.name.replace(":", "-"), rights, user=user.name) for user in (ALICE, BOB, IMPOSTOR)]
    gateway = grant(name, "gateway", [*rights, rule("vmclaims", ["stamp"])], user=GATEWAY.name)
    apply(
        guarded_kubectl,
        [*(one for made in people for one in made), *gateway, *grant(name, "operator", operator, user=OPERATOR.name)],
    )
    yield name
    guarded_kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
async def town(users: Users, home: str) -> str:
    claim = ("claim", "vmpools", home, "web")
    await permitted(users, {ALICE: claim, BOB: claim, IMPOSTOR: claim, GATEWAY: ("stamp", "vmclaims", home, "")})
    await permitted(users, {OPERATOR: ("patch", "vmclaims/status", home, "")})
    return home


@pytest.fixture
async def hers(users: Users, town: str) -> Objects:
    """VMClaims as alice sees them."""
    return (await users.api(ALICE)).kind("vmclaims", town)


@pytest.fixture
async def gateways(users: Users, town: str) -> Objects:
    """VMClaims as the gateway's account sees them."""
    return (await users.api(GATEWAY)).kind("vmclaims", town)


def fresh() -> str:
    return f"c-{secrets.token_hex(4)}"


def marked(body: Json, *, label: str = "", annotation: str = "") -> Json:
    """The same with the marks of an on-demand request."""
    if label:
        body["metadata"]["labels"] = {keys.LABEL_ONDEMAND: label}
    if annotation:
        body["metadata"]["annotations"] = {keys.ANNOTATION_ONDEMAND: annotation}
    return body


async def refused(claims: Objects, body: Json, *words: str) -> None:
    answer = await claims.create(body)
    assert answer.status == 403, f"{answer.status}: {answer.message}"
    for word in words:
        assert word in answer.message


@asynccontextmanager
async def without(users: Users, kubectl: Kubectl, kind: str, name: str) -> AsyncIterator[None]:
    """Take a policy's binding away, and put it back."""
    probes = (await users.api()).kind("vmclaims", "default")

    async def lifted() -> bool:
        forged = {"requester": "x"} if name == keys.CLAIM_POLICY else {}
        answer = await probes.create(wish("probe", "web", **forged), dryRun="All")
        return answer.status == (201 if name == keys.CLAIM_POLICY else 403)

    kubectl("delete", kind, name)
    try:
        await until(lifted, what=f"{kind} {name} is lifted")
        yield
    finally:
        kubectl("apply", "--server-side", "-f", str(ADMISSION))
        await held_to_policies(users, "default")


# --- what the manifests say ----------------------------------------------------------------------------------------


def documents(file: str) -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all((ADMISSION / file).read_text())}


def test_the_manifests_say_what_the_code_says() -> None:
    made = documents("claims.yaml")
    policy, binding = made["ValidatingAdmissionPolicy"], made["ValidatingAdmissionPolicyBinding"]
    assert policy["metadata"]["name"] == binding["metadata"]["name"] == keys.CLAIM_POLICY
    assert binding["spec"] == {"policyName": keys.CLAIM_POLICY, "validationActions": ["Deny"]}
    assert policy["spec"]["failurePolicy"] == "Fail"
    texts = [one["expression"] for part in ("variables", "validations") for one in policy["spec"][part]]
    assert sum(f"check('{keys.VERB_CLAIM}')" in text for text in texts) == MAX_REQUESTS
    assert sum(f"check('{keys.VERB_STAMP}')" in text for text in texts) == 1
    # The server's limit per expression has room for two access reviews; older servers count all of a policy's.
    assert max(text.count(".check(") for text in texts) == 1
    whole = "\n".join(texts)
    for word in (keys.REST_GROUP, keys.REST_USER_PREFIX, keys.LABEL_ONDEMAND, keys.ANNOTATION_ONDEMAND):
        assert f"'{word}'" in whole
    assert f"<= {MAX_GROUPS}" in whole
    assert f"size(variables.pools) <= {MAX_REQUESTS}" in whole
    filler = documents("requester.yaml")["MutatingAdmissionPolicy"]["spec"]["mutations"][0]["jsonPatch"]["expression"]
    assert f".slice(0, {MAX_GROUPS})" in filler


async def test_the_server_finds_no_fault_with_the_expressions(users: Users) -> None:
    path = f"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/{keys.CLAIM_POLICY}"

    async def checked() -> Json | None:
        found = (await (await users.api()).call("GET", path)).ok()
        return found if found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"] else None

    found = await until(checked, what="the policy's types are checked")
    assert found is not None
    assert found["status"].get("typeChecking", {}) == {}


# --- who asks ------------------------------------------------------------------------------------------------------


async def test_who_asks_is_filled_in(hers: Objects) -> None:
    for given in ({}, {"requester": ""}, {"requester": "alice"}, {"requesterGroups": []}):
        made = (await hers.create(wish(fresh(), "web", **given))).ok()["spec"]
        assert made["requester"] == "alice"
        assert made["requesterGroups"] == ALICE.all_groups


async def test_who_writes_it_all_is_believed(hers: Objects) -> None:
    backwards = list(reversed(ALICE.all_groups))
    made = (await hers.create(wish(fresh(), "web", requester="alice", requesterGroups=backwards))).ok()["spec"]
    assert made["requesterGroups"] == backwards


async def test_nobody_asks_in_anothers_name(hers: Objects, gateways: Objects) -> None:
    for name in ("bob", "Alice", "alice ", "system:admin", "vmpool-dev-admin"):
        await refused(hers, wish(fresh(), "web", requester=name), f"spec.requester is '{name}' but you are 'alice'")
    # The right to stamp is one to speak for users of the REST API, not for users of Kubernetes.
    await refused(gateways, wish(fresh(), "web", requester="alice"), "but you are 'gateway'")


async def test_nobody_claims_a_group_that_is_not_theirs(hers: Objects) -> None:
    for groups in (["system:masters"], [*ALICE.all_groups, "admins"], ALICE.all_groups[:-1], ["vmpool:rest"]):
        body = wish(fresh(), "web", requesterGroups=groups)
        await refused(hers, body, "groups of 'alice': write builders, testers, system:authenticated, or")


async def test_a_user_of_more_groups_than_can_be_stored(users: Users, town: str) -> None:
    crowd = User("alice", tuple(f"group-{number:03}" for number in range(300)))
    claims = (await users.api(crowd)).kind("vmclaims", town)
    assert (await claims.create(wish(fresh(), "web"))).ok()["spec"]["requesterGroups"] == crowd.all_groups[:64]
    chosen = crowd.all_groups[200:264]
    assert (await claims.create(wish(fresh(), "web", requesterGroups=chosen))).ok()["spec"]["requesterGroups"] == chosen
    await refused(claims, wish(fresh(), "web", requesterGroups=["group-007", "admins"]), "must be groups of 'alice'")


async def test_a_group_too_long_to_be_stored_is_left_out(users: Users, town: str) -> None:
    user = User("alice", ("builders", "x" * 254, "y" * 253))
    claims = (await users.api(user)).kind("vmclaims", town)
    made = (await claims.create(wish(fresh(), "web"))).ok()["spec"]
    assert made["requesterGroups"] == ["builders", "y" * 253, "system:authenticated"]


async def test_a_refusal_too_long_for_the_server_still_says_what_to_do(users: Users, town: str) -> None:
    crowd = User("alice", tuple(f"group-{number:02}-{'x' * 200}" for number in range(60)))
    claims = (await users.api(crowd)).kind("vmclaims", town)
    await refused(claims, wish(fresh(), "web", requesterGroups=["a"]), "your own groups, as kubectl auth whoami")


async def test_where_nothing_is_filled_in_users_are_told_what_to_write(
    users: Users, hers: Objects, guarded_kubectl: Kubectl
) -> None:
    """As on servers before 1.36."""
    async with without(users, guarded_kubectl, "mutatingadmissionpolicybinding", "vmpool-requester"):
        await refused(hers, wish(fresh(), "web"), "spec.requester is '' but you are 'alice': write your own name")
        await refused(hers, wish(fresh(), "web", requester="alice"), "write builders, testers, system:authenticated")
        whole = wish(fresh(), "web", requester="alice", requesterGroups=ALICE.all_groups)
        assert (await hers.create(whole)).ok()["spec"]["requester"] == "alice"


async def test_an_applied_claim_can_be_applied_again(hers: Objects) -> None:
    """Filled-in fields belong to no manager: else a second apply would take them away, which the kind forbids."""
    name = fresh()
    for lifetime in ("1h", "2h", "2h"):
        made = (await hers.apply(wish(name, "web", lifetime=lifetime), "gitops")).ok()["spec"]
        assert made["requester"] == "alice"
        assert made["lifetime"] == lifetime


# --- users of the REST API -----------------------------------------------------------------------------------------


async def test_only_who_may_stamp_speaks_for_rest_users(users: Users, hers: Objects, gateways: Objects) -> None:
    made = (await gateways.create(wish(fresh(), "web", **REST))).ok()["spec"]
    assert made["requester"] == "vmpool:bob"
    assert made["requesterGroups"] == ["vmpool:rest"]
    await refused(hers, wish(fresh(), "web", **REST), "stands for a user of the REST API", "'alice' may not write that")
    own = wish(fresh(), "web", requester="vmpool:bob", requesterGroups=ALICE.all_groups)
    await refused(hers, own, "needs the verb stamp on vmclaims")


async def test_a_kubernetes_user_who_is_named_like_a_rest_user_is_none(users: Users, town: str) -> None:
    claims = (await users.api(IMPOSTOR)).kind("vmclaims", town)
    whole = {"requester": "vmpool:bob", "requesterGroups": IMPOSTOR.all_groups}
    for given in (whole, REST, {"requester": "vmpool:bob"}):
        await refused(claims, wish(fresh(), "web", **given), "'vmpool:bob' may not write that")
    await refused(claims, wish(fresh(), "web"), "spec.requester is ''")


async def test_the_right_to_stamp_ends_with_its_namespace(users: Users, town: str, guarded_kubectl: Kubectl) -> None:
    other = f"other-{secrets.token_hex(3)}"
    guarded_kubectl("create", "namespace", other)
    rights = [rule("vmclaims", MAKE_CLAIMS), rule("vmpools", ["claim"])]
    apply(guarded_kubectl, grant(other, "gateway", rights, user=GATEWAY.name))
    await permitted(users, {GATEWAY: ("claim", "vmpools", other, "web")})
    claims = (await users.api(GATEWAY)).kind("vmclaims", other)
    await refused(claims, wish(fresh(), "web", **REST), f"needs the verb stamp on vmclaims in namespace {other}")
    guarded_kubectl("delete", "namespace", other, "--wait=false")


@pytest.mark.parametrize(
    "groups", [[], ["vmpool:staff"], ["vmpool:rest", "system:masters"], ["vmpool:rest", "builders"], ["vmpool:resting"]]
)
async def test_rest_users_are_in_groups_of_rest_users_alone(gateways: Objects, groups: list[str]) -> None:
    body = wish(fresh(), "web", requester="vmpool:bob", requesterGroups=groups)
    await refused(gateways, body, "must be vmpool:rest and further groups that begin with vmpool:")


async def test_rest_users_may_have_further_groups(gateways: Objects) -> None:
    groups = ["vmpool:rest", "vmpool:staff"]
    body = wish(fresh(), "web", requester="vmpool:bob", requesterGroups=groups)
    assert (await gateways.create(body)).ok()["spec"]["requesterGroups"] == groups


# --- marks of on-demand requests -----------------------------------------------------------------------------------


async def test_the_marks_of_on_demand_requests_are_the_gateways(hers: Objects, gateways: Objects) -> None:
    for mark in ({"label": "true"}, {"annotation": '{"id":"x"}'}, {"label": "true", "annotation": "x"}):
        await refused(hers, marked(wish(fresh(), "web"), **mark), "vmpool.dev/ondemand", "are the gateway's: 'alice'")
        (await gateways.create(marked(wish(fresh(), "web", **REST), **mark))).ok()


async def test_marks_are_neither_added_nor_changed_nor_removed_later(hers: Objects, gateways: Objects) -> None:
    own, request = fresh(), fresh()
    (await hers.create(wish(own, "web"))).ok()
    (await gateways.create(marked(wish(request, "web", **REST), label="true", annotation="one"))).ok()
    changes = [
        (own, {"labels": {keys.LABEL_ONDEMAND: "true"}}),
        (own, {"annotations": {keys.ANNOTATION_ONDEMAND: "one"}}),
        (request, {"labels": {keys.LABEL_ONDEMAND: "false"}}),
        (request, {"annotations": {keys.ANNOTATION_ONDEMAND: "two"}}),
        (request, {"labels": None}),
        (request, {"annotations": {keys.ANNOTATION_ONDEMAND: None}}),
    ]
    for name, change in changes:
        answer = await hers.merge(name, {"metadata": change})
        assert answer.status == 403, f"{change}: {answer.status}"
        assert "are the gateway's" in answer.message
    (await hers.merge(request, {"metadata": {"labels": {"team": "x"}}})).ok()
    (await gateways.merge(request, {"metadata": {"annotations": {keys.ANNOTATION_ONDEMAND: "two"}}})).ok()


async def test_the_names_of_on_demand_requests_cannot_be_taken_beforehand(hers: Objects, gateways: Objects) -> None:
    await refused(hers, wish(OD_NAME, "web"), f"'{OD_NAME}'", "choose another")
    (await gateways.create(wish(OD_NAME, "web", **REST))).ok()
    for name in ("od-1", f"{OD_NAME}-a", f"x{OD_NAME}", OD_NAME[:-1]):
        (await hers.create(wish(name, "web"))).ok()


async def test_the_label_of_a_pool_on_a_claim_opens_no_pool(users: Users, town: str) -> None:
    """Neither label nor annotation counts for the right: the request does."""
    carol = User("carol")
    admin = (await users.api()).kind("rolebindings", town, api="/apis/rbac.authorization.k8s.io/v1")
    make = grant(town, "carol", [rule("vmclaims", MAKE_CLAIMS)], user="carol")
    roles = (await users.api()).kind("roles", town, api="/apis/rbac.authorization.k8s.io/v1")
    (await roles.create(make[0])).ok()
    (await admin.create(make[1])).ok()
    await permitted(users, {carol: ("create", "vmclaims", town, "")})
    claims = (await users.api(carol)).kind("vmclaims", town)
    body = wish(fresh(), "web")
    body["metadata"]["labels"] = {keys.LABEL_POOL: "free"}
    body["metadata"]["annotations"] = {keys.ANNOTATION_OVERRIDE: "{}"}
    await refused(claims, body, f"'carol' may not claim from VMPool {town}/web")


# --- later writes --------------------------------------------------------------------------------------------------


async def test_what_was_asked_and_by_whom_never_changes(users: Users, town: str, hers: Objects) -> None:
    name = fresh()
    (await hers.create(wish(name, "web"))).ok()
    changes: list[Json] = [
        {"requester": "bob"},
        {"requester": "vmpool:bob"},
        {"requester": None},
        {"requesterGroups": ["system:masters"]},
        {"requesterGroups": None},
        {"requests": [{"pool": "gold"}]},
        {"requests": [{"pool": "web", "namespace": "elsewhere"}]},
        {"requests": [{"pool": "web", "count": 100}]},
    ]
    for api in (await users.api(ALICE), await users.api(GATEWAY), await users.api()):
        claims = api.kind("vmclaims", town)
        for change in changes:
            answer = await claims.merge(name, {"spec": change})
            assert answer.status == 422, f"{change}: {answer.status}"
            assert "never change" in answer.message
            whole = (await claims.get(name)).ok()
            whole["spec"] = {key: value for key, value in {**whole["spec"], **change}.items() if value is not None}
            assert (await claims.put(whole)).status == 422


async def test_a_colleague_may_extend_and_nobody_is_renamed(users: Users, town: str, hers: Objects) -> None:
    name = fresh()
    (await hers.create(wish(name, "web"))).ok()
    made = (await (await users.api(BOB)).kind("vmclaims", town).merge(name, {"spec": {"lifetime": "3h"}})).ok()
    assert made["spec"]["requester"] == "alice"


async def test_the_operators_writes_pass(users: Users, town: str, hers: Objects) -> None:
    name = fresh()
    (await hers.create(wish(name, "web"))).ok()
    claims = (await users.api(OPERATOR)).kind("vmclaims", town)
    made = (await claims.merge(name, {"status": {"phase": "Failed", "reason": "NoSuchPool"}}, "status")).ok()
    assert made["status"]["phase"] == "Failed"
    assert (await claims.merge(name, {"spec": {"lifetime": "3h"}})).status == 403
    assert (await claims.delete(name)).status == 200


async def test_what_was_stored_before_the_policies_is_not_stuck(
    users: Users, town: str, hers: Objects, guarded_kubectl: Kubectl
) -> None:
    old, dying = fresh(), fresh()
    async with without(users, guarded_kubectl, "validatingadmissionpolicybinding", keys.CLAIM_POLICY):
        for name in (old, dying):
            body = marked(wish(name, "web", requester="somebody-else"), label="true")
            body["metadata"]["finalizers"] = ["example.com/hold"]
            (await hers.create(body)).ok()
    (await hers.merge(old, {"spec": {"lifetime": "3h"}})).ok()
    (await hers.delete(dying)).ok()
    (await hers.merge(dying, {"metadata": {"labels": None}})).ok()
    for name in (old, dying):
        (await hers.merge(name, {"metadata": {"finalizers": None}})).ok()
    assert (await hers.get(dying)).status == 404


async def test_an_unreadable_claim_is_refused_for_what_is_wrong_with_it(hers: Objects) -> None:
    for body, word in (
        ({**wish(fresh(), "web"), "spec": None}, "spec"),
        ({**wish(fresh(), "web"), "spec": {}}, "requests"),
        (wish(fresh()), "requests"),
        (wish(fresh(), *["web"] * 11), "requests"),
    ):
        answer = await hers.create(body)
        assert answer.status in {400, 422}, f"{answer.status}: {answer.message}"
        assert word in answer.message


# --- the other way in ----------------------------------------------------------------------------------------------


async def test_users_have_no_way_to_a_vm_but_a_claim(users: Users, town: str) -> None:
    admin = (await users.api()).kind("pooledvms", town)
    (await admin.create(vm("bobs", pool="web"))).ok()
    (await admin.merge("bobs", {"status": {"phase": "Ready"}}, "status")).ok()
    forged = {
        "id": "x",
        "owner": "alice",
        "ref": {"namespace": town, "name": "mine", "uid": "u", "kindUid": "k"},
        "slot": 0,
        "boundAt": "2026-01-01T00:00:00Z",
        "expiresAt": "2036-01-01T00:00:00Z",
    }
    patch: Json = {"spec": {"claim": forged}}
    api: Api = await users.api(ALICE)
    vms = api.kind("pooledvms", town)
    assert (await vms.merge("bobs", patch)).status == 403
    assert (await vms.merge("bobs", {"status": {"phase": "Claimed"}}, "status")).status == 403
    assert (await vms.merge("bobs", {"metadata": {"labels": {keys.LABEL_POOL: "mine"}}})).status == 403
    assert (await vms.apply(vm("bobs", pool="web", claim=forged), "alice")).status == 403
    assert (await vms.delete("bobs")).status == 403
    assert "claim" not in (await admin.get("bobs")).ok()["spec"]
