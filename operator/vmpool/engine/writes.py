"""Every write on a PooledVM, one function each. The server's answer goes into the mirror at once."""

import asyncio
import random
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from vmpool.api import keys
from vmpool.api.conditions import ConditionType, observed
from vmpool.api.meta import Shape, format_time
from vmpool.engine.binding import learn
from vmpool.engine.world import BY_NAME, World
from vmpool.kube.errors import AlreadyExists, Conflict, Invalid, KubeError, NotFound, OutcomeUnknown
from vmpool.kube.kinds import POOLEDVMS
from vmpool.kube.resource import Json
from vmpool.plan.actions import CreateVM
from vmpool.plan.lifecycle import Phase
from vmpool.plan.snapshot import VM, PoolFacts, Step, StepFacts
from vmpool.telemetry import logs

log = logs.get(__name__)

HOST_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
NAME_TRIES = 5
"""How many random names are drawn when one is taken: with 40 random bits a second is already unlikely."""
UNKNOWN_TRIES = 3
"""How often a create without an answer is looked after before the round gives up and looks again."""
CONFLICT_SECONDS = 0.1
"""Once to twice this, times the tries so far, before a create that met somebody else's write is sent again."""
MESSAGE_MAX = 1024


def random_suffix() -> str:
    """Return eight random base32 characters."""
    return "".join(secrets.choice(HOST_ALPHABET) for _ in range(keys.HOST_SUFFIX_LENGTH))


def new_request_id() -> str:
    """Return an id that ties together all tries to fill one place."""
    return f"req-{secrets.token_hex(8)}"


async def create_vm(world: World, pool: PoolFacts, digest: str, want: CreateVM) -> None:
    """Write the intent: a PooledVM with our finalizer. Nothing is asked of a provider before this has an answer."""
    prefix = pool.spec.host_name.prefix or f"{pool.name[: keys.MAX_HOST_PREFIX - 1]}-"
    request_id = want.request_id or new_request_id()
    for _ in range(NAME_TRIES):
        name = f"{prefix}{random_suffix()}"
        if world.vms.by_index(BY_NAME, name):
            continue
        body = new_vm(pool, digest, name, request_id, want)
        try:
            world.vms.saw(await _create(world, pool.namespace, name, request_id, body))
            return
        except AlreadyExists:
            continue
    raise RuntimeError(f"no free host name with prefix {prefix!r} after {NAME_TRIES} tries")


async def _create(world: World, namespace: str, name: str, request_id: str, body: Json) -> Json:
    """POST until it is known whether the object is there. The request id tells our object from a namesake."""
    why = ""
    for turn in range(UNKNOWN_TRIES):
        try:
            return await world.client.create(POOLEDVMS, namespace, body)
        except OutcomeUnknown as error:
            why = str(error)
        except Conflict as error:
            # A quota that others write too, or a proxy's second try of what the first one has done: ask again.
            why = str(error)
            await asyncio.sleep((1 + random.random()) * (turn + 1) * CONFLICT_SECONDS)  # noqa: S311
        except AlreadyExists:
            found = await world.client.get(POOLEDVMS, namespace, name)
            if found["spec"].get("requestId") == request_id:
                return found
            raise
    # No Conflict, which would be planned anew at once: whether it is there is not known, and others may be at it too.
    raise KubeError(f"the creation of PooledVM {name} came to nothing in {UNKNOWN_TRIES} tries: {why}")


