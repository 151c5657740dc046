"""Facts for the planner's tests: builders with calm defaults, and hypothesis strategies for whole snapshots.

Every snapshot that a strategy draws is one that the API server's own rules allow; beyond that anything goes.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from vmpool.api.pool import Creation, PoolProvider, Template, VMPoolSpec, VMPoolStatus
from vmpool.plan.lifecycle import Phase
from vmpool.plan.pool import Plan
from vmpool.plan.snapshot import (
    PLANNED,
    VM,
    ClaimFacts,
    Failed,
    PoolFacts,
    PoolSnapshot,
    ProviderFacts,
    Reason,
    Sight,
    Step,
    StepFacts,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
EAST, WEST = "east", "west"
NEW, OLD = "v1:new", "v1:old"
ADDRESS = ("10.0.0.1",)
OPEN_PHASES = (Phase.PENDING, Phase.READY)
UNKNOWN_PHASE = "Hibernated"
FAR = timedelta(days=30)

_EVERYWHERE: dict[str, Any] = {
    "deadline": None,
    "derandomize": "CI" in os.environ,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
PLANS = settings(max_examples=250, **_EVERYWHERE)
"""For properties of one plan."""
STORIES = settings(max_examples=60, **_EVERYWHERE)
"""For properties of a whole simulated story."""

T = TypeVar("T")


def ago(**span: float) -> datetime:
    return NOW - timedelta(**span)


def soon(**span: float) -> datetime:
    return NOW + timedelta(**span)


def spec(**changes: Any) -> VMPoolSpec:
    """A pool of three from one provider, unless said otherwise. Nested fields are given as they stand in YAML."""
    return VMPoolSpec.model_validate(
        {"replicas": 3, "template": Template(image="debian-12"), "providers": (PoolProvider(name=EAST),)} | changes
    )


def pool(of: VMPoolSpec | None = None, **changes: Any) -> PoolFacts:
    facts = PoolFacts("pool-uid", "ci", "debian", 1, of or spec(), VMPoolStatus(), "1", held=True)
    return replace(facts, **changes)


def provider(name: str = EAST, **changes: Any) -> ProviderFacts:
    """A healthy provider whose last listing began ten seconds ago."""
    facts = ProviderFacts(name, True, True, "Reachable", f"{name} answers", room=100, listed_at=ago(seconds=10))
    return replace(facts, **changes)


def down(name: str = EAST, **changes: Any) -> ProviderFacts:
    """A provider that cannot be reached."""
    trouble = {"usable": False, "reachable": False, "reason": "CircuitOpen", "message": "left alone after 5 failures"}
    return provider(name, **(trouble | changes))


def vm(name: str, phase: str = Phase.READY, **changes: Any) -> VM:
    """A VM of the present template, ten minutes old, as ready or as far as its phase says."""
    made: dict[str, Any] = {
        "uid": f"uid-{name}",
        "namespace": "ci",
        "name": name,
        "resource_version": "1",
        "created_at": ago(minutes=10),
        "pool": "debian",
        "pool_uid": "pool-uid",
        "provider": EAST,
        "phase": phase,
        "digest": NEW,
        "request_id": f"req-{name}",
        "machine_id": f"m-{name}",
        "addresses": ADDRESS if phase != Phase.PENDING else (),
    }
    if phase == Phase.CLAIMED:
        made["claim"] = claim()
    if phase == Phase.QUARANTINED:
        made |= {"expires_at": soon(hours=1), "reason": Reason.MACHINE_FAILED}
    if phase == Phase.COMPLETED:
        made["reason"] = Reason.SURPLUS
    return VM(**(made | changes))


def pending(name: str, **changes: Any) -> VM:
    """A VM with no machine yet."""
    return vm(name, Phase.PENDING, **({"machine_id": ""} | changes))


def claim(**changes: Any) -> ClaimFacts:
    return replace(ClaimFacts("claim-1", "alice", soon(hours=1)), **changes)


RUNNING = Sight(looked_at=ago(seconds=1), state="Running", addresses=ADDRESS, probed_at=ago(seconds=1), probe_ok=True)
BROKEN = Sight(looked_at=ago(seconds=1), state="Failed", message="kernel panic")
GONE = Sight(misses=2, missed_at=ago(seconds=30), unlisted=True)


def snapshot(*vms: VM, of: VMPoolSpec | None = None, **changes: Any) -> PoolSnapshot:
    """A pool with these VMs, all of whose providers are healthy."""
    facts = changes.pop("pool", None) or pool(of)
    providers = changes.pop("providers", None) or {share.name: provider(share.name) for share in facts.spec.providers}
    return PoolSnapshot(facts, NEW, vms, providers, **changes)


def of_kind(plan: Plan, kind: type[T]) -> list[T]:
    """The plan's actions of one kind, in order."""
    return [action for action in plan.actions if isinstance(action, kind)]


