"""A pool over several providers, and several pools on one."""

import pytest

from tests.control_plane.operator.stage import DEADLINE, Stage, condition
from tests.operators import Operator
from tests.waiting import until

pytestmark = pytest.mark.control_plane


async def test_weights_share_machines_out_and_follow_when_they_change(stage: Stage) -> None:
    east, west = f"{stage.provider}-e", f"{stage.provider}-w"
    other = stage.cloud.tenant()
    await stage.put_provider(east)
    await stage.put_provider(west, tenant=other)
    await stage.put_pool(replicas=8, providers=[{"name": east, "weight": 3}, {"name": west, "weight": 1}])
    await stage.full(8)
    assert (len(stage.alive()), len(stage.alive(other))) == (6, 2)
    await stage.change(replicas=12, providers=[{"name": east, "weight": 0}, {"name": west, "weight": 1}])
    await stage.full(12)
    assert (len(stage.alive()), len(stage.alive(other))) == (6, 6)
    await stage.change(replicas=0)
    await stage.full(0)
    assert not stage.alive() | stage.alive(other), "what is not made any more is still destroyed"


async def test_a_providers_limit_holds_over_two_pools(stage: Stage, served: Operator) -> None:
    await stage.put_provider(limits={"machines": 5})
    second = f"{stage.pool}-b"
    await stage.put_pool(replicas=4)
    await stage.put_pool(second, replicas=4)

    async def full_of_five() -> bool:
        states = [await stage.status(name) for name in (stage.pool, second)]
        return sum(state["readyReplicas"] for state in states) == 5

    await until(full_of_five, deadline=DEADLINE, what="five machines are ready in both pools together")
    await stage.looked(served)
    assert len(stage.alive()) == stage.high_water() == 5
    short = [name for name in (stage.pool, second) if (await stage.status(name))["readyReplicas"] < 4]
    for name in short:
        message = condition({"status": await stage.status(name)}, "Ready")["message"]
        assert "VMProvider limits.machines" in message

    await stage.change(short[0], replicas=0)
    rest = ({stage.pool, second} - {short[0]}).pop()
    await stage.full(4, rest)
    await stage.full(0, short[0])
    (await stage.providers.merge(stage.provider, {"spec": {"limits": {"machines": 8}}})).ok()
    await stage.change(short[0], replicas=4)
    await stage.full(4, short[0])
    assert stage.high_water() == 8


async def test_a_quota_at_the_far_side_costs_no_vm(stage: Stage, served: Operator) -> None:
    settings = stage.cloud.settings()["maxMachines"]
    stage.cloud.settings(maxMachines={**settings, stage.tenant.name: 2})
    await stage.put_provider()
    await stage.put_pool(replicas=3)

    async def two_ready() -> bool:
        return (await stage.status()).get("readyReplicas") == 2

    await until(two_ready, deadline=DEADLINE, what="as many as the quota allows are ready")
    await stage.looked(served)
    assert not (await stage.status()).get("recentFailures")
    stage.cloud.settings(maxMachines=settings)
    await stage.full(3)
    assert not (await stage.status()).get("recentFailures")
