"""The loop of a health policy: when it looks, what it puts on the board, whom it wakes, and what it leaves behind."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import generate_latest

from tests.unit.plan.queues import a_pool, a_vm
from tests.unit.plan.worlds import NOW, ago, soon
from vmpool.api.conditions import find
from vmpool.api.health import HealthPolicySpec, HealthPolicyStatus
from vmpool.engine.healthchecks import HealthLoop
from vmpool.engine.loop import Done
from vmpool.engine.pool import PoolLoop
from vmpool.engine.world import LETTER_INDEXES, VM_INDEXES, World
from vmpool.kube.errors import Conflict, NotFound
from vmpool.kube.kinds import (
    DEAD_LETTER_QUEUES,
    DEAD_LETTERS,
    HEALTH_POLICIES,
    POOLEDVMS,
    PURGE_POLICIES,
    VMCLAIMS,
    VMPOOLS,
    VMPROVIDERS,
)
from vmpool.kube.mirror import Mirror, MirrorSettings, Selection
from vmpool.plan.lifecycle import Phase
from vmpool.plan.policies import PolicyObject
from vmpool.plan.snapshot import VM, PoolFacts
from vmpool.settings import Settings
from vmpool.telemetry.metrics import Metrics

LIMITS = {"readyQueueMax": 2}
JUDGED_SECONDS = 0.15
"""Three times what 10,000 VMs may cost."""


class Server:
    """The health policies as the server has them; everything else is told to the mirrors directly."""

    def __init__(self) -> None:
        self.clock_skew: timedelta | None = None
        self.objects: dict[str, Any] = {}
        self.writes: list[dict[str, Any]] = []
        self.version = 100

    def put(self, fact: Any) -> dict[str, Any]:
        self.version += 1
        self.objects[fact.name] = replace(fact, resource_version=str(self.version))
        return seen(self.objects[fact.name])

    async def get(self, _: Any, namespace: str, name: str) -> dict[str, Any]:
        if name not in self.objects:
            raise NotFound(f"no {namespace}/{name}")
        return seen(self.objects[name])

    async def patch_merge(self, _: Any, namespace: str, name: str, body: dict[str, Any], sub: str) -> dict[str, Any]:
        assert sub == "status"
        fact = self.objects.get(name)
        if fact is None:
            raise NotFound(f"no {namespace}/{name}")
        if body["metadata"] != {"uid": fact.uid, "resourceVersion": fact.resource_version}:
            raise Conflict("somebody else wrote")
        self.writes.append(body["status"])
        status = HealthPolicyStatus.model_validate({**fact.status.wire(), **body["status"]})
        return self.put(replace(fact, status=status))


def seen(fact: Any) -> dict[str, Any]:
    meta = {"uid": fact.uid, "namespace": fact.namespace, "name": fact.name, "resourceVersion": fact.resource_version}
    return {"metadata": meta, "fact": fact}


def a_policy(name: str = "strict", generation: int = 1, **of: Any) -> Any:
    base = {"interval": "5m", "thresholds": LIMITS, **of}
    spec = HealthPolicySpec.model_validate(base)
    return PolicyObject(f"uid-{name}", "ci", name, generation, "1", spec, HealthPolicyStatus())


class Town:
    """A world of real mirrors, with what was told to whom."""

    def __init__(self) -> None:
        self.server = Server()
        client: Any = self.server
        self.events: list[tuple[str, str, str]] = []
        self.woken: list[str] = []
        self.version = 10
        indexes: dict[Any, Any] = {POOLEDVMS: VM_INDEXES, DEAD_LETTERS: LETTER_INDEXES}
        kinds = {
            "pools": VMPOOLS,
            "vms": POOLEDVMS,
            "providers": VMPROVIDERS,
            "claims": VMCLAIMS,
            "queues": DEAD_LETTER_QUEUES,
            "letters": DEAD_LETTERS,
            "purge_policies": PURGE_POLICIES,
            "health_policies": HEALTH_POLICIES,
        }
        mirrors: dict[str, Any] = {
            name: Mirror[Any](client, Selection(kind), lambda obj: obj["fact"], MirrorSettings(), indexes.get(kind))
            for name, kind in kinds.items()
        }
        unused: Any = None
        self.world = World(
            client=client,
            settings=Settings(),
            metrics=Metrics(),
            events=self,  # type: ignore[arg-type]
            install_id="one",
            stop_grace_seconds=0.0,
            probes=unused,
            **mirrors,
        )
        self.world.wake_pool = self.woken.append

    def emit(self, ref: Any, kind: str, reason: str, _: str) -> None:
        """As the recorder of events."""
        self.events.append((f"{ref.kind}/{ref.name}", kind, reason))

    def see(self, *facts: Any) -> None:
        mirrors = {PoolFacts: self.world.pools, VM: self.world.vms}
        for fact in facts:
            self.version += 1
            mirrors[type(fact)].saw(seen(replace(fact, resource_version=str(self.version))))  # type: ignore[attr-defined]

    def policy(self, fact: Any) -> HealthLoop:
        """Put a policy on the server and return its loop."""
        self.world.health_policies.saw(self.server.put(fact))
        return HealthLoop(self.world, fact)

    def change(self, **changes: Any) -> None:
        """Change the policy ``strict`` on the server, and let the mirror see it."""
        self.world.health_policies.saw(self.server.put(replace(self.server.objects["strict"], **changes)))

    def status(self, name: str = "strict") -> HealthPolicyStatus:
        return self.server.objects[name].status  # type: ignore[no-any-return]

    def told(self, pool: PoolFacts) -> str:
        """Which condition of a pool's verdict is True; empty without a verdict."""
        verdict = self.world.verdicts.get(pool.uid)
        found = [one.type for one in verdict.conditions if one.status == "True"] if verdict is not None else [""]
        (word,) = found
        return word

    def metric(self, text: str) -> list[str]:
        lines = generate_latest(self.world.metrics.registry).decode().splitlines()
        return [line for line in lines if text in line and not line.startswith("#")]


