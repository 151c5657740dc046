"""Claims, written as an allocator writes them, by one patch: the engine follows, and never takes one back."""

import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.api import Json
from tests.control_plane.operator.stage import (
    DEADLINE,
    OTHER_IMAGE,
    Stage,
    condition,
    machine_ids,
    metric,
    names,
)
from tests.objects import LONG_AGO
from tests.operators import Operator
from tests.planes import Kubectl
from tests.waiting import until

pytestmark = pytest.mark.control_plane

OWNER = "alice"


def moment(seconds: float) -> str:
    """A time so many seconds from now, as the API writes it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def new_claim(seconds: float = 3600, **fields: Any) -> Json:
    """A claim of somebody that begins now."""
    identity = f"claim-{secrets.token_hex(4)}"
    return {"id": identity, "owner": OWNER, "boundAt": moment(0), "expiresAt": moment(seconds), **fields}


async def claimed(stage: Stage, vm: Json, seconds: float = 3600) -> Json:
    """Claim a Ready VM, wait until its phase follows, and return the claim."""
    claim = new_claim(seconds)
    patch = {"metadata": {"uid": vm["metadata"]["uid"]}, "spec": {"claim": claim}}
    (await stage.vms.merge(vm["metadata"]["name"], patch)).ok()
    await stage.in_phase(vm["metadata"]["name"], "Claimed")
    return claim


async def write_claim(stage: Stage, vm: Json, claim: Json, **fields: Any) -> None:
    """Write fields of a claim that is there."""
    (await stage.vms.merge(vm["metadata"]["name"], {"spec": {"claim": {"id": claim["id"], **fields}}})).ok()


def last_words(stage: Stage, kubectl: Kubectl, version: str, vm: Json) -> Json:
    """The last version of an object that is gone."""
    return [one for one in stage.replay(kubectl, version) if one["metadata"]["uid"] == vm["metadata"]["uid"]][-1]


async def test_the_machine_itself_says_which_claim_it_has(stage: Stage) -> None:
    vm, _ = await stage.filled(2)
    claim = await claimed(stage, vm)

    def tags() -> dict[str, str]:
        machine = next(one for one in stage.history() if one["id"] == vm["status"]["machineId"])
        return dict(machine["tags"])

    await until(lambda: tags().get("vmpool-claim") == claim["id"], deadline=DEADLINE, what="the machine is tagged")
    assert tags()["vmpool-uid"] == vm["metadata"]["uid"], "our other tags stay"


async def test_a_claim_by_kubectl_is_followed_and_the_pool_refills(stage: Stage, kubectl: Kubectl) -> None:
    vms = await stage.filled(2)
    name = vms[0]["metadata"]["name"]
    patch = json.dumps({"spec": {"claim": new_claim()}})
    kubectl("patch", "pvm", name, "-n", stage.namespace, "--type=merge", "--patch", patch)
    await stage.in_phase(name, "Claimed")
    await stage.full(2)
    status = await stage.status()
    assert status["claimedReplicas"] == 1
    assert status["replicas"] == 2
    assert len(stage.alive()) == 3
    (line,) = [line for line in kubectl("get", "pvm", "-n", stage.namespace).splitlines() if line.startswith(name)]
    assert " Claimed " in line
    assert f" {OWNER} " in line


async def test_a_claimed_vm_outlives_scaling_template_age_and_quiet_machines(stage: Stage, served: Operator) -> None:
    vm, other = await stage.filled(2, recycle={"readyTTL": "10h"})
    await claimed(stage, vm)
    await stage.change(replicas=0)
    await stage.full(0)
    await stage.change(replicas=1, template={"image": OTHER_IMAGE})
    await stage.full(1)
    name = vm["metadata"]["name"]
    (await stage.vms.merge(name, {"status": {"phaseSince": LONG_AGO}}, "status")).ok()
    stage.cloud.fate(vm["status"]["machineId"], "fail")
    await stage.looked(served)
    assert await stage.phase(name) == "Claimed"
    assert vm["status"]["machineId"] in stage.alive()
    assert other["status"]["machineId"] not in stage.alive()
    assert not (await stage.status()).get("recentFailures")


async def test_a_released_vm_is_destroyed(stage: Stage, kubectl: Kubectl) -> None:
    (vm,) = await stage.filled(1)
    version = await stage.version()
    claim = await claimed(stage, vm)
    await write_claim(stage, vm, claim, releasedAt=moment(0), endReason="Released")
    await stage.in_phase(vm["metadata"]["name"], "Gone")
    assert vm["status"]["machineId"] not in stage.alive()
    last = last_words(stage, kubectl, version, vm)
    assert last["status"]["reason"] == "ClaimEnded"
    assert OWNER in last["status"]["message"]
    await stage.full(1)


async def test_a_claim_that_expires_is_ended_and_its_vm_destroyed(stage: Stage, kubectl: Kubectl) -> None:
    (vm,) = await stage.filled(1)
    version = await stage.version()
    claim = await claimed(stage, vm, seconds=3)
    await stage.in_phase(vm["metadata"]["name"], "Gone")
    last = last_words(stage, kubectl, version, vm)
    assert last["spec"]["claim"]["endReason"] == "Expired"
    assert last["spec"]["claim"]["releasedAt"] >= claim["expiresAt"]
    assert last["status"]["phase"] == "Completed"
    assert vm["status"]["machineId"] not in stage.alive()


async def test_an_extension_before_the_end_wins(stage: Stage, served: Operator) -> None:
    (vm,) = await stage.filled(1)
    claim = await claimed(stage, vm, seconds=4)
    await write_claim(stage, vm, claim, expiresAt=moment(3600))
    await until(lambda: moment(0) > claim["expiresAt"], deadline=DEADLINE, what="the first end has passed")
    await stage.looked(served)
    assert await stage.phase(vm["metadata"]["name"]) == "Claimed"
    assert "releasedAt" not in (await stage.vm(vm["metadata"]["name"]))["spec"]["claim"]


async def test_a_claim_whose_machine_is_gone_ends_and_is_told(stage: Stage, served: Operator, kubectl: Kubectl) -> None:
    (vm,) = await stage.filled(1)
    version = await stage.version()
    await claimed(stage, vm)
    stage.cloud.fate(vm["status"]["machineId"], "vanish")
    name = vm["metadata"]["name"]
    await stage.in_phase(name, "Gone")
    last = last_words(stage, kubectl, version, vm)
    assert last["spec"]["claim"]["endReason"] == "MachineGone"
    assert vm["status"]["machineId"] in condition(last, "MachineGone")["message"]
    (failure,) = (await stage.status())["recentFailures"]
    assert failure["vm"] == name
    assert failure["errorClass"] == "MachineGone"
    assert "MachineGone" in {event["reason"] for event in await stage.events(stage.pool)}
    assert metric(served, "vmpool_vm_failures_total", pool=stage.pool, error_class="MachineGone") == 1
    await stage.full(1)


async def test_a_deleted_pool_waits_for_its_claims_and_says_for_whom(
    stage: Stage, served: Operator, kubectl: Kubectl
) -> None:
    first, second, _ = await stage.filled(3)
    claims = [await claimed(stage, vm) for vm in (first, second)]
    (await stage.pools.delete(stage.pool)).ok()
    message = await stage.pool_says("Ready", "False", "Draining")
    for vm in (first, second):
        assert f"{vm['metadata']['name']} ({OWNER})" in message
    assert "until they are released" in message
    held = machine_ids([first, second])
    await until(lambda: stage.alive() == held, deadline=DEADLINE, what="only claimed machines are left")

    await write_claim(stage, first, claims[0], releasedAt=moment(0), endReason="Released")
    await stage.in_phase(first["metadata"]["name"], "Gone")
    await stage.looked(served)
    assert stage.alive() == machine_ids([second])
    said = condition((await stage.pools.get(stage.pool)).ok(), "Ready")["message"]
    assert first["metadata"]["name"] not in said
    assert "waits for 1 claimed" in said

    version = await stage.version()
    await stage.change(deletionPolicy="Force")
    await stage.gone(stage.pools, stage.pool)
    assert last_words(stage, kubectl, version, second)["spec"]["claim"]["endReason"] == "Forced"
    assert not stage.alive()
    assert not await stage.vms_of()


async def test_a_deleted_claimed_vm_waits_for_its_claim(stage: Stage, served: Operator) -> None:
    (vm,) = await stage.filled(1)
    name = vm["metadata"]["name"]
    claim = await claimed(stage, vm)
    (await stage.vms.delete(name)).ok()
    await stage.looked(served)
    assert await stage.phase(name) == "Claimed"
    assert vm["status"]["machineId"] in stage.alive()
    await write_claim(stage, vm, claim, releasedAt=moment(0), endReason="Released")
    await stage.in_phase(name, "Gone")
    assert vm["status"]["machineId"] not in stage.alive()


async def test_a_claim_and_a_scale_down_have_one_winner(stage: Stage) -> None:
    vms = await stage.filled(8)
    await stage.change(replicas=0)
    won = []
    for vm in vms:
        patch = {"metadata": {"uid": vm["metadata"]["uid"]}, "spec": {"claim": new_claim()}}
        answer = await stage.vms.merge(vm["metadata"]["name"], patch)
        if answer.status == 200:
            won.append(vm)
        else:
            assert answer.status in (404, 422), answer.message
    await stage.full(0)
    kept = await stage.vms_of(phase="Claimed")
    assert names(kept) == names(won)
    assert machine_ids(kept) == stage.alive()
