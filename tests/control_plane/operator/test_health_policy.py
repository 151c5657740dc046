"""Health as people see it: conditions with number and limit, the log line, metrics, events, and what is paused."""

import re

import pytest

from tests.api import Api
from tests.clouds import SimCloud
from tests.control_plane.operator.stage import DEADLINE, Stage, condition, metric
from tests.control_plane.operator.verdicts import (
    TYPES,
    checked,
    checks,
    judged,
    logged,
    policies,
    put_policy,
    remove_letters,
    verdict,
    write_letters,
)
from tests.operators import Operator
from tests.planes import Kubectl
from tests.waiting import until

pytestmark = pytest.mark.control_plane


async def test_a_full_pool_is_healthy_and_an_idle_policy_writes_nothing(
    stage: Stage, served: Operator, kubectl: Kubectl
) -> None:
    await put_policy(stage)
    await judged(stage, 3)
    await stage.full(3)
    kubectl("wait", "--for=condition=Healthy", f"healthpolicy/{stage.pool}", "-n", stage.namespace, "--timeout=30s")
    status = await verdict(stage, "healthy")
    assert (status["pools"], status["message"]) == (1, "every number is within its limits")
    assert status.get("notHealthy", []) == []

    def now_full() -> bool:
        last = checks(stage, served)[-1:]
        return bool(last) and last[0].groups() == ("HEALTHY", "0", "3", "0", "0", "0", "0")

    await until(now_full, deadline=DEADLINE, what="a log line with three ready VMs")
    where = {"namespace": stage.namespace, "health_policy": stage.pool}
    of_pool = {"namespace": stage.namespace, "pool": stage.pool}
    assert metric(served, "vmpool_health_status", **where) == 0
    assert metric(served, "vmpool_health_last_check_timestamp_seconds", **where) > 1_700_000_000
    assert metric(served, "vmpool_health_queue_size", **of_pool, queue="ready") == 3
    oldest = metric(served, "vmpool_health_queue_oldest_age_seconds", **of_pool, queue="ready")
    average = metric(served, "vmpool_health_queue_average_age_seconds", **of_pool, queue="ready")
    assert 0 < average <= oldest

    async def versions() -> list[str]:
        found = [(await policies(stage).get(stage.pool)).ok(), (await stage.pools.get(stage.pool)).ok()]
        return [one["metadata"]["resourceVersion"] for one in found]

    before = await versions()
    await checked(stage, served, 3)
    assert await versions() == before
    assert metric(served, "vmpool_health_queue_oldest_age_seconds", **of_pool, queue="ready") > oldest
    failed = [line for line in served.lines().splitlines() if '"round_failed"' in line and '"HealthPolicy"' in line]
    assert not failed


async def test_a_pool_whose_every_clone_fails_is_not_healthy(stage: Stage, served: Operator) -> None:
    stage.fault("failStep", "create")
    await put_policy(stage, failuresInARowMax=1)
    await judged(stage, 2)
    await verdict(stage, "degraded")
    message = await stage.pool_says("Degraded", "True", "FailuresInARow")
    assert re.fullmatch(r"\d+ VMs failed in a row, more than 1", message)
    changed = {"spec": {"thresholds": {"emptyPoolMaxAge": "1s"}}}
    (await policies(stage).merge(stage.pool, changed)).ok()
    status = await verdict(stage, "unhealthy")
    message = await stage.pool_says("Unhealthy", "True", "EmptyPoolAndFailuresInARow")
    assert re.match(r"no VM has been ready for [\dhms]+, more than 1s; \d+ VMs failed in a row, more than 1", message)
    assert status["message"] == f"{stage.pool}: {message.replace('; ', ', and ')}"
    (listed,) = status["notHealthy"]
    assert listed == {"namespace": stage.namespace, "pool": stage.pool, "health": "unhealthy", "message": message}
    await logged(stage, served, "UNHEALTHY")
    assert metric(served, "vmpool_pool_health_status", namespace=stage.namespace, pool=stage.pool) == 2

    async def warned(name: str, words: set[str]) -> bool:
        events = [one for one in await stage.events(name) if one["message"] in (message, status["message"])]
        return {(one["involvedObject"]["kind"], one["type"], one["reason"]) for one in events} == {
            (word, "Warning", "Unhealthy") for word in words
        }

    await until(
        lambda: warned(stage.pool, {"VMPool", "HealthPolicy"}), deadline=DEADLINE, what="events on pool and policy"
    )