POOL = a_pool(replicas=1, healthPolicy="strict")


def ready(count: int, pool: PoolFacts = POOL, first: int = 0) -> Iterator[VM]:
    return (a_vm(f"{pool.name}-{number}", pool, phase_since=ago(hours=1)) for number in range(first, first + count))


@pytest.fixture
def town() -> Town:
    made = Town()
    made.see(POOL, *ready(3))
    return made


async def test_a_check_judges_tells_and_writes_once(town: Town) -> None:
    loop = town.policy(a_policy())
    assert await loop.round(NOW) == NOW + timedelta(minutes=5)
    assert (town.status().health, town.status().pools, town.told(POOL)) == ("degraded", 1, "Degraded")
    assert town.woken == [POOL.uid]
    assert sorted(town.events) == [
        ("HealthPolicy/strict", "Warning", "Degraded"),
        ("VMPool/web", "Warning", "Degraded"),
    ]
    for minutes in range(5, 60, 5):
        assert await loop.round(soon(minutes=minutes)) == soon(minutes=minutes + 5)
    assert (len(town.server.writes), len(town.woken), len(town.events)) == (1, 1, 2)
    (checked,) = town.metric("vmpool_health_last_check_timestamp_seconds")
    assert float(checked.split()[-1]) == soon(minutes=55).timestamp()


async def test_a_round_before_the_time_is_no_check(town: Town) -> None:
    loop = town.policy(a_policy())
    await loop.round(NOW)
    for vm in ready(3):
        town.world.vms.saw_deleted(vm.uid)
    for seconds in range(1, 100):
        assert await loop.round(soon(seconds=seconds)) == soon(minutes=5)
    assert town.told(POOL) == "Degraded"
    await loop.round(soon(minutes=5))
    assert town.told(POOL) == "Degraded", "one better check is not enough"
    await loop.round(soon(minutes=10))
    assert (town.told(POOL), town.status().health) == ("Healthy", "healthy")
    assert ("VMPool/web", "Normal", "Healthy") in town.events


async def test_a_changed_spec_is_believed_at_once(town: Town) -> None:
    loop = town.policy(a_policy())
    await loop.round(NOW)
    town.change(generation=2, spec=a_policy(thresholds={"readyQueueMax": 3}).spec)
    await loop.round(soon(seconds=1))
    assert (town.status().health, town.status().observed_generation, town.told(POOL)) == ("healthy", 2, "Healthy")


