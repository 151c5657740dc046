"""Decide what to do for a dead letter that somebody wants tried again.

Every decision is the same when it is made again after its effect: a process that ends between effect and answer finds
the effect, and gives the answer.
"""

import base64
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vmpool.api import keys
from vmpool.api.pool import template_digest
from vmpool.plan.healthnumbers import wanted
from vmpool.plan.lifecycle import LetterPhase, Phase
from vmpool.plan.policies import Letter, Queue
from vmpool.plan.snapshot import VM, PoolFacts, ProviderFacts

AGAIN: Final = "it was redriven before: what came of it, and failed since, has a letter of its own"
NAMES: Final = 5
"""How many names a successor may have: only a namesake of somebody else's makes it take the next one."""


@dataclass(frozen=True, slots=True)
class Redrive:
    """What decides about one letter."""

    letter: Letter
    vm: VM | None
    """The VM that failed; None when it is gone."""
    pool: PoolFacts | None
    """The pool of the letter's pool name; None when there is none."""
    vms: Sequence[VM] = ()
    """All VMs of the pool that failed."""
    waiting: int = 0
    """VMs that waiting claims ask the pool for on top."""
    providers: Mapping[str, ProviderFacts] | None = None
    """The pool's providers by name."""
    creating: int = 0
    """Creates of the pool in flight: what becomes of them is not known yet."""
    failed: Collection[tuple[str, str]] = ()
    """Name and request of each VM of the pool that has a letter of its own."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Bring the letter's own VM back from quarantine."""

    vm: VM


@dataclass(frozen=True, slots=True)
class DestroyAnew:
    """Ask for the destruction of the letter's own VM at once."""

    vm: VM


@dataclass(frozen=True, slots=True)
class Succeed:
    """Create a VM that goes on with the letter's request, under the first of these names that is free."""

    pool: PoolFacts
    digest: str
    names: tuple[str, ...]
    provider: str
    request_id: str
    retry_count: int


@dataclass(frozen=True, slots=True)
class Conclude:
    """There is nothing to do, or it was done already: say so on the letter."""

    phase: LetterPhase
    message: str
    successor: str = ""


@dataclass(frozen=True, slots=True)
class Later:
    """It cannot be done now; the letter keeps its action."""

    message: str


Decision = Resume | DestroyAnew | Succeed | Conclude | Later


def resumed(vm: VM) -> str:
    """Say that a VM has begun anew."""
    return f"{vm.name} is back from quarantine with the machine that it has"


def destroys(vm: VM) -> str:
    """Say that a destruction has begun anew."""
    return f"the destruction of {vm.name} has begun anew"


def succeeded(name: str) -> str:
    """Say that a successor is there."""
    return f"{name} goes on with its request"


def decide(seen: Redrive) -> Decision:
    """Return what a redrive comes to now."""
    letter, vm = seen.letter, seen.vm
    if letter.phase == LetterPhase.REDRIVEN:
        # What came of it may have failed since: then that has a letter of its own, and knows the newer state.
        return Conclude(LetterPhase.REDRIVEN, AGAIN)
    if letter.queue_from == Queue.TASKS:
        return _task(letter, vm)
    if vm is not None and vm.attempt > letter.attempt:
        return Conclude(LetterPhase.REDRIVEN, resumed(vm), vm.name)
    pool = seen.pool
    if pool is None:
        return Conclude(LetterPhase.REFUSED, f"VMPool {letter.pool} does not exist any more")
    if pool.uid != letter.pool_uid:
        return Conclude(
            LetterPhase.REFUSED, f"VMPool {pool.name} is not the one that had the failure: it was made anew"
        )
    if pool.deleting:
        return Conclude(LetterPhase.REFUSED, f"VMPool {pool.name} is being deleted")
    return _in_pool(seen, pool, vm)


def _in_pool(seen: Redrive, pool: PoolFacts, vm: VM | None) -> Decision:
    """Return what a redrive comes to in the pool that had the failure."""
    letter = seen.letter
    request_id = letter.request_id or f"req-{_digest(letter, 0)[:16]}"
    names = successor_names(pool, letter)
    for name in names:
        # A successor that has failed meanwhile has a letter of its own: this one's redrive is done all the same.
        if (name, request_id) in {*((one.name, one.request_id) for one in seen.vms), *seen.failed}:
            return Conclude(LetterPhase.REDRIVEN, succeeded(name), name)
    if vm is not None and vm.claim is None and vm.phase == Phase.READY:
        return Conclude(LetterPhase.NOT_NEEDED, f"{vm.name} is Ready")
    if vm is not None and vm.phase == Phase.PENDING:
        return Later(f"{vm.name} is being given up just now")
    if pool.spec.paused:
        return Later(f"VMPool {pool.name} is paused")
    digest = template_digest(pool.spec.template)
    if vm is not None and vm.phase == Phase.QUARANTINED and not vm.deleting and vm.digest == digest:
        return _resume(seen, pool, vm)
    return _succeed(seen, pool, digest, names, request_id)


