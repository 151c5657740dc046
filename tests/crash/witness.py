"""What must hold after every crash, judged by the cloud's ledger and the API server alone, never by the operator."""

from collections import Counter

from tests.api import Json
from tests.crash.site import POOL, PROVIDER, Site
from vmpool.api import keys


def lives_by_token(site: Site) -> Counter[str]:
    """How many machines were ever made for each PooledVM uid."""
    return Counter(machine["tags"][keys.TAG_UID] for machine in site.history())


def never_two(site: Site) -> None:
    """No PooledVM ever had two machines, not even one after the other."""
    several = {token: count for token, count in lives_by_token(site).items() if count > 1}
    assert not several, f"more than one machine was made for {several}"


def never_more_than(site: Site, bound: int) -> None:
    """There were never more machines at once than this."""
    highest = site.cloud.ledger(machines=False)["highWater"].get(site.tenant.name, {}).get("machines", 0)
    assert highest <= bound, f"there were {highest} machines at once, at most {bound} may be"


async def machines_match_objects(site: Site) -> None:
    """Every machine that is alive is the one of its PooledVM, and carries our three tags; nothing leaks."""
    objects = await site.objects()
    alive = {machine["id"]: machine for machine in site.history() if machine["state"] != "Gone"}
    recorded = {vm["status"].get("machineId"): vm for vm in objects}
    assert alive.keys() == recorded.keys(), f"machines {sorted(alive)} and objects {sorted(map(str, recorded))} differ"
    ours = await install_id(site)
    for machine_id, machine in alive.items():
        tags = {keys.TAG_INSTALL: ours, keys.TAG_UID: recorded[machine_id]["metadata"]["uid"], keys.TAG_POOL: POOL}
        assert machine["tags"] == tags, f"machine {machine_id} has the wrong tags"
    assert not _leaked(site), "disks or nics without a machine"


async def every_machine_has_its_object(site: Site) -> None:
    """What holds at any moment: the PooledVM that a machine was made for is there as long as the machine is."""
    # Machines first: an object that goes in between has lost its machine before.
    alive = {machine["tags"][keys.TAG_UID]: machine["id"] for machine in site.history() if machine["state"] != "Gone"}
    uids = {vm["metadata"]["uid"] for vm in await site.objects()}
    assert alive.keys() <= uids, f"machines without an object: {[alive[uid] for uid in alive.keys() - uids]}"


async def every_machine_is_recorded(site: Site) -> None:
    """Every machine that was made has its object, and the object knows its id."""
    recorded = {vm["metadata"]["uid"]: vm["status"].get("machineId") for vm in await site.objects()}
    made = {machine["tags"][keys.TAG_UID]: machine["id"] for machine in site.history()}
    assert made.items() <= recorded.items(), "a create in flight was cut off"


async def nothing_left(site: Site) -> None:
    """No machine, disk or nic at the cloud, no object, and every machine was deleted by us."""
    assert not await site.objects(), "PooledVMs are left"
    history = site.history()
    left = [machine["id"] for machine in history if machine["state"] != "Gone"]
    assert not left, f"machines are left: {left}"
    assert not _leaked(site), "disks or nics are left"
    assert {machine["endedBy"] for machine in history} <= {"deleted"}, "a machine ended in another way"
    secret = (await site.api.kind("secrets", site.namespace, api="/api/v1").get(PROVIDER)).ok()
    assert not secret["metadata"].get("finalizers"), "the Secret is still held"


async def no_failure_told(site: Site) -> None:
    """The pool gave up no VM: a crash of ours, or an outage, is no VM's fault."""
    status = (await site.pools.get(POOL)).ok()["status"]
    assert not status.get("recentFailures"), status["recentFailures"]


async def install_id(site: Site) -> str:
    """The id that marks this install's machines."""
    maps = site.api.kind("configmaps", site.namespace, api="/api/v1")
    found = (await maps.get(keys.IDENTITY_CONFIGMAP)).ok()
    return str(found["data"]["installId"])


def _leaked(site: Site) -> list[Json]:
    leaked: list[Json] = site.cloud.ledger(machines=False)["leaked"]
    return [part for part in leaked if part["tenant"] == site.tenant.name]