async def test_a_changed_limit_on_all_pools_together_is_believed_at_once(town: Town) -> None:
    town.see(*(a_vm(f"slow-{number}", POOL, phase=Phase.PENDING, phase_since=ago(hours=3)) for number in range(3)))
    loop = town.policy(a_policy(thresholds={"stuckVMMaxWarning": 2}))
    await loop.round(NOW)
    assert town.status().message == "3 VMs are stuck in pending for more than 2h, more than 2"
    town.change(generation=2, spec=a_policy(thresholds={"stuckVMMaxWarning": 3}).spec)
    await loop.round(soon(seconds=1))
    assert town.status().health == "healthy"


async def test_pauses_follow_the_policy_and_the_verdict(town: Town) -> None:
    loop = town.policy(a_policy(thresholds={"readyQueueMax": 1}))
    await loop.round(NOW)
    assert (town.told(POOL), town.world.verdicts[POOL.uid].creates_paused) == ("Unhealthy", "")
    both = a_policy(thresholds={"readyQueueMax": 1}, onUnhealthy=["pauseCreates", "pausePurge"])
    town.change(generation=2, spec=both.spec)
    await loop.round(soon(seconds=1))
    why = "HealthPolicy strict: the pool is unhealthy: 3 VMs are ready, more than 2 (twice 1)"
    verdict = town.world.verdicts[POOL.uid]
    assert (verdict.unhealthy, verdict.creates_paused, verdict.purge_paused) == (True, why, why)
    assert len(town.woken) == 2, "the pool has to hear of it"


async def test_a_pool_that_comes_or_changes_is_judged_at_once_and_by_its_generation(town: Town) -> None:
    loop = town.policy(a_policy())
    await loop.round(NOW)
    db = a_pool("db", healthPolicy="strict")
    town.see(db, replace(POOL, generation=2))
    await loop.round(soon(seconds=1))
    assert (town.told(db), town.status().pools) == ("Healthy", 2)
    stands = find(town.world.verdicts[POOL.uid].conditions, "Degraded")
    assert stands is not None
    assert (stands.observed_generation, town.told(POOL)) == (2, "Degraded")
    # Such a check is an extra one: it makes no verdict better before its time.
    for vm in ready(3):
        town.world.vms.saw_deleted(vm.uid)
    for generation in range(3, 9):
        town.see(replace(POOL, generation=generation))
        await loop.round(soon(seconds=generation))
        assert town.told(POOL) == "Degraded"


async def test_a_pool_that_leaves_takes_its_verdict_and_its_levels_along(town: Town) -> None:
    loop = town.policy(a_policy())
    await loop.round(NOW)
    assert town.metric('pool="web"')
    town.see(a_pool(replicas=1))
    await loop.round(soon(seconds=1))
    assert (town.told(POOL), town.metric('pool="web"')) == ("", [])
    assert (town.status().pools, town.status().not_healthy) == (0, ())
    assert town.woken == [POOL.uid] * 2


@pytest.mark.parametrize("old_first", [True, False])
async def test_a_pool_that_changes_its_policy_keeps_the_new_ones_word(town: Town, *, old_first: bool) -> None:
    loops = [town.policy(a_policy()), town.policy(a_policy("mild", thresholds={"readyQueueMax": 100}))]
    for loop in loops:
        await loop.round(NOW)
    town.see(a_pool(replicas=1, healthPolicy="mild"))
    for loop in loops if old_first else reversed(loops):
        await loop.round(soon(seconds=1))
    assert (town.told(POOL), town.status("mild").pools, town.status().pools) == ("Healthy", 1, 0)
    assert town.metric('vmpool_pool_health_status{namespace="ci",pool="web"} 0.0')


async def test_nothing_is_left_of_a_policy_that_goes(town: Town) -> None:
    loop = town.policy(a_policy())
    await loop.round(NOW)
    assert town.metric("strict")
    town.world.health_policies.saw_deleted("uid-strict")
    with pytest.raises(Done):
        await loop.round(soon(seconds=1))
    await loop.closed()
    assert (town.world.verdicts, town.metric("strict"), town.metric('pool="web"')) == ({}, [], [])
    assert town.woken == [POOL.uid] * 2


