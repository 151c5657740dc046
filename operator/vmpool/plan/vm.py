"""Decide the next step of one VM: at most one effect, or the time to look again.

Whether a VM is wanted at all is the pool's business (``plan.pool``); here it is only carried through its life.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from vmpool.api.pool import Readiness, Retry
from vmpool.plan import backoff
from vmpool.plan.actions import (
    Complete,
    DestroyMachine,
    EndClaim,
    EnsureMachine,
    Forget,
    Look,
    MarkClaimed,
    MarkReady,
    Probe,
    TagMachine,
    VMAction,
)
from vmpool.plan.lifecycle import Phase
from vmpool.plan.looks import look_pause, on_grid
from vmpool.plan.snapshot import (
    NO_OUTLOOK,
    VM,
    Failed,
    Outlook,
    ProviderFacts,
    Reason,
    Sight,
    Step,
    StepFacts,
)

MISS_PAUSE: Final = timedelta(seconds=1)
"""Between two looks for a machine that was not found, so that they are two proofs and not one."""
BLAMELESS_SHARE: Final = 0.5
"""Of the time already waited, the next pause after a failure that is not the VM's."""
BOUND_FIRST: Final = timedelta(seconds=1)
"""After a VM was bound for a VMClaim, until its phase follows: the VMClaim's own status is written in between."""
PROOFS: Final = 2
"""How often an id must not be found before a later listing may prove that the machine is gone."""

ENDED_EXPIRED: Final = "Expired"
ENDED_MACHINE_GONE: Final = "MachineGone"
ENDED_FORCED: Final = "Forced"


@dataclass(frozen=True, slots=True)
class Next:
    """What to do for a VM now, and when to look again if nothing happens."""

    action: VMAction | None = None
    failed: Failed | None = None
    """The VM cannot go on; the pool decides between quarantine and the end."""
    wake_at: datetime | None = None
    wants_listing: bool = False
    """Only a complete listing can prove what is to be known."""


WAIT: Final = Next()


def next_step(
    vm: VM,
    sight: Sight,
    provider: ProviderFacts,
    readiness: Readiness,
    now: datetime,
    outlook: Outlook = NO_OUTLOOK,
) -> Next:
    """Return the next step of a VM that the pool wants to keep, or that is on its way out."""
    if vm.phase == Phase.COMPLETED:
        return _destroy(vm, sight, provider, now, outlook.expected.get((vm.provider, Step.DESTROY)))
    if vm.claim is not None:
        return _claimed(vm, sight, provider, now)
    if vm.deleting:
        return Next(Complete(vm, Reason.DELETED, "the PooledVM was deleted"))
    if vm.phase == Phase.PENDING:
        return _pending(vm, sight, provider, readiness, now, outlook)
    if vm.phase == Phase.READY:
        return _ready(vm, sight, provider, readiness, now)
    if vm.phase == Phase.QUARANTINED:
        return _quarantined(vm, now)
    return WAIT


def machine_gone(sight: Sight, provider: ProviderFacts) -> bool:
    """Say whether a VM has lost its machine: not found twice, then missing in a complete listing that began later.

    Enough to hand it out no more. What ends for good, a claim or an object, asks for ``nothing_left``.
    """
    return (
        provider.reachable
        and sight.misses >= PROOFS
        and sight.missed_at is not None
        and provider.listed_at is not None
        and provider.listed_at > sight.missed_at
        and sight.unlisted
    )


def nothing_left(sight: Sight, provider: ProviderFacts) -> bool:
    """Say whether absence is proven: no machine has its id, and none its token (design, section 2.5).

    One under a new id may be what somebody works on. A second one is taken in as a straggler, once the VM is Completed.
    """
    return machine_gone(sight, provider) and not sight.namesake


@dataclass(frozen=True, slots=True)
class CallError:
    """What a provider call ended with."""

    reason: str
    message: str
    terminal: bool = False
    """The same request can never work."""
    blames_vm: bool = True
    """False for a failure of the provider as a whole: it costs the VM no attempt."""
    retry_after: timedelta | None = None
    patience: timedelta | None = None
    """A refusal of the provider is borne for so long, then the VM is given up because of it; None: for ever."""


