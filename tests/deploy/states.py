"""Every state that an object of ours can be in, as the operator's own functions write it, and what tools shall see.

The statuses come from the functions that the operator calls; what no function decides (phases of VMs and letters) is
taken from the enums. ``kstatus`` and ``health`` are what Flux and Argo CD should make of each.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

from tests.deploy.kstatus import KStatus
from tests.objects import FULL_SPECS, Json, thing
from tests.unit.plan.queues import a_claim, a_pool, a_vm, hold
from tests.unit.plan.test_health import first as judged
from tests.unit.plan.test_purge import rules
from tests.unit.plan.worlds import EAST, NOW, OLD, claim, pool, snapshot, spec, vm
from vmpool.api import crd
from vmpool.api.claim import VMClaimStatus
from vmpool.api.conditions import observed
from vmpool.api.deadletterqueue import Archive, DeadLetterQueueSpec, DeadLetterQueueStatus
from vmpool.api.health import HealthPolicySpec, HealthPolicyStatus
from vmpool.api.meta import Shape
from vmpool.api.pool import Failure, Poisoned, VMPoolStatus
from vmpool.api.provider import Circuit, VMProviderStatus
from vmpool.api.purge import PurgePolicyStatus
from vmpool.engine import writes
from vmpool.plan import claimstatus, purge
from vmpool.plan.circuit import Breaker
from vmpool.plan.health import Judgement, Level, health_of, policy_status
from vmpool.plan.lifecycle import ClaimPhase, LetterPhase, Phase
from vmpool.plan.policies import PolicyObject
from vmpool.plan.pool import plan_pool
from vmpool.plan.provider import ProviderSnapshot, Verdict, identity_verdict, provider_status
from vmpool.plan.queue import Why
from vmpool.plan.retention import Holdings, queue_status
from vmpool.plan.snapshot import VM, PoolSnapshot, ProviderFacts, VMClaim
from vmpool.plan.status import pool_status, stalled_reason

HEALTHY, PROGRESSING, DEGRADED, SUSPENDED = "Healthy", "Progressing", "Degraded", "Suspended"
IN_PROGRESS, FAILED, CURRENT, TERMINATING = (
    KStatus.IN_PROGRESS,
    KStatus.FAILED,
    KStatus.CURRENT,
    KStatus.TERMINATING,
)
TERMINAL: Final = frozenset({"InvalidTemplate"})
NO_IMAGE: Final = Failure(
    vm="debian-1", provider=EAST, step="create", error_class="InvalidTemplate", message="no such image", failed_at=NOW
)
PLURALS: Final = {kind.name: kind.plural for kind in crd.KINDS}
GENERATION: Final = 1


@dataclass(frozen=True)
class State:
    """One state of one kind."""

    name: str
    found: Json
    """The object as the API server shows it."""
    kstatus: KStatus
    health: str

    @property
    def kind(self) -> str:
        """Its kind."""
        return str(self.found["kind"])

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def shown(
    kind: str, status: Shape | Json, of: Shape | Json | None = None, *, generation: int = GENERATION, gone: bool = False
) -> Json:
    """An object of a kind as the API server shows it."""
    full = {key: value for key, value in FULL_SPECS[PLURALS[kind]].items() if key != "paused"}
    written = full if of is None else of.wire() if isinstance(of, Shape) else of
    made = thing(kind, "web", dict(written))
    made["metadata"] |= {"generation": generation, "namespace": "ci"}
    if gone:
        made["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    return {**made, "status": status.wire() if isinstance(status, Shape) else status}


def every() -> Iterator[State]:
    """All of them."""
    for kind in crd.KINDS:
        fresh = dict(kind.status_default)
        # PooledVMs and letters go by their phase, which is there from the beginning.
        health = {"PooledVM": PROGRESSING, "DeadLetter": SUSPENDED}.get(kind.name, PROGRESSING)
        yield State("not seen yet", shown(kind.name, fresh), IN_PROGRESS, health)
        yield State("without a status", shown(kind.name, {"observedGeneration": -1}), IN_PROGRESS, PROGRESSING)
        yield State("being deleted unseen", shown(kind.name, fresh, gone=True), TERMINATING, PROGRESSING)
    yield from pools()
    yield from providers()
    yield from claims()
    yield from vms()
    yield from letters()
    yield from queues()
    yield from purge_policies()
    yield from health_policies()


# --- pools


def pool_object(seen: PoolSnapshot, *failures: Failure) -> Json:
    """A pool with the status that a round arrives at."""
    stalled = stalled_reason(seen, failures, TERMINAL)
    status = pool_status(seen, plan_pool(seen, NOW), failures=failures, stalled=stalled, now=NOW)
    return shown("VMPool", status, seen.pool.spec, generation=seen.pool.generation, gone=seen.pool.deleting)


def pools() -> Iterator[State]:
    full = tuple(vm(f"r{number}") for number in range(3))
    was = VMPoolStatus.model_validate(pool_object(snapshot(*full))["status"])
    filled = pool(status=was)

    def state(name: str, seen: PoolSnapshot, kstatus: KStatus, health: str, *failures: Failure) -> State:
        return State(name, pool_object(seen, *failures), kstatus, health)

    yield state("filling", snapshot(), IN_PROGRESS, PROGRESSING)
    yield state("filled", snapshot(*full), CURRENT, HEALTHY)
    yield state("of no size", snapshot(of=spec(replicas=None)), CURRENT, HEALTHY)
    yield state("emptied by checkouts", snapshot(pool=filled), CURRENT, HEALTHY)
    yield state("short by one", snapshot(*full[:2], pool=filled), CURRENT, HEALTHY)
    old = tuple(vm(f"o{number}", digest=OLD) for number in range(3))
    newer = pool(status=was, generation=2)
    yield state("replaced for a new template", snapshot(*old, pool=newer), IN_PROGRESS, PROGRESSING)
    yield state("replaced for their age", snapshot(*old, pool=filled), CURRENT, HEALTHY)
    yield state("shrinking", snapshot(*full, vm("r3")), IN_PROGRESS, PROGRESSING)
    yield state("paused", snapshot(*full, of=spec(paused=True)), IN_PROGRESS, SUSPENDED)
    yield state("being deleted", snapshot(*full, pool=pool(deleting=True)), TERMINATING, PROGRESSING)
    held = pool(spec(paused=True), deleting=True)
    yield state("being deleted, but paused", snapshot(*full, pool=held), TERMINATING, PROGRESSING)
    refused = ProviderFacts(EAST, False, False, "CredentialsRefused", "401", stalled=True)
    yield state("refused by every provider", snapshot(providers={EAST: refused}), FAILED, DEGRADED)
    again = snapshot(pool=filled, providers={EAST: refused})
    yield state("refused after it was full", again, FAILED, DEGRADED)
    away = ProviderFacts(EAST, False, False, "CircuitOpen", "left alone")
    yield state("its provider is away", snapshot(providers={EAST: away}), IN_PROGRESS, PROGRESSING)
    yield state("its provider does not exist", snapshot(providers={}), IN_PROGRESS, PROGRESSING)
    failing = replace(snapshot(), creation=_after_a_failure())
    yield state("a template that cannot be", failing, FAILED, DEGRADED, NO_IMAGE)
    taken = replace(snapshot(*full), name_taken="ci/other")
    yield state("a name that is taken", taken, FAILED, DEGRADED)
    yield state("a name that is taken, and filling", replace(snapshot(), name_taken="ci/other"), IN_PROGRESS, DEGRADED)
    yield state("a policy that is missing", replace(snapshot(*full), missing=("PurgePolicy a",)), CURRENT, DEGRADED)
    poison = Poisoned(fingerprint="abc", failures=10, since=NOW, message="no such image")
    poisoned = replace(snapshot(pool=filled), poison=poison, poison_limit=10)
    yield state("poisoned", poisoned, CURRENT, DEGRADED)
    for level in Level:
        told = health_of(level, "Within", "as measured", GENERATION, NOW)
        health = DEGRADED if level is Level.UNHEALTHY else HEALTHY
        yield state(f"judged {level.word}", replace(snapshot(*full), health=told), CURRENT, health)
    yield State("changed since", shown("VMPool", was, spec(), generation=2), IN_PROGRESS, PROGRESSING)


def _after_a_failure() -> Any:
    return VMPoolStatus.model_validate(
        {"creation": {"window": 1, "failures": 1, "notBefore": "2030-01-01T00:00:00Z"}}
    ).creation


# --- providers


def provider_object(**changes: Any) -> Json:
    """A provider with the status of a round; ``changes`` are of its snapshot."""
    calm = Breaker(5, timedelta(seconds=30))
    answers = identity_verdict(None, "cloud-1", 0)
    facts: dict[str, Any] = {
        "generation": GENERATION, "deleting": False, "paused": False, "vms": 0, "referenced": True,
        "verdict": answers, "breaker": calm, "identity": "cloud-1", "before": VMProviderStatus(),
    }  # fmt: skip
    seen = ProviderSnapshot(**(facts | changes))
    of = {"type": "simulated", "paused": seen.paused}
    return shown("VMProvider", provider_status(seen, NOW), of, gone=seen.deleting)


def providers() -> Iterator[State]:
    tried = Breaker(1, timedelta(seconds=30)).failed(NOW, "Unavailable")
    half = tried.at(NOW + timedelta(hours=1))
    assert {tried.state, half.state, Circuit.CLOSED} == set(Circuit)

    def state(name: str, kstatus: KStatus, health: str, **changes: Any) -> State:
        return State(name, provider_object(**changes), kstatus, health)

    yield state("reachable", CURRENT, HEALTHY)
    yield state("not looked at", IN_PROGRESS, PROGRESSING, verdict=Verdict())
    yield state("left alone", IN_PROGRESS, PROGRESSING, breaker=tried)
    yield state("tried again", IN_PROGRESS, PROGRESSING, breaker=half)
    refused = Verdict("CredentialsRefused", "401", stalled=True)
    yield state("refused", FAILED, DEGRADED, verdict=refused)
    other = identity_verdict("cloud-1", "cloud-2", 3)
    yield state("another one answers", FAILED, DEGRADED, verdict=other, vms=3)
    yield state("paused", IN_PROGRESS, SUSPENDED, paused=True)
    yield state("paused and refused", FAILED, SUSPENDED, paused=True, verdict=refused)
    yield state("being deleted", TERMINATING, PROGRESSING, deleting=True, vms=3)


# --- claims


def claim_object(made: VMClaim, status: VMClaimStatus) -> Json:
    """A claim with a status."""
    return shown("VMClaim", status, made.spec, gone=made.deleting)


def claims() -> Iterator[State]:
    asked, home = a_claim("c"), a_pool()
    machine = a_vm("v", home, hold(asked))
    waits = claimstatus.waiting_status(asked, Why("NothingReady", "none is ready"), 1, NOW)
    yield State("waiting", claim_object(asked, waits), IN_PROGRESS, PROGRESSING)
    denied = claimstatus.failed_status(asked, Why("Denied", "not yours"), NOW)
    yield State("refused", claim_object(asked, denied), FAILED, DEGRADED)
    has = claimstatus.bound_status(asked, {0: machine}, NOW)
    yield State("bound", claim_object(asked, has), CURRENT, HEALTHY)
    holder = replace(asked, status=has)
    longer = claimstatus.followed_status(holder, {machine.uid: machine}, Why("TooLong", "more than 168h"), NOW)
    yield State("bound, and refused more time", claim_object(asked, longer), FAILED, DEGRADED)
    for reason, phase, kstatus, health in (
        ("Released", ClaimPhase.RELEASED, IN_PROGRESS, SUSPENDED),
        ("Expired", ClaimPhase.EXPIRED, IN_PROGRESS, SUSPENDED),
        ("MachineGone", ClaimPhase.FAILED, FAILED, DEGRADED),
        ("Forced", ClaimPhase.FAILED, FAILED, DEGRADED),
    ):
        ended = replace(machine, claim=hold(asked, released_at=NOW, end_reason=reason))
        status = claimstatus.followed_status(holder, {machine.uid: ended}, None, NOW)
        assert status.phase == phase
        yield State(f"ended: {reason}", claim_object(asked, status), kstatus, health)


# --- VMs and letters: their phase tells


def vms() -> Iterator[State]:
    healths = {
        Phase.PENDING: PROGRESSING,
        Phase.READY: HEALTHY,
        Phase.CLAIMED: HEALTHY,
        Phase.QUARANTINED: DEGRADED,
        Phase.COMPLETED: PROGRESSING,
    }
    for phase in Phase:
        # The operator writes no observedGeneration there: kstatus never calls a VM done, whatever its phase.
        found = shown("PooledVM", {"phase": phase.value, "observedGeneration": -1})
        yield State(phase.value, found, IN_PROGRESS, healths[phase])
    taken = VM("u", "ci", "v", "1", NOW, "web", "uid-of-web", EAST, phase=Phase.CLAIMED, claim=claim(), machine_id="m")
    gone = writes.machine_gone(taken, "not found", NOW)
    lost = {"phase": "Claimed", "observedGeneration": -1, "conditions": [gone]}
    yield State("its machine is gone", shown("PooledVM", lost), IN_PROGRESS, DEGRADED)
    said = observed("ClaimMissing", True, "NotProven", "not there", generation=1, now=NOW)  # type: ignore[arg-type]
    missing = {"phase": "Claimed", "observedGeneration": -1, "conditions": [said.wire()]}
    yield State("its claim is missing", shown("PooledVM", missing), IN_PROGRESS, DEGRADED)
    leaving = shown("PooledVM", {"phase": "Completed", "observedGeneration": -1}, gone=True)
    yield State("being destroyed", leaving, TERMINATING, PROGRESSING)


def letters() -> Iterator[State]:
    healths = {
        LetterPhase.KEPT: SUSPENDED,
        LetterPhase.REDRIVEN: HEALTHY,
        LetterPhase.NOT_NEEDED: HEALTHY,
        LetterPhase.REFUSED: DEGRADED,
    }
    for phase in LetterPhase:
        seen = -1 if phase is LetterPhase.KEPT else GENERATION
        kstatus = IN_PROGRESS if phase is LetterPhase.KEPT else CURRENT
        found = shown("DeadLetter", {"phase": phase.value, "observedGeneration": seen})
        yield State(phase.value, found, kstatus, healths[phase])


# --- queues and policies


def queues() -> Iterator[State]:
    for name, archived, error, health in (
        ("keeping", False, None, HEALTHY),
        ("archive not tried", True, None, HEALTHY),
        ("archiving", True, "", HEALTHY),
        ("archive failing", True, "no such bucket", DEGRADED),
    ):
        of = DeadLetterQueueSpec(archive=Archive(folder="/archive") if archived else None)
        kept = PolicyObject("uid", "ci", "failures", GENERATION, "1", of, DeadLetterQueueStatus())
        status = queue_status(kept, Holdings(), error, NOW)
        yield State(name, shown("DeadLetterQueue", status, of), CURRENT, health)


def purge_policies() -> Iterator[State]:
    named: list[tuple[str, str]] = [("web", "")]
    held = [("web", "spec.paused is true")]
    for name, changes, by, removing, health in (
        ("nobody's", {}, [], 0, HEALTHY),
        ("idle", {}, named, 0, HEALTHY),
        ("purging", {}, named, 3, HEALTHY),
        ("only listing", {"dryRun": True}, named, 0, HEALTHY),
        ("paused", {"pauses": [{"name": "move"}]}, named, 0, SUSPENDED),
        ("one pool is paused", {}, held, 0, HEALTHY),
    ):
        of = rules(**changes)
        told = purge.conditions(of, pools=by, removing=removing, generation=GENERATION, now=NOW)
        status = PurgePolicyStatus(observed_generation=GENERATION, conditions=tuple(told))
        yield State(name, shown("PurgePolicy", status, of), CURRENT, health)


def health_policies() -> Iterator[State]:
    home = a_pool()
    for name, told, health in (
        ("nobody's", [], HEALTHY),
        ("healthy", [(home, judged())], HEALTHY),
        ("degraded", [(home, judged(dead=110))], HEALTHY),
        ("unhealthy", [(home, judged(ready=1001))], DEGRADED),
    ):
        of = HealthPolicySpec()
        kept = PolicyObject("uid", "ci", "fleet", GENERATION, "1", of, HealthPolicyStatus())
        status = policy_status(kept, Judgement(), told, NOW)
        # It has no condition Ready: its verdict stands in the place of it.
        yield State(name, shown("HealthPolicy", status, of), CURRENT, health)
