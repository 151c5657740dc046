"""The cloud or the API server dies and comes back: the operator recovers, and nothing is lost or made twice."""

from collections.abc import Callable

import pytest

from tests.api import Api
from tests.clouds import SimCloud
from tests.crash import witness
from tests.crash.site import DEADLINE, PROVIDER, Site
from tests.operators import Operator
from tests.waiting import until
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.crash

REPLICAS = 30
CREATE_SECONDS = 0.15
API_SERVER = "kube-apiserver"
PATIENT = {"VMPOOL_LEASE_SECONDS": "60", "VMPOOL_LEASE_RENEW_SECONDS": "45"}
"""A lease that outlasts the outage: the operator has no reason to give up."""

Operators = Callable[..., Operator]


@pytest.fixture
def lonely(api: Api, namespace: str, crds_installed: None, make_simcloud: Callable[..., SimCloud]) -> Site:
    """A site with a cloud of its own, which may be killed."""
    cloud = make_simcloud()
    return Site(api, namespace, cloud, cloud.tenant())


async def circuit_opens(site: Site) -> None:
    """Wait until the provider's status says that it is left alone."""

    async def is_open() -> bool:
        return (await site.providers.get(PROVIDER)).ok()["status"]["circuit"] != "Closed"

    await until(is_open, deadline=DEADLINE, what="the circuit opens")


async def uids(site: Site) -> set[str]:
    """The uids of all VMs."""
    return {vm["metadata"]["uid"] for vm in await site.objects()}


async def test_the_cloud_dies_in_a_fill(lonely: Site, operators: Operators) -> None:
    lonely.fault("slow", "create", seconds=CREATE_SECONDS)
    await lonely.build(REPLICAS)
    operator = operators()
    await lonely.machines(REPLICAS // 3)

    lonely.cloud.kill()
    await circuit_opens(lonely)
    known = await uids(lonely)
    # Told by the objects: as soon as the cloud is back, so are its machines.
    made = [vm for vm in await lonely.objects() if vm["status"].get("machineId")]
    assert len(made) < REPLICAS, "the kill came too late to prove anything"
    lonely.cloud.start()
    await lonely.full(REPLICAS)

    assert operator.running, "a dead cloud is no reason to end"
    assert known <= await uids(lonely), "a VM was declared gone because its cloud was away"
    await witness.machines_match_objects(lonely)
    witness.never_two(lonely)
    witness.never_more_than(lonely, REPLICAS)
    await witness.no_failure_told(lonely)
    await lonely.drain()
    await lonely.drained()
    await witness.nothing_left(lonely)


async def test_the_cloud_dies_in_a_drain(lonely: Site, operators: Operators) -> None:
    await lonely.build(REPLICAS)
    operator = operators()
    await lonely.full(REPLICAS)
    lonely.fault("slow", "delete", seconds=CREATE_SECONDS)

    await lonely.drain()
    await until(lambda: lonely.alive() <= REPLICAS * 2 // 3, deadline=DEADLINE, what="a third of the machines is gone")
    lonely.cloud.kill()
    await circuit_opens(lonely)
    known = await uids(lonely)
    lonely.cloud.start()
    alive = {machine["tags"]["vmpool-uid"] for machine in lonely.history() if machine["state"] != "Gone"}
    assert alive, "the kill came too late to prove anything"
    assert alive <= known, "an object went before its machine"
    await lonely.drained()

    assert operator.running, "a dead cloud is no reason to end"
    witness.never_two(lonely)
    await witness.nothing_left(lonely)


async def test_the_cloud_dies_under_a_full_pool(lonely: Site, operators: Operators) -> None:
    await lonely.build(REPLICAS)
    operators()
    await lonely.full(REPLICAS)
    before = await lonely.objects()

    lonely.cloud.kill()
    await circuit_opens(lonely)
    lonely.cloud.start()

    async def closed() -> bool:
        return (await lonely.providers.get(PROVIDER)).ok()["status"]["circuit"] == "Closed"

    await until(closed, deadline=DEADLINE, what="the circuit closes")
    assert await lonely.objects() == before, "an outage wrote on VMs"
    await witness.machines_match_objects(lonely)
    await lonely.drain()
    await lonely.drained()
    await witness.nothing_left(lonely)


@pytest.mark.parametrize("settings", [{}, PATIENT], ids=["short-lease", "long-lease"])
async def test_the_api_server_dies_in_a_fill(
    site: Site, plane: ControlPlane, operators: Operators, settings: dict[str, str]
) -> None:
    held = site.hold_up("create", after=REPLICAS // 3)
    await site.build(REPLICAS)
    operator = operators(**settings)
    await site.machines(REPLICAS // 3)

    plane.kill(API_SERVER)
    try:
        assert site.alive() < REPLICAS, "the kill came too late to prove anything"
        site.mend(held)
    finally:
        plane.start_component(API_SERVER)

    async def full_or_ended() -> bool:
        return not operator.running or await site.phases() == ["Ready"] * REPLICAS

    await until(full_or_ended, deadline=DEADLINE, what="the operator goes on or ends")
    if not operator.running:
        assert not settings, f"nothing was in doubt:\n{operator.lines()[-3000:]}"
        assert operator.stop() != 0, "doubt must not look like a clean stop"
        operators()
    await site.full(REPLICAS)

    await witness.machines_match_objects(site)
    witness.never_two(site)
    witness.never_more_than(site, REPLICAS)
    await witness.no_failure_told(site)
    await site.drain()
    await site.drained()
    await witness.nothing_left(site)