def after_error(vm: VM, step: Step, error: CallError, retry: Retry, now: datetime) -> StepFacts | Failed:
    """Return the ledger's entry after a failed call, or the verdict that the step is given up.

    Destroying is never given up.
    """
    before = vm.step(step)
    counts = error.blames_vm or step is Step.DESTROY
    retries = before.retries + counts
    if step is not Step.DESTROY and (error.terminal or (counts and retries >= retry.attempts)):
        tries = f" ({retries} tries)" if retries > 1 else ""
        return Failed(step, error.reason, f"{error.message}{tries}")
    started = before.started_at or now
    # Judged by a refusal after that time: what was answered before it may not be so any more.
    if step is not Step.DESTROY and error.patience is not None and now - started >= error.patience:
        return Failed(step, error.reason, f"{error.message} (for {(now - started).total_seconds():.0f} s)")
    wait = backoff.pause(max(retries, 1), retry.backoff, retry.max_backoff, f"{vm.uid}/{step}")
    if not counts:
        # No attempt is counted, so the pause grows with the time that the provider has had no room or patience.
        wait = min(max(wait, (now - started) * BLAMELESS_SHARE), retry.max_backoff)
    return StepFacts(
        name=step,
        started_at=started,
        retries=retries,
        next_at=now + max(wait, error.retry_after or timedelta()),
        reason=error.reason,
        message=error.message,
        failed_at=now,
    )


def _missing(
    vm: VM, sight: Sight, provider: ProviderFacts, now: datetime, deadline: datetime | None = None
) -> Next | None:
    """Follow up a machine that was not listed or not found; None when there is no such doubt.

    ``deadline`` is when something else is due, should no listing come until then.
    """
    if not provider.reachable or not vm.machine_id or not (sight.misses or sight.unlisted):
        return None
    if sight.misses >= PROOFS:
        return Next(wants_listing=not sight.namesake, wake_at=deadline)
    due = (sight.missed_at + MISS_PAUSE) if sight.missed_at else now
    return Next(Look(vm)) if now >= due else Next(wake_at=due)


def _claimed(vm: VM, sight: Sight, provider: ProviderFacts, now: datetime) -> Next:
    claim = vm.claim
    assert claim is not None
    if claim.released_at is not None:
        return Next(
            Complete(vm, Reason.CLAIM_ENDED, f"the claim of {claim.owner} has ended ({claim.end_reason or 'Released'})")
        )
    if vm.phase == Phase.READY:
        # Somebody waits for the VMClaim to say Bound, and nobody for the phase.
        due = claim.bound_at + BOUND_FIRST if claim.ref is not None and claim.bound_at is not None else now
        return Next(MarkClaimed(vm)) if now >= due else Next(wake_at=due)
    # First, because it is a failure to be told, whatever else would end the claim now.
    if nothing_left(sight, provider):
        return Next(EndClaim(vm, ENDED_MACHINE_GONE))
    if now >= claim.expires_at:
        return Next(EndClaim(vm, ENDED_EXPIRED))
    doubt = _missing(vm, sight, provider, now, claim.expires_at)
    if doubt is not None:
        return doubt
    # Only what was seen can be known to lack its tag: a restart does not tag everything anew.
    if sight.looked_at is not None and sight.claim_tag != claim.id and provider.reachable and vm.machine_id:
        if sight.tag_at is None or now >= sight.tag_at:
            return Next(TagMachine(vm), wake_at=claim.expires_at)
        return Next(wake_at=min(sight.tag_at, claim.expires_at))
    return Next(wake_at=claim.expires_at)


