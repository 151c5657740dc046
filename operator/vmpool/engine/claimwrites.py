"""Every write on a VMClaim, and what a VM is told about a claim that is not there. The answers go into the mirrors."""

from datetime import datetime

from vmpool.api.claim import VMClaimStatus
from vmpool.api.conditions import Condition, ConditionType, find, merge, observed
from vmpool.engine.world import World
from vmpool.engine.writes import status_changes
from vmpool.kube.errors import Conflict, NotFound
from vmpool.kube.kinds import POOLEDVMS, VMCLAIMS
from vmpool.plan.snapshot import VM, VMClaim


async def write_status(world: World, claim: VMClaim, status: VMClaimStatus) -> None:
    """Write a status on the very version that was decided on.

    Raises ``Conflict`` when that is not the latest; the mirror has learned the latest one by then.
    """
    changes = status_changes(claim.status, status)
    body = {"metadata": {"uid": claim.uid, "resourceVersion": claim.resource_version}, "status": changes}
    try:
        answer = await world.client.patch_merge(VMCLAIMS, claim.namespace, claim.name, body, "status")
    except Conflict:
        await world.claims.quorum_get(claim.namespace, claim.name)
        raise
    world.claims.saw(answer)


async def remove(world: World, claim: VMClaim) -> None:
    """Delete a claim, unless it has changed. Raises ``Conflict`` then, and ``NotFound`` when it is gone already."""
    left = await world.client.delete(
        VMCLAIMS, claim.namespace, claim.name, uid=claim.uid, resource_version=claim.resource_version
    )
    if left is None:
        world.claims.saw_deleted(claim.uid, claim.resource_version)
    else:
        world.claims.saw(left)


async def say_missing(world: World, vm: VM, why: str, now: datetime) -> None:
    """Put the condition ClaimMissing on a VM whose VMClaim is neither there nor proven gone."""
    try:
        raw = await world.vms.quorum_get(vm.namespace, vm.name)
    except NotFound:
        return
    meta = raw["metadata"]
    if meta["uid"] != vm.uid:
        return
    before = tuple(Condition.model_validate(one) for one in (raw.get("status") or {}).get("conditions", ()))
    if find(before, ConditionType.CLAIM_MISSING) is not None:
        return
    message = f"its VMClaim is not there, and nothing proves that its owner deleted it, so the VM stays: {why}"
    missing = observed(
        ConditionType.CLAIM_MISSING, True, "NotProven", message, generation=meta.get("generation", 0), now=now
    )
    conditions = merge(before, (*before, missing), now)
    body = {
        "metadata": {"uid": vm.uid, "resourceVersion": meta["resourceVersion"]},
        "status": {"conditions": [one.wire() for one in conditions]},
    }
    world.vms.saw(await world.client.patch_merge(POOLEDVMS, vm.namespace, vm.name, body, "status"))
