"""Replacing what is there: by a new template, by age, or not now because somebody paused the pool."""

import pytest

from tests.api import Json
from tests.control_plane.operator.stage import (
    DEADLINE,
    IMAGE,
    OTHER_IMAGE,
    Stage,
    condition,
    machine_ids,
    names,
    phases,
)
from tests.objects import LONG_AGO
from tests.operators import Operator
from tests.planes import Kubectl
from tests.waiting import until

pytestmark = pytest.mark.control_plane

LONG_SINCE = {"status": {"phaseSince": LONG_AGO}}


def images(stage: Stage) -> list[str]:
    """The images of the machines that are alive."""
    return sorted(machine["image"] for machine in stage.history() if machine["state"] != "Gone")


async def rolled(stage: Stage, count: int) -> list[Json]:
    """Wait until all machines are made from the new template."""
    await until(lambda: images(stage) == [OTHER_IMAGE] * count, deadline=DEADLINE, what="all machines are new")
    return await stage.full(count)


def least_ready(stage: Stage, kubectl: Kubectl, version: str, before: list[Json]) -> int:
    """How many VMs were ready at the worst moment since ``version``."""
    ready = {vm["metadata"]["uid"] for vm in before}
    least = len(ready)
    for vm in stage.replay(kubectl, version):
        keep = vm["status"]["phase"] == "Ready" and not vm["deleted"]
        (ready.add if keep else ready.discard)(vm["metadata"]["uid"])
        least = min(least, len(ready))
    return least


@pytest.mark.parametrize(
    ("surge", "unavailable"),
    [pytest.param(2, 0, id="surge"), pytest.param(0, "40%", id="unavailable")],
)
async def test_a_new_template_rolls_within_its_bounds(
    stage: Stage, kubectl: Kubectl, surge: int, unavailable: int | str
) -> None:
    replicas = 6
    before = await stage.filled(replicas, update={"maxSurge": surge, "maxUnavailable": unavailable})
    stage.fault("slow", "create", seconds=0.2)
    version = await stage.version()
    await stage.change(template={"image": OTHER_IMAGE})
    after = await rolled(stage, replicas)
    assert not names(before) & names(after)
    assert stage.high_water() <= replicas + surge
    may_lack = 2 if unavailable else 0
    assert least_ready(stage, kubectl, version, before) >= replicas - may_lack
    status = await stage.status()
    assert not status.get("recentFailures")
    assert status["staleReplicas"] == 0
    assert {vm["spec"]["templateDigest"] for vm in after} == {status["templateDigest"]}


async def test_a_bad_template_does_not_eat_the_stock(stage: Stage, served: Operator) -> None:
    before = await stage.filled(4, update={"maxSurge": 1, "maxUnavailable": 1})
    await stage.change(template={"image": "debian-99"})
    await stage.pool_says("Stalled", "True", "InvalidTemplate")
    await stage.looked(served)
    ready = await stage.vms_of(phase="Ready")
    assert len(ready) >= 3
    assert names(ready) <= names(before)
    await stage.change(template={"image": OTHER_IMAGE})
    await rolled(stage, 4)


async def test_on_claim_leaves_what_is_there_and_makes_only_new_ones_anew(stage: Stage, served: Operator) -> None:
    before = await stage.filled(2, update={"strategy": "OnClaim"})
    await stage.change(template={"image": OTHER_IMAGE})
    await stage.pool_says("Ready", "True")
    await stage.looked(served)
    assert names(await stage.full(2)) == names(before)
    await stage.change(replicas=3)
    await stage.full(3)
    assert images(stage) == [IMAGE, IMAGE, OTHER_IMAGE]
    await stage.change(replicas=1)
    await stage.full(1)
    assert images(stage) == [OTHER_IMAGE], "old templates go first"


async def test_ready_for_too_long_is_replaced_one_after_the_other(stage: Stage, kubectl: Kubectl) -> None:
    update = {"maxSurge": 0, "maxUnavailable": 1}
    before = await stage.filled(3, recycle={"readyTTL": "10h"}, update=update)
    version = await stage.version()
    for name in names(before[:2]):
        (await stage.vms.merge(name, LONG_SINCE, "status")).ok()
    await until(lambda: len(stage.history()) == 5, deadline=DEADLINE, what="two successors")
    after = await stage.full(3)
    assert names(before) & names(after) == names(before[2:])
    assert least_ready(stage, kubectl, version, before) == 2
    assert stage.high_water() == 3
    assert {vm["status"]["reason"] for vm in stage.replay(kubectl, version) if vm["deleted"]} == {"ReadyTTL"}


async def test_a_paused_pool_does_nothing_until_it_goes_on(stage: Stage, served: Operator) -> None:
    before = await stage.filled(3, recycle={"readyTTL": "10h"})
    await stage.change(paused=True)
    message = await stage.pool_says("Ready", "False", "Paused")
    assert "spec.paused" in message

    victim, aged, lost = before
    (await stage.vms.delete(victim["metadata"]["name"])).ok()
    (await stage.vms.merge(aged["metadata"]["name"], LONG_SINCE, "status")).ok()
    stage.cloud.fate(lost["status"]["machineId"], "fail")
    await stage.change(replicas=5, template={"image": OTHER_IMAGE})
    await stage.looked(served)
    status = await stage.status()
    assert condition({"status": status}, "Ready")["reason"] == "Paused"
    assert phases(await stage.vms_of()) == {"Ready": 3}
    assert stage.alive() == machine_ids(before)
    assert len(stage.history()) == 3

    await stage.change(paused=False)
    after = await stage.full(5)
    assert victim["metadata"]["name"] not in names(after)
    assert [failure["vm"] for failure in (await stage.status())["recentFailures"]] == [lost["metadata"]["name"]]
    assert images(stage).count(OTHER_IMAGE) == 5


async def test_a_paused_provider_is_left_alone(stage: Stage, served: Operator) -> None:
    await stage.filled(2)
    (await stage.providers.merge(stage.provider, {"spec": {"paused": True}})).ok()
    await stage.provider_says("Ready", "False", "Paused")
    await stage.change(replicas=3)
    assert "paused" in await stage.pool_says("Ready", "False", "ProviderPaused")
    await stage.change(replicas=1)
    await until(lambda: _draining(stage), deadline=DEADLINE, what="the surplus waits")
    assert len(stage.alive()) == 2
    (await stage.providers.merge(stage.provider, {"spec": {"paused": False}})).ok()
    await stage.full(1)
    assert len(stage.alive()) == 1


async def _draining(stage: Stage) -> bool:
    return phases(await stage.vms_of()) == {"Ready": 1, "Completed": 1}