def names(actions: Iterable[Any]) -> list[str]:
    return [action.vm.name for action in actions]


def holds_slot(one: VM) -> bool:
    """On its way to ready, or failed and not gone; a machine that was in quarantine has failed, too."""
    if one.phase == Phase.COMPLETED:
        return one.reason not in PLANNED or one.reason == Reason.QUARANTINE_ENDED
    return one.phase == Phase.PENDING and not one.deleting


# --- strategies ---------------------------------------------------------------------------------------------------

amounts = st.one_of(st.integers(0, 3), st.sampled_from(["0%", "10%", "25%", "50%", "100%"]))
randoms = st.randoms(use_true_random=True)
"""Seeded, and drawn as one number: a story takes far more chances than hypothesis would draw one by one."""
moments = st.integers(0, 3600).map(lambda seconds: ago(seconds=seconds))
maybe_moments = st.none() | moments


@st.composite
def specs(draw: st.DrawFn) -> VMPoolSpec:
    """Any spec that the CRD's rules allow, with small numbers."""
    replicas = draw(st.none() | st.integers(0, 8))
    surge, unavailable = draw(amounts), draw(amounts)
    if str(surge).strip("%") == "0" and str(unavailable).strip("%") == "0":
        unavailable = 1
    return spec(
        replicas=replicas,
        maxVMs=max(1, replicas or 0) + draw(st.integers(0, 12)),
        providers=[
            {"name": EAST, "weight": draw(st.integers(1, 5))},
            {"name": WEST, "weight": draw(st.integers(0, 5))},
        ],
        limits={
            "pending": draw(st.integers(1, 8)),
            "creates": draw(st.integers(1, 8)),
            "deletes": draw(st.integers(1, 8)),
            "quarantined": draw(st.integers(0, 3)),
        },
        update={
            "strategy": draw(st.sampled_from(["Rolling", "OnClaim"])),
            "maxSurge": surge,
            "maxUnavailable": unavailable,
        },
        readiness={"timeout": "10m", "tcpSocket": draw(st.none() | st.just({"port": 22}))},
        recycle={"readyTTL": draw(st.none() | st.just("30m")), "quarantineTTL": "10m"},
        deletionPolicy=draw(st.sampled_from(["Drain", "Force"])),
    )


@st.composite
def vms(draw: st.DrawFn, number: int, homes: tuple[str, ...] = (EAST, WEST, "vanished")) -> VM:
    """Any VM that the root rules of PooledVM allow."""
    phase = draw(st.sampled_from([*Phase, Phase.PENDING, Phase.READY, UNKNOWN_PHASE]))
    created = draw(moments)
    machine = phase in (Phase.READY, Phase.CLAIMED, Phase.QUARANTINED) or draw(st.booleans())
    steps = ()
    if draw(st.booleans()):
        name = Step.DESTROY if phase == Phase.COMPLETED else Step.CREATE
        wait = draw(st.integers(-60, 60))
        steps = (StepFacts(name, created, retries=draw(st.integers(0, 3)), next_at=soon(seconds=wait)),)
    return vm(
        f"vm-{number}",
        phase,
        created_at=created,
        phase_since=draw(
            st.none() | st.integers(0, int((NOW - created).total_seconds())).map(lambda s: ago(seconds=s))
        ),
        provider=draw(st.sampled_from(homes)),
        digest=draw(st.sampled_from([NEW, NEW, OLD])),
        deleting=draw(st.sampled_from([False, False, False, True])),
        machine_id=f"m-{number}" if machine else "",
        claim=draw(_claims(phase)),
        reason=draw(st.sampled_from([*Reason, "CreateFailed"])) if phase == Phase.COMPLETED else "",
        expires_at=draw(st.integers(-60, 600).map(lambda s: soon(seconds=s))) if phase == Phase.QUARANTINED else None,
        retry_count=draw(st.integers(0, 3)),
        steps=steps,
    )


@st.composite
def _claims(draw: st.DrawFn, phase: str) -> ClaimFacts | None:
    """A claim as the rules allow it in this phase: Claimed has one, Completed only an ended one."""
    if phase not in (Phase.READY, Phase.CLAIMED, Phase.COMPLETED):
        return None
    if phase != Phase.CLAIMED and draw(st.booleans()):
        return None
    ended = phase == Phase.COMPLETED or draw(st.booleans())
    expires = soon(seconds=draw(st.integers(-600, 600)))
    return claim(expires_at=expires, released_at=draw(moments) if ended else None)


