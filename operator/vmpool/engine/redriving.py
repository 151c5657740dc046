"""Carry out redrives: the effect first, then the answer on the letter, so that a death in between repeats neither."""

from collections.abc import Iterator, Mapping
from datetime import datetime

from vmpool.api.meta import format_time
from vmpool.engine import writes
from vmpool.engine.binding import learn
from vmpool.engine.world import BY_POOL, World
from vmpool.kube.errors import Conflict, NotFound
from vmpool.kube.kinds import DEAD_LETTERS, VMPOOLS
from vmpool.kube.mirror import Mirror
from vmpool.plan.actions import CreateVM
from vmpool.plan.lifecycle import LetterPhase
from vmpool.plan.policies import Letter, Queue
from vmpool.plan.redrive import (
    AGAIN,
    Conclude,
    Decision,
    DestroyAnew,
    Later,
    Redrive,
    Resume,
    Succeed,
    decide,
    destroys,
    resumed,
    succeeded,
)
from vmpool.telemetry import logs

log = logs.get(__name__)

MESSAGE_MAX = 1024


async def redrive(world: World, letter: Letter, now: datetime) -> Conclude | Later:
    """Do what a letter asks for, and say on it what became of it; return that.

    Raises ``Conflict`` when somebody was quicker, and ``NotFound`` when the letter or its VM has gone meanwhile: look
    again. Other KubeErrors say nothing about the letter.
    """
    pool = world.pools.by_name(letter.namespace, letter.pool)
    if pool is not None and pool.fact is None:
        return Later(f"VMPool {letter.pool} cannot be read by this release")
    decision = decide(_seen(world, letter))
    try:
        answer = await _carry_out(world, decision, now)
    except Conflict:
        vm = world.vm(letter.vm_uid)
        if vm is not None:
            await learn(world.vms, vm)
        raise
    if isinstance(answer, Later):
        return answer
    if answer.phase != LetterPhase.REFUSED and letter.queue_from != Queue.TASKS:
        # After the successor is there: else the pool, free to create again, would fill its place a second time.
        await _forgive(world, letter)
    await _answer(world, letter, answer, now)
    log.info("redriven", letter=str(letter.name), phase=answer.phase, why=answer.message)
    return answer


async def _forgive(world: World, letter: Letter) -> None:
    """Let the pool create again; written before the letter's answer, which nobody would look at a second time."""
    entry = world.pools.by_name(letter.namespace, letter.pool)
    pool = entry.fact if entry is not None else None
    if pool is None or pool.uid != letter.pool_uid:
        return
    world.forgive(pool.uid)
    if pool.status.poison is not None:
        body = {"metadata": {"uid": pool.uid}, "status": {"poison": None}}
        world.pools.saw(await world.client.patch_merge(VMPOOLS, pool.namespace, pool.name, body, "status"))


def _seen(world: World, letter: Letter) -> Redrive:
    entry = world.pools.by_name(letter.namespace, letter.pool)
    pool = entry.fact if entry is not None else None
    vm = world.vm(letter.vm_uid)
    views = (
        {share.name: world.views.get((letter.namespace, share.name)) for share in pool.spec.providers} if pool else {}
    )
    return Redrive(
        letter=letter,
        # Whoever may write a letter may name any uid: only what is of this namespace and pool is meant.
        vm=vm if vm is not None and (vm.namespace, vm.pool_uid) == (letter.namespace, letter.pool_uid) else None,
        pool=pool,
        vms=world.vms_of_pool(letter.pool_uid),
        waiting=world.waiting(letter.pool_uid),
        failed={(one.vm, one.request_id) for one in _letters(world, letter.pool_uid)},
        creating=len(world.creates.of_pool(letter.pool_uid)),
        providers={name: view.facts() for name, view in views.items() if view is not None},
    )


def _letters(world: World, pool_uid: str) -> Iterator[Letter]:
    return (entry.fact for entry in world.letters.by_index(BY_POOL, pool_uid) if entry.fact is not None)


async def _carry_out(world: World, decision: Decision, now: datetime) -> Conclude | Later:
    match decision:
        case Resume(vm):
            await writes.resume(world, vm, now)
            return Conclude(LetterPhase.REDRIVEN, resumed(vm), vm.name)
        case DestroyAnew(vm):
            await writes.destroy_anew(world, vm)
            return Conclude(LetterPhase.REDRIVEN, destroys(vm), vm.name)
        case Succeed(pool, digest, names, provider, request_id, retry_count):
            want = CreateVM(provider, request_id, retry_count)
            where = (pool.namespace, provider)
            # The pool's own loop plans beside us, and must not fill the same place.
            world.creates.begin(pool.uid, where)
            try:
                with world.ends_create(pool.uid, where):
                    name = await writes.create_named(world, pool, digest, names, want)
            finally:
                world.wake_pool(pool.uid)
            return Conclude(LetterPhase.REDRIVEN, succeeded(name), name)
        case _:
            return decision


async def _answer(world: World, letter: Letter, answer: Conclude, now: datetime) -> None:
    status: dict[str, object] = {
        "phase": answer.phase.value,
        "observedGeneration": letter.generation,
        "message": answer.message[:MESSAGE_MAX],
        "handledAt": format_time(now),
    }
    if answer.message != AGAIN:
        status["successor"] = answer.successor or None
    await write_letter(world, letter, status)


async def write_letter(world: World, letter: Letter, status: Mapping[str, object]) -> None:
    """Patch a letter's status on the very version that was decided on. Raises ``Conflict`` and ``NotFound``."""
    body = {"metadata": {"uid": letter.uid, "resourceVersion": letter.resource_version}, "status": status}
    try:
        written = await world.client.patch_merge(DEAD_LETTERS, letter.namespace, letter.name, body, "status")
    except NotFound:
        world.letters.saw_deleted(letter.uid, letter.resource_version)
        raise
    except Conflict:
        await learn_letter(world.letters, letter)
        raise
    world.letters.saw(written)


async def learn_letter(letters: Mirror[Letter], letter: Letter) -> None:
    """Look what became of a letter that has changed. Raises KubeError when that cannot be known now."""
    try:
        await letters.quorum_get(letter.namespace, letter.name)
    except NotFound:
        letters.saw_deleted(letter.uid, letter.resource_version)