def new_vm(pool: PoolFacts, digest: str, name: str, request_id: str, want: CreateVM) -> Json:
    """Return the body of a new PooledVM."""
    domain = pool.spec.host_name.domain
    return {
        "apiVersion": keys.API_VERSION,
        "kind": POOLEDVMS.kind,
        "metadata": {
            "name": name,
            "namespace": pool.namespace,
            "labels": {keys.LABEL_POOL: pool.name},
            "finalizers": [keys.FINALIZER_MACHINE],
            "ownerReferences": [
                {
                    "apiVersion": keys.API_VERSION,
                    "kind": "VMPool",
                    "name": pool.name,
                    "uid": pool.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "pool": pool.name,
            "poolUid": pool.uid,
            "provider": want.provider,
            "templateDigest": digest,
            "hostName": f"{name}.{domain}" if domain else name,
            "requestId": request_id,
            "retryCount": want.retry_count,
        },
    }


async def create_named(world: World, pool: PoolFacts, digest: str, names: Sequence[str], want: CreateVM) -> str:
    """Write the intent under the first of these names that is not somebody else's; return that name.

    Done twice it makes one VM: an object of the same name and request id is the one that was meant. Raises KubeError.
    """
    assert want.request_id, "a namesake is known by its request id"
    for name in names:
        if any(entry.key[0] != pool.namespace for entry in world.vms.by_index(BY_NAME, name)):
            continue
        body = new_vm(pool, digest, name, want.request_id, want)
        try:
            world.vms.saw(await _create(world, pool.namespace, name, want.request_id, body))
        except AlreadyExists:
            continue
        return name
    raise KubeError(f"none of the names {', '.join(names)} is free for a PooledVM")


async def resume(world: World, vm: VM, now: datetime) -> None:
    """Bring a Quarantined VM back to Pending as its next attempt, with the machine that it has.

    The ledger begins anew: making the machine is done at once, so the time to become usable counts from now. Raises
    ``Conflict`` when the VM has changed since it was decided on.
    """
    made = StepFacts(Step.CREATE, now, now if vm.machine_id else None)
    changes = into_phase(Phase.PENDING, now) | {
        "attempt": vm.attempt + 1,
        "reason": None,
        "message": None,
        "expiresAt": None,
        "steps": [_step(made)],
    }
    # Before the write: once it is Pending again, an old verdict would end it at once.
    world.sights.begin_anew(vm.uid)
    await write_status(world, vm, changes, decided=True)


async def destroy_anew(world: World, vm: VM) -> None:
    """Make the destruction of a Completed VM due at once, as its next attempt. Raises ``Conflict`` as ``resume``."""
    step = StepFacts(Step.DESTROY, vm.step(Step.DESTROY).started_at)
    world.sights.begin_anew(vm.uid)
    await write_status(world, vm, {"attempt": vm.attempt + 1, "steps": ledger(vm, step)}, decided=True)


async def write_status(world: World, vm: VM, changes: dict[str, Any], *, decided: bool) -> None:
    """Patch a PooledVM's status.

    ``decided`` writes carry the resourceVersion they were decided on: a 409 means look again. Observations (an id, a
    failed try) are as true on a newer version, so they are written on the newest known one, once more after a 409.
    """
    latest = vm if decided else world.vm(vm.uid) or vm
    try:
        await _patch_status(world, latest, changes)
    except Conflict:
        if decided:
            # Else the next round decides the same on the same old picture, until the watch catches up.
            await learn(world.vms, vm)
            raise
        await world.vms.quorum_get(vm.namespace, vm.name)
        newest = world.vm(vm.uid)
        if newest is not None:
            await _patch_status(world, newest, changes)


async def _patch_status(world: World, vm: VM, changes: dict[str, Any]) -> None:
    body = {"metadata": {"uid": vm.uid, "resourceVersion": vm.resource_version}, "status": changes}
    world.vms.saw(await world.client.patch_merge(POOLEDVMS, vm.namespace, vm.name, body, "status"))


def status_changes(before: Shape, after: Shape) -> dict[str, Any]:
    """Return the merge patch from one status to another: only what differs, and null for what is gone."""
    old, new = before.wire(), after.wire()
    changes: dict[str, Any] = {key: value for key, value in new.items() if old.get(key) != value}
    return changes | {key: None for key in old if key not in new}


def into_phase(phase: Phase, now: datetime) -> dict[str, Any]:
    """Return the changes that every change of phase makes."""
    return {"phase": phase, "phaseSince": format_time(now)}


def because(reason: str, message: str) -> dict[str, Any]:
    """Return the changes that explain a phase."""
    return {"reason": reason, "message": message[:MESSAGE_MAX]}


def machine_gone(vm: VM, message: str, now: datetime) -> Json:
    """Return the condition that tells a claim's owner that the machine went before the claim did."""
    reason = f"machine {vm.machine_id} is gone: {message}"
    return observed(ConditionType.MACHINE_GONE, True, "MachineGone", reason, generation=vm.generation, now=now).wire()


def ledger(vm: VM, *changed: StepFacts) -> list[Json]:
    """Return the whole step ledger with some entries replaced; a merge patch cannot change one entry of a list."""
    steps = {step.name: step for step in vm.steps} | {step.name: step for step in changed}
    return [_step(step) for step in steps.values()]


def _step(step: StepFacts) -> Json:
    made: Json = {"name": step.name}
    times = {
        "startedAt": step.started_at,
        "finishedAt": step.finished_at,
        "failedAt": step.failed_at,
        "nextAt": step.next_at,
    }
    made.update({key: format_time(value) for key, value in times.items() if value is not None})
    if step.retries:
        made["retries"] = step.retries
    if step.reason:
        made.update(because(step.reason, step.message))
    return made


def done(vm: VM, step: Step, started: datetime, now: datetime) -> StepFacts:
    """Return the ledger's entry of a step that is done; its retries stay on record."""
    before = vm.step(step)
    return StepFacts(step, before.started_at or started, now, before.retries)


async def end_claims(world: World, vms: Iterable[VM], reason: str, now: datetime) -> None:
    """``end_claim`` for each of several VMs, whatever becomes of the others; then raise what was refused, if anything.

    Of several errors the one that is raised is a failure rather than news of the VM.
    """
    errors: list[KubeError] = []
    for vm in vms:
        try:
            await end_claim(world, vm, reason, now)
        except KubeError as error:
            log.info("claim_not_ended", vm=vm.name, reason=reason, error=str(error))
            errors.append(error)
    if errors:
        raise next((error for error in errors if not isinstance(error, (Conflict, NotFound))), errors[0])


async def end_claim(world: World, vm: VM, reason: str, now: datetime) -> None:
    """End a claim on the very version that was decided on: an extension in between wins with a 409.

    Raises ``Conflict`` then, ``NotFound`` when the VM is gone, ``Invalid`` when the name is another object's by now;
    the mirror has learned how it is by then.
    """
    assert vm.claim is not None
    body = {
        "metadata": {"uid": vm.uid, "resourceVersion": vm.resource_version},
        "spec": {"claim": {"id": vm.claim.id, "releasedAt": format_time(now), "endReason": reason}},
    }
    try:
        answer = await world.client.patch_merge(POOLEDVMS, vm.namespace, vm.name, body)
    except NotFound:
        world.vms.saw_deleted(vm.uid, vm.resource_version)
        raise
    except (Conflict, Invalid):
        await learn(world.vms, vm)
        raise
    world.vms.saw(answer)


async def forget(world: World, vm: VM) -> None:
    """Remove an object whose machine is proven gone: delete it by uid, then take our finalizer off."""
    try:
        left = await world.client.delete(POOLEDVMS, vm.namespace, vm.name, uid=vm.uid)
        if left is None:
            world.vms.saw_deleted(vm.uid)
            return
        if (left.get("status") or {}).get("machineId", "") != vm.machine_id:
            # Another one, who led before or believes so, has made a machine after all: it has to go first.
            world.vms.saw(left)
            # What was proven was that no machine has its token; of this one nothing is known yet.
            world.sights.drop(vm.uid)
            return
        try:
            await drop_finalizer(world, left)
        except Invalid:
            await learn(world.vms, vm)
            newest = world.vm(vm.uid)
            if newest is not None and newest.resource_version == left["metadata"]["resourceVersion"]:
                # Nobody has changed it: an admission policy says no, and will do so again.
                raise
    except NotFound:
        world.vms.saw_deleted(vm.uid, vm.resource_version)
    except Conflict:
        await learn(world.vms, vm)


async def drop_finalizer(world: World, raw: Json) -> None:
    """Take our finalizer off a PooledVM by a patch that fails if anything of it has changed.

    It may land late: another one, who led before or believes so, may have written down a machine meanwhile.
    """
    patch = finalizer_patch(raw, keys.FINALIZER_MACHINE, keep=False)
    if patch:
        meta = raw["metadata"]
        patch = [{"op": "test", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]}, *patch]
        world.vms.saw(await world.client.patch_json(POOLEDVMS, meta["namespace"], meta["name"], patch))


def finalizer_patch(raw: Json, finalizer: str, *, keep: bool) -> Sequence[Json]:
    """Return the JSON patch that puts a finalizer on or takes it off; empty when there is nothing to do.

    It tests the uid and the list it was computed from: a merge patch on the list would drop others' finalizers.
    """
    meta = raw["metadata"]
    present: list[str] = list(meta.get("finalizers") or ())
    if (finalizer in present) == keep:
        return ()
    wanted = [*present, finalizer] if keep else [name for name in present if name != finalizer]
    tests: list[Json] = [{"op": "test", "path": "/metadata/uid", "value": meta["uid"]}]
    if present:
        tests.append({"op": "test", "path": "/metadata/finalizers", "value": present})
        return [*tests, {"op": "replace", "path": "/metadata/finalizers", "value": wanted}]
    return [*tests, {"op": "add", "path": "/metadata/finalizers", "value": wanted}]
