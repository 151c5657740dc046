"""A release for one namespace: the same rights but those on objects of no namespace, and what lacks them says so."""

import pytest

from tests.chart.helm import Helm, Object, of
from tests.clouds import SimCloud
from tests.crash.site import POOL, Site
from tests.faults.scenarios.users import ask, bound, give_up, has, moment
from tests.operators import Operator
from tests.rest import Rest, RestAnswer, hosts, rest_client
from tests.rights import doings
from tests.rights.grants import Right, deficit, grants
from tests.rights.house import House
from tests.waiting import until
from vmpool.api import keys
from vmpool.cli.chart import OF_NO_NAMESPACE
from vmpool.engine.absence import DEFINITION

pytestmark = pytest.mark.control_plane

OPEN = {"gateway": {"settings": {"authorization": "open"}}, "simcloud": {"enabled": False}}
NEEDS_THE_CLUSTER = {
    Right("apiextensions.k8s.io", "customresourcedefinitions", "get", DEFINITION),
    # Of all namespaces: whose machine it is that no object here stands for.
    Right(keys.GROUP, "pooledvms", "list"),
}
"""What such an operator asks for in vain, now and then."""


@pytest.mark.parametrize("part", ["operator", "gateway"])
def test_it_has_the_rights_of_a_whole_cluster_but_for_those_that_no_role_can_hold(helm: Helm, part: str) -> None:
    whole, one = (rights(helm.template(values), part) for values in (OPEN, {**OPEN, "watchNamespace": "vmpool"}))
    assert {right for right in whole if right.group not in OF_NO_NAMESPACE} == one
    with_rest = {**OPEN, "watchNamespace": "vmpool", "rbac": {"clusterRest": True}}
    assert rights(helm.template(with_rest), part) == whole


def rights(objects: list[Object], part: str) -> set[Right]:
    roles = [each for kind in ("Role", "ClusterRole") for each in of(objects, kind)]
    # The pair of the whole cluster has the release's namespace behind its name.
    names = {f"vmpool-{part}", f"vmpool-{part}.vmpool"}
    return {one.right for one in grants(each for each in roles if each["metadata"]["name"] in names)}


async def test_everything_works_that_needs_no_object_of_the_cluster(house: House, simcloud: SimCloud) -> None:
    await house.install({**OPEN, "watchNamespace": house.namespace})
    operator, gateway = house.operator(), house.gateway()
    await operator.ready(60)
    await gateway.ready(60)
    site = await doings.place(house, simcloud, house.namespace)
    await site.build(2)
    await site.full(2)
    async with rest_client(gateway.url) as rest:
        (host,) = hosts(await until(lambda: checked_out(rest), deadline=60, what="a checkout over REST"))
        (await rest.delete(f"/vm/{host}")).ok()
        await on_demand(rest)
    name = await ask(site)
    (served,) = (await bound(site, name))["vms"]
    # Nobody can prove that it went by its owner's will: the VM says so, and goes when the claim's time is over.
    await give_up(site, name)
    said = await until(lambda: missing(site, served["name"]), deadline=60, what="the VM says why it stays")
    assert f'customresourcedefinitions.apiextensions.k8s.io "{DEFINITION}" is forbidden' in said
    claim = (await site.vms.get(served["name"])).ok()["spec"]["claim"]
    (await site.vms.merge(served["name"], {"spec": {"claim": {"id": claim["id"], "expiresAt": moment(1)}}})).ok()
    await has(site, unclaimed=2)
    stray = await a_stray(site)
    await operator_says(operator, "stragglers_only_reported")
    assert site.cloud.state(site.tenant, stray) == "Running"

    assert {right for _, right in deficit(house.requests("operator"))} == NEEDS_THE_CLUSTER
    assert not deficit(house.requests("gateway"))
    site.cloud.fate(stray, "vanish")
    await site.drain()
    await site.drained()


async def checked_out(rest: Rest) -> RestAnswer | None:
    answer = await rest.post(f"/vm/{POOL}")
    return answer if answer.status == 200 else None


async def on_demand(rest: Rest) -> None:
    (await rest.post("/ondemandvm", {POOL: "1", "request_id": "mine"})).ok(201)

    async def ready() -> bool:
        return bool((await rest.get("/ondemandvm/mine")).body.get("ready"))

    await until(ready, deadline=60, what="the request is served")
    (await rest.delete("/ondemandvm/mine")).ok()


async def missing(site: Site, name: str) -> str:
    conditions = (await site.vms.get(name)).ok()["status"].get("conditions", ())
    return next((one["message"] for one in conditions if one["type"] == "ClaimMissing"), "")


async def a_stray(site: Site) -> str:
    identity = await site.api.kind("configmaps", site.namespace, api="/api/v1").get(keys.IDENTITY_CONFIGMAP)
    tags = {keys.TAG_INSTALL: identity.ok()["data"]["installId"], keys.TAG_UID: "00000000-0000-4000-8000-000000000000"}
    return site.cloud.made(site.tenant, image="sim/stray", tags=tags)


async def operator_says(operator: Operator, event: str) -> None:
    await until(lambda: f'"event": "{event}"' in operator.lines(), deadline=60, what=f"the operator logs {event}")
