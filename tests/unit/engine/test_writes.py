"""What is put into writes: finalizer patches that test what they were computed from, whole ledgers, small patches."""

from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.api import keys
from vmpool.api.pool import PoolProvider, Template, VMPoolSpec, VMPoolStatus
from vmpool.engine import writes
from vmpool.engine.failures import Failures, failure_of
from vmpool.engine.sights import Sights
from vmpool.kube.errors import AlreadyExists, Conflict, Invalid, KubeError
from vmpool.kube.resource import Json
from vmpool.plan.actions import CreateVM
from vmpool.plan.snapshot import VM, PoolFacts, Step, StepFacts

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OURS = "vmpool.dev/machine"

names = st.sampled_from([OURS, "other.example/a", "other.example/b", "foregroundDeletion"])


def vm(**changes: object) -> VM:
    plain = {
        "uid": "u1",
        "namespace": "team-a",
        "name": "vm-1",
        "resource_version": "1",
        "created_at": NOW,
        "pool": "small",
        "pool_uid": "p1",
        "provider": "sim",
    }
    return VM(**{**plain, **changes})  # type: ignore[arg-type]


def pool(**changes: object) -> PoolFacts:
    spec = VMPoolSpec(template=Template(image="debian-12"), providers=(PoolProvider(name="sim"),), replicas=1)
    return PoolFacts("p1", "team-a", "small", 1, spec, VMPoolStatus(), **changes)  # type: ignore[arg-type]


def patched(present: list[str], patch: Sequence[dict[str, object]]) -> list[str]:
    for operation in patch:
        if operation["path"] == "/metadata/finalizers":
            if operation["op"] == "test":
                assert operation["value"] == present
            else:
                return list(operation["value"])  # type: ignore[call-overload]
    return present


@given(st.lists(names, unique=True), st.booleans())
def test_a_finalizer_patch_changes_ours_and_keeps_everybody_elses(present: list[str], keep: bool) -> None:
    raw = {"metadata": {"uid": "u1", "finalizers": present}}
    patch = writes.finalizer_patch(raw, OURS, keep=keep)
    after = patched(present, patch)
    assert (OURS in after) == keep
    assert [name for name in after if name != OURS] == [name for name in present if name != OURS]
    if patch:
        assert {"op": "test", "path": "/metadata/uid", "value": "u1"} in patch


def test_a_ledger_is_written_whole_with_the_changed_step_replaced() -> None:
    before = vm(steps=(StepFacts("create", NOW, NOW, 2), StepFacts("boot", NOW)))
    later = NOW + timedelta(seconds=9)
    steps = writes.ledger(before, writes.done(before, Step.BOOT, later, later))
    assert [step["name"] for step in steps] == ["create", "boot"]
    assert steps[0]["retries"] == 2
    assert steps[1]["startedAt"] == "2026-01-01T00:00:00.000000Z", "a step keeps the time it was first tried"
    assert steps[1]["finishedAt"] == "2026-01-01T00:00:09.000000Z"


def test_a_status_patch_names_only_what_differs_and_nulls_what_is_gone() -> None:
    before = VMPoolStatus(desired_replicas=1, ready_replicas=1)
    after = VMPoolStatus(desired_replicas=1, ready_replicas=2)
    assert writes.status_changes(before, before) == {}
    assert writes.status_changes(before, after) == {"readyReplicas": 2}


def test_a_new_vm_carries_the_finalizer_from_birth() -> None:
    body = writes.new_vm(pool(), "v1:abc", "small-abc", "req-1", CreateVM("sim", "req-1", 2))
    assert body["metadata"]["finalizers"] == [OURS]
    assert body["metadata"]["ownerReferences"][0]["uid"] == "p1"
    assert body["spec"]["retryCount"] == 2


def test_a_failure_is_recorded_once_and_slows_creation_only_before_ready() -> None:
    from types import SimpleNamespace

    from vmpool.telemetry.metrics import Metrics

    world = SimpleNamespace(metrics=Metrics())
    failures = Failures(pool())
    lost = failure_of(vm(), Step.PROBE, "NotAnswering", "silent", NOW)
    assert failures.add(world, pool(), lost)  # type: ignore[arg-type]
    assert not failures.add(world, pool(), lost), "a repeated record is the same record"  # type: ignore[arg-type]
    assert failures.creation is None, "a Ready VM that stopped answering says nothing about creating"
    boot = failure_of(vm(name="vm-2", request_id="req-2"), Step.BOOT, "PendingTimeout", "slow", NOW)
    assert failures.add(world, pool(), boot)  # type: ignore[arg-type]
    assert failures.creation is not None
    assert failures.creation.window == 1
    assert ("req-2", 0) in failures.owed((), NOW)
    successor = vm(uid="u3", request_id="req-2", retry_count=1)
    assert ("req-2", 0) not in failures.owed((successor,), NOW)
    failures.template_is("v1:other")
    assert failures.creation is None, "another template begins with a clean slate"


