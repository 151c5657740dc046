"""What a dead letter says: where its VM was, what it is called, and which failures are alike."""

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from vmpool.api.deadletter import MAX_ATTEMPTS, Attempt
from vmpool.api.pool import Failure, Poisoned
from vmpool.plan.lifecycle import Phase
from vmpool.plan.policies import Letter, Queue
from vmpool.plan.snapshot import VM, Reason, Step

FINGERPRINT_DIGITS: Final = 12
MESSAGE_MAX: Final = 1024
_VARIES: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # uuids
    r"|\b(?=[0-9a-f]*[0-9])[0-9a-f]{6,}\b"  # ids in hexadecimal
    r"|[0-9]+(?:\.[0-9]+)*"  # numbers, versions, addresses
)
"""What differs between two failures of the same cause."""


def queue_of(vm: VM, step: str, error_class: str = "") -> Queue:
    """Return the queue name of a VM that failed at a step."""
    if step == Step.DESTROY:
        return Queue.TASKS
    if vm.claim is not None:
        return Queue.RUNNING
    if error_class == Reason.PURGED_PENDING:
        # As in VMPooler: what was stuck in pending is told from there, whatever it waited for.
        return Queue.PENDING
    if step in (Step.CREATE, Step.ADOPT):
        return Queue.CLONE
    return Queue.READY if vm.phase == Phase.READY else Queue.PENDING


def letter_name(vm: VM, queue: Queue, *, apart: bool = False) -> str:
    """Return the name of the letter: the same for the same failure, so that the server refuses a second one.

    ``apart`` from the letter of an earlier VM of the same name: the successor of a redrive may have had one.
    """
    name = f"{vm.name}-{queue}-{vm.attempt}"
    return f"{name}-{hashlib.sha256(vm.uid.encode()).hexdigest()[:8]}" if apart else name


def is_settled(letter: Letter, vm: VM | None, now: datetime, began: datetime, hold: timedelta) -> bool:
    """Whether what a letter tells of is over: its VM has left the state in which it failed.

    Between the letter and the write that ends the VM the process may die. The next one finds the VM as it was and
    writes the letter of that failure: one that was removed meanwhile would be there a second time. A VM that has
    recovered instead stays as it is for long, so this is waited for only until ``hold`` has passed since the failure,
    and since this process ``began``: nobody may have looked at the VM before.
    """
    if vm is None or vm.attempt != letter.attempt or letter.queue_from == Queue.TASKS:
        return True
    # Anybody may write a letter: one from the future is held no longer than the others.
    if now - (began if letter.failed_at > now else max(letter.failed_at, began)) >= hold:
        return True
    if vm.phase == Phase.CLAIMED:
        return vm.claim is None or vm.claim.released_at is not None
    return vm.phase not in {Phase.PENDING, Phase.READY}


def fingerprint(vm: VM, step: str, error_class: str, message: str) -> str:
    """Return twelve hexadecimal digits that are the same for failures alike but for names, numbers and addresses."""
    text = message
    for name in sorted({vm.name, vm.host_name, vm.machine_id, vm.uid, *vm.addresses} - {""}, key=len, reverse=True):
        text = text.replace(name, "*")
    text = _VARIES.sub("#", text.lower())
    return hashlib.sha256(f"{step}\n{error_class}\n{text}".encode()).hexdigest()[:FINGERPRINT_DIGITS]


def attempts_of(vm: VM, failure: Failure) -> tuple[Attempt, ...]:
    """Return the tries that are known: earlier failures that the ledger still holds, then the last one."""
    earlier = [
        Attempt(at=one.failed_at or one.started_at or failure.failed_at, reason=one.reason, message=one.message)
        for one in vm.steps
        if one.reason and one.finished_at is None
    ]
    last = Attempt(at=failure.failed_at, reason=failure.error_class, message=failure.message[:MESSAGE_MAX])
    return (*earlier[-(MAX_ATTEMPTS - 1) :], last)


def poisoned_by(before: Poisoned | None, print_of: str, message: str, now: datetime) -> Poisoned:
    """Count one more failure: in a row with those before when it is alike, else as the first of its kind."""
    if before is None or before.fingerprint != print_of:
        return Poisoned(fingerprint=print_of, failures=1, since=now, message=message[:MESSAGE_MAX])
    return before.model_copy(update={"failures": before.failures + 1, "message": message[:MESSAGE_MAX]})


def is_poison(poison: Poisoned | None, limit: int) -> bool:
    """Whether the same failure has come so often that creates stop; a limit of 0 never stops them."""
    return poison is not None and 0 < limit <= poison.failures


def poisoned(poison: Poisoned) -> str:
    """Say why nothing is created any more, and what helps."""
    return (
        f"nothing is created: the same failure has come {poison.failures} times in a row ({poison.fingerprint}: "
        f"{poison.message}); change the template or redrive one of its dead letters"
    )[:MESSAGE_MAX]


def shortened(parts: Sequence[str], most: int) -> str:
    """Join what is not empty, cut to ``most`` characters."""
    return "; ".join(part for part in parts if part)[:most]
