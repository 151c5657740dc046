"""The rounds of a purge policy: when a cycle begins and ends, and what stands on the board meanwhile."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from vmpool.api.conditions import find
from vmpool.api.meta import format_time
from vmpool.api.pool import Failure
from vmpool.engine.facts import (
    claim_facts,
    health_object,
    letter_facts,
    pool_facts,
    provider_object,
    purge_object,
    queue_object,
    vm_facts,
)
from vmpool.engine.loop import Done
from vmpool.engine.purging import PurgeLoop, governing
from vmpool.engine.stragglers import STRAGGLER_POOL_UID
from vmpool.engine.world import LETTER_INDEXES, VM_INDEXES, Verdict, World
from vmpool.kube import kinds
from vmpool.kube.errors import Conflict, KubeError, NotFound
from vmpool.kube.mirror import Mirror, MirrorSettings, Selection
from vmpool.plan.policies import PurgeObject
from vmpool.plan.snapshot import VM, PoolFacts, ProviderFacts
from vmpool.settings import Settings
from vmpool.telemetry.metrics import Metrics

NOW = datetime(2030, 1, 1, tzinfo=UTC)
Json = dict[str, Any]


class Server:
    """The objects behind the mirrors; a stand-in for ``Client`` that keeps the preconditions of a server."""

    clock_skew = None

    def __init__(self) -> None:
        self.objects: dict[str, Json] = {}
        self.version = 100
        self.statuses: list[Json] = []

    def put(self, raw: Json) -> Json:
        self.version += 1
        raw = {**raw, "metadata": {**raw["metadata"], "resourceVersion": str(self.version)}}
        self.objects[raw["metadata"]["name"]] = raw
        return raw

    async def get(self, _: object, _namespace: str | None, name: str) -> Json:
        if name not in self.objects:
            raise NotFound(f"{name} not found", status=404, details={"name": name})
        return self.objects[name]

    async def patch_merge(self, _: object, namespace: str, name: str, patch: Json, subresource: str) -> Json:
        assert subresource == "status"
        raw = await self.get(_, namespace, name)
        if raw["metadata"]["resourceVersion"] != patch["metadata"]["resourceVersion"]:
            raise Conflict(f"{name}: another version", status=409)
        self.statuses.append(patch["status"])
        return self.put({**raw, "status": {**raw.get("status", {}), **patch["status"]}})


class Letters:
    """A letter box that is as full as the test says."""

    def __init__(self) -> None:
        self.written: list[Failure] = []
        self.closed = False

    async def write(self, _: PoolFacts, _vm: VM, failure: Failure) -> None:
        if self.closed:
            raise KubeError("no answer")
        self.written.append(failure)


class Scene:
    """One policy called tidy with its pool web on provider east, and mirrors that learn only from the test."""

    def __init__(self, **spec: Any) -> None:
        self.server, self.letters = Server(), Letters()
        client: Any = self.server
        bounds = MirrorSettings()

        def mirror(resource: Any, project: Any, indexes: Any = None) -> Mirror[Any]:
            return Mirror(client, Selection(resource), project, bounds, indexes)

        self.world = World(
            client=client,
            settings=Settings(purge_cycle_seconds=3600, error_pause_seconds=0.01),
            metrics=Metrics(),
            events=SimpleNamespace(emit=lambda *_: None),  # type: ignore[arg-type]
            install_id="i",
            stop_grace_seconds=0,
            pools=mirror(kinds.VMPOOLS, pool_facts),
            vms=mirror(kinds.POOLEDVMS, vm_facts, VM_INDEXES),
            providers=mirror(kinds.VMPROVIDERS, provider_object),
            claims=mirror(kinds.VMCLAIMS, claim_facts),
            queues=mirror(kinds.DEAD_LETTER_QUEUES, queue_object),
            letters=mirror(kinds.DEAD_LETTERS, letter_facts, LETTER_INDEXES),
            purge_policies=mirror(kinds.PURGE_POLICIES, purge_object),
            health_policies=mirror(kinds.HEALTH_POLICIES, health_object),
            probes=asyncio.Semaphore(1),
        )
        self.world.letter_box = self.letters
        self.woken: list[str] = []
        self.world.wake_pool = self.woken.append
        self.east = ProviderFacts("east", usable=True, reachable=True)
        self.world.views["ci", "east"] = SimpleNamespace(facts=lambda: self.east)  # type: ignore[assignment]
        self.pool()
        policy = self.policy(**spec)
        self.loop = PurgeLoop(self.world, policy)

    def thing(self, name: str, spec: Json, generation: int = 1, **meta: Any) -> Json:
        status = self.server.objects.get(name, {}).get("status", {})
        meta = {"name": name, "namespace": "ci", "uid": f"uid-{name}", "generation": generation, **meta}
        return self.server.put({"metadata": meta, "spec": spec, "status": status})

    def pool(self, name: str = "web", **spec: Any) -> None:
        base = {"template": {"image": "i"}, "providers": [{"name": "east"}], "purgePolicy": "tidy"}
        self.world.pools.saw(self.thing(name, {**base, **spec}))

    def policy(self, name: str = "tidy", generation: int = 1, **spec: Any) -> PurgeObject:
        raw = self.thing(name, {"maxReadyAge": "1h", **spec}, generation)
        self.world.purge_policies.saw(raw)
        return purge_object(raw)

    def vm(self, name: str, phase: str = "Ready", pool: str = "uid-web", **status: Any) -> None:
        """A VM that has been in its phase for a day."""
        raw = self.thing(name, {"pool": "web", "poolUid": pool, "provider": "east"}, finalizers=["vmpool.dev/machine"])
        since = format_time(NOW - timedelta(days=1))
        raw["status"] = {"phase": phase, "phaseSince": since, "machineId": f"m-{name}", **status}
        self.world.vms.saw(raw)

    def gone(self, name: str) -> None:
        self.world.vms.saw_deleted(f"uid-{name}")

    def ordered(self) -> set[str]:
        """The names of what stands on the board."""
        return {uid.removeprefix("uid-") for uid in self.world.purges}

    async def round(self, **later: float) -> datetime | None:
        return await self.loop.round(NOW + timedelta(**later))

    def last(self) -> tuple[int, int, int, int] | None:
        """What the last record says: found, purged, deferred, kept."""
        one = purge_object(self.server.objects["tidy"]).status.last_cycle
        return (one.found, one.purged, one.deferred, one.kept) if one is not None else None

    def reason(self, kind: str = "Ready") -> str:
        one = find(purge_object(self.server.objects["tidy"]).status.conditions, kind)
        return one.reason if one is not None else ""

    def cycles(self) -> int:
        counted = self.world.metrics.reliability.purge_cycles.collect()[0].samples
        return int(sum(one.value for one in counted if one.name.endswith("_total")))


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_orders_stand_on_the_board_until_their_vm_has_gone_or_was_taken(scene: Scene) -> None:
    for name in ("a", "b", "c"):
        scene.vm(name)
    wake_at = await scene.round()
    assert scene.ordered() == {"a", "b", "c"}
    assert scene.woken == ["uid-web"], "a pool is woken once"
    assert wake_at is not None
    assert wake_at < NOW + timedelta(seconds=1)
    assert scene.reason() == "Purging"
    scene.vm("a", "Completed", reason="Purged")
    scene.vm("b", "Claimed")
    await scene.round(seconds=1)
    assert scene.ordered() == {"c"}
    assert scene.last() is None
    scene.gone("c")
    await scene.round(seconds=2)
    assert not scene.world.purges
    assert scene.last() == (3, 2, 0, 1)
    assert scene.reason() == "Idle"


async def test_a_vm_that_ended_for_another_reason_was_not_purged(scene: Scene) -> None:
    scene.vm("a")
    await scene.round()
    scene.vm("a", "Completed", reason="Surplus")
    await scene.round(seconds=1)
    assert scene.last() == (1, 0, 0, 1)


async def test_cycles_begin_at_once_then_every_interval_and_after_a_change_and_never_overlap() -> None:
    scene = Scene(interval="10m")
    await scene.round()
    assert scene.cycles() == 1
    assert len(scene.server.statuses) == 1, "its first conditions"
    await scene.round(minutes=9)
    assert scene.cycles() == 1
    scene.vm("a")
    wake_at = await scene.round(minutes=10)
    assert scene.ordered() == {"a"}
    assert wake_at is not None
    scene.vm("b")
    await scene.round(minutes=21)
    assert scene.ordered() == {"a"}, "the one on its way ends first"
    scene.gone("a")
    await scene.round(minutes=22)
    assert scene.ordered() == {"b"}
    scene.gone("b")
    await scene.round(minutes=23)
    assert scene.cycles() == 3
    scene.policy(generation=2, interval="10m")
    await scene.round(minutes=24)
    assert scene.cycles() == 4
    await scene.round(minutes=-60)
    assert scene.cycles() == 5, "a clock that went back stops nothing"
    assert await scene.round(minutes=-60) == NOW - timedelta(minutes=60) + timedelta(seconds=5)


async def test_a_policy_that_finds_nothing_writes_its_first_conditions_and_no_more(scene: Scene) -> None:
    for hours in range(4):
        await scene.round(hours=hours)
    assert scene.cycles() == 4
    (status,) = scene.server.statuses
    assert status["pools"] == 1
    assert "lastCycle" not in status


async def test_a_changed_spec_takes_orders_back_and_begins_anew(scene: Scene) -> None:
    scene.vm("a")
    await scene.round()
    assert scene.ordered() == {"a"}
    scene.policy(generation=2, dryRun=True)
    await scene.round(seconds=1)
    assert not scene.world.purges
    assert scene.last() == (1, 0, 0, 0)
    assert scene.reason() == "DryRun"
    assert scene.cycles() == 2


@pytest.mark.parametrize("how", ["reference", "paused", "unhealthy", "exempt"])
async def test_an_order_goes_with_what_allowed_it(scene: Scene, how: str) -> None:
    scene.world.health_policies.saw(scene.thing("well", {"onUnhealthy": ["pausePurge"]}))
    scene.pool(healthPolicy="well")
    scene.world.verdicts["uid-web"] = Verdict(())
    scene.vm("a")
    await scene.round()
    assert scene.ordered() == {"a"}
    match how:
        case "reference":
            scene.pool(purgePolicy="other")
        case "paused":
            scene.pool(paused=True)
        case "unhealthy":
            scene.world.verdicts["uid-web"] = Verdict((), unhealthy=True, purge_paused="it is unhealthy")
        case "exempt":
            raw = scene.server.objects["a"]
            raw["metadata"]["annotations"] = {"vmpool.dev/purge-exempt": "true"}
            scene.world.vms.saw({**scene.server.put(raw), "status": raw["status"]})
    await scene.round(seconds=1)
    assert not scene.world.purges
    assert scene.last() == (1, 0, 0, 1)
    assert (scene.reason("Paused") == "PoolsPaused") == (how in ("paused", "unhealthy"))


async def test_what_the_pools_do_not_remove_in_time_waits_for_the_next_cycle(scene: Scene) -> None:
    scene.vm("a")
    await scene.round()
    assert scene.loop._cycle is not None
    scene.loop._cycle.clock -= 3601
    await scene.round(seconds=1)
    assert not scene.world.purges
    assert scene.last() == (1, 0, 1, 0)


async def test_a_policy_that_is_gone_leaves_no_order_and_no_level(scene: Scene) -> None:
    scene.vm("a")
    scene.vm("b")
    await scene.round()
    scene.world.purges["uid-b"] = replace(scene.world.purges["uid-b"], message="of the policy that has it by now")
    scene.world.purge_policies.saw_deleted("uid-tidy")
    with pytest.raises(Done):
        await scene.round(seconds=1)
    await scene.loop.closed()
    assert scene.ordered() == {"b"}
    levels = scene.world.metrics.reliability
    assert not [sample for gauge in (levels.purge_found, levels.purge_last) for sample in gauge.collect()[0].samples]


async def test_a_lost_race_of_writes_is_tried_again_and_the_record_is_not_lost(scene: Scene) -> None:
    scene.vm("a")
    await scene.round()
    scene.gone("a")
    scene.server.put(scene.server.objects["tidy"])
    await scene.round(seconds=1)
    assert scene.last() is None
    assert scene.loop._woken.is_set()
    await scene.round(seconds=1)
    assert scene.last() == (1, 1, 0, 0)
    assert scene.cycles() == 1


@pytest.mark.parametrize("unknown", ["provider", "health"])
async def test_after_the_start_the_first_cycle_waits_for_what_may_stop_it_but_not_for_ever(
    scene: Scene, unknown: str
) -> None:
    if unknown == "provider":
        scene.east = ProviderFacts("east", settling=True)
    else:
        scene.world.health_policies.saw(scene.thing("well", {"onUnhealthy": ["pausePurge"]}))
        scene.pool(healthPolicy="well")
    scene.vm("a")
    assert await scene.round() == NOW + timedelta(seconds=1)
    assert scene.cycles() == 0
    scene.loop._started -= 3601
    await scene.round(seconds=1)
    assert not scene.world.purges, "what is not known is kept"
    assert scene.last() == (1, 0, 0, 1)


async def test_in_doubt_nothing_is_ordered(scene: Scene) -> None:
    scene.vm("a")
    scene.server.clock_skew = timedelta(minutes=1)  # type: ignore[assignment]
    await scene.round()
    assert not scene.world.purges
    assert not scene.server.statuses


# --- late destructions --------------------------------------------------------------------------------------------


async def told(scene: Scene) -> None:
    """Let what is in flight end."""
    await asyncio.gather(*scene.loop.doing._tasks.values())


async def test_a_late_destruction_is_told_before_it_is_ordered_and_told_once(scene: Scene) -> None:
    scene.pool(deadLetterQueue="failed")
    scene.vm("a", "Completed", steps=[{"name": "destroy", "retries": 3, "reason": "Refused", "message": "locked"}])
    await scene.round()
    assert not scene.world.purges
    await told(scene)
    assert scene.ordered() == {"a"}
    (failure,) = scene.letters.written
    assert (failure.step, failure.error_class) == ("destroy", "NotDestroyed")
    assert failure.message.endswith(": locked")
    scene.world.sights.deleting("uid-a", datetime.now(UTC))
    await scene.round(seconds=1)
    assert scene.last() == (1, 1, 0, 0)

    spec = {"queue": "failed", "queueFrom": "tasks", "vm": "a", "vmUid": "uid-a", "pool": "web", "poolUid": "uid-web"}
    spec |= {"provider": "east", "failedAt": format_time(NOW), "fingerprint": "1", "errorClass": "X"}
    scene.world.letters.saw(scene.thing("a-tasks-1", {**spec, "errorMessage": "late"}))
    await scene.round(hours=2)
    assert scene.ordered() == {"a"}, "its letter is there already"
    assert len(scene.letters.written) == 1


async def test_without_an_answer_to_its_letter_a_destruction_is_not_ordered_and_the_letter_is_tried_again(
    scene: Scene,
) -> None:
    scene.pool(deadLetterQueue="failed")
    scene.vm("a", "Completed")
    scene.letters.closed = True
    await scene.round()
    await told(scene)
    assert not scene.world.purges
    scene.letters.closed = False
    await scene.round(seconds=1)
    await told(scene)
    assert scene.ordered() == {"a"}


async def test_a_pool_without_a_queue_has_no_letters(scene: Scene) -> None:
    scene.vm("a", "Completed")
    await scene.round()
    assert scene.ordered() == {"a"}
    assert not scene.letters.written


# --- orphans ------------------------------------------------------------------------------------------------------


async def test_orphans_of_the_providers_of_its_pools_are_ordered_from_the_sweep(scene: Scene) -> None:
    scene.policy(generation=2, maxOrphanedAge="1h")
    scene.vm("stray", "Quarantined", STRAGGLER_POOL_UID)
    scene.vm("failed", "Quarantined")
    await scene.round()
    assert scene.ordered() == {"stray"}
    assert scene.woken == [STRAGGLER_POOL_UID]


async def test_of_several_policies_the_first_by_name_that_exists_decides_about_orphans(scene: Scene) -> None:
    scene.pool("db", purgePolicy="absent")
    governs = governing(scene.world, ("ci", "east"))
    assert governs is not None
    assert governs.name == "tidy"
    scene.policy("calm")
    scene.pool("cache", purgePolicy="calm")
    governs = governing(scene.world, ("ci", "east"))
    assert governs is not None
    assert governs.name == "calm"
    assert governing(scene.world, ("ci", "west")) is None
    scene.policy(generation=2, maxOrphanedAge="1h")
    scene.vm("stray", "Quarantined", STRAGGLER_POOL_UID)
    await scene.round()
    assert not scene.world.purges


async def test_orphans_stay_while_all_pools_of_their_provider_are_paused(scene: Scene) -> None:
    scene.policy(generation=2, maxOrphanedAge="1h")
    scene.pool("db")
    scene.pool(paused=True)
    scene.vm("stray", "Quarantined", STRAGGLER_POOL_UID)
    await scene.round()
    assert scene.ordered() == {"stray"}
    scene.pool("db", paused=True)
    await scene.round(seconds=1)
    assert not scene.world.purges