def _pending(
    vm: VM,
    sight: Sight,
    provider: ProviderFacts,
    readiness: Readiness,
    now: datetime,
    outlook: Outlook,
) -> Next:
    if sight.failure is not None:
        return Next(failed=sight.failure)
    if not vm.machine_id:
        step = vm.step(vm.making)
        if step.next_at is not None and now < step.next_at:
            return Next(wake_at=step.next_at)
        return Next(EnsureMachine(vm)) if provider.usable else WAIT
    if not provider.reachable:
        return WAIT
    if machine_gone(sight, provider):
        return Next(failed=Failed(Step.BOOT, Reason.MACHINE_GONE, f"machine {vm.machine_id} is gone"))
    if sight.state == "Failed":
        return Next(failed=Failed(Step.BOOT, Reason.MACHINE_FAILED, sight.message or "the machine failed to start"))
    started = boot_began(vm)
    addresses = sight.addresses or vm.addresses
    running = sight.state == "Running" and bool(addresses)
    if running and (readiness.tcp_socket is None or sight.probe_ok):
        return Next(MarkReady(vm, addresses))
    deadline = started + readiness.timeout
    last = sight.probed_at if running else sight.looked_at
    # Judged by a look after the deadline only: after an outage, or a restart, what we remember is too old.
    if last is not None and last >= deadline:
        return Next(failed=Failed(Step.BOOT, Reason.PENDING_TIMEOUT, _waited_for(sight, readiness, running, addresses)))
    doubt = _missing(vm, sight, provider, now, deadline)
    if doubt is not None:
        return doubt
    expected = None if running else outlook.expected.get((vm.provider, Step.BOOT))
    due = min(on_grid(last + look_pause(last - started, expected), outlook.grid), deadline) if last else now
    if now < due:
        return Next(wake_at=due)
    if running and readiness.tcp_socket is not None:
        return Next(Probe(vm, addresses[0], readiness.tcp_socket.port))
    return Next(Look(vm))


def boot_began(vm: VM) -> datetime:
    """Return the moment from which a machine's time to become usable is counted."""
    return vm.step(Step.CREATE).started_at or vm.created_at


def _waited_for(sight: Sight, readiness: Readiness, running: bool, addresses: tuple[str, ...]) -> str:
    if running and readiness.tcp_socket is not None:
        what = f"nothing answered on TCP port {readiness.tcp_socket.port} of {addresses[0]}"
    elif sight.state == "Running":
        what = "the machine runs but has no address"
    else:
        what = f"the machine is {sight.state or 'unseen'}, not Running"
    return f"not ready within {readiness.timeout.total_seconds():g} s: {what}"


def _ready(vm: VM, sight: Sight, provider: ProviderFacts, readiness: Readiness, now: datetime) -> Next:
    if not provider.reachable:
        return WAIT
    if sight.failure is not None:
        return Next(failed=sight.failure)
    if machine_gone(sight, provider):
        return Next(failed=Failed(Step.PROBE, Reason.MACHINE_GONE, f"machine {vm.machine_id} is gone"))
    if sight.state in ("Failed", "Stopped"):
        why = sight.message or f"the machine is {sight.state}"
        return Next(failed=Failed(Step.PROBE, Reason.MACHINE_FAILED, why))
    doubt = _missing(vm, sight, provider, now)
    if doubt is not None:
        return doubt
    if sight.addresses and sight.addresses != vm.addresses:
        return Next(MarkReady(vm, sight.addresses))
    if readiness.tcp_socket is not None and sight.probe_failures >= readiness.failure_threshold:
        where = f"TCP port {readiness.tcp_socket.port} at {vm.addresses[0]}"
        why = f"{sight.probe_failures} probes in a row of {where} were not answered"
        return Next(failed=Failed(Step.PROBE, Reason.NOT_ANSWERING, why))
    return WAIT


def _quarantined(vm: VM, now: datetime) -> Next:
    if vm.expires_at is None or now >= vm.expires_at:
        return Next(Complete(vm, Reason.QUARANTINE_ENDED, "its time in quarantine is over"))
    return Next(wake_at=vm.expires_at)


def _destroy(vm: VM, sight: Sight, provider: ProviderFacts, now: datetime, expected: timedelta | None) -> Next:
    """Delete until gone, prove it, forget the object: in this order, however often we are killed in between."""
    vanishing = vm.deleting and not vm.held
    if vanishing or not provider.reachable:
        return WAIT
    if nothing_left(sight, provider):
        return Next(Forget(vm))
    if sight.misses >= PROOFS:
        # While another machine has its token the listings tell by themselves when that one is gone.
        return Next(wants_listing=not sight.namesake)
    step = vm.step(Step.DESTROY)
    if step.next_at is not None and now < step.next_at:
        return Next(wake_at=step.next_at)
    if sight.missed_at is not None:
        due = sight.missed_at + MISS_PAUSE
    elif sight.state == "Deleting" and sight.looked_at is not None:
        due = sight.looked_at + look_pause(sight.looked_at - (sight.deletion_asked_at or vm.since), expected)
    else:
        due = now
    return Next(DestroyMachine(vm)) if now >= due else Next(wake_at=due)