failures = st.builds(Failed, st.sampled_from(Step), st.sampled_from(["CreateFailed", "InvalidTemplate"]), st.just("no"))


@st.composite
def sights(draw: st.DrawFn) -> Sight:
    """Anything that may have been seen, contradictions included."""
    misses = draw(st.integers(0, 3))
    return Sight(
        looked_at=draw(maybe_moments),
        state=draw(st.sampled_from(["", "Creating", "Running", "Running", "Stopped", "Failed", "Deleting"])),
        addresses=draw(st.sampled_from([(), ADDRESS, ("10.0.0.2",)])),
        misses=misses,
        missed_at=draw(moments) if misses else None,
        unlisted=draw(st.booleans()),
        namesake=draw(st.booleans()),
        probed_at=draw(maybe_moments),
        probe_ok=draw(st.booleans()),
        probe_failures=draw(st.integers(0, 4)),
        failure=draw(st.none() | st.none() | failures),
    )


@st.composite
def providers(draw: st.DrawFn, name: str) -> ProviderFacts:
    """A provider in any state."""
    reachable, deleting = draw(st.booleans()), draw(st.sampled_from([False, False, True]))
    usable = reachable and not deleting and draw(st.sampled_from([True, True, False]))
    return provider(
        name,
        reachable=reachable,
        usable=usable,
        stalled=not reachable and draw(st.booleans()),
        deleting=deleting,
        reason="Reachable" if usable else "Trouble",
        room=draw(st.integers(0, 12)),
        listed_at=draw(maybe_moments),
    )


def creation(window: int, failures: int, seconds: int) -> Creation:
    """A slow start whose pause is over in so many seconds, or has been for so many."""
    return Creation(window=window, failures=failures, not_before=soon(seconds=seconds))


creations = st.none() | st.builds(creation, st.integers(1, 4), st.integers(0, 3), st.integers(-60, 60))


@st.composite
def snapshots(draw: st.DrawFn) -> PoolSnapshot:
    """Any world that one round may find."""
    stock = tuple(draw(vms(number)) for number in range(draw(st.integers(0, 10))))
    known = {name: draw(providers(name)) for name in draw(st.sets(st.sampled_from([EAST, WEST])))}
    of = draw(specs()).model_copy(update={"paused": draw(st.sampled_from([False] * 7 + [True]))})
    status = VMPoolStatus(desired_replicas=draw(st.integers(0, 8)))
    return PoolSnapshot(
        pool=pool(of, status=status, deleting=draw(st.sampled_from([False, False, False, True]))),
        digest=NEW,
        vms=stock,
        providers=known,
        sights={one.uid: draw(sights()) for one in stock if draw(st.booleans())},
        busy=_some(draw, stock) if stock else frozenset(),
        creating=tuple(draw(st.lists(st.sampled_from([EAST, WEST]), max_size=3))),
        creation=draw(creations),
        owed=tuple((f"owed-{number}", number) for number in range(draw(st.integers(0, 3)))),
        waiting=draw(st.integers(0, 3)),
    )


def _some(draw: st.DrawFn, stock: tuple[VM, ...]) -> frozenset[str]:
    return frozenset(draw(st.sets(st.sampled_from([one.uid for one in stock]), max_size=4)))


@st.composite
def populated(draw: st.DrawFn, deleting: bool = False) -> PoolSnapshot:
    """A world for a story: anything in stock, but nothing that keeps it from settling in the end.

    East works and has room, west may be on its way out, nothing recycles for ever, and nothing is in flight or
    remembered: the operator has just been started.
    """
    of = draw(specs())
    recycle = of.recycle.model_copy(update={"ready_ttl": None})
    of = of.model_copy(update={"max_vms": 100, "recycle": recycle})
    going = draw(st.booleans())
    stock = tuple(draw(vms(number, (EAST, WEST))) for number in range(draw(st.integers(0, 10))))
    return PoolSnapshot(
        pool=pool(of, status=VMPoolStatus(desired_replicas=draw(st.integers(0, 8))), deleting=deleting),
        digest=NEW,
        vms=stock,
        providers={EAST: provider(EAST), WEST: provider(WEST, usable=not going, deleting=going)},
        creation=draw(creations),
        owed=tuple((f"owed-{number}", number) for number in range(draw(st.integers(0, 2)))),
    )
