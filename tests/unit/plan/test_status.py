"""The status of a pool: counts, conditions, and the sentence that explains them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.simulator import STORMY, World
from tests.unit.plan.worlds import (
    BROKEN,
    EAST,
    NEW,
    NOW,
    OLD,
    PLANS,
    RUNNING,
    STORIES,
    WEST,
    ago,
    claim,
    creation,
    down,
    pending,
    pool,
    populated,
    provider,
    randoms,
    snapshot,
    snapshots,
    soon,
    spec,
    vm,
)
from vmpool.api.conditions import Condition, ConditionType, find
from vmpool.api.pool import Failure, VMPoolStatus
from vmpool.plan.lifecycle import Phase
from vmpool.plan.pool import plan_pool
from vmpool.plan.snapshot import PoolSnapshot, Reason, StepFacts
from vmpool.plan.status import MAX_NAMED, pool_status, provider_trouble, stalled_reason

TERMINAL = frozenset({"InvalidTemplate"})
NO_IMAGE = Failure(
    vm="debian-1",
    provider=EAST,
    step="create",
    error_class="InvalidTemplate",
    message="no image debian-99",
    failed_at=NOW,
)


def status(seen: PoolSnapshot, *, failures: tuple[Failure, ...] = (), now=NOW) -> VMPoolStatus:
    """The status as the engine computes it at the end of a round."""
    stalled = stalled_reason(seen, failures, TERMINAL)
    return pool_status(seen, plan_pool(seen, now), failures=failures, stalled=stalled, now=now)


def condition(found: VMPoolStatus, kind: ConditionType) -> Condition | None:
    return find(found.conditions, kind)


def ready(found: VMPoolStatus) -> Condition:
    made = condition(found, ConditionType.READY)
    assert made is not None
    return made


def kstatus(seen: PoolSnapshot, found: VMPoolStatus) -> str:
    """What kstatus makes of an object with these conditions."""
    if seen.pool.deleting:
        return "Terminating"
    if found.observed_generation != seen.pool.generation:
        return "InProgress"
    if condition(found, ConditionType.STALLED):
        return "Failed"
    if condition(found, ConditionType.RECONCILING):
        return "InProgress"
    return "Current" if ready(found).status == "True" else "InProgress"


def after(seen: PoolSnapshot, found: VMPoolStatus, **changes) -> PoolSnapshot:
    """The same world with this status stored."""
    return replace(seen, pool=replace(seen.pool, status=found), **changes)


def full(count: int = 3, digest: str = NEW) -> tuple:
    return tuple(vm(f"r{number}", digest=digest) for number in range(count))


# --- for every world ----------------------------------------------------------------------------------------------


@PLANS
@given(snapshots(), st.booleans())
def test_every_world_has_an_answer_for_people_and_for_programs(seen: PoolSnapshot, failed: bool) -> None:
    found = status(seen, failures=(NO_IMAGE,) if failed else ())
    assert VMPoolStatus.model_validate(found.wire()).wire() == found.wire()
    kinds = [one.type for one in found.conditions]
    assert kinds.count(ConditionType.READY) == 1
    assert not {ConditionType.RECONCILING, ConditionType.STALLED} <= set(kinds)
    assert all(one.status == "True" for one in found.conditions if one.type != ConditionType.READY)
    assert all(one.observed_generation == found.observed_generation == 1 for one in found.conditions)
    assert ready(found).message
    if kstatus(seen, found) == "Current":
        assert ready(found).status == "True"
    assert (condition(found, ConditionType.RECONCILING) is None) or ready(found).status == "False"
    assert found.replicas == found.ready_replicas + found.pending_replicas
    assert sum((found.replicas, found.claimed_replicas, found.quarantined_replicas, found.draining_replicas)) == sum(
        one.phase in set(Phase) for one in seen.vms
    )


@STORIES
@given(populated(), randoms)
def test_ready_is_kept_for_a_generation_whatever_happens(seen: PoolSnapshot, random) -> None:
    world, reached = World(seen, random, replace(STORMY, claimed=0.5)), False
    for _ in range(60):
        found = status(world.snapshot(), now=world.now)
        reached = reached or ready(found).status == "True"
        assert (ready(found).status == "True") == reached
        world.pool = replace(world.pool, status=found)
        world.round()


# --- Ready --------------------------------------------------------------------------------------------------------


def test_a_full_pool_is_ready_and_nothing_else() -> None:
    found = status(snapshot(*full()))
    assert (ready(found).status, ready(found).reason, ready(found).message) == ("True", "Filled", "3 of 3 ready")
    assert len(found.conditions) == 1
    assert (found.ready_replicas, found.desired_replicas, found.template_digest) == (3, 3, NEW)
    assert found.selector == "vmpool.dev/pool=debian"


def test_a_checkout_does_not_take_ready_back_nor_begins_anything_for_gitops() -> None:
    seen = snapshot(*full())
    seen = after(seen, status(seen, now=ago(hours=1)), vms=())
    found = status(seen)
    assert ready(found).status == "True"
    assert ready(found).last_transition_time == ago(hours=1)
    assert condition(found, ConditionType.RECONCILING) is None
    assert kstatus(seen, found) == "Current"


def test_a_new_generation_must_be_reached_anew() -> None:
    seen = snapshot(*full())
    before = status(seen)
    seen = after(seen, before)
    seen = replace(seen, pool=replace(seen.pool, generation=2, spec=spec(replicas=5)))
    found = status(seen)
    assert (ready(found).status, ready(found).reason) == ("False", "Filling")
    assert found.observed_generation == ready(found).observed_generation == 2


@pytest.mark.parametrize(
    ("stock", "why"),
    [
        ((), "Filling"),
        (full(2), "Filling"),
        (full(3, OLD), "Updating"),
        (full(4), "Shrinking"),
    ],
)
def test_what_keeps_a_pool_from_ready(stock: tuple, why: str) -> None:
    found = status(snapshot(*stock))
    assert (ready(found).status, ready(found).reason) == ("False", why)
    reconciling = condition(found, ConditionType.RECONCILING)
    assert reconciling is not None
    assert (reconciling.reason, reconciling.message) == (why, ready(found).message)


def test_a_pool_without_replicas_says_so() -> None:
    found = status(snapshot(of=spec(replicas=None)))
    assert (ready(found).status, ready(found).reason) == ("True", "ReplicasUnset")
    assert ready(found).message == "0 of 0 ready; spec.replicas is not set"
    held = pool(spec(replicas=None), status=VMPoolStatus(desired_replicas=2))
    assert ready(status(snapshot(*full(2), pool=held))).reason == "Filled"


def test_a_paused_pool_says_so_and_is_neither_reconciling_nor_stalled() -> None:
    found = status(snapshot(vm("r"), of=spec(paused=True)))
    assert [one.type for one in found.conditions] == [ConditionType.READY]
    assert (ready(found).status, ready(found).reason) == ("False", "Paused")


# --- the sentence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "stock", "sentence"),
    [
        (spec(limits={"pending": 1}), (), "0 of 3 ready; 2 wait: limits.pending is 1"),
        (spec(limits={"creates": 2}), (), "0 of 3 ready; 1 wait: limits.creates is 2"),
        (spec(maxVMs=3), (vm("c", Phase.CLAIMED),), "0 of 3 ready; 1 wait: maxVMs is 3"),
        (spec(), (pending("p"),), "0 of 3 ready, 1 on their way"),
        (
            spec(update={"maxSurge": 1, "maxUnavailable": 0}),
            full(3, OLD),
            "3 of 3 ready, 3 to be replaced; replacing waits: update.maxSurge is reached",
        ),
        (
            spec(maxVMs=3, update={"maxSurge": 1, "maxUnavailable": 0}),
            full(3, OLD),
            "3 of 3 ready, 3 to be replaced; replacing waits: maxVMs is 3",
        ),
    ],
)
def test_the_sentence_names_the_limit(of, stock: tuple, sentence: str) -> None:
    assert ready(status(snapshot(*stock, of=of))).message == sentence


def test_the_sentence_names_a_slow_start() -> None:
    found = status(snapshot(creation=creation(1, 4, 60)))
    assert ready(found).message == "0 of 3 ready; 3 wait: creation is slowed down after 4 failures in a row"


@pytest.mark.parametrize(
    ("homes", "reason", "words"),
    [
        ({}, "ProviderNotFound", "VMProvider east does not exist in namespace ci"),
        ({EAST: down()}, "CircuitOpen", "VMProvider east: left alone after 5 failures"),
        ({EAST: down(message="")}, "CircuitOpen", "VMProvider east: CircuitOpen"),
        ({EAST: provider(room=0)}, "Filling", "every provider is full (VMProvider limits.machines) or has weight 0"),
    ],
)
def test_the_sentence_names_the_provider(homes: dict, reason: str, words: str) -> None:
    seen = replace(snapshot(), providers=homes)
    found = ready(status(seen))
    assert (found.reason, found.message) == (reason, f"0 of 3 ready; 3 wait: {words}")


def test_one_good_provider_is_enough_and_weight_0_is_none() -> None:
    of = spec(providers=[{"name": WEST, "weight": 0}, {"name": EAST}])
    assert provider_trouble(snapshot(of=of, providers={EAST: provider()})) is None
    assert provider_trouble(snapshot(of=of, providers={EAST: down(), WEST: provider(WEST)})) is not None
    full_east = snapshot(of=of, providers={EAST: provider(room=0)})
    assert "limits.machines" in plan_pool(full_east, NOW).held_back
    nothing = spec(providers=[{"name": EAST, "weight": 0}])
    assert provider_trouble(snapshot(of=nothing)) == ("NoProvider", "all providers have weight 0")


def test_a_deleted_pool_names_who_holds_it_up() -> None:
    claimed = [vm(f"c{n}", Phase.CLAIMED, claim=claim(owner=f"user-{n}")) for n in range(MAX_NAMED + 2)]
    deleted = pool(spec(), deleting=True)
    found = status(snapshot(*claimed, pool=deleted))
    assert (ready(found).status, ready(found).reason) == ("False", "Draining")
    assert ready(found).message == (
        "being deleted: waits for 5 claimed VMs until they are released: "
        "c0 (user-0), c1 (user-1), c2 (user-2) and 2 more"
    )
    forced = pool(spec(deletionPolicy="Force"), deleting=True)
    assert "their claims are ended (deletionPolicy Force)" in ready(status(snapshot(*claimed, pool=forced))).message
    assert "2 machines are being destroyed" in ready(status(snapshot(*full(2), pool=deleted))).message
    assert "nothing is left" in ready(status(snapshot(pool=deleted))).message


def test_a_deleted_pool_names_the_provider_that_holds_it_up() -> None:
    deleted = pool(spec(), deleting=True)
    for homes, words in (({EAST: down()}, "left alone after 5 failures"), ({}, "ProviderNotFound")):
        found = status(replace(snapshot(*full(2), pool=deleted), providers=homes))
        assert ready(found).message == f"being deleted: waits for VMProvider east: {words}"


# --- Stalled ------------------------------------------------------------------------------------------------------


def test_a_template_that_can_never_work_stalls_the_pool_until_it_is_changed() -> None:
    """The engine clears ``creation`` when the template changes; that is what ends it."""
    seen = snapshot(creation=creation(1, 2, 30))
    found = status(seen, failures=(NO_IMAGE,))
    stalled = condition(found, ConditionType.STALLED)
    assert stalled is not None
    assert (stalled.reason, stalled.message) == ("InvalidTemplate", "no image debian-99")
    assert ready(found).message == "0 of 3 ready: no image debian-99"
    assert kstatus(seen, found) == "Failed"
    changed = replace(seen, creation=None)
    assert kstatus(changed, status(changed, failures=(NO_IMAGE,))) == "InProgress"


@pytest.mark.parametrize(
    ("failures", "state"),
    [
        pytest.param((), creation(1, 2, 30), id="nothing failed"),
        pytest.param((NO_IMAGE,), creation(2, 0, 0), id="it worked since"),
        pytest.param(
            (NO_IMAGE.model_copy(update={"error_class": "Unavailable"}), NO_IMAGE),
            creation(1, 2, 30),
            id="failed otherwise since",
        ),
    ],
)
def test_any_other_failure_may_pass(failures: tuple, state) -> None:
    assert stalled_reason(snapshot(creation=state), failures, TERMINAL) is None


def test_a_pool_is_stalled_when_all_its_providers_are() -> None:
    of = spec(providers=[{"name": EAST}, {"name": WEST}])
    both = {EAST: down(stalled=True, reason="CredentialsRefused", message="401"), WEST: down(WEST, stalled=True)}
    found = status(snapshot(of=of, providers=both))
    stalled = condition(found, ConditionType.STALLED)
    assert stalled is not None
    assert (stalled.reason, stalled.message) == ("CredentialsRefused", "VMProvider east: 401")
    for other in ({WEST: down(WEST)}, {WEST: provider(WEST)}, {}):
        assert stalled_reason(snapshot(of=of, providers={EAST: both[EAST]} | other), (), TERMINAL) is None


def test_a_pool_that_was_reached_is_stalled_only_while_it_lacks_something() -> None:
    seen = snapshot(*full())
    still_full = after(seen, status(seen), providers={EAST: down(stalled=True)})
    assert condition(status(still_full), ConditionType.STALLED) is None
    seen = after(seen, status(seen), vms=(), providers={EAST: down(stalled=True)})
    found = status(seen)
    assert condition(found, ConditionType.STALLED) is not None
    assert ready(found).status == "True", "a generation that was reached stays reached"
    assert ready(found).message == "0 of 3 ready; 3 wait: VMProvider east: left alone after 5 failures"


# --- what does not change -----------------------------------------------------------------------------------------


def test_an_idle_pool_writes_nothing_as_time_passes() -> None:
    of = spec(readiness={"tcpSocket": {"port": 22}})
    seen = snapshot(*full(), of=of, sights={one.uid: RUNNING for one in full()})
    seen = after(seen, status(seen))
    for later in (soon(seconds=1), soon(minutes=59), soon(days=400)):
        assert status(seen, now=later).wire() == seen.pool.status.wire()


def test_a_failing_pool_that_waits_writes_nothing_as_time_passes() -> None:
    seen = snapshot(creation=creation(1, 4, 60))
    seen = after(seen, status(seen))
    assert status(seen, now=soon(seconds=59)).wire() == seen.pool.status.wire()
    assert status(seen, now=soon(seconds=60)).wire() != seen.pool.status.wire()


def test_counts_go_by_phase_and_a_claim_counts_at_once() -> None:
    stock = (
        vm("r"),
        vm("just-claimed", claim=claim()),
        vm("c", Phase.CLAIMED),
        pending("p"),
        vm("bad", Phase.PENDING),
        vm("q", Phase.QUARANTINED),
        vm("d", Phase.COMPLETED, reason=Reason.CLAIM_ENDED, claim=claim(released_at=NOW)),
    )
    found = status(snapshot(*stock, sights={"uid-bad": BROKEN}))
    assert (found.ready_replicas, found.pending_replicas, found.replicas) == (1, 2, 3)
    assert (found.claimed_replicas, found.quarantined_replicas, found.draining_replicas) == (2, 1, 1)


def test_what_pending_vms_were_told_is_in_the_sentence() -> None:
    told = StepFacts("create", reason="ProviderExhausted", message="quota of 3 machines is used up")
    waiting = [replace(vm(name, Phase.PENDING), machine_id="", steps=(told,)) for name in ("a", "b")]
    found = status(snapshot(vm("r"), *waiting))
    assert ready(found).message.endswith("2 could not be created yet: quota of 3 machines is used up")
