"""The writes on a claim that its owner asks for: bind, extend, tag, release. One write each, which the server judges.

The gateway and the engine's queue of VMClaims share them. Each carries the uid of the object it is meant for, each
later one the id of the claim it is meant for, so that a write can never hit another claim.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from vmpool.api.meta import format_time
from vmpool.api.vm import Claim
from vmpool.kube.client import Client
from vmpool.kube.errors import Conflict, Invalid, KubeError, NotFound, OutcomeUnknown
from vmpool.kube.kinds import POOLEDVMS
from vmpool.kube.mirror import Mirror
from vmpool.plan.rules import CLAIM_ENDED, CLAIM_NOT_READY, CLAIM_TAKEN
from vmpool.plan.snapshot import VM, VMClaim
from vmpool.telemetry import logs

log = logs.get(__name__)

LOST_MESSAGES = frozenset({CLAIM_TAKEN, CLAIM_NOT_READY, CLAIM_ENDED})

RELEASED = "Released"


class ClaimGone(Exception):
    """The claim that was meant has ended already, or the VM is gone."""


async def bind(client: Client, vms: Mirror[VM], vm: VM, claim: Claim) -> VM | None:
    """Claim a VM by the one write that the server can refuse. Return it as bound, or None when another was faster.

    Raises ``OutcomeUnknown`` when the write may have happened and nobody can be asked, and every other error of
    ``Client.patch_merge`` as it is: those say nothing about this VM.
    """
    try:
        return await _patch(client, vms, vm, {"claim": claim.wire()})
    except NotFound:
        vms.saw_deleted(vm.uid, vm.resource_version)
        return None
    except Invalid as error:
        if not lost_the_race(error):
            raise
        return None
    except OutcomeUnknown:
        return await _after_silence(vms, vm, claim.id)


def lost_the_race(error: Invalid) -> bool:
    """Say whether a claim was refused only because somebody else has the VM, or because it is not Ready any more."""
    causes = error.causes
    return bool(causes) and all(
        cause.field == "metadata.uid" or any(message in cause.message for message in LOST_MESSAGES) for cause in causes
    )


async def extend(client: Client, vms: Mirror[VM], vm: VM, expires_at: datetime, version: str = "") -> VM:
    """Move the end of a claim. Raises ``ClaimGone``, and what ``Client.patch_merge`` raises.

    With a resourceVersion the end is moved only on that version of the VM; ``Conflict`` says that it is another by now.
    """
    return await _change(client, vms, vm, {"expiresAt": format_time(expires_at)}, version)


async def tag(client: Client, vms: Mirror[VM], vm: VM, tags: Mapping[str, str | None]) -> VM:
    """Merge tags into a claim; None removes one. Raises ``ClaimGone``, and what ``Client.patch_merge`` raises."""
    return await _change(client, vms, vm, {"tags": dict(tags)})


async def change(
    client: Client, vms: Mirror[VM], vm: VM, *, expires_at: datetime | None, tags: Mapping[str, str | None]
) -> VM:
    """``extend`` and ``tag`` in one write, for a request that asks for both."""
    changes: dict[str, Any] = {"tags": dict(tags)} if tags else {}
    if expires_at is not None:
        changes["expiresAt"] = format_time(expires_at)
    return await _change(client, vms, vm, changes)


async def release(client: Client, vms: Mirror[VM], vm: VM, now: datetime, reason: str = RELEASED) -> VM:
    """End a claim for its owner: the VM is destroyed, never handed out again.

    Raises ``ClaimGone`` when it had ended already, and what ``Client.patch_merge`` raises.
    """
    return await _change(client, vms, vm, {"releasedAt": format_time(now), "endReason": reason})


async def learn(mirror: Mirror[Any], known: VM | VMClaim) -> None:
    """Look what became of an object that the server has in another state than the mirror, or not any more.

    Else the same would be decided again at once, for as long as the watch is behind. Raises no ``KubeError``: what
    cannot be read now is told by the watch.
    """
    try:
        await mirror.quorum_get(known.namespace, known.name)
    except NotFound:
        mirror.saw_deleted(known.uid, known.resource_version)
    except KubeError as error:
        log.info("not_looked_at", name=known.name, error=str(error))


async def _change(client: Client, vms: Mirror[VM], vm: VM, changes: dict[str, Any], version: str = "") -> VM:
    assert vm.claim is not None, "only a claimed VM has a claim to change"
    try:
        return await _patch(client, vms, vm, {"claim": {"id": vm.claim.id, **changes}}, version)
    except NotFound as error:
        vms.saw_deleted(vm.uid, vm.resource_version)
        raise ClaimGone(f"{vm.name} is gone") from error
    except Conflict:
        await learn(vms, vm)
        raise
    except Invalid as error:
        if not lost_the_race(error):
            raise
        await learn(vms, vm)
        raise ClaimGone(f"the claim on {vm.name} has ended") from error


async def _patch(client: Client, vms: Mirror[VM], vm: VM, spec: dict[str, Any], version: str = "") -> VM:
    meta = {"uid": vm.uid, "resourceVersion": version} if version else {"uid": vm.uid}
    body = {"metadata": meta, "spec": spec}
    answer = await client.patch_merge(POOLEDVMS, vm.namespace, vm.name, body)
    vms.saw(answer)
    return _known(vms, vm)


async def _after_silence(vms: Mirror[VM], vm: VM, claim_id: str) -> VM | None:
    """Look whether a claim without an answer happened. Raises ``OutcomeUnknown`` when that cannot be known."""
    try:
        await vms.quorum_get(vm.namespace, vm.name)
    except NotFound:
        return None
    except KubeError as error:
        raise OutcomeUnknown(f"no answer to the claim of PooledVM {vm.name}, nor to the look at it: {error}") from error
    now = _known(vms, vm)
    if now.uid == vm.uid and now.claim is not None:
        return now if now.claim.id == claim_id else None
    # The write may still be on its way: whoever asks for another VM now could end up with both.
    raise OutcomeUnknown(f"no answer to the claim of PooledVM {vm.name}, and it is not claimed yet")


def _known(vms: Mirror[VM], vm: VM) -> VM:
    entry = vms.by_uid(vm.uid)
    return entry.fact if entry is not None and entry.fact is not None else vm
