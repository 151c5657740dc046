"""Every way to the end leaves no object and no machine: of a VM, a pool, a provider, a namespace."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api import Api
from tests.clouds import SimCloud
from tests.control_plane.operator.stage import DEADLINE, Stage, condition, machine_ids, names
from tests.operators import Operator
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane


async def finalizers(stage: Stage) -> tuple[list[str], list[str]]:
    """Of the provider and of its Secret."""
    found = [(await objects.get(stage.provider)).ok() for objects in (stage.providers, stage.secrets)]
    provider, secret = ([*one["metadata"].get("finalizers", ())] for one in found)
    return provider, secret


async def unheld(stage: Stage, secret: str = "") -> None:
    """Wait until a Secret may be deleted."""

    async def free() -> bool:
        found = (await stage.secrets.get(secret or stage.provider)).ok()
        return not found["metadata"].get("finalizers")

    await until(free, deadline=DEADLINE, what="the Secret is free")


async def test_a_deleted_pool_leaves_nothing(stage: Stage, kubectl: Kubectl) -> None:
    await stage.filled(5)
    kubectl("delete", "vmpool", stage.pool, "-n", stage.namespace, f"--timeout={DEADLINE:g}s")
    assert not await stage.vms_of()
    assert not stage.alive()
    assert {machine["endedBy"] for machine in stage.history()} == {"deleted"}


async def test_provider_and_secret_are_held_from_before_the_first_create_until_the_last_is_gone(
    stage: Stage, kubectl: Kubectl
) -> None:
    await stage.put_provider(config={"endpoint": stage.cloud.url, "timeoutSeconds": 1})
    await stage.provider_says("Ready", "True")
    assert await finalizers(stage) == ([], []), "nobody needs it yet"
    gate = stage.fault("slow", "create", seconds=600)
    await stage.put_pool(replicas=1)
    await until(lambda: stage.cloud.faults()[-1]["fired"], deadline=DEADLINE, what="the first create is on its way")
    assert await finalizers(stage) == ([keys.FINALIZER_DRAIN], [keys.FINALIZER_IN_USE])
    assert (await stage.providers.get(stage.provider)).ok()["status"]["identity"]
    stage.mend(gate)
    kubectl("delete", "vmpool", stage.pool, "-n", stage.namespace, "--wait=false")
    await stage.gone(stage.pools, stage.pool)

    async def free() -> bool:
        return await finalizers(stage) == ([], [])

    await until(free, deadline=DEADLINE, what="both are free again")
    kubectl("delete", f"vmprovider/{stage.provider}", f"secret/{stage.provider}", "-n", stage.namespace)
    assert not stage.alive()


async def test_a_deleted_provider_is_drained_and_keeps_its_secret_until_then(
    stage: Stage, served: Operator, kubectl: Kubectl
) -> None:
    vms = await stage.filled(3)
    name = vms[0]["metadata"]["name"]
    claim = {"id": "c", "owner": "alice", "boundAt": "2026-01-01T00:00:00Z", "expiresAt": "2099-01-01T00:00:00Z"}
    (await stage.vms.merge(name, {"spec": {"claim": claim}})).ok()
    await stage.in_phase(name, "Claimed")
    await stage.full(3)
    kubectl("delete", f"vmprovider/{stage.provider}", f"secret/{stage.provider}", "-n", stage.namespace, "--wait=false")
    await until(lambda: len(stage.alive()) == 1, deadline=DEADLINE, what="what nobody has is drained")
    await stage.looked(served)
    assert stage.alive() == machine_ids(vms[:1]), "who has a machine keeps it"
    await until(lambda: _waits_for(stage, 1), deadline=DEADLINE, what="the provider says that it waits for one machine")
    assert await finalizers(stage) == ([keys.FINALIZER_DRAIN], [keys.FINALIZER_IN_USE])
    await until(lambda: _pool_tells(stage, "it is being deleted"), deadline=DEADLINE, what="the pool says why")

    ended = {"id": "c", "releasedAt": "2026-01-02T00:00:00Z", "endReason": "Released"}
    (await stage.vms.merge(name, {"spec": {"claim": ended}})).ok()
    await stage.gone(stage.providers, stage.provider)
    await stage.gone(stage.secrets, stage.provider)
    assert not stage.alive()
    assert not await stage.vms_of()
    await until(lambda: _pool_tells(stage, "does not exist"), deadline=DEADLINE, what="the pool says what it waits for")
    await stage.put_provider()
    await stage.full(3)


async def _waits_for(stage: Stage, count: int) -> bool:
    found = (await stage.providers.get(stage.provider)).ok()
    return f"waits until its machines are gone, {count} left" in condition(found, "Ready")["message"]


async def _pool_tells(stage: Stage, words: str) -> bool:
    """The pool was Ready once, so it stays; its sentence tells what is missing."""
    message = condition((await stage.pools.get(stage.pool)).ok(), "Ready")["message"]
    return f"VMProvider {stage.provider}" in message and words in message


async def test_another_secret_takes_the_finalizer_over(stage: Stage) -> None:
    await stage.filled(1)
    second = f"{stage.provider}-2"
    await stage.put_secret(second, apiKey=stage.tenant.key)
    (await stage.providers.merge(stage.provider, {"spec": {"secretRef": {"name": second}}})).ok()
    await unheld(stage)

    async def held() -> bool:
        # The one is let go, then the status names the other, then that is held: three writes.
        found = (await stage.secrets.get(second)).ok()
        return found["metadata"].get("finalizers") == [keys.FINALIZER_IN_USE]

    await until(held, deadline=DEADLINE, what="the other Secret is held")
    (await stage.secrets.delete(stage.provider)).ok()
    await stage.change(replicas=2)
    await stage.full(2)


async def test_two_providers_share_a_secret(stage: Stage) -> None:
    twin = f"{stage.provider}-twin"
    await stage.put_provider()
    await stage.put_provider(twin, secret=stage.provider)
    await stage.put_pool(replicas=2, providers=[{"name": stage.provider}, {"name": twin}])
    await stage.full(2)
    assert {vm["spec"]["provider"] for vm in await stage.vms_of()} == {stage.provider, twin}
    await stage.change(providers=[{"name": stage.provider}])
    (await stage.providers.delete(twin)).ok()
    await stage.gone(stage.providers, twin)
    await stage.full(2)
    assert await finalizers(stage) == ([keys.FINALIZER_DRAIN], [keys.FINALIZER_IN_USE]), "the other needs it still"
    (await stage.pools.delete(stage.pool)).ok()
    await stage.gone(stage.pools, stage.pool)
    await unheld(stage)


async def test_a_shared_secret_is_held_anew_by_whoever_comes_next(stage: Stage) -> None:
    """What a provider once saw on the Secret may have been another's finalizer, and gone since."""
    twin, second = f"{stage.provider}-twin", f"{stage.pool}-b"
    await stage.put_provider()
    await stage.put_pool(replicas=1)
    await stage.full(1)
    await stage.put_provider(twin, secret=stage.provider, observe={"interval": "1h"})
    await stage.says(stage.providers, twin, "Ready", "True")
    (await stage.pools.delete(stage.pool)).ok()
    await stage.gone(stage.pools, stage.pool)
    await unheld(stage)
    gate = stage.fault("slow", "create", seconds=2)
    await stage.put_pool(second, replicas=1, providers=[{"name": twin}])
    await until(lambda: stage.cloud.faults()[-1]["fired"], deadline=DEADLINE, what="the first create is on its way")
    secret = (await stage.secrets.get(stage.provider)).ok()
    assert secret["metadata"]["finalizers"] == [keys.FINALIZER_IN_USE]
    stage.mend(gate)


