"""Machines of ours that no object stands for: taken in and destroyed, and nothing else is touched."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.crash import witness
from tests.crash.site import DEADLINE, Site
from tests.operators import Operator
from tests.waiting import until
from vmpool.api import keys

pytestmark = pytest.mark.crash

REPLICAS = 3
QUICK = {"VMPOOL_STRAGGLER_GRACE_SECONDS": "1", "VMPOOL_STRAGGLER_TTL_SECONDS": "0"}
KEPT = {**QUICK, "VMPOOL_STRAGGLER_TTL_SECONDS": "3600"}
SOME_UID = "00000000-0000-4000-8000-000000000000"

Operators = Callable[..., Operator]


async def full_site(site: Site, operators: Operators, settings: dict[str, str]) -> Operator:
    await site.build(REPLICAS)
    operator = operators(**settings)
    await site.full(REPLICAS)
    return operator


async def stray(site: Site, **tags: str) -> str:
    """Make a machine with our install id past the operator; return its id."""
    ours = {keys.TAG_INSTALL: await witness.install_id(site), keys.TAG_UID: SOME_UID}
    return site.cloud.made(site.tenant, image="sim/stray", tags={**ours, **tags})


async def gone(site: Site, machine_id: str) -> None:
    await until(
        lambda: site.cloud.state(site.tenant, machine_id) == "Gone", deadline=DEADLINE, what=f"{machine_id} is gone"
    )


async def finish(site: Site) -> None:
    await site.full(REPLICAS)
    await witness.machines_match_objects(site)
    await site.drain()
    await site.drained()
    await witness.nothing_left(site)


async def test_a_straggler_is_taken_in_and_destroyed(site: Site, operators: Operators) -> None:
    await full_site(site, operators, QUICK)

    machine_id = await stray(site)

    await gone(site, machine_id)
    await finish(site)


async def test_a_straggler_is_kept_in_quarantine_for_its_time(site: Site, operators: Operators) -> None:
    await full_site(site, operators, KEPT)
    machine_id = await stray(site)

    async def quarantined() -> list[dict[str, Any]]:
        return [vm for vm in await site.objects() if vm["status"]["phase"] == "Quarantined"]

    (vm,) = await until(quarantined, deadline=DEADLINE, what="the straggler is in quarantine")
    assert vm["spec"]["adopt"] == {"machineId": machine_id}
    assert vm["status"]["reason"] == "Straggler"
    assert keys.FINALIZER_MACHINE in vm["metadata"]["finalizers"]
    (machine,) = [machine for machine in site.history() if machine["id"] == machine_id]
    assert machine["state"] == "Running"
    assert machine["tags"][keys.TAG_UID] == vm["metadata"]["uid"], "the machine must name the object that has it now"

    (await site.vms.delete(vm["metadata"]["name"])).ok()
    await gone(site, machine_id)
    await finish(site)


async def test_a_claimed_straggler_is_only_reported(site: Site, operators: Operators) -> None:
    operator = await full_site(site, operators, QUICK)
    machine_id = await stray(site, **{keys.TAG_CLAIM: "somebody"})

    def reported() -> bool:
        return any("straggler_is_claimed" in line and machine_id in line for line in operator.lines().splitlines())

    await until(reported, deadline=DEADLINE, what="the claimed straggler is reported")
    # One that came later is gone: had the claimed one been judged like it, it would be gone too.
    await gone(site, await stray(site))
    assert site.cloud.state(site.tenant, machine_id) == "Running"
    assert all(
        "adopt" not in vm["spec"] or vm["spec"]["adopt"]["machineId"] != machine_id for vm in await site.objects()
    )
    site.cloud.fate(machine_id, "vanish")
    await site.full(REPLICAS)


async def test_a_machine_of_another_install_is_never_touched(site: Site, operators: Operators) -> None:
    await full_site(site, operators, QUICK)
    theirs = await stray(site, **{keys.TAG_INSTALL: "another"})

    await gone(site, await stray(site))
    await site.drain()
    await site.drained()

    assert site.cloud.state(site.tenant, theirs) == "Running"
    (machine,) = [machine for machine in site.history() if machine["id"] == theirs]
    assert machine["tags"] == {keys.TAG_INSTALL: "another", keys.TAG_UID: SOME_UID}


async def test_the_second_machine_of_a_living_vm_is_destroyed(site: Site, operators: Operators) -> None:
    await full_site(site, operators, QUICK)
    vm = (await site.objects())[0]

    twin = await stray(site, **{keys.TAG_UID: vm["metadata"]["uid"]})

    await gone(site, twin)
    assert site.cloud.state(site.tenant, vm["status"]["machineId"]) == "Running"
    await finish(site)


async def test_the_second_machine_of_a_vm_does_not_block_its_drain(site: Site, operators: Operators) -> None:
    first = await full_site(site, operators, QUICK)
    vm = (await site.objects())[0]
    first.kill()
    await stray(site, **{keys.TAG_UID: vm["metadata"]["uid"]})
    await site.drain()
    operators(**QUICK)

    await site.drained()
    await witness.nothing_left(site)