async def test_vms_that_do_not_get_ready_are_stuck(stage: Stage, served: Operator) -> None:
    rule = stage.fault("neverReady", "create")
    await put_policy(stage, stuckVMAgeThreshold="1s", stuckVMMaxWarning=1, stuckVMMaxCritical=2)
    await judged(stage, 2)
    status = await verdict(stage, "degraded")
    assert status["message"] == "2 VMs are stuck in pending for more than 1s, more than 1"
    assert await stage.pool_says("Degraded", "True", "StuckVMs") == status["message"]
    where = {"namespace": stage.namespace, "pool": stage.pool}
    assert metric(served, "vmpool_health_queue_stuck_count", **where, queue="pending") == 2
    assert metric(served, "vmpool_health_stuck_vms_count", namespace=stage.namespace, health_policy=stage.pool) == 2
    await stage.change(replicas=3)
    status = await verdict(stage, "unhealthy")
    assert status["message"] == "3 VMs are stuck in pending for more than 1s, more than 2"
    stage.mend(rule)
    await stage.change(replicas=0)
    await verdict(stage, "healthy")


async def test_dead_letters_degrade_and_then_harm(stage: Stage, served: Operator) -> None:
    await put_policy(stage, dlqMaxWarning=2, dlqMaxCritical=4)
    await judged(stage, 1)
    await verdict(stage, "healthy")
    await write_letters(stage, range(3))
    status = await verdict(stage, "degraded")
    assert status["message"] == "there are 3 dead letters, more than 2"
    since = status["since"]
    await write_letters(stage, range(3, 5), "ready")
    status = await verdict(stage, "unhealthy")
    assert status["message"] == "there are 5 dead letters, more than 4"
    assert status["since"] > since
    where = {"namespace": stage.namespace, "health_policy": stage.pool}
    assert metric(served, "vmpool_health_dlq_total_size", **where) == 5
    assert metric(served, "vmpool_health_dlq_size", **where, queue="clone") == 3
    assert metric(served, "vmpool_health_dlq_size", **where, queue="ready") == 2
    assert metric(served, "vmpool_health_status", **where) == 2
    await remove_letters(stage, range(5))
    status = await verdict(stage, "healthy")
    assert status.get("notHealthy", []) == []


async def test_a_ready_queue_above_its_limit_and_above_twice_of_it(stage: Stage) -> None:
    await put_policy(stage, readyQueueMax=2)
    await judged(stage, 3)
    status = await verdict(stage, "degraded")
    assert status["message"] == f"{stage.pool}: 3 VMs are ready, more than 2"
    await stage.change(replicas=5)
    status = await verdict(stage, "unhealthy")
    assert status["message"] == f"{stage.pool}: 5 VMs are ready, more than 4 (twice 2)"
    await stage.change(replicas=1)
    await verdict(stage, "healthy")


async def test_creates_stop_while_a_pool_is_unhealthy_and_go_on_afterwards(stage: Stage, served: Operator) -> None:
    await put_policy(stage, dlqMaxWarning=1, dlqMaxCritical=1, onUnhealthy=["pauseCreates"])
    await judged(stage, 1)
    await stage.full(1)
    await write_letters(stage, range(2))
    await verdict(stage, "unhealthy")
    await stage.change(replicas=3)
    paused = f"HealthPolicy {stage.pool}: the pool is unhealthy: there are 2 dead letters, more than 1"

    async def told() -> bool:
        return bool(condition({"status": await stage.status()}, "Ready")["message"].endswith(f"2 wait: {paused}"))

    await until(told, deadline=DEADLINE, what="the pool says what it waits for")
    await checked(stage, served, 2)
    assert len(await stage.vms_of()) == 1
    await remove_letters(stage, range(2))
    await stage.full(3)


