"""Kill -9 while machines are destroyed: the drain, the scale-down or the replacement goes on and leaves nothing."""

import random
from collections.abc import Callable

import pytest

from tests.crash import witness
from tests.crash.site import DEADLINE, HELD_SECONDS, IMAGE, OTHER_IMAGE, POOL, Site
from tests.operators import Operator
from tests.waiting import until

pytestmark = pytest.mark.crash

REPLICAS = 12
SURGE = 3
"""25 per cent of the replicas, the default of ``update.maxSurge``."""

Operators = Callable[..., Operator]


async def filled(site: Site, operators: Operators, *, tokens: bool = True) -> Operator:
    """A full pool and the operator that filled it."""
    await site.build(REPLICAS, tokens=tokens)
    operator = operators()
    await site.full(REPLICAS)
    return operator


async def finish(site: Site) -> None:
    """The drain comes to its end and leaves nothing."""
    await site.drained()
    witness.never_two(site)
    await witness.nothing_left(site)


@pytest.mark.parametrize("seed", range(3))
async def test_killed_with_some_machines_gone(site: Site, operators: Operators, seed: int) -> None:
    gone = random.Random(seed).randint(2, REPLICAS - 2)
    first = await filled(site, operators, tokens=seed % 2 == 0)
    held = site.hold_up("delete", after=gone)

    await site.drain()
    await until(lambda: site.alive() <= REPLICAS - gone, deadline=DEADLINE, what=f"{gone} machines are gone")
    first.kill()
    assert site.alive() > 0, "the kill came too late to prove anything"
    site.mend(held)
    operators()

    await finish(site)


async def test_killed_between_completed_and_delete(site: Site, operators: Operators) -> None:
    first = await filled(site, operators)
    refusal = site.fault("status", "delete", status=503)

    await site.drain()

    async def decided() -> bool:
        return await site.phases() == ["Completed"] * REPLICAS

    await until(decided, deadline=DEADLINE, what="every VM is Completed")
    first.kill()
    assert site.alive() == REPLICAS
    site.mend(refusal)
    operators()

    await finish(site)


async def test_killed_between_delete_and_forget(site: Site, operators: Operators) -> None:
    first = await filled(site, operators)

    await site.drain()
    await until(lambda: not site.alive(), deadline=DEADLINE, what="every machine is gone")
    first.kill()
    # Absence takes two proofs a second apart, so the objects outlive their machines.
    assert await site.phases() == ["Completed"] * REPLICAS
    operators()

    await finish(site)


async def test_killed_while_the_cloud_denies_its_machines(site: Site, operators: Operators) -> None:
    first = await filled(site, operators)
    denial, silence = site.fault("status", "delete", status=404), site.fault("status", "list", status=503)

    await site.drain()
    await until(lambda: site.fired(denial) >= 2 * REPLICAS, deadline=DEADLINE, what="every machine is denied twice")
    listings = site.fired(silence)
    await until(lambda: site.fired(silence) >= listings + 3, deadline=DEADLINE, what="listings are refused")
    assert await site.phases() == ["Completed"] * REPLICAS, "a VM was forgotten and no listing had proved it"
    first.kill()
    site.mend(denial)
    site.mend(silence)
    assert site.alive() == REPLICAS
    operators()

    await finish(site)


@pytest.mark.parametrize("seed", range(3))
async def test_killed_in_a_fill_and_deleted_meanwhile(site: Site, operators: Operators, seed: int) -> None:
    some = random.Random(seed).randint(2, REPLICAS - 4)
    # The machines are there long before their ids are known.
    slow = site.fault("slow", "create", seconds=HELD_SECONDS, when="after")
    await site.build(REPLICAS, tokens=seed % 2 == 0, operate=4)
    first = operators()
    await site.machines(some)
    first.kill()
    assert None in [vm["status"].get("machineId") for vm in await site.objects()], "every id is known already"
    site.mend(slow)

    await site.drain()
    operators()

    await finish(site)


async def test_vms_deleted_while_nobody_watches(site: Site, operators: Operators) -> None:
    first = await filled(site, operators)
    first.kill()
    doomed = (await site.objects())[:4]

    for vm in doomed:
        (await site.vms.delete(vm["metadata"]["name"])).ok()
    assert len(await site.objects()) == REPLICAS, "an object went before its machine"
    operators()
    await until(lambda: len(site.history()) == REPLICAS + 4, deadline=DEADLINE, what="four machines are replaced")
    await site.full(REPLICAS)

    await witness.machines_match_objects(site)
    witness.never_two(site)
    await site.drain()
    await finish(site)


async def test_killed_while_scaling_down(site: Site, operators: Operators) -> None:
    first = await filled(site, operators)
    held = site.hold_up("delete", after=3)

    (await site.pools.merge(POOL, {"spec": {"replicas": 4}})).ok()
    await until(lambda: site.alive() <= REPLICAS - 3, deadline=DEADLINE, what="three machines are gone")
    first.kill()
    assert site.alive() > 4, "the kill came too late to prove anything"
    site.mend(held)
    operators()
    await site.full(4)

    await witness.machines_match_objects(site)
    witness.never_more_than(site, REPLICAS)
    assert len(site.history()) == REPLICAS, "a machine was made while there were too many"
    await site.drain()
    await finish(site)


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "no-tokens"])
async def test_killed_while_replacing(site: Site, operators: Operators, *, tokens: bool) -> None:
    first = await filled(site, operators, tokens=tokens)
    held = site.hold_up("create", after=3)
    site.fault("slow", "create", seconds=0.1, when="after")

    (await site.pools.merge(POOL, {"spec": {"template": {"image": OTHER_IMAGE}}})).ok()
    await until(lambda: site.images().get(OTHER_IMAGE, 0) >= 2, deadline=DEADLINE, what="two machines are replaced")
    first.kill()
    assert site.images().get(IMAGE, 0) > 0, "the kill came too late to prove anything"
    site.mend(held)
    operators()
    await site.full(REPLICAS, OTHER_IMAGE)

    await witness.machines_match_objects(site)
    witness.never_two(site)
    witness.never_more_than(site, REPLICAS + SURGE)
    await witness.no_failure_told(site)
    await site.drain()
    await finish(site)
