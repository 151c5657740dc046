"""Every write on a VMClaim, and what a VM is told about a claim that is not there. The answers go into the mirrors."""

from collections.abc import Sequence
from datetime import datetime

from vmpool.api.claim import VMClaimStatus
from vmpool.api.conditions import Condition, ConditionType, find, merge, observed
from vmpool.engine.binding import learn
from vmpool.engine.world import World
from vmpool.engine.writes import status_changes
from vmpool.kube.errors import Conflict, NotFound
from vmpool.kube.kinds import POOLEDVMS, VMCLAIMS
from vmpool.kube.resource import Json
from vmpool.plan.snapshot import VM, VMClaim


async def write_status(world: World, claim: VMClaim, status: VMClaimStatus) -> None:
    """Write a status on the very version that was decided on.

    Raises ``Conflict`` when that is not the latest, and ``NotFound`` when it is gone; the mirror knows by then.
    """
    changes = status_changes(claim.status, status)
    body = {"metadata": {"uid": claim.uid, "resourceVersion": claim.resource_version}, "status": changes}
    try:
        answer = await world.client.patch_merge(VMCLAIMS, claim.namespace, claim.name, body, "status")
    except NotFound:
        world.claims.saw_deleted(claim.uid, claim.resource_version)
        raise
    except Conflict:
        await learn(world.claims, claim)
        raise
    world.claims.saw(answer)


async def remove(world: World, claim: VMClaim) -> None:
    """Delete a claim, unless it has changed; one that is gone already is as good.

    Raises ``Conflict`` when it has changed; the mirror has learned how by then.
    """
    try:
        left = await world.client.delete(
            VMCLAIMS, claim.namespace, claim.name, uid=claim.uid, resource_version=claim.resource_version
        )
    except NotFound:
        left = None
    except Conflict:
        await learn(world.claims, claim)
        raise
    if left is None:
        world.claims.saw_deleted(claim.uid, claim.resource_version)
    else:
        world.claims.saw(left)


async def say_missing(world: World, vm: VM, why: str, now: datetime) -> None:
    """Put the condition ClaimMissing on a VM whose VMClaim is neither there nor proven gone."""
    raw = await _as_it_is(world, vm)
    if raw is None:
        return
    meta, before = raw["metadata"], _conditions(raw)
    if find(before, ConditionType.CLAIM_MISSING) is not None:
        return
    message = f"its VMClaim is not there, and nothing proves that its owner deleted it, so the VM stays: {why}"
    missing = observed(
        ConditionType.CLAIM_MISSING, True, "NotProven", message, generation=meta.get("generation", 0), now=now
    )
    await _say(world, vm, meta["resourceVersion"], merge(before, (*before, missing), now))


async def say_found(world: World, vm: VM) -> None:
    """Take the condition ClaimMissing off a VM whose VMClaim has turned up."""
    raw = await _as_it_is(world, vm)
    if raw is None:
        return
    before = _conditions(raw)
    kept = tuple(one for one in before if one.type != ConditionType.CLAIM_MISSING)
    if kept != before:
        await _say(world, vm, raw["metadata"]["resourceVersion"], kept)


async def _as_it_is(world: World, vm: VM) -> Json | None:
    """Return the object as the server has it, None when it is gone."""
    try:
        raw = await world.vms.quorum_get(vm.namespace, vm.name)
    except NotFound:
        world.vms.saw_deleted(vm.uid, vm.resource_version)
        return None
    return raw if raw["metadata"]["uid"] == vm.uid else None


def _conditions(raw: Json) -> tuple[Condition, ...]:
    return tuple(Condition.model_validate(one) for one in (raw.get("status") or {}).get("conditions", ()))


async def _say(world: World, vm: VM, version: str, conditions: Sequence[Condition]) -> None:
    body = {
        "metadata": {"uid": vm.uid, "resourceVersion": version},
        "status": {"conditions": [one.wire() for one in conditions]},
    }
    world.vms.saw(await world.client.patch_merge(POOLEDVMS, vm.namespace, vm.name, body, "status"))
