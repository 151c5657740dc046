"""The end of a run: everything is given back, and what is then still missing until everything is as wanted."""

import time
from collections.abc import Sequence

from tests.api import Json
from tests.faults.hammer.book import Book
from tests.faults.hammer.stage import Stage
from tests.faults.scenarios.users import moment

OVERDUE_SECONDS = 60.0
"""How much later than its time a claim may still stand: while nobody leads nobody ends it."""


async def at_rest(made: Stage) -> bool:
    """Whether everything is as wanted."""
    return not await missing(made)


async def missing(made: Stage) -> str:
    """What is not yet as wanted; empty: all pools are full, and nothing else is there."""
    vms = (await made.kind("pooledvms").list()).ok()["items"]
    for pool in (await made.kind("vmpools").list()).ok()["items"]:
        if lacks := lacking(pool, vms):
            return f"pool {pool['metadata']['name']}: {lacks}"
    if claims := (await made.kind("vmclaims").list()).ok()["items"]:
        return f"{len(claims)} VMClaims are there"
    if {vm["status"].get("machineId") for vm in vms} != await made.machines():
        return "machines and PooledVMs do not match"
    return ""


def lacking(pool: Json, vms: Sequence[Json]) -> str:
    """What a pool lacks to be full, known to be so, and of nothing but VMs that are free; empty: nothing."""
    status = pool.get("status") or {}
    wanted = pool["spec"]["replicas"]
    mine = [vm for vm in vms if vm["spec"]["poolUid"] == pool["metadata"]["uid"]]
    free = [vm for vm in mine if vm["status"]["phase"] == "Ready" and not vm["spec"].get("claim")]
    if len(free) != wanted or len(mine) != wanted:
        return f"{len(free)} of {wanted} VMs are Ready, {len(mine) - len(free)} others are there"
    if status.get("readyReplicas") != wanted or status.get("observedGeneration") != pool["metadata"]["generation"]:
        return "its status does not say so yet"
    conditions = {one["type"]: one["status"] for one in status.get("conditions") or ()}
    return "" if conditions.get("Ready") == "True" else "its condition Ready is not True"


async def give_all_back(made: Stage, book: Book) -> list[str]:
    """End what users have left behind, as their administrator would; return what should long have been over."""
    now = time.time()
    for hold in book.held():
        hold.given_back = now
    claims = made.kind("vmclaims")
    for claim in (await claims.list()).ok()["items"]:
        await claims.delete(claim["metadata"]["name"])
    overdue: list[str] = []
    vms = made.kind("pooledvms")
    for vm in (await vms.list()).ok()["items"]:
        claim, name = vm["spec"].get("claim") or {}, vm["metadata"]["name"]
        if not claim or claim.get("releasedAt"):
            continue
        if claim["expiresAt"] < moment(-OVERDUE_SECONDS):
            overdue.append(f"{name} is claimed, and its time was up at {claim['expiresAt']}")
        # Refused: somebody was faster.
        over = {"id": claim["id"], "releasedAt": moment(0), "endReason": "Released"}
        await vms.merge(name, {"spec": {"claim": over}})
    return overdue