@pytest.mark.parametrize("count", [11, 30])
def test_recent_failures_are_bounded(count: int) -> None:
    from types import SimpleNamespace

    from vmpool.telemetry.metrics import Metrics

    world = SimpleNamespace(metrics=Metrics())
    failures = Failures(pool())
    for number in range(count):
        failures.add(world, pool(), failure_of(vm(name=f"vm-{number}"), Step.BOOT, "X", "y", NOW))  # type: ignore[arg-type]
    assert [failure.vm for failure in failures.recent] == [f"vm-{n}" for n in range(count - 1, count - 11, -1)]


class Far:
    """Stands in for server and mirror: two leaders and one deletion cannot be staged to the moment."""

    def __init__(self, machine: str) -> None:
        self.left = {"metadata": {"uid": "u1", "finalizers": [OURS]}, "status": {"machineId": machine}}
        self.patches = 0

    async def delete(self, *_: object, **__: object) -> Json:
        return self.left

    async def patch_json(self, *args: object, **__: object) -> Json:
        self.patches += 1
        # It may land late, when another leader has written a machine down.
        test = {"op": "test", "path": "/metadata/resourceVersion", "value": "7"}
        assert test in args[-1], "only this very version is let go"  # type: ignore[operator]
        return self.left

    def saw(self, obj: Json) -> None:
        assert obj is self.left


@pytest.mark.parametrize(("machine", "patches"), [("", 1), ("m-7", 0)])
async def test_an_object_is_not_forgotten_by_proofs_that_are_about_another_machine(machine: str, patches: int) -> None:
    far, sights = Far(machine), Sights()
    far.left["metadata"] |= {"namespace": "team-a", "name": "vm-1", "resourceVersion": "7"}
    for _ in range(2):
        sights.missed("u1", NOW)
    await writes.forget(SimpleNamespace(client=far, vms=far, sights=sights), vm())  # type: ignore[arg-type]
    assert far.patches == patches
    assert bool(sights.of("u1").misses) == (not machine), "what was not found was not this one"


@pytest.mark.parametrize("committed", [True, False])
async def test_a_create_that_is_answered_with_a_conflict_is_asked_again_under_the_same_name(committed: bool) -> None:
    """Else the plan that follows makes another VM beside one that is there."""
    there: dict[str, Json] = {}
    asked: list[str] = []

    async def create(_: object, __: str, body: Json) -> Json:
        name = body["metadata"]["name"]
        asked.append(name)
        if name in there:
            raise AlreadyExists("it is there", status=409)
        if len(asked) == 1 and not committed:
            raise Conflict("a quota that others write too", status=409)
        there[name] = {**body, "metadata": {**body["metadata"], "uid": "u9", "resourceVersion": "9"}}
        if len(asked) == 1:
            raise Conflict("said of what was done", status=409)
        return there[name]

    async def get(_: object, __: str, name: str) -> Json:
        return there[name]

    seen: list[Json] = []
    vms = SimpleNamespace(by_index=lambda *_: (), saw=seen.append)
    world = SimpleNamespace(client=SimpleNamespace(create=create, get=get), vms=vms)
    await writes.create_vm(world, pool(), "digest", CreateVM("sim"))  # type: ignore[arg-type]
    assert len(set(asked)) == 1
    assert seen == [there[asked[0]]]


async def test_a_create_that_meets_conflicts_only_is_no_reason_to_look_again_at_once() -> None:
    asked = 0

    async def create(*_: object) -> Json:
        nonlocal asked
        asked += 1
        raise Conflict("a quota that others write too", status=409)

    world = SimpleNamespace(
        client=SimpleNamespace(create=create), vms=SimpleNamespace(by_index=lambda *_: (), saw=lambda _: None)
    )
    with pytest.raises(KubeError) as caught:
        await writes.create_vm(world, pool(), "digest", CreateVM("sim"))  # type: ignore[arg-type]
    assert not isinstance(caught.value, Conflict), "that is planned anew at once, for as long as it lasts"
    assert asked == writes.UNKNOWN_TRIES


@pytest.mark.parametrize("changed", [True, False])
async def test_a_finalizer_that_may_not_go_is_an_error_unless_the_object_has_changed(changed: bool) -> None:
    """Else an admission policy that says no is asked again and again, and nobody is told."""
    left = {"metadata": {"uid": "u1", "name": "vm-1", "namespace": "team-a", "resourceVersion": "7"}}
    left["metadata"]["finalizers"] = [keys.FINALIZER_MACHINE]  # type: ignore[assignment]
    looked: list[str] = []

    async def delete(*_: object, **__: object) -> Json:
        return left

    async def patch_json(*_: object, **__: object) -> Json:
        raise Invalid("refused", status=422)

    async def quorum_get(_: str, name: str) -> None:
        looked.append(name)

    world = SimpleNamespace(
        client=SimpleNamespace(delete=delete, patch_json=patch_json),
        vms=SimpleNamespace(quorum_get=quorum_get, saw=lambda _: None),
        vm=lambda _: vm(resource_version="8" if changed else "7"),
    )
    with nullcontext() if changed else pytest.raises(Invalid):
        await writes.forget(world, vm())  # type: ignore[arg-type]
    assert looked == ["vm-1"]
