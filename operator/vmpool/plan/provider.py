"""Decide what may be asked of a provider, and how its status explains it."""

from dataclasses import dataclass
from datetime import datetime

from vmpool.api.conditions import ConditionType, merge, observed
from vmpool.api.provider import Circuit, VMProviderStatus
from vmpool.plan.circuit import Breaker

OK = "Reachable"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of a far side now."""

    reason: str = "NotLookedYet"
    message: str = "the provider was not reached yet"
    stalled: bool = False
    """Only a human can cure it."""
    verified: bool = False
    """It answers, and it is the far side that has our machines."""


@dataclass(frozen=True, slots=True)
class ProviderSnapshot:
    """Everything that decides on a provider's status."""

    generation: int
    deleting: bool
    paused: bool
    vms: int
    """PooledVMs whose machines are made here, and creates in flight."""
    referenced: bool
    """A living pool names it."""
    verdict: Verdict
    breaker: Breaker
    identity: str
    """What the far side calls itself; empty when it was not asked yet."""
    before: VMProviderStatus
    held_secret: str = ""


def must_hold(seen: ProviderSnapshot) -> bool:
    """Whether our finalizers belong on it and its Secret: from before the first create until the last is gone."""
    return seen.vms > 0 or (seen.referenced and not seen.deleting)


def identity_verdict(recorded: str | None, seen: str, vms: int) -> Verdict:
    """Compare the far side with the one that has our machines; without machines any far side will do."""
    if recorded and recorded != seen and vms:
        why = f"the provider now answers as {seen!r}, but our {vms} machines are at {recorded!r}"
        return Verdict("IdentityChanged", f"{why}; nothing is created, deleted or counted as gone", stalled=True)
    return Verdict(OK, f"answers as {seen}", verified=True)


def identity_to_record(seen: ProviderSnapshot) -> str | None:
    """Return the identity to record: written before the first create, kept while there are machines."""
    if seen.before.identity and seen.vms:
        return seen.before.identity
    return seen.identity if seen.verdict.verified else seen.before.identity


def provider_status(seen: ProviderSnapshot, now: datetime) -> VMProviderStatus:
    """Return the status; nothing in it changes by time alone."""
    breaker, verdict = seen.breaker, seen.verdict
    opened = breaker.state is not Circuit.CLOSED
    ready = verdict.verified and not opened and not seen.paused and not seen.deleting
    reason, message = verdict.reason, verdict.message
    if seen.deleting:
        reason, message = "Draining", f"being deleted: waits until its machines are gone, {seen.vms} left"
        if seen.paused:
            message += "; paused: none is destroyed until spec.paused is false"
    elif seen.paused:
        reason, message = "Paused", "paused: nothing is created or deleted until spec.paused is false"
    elif verdict.verified and opened:
        reason = "CircuitOpen"
        message = f"left alone after {breaker.failures} failures in a row ({breaker.last_error}); tried again soon"
    new = [observed(ConditionType.READY, ready, reason, message, generation=seen.generation, now=now)]
    if verdict.stalled:
        new.append(
            observed(ConditionType.STALLED, True, verdict.reason, verdict.message, generation=seen.generation, now=now)
        )
    elif not ready and not seen.paused:
        new.append(observed(ConditionType.RECONCILING, True, reason, message, generation=seen.generation, now=now))
    return VMProviderStatus(
        observed_generation=seen.generation,
        conditions=merge(seen.before.conditions, new, now),
        identity=identity_to_record(seen),
        held_secret=seen.held_secret or None,
        circuit=breaker.state,
        machines=seen.vms,
        last_error=breaker.last_error or None if opened else None,
        open_until=breaker.open_until if opened else None,
    )