async def test_nothing_is_left_of_a_policy_that_goes_or_is_named_no_more(stage: Stage, served: Operator) -> None:
    await put_policy(stage, every="24h", readyQueueMax=1)
    await judged(stage, 2)
    await stage.full(2)
    # A new limit is judged at once, although the next check is a day away.
    (await policies(stage).merge(stage.pool, {"spec": {"thresholds": {"readyQueueMax": 500}}})).ok()
    await verdict(stage, "healthy")
    (await policies(stage).merge(stage.pool, {"spec": {"thresholds": {"readyQueueMax": 1}}})).ok()
    await verdict(stage, "degraded")

    async def without(measured: int) -> None:
        async def clean() -> bool:
            pool = (await stage.pools.get(stage.pool)).ok()
            left = [kind for kind in TYPES if condition(pool, kind)["status"]]
            text = served.http("/metrics")
            samples = [line for line in text.splitlines() if f'pool="{stage.pool}"' in line and "_health_" in line]
            of_policy = [line for line in text.splitlines() if f'health_policy="{stage.pool}"' in line]
            return not left and not samples and bool(of_policy) == bool(measured)

        await until(clean, deadline=DEADLINE, what="conditions and metrics of the pool are gone")

    await stage.change(healthPolicy=None)
    await without(measured=True)
    status = (await policies(stage).get(stage.pool)).ok()["status"]
    assert (status["health"], status["pools"], status["message"]) == ("healthy", 0, "no pool names this policy")
    await stage.change(healthPolicy=stage.pool)
    await verdict(stage, "degraded")
    (await policies(stage).delete(stage.pool)).ok()
    await without(measured=False)
    await stage.pool_says("PolicyMissing", "True", "NotFound")


async def test_a_restart_keeps_the_verdict(api: Api, namespace: str, simcloud: SimCloud, operator: Operator) -> None:
    stage = Stage(api, namespace, simcloud)
    operator.start()
    await operator.ready()
    steady = {"clearPercent": 0, "clearChecks": 100}
    await put_policy(stage, dlqMaxWarning=1, dlqMaxCritical=1, hysteresis=steady, onUnhealthy=["pauseCreates"])
    await judged(stage, 1)
    await stage.full(1)
    await write_letters(stage, range(2))
    await verdict(stage, "unhealthy")
    # It is better now, but not yet for long enough: a process that knows nothing of before would say healthy.
    operator.kill()
    await remove_letters(stage, range(2))
    before = [(await objects.get(stage.pool)).ok() for objects in (policies(stage), stage.pools)]
    operator.start()
    await operator.ready()
    await checked(stage, operator, 3)
    assert [match[1] for match in checks(stage, operator)[-3:]] == ["UNHEALTHY"] * 3
    after = [(await objects.get(stage.pool)).ok() for objects in (policies(stage), stage.pools)]
    assert [one["status"] for one in after] == [one["status"] for one in before]
    versions = [[one["metadata"]["resourceVersion"] for one in found] for found in (before, after)]
    assert versions[0] == versions[1]
    # What is paused stays paused for the next process too, from its very first round on.
    operator.kill()
    await stage.change(replicas=3)
    operator.start()
    await operator.ready()
    await checked(stage, operator, 3)
    assert len(await stage.vms_of()) == 1
    assert "2 wait: HealthPolicy" in condition({"status": await stage.status()}, "Ready")["message"]
    assert operator.stop() == 0
