"""Pools that fill, shrink, roll, move and go."""

import base64

from tests.crash.site import OTHER_IMAGE, PROVIDER, Site
from tests.faults.rig.trial import Scenario
from tests.faults.scenarios.users import change, drained, put, wait

OTHER = "other-cloud"


async def fill(site: Site) -> None:
    """A new pool of three."""
    await site.build(3)
    await site.full(3)


async def fill_without_tokens(site: Site) -> None:
    """The same at a cloud that does not know a request again."""
    await site.build(3, tokens=False)
    await site.full(3)


async def scale(site: Site) -> None:
    """Up, down, and to nothing."""
    await site.build(1)
    await site.full(1)
    await change(site, replicas=3)
    await site.full(3)
    await change(site, replicas=1)
    await site.full(1)


async def roll(site: Site) -> None:
    """Another template."""
    await site.build(2)
    await site.full(2)
    await change(site, template={"image": OTHER_IMAGE})
    await site.full(2, OTHER_IMAGE)


async def lost(site: Site) -> None:
    """A machine dies, another one vanishes, a VM is deleted by hand: each is replaced."""
    await site.build(3, limits={"quarantined": 0})
    await site.full(3)
    first, second, third = await site.objects()
    site.cloud.fate(first["status"]["machineId"], "vanish")
    site.cloud.fate(second["status"]["machineId"], "fail")
    (await site.vms.delete(third["metadata"]["name"])).ok()

    async def replaced() -> bool:
        before = {vm["metadata"]["uid"] for vm in (first, second, third)}
        return not before & {vm["metadata"]["uid"] for vm in await site.objects()}

    await wait(replaced, "all three are replaced")
    await site.full(3)


async def drain(site: Site) -> None:
    """The pool is deleted, then its provider."""
    await site.build(2)
    await site.full(2)
    await drained(site)


async def move(site: Site) -> None:
    """Another provider takes over: new VMs come from there, and the old ones go with the template."""
    await site.build(2)
    await site.full(2)
    secrets = site.api.kind("secrets", site.namespace, api="/api/v1")
    key = base64.b64encode(site.tenant.key.encode()).decode()
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": OTHER}, "data": {"apiKey": key}}
    (await secrets.create(body)).ok()
    spec = {
        "type": "simulated",
        "config": {"endpoint": site.endpoint},
        "secretRef": {"name": OTHER},
        "circuitBreaker": {"failures": 5, "pause": "1s"},
        "observe": {"interval": "1s"},
    }
    await put(site, "vmproviders", "VMProvider", OTHER, **spec)
    await change(site, providers=[{"name": PROVIDER, "weight": 0}, {"name": OTHER}], template={"image": OTHER_IMAGE})

    async def moved() -> bool:
        vms = await site.objects()
        return all(vm["spec"]["provider"] == OTHER for vm in vms) and await site.is_full(2, OTHER_IMAGE)

    await wait(moved, "all VMs are the other provider's")


SCENARIOS = [
    Scenario("fill", fill),
    Scenario("fill-without-tokens", fill_without_tokens),
    Scenario("scale", scale),
    Scenario("roll", roll),
    Scenario("lost", lost),
    Scenario("drain", drain),
    Scenario("move", move),
]