@pytest.mark.parametrize("force", [False, True], ids=["orphaned", "orphaned and its finalizer torn off"])
async def test_orphans_are_drained_and_never_adopted_by_name(stage: Stage, kubectl: Kubectl, force: bool) -> None:
    before = await stage.filled(3)
    old = (await stage.pools.get(stage.pool)).ok()["metadata"]["uid"]
    slow = stage.fault("failBefore", "delete")
    kubectl("delete", "vmpool", stage.pool, "-n", stage.namespace, "--cascade=orphan", "--wait=false")
    if force:
        await until(lambda: _torn_off(stage), deadline=DEADLINE, what="the pool is gone by force")
        await stage.put_pool(replicas=2)
        await until(lambda: _of_others(stage, old, 2), deadline=DEADLINE, what="the new pool made its own")
        assert len(stage.history()) == 5
    stage.mend(slow)
    if not force:
        await stage.gone(stage.pools, stage.pool)
        await stage.put_pool(replicas=2)
    after = await stage.full(2)
    assert not names(before) & names(after)
    assert old not in {vm["spec"]["poolUid"] for vm in after}
    assert stage.alive() == machine_ids(after)
    assert (await stage.pools.get(stage.pool)).ok()["metadata"]["uid"] != old


async def _torn_off(stage: Stage) -> bool:
    """Take every finalizer off the pool until it is gone, as somebody in despair does."""
    await stage.pools.merge(stage.pool, {"metadata": {"finalizers": None}})
    return (await stage.pools.get(stage.pool)).status == 404


async def _of_others(stage: Stage, pool_uid: str, count: int) -> bool:
    ready = [vm for vm in await stage.vms_of(phase="Ready") if vm["spec"]["poolUid"] != pool_uid]
    return len(ready) == count


@pytest.fixture
def outside(
    plane: ControlPlane, doomed: str, namespace: str, crds_installed: None, tmp_path: Path
) -> Iterator[Operator]:
    """An operator that serves the doomed namespace and lives in another one."""
    made = Operator(plane.kubeconfig, tmp_path, VMPOOL_WATCH_NAMESPACE=doomed, VMPOOL_NAMESPACE=namespace)
    yield made
    made.kill()


async def test_a_deleted_namespace_leaves_nothing(
    outside: Operator, api: Api, doomed: str, simcloud: SimCloud, kubectl: Kubectl
) -> None:
    outside.start()
    await outside.ready()
    stage = Stage(api, doomed, simcloud)
    await stage.filled(5)
    kubectl("delete", "namespace", doomed, f"--timeout={DEADLINE:g}s")
    assert not stage.alive()
    assert {machine["endedBy"] for machine in stage.history()} == {"deleted"}
    assert outside.running
