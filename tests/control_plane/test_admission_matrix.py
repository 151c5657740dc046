"""Users x namespaces x pools x verbs on a real server with the policies and roles that we ship."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.objects import pool, thing, vm
from tests.planes import Kubectl
from tests.users import (
    ADMIN,
    MAKE_CLAIMS,
    User,
    Users,
    apply,
    grant,
    guarded_kubectl,
    guarded_plane,
    permitted,
    rule,
    users,
    wish,
)

__all__ = ["guarded_kubectl", "guarded_plane", "users"]

pytestmark = pytest.mark.control_plane

ALICE = User("alice")
BOB = User("bob", ("builders",))
CAROL = User("carol", ("visitors",))
DAVE = User("dave")
ERIN = User("erin")
GATEWAY = User("system:serviceaccount:home:gateway", ("system:serviceaccounts", "system:serviceaccounts:home"))
NOBODY = User("nobody")
PEOPLE = {"alice": ALICE, "bob": BOB, "carol": CAROL, "dave": DAVE, "erin": ERIN, "gateway": GATEWAY, "admin": ADMIN}


@dataclass(frozen=True)
class Town:
    """Two namespaces with two pools each; the rights of all users are in force."""

    home: str
    other: str

    def __getitem__(self, place: str) -> str:
        return {"home": self.home, "other": self.other}[place]


@pytest.fixture(scope="module")
def built(guarded_kubectl: Kubectl) -> Iterator[Town]:
    tag = secrets.token_hex(3)
    town = Town(f"home-{tag}", f"other-{tag}")
    for namespace in (town.home, town.other):
        guarded_kubectl("create", "namespace", namespace)
    claims = [rule("vmclaims", MAKE_CLAIMS)]
    one = rule("vmpools", ["claim"], "one")
    stamp = [rule("vmclaims", [*MAKE_CLAIMS, "stamp"]), rule("vmpools", ["claim"])]
    apply(
        guarded_kubectl,
        [
            *grant(town.home, "alice", [*claims, one], user="alice"),
            *grant(town.home, "builders", [*claims, one], group="builders"),
            *grant(town.home, "carol", claims, user="carol"),
            *grant(town.other, "dave", claims, user="dave"),
            *grant(town.home, "dave", [one], user="dave"),
            *grant(town.other, "erin", claims, user="erin"),
            *grant(town.home, "gateway", stamp, user=GATEWAY.name),
        ],
    )
    for namespace in (town.home, town.other):
        for name in ("one", "two"):
            apply(guarded_kubectl, [pool(name, replicas=0)], "-n", namespace)
    yield town
    for namespace in (town.home, town.other):
        guarded_kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture
async def town(built: Town, users: Users) -> Town:
    one = ("claim", "vmpools", built.home, "one")
    make = ("create", "vmclaims", built.other, "")
    await permitted(users, {ALICE: one, BOB: one, DAVE: one, ERIN: make, GATEWAY: one})
    await permitted(users, {CAROL: ("create", "vmclaims", built.home, ""), DAVE: make})
    return built


PERMITTED, POLICY, RBAC_SAYS = "permitted", "may not claim from VMPool", "cannot create resource"
CREATES = [
    # Who, in which namespace, from which pool of which namespace, and what becomes of it.
    ("alice", "home", "home", "one", PERMITTED),
    ("alice", "home", "home", "two", POLICY),
    ("alice", "home", "home", "missing", POLICY),
    ("alice", "home", "other", "one", POLICY),
    ("alice", "other", "home", "one", RBAC_SAYS),
    ("bob", "home", "home", "one", PERMITTED),
    ("bob", "home", "home", "two", POLICY),
    ("bob", "other", "other", "one", RBAC_SAYS),
    ("carol", "home", "home", "one", POLICY),
    ("carol", "home", "other", "two", POLICY),
    ("dave", "other", "home", "one", PERMITTED),
    ("dave", "other", "home", "two", POLICY),
    ("dave", "other", "other", "one", POLICY),
    ("dave", "home", "home", "one", RBAC_SAYS),
    ("erin", "other", "home", "one", POLICY),
    ("erin", "other", "other", "one", POLICY),
    ("gateway", "home", "home", "two", PERMITTED),
    ("gateway", "home", "other", "two", POLICY),
    ("gateway", "other", "home", "one", RBAC_SAYS),
    ("admin", "home", "home", "two", PERMITTED),
    ("admin", "other", "home", "missing", PERMITTED),
]


@pytest.mark.parametrize(("who", "where", "of", "name", "expected"), CREATES)
async def test_who_may_make_a_claim(
    users: Users, town: Town, who: str, where: str, of: str, name: str, expected: str
) -> None:
    user = PEOPLE[who]
    claims = (await users.api(user)).kind("vmclaims", town[where])
    # Both ways to name a pool of the claim's own namespace are judged alike.
    wanted = [(town[of], name)] + ([name] if of == where else [])
    for pools in wanted:
        answer = await claims.create(wish(f"c-{secrets.token_hex(4)}", pools))
        if expected == PERMITTED:
            made = answer.ok()["spec"]
            assert made["requester"] == (user.name or "vmpool-dev-admin")
            assert set(made["requesterGroups"]) >= set(user.groups)
            continue
        assert answer.status == 403
        assert expected in answer.message
        if expected == POLICY:
            assert (
                f"'{user.name}' may not claim from VMPool {town[of]}/{name}: it takes the verb claim" in answer.message
            )


async def test_one_pool_out_of_reach_refuses_the_whole_claim(users: Users, town: Town) -> None:
    claims = (await users.api(ALICE)).kind("vmclaims", town.home)
    (await claims.create(wish("all-hers", "one", "one", "one"))).ok()
    for place in range(10):
        pools = ["one"] * 10
        pools[place] = "two"
        answer = await claims.create(wish("not-all-hers", *pools))
        assert answer.status == 403, f"request {place} was not judged"
        assert f"{town.home}/two" in answer.message


async def test_aliases_are_left_to_the_operator(users: Users, town: Town) -> None:
    claims = (await users.api(CAROL)).kind("vmclaims", town.home)
    (await claims.create(thing("VMClaim", "by-alias", {"requests": [{"alias": "debian"}]}))).ok()
    mixed = thing("VMClaim", "mixed", {"requests": [{"alias": "debian"}, {"pool": "one"}]})
    answer = await claims.create(mixed)
    assert answer.status == 403
    assert f"'carol' may not claim from VMPool {town.home}/one" in answer.message


async def test_a_claim_of_ten_requests_is_within_the_servers_cost_limit(users: Users, town: Town) -> None:
    """The dearest claim: stamped with marks, ten pools, and a caller in as many groups as can be stored."""
    crowd = User(GATEWAY.name, tuple(f"group-{number:02}-{'x' * 240}" for number in range(63)))
    claims = (await users.api(crowd)).kind("vmclaims", town.home)
    pools = ["one", "two"] * 5
    stamped = wish("od-stamped", *pools, requester="vmpool:ann", requesterGroups=["vmpool:rest"])
    stamped["metadata"]["labels"] = {"vmpool.dev/ondemand": "true"}
    stamped["metadata"]["annotations"] = {"vmpool.dev/ondemand-request": "x" * 10_000}
    assert len((await claims.create(stamped)).ok()["spec"]["requests"]) == 10
    assert len((await claims.create(wish("own", *pools))).ok()["spec"]["requesterGroups"]) == 64


VERBS = [
    # What, to which of alice's things, and who may.
    ("get", {"alice", "bob", "carol", "gateway", "admin"}),
    ("list", {"alice", "bob", "carol", "gateway", "admin"}),
    ("extend", {"alice", "bob", "carol", "gateway", "admin"}),
    ("status", {"admin"}),
    ("list VMs", {"admin"}),
    ("claim a VM", {"admin"}),
    ("make a VM", {"admin"}),
    ("delete a VM", {"admin"}),
    ("delete", {"alice", "bob", "carol", "gateway", "admin"}),
]


@pytest.mark.parametrize(("verb", "who_may"), VERBS)
async def test_what_rbac_leaves_to_users(users: Users, town: Town, verb: str, who_may: set[str]) -> None:
    admin = await users.api()
    may: set[str] = set()
    for name, user in PEOPLE.items():
        tag = secrets.token_hex(4)
        (await (await users.api(ALICE)).kind("vmclaims", town.home).create(wish(f"hers-{tag}", "one"))).ok()
        machine = f"one-{tag}"
        (await admin.kind("pooledvms", town.home).create(vm(machine, pool="one"))).ok()
        (await admin.kind("pooledvms", town.home).merge(machine, {"status": {"phase": "Ready"}}, "status")).ok()
        api = await users.api(user)
        claims, vms = api.kind("vmclaims", town.home), api.kind("pooledvms", town.home)
        forged = {"id": "x", "owner": name, "boundAt": "2026-01-01T00:00:00Z", "expiresAt": "2036-01-01T00:00:00Z"}
        deed = {
            "get": lambda c=claims, t=tag: c.get(f"hers-{t}"),
            "list": lambda c=claims: c.list(),
            "extend": lambda c=claims, t=tag: c.merge(f"hers-{t}", {"spec": {"lifetime": "3h"}}),
            "status": lambda c=claims, t=tag: c.merge(f"hers-{t}", {"status": {"phase": "Bound"}}, "status"),
            "list VMs": lambda v=vms: v.list(),
            "claim a VM": lambda v=vms, m=machine, f=forged: v.merge(m, {"spec": {"claim": f}}),
            "make a VM": lambda v=vms, t=tag: v.create(vm(f"made-{t}", pool="one")),
            "delete a VM": lambda v=vms, m=machine: v.delete(m),
            "delete": lambda c=claims, t=tag: c.delete(f"hers-{t}"),
        }[verb]
        answer = await deed()
        assert answer.status in {200, 201, 202, 403}, answer.message
        if answer.status != 403:
            may.add(name)
    assert may == who_may


async def test_who_has_no_rights_gets_nowhere(users: Users, town: Town) -> None:
    claims = (await users.api(NOBODY)).kind("vmclaims", town.home)
    answer = await claims.create(wish("mine", "one"))
    assert answer.status == 403
    assert RBAC_SAYS in answer.message
    assert (await claims.list()).status == 403
