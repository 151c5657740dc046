"""All that a gateway does, as its clients make it do it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.crash.site import POOL, Site
from tests.faults.gate.client import GatedTrial, GateProcess
from tests.faults.gate.plan import Action, Fault, Kind, Plan, Point, Trigger
from tests.gateways import Gateway
from tests.rest import Rest, RestAnswer, hosts, rest_client
from tests.rights.asked import Witnessed
from tests.rights.house import House
from tests.users import RBAC_API
from tests.waiting import until
from vmpool.api import keys
from vmpool.gateway.auth.entries import DIGITS

READER = "reader"
"""A service account that is a user of the gateway."""
KUBERNETES = {"VMPOOL_GATEWAY_AUTH": "kubernetes"}
PATIENCE = 60.0


def make_reader(house: House) -> tuple[str, str]:
    """Make an account that may claim in the release's namespace; return its login and its token."""
    kubectl, namespace = house.kubectl, house.namespace
    kubectl("create", "serviceaccount", READER, "-n", namespace)
    subject = f"--serviceaccount={namespace}:{READER}"
    # On-demand requests stand under another name: the operator asks whether that one may claim.
    kubectl(
        "create", "rolebinding", READER, "-n", namespace, "--clusterrole=vmpool-claimer", subject, "--group=vmpool:rest"
    )
    token = kubectl("create", "token", READER, "-n", namespace).strip()
    return f"{namespace}:{READER}", token


async def tokens(house: House, rest: Rest, login: tuple[str, str]) -> str:
    """Make tokens until each Secret has had one, and delete all but the last; return that one."""
    names = {f"{keys.TOKEN_SECRET_PREFIX}{digit}" for digit in DIGITS}

    def written() -> set[str]:
        return {one.right.name for one in house.requests("gateway") if one.right.verb == "patch"}

    while True:
        token = await rest.new_token(*login)
        if names <= written():
            return token
        (await rest.delete(f"/token/{token}", basic=login)).ok()


async def checkouts(rest: Rest, token: str) -> None:
    """Take a VM, ask about it, extend it, and give it back; ask for it once more with the same key."""
    key = {"Idempotency-Key": "the-same"}

    async def taken() -> RestAnswer | None:
        answer = await rest.post(f"/vm/{POOL}", token=token, headers=key)
        return answer if answer.status == 200 else None

    found = await until(taken, deadline=PATIENCE, what="a checkout")
    assert found is not None
    (name,) = hosts(found)
    assert hosts(await rest.post(f"/vm/{POOL}", token=token, headers=key)) == [name]
    (await rest.get(f"/vm/{name}", token=token)).ok()
    (await rest.put(f"/vm/{name}", {"lifetime": "3", "tags": {"job": "seven"}}, token=token)).ok()
    (await rest.delete(f"/vm/{name}", token=token)).ok()


async def nobodys(site: Site, rest: Rest, token: str) -> None:
    """Ask for the end of a VM that nobody has: the gateway looks whether another one has handed it out just now."""

    async def refused() -> bool:
        ready = [vm for vm in await site.objects() if vm["status"]["phase"] == "Ready" and "claim" not in vm["spec"]]
        return bool(ready) and (await rest.delete(f"/vm/{ready[0]['metadata']['name']}", token=token)).status == 404

    await until(refused, deadline=PATIENCE, what="a VM that nobody has is nobody's")


async def on_demand(site: Site, rest: Rest, token: str) -> Witnessed:
    """Ask for a VM of one's own, wait for it, and delete the request; return the VMClaim that was made for it."""
    asked = (await rest.post("/ondemandvm", {POOL: "1", "request_id": "mine"}, token=token)).ok(201)
    assert asked["request_id"] == "mine"

    async def ready() -> bool:
        return bool((await rest.get("/ondemandvm/mine", token=token)).body.get("ready"))

    await until(ready, deadline=PATIENCE, what="the request is served")
    made = (await site.api.kind("vmclaims", site.namespace).list()).ok()["items"]
    (await rest.delete("/ondemandvm/mine", token=token)).ok()
    return Witnessed("vmclaims", made[0])


@asynccontextmanager
async def unlucky(house: House) -> AsyncIterator[Gateway]:
    """A gateway that does not hear what became of its first VMClaim."""
    gate = GateProcess(house.folder, house.plane.ca)
    gate.start()
    try:
        async with gate.session() as session:
            trial = GatedTrial(session, "unlucky")
            cut = Action(kind=Kind.RESET, point=Point.COMMITTED)
            plan = Plan(faults=(Fault(trigger=Trigger(signature="create vmclaims"), action=cut),))
            await trial.begin(plan, {"api": house.plane.url}, ["a"])
            gateway = house.gateway(trial.url("a", "api"), **KUBERNETES)
            await gateway.ready(PATIENCE)
            yield gateway
            assert (await trial.state())["met"], "no VMClaim was made through it"
            gateway.kill()
            await trial.end()
    finally:
        gate.stop()


async def without_answer(house: House, token: str) -> None:
    """The connection breaks behind the creation of a VMClaim: the gateway asks whether it is there."""
    async with unlucky(house) as gateway, rest_client(gateway.url) as rest:

        async def known() -> RestAnswer | None:
            answer = await rest.post("/ondemandvm", {POOL: "1", "request_id": "cut-off"}, token=token)
            return answer if answer.status != 401 else None

        # The token may be younger than this gateway's first list.
        answer = await until(known, deadline=PATIENCE, what="the token is known")
        assert answer is not None
        answer.ok(201)
        (await rest.delete("/ondemandvm/cut-off", token=token)).ok()


async def configuration(house: House, token: str) -> None:
    """Change a pool over REST, and change it back."""
    rights = {
        "apiVersion": f"{RBAC_API}/v1",
        "kind": "Role",
        "metadata": {"name": "changer"},
        "rules": [{"apiGroups": [keys.GROUP], "resources": ["vmpools"], "verbs": ["update"]}],
    }
    house.kubectl("apply", "-n", house.namespace, "-f", "-", input=json.dumps(rights))
    subject = f"--serviceaccount={house.namespace}:{READER}"
    house.kubectl("create", "rolebinding", "changer", "-n", house.namespace, "--role=changer", subject)
    gateway = house.gateway(**KUBERNETES)
    await gateway.ready(PATIENCE)
    async with rest_client(gateway.url) as rest:

        async def changed() -> bool:
            return (await rest.post("/config/poolsize", {POOL: "1"}, token=token)).status == 201

        await until(changed, deadline=PATIENCE, what="the size is changed")
        await rest.delete(f"/config/poolsize/{POOL}", token=token)


def empty_key(house: House) -> None:
    """The Secret of the tokens' key is there before the first gateway, and empty."""
    house.kubectl("create", "secret", "generic", keys.TOKEN_KEY_SECRET, "-n", house.namespace)
