"""VMs that are handed out, given back, and taken back when their time is over."""

import asyncio

from tests.crash.site import Site
from tests.faults.rig.trial import Scenario
from tests.faults.scenarios.users import ask, bound, change, check_out, give_up, gone, has, release, wait

SHORT_SECONDS = 4.0
"""A claim's life in the scenario of expiry: longer than it takes to see it Claimed."""


async def checkout(site: Site) -> None:
    """Somebody takes a VM past us, keeps it while the pool rolls, and gives it back."""
    await site.build(2)
    await has(site, unclaimed=2)
    vm, identity = await check_out(site)
    await has(site, unclaimed=2, claimed=1)
    await change(site, replicas=1)
    await has(site, unclaimed=1, claimed=1)
    await release(site, vm, identity)
    await has(site, unclaimed=1)


async def expiry(site: Site) -> None:
    """Nobody gives it back."""
    await site.build(1)
    await has(site, unclaimed=1)
    await check_out(site, SHORT_SECONDS)
    await has(site, unclaimed=1)


async def claim(site: Site) -> None:
    """A VMClaim is served, used and deleted."""
    await site.build(2)
    await has(site, unclaimed=2)
    name = await ask(site)
    await bound(site, name)
    await has(site, unclaimed=2, claimed=1)
    await give_up(site, name)
    await has(site, unclaimed=2)


async def several(site: Site) -> None:
    """All or nothing, for more than the pool has ready; and two who ask at once."""
    await site.build(2)
    await has(site, unclaimed=2)
    names = await asyncio.gather(ask(site, 3), ask(site))
    statuses = [await bound(site, name) for name in names]
    uids = [vm["uid"] for status in statuses for vm in status["vms"]]
    assert len(uids) == len(set(uids)) == 4, f"a VM was handed out twice: {uids}"
    await has(site, unclaimed=2, claimed=4)
    for name in names:
        await give_up(site, name)
    await has(site, unclaimed=2)


async def drain_with_claims(site: Site) -> None:
    """A pool is deleted while somebody has a VM of it: that one stays until it is given back."""
    await site.build(2)
    await has(site, unclaimed=2)
    vm, identity = await check_out(site)
    await has(site, unclaimed=2, claimed=1)
    await site.drain()

    async def only_theirs() -> bool:
        return [one["metadata"]["name"] for one in await site.objects()] == [vm]

    await wait(only_theirs, "only the claimed VM is left")
    await release(site, vm, identity)
    await gone(site)


SCENARIOS = [
    Scenario("checkout", checkout),
    Scenario("expiry", expiry),
    Scenario("claim", claim),
    Scenario("several", several),
    Scenario("drain-with-claims", drain_with_claims),
]
