"""Users of the REST API x pools x verbs, and what a gateway's own account may do.

The gateway runs with the rights that we ship for it, and no others, under the policies that we ship. No operator runs.
"""

import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from tests.api import Api
from tests.control_plane.gateway.scene import Scene, Stock
from tests.gateways import Gateway
from tests.planes import Kubectl
from tests.rest import Rest, hosts, rest_client, short
from tests.users import (
    MAKE_CLAIMS,
    User,
    Users,
    account,
    apply,
    grant,
    guarded_kubectl,
    guarded_plane,
    permitted,
    rule,
    users,
    wish,
)
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane
from vmpool.gateway.auth.static import hash_password
from vmpool.gateway.notes import claim_name

__all__ = ["guarded_kubectl", "guarded_plane", "users"]

pytestmark = pytest.mark.control_plane

REVIEW_SECONDS = "0.5"
PASSWORD = "correct horse"
PEOPLE = {"alice": "", "bob": "builders", "carol": ""}
ALICE = User("vmpool:alice", ("vmpool:rest",))
BOB = User("vmpool:bob", ("vmpool:rest", "vmpool:builders"))
CAROL = User("vmpool:carol", ("vmpool:rest",))


@pytest.fixture(scope="module")
def home(guarded_kubectl: Kubectl) -> Iterator[str]:
    """The gateway's own namespace."""
    name = f"gate-{secrets.token_hex(3)}"
    guarded_kubectl("create", "namespace", name)
    yield name
    guarded_kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def served(
    guarded_plane: ControlPlane, guarded_kubectl: Kubectl, home: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A gateway for every namespace, as a service account with the shipped role; users are in a file."""
    folder = tmp_path_factory.mktemp("gateway")
    hashed = hash_password(PASSWORD)
    users_file = folder / "users"
    users_file.write_text(
        "".join(f"{name}:{hashed}:{groups}\n".replace(":\n", "\n") for name, groups in PEOPLE.items())
    )
    made = Gateway(
        account(guarded_kubectl, guarded_plane, home, "vmpool-gateway", folder),
        folder,
        VMPOOL_NAMESPACE=home,
        VMPOOL_GATEWAY_AUTH="static",
        VMPOOL_GATEWAY_USERS_FILE=str(users_file),
        VMPOOL_GATEWAY_REVIEW_SECONDS=REVIEW_SECONDS,
    )
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def tokens() -> dict[str, str]:
    """The users' tokens, made by the first test: a password takes its time."""
    return {}


@dataclass
class Town:
    """Two namespaces with a pool each, whose users are alice (by name) and bob (through a group); carol has nothing."""

    rest: Rest
    users: Users
    kubectl: Kubectl
    home: str
    hers: Scene
    his: Scene
    web: str
    gold: str
    tokens: dict[str, str]


@pytest.fixture
async def town(
    users: Users, guarded_kubectl: Kubectl, served: Gateway, home: str, tokens: dict[str, str]
) -> AsyncIterator[Town]:
    await served.ready()
    admin = await users.api()
    tag = secrets.token_hex(3)
    spaces = [f"hers-{tag}", f"his-{tag}"]
    for space in spaces:
        guarded_kubectl("create", "namespace", space)
    hers, his = Scene(admin, spaces[0]), Scene(admin, spaces[1])
    web = await hers.pool("web", Stock(ready=3, spec={"aliases": [f"any-{tag}"]}))
    gold = await his.pool("gold", Stock(ready=3, spec={"aliases": [f"any-{tag}"]}))
    apply(
        guarded_kubectl,
        [
            *grant(spaces[0], "alice", [rule("vmpools", ["claim"], web)], user=ALICE.name),
            *grant(spaces[1], "builders", [rule("vmpools", ["claim"], gold)], group="vmpool:builders"),
        ],
    )
    await permitted(users, {ALICE: ("claim", "vmpools", spaces[0], web), BOB: ("claim", "vmpools", spaces[1], gold)})
    async with rest_client(served.url) as rest:
        tokens |= {name: await rest.new_token(name, PASSWORD) for name in PEOPLE if name not in tokens}

        async def known() -> bool:
            stock = (await rest.get(f"/poolstat?pool={web},{gold}")).ok()["pools"]
            return [stock.get(name, {}).get("ready") for name in (web, gold)] == [3, 3]

        await until(known, what="the gateway knows the pools and their VMs")
        yield Town(rest, users, guarded_kubectl, home, hers, his, web, gold, tokens)
        guarded_kubectl("delete", "vmclaims", "--all", "-n", home, "--wait=false")
    await hers.gone([web])
    await his.gone([gold])
    for space in spaces:
        guarded_kubectl("delete", "namespace", space, "--wait=false")


# --- who may have VMs of which pool --------------------------------------------------------------------------------

MATRIX = [
    ("alice", "web", 200),
    ("alice", "gold", 404),
    ("bob", "web", 404),
    ("bob", "gold", 200),
    ("carol", "web", 404),
    ("carol", "gold", 404),
    ("carol", "missing", 404),
    ("", "web", 401),
    ("forged", "web", 401),
]


@pytest.mark.parametrize(("who", "pool", "status"), MATRIX)
async def test_who_gets_a_vm_of_which_pool(town: Town, who: str, pool: str, status: int) -> None:
    scene, name = {"web": (town.hers, town.web), "gold": (town.his, town.gold)}.get(pool, (town.hers, "missing"))
    token = town.tokens.get(who, who)
    qualified = f"{scene.namespace}_{name}"
    for body, path in (({name: "1"}, "/vm"), ({}, f"/vm/{name}"), ({}, f"/vm/{qualified}")):
        answer = await town.rest.post(path, body, token=token)
        if status == 200:
            (host,) = hosts(answer)
            assert (await scene.vm(short(host)))["spec"]["claim"]["owner"] == f"vmpool:{who}"
        else:
            answer.refused(status)
    assert len(await scene.held(name)) == (3 if status == 200 else 0)


async def test_an_alias_gives_of_the_pools_that_the_caller_may_claim_from(town: Town) -> None:
    tag = town.hers.namespace.removeprefix("hers-")
    alias = f"any-{tag}"
    for _ in range(3):
        hosts(await town.rest.post(f"/vm/{alias}", token=town.tokens["alice"]))
    (await town.rest.post(f"/vm/{alias}", token=town.tokens["alice"])).refused(503)
    (await town.rest.post(f"/vm/{alias}", token=town.tokens["carol"])).refused(404)
    assert len(await town.hers.held(town.web)) == 3
    assert await town.his.held(town.gold) == []
    hosts(await town.rest.post(f"/vm/{alias}", token=town.tokens["bob"]))
    assert len(await town.his.held(town.gold)) == 1


async def test_one_forbidden_pool_refuses_the_whole_checkout(town: Town) -> None:
    body = {town.web: "1", town.gold: "1"}
    (await town.rest.post("/vm", body, token=town.tokens["alice"])).refused(404)
    assert await town.hers.held(town.web) == []
    assert await town.his.held(town.gold) == []


async def test_a_forbidden_pool_is_like_one_that_is_not_there(town: Town) -> None:
    """Whoever tries names learns nothing about what others have."""
    forbidden = await town.rest.post(f"/vm/{town.gold}", token=town.tokens["carol"])
    missing = await town.rest.post("/vm/missing", token=town.tokens["carol"])
    assert forbidden.status == missing.status == 404
    assert forbidden.text.replace(town.gold, "missing") == missing.text


async def test_a_right_that_was_taken_away_is_gone(town: Town) -> None:
    hosts(await town.rest.post(f"/vm/{town.web}", token=town.tokens["alice"]))
    town.kubectl("delete", "rolebinding", "alice", "-n", town.hers.namespace)

    async def refused() -> bool:
        answer = await town.rest.post(f"/vm/{town.web}", token=town.tokens["alice"])
        return answer.status == 404

    await until(refused, what="the lost right is noticed")


# --- who may change which VM ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("who", "status"), [("bob", 403), ("carol", 403), ("", 401), ("forged", 401)])
async def test_a_vm_is_changed_by_its_owner_alone(town: Town, who: str, status: int) -> None:
    (host,) = hosts(await town.rest.post(f"/vm/{town.web}", token=town.tokens["alice"]))
    before = (await town.hers.vm(short(host)))["spec"]["claim"]
    token = town.tokens.get(who, who)
    for name in (host, short(host), host.upper()):
        (await town.rest.put(f"/vm/{name}", {"lifetime": 3}, token=token)).refused(status)
        (await town.rest.put(f"/vm/{name}", {"tags": {"owner": who}}, token=token)).refused(status)
        (await town.rest.delete(f"/vm/{name}", token=token)).refused(status)
    assert (await town.hers.vm(short(host)))["spec"]["claim"] == before
    (await town.rest.put(f"/vm/{host}", {"lifetime": 3}, token=town.tokens["alice"])).ok()
    (await town.rest.delete(f"/vm/{host}", token=town.tokens["alice"])).ok()
    assert "releasedAt" in (await town.hers.vm(short(host)))["spec"]["claim"]


async def test_the_vm_of_a_vmclaim_is_nobodys_in_rest_but_its_owners(town: Town) -> None:
    """Kubernetes users and users of the REST API of the same name are not the same user."""
    vm = (await town.hers.of(town.web))[0]["metadata"]["name"]
    for owner in ("alice", f"vmclaim:{town.hers.namespace}/alice"):
        claim = {"id": "x", "owner": owner, "boundAt": "2026-01-01T00:00:00Z", "expiresAt": "2036-01-01T00:00:00Z"}
        (await town.hers.vms.merge(vm, {"spec": {"claim": claim}})).ok()

        async def seen(vm: str = vm) -> bool:
            return bool((await town.rest.get(f"/vm/{vm}")).ok()[vm]["state"] == "running")

        await until(seen, what="the gateway knows of the claim")
        (await town.rest.delete(f"/vm/{vm}", token=town.tokens["alice"])).refused(403)
        vm = (await town.hers.of(town.web))[1]["metadata"]["name"]


async def test_tokens_are_their_owners(town: Town) -> None:
    (await town.rest.get(f"/token/{town.tokens['alice']}")).ok()
    answer = await town.rest.delete(f"/token/{town.tokens['alice']}", basic=("bob", PASSWORD))
    assert answer.status in {401, 403, 404}
    hosts(await town.rest.post(f"/vm/{town.web}", token=town.tokens["alice"]))
    listed = (await town.rest.get("/token", basic=("bob", PASSWORD))).text
    assert town.tokens["alice"] not in listed
    assert "alice" not in listed


# --- on-demand requests --------------------------------------------------------------------------------------------


async def test_an_on_demand_request_is_a_stamped_claim(town: Town) -> None:
    made = (await town.rest.post("/ondemandvm", {town.web: "1"}, token=town.tokens["alice"])).ok(201)
    admin = (await town.users.api()).kind("vmclaims", town.home)
    claim = (await admin.get(claim_name(made["request_id"]))).ok()
    assert claim["spec"]["requester"] == "vmpool:alice"
    assert claim["spec"]["requesterGroups"] == ["vmpool:rest"]
    assert claim["metadata"]["labels"] == {keys.LABEL_ONDEMAND: "true"}
    made = (await town.rest.post("/ondemandvm", {town.gold: "1"}, token=town.tokens["bob"])).ok(201)
    claim = (await admin.get(claim_name(made["request_id"]))).ok()
    assert set(claim["spec"]["requesterGroups"]) == {"vmpool:rest", "vmpool:builders"}


@pytest.mark.parametrize(("who", "status"), [("bob", 404), ("carol", 404), ("", 401), ("forged", 401)])
async def test_nobody_requests_from_a_pool_that_is_not_theirs(town: Town, who: str, status: int) -> None:
    for path, body in (("/ondemandvm", {town.web: "1"}), (f"/ondemandvm/{town.web}", {})):
        assert (await town.rest.post(path, body, token=town.tokens.get(who, who))).status == status
    admin = (await town.users.api()).kind("vmclaims", town.home)
    assert (await admin.list()).ok()["items"] == []


async def test_a_request_is_deleted_by_its_owner_alone(town: Town) -> None:
    made = (await town.rest.post("/ondemandvm", {town.web: "1"}, token=town.tokens["alice"])).ok(201)
    path = f"/ondemandvm/{made['request_id']}"
    for who, status in (("bob", 403), ("carol", 403), ("", 401), ("forged", 401)):
        assert (await town.rest.delete(path, token=town.tokens.get(who, who))).status == status
    (await town.rest.delete(path, token=town.tokens["alice"])).ok()


async def test_a_claim_of_a_namespaces_own_is_no_on_demand_request(town: Town) -> None:
    """Neither name nor marks of a VMClaim elsewhere lead the gateway to it; in its own namespace they are kept."""
    squatter = User("squatter")
    for namespace in (town.hers.namespace, town.home):
        rights = [rule("vmclaims", MAKE_CLAIMS), rule("vmpools", ["claim"])]
        apply(town.kubectl, grant(namespace, "squatter", rights, user=squatter.name))
        await permitted(town.users, {squatter: ("create", "vmclaims", namespace, "")})
    api: Api = await town.users.api(squatter)
    request = f"req-{secrets.token_hex(4)}"
    note = '{"id": "' + request + '", "names": [{"name": "x", "count": 1}]}'
    for namespace in (town.hers.namespace, town.home):
        claims = api.kind("vmclaims", namespace)
        assert (await claims.create(wish(claim_name(request), "web"))).status == 403
        body = wish("own", "web")
        body["metadata"]["labels"] = {keys.LABEL_ONDEMAND: "true"}
        body["metadata"]["annotations"] = {keys.ANNOTATION_ONDEMAND: note}
        assert (await claims.create(body)).status == 403
    # Made by whoever may do everything, but elsewhere.
    admin = (await town.users.api()).kind("vmclaims", town.hers.namespace)
    elsewhere = wish(claim_name(request), "web")
    elsewhere["metadata"]["annotations"] = {keys.ANNOTATION_ONDEMAND: note}
    (await admin.create(elsewhere)).ok()
    made = (await town.rest.post("/ondemandvm", {town.web: "1"}, token=town.tokens["alice"])).ok(201)
    (await town.rest.get(f"/ondemandvm/{made['request_id']}")).ok(202)
    assert (await town.rest.get(f"/ondemandvm/{request}")).status == 404
    body = {town.web: "1", "request_id": request}
    assert (await town.rest.post("/ondemandvm", body, token=town.tokens["alice"])).ok(201)["request_id"] == request


# --- the gateway's own account -------------------------------------------------------------------------------------

RIGHTS = [
    # Verb, resource, whose namespace, and whether the gateway's account may.
    ("claim", "vmpools", "elsewhere", True),
    ("patch", "pooledvms", "elsewhere", True),
    ("stamp", "vmclaims", "home", True),
    ("create", "vmclaims", "home", True),
    ("stamp", "vmclaims", "elsewhere", False),
    ("create", "vmclaims", "elsewhere", False),
    ("patch", "vmclaims/status", "home", False),
    ("patch", "pooledvms/status", "elsewhere", False),
    ("create", "pooledvms", "elsewhere", False),
    ("delete", "pooledvms", "elsewhere", False),
    ("patch", "vmpools", "elsewhere", False),
    ("get", "vmproviders", "elsewhere", False),
]


async def test_what_the_gateways_account_may(users: Users, served: Gateway, home: str) -> None:
    await served.ready()
    account_of = User(f"system:serviceaccount:{home}:vmpool-gateway", ("system:serviceaccounts",))
    for verb, resource, where, may in RIGHTS:
        namespace = {"home": home, "elsewhere": "default"}[where]
        found = await users.may(account_of, verb, resource, namespace)
        assert found is may, f"{verb} on {resource} in {where}"
    own = (await users.api(account_of)).kind("secrets", home, api="/api/v1")
    assert (await own.list()).status == 403
    assert (await own.get(keys.TOKEN_KEY_SECRET)).status in {200, 404}
    assert (await own.get("another")).status == 403
    others = (await users.api(account_of)).kind("secrets", "default", api="/api/v1")
    assert (await others.get(keys.TOKEN_KEY_SECRET)).status == 403
