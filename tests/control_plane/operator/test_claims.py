"""VMClaims from the wish to the VM, with a real operator, a real API server and the simulated cloud."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.control_plane.operator.claimant import Claimant, bound_order, history, version
from tests.control_plane.operator.stage import DEADLINE, Stage, condition, metric, names
from tests.operators import Operator
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.api.meta import format_time

pytestmark = pytest.mark.control_plane

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture
def claimant(stage: Stage) -> Claimant:
    return Claimant(stage)


async def test_a_claim_is_bound_at_once_with_two_writes(stage: Stage, claimant: Claimant, kubectl: Kubectl) -> None:
    await stage.filled(2)
    since = await stage.version()
    name = await claimant.ask(lifetime="3h", tags={"job": "build-7"})
    status = await claimant.comes_to(name, "Bound")
    (one,) = status["vms"]
    vm = await stage.vm(one["name"])
    claim = (await claimant.claims.get(name)).ok()
    bound = vm["spec"]["claim"]
    ref = bound["ref"]
    assert bound["id"] == ref["uid"] == claim["metadata"]["uid"]
    assert (ref["namespace"], ref["name"]) == (stage.namespace, name)
    definition = (await stage.api.call("GET", f"{CRDS}/vmclaims.vmpool.dev")).ok()
    assert ref["kindUid"] == definition["metadata"]["uid"]
    assert bound["owner"] == f"vmclaim:{stage.namespace}/{name}"
    assert (bound["slot"], bound["tags"]) == (0, {"job": "build-7"})
    held = datetime.fromisoformat(bound["expiresAt"]) - datetime.fromisoformat(bound["boundAt"])
    assert held == timedelta(hours=3)
    assert one["hostName"] == vm["spec"]["hostName"]
    assert one["address"] == vm["status"]["addresses"][0]
    assert (status["expiresAt"], status["lifetime"]) == (bound["expiresAt"], "3h")
    assert condition(claim, "Ready")["status"] == "True"

    versions = [made for made in history(kubectl, claimant.claims.path, since) if made["metadata"]["name"] == name]
    assert [made["status"]["phase"] for made in versions] == ["Pending", "Bound"], "no status in between, and no more"
    before = [
        made
        for made in history(kubectl, stage.vms.path, since)
        if made["metadata"]["name"] == one["name"] and version(made) < version(versions[-1])
    ]
    ours = [made for made in before if made["status"]["phase"] == "Ready" and "claim" in made["spec"]]
    assert len(ours) == 1, "one write binds the VM; its phase is the pool's to write"
    await stage.in_phase(one["name"], "Claimed")
    await stage.full(2)


async def test_a_claim_waits_raises_the_refill_and_is_served(stage: Stage, claimant: Claimant) -> None:
    await stage.put_provider()
    await stage.put_pool(replicas=0)
    await stage.full(0)
    rule = stage.fault("slow", "create", seconds=1.0)
    name = await claimant.ask(2)
    status = await claimant.waits(name, "NothingReady", "1")
    assert stage.pool in status["message"]

    async def counted() -> bool:
        return (await stage.status())["waitingReplicas"] == 2

    await until(counted, deadline=DEADLINE, what="the pool says how many VMs are waited for")
    stage.mend(rule)
    bound = await claimant.comes_to(name, "Bound")
    assert [one["slot"] for one in bound["vms"]] == [0, 1]
    assert "position" not in bound or not bound["position"]
    await stage.full(0)
    assert len(stage.history()) == 2, "no machine too many was made"
    assert (await stage.status())["waitingReplicas"] == 0


async def test_serving_at_once_makes_no_machine_too_many(stage: Stage, claimant: Claimant) -> None:
    await stage.filled(3)
    wanted = [await claimant.ask() for _ in range(3)]
    await claimant.bound(*wanted)
    await stage.full(3)
    assert len(stage.history()) == 6


async def test_higher_priority_first_then_the_oldest(stage: Stage, claimant: Claimant, kubectl: Kubectl) -> None:
    await stage.put_provider()
    await stage.put_pool(replicas=0, maxVMs=10, paused=True)
    since = await stage.version()
    low = await claimant.ask(priority=-1)
    await claimant.waits(low, "PoolPaused", "1")
    first = await claimant.ask()
    await claimant.waits(first, "PoolPaused", "1")
    second = await claimant.ask()
    await claimant.waits(second, "PoolPaused", "2")
    urgent = await claimant.ask(priority=100)
    await claimant.waits(urgent, "PoolPaused", "1")
    await claimant.waits(low, "PoolPaused", "4")
    stage.fault("slow", "create", seconds=0.3)
    await stage.change(paused=False, limits={"pending": 1})
    await claimant.bound(low, first, second, urgent)
    assert bound_order(history(kubectl, claimant.claims.path, since)) == [urgent, first, second, low]


async def test_all_or_nothing_of_three(stage: Stage, claimant: Claimant) -> None:
    await stage.put_provider()
    await stage.put_pool(replicas=2, maxVMs=2)
    await stage.full(2)
    await stage.change(maxVMs=3, paused=True)
    whole = await claimant.ask(3)
    await claimant.waits(whole, "PoolPaused", "1")
    later = await claimant.ask()
    await claimant.waits(later, place="2")
    rule = stage.fault("slow", "create", seconds=1.0)
    await stage.change(paused=False)
    await claimant.waits(whole, "NothingReady")
    assert not [vm for vm in await stage.vms_of() if "claim" in vm["spec"]], "two of three are no reason to begin"
    stage.mend(rule)
    bound = await claimant.comes_to(whole, "Bound")
    assert len({one["uid"] for one in bound["vms"]}) == 3
    await claimant.waits(later, "PoolFull", "1")


async def test_an_alias_is_served_by_any_of_its_pools(stage: Stage, claimant: Claimant) -> None:
    await stage.put_provider()
    alias = f"any-{stage.pool}"
    other = f"{stage.pool}-b"
    await stage.put_pool(replicas=1, maxVMs=1, aliases=[alias])
    await stage.put_pool(other, replicas=1, maxVMs=4, aliases=[alias])
    await stage.full(1)
    await stage.full(1, other)
    name = await claimant.ask(requests=[{"alias": alias, "count": 5}])
    bound = await claimant.comes_to(name, "Bound")
    assert sorted(one["pool"] for one in bound["vms"]) == sorted([stage.pool, *[other] * 4])
    await claimant.comes_to(await claimant.ask(requests=[{"alias": alias, "count": 6}]), "Failed", "TooManyVMs")


async def test_the_metrics_of_the_queue(stage: Stage, claimant: Claimant, served: Operator) -> None:
    await stage.put_provider()
    await stage.put_pool(replicas=0, paused=True)
    before = metric(served, "vmpool_claim_binds_total", outcome="bound")
    waited = metric(served, "vmpool_claim_wait_seconds_count")
    wanted = [await claimant.ask(), await claimant.ask(2)]
    for name in wanted:
        await claimant.waits(name)
    assert metric(served, "vmpool_claims_waiting", pool=stage.pool) == 2
    await stage.change(paused=False)
    await claimant.bound(*wanted)
    assert metric(served, "vmpool_claim_binds_total", outcome="bound") == before + 3
    assert metric(served, "vmpool_claim_wait_seconds_count") == waited + 2
    await until(
        lambda: not metric(served, "vmpool_claims_waiting", pool=stage.pool), deadline=DEADLINE, what="nobody waits"
    )


async def test_a_claim_is_extended_and_shortened(stage: Stage, claimant: Claimant) -> None:
    await stage.filled(1, claims={"lifetime": "1h", "maxLifetime": "4h"})
    name = await claimant.ask()
    await claimant.comes_to(name, "Bound")
    (vm,) = await claimant.vms(name)
    bound_at = datetime.fromisoformat(vm["spec"]["claim"]["boundAt"])
    assert datetime.fromisoformat(vm["spec"]["claim"]["expiresAt"]) == bound_at + timedelta(hours=1)

    async def ends_after(hours: int) -> bool:
        status = await claimant.status(name)
        (vm,) = await claimant.vms(name)
        ends = datetime.fromisoformat(vm["spec"]["claim"]["expiresAt"])
        return ends == bound_at + timedelta(hours=hours) and datetime.fromisoformat(status["expiresAt"]) == ends

    await claimant.change(name, lifetime="4h")
    await until(lambda: ends_after(4), deadline=DEADLINE, what="the claim is extended")
    await claimant.change(name, lifetime="5h")

    async def refused() -> str:
        claim = (await claimant.claims.get(name)).ok()
        one = condition(claim, "Stalled")
        return str(one["message"]) if one["reason"] == "LifetimeTooLong" else ""

    message = await until(refused, deadline=DEADLINE, what="more than the pool allows is refused")
    assert "at most 4h" in message
    assert "claims.maxLifetime" in message
    assert await ends_after(4)
    assert (await claimant.status(name))["phase"] == "Bound"
    await claimant.change(name, lifetime="2h")
    await until(lambda: ends_after(2), deadline=DEADLINE, what="the claim is shortened")

    async def content() -> bool:
        return condition((await claimant.claims.get(name)).ok(), "Stalled")["status"] == ""

    await until(content, deadline=DEADLINE, what="the refusal is no more")


async def test_a_claim_expires_with_its_vm(stage: Stage, claimant: Claimant) -> None:
    await stage.filled(1)
    name = await claimant.ask()
    await claimant.comes_to(name, "Bound")
    (vm,) = await claimant.vms(name)
    past = vm["spec"]["claim"]["boundAt"]
    one = vm["metadata"]["name"]
    (await stage.vms.merge(one, {"spec": {"claim": {"id": vm["spec"]["claim"]["id"], "expiresAt": past}}})).ok()
    status = await claimant.comes_to(name, "Expired", "Expired")
    assert [slot["endReason"] for slot in status["vms"]] == ["Expired"]
    assert "expiresAt" not in status
    await stage.gone(stage.vms, one)


async def test_a_vm_that_its_owner_releases_ends_its_claim(stage: Stage, claimant: Claimant) -> None:
    await stage.filled(2)
    name = await claimant.ask(2)
    first, second = (vm["metadata"]["name"] for vm in (await claimant.bound(name)) and await claimant.vms(name))
    for vm in (first, second):
        held = (await stage.vm(vm))["spec"]["claim"]
        release = {"id": held["id"], "releasedAt": held["boundAt"], "endReason": "Released"}
        (await stage.vms.merge(vm, {"spec": {"claim": release}})).ok()
        if vm == first:

            async def half() -> bool:
                status = await claimant.status(name)
                return [slot.get("endReason") for slot in status["vms"]] == ["Released", None]

            await until(half, deadline=DEADLINE, what="the first VM's end is written down")
            assert (await claimant.status(name))["phase"] == "Bound"
    await claimant.comes_to(name, "Released", "Released")


async def test_deleting_a_claim_releases_its_vms(stage: Stage, claimant: Claimant) -> None:
    await stage.filled(2)
    name = await claimant.ask(2)
    await claimant.comes_to(name, "Bound")
    vms = names(await claimant.vms(name))
    (await claimant.claims.delete(name)).ok()
    for vm in vms:
        await stage.gone(stage.vms, vm)
    await stage.full(2)


async def test_a_finished_claim_goes_when_its_time_is_over(stage: Stage, claimant: Claimant) -> None:
    gone = await claimant.ask(pool="no-such-pool", ttlAfterFinished="0s")
    kept = await claimant.ask(pool="no-such-pool", ttlAfterFinished="1h")
    await stage.gone(claimant.claims, gone)
    await claimant.comes_to(kept, "Failed", "PoolNotFound")
    await claimant.change(kept, ttlAfterFinished="0s")
    await stage.gone(claimant.claims, kept)


async def test_the_deadline(stage: Stage, claimant: Claimant) -> None:
    await stage.put_provider()
    await stage.put_pool(replicas=0, paused=True)
    name = await claimant.ask(deadline="2s")
    await claimant.waits(name, "PoolPaused")
    status = await claimant.comes_to(name, "Failed", "DeadlineExceeded")
    assert "spec.deadline" in status["message"]
    assert not status.get("position")


async def test_what_can_never_be_served_fails_at_once_and_says_what_to_do(stage: Stage, claimant: Claimant) -> None:
    await stage.put_provider()
    await stage.put_pool(replicas=0, maxVMs=2, claims={"lifetime": "1h", "maxLifetime": "2h"})
    where = f"{stage.namespace}/{stage.pool}"
    wishes = {
        "PoolNotFound": ({"pool": "no-such-pool"}, "no-such-pool does not exist"),
        "TooManyVMs": ({"count": 3}, f"raise spec.maxVMs of VMPool {where} or ask for fewer"),
        "LifetimeTooLong": ({"lifetime": "3h"}, f"VMPool {where} allows a lifetime of at most 2h"),
        "AliasNotFound": ({"requests": [{"alias": "none"}]}, "alias none"),
        "RequesterNotTrusted": ({"requests": [{"pool": "web", "namespace": "elsewhere"}]}, "vmpool-claims"),
    }
    made = {reason: await claimant.ask(**spec) for reason, (spec, _) in wishes.items()}  # type: ignore[arg-type]
    for reason, name in made.items():
        status = await claimant.comes_to(name, "Failed", reason)
        assert wishes[reason][1] in status["message"]
        claim = (await claimant.claims.get(name)).ok()
        assert condition(claim, "Stalled")["reason"] == reason


async def test_a_pool_that_is_deleted_fails_the_claims_that_wait_for_it(stage: Stage, claimant: Claimant) -> None:
    await stage.put_provider()
    await stage.put_pool(replicas=0, paused=True)
    name = await claimant.ask()
    await claimant.waits(name, "PoolPaused")
    (await stage.pools.delete(stage.pool)).ok()
    status = await claimant.comes_to(name, "Failed")
    assert status["reason"] in ("PoolDeleting", "PoolNotFound")


async def test_a_pool_and_a_claim_made_in_one_breath(stage: Stage, claimant: Claimant) -> None:
    """The mirror of pools may be behind that of claims: nothing fails that the server knows better."""
    await stage.put_provider()
    for count in range(5):
        pool = f"{stage.pool}-{count}"
        await stage.put_pool(pool, replicas=0)
        name = await claimant.ask(pool=pool)
        await claimant.comes_to(name, "Bound")


async def test_what_was_asked_for_and_given_never_changes(stage: Stage, claimant: Claimant) -> None:
    await stage.filled(1)
    name = await claimant.ask()
    status = await claimant.comes_to(name, "Bound")
    for change in ({"requests": [{"pool": "other"}]}, {"requester": "mallory"}, {"requesterGroups": ["admins"]}):
        answer = await claimant.claims.merge(name, {"spec": change})
        assert answer.status == 422
        assert "never change" in answer.message
    (slot,) = status["vms"]
    for vms in ([], [{**slot, "uid": "another"}]):
        answer = await claimant.claims.merge(name, {"status": {"vms": vms}}, "status")
        assert answer.status == 422
        assert "a slot is filled once" in answer.message


async def test_a_reset_replaces_every_vm_that_nobody_has(stage: Stage, claimant: Claimant) -> None:
    before = await stage.filled(3)
    name = await claimant.ask()
    (mine,) = await claimant.bound(name)
    await stage.full(3)
    await stage.change(resetBefore=format_time(datetime.now(UTC)))

    async def fresh() -> bool:
        vms = await stage.vms_of(phase="Ready")
        return len(vms) == 3 and not names(vms) & names(before)

    await until(fresh, deadline=DEADLINE, what="every VM that was there is replaced")
    assert await stage.phase(mine["name"]) == "Claimed"
    after = names(await stage.full(3))
    await stage.change(limits={"pending": 7})
    assert names(await stage.full(3)) == after, "one reset, and no more"