def _task(letter: Letter, vm: VM | None) -> Decision:
    if vm is None:
        return Conclude(LetterPhase.NOT_NEEDED, f"{letter.vm} is gone: its destruction has ended")
    if vm.phase != Phase.COMPLETED:
        return Conclude(LetterPhase.NOT_NEEDED, f"{vm.name} is {vm.phase}: nothing destroys it")
    if vm.attempt > letter.attempt:
        return Conclude(LetterPhase.REDRIVEN, destroys(vm), vm.name)
    return DestroyAnew(vm)


def _wanted(seen: Redrive, pool: PoolFacts) -> int:
    return wanted(pool) + seen.waiting


def _resume(seen: Redrive, pool: PoolFacts, vm: VM) -> Decision:
    """Resume, unless every place is taken by a Ready VM: then this one would be destroyed as surplus at once.

    A successor that is on its way makes room: of pending VMs a pool gives up the newest.
    """
    wanted = _wanted(seen, pool)
    ready = sum(1 for one in seen.vms if one.phase == Phase.READY and _live(one))
    if ready < wanted:
        return Resume(vm)
    kept = f"{vm.name} stays in quarantine"
    return Conclude(LetterPhase.NOT_NEEDED, f"VMPool {pool.name} wants {wanted} VMs, and {ready} are Ready; {kept}")


def _succeed(seen: Redrive, pool: PoolFacts, digest: str, names: tuple[str, ...], request_id: str) -> Decision:
    wanted = _wanted(seen, pool)
    live = sum(1 for one in seen.vms if one.phase in (Phase.PENDING, Phase.READY) and _live(one))
    if live >= wanted:
        message = f"VMPool {pool.name} wants {wanted} VMs, and {live} are Ready or on their way"
        return Conclude(LetterPhase.NOT_NEEDED, message)
    if len(seen.vms) >= pool.spec.max_vms:
        message = f"VMPool {pool.name} has {len(seen.vms)} VMs, and its maxVMs is {pool.spec.max_vms}"
        return Conclude(LetterPhase.NOT_NEEDED, message)
    if live + seen.creating >= wanted or len(seen.vms) + seen.creating >= pool.spec.max_vms:
        return Later(f"VMPool {pool.name} is creating {seen.creating} VMs just now")
    provider = _provider(seen, pool)
    if not provider:
        return Later(f"no VMProvider of VMPool {pool.name} takes another machine now")
    return Succeed(pool, digest, names, provider, request_id, seen.letter.retry_count + 1)


def _live(vm: VM) -> bool:
    return vm.claim is None and not vm.deleting


def _provider(seen: Redrive, pool: PoolFacts) -> str:
    """Return the provider with the least for its weight, as the pool's own creates choose; empty when none has room."""
    facts = seen.providers or {}
    have = [vm.provider for vm in seen.vms]
    open_ones = [
        share
        for share in pool.spec.providers
        if share.weight and share.name in facts and facts[share.name].usable and facts[share.name].room > 0
    ]
    best = min(open_ones, key=lambda one: ((have.count(one.name) + 1) / one.weight, one.name), default=None)
    return best.name if best is not None else ""


def successor_names(pool: PoolFacts, letter: Letter) -> tuple[str, ...]:
    """Return the names that a letter's successor may have: the pool's prefix, and a hash of the letter's uid."""
    prefix = pool.spec.host_name.prefix or f"{pool.name[: keys.MAX_HOST_PREFIX - 1]}-"
    return tuple(f"{prefix}{_suffix(letter, number)}" for number in range(NAMES))


def _digest(letter: Letter, number: int) -> str:
    return hashlib.sha256(f"{letter.uid}/{number}".encode()).hexdigest()


def _suffix(letter: Letter, number: int) -> str:
    hashed = base64.b32encode(bytes.fromhex(_digest(letter, number))).decode().lower()
    return hashed[: keys.HOST_SUFFIX_LENGTH]