async def test_a_write_that_lost_a_race_is_written_on_the_newest(town: Town) -> None:
    loop = town.policy(a_policy())
    town.server.put(town.server.objects["strict"])
    loop._woken.clear()
    await loop.round(NOW)
    assert (town.status().health, loop._woken.is_set()) == ("", True)
    await loop.round(soon(seconds=1))
    assert town.status().health == "degraded"
    assert town.events.count(("HealthPolicy/strict", "Warning", "Degraded")) == 1


async def test_a_policy_that_went_while_it_was_judged_ends_its_loop(town: Town) -> None:
    loop = town.policy(a_policy())
    del town.server.objects["strict"]
    await loop.round(NOW)
    with pytest.raises(Done):
        await loop.round(soon(seconds=1))


async def test_a_restart_goes_on_with_the_verdict_and_writes_nothing(town: Town) -> None:
    before = town.policy(a_policy())
    await before.round(NOW)
    verdict = town.world.verdicts.pop(POOL.uid)
    town.see(replace(POOL, status=POOL.status.model_copy(update={"conditions": verdict.conditions})))
    town.world.vms.saw_deleted(next(ready(1)).uid)
    writes = len(town.server.writes)
    after = HealthLoop(town.world, town.server.objects["strict"])
    await after.round(soon(minutes=1))
    assert (town.told(POOL), town.status().health) == ("Degraded", "degraded")
    assert town.world.verdicts[POOL.uid].conditions[0].message == verdict.conditions[0].message
    assert (len(town.server.writes), len(town.events)) == (writes, 2)
    # A pool that comes later brings the word of another policy, which is nothing to this one.
    other = a_pool(
        "db", healthPolicy="strict", status=POOL.status.model_copy(update={"conditions": verdict.conditions})
    )
    town.see(other)
    await after.round(soon(minutes=2))
    assert town.told(other) == "Healthy"


async def test_what_was_written_before_a_restart_pauses_creates_until_the_first_check(town: Town) -> None:
    policy = a_policy(thresholds={"readyQueueMax": 1}, onUnhealthy=["pauseCreates"])
    loop = town.policy(policy)
    await loop.round(NOW)
    verdict = town.world.verdicts.pop(POOL.uid)
    known = replace(POOL, status=POOL.status.model_copy(update={"conditions": verdict.conditions}))
    said = PoolLoop(town.world, known)._policies(known)
    assert said["creates_paused"] == verdict.creates_paused != ""
    assert said["health"] == verdict.conditions
    # The board is newer than what is written, and a policy that has gone says nothing.
    town.world.verdicts[POOL.uid] = replace(verdict, conditions=(), creates_paused="")
    newer = PoolLoop(town.world, known)._policies(known)
    assert (newer["creates_paused"], newer["health"]) == ("", ())
    del town.world.verdicts[POOL.uid]
    town.world.health_policies.saw_deleted(policy.uid)
    gone = PoolLoop(town.world, known)._policies(known)
    assert (gone["creates_paused"], gone["health"], gone["missing"]) == ("", (), ("HealthPolicy strict",))


async def test_nothing_is_judged_by_a_clock_that_cannot_be_trusted(town: Town) -> None:
    loop = town.policy(a_policy())
    town.server.clock_skew = timedelta(minutes=1)
    await loop.round(NOW)
    assert (town.world.verdicts, town.server.writes) == ({}, [])
    town.server.clock_skew = None
    await loop.round(soon(seconds=1))
    assert town.told(POOL) == "Degraded"


async def test_ten_thousand_vms_are_judged_in_a_moment(town: Town) -> None:
    pools = [a_pool(f"p{number}", replicas=1, healthPolicy="strict") for number in range(10)]
    for pool in pools:
        town.see(pool, *ready(1000, pool))
    loop = town.policy(a_policy())
    await loop.round(NOW)
    began = time.process_time()
    await loop.round(soon(minutes=5))
    assert time.process_time() - began < JUDGED_SECONDS
    (line,) = town.metric('queue_size{namespace="ci",pool="p9",queue="ready"}')
    assert line.endswith(" 1000.0")
