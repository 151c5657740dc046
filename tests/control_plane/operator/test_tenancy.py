"""Whose VMClaims get VMs of which pools: checked once more when they are handed out, by a real operator.

It runs with the rights that we ship for it, and no others, under the policies that we ship.
"""

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.api import Json, Objects
from tests.clouds import SimCloud
from tests.control_plane.operator.stage import DEADLINE, Stage, condition
from tests.objects import thing
from tests.operators import Operator
from tests.planes import Kubectl
from tests.users import (
    ADMISSION,
    MAKE_CLAIMS,
    User,
    Users,
    account,
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
from vmpool.dev.plane import ControlPlane

__all__ = ["guarded_kubectl", "guarded_plane", "users"]

pytestmark = pytest.mark.control_plane

REVIEW_SECONDS = "0"
"""Nothing is believed longer than it takes to read it, so that no test has to wait for an answer to age."""
ALICE = User("alice")
BOB = User("bob", ("builders",))
CAROL = User("carol")
GATEWAY = User("gateway")
REST = {"requester": "vmpool:ann", "requesterGroups": ["vmpool:rest"]}


@pytest.fixture(scope="module")
def home(guarded_kubectl: Kubectl) -> Iterator[str]:
    """The operator's own namespace."""
    name = f"home-{secrets.token_hex(3)}"
    guarded_kubectl("create", "namespace", name)
    yield name
    guarded_kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def served_everywhere(
    guarded_plane: ControlPlane, guarded_kubectl: Kubectl, home: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    """An operator that serves every namespace, as a service account with the shipped role."""
    folder = tmp_path_factory.mktemp("operator")
    kubeconfig = account(guarded_kubectl, guarded_plane, home, "vmpool-operator", folder)
    made = Operator(
        kubeconfig,
        folder,
        VMPOOL_NAMESPACE=home,
        VMPOOL_CLAIM_REVIEW_SECONDS=REVIEW_SECONDS,
        # One API server, and its policy is waited for.
        VMPOOL_CLAIM_POLICY_MARGIN_SECONDS="0",
    )
    made.start()
    yield made
    made.kill()


class Town:
    """A namespace with a pool in it, one of strangers, and who may do what there."""

    def __init__(self, stage: Stage, strangers: str, users: Users, kubectl: Kubectl) -> None:
        self.stage = stage
        self.owners = stage.namespace
        self.strangers = strangers
        self.users = users
        self.kubectl = kubectl

    async def claims(self, user: User, namespace: str = "") -> Objects:
        """The VMClaims of a namespace as this user sees them."""
        return (await self.users.api(user)).kind("vmclaims", namespace or self.owners)

    async def may_make_claims(self, user: User, namespace: str = "") -> None:
        """Let a user make VMClaims in a namespace."""
        where = namespace or self.owners
        apply(self.kubectl, grant(where, f"make-{user.name}", [rule("vmclaims", MAKE_CLAIMS)], user=user.name))
        await permitted(self.users, {user: ("create", "vmclaims", where, "")})

    async def may_claim(self, *users: User, user: str = "", group: str = "") -> None:
        """Let one user or one group claim from the pool; wait until that is so for ``users``."""
        name = f"claim-{(user or group).replace(':', '-')}"
        apply(
            self.kubectl,
            grant(self.owners, name, [rule("vmpools", ["claim"], self.stage.pool)], user=user, group=group),
        )
        await permitted(self.users, dict.fromkeys(users, ("claim", "vmpools", self.owners, self.stage.pool)))

    async def may_no_longer(self, user: User) -> None:
        """Take a user's right to claim from the pool away."""
        self.kubectl("delete", "rolebinding", "-n", self.owners, f"claim-{user.name}")

        async def lost() -> bool:
            return not await self.users.may(user, "claim", "vmpools", self.owners, self.stage.pool)

        await until(lost, what=f"{user.name} has lost the right")

    async def fate(self, namespace: str, name: str, *phases: str) -> Json:
        """Wait until a claim is in one of these phases and return its status."""
        claims = await self.claims(User(), namespace)

        async def there() -> Json | None:
            status = (await claims.get(name)).ok()["status"]
            return dict(status) if status["phase"] in phases else None

        found = await until(there, deadline=DEADLINE, what=f"VMClaim {name} is {phases}")
        assert found is not None
        return found

    async def bound(self, namespace: str, name: str) -> Json:
        """Wait until a claim is settled, expect it to be Bound, and return the claim on its VM."""
        status = await self.fate(namespace, name, "Bound", "Failed")
        assert status["phase"] == "Bound", status
        vm = await self.stage.vm(status["vms"][0]["name"])
        assert vm["spec"]["pool"] == self.stage.pool
        return dict(vm["spec"]["claim"])

    async def failed(self, namespace: str, name: str, reason: str) -> str:
        """Wait until a claim is settled, expect it to have failed for this reason, and return the sentence."""
        status = await self.fate(namespace, name, "Bound", "Failed")
        assert (status["phase"], status.get("reason")) == ("Failed", reason), status
        assert not status.get("vms")
        assert all("claim" not in vm["spec"] for vm in await self.stage.vms_of())
        return str(status["message"])


@pytest.fixture
async def town(
    users: Users, guarded_kubectl: Kubectl, served_everywhere: Operator, simcloud: SimCloud
) -> AsyncIterator[Town]:
    """Namespaces of the test's own; alice and carol may make VMClaims with the pool's owners."""
    await served_everywhere.ready()
    tag = secrets.token_hex(3)
    names = [f"owners-{tag}", f"strangers-{tag}"]
    for name in names:
        guarded_kubectl("create", "namespace", name)
    made = Town(Stage(await users.api(), names[0], simcloud), names[1], users, guarded_kubectl)
    yield made
    for name in names:
        guarded_kubectl("delete", "namespace", name, "--wait=false")


def by_alias(name: str, namespace: str = "", **spec: object) -> Json:
    """A VMClaim that names no pool: the policies leave it to the operator."""
    request = {"alias": "any", "namespace": namespace} if namespace else {"alias": "any"}
    return thing("VMClaim", name, {"requests": [request], **spec})


# --- the pool's own namespace --------------------------------------------------------------------------------------


async def test_who_may_claim_is_served_and_owns_the_vm(town: Town) -> None:
    await town.stage.filled(1, aliases=["any"])
    await town.may_make_claims(ALICE)
    await town.may_claim(ALICE, user="alice")
    (await (await town.claims(ALICE)).create(wish("hers", town.stage.pool))).ok()
    held = await town.bound(town.owners, "hers")
    assert held["owner"] == "alice"
    assert held["groups"] == ["system:authenticated"]
    assert held["ref"]["namespace"] == town.owners


async def test_a_right_of_a_group_is_still_known_when_vms_are_handed_out(town: Town) -> None:
    await town.stage.filled(1, aliases=["any"])
    await town.may_make_claims(BOB)
    await town.may_claim(BOB, group="builders")
    (await (await town.claims(BOB)).create(wish("his", town.stage.pool))).ok()
    held = await town.bound(town.owners, "his")
    assert held["owner"] == "bob"
    assert set(held["groups"]) == {"builders", "system:authenticated"}


async def test_an_alias_leads_to_no_pool_that_the_user_may_not_claim_from(town: Town) -> None:
    await town.stage.filled(1, aliases=["any"])
    await town.may_make_claims(CAROL)
    (await (await town.claims(CAROL)).create(by_alias("hers"))).ok()
    said = await town.failed(town.owners, "hers", "NotPermitted")
    assert "carol may not claim from VMPool" in said
    assert "verb claim" in said


async def test_of_the_pools_of_an_alias_only_the_permitted_one_gives(town: Town) -> None:
    await town.stage.filled(1, aliases=["any"])
    other = f"other-{town.stage.pool}"
    await town.stage.put_pool(other, aliases=["any"], replicas=2)
    await town.stage.full(2, other)
    await town.may_make_claims(ALICE)
    await town.may_claim(ALICE, user="alice")
    (await (await town.claims(ALICE)).create(by_alias("hers"))).ok()
    assert (await town.bound(town.owners, "hers"))["owner"] == "alice"
    assert all("claim" not in vm["spec"] for vm in await town.stage.vms_of(other))


async def test_a_right_lost_while_waiting_is_lost(town: Town) -> None:
    await town.stage.filled(1, aliases=["any"])
    await town.stage.change(paused=True)
    await town.may_make_claims(ALICE)
    await town.may_claim(ALICE, user="alice")
    (await (await town.claims(ALICE)).create(wish("hers", town.stage.pool))).ok()

    async def waits() -> bool:
        return bool((await (await town.claims(ALICE)).get("hers")).ok()["status"].get("position"))

    await until(waits, deadline=DEADLINE, what="the claim waits")
    await town.may_no_longer(ALICE)
    await town.stage.change(paused=False)
    assert "alice may not claim" in await town.failed(town.owners, "hers", "NotPermitted")


async def test_the_cluster_administrator_is_served(town: Town) -> None:
    await town.stage.filled(1)
    claims = await town.claims(User())
    made = (await claims.create(wish("any", town.stage.pool))).ok()
    assert made["spec"]["requesterGroups"] == ["system:masters", "system:authenticated"]
    assert (await town.bound(town.owners, "any"))["owner"] == "vmpool-dev-admin"


# --- other namespaces ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "right", "reason"),
    [
        ((), True, "NamespaceNotAllowed"),
        (("elsewhere",), True, "NamespaceNotAllowed"),
        (("own",), False, "NotPermitted"),
        (("own",), True, ""),
        (("*",), True, ""),
        (("*",), False, "NotPermitted"),
    ],
)
async def test_strangers_need_both_the_pools_word_and_the_right(
    town: Town, allowed: tuple[str, ...], right: bool, reason: str
) -> None:
    namespaces = [town.strangers if one == "own" else one for one in allowed]
    await town.stage.filled(1, aliases=["any"], claims={"allowedNamespaces": namespaces})
    await town.may_make_claims(ALICE, town.strangers)
    if right:
        await town.may_claim(ALICE, user="alice")
    # By its alias too, which the policies do not judge.
    bodies = [by_alias("by-alias", town.owners)]
    if right and reason:
        bodies.append(wish("by-name", (town.owners, town.stage.pool)))
    for body in bodies:
        name = body["metadata"]["name"]
        (await (await town.claims(ALICE, town.strangers)).create(body)).ok()
        if reason:
            assert town.owners in await town.failed(town.strangers, name, reason)
        else:
            held = await town.bound(town.strangers, name)
            assert (held["owner"], held["ref"]["namespace"]) == ("alice", town.strangers)


async def test_a_pool_of_the_same_name_next_door_is_another_pool(town: Town) -> None:
    """The right is on a pool in its namespace, not on a name."""
    await town.stage.filled(1, aliases=["any"], claims={"allowedNamespaces": ["*"]})
    next_door = [rule("vmpools", ["claim"], town.stage.pool)]
    apply(town.kubectl, grant(town.strangers, "claim-alice", next_door, user="alice"))
    await town.may_make_claims(ALICE, town.strangers)
    await permitted(town.users, {ALICE: ("claim", "vmpools", town.strangers, town.stage.pool)})
    claims = await town.claims(ALICE, town.strangers)
    assert (await claims.create(wish("by-name", (town.owners, town.stage.pool)))).status == 403
    (await claims.create(by_alias("by-alias", town.owners))).ok()
    await town.failed(town.strangers, "by-alias", "NotPermitted")


async def test_labels_and_annotations_open_no_pool(town: Town) -> None:
    await town.stage.filled(1, aliases=["any"])
    await town.may_make_claims(CAROL)
    body = by_alias("hers")
    body["metadata"]["labels"] = {keys.LABEL_POOL: town.stage.pool}
    body["metadata"]["annotations"] = {keys.ANNOTATION_OVERRIDE: '{"requester": "alice"}'}
    (await (await town.claims(CAROL)).create(body)).ok()
    await town.failed(town.owners, "hers", "NotPermitted")


# --- users of the REST API -----------------------------------------------------------------------------------------


async def stamper(town: Town, namespace: str) -> Objects:
    """VMClaims as an account sees them that may speak for REST users in this namespace."""
    rules = [rule("vmclaims", [*MAKE_CLAIMS, "stamp"])]
    apply(town.kubectl, grant(namespace, f"stamp-{town.stage.pool}", rules, user=GATEWAY.name))
    await permitted(town.users, {GATEWAY: ("stamp", "vmclaims", namespace, "")})
    return await town.claims(GATEWAY, namespace)


async def test_a_rest_user_is_of_no_namespace_and_needs_the_right(town: Town, home: str) -> None:
    await town.stage.filled(1, aliases=["any"])
    claims = await stamper(town, home)
    without, with_it = f"without-{town.stage.pool}", f"with-{town.stage.pool}"
    (await claims.create(by_alias(without, town.owners, **REST))).ok()
    assert "vmpool:ann may not claim" in await town.failed(home, without, "NotPermitted")
    await town.may_claim(User("vmpool:ann"), user="vmpool:ann")
    (await claims.create(by_alias(with_it, town.owners, **REST))).ok()
    held = await town.bound(home, with_it)
    assert (held["owner"], held["groups"]) == ("vmpool:ann", ["vmpool:rest"])


async def test_a_right_of_all_rest_users(town: Town, home: str) -> None:
    await town.stage.filled(1, aliases=["any"])
    claims = await stamper(town, home)
    await town.may_claim(User("vmpool:ann", ("vmpool:rest",)), group="vmpool:rest")
    name = f"rest-{town.stage.pool}"
    (await claims.create(by_alias(name, town.owners, **REST))).ok()
    assert (await town.bound(home, name))["owner"] == "vmpool:ann"


async def test_a_stamp_of_another_namespace_makes_no_rest_user(town: Town) -> None:
    """Whoever may stamp elsewhere is held to the namespaces that the pool allows."""
    await town.stage.filled(1, aliases=["any"])
    await town.may_claim(User("vmpool:ann"), user="vmpool:ann")
    claims = await stamper(town, town.strangers)
    (await claims.create(by_alias("forged", town.owners, **REST))).ok()
    await town.failed(town.strangers, "forged", "NamespaceNotAllowed")


# --- what is written on a claim by others --------------------------------------------------------------------------


async def test_a_vm_that_a_forged_status_names_stays_with_its_owner(town: Town) -> None:
    """Who may write a status all the same: the VM says whose it is, not the status."""
    await town.stage.filled(1, aliases=["any"])
    await town.may_make_claims(ALICE)
    await town.may_claim(ALICE, user="alice")
    (await (await town.claims(ALICE)).create(wish("hers", town.stage.pool))).ok()
    await town.bound(town.owners, "hers")
    admin = await town.claims(User())
    taken = (await admin.get("hers")).ok()["status"]
    await town.stage.change(replicas=0)
    (await admin.create(wish("forged", town.stage.pool))).ok()
    await town.fate(town.owners, "forged", "Pending")
    forged = {key: taken[key] for key in ("phase", "vms", "boundAt", "expiresAt")}
    (await admin.merge("forged", {"status": forged}, "status")).ok()
    (await admin.delete("forged")).ok()
    await town.stage.gone(admin, "forged")
    # A claim of hers that is served after that shows that the operator has seen the deletion.
    await town.stage.change(replicas=1)
    await town.stage.full(1)
    (await (await town.claims(ALICE)).create(wish("later", town.stage.pool))).ok()
    await town.bound(town.owners, "later")
    vm = await town.stage.vm(taken["vms"][0]["name"])
    assert vm["spec"]["claim"]["owner"] == "alice"
    assert "releasedAt" not in vm["spec"]["claim"]


async def test_the_pool_says_nothing_of_those_who_were_refused(town: Town) -> None:
    """A stranger's claims neither fill the pool's status nor raise its refill."""
    await town.stage.filled(1, aliases=["any"])
    await town.may_make_claims(ALICE, town.strangers)
    for number in range(3):
        (await (await town.claims(ALICE, town.strangers)).create(by_alias(f"c-{number}", town.owners))).ok()
    for number in range(3):
        await town.failed(town.strangers, f"c-{number}", "NamespaceNotAllowed")
    status = await town.stage.status()
    assert status.get("waitingReplicas", 0) == 0
    assert (status["readyReplicas"], status["replicas"]) == (1, 1)
    pool = (await town.stage.pools.get(town.stage.pool)).ok()
    assert condition(pool, "Ready")["status"] == "True"


async def test_the_shipped_rights_are_enough_for_a_whole_life(town: Town, served_everywhere: Operator) -> None:
    """From the first machine of a pool over a claim to the pool's end, the server refuses the operator nothing."""
    await town.stage.filled(1)
    claims = await town.claims(User())
    (await claims.create(wish("any", town.stage.pool, lifetime="1h", ttlAfterFinished="0s"))).ok()
    await town.bound(town.owners, "any")
    vm = (await town.fate(town.owners, "any", "Bound"))["vms"][0]["name"]
    (await claims.delete("any")).ok()
    await town.stage.gone(town.stage.vms, vm)
    (await claims.create(wish("never", "missing", ttlAfterFinished="0s"))).ok()
    await town.stage.gone(claims, "never")
    assert await town.stage.events(town.stage.pool)
    (await town.stage.pools.delete(town.stage.pool)).ok()
    await town.stage.gone(town.stage.pools, town.stage.pool)
    (await town.stage.providers.delete(town.stage.provider)).ok()
    await town.stage.gone(town.stage.providers, town.stage.provider)
    assert "cannot" not in "".join(line for line in served_everywhere.lines().splitlines() if "forbidden" in line)


# --- without the policies ------------------------------------------------------------------------------------------


@asynccontextmanager
async def unguarded(town: Town) -> AsyncIterator[None]:
    """No policy judges who asks."""
    claims = await town.claims(User(), "default")

    async def lifted() -> bool:
        return (await claims.create(wish("probe", "web", requester="x"), dryRun="All")).status == 201

    town.kubectl("delete", "validatingadmissionpolicybinding", keys.CLAIM_POLICY)
    try:
        await until(lifted, what="the policy is lifted")
        yield
    finally:
        town.kubectl("apply", "--server-side", "-f", str(ADMISSION))
        await held_to_policies(town.users, "default")


async def test_who_asked_before_the_policy_is_not_believed_after_it(town: Town) -> None:
    """A name that was written while nobody checked it opens no other namespace, however long the claim has waited."""
    await town.stage.filled(1, aliases=["any"], claims={"allowedNamespaces": ["*"]})
    await town.stage.change(paused=True)
    await town.may_make_claims(CAROL, town.strangers)
    await town.may_claim(ALICE, user="alice")
    async with unguarded(town):
        body = wish("forged", (town.owners, town.stage.pool), requester="alice")
        (await (await town.claims(CAROL, town.strangers)).create(body)).ok()
    await town.stage.change(paused=False)
    said = await town.failed(town.strangers, "forged", "RequesterNotTrusted")
    assert keys.CLAIM_POLICY in said


async def test_without_the_policy_a_namespace_is_served_from_its_own_pools(town: Town) -> None:
    await town.stage.filled(1, aliases=["any"], claims={"allowedNamespaces": ["*"]})
    await town.may_make_claims(CAROL)
    await town.may_make_claims(CAROL, town.strangers)
    async with unguarded(town):
        forged = wish("forged", (town.owners, town.stage.pool), requester="alice")
        (await (await town.claims(CAROL, town.strangers)).create(forged)).ok()
        await town.failed(town.strangers, "forged", "RequesterNotTrusted")
        (await (await town.claims(CAROL)).create(wish("own", town.stage.pool, requester="alice"))).ok()
        held = await town.bound(town.owners, "own")
        assert held["owner"] == f"vmclaim:{town.owners}/own"
