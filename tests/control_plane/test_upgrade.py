"""A newer release's definitions over stored objects, and back again: nothing is lost, nothing gets stuck."""

import copy
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.api import Answer, Api, Objects
from tests.objects import FULL_SPECS, FULL_STATUSES, LATER, claim, pool, thing, vm
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.api.pool import VMPoolSpec, VMPoolStatus
from vmpool.api.vm import PooledVMSpec, PooledVMStatus
from vmpool.plan.crds import definitions
from vmpool.plan.lifecycle import SUCCESSORS
from vmpool.plan.rules import CLAIM_NOT_READY, pooledvm_rules, successors_map

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("crds_installed")]

Json = dict[str, Any]

NEW_PHASE = "Hibernated"
HELD = {"spec": {"claim": claim()}}
RELEASE = {"spec": {"claim": {"id": "one", "releasedAt": LATER}}}
SERVING_SECONDS = 30
NEWER_TABLE = successors_map().replace("'Claimed','Completed'", f"'Claimed','{NEW_PHASE}','Completed'")[:-1] + (
    f",'{NEW_PHASE}':['Ready','Completed']}}"
)


def newer() -> list[Json]:
    """The definitions of a release to come: a phase more, with its place in the order, and a field more."""
    made = copy.deepcopy(dict(definitions()))
    for one in made.values():
        properties = one["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
        properties["spec"]["properties"]["zone"] = {"type": "string", "maxLength": 63, "default": "north"}
        properties["status"]["properties"]["cost"] = {"type": "integer", "minimum": 0, "maximum": 9}
    root = made["pooledvms.vmpool.dev.yaml"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    root["properties"]["status"]["properties"]["phase"]["enum"].append(NEW_PHASE)
    for rule in root["x-kubernetes-validations"]:
        rule["rule"] = rule["rule"].replace(successors_map(), NEWER_TABLE)
    return list(made.values())


@dataclass(frozen=True)
class Releases:
    """Changes the definitions on the server, and waits until the server holds writers to them."""

    api: Api
    kubectl: Kubectl
    namespace: str

    async def upgrade(self) -> None:
        await self._install(newer(), 201)

    async def roll_back(self) -> None:
        await self._install(list(definitions().values()), 400)

    async def _install(self, wanted: list[Json], answer_to_zone: int) -> None:
        body = json.dumps({"apiVersion": "v1", "kind": "List", "items": wanted})
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=body)
        vms, pools = self.api.kind("pooledvms", self.namespace), self.api.kind("vmpools", self.namespace)
        for objects, probe in ((vms, vm("probe", zone="south")), (pools, pool("probe", zone="south"))):

            async def served(objects: Objects = objects, probe: Json = probe) -> bool:
                return (await objects.create(probe, dryRun="All")).status == answer_to_zone

            await until(served, deadline=SERVING_SECONDS, what="the other definitions")


@pytest.fixture
async def releases(api: Api, kubectl: Kubectl, namespace: str) -> AsyncIterator[Releases]:
    """The present definitions are back when the test ends, however it ends."""
    made = Releases(api, kubectl, namespace)
    yield made
    await made.roll_back()


@pytest.fixture
def vms(api: Api, namespace: str) -> Objects:
    return api.kind("pooledvms", namespace)


def to(phase: str) -> Json:
    return {"status": {"phase": phase}}


async def make(vms: Objects, *writes: Json) -> str:
    """Make a VM that our finalizer holds; a write of a status goes to the status."""
    body = vm(f"web-{secrets.token_hex(4)}")
    body["metadata"]["finalizers"] = ["vmpool.dev/machine"]
    name: str = (await vms.create(body)).ok()["metadata"]["name"]
    for write in writes:
        (await vms.merge(name, write, "status" if "status" in write else "")).ok()
    return name


async def hibernated(vms: Objects) -> str:
    return await make(vms, to("Ready"), {"spec": {"zone": "south"}}, {"status": {"phase": NEW_PHASE, "cost": 7}})


async def end(vms: Objects, name: str) -> Answer:
    """Delete an object and take our finalizer off, as the operator does at the end of every life."""
    (await vms.delete(name)).ok()
    path = "/metadata/finalizers/0"
    patch = [{"op": "test", "path": path, "value": "vmpool.dev/machine"}, {"op": "remove", "path": path}]
    (await vms.json_patch(name, patch)).ok()
    return await vms.get(name)


def test_the_newer_release_is_newer() -> None:
    (table,) = {
        rule["rule"]
        for one in newer()
        for rule in one["spec"]["versions"][0]["schema"]["openAPIV3Schema"].get("x-kubernetes-validations", ())
        if NEW_PHASE in rule["rule"]
    }
    assert table.count(f"'{NEW_PHASE}':['Ready','Completed']") == 2
    assert table.count(f"'Ready':['Claimed','{NEW_PHASE}','Completed','Quarantined']") == 2
    assert len(pooledvm_rules()) == 9
    assert NEW_PHASE not in SUCCESSORS


async def test_stored_objects_live_on_under_a_newer_release(vms: Objects, releases: Releases) -> None:
    lives = {
        await make(vms): [to("Ready"), HELD, to("Claimed"), RELEASE, to("Completed")],
        await make(vms, to("Ready")): [to(NEW_PHASE), to("Ready"), to("Quarantined"), to("Pending")],
        await make(vms, to("Ready"), HELD): [RELEASE, to("Completed")],
        await make(vms, to("Ready"), HELD, to("Claimed")): [RELEASE, to("Completed")],
        await make(vms, to("Quarantined")): [to("Completed")],
        await make(vms, to("Completed")): [],
    }
    before = {name: (await vms.get(name)).ok() for name in lives}
    await releases.upgrade()
    for name, life in lives.items():
        stored = (await vms.get(name)).ok()
        assert stored["spec"] == {**before[name]["spec"], "zone": "north"}
        assert stored["status"] == before[name]["status"]
        (await vms.merge(name, {"metadata": {"labels": {"touched": "yes"}}})).ok()
        (await vms.merge(name, {"status": {"message": "seen"}}, "status")).ok()
        for write in life:
            (await vms.merge(name, write, "status" if "status" in write else "")).ok()
        assert (await end(vms, name)).status == 404


async def test_the_rules_still_hold_under_a_newer_release(vms: Objects, releases: Releases) -> None:
    held, ready = await make(vms, to("Ready"), HELD), await make(vms, to("Ready"))
    await releases.upgrade()
    assert (await vms.merge(held, {"spec": {"claim": None}})).status == 422
    assert (await vms.merge(held, to(NEW_PHASE), "status")).status == 422
    (await vms.merge(ready, to(NEW_PHASE), "status")).ok()
    assert (await vms.merge(ready, HELD)).status == 422
    assert (await vms.merge(ready, to("Pending"), "status")).status == 422


async def test_an_object_in_a_phase_of_a_newer_release_is_not_stuck(vms: Objects, releases: Releases) -> None:
    await releases.upgrade()
    lives: list[tuple[str, list[Json]]] = [
        (await hibernated(vms), [{"metadata": {"labels": {"touched": "yes"}}}]),
        (await hibernated(vms), [{"status": {"message": "seen", "addresses": ["192.0.2.1"]}}]),
        (await hibernated(vms), [{"spec": {"requestId": "request-1"}}]),
        (await hibernated(vms), [to(NEW_PHASE)]),
        (await hibernated(vms), [to("Completed")]),
        (await hibernated(vms), [to("Ready"), HELD, to("Claimed"), RELEASE, to("Completed")]),
        (await hibernated(vms), [to("Quarantined"), to("Pending")]),
    ]
    await releases.roll_back()
    for name, writes in lives:
        for write in writes:
            (await vms.merge(name, write, "status" if "status" in write else "")).ok()
        assert (await end(vms, name)).status == 404


async def test_after_going_back_nothing_is_lost_that_we_know(vms: Objects, releases: Releases) -> None:
    await releases.upgrade()
    spec = {key: value for key, value in FULL_SPECS["pooledvms"].items() if key != "claim"}
    status = {**FULL_STATUSES["pooledvms"], "phase": "Ready"}
    (await vms.create(thing("PooledVM", "full", {**spec, "zone": "south"}))).ok()
    (await vms.merge("full", {"status": {**status, "cost": 7}}, "status")).ok()
    (await vms.merge("full", HELD)).ok()
    await releases.roll_back()
    (await vms.merge("full", {"metadata": {"labels": {"touched": "yes"}}})).ok()
    stored = (await vms.get("full")).ok()
    assert stored["spec"] == {**spec, **HELD["spec"]}
    assert stored["status"] == status


async def test_a_vm_in_an_unknown_phase_cannot_be_claimed(vms: Objects, releases: Releases) -> None:
    await releases.upgrade()
    name = await hibernated(vms)
    await releases.roll_back()
    answer = await vms.merge(name, HELD)
    assert answer.status == 422
    assert CLAIM_NOT_READY in answer.message
    assert (await vms.merge(name, to("Claimed"), "status")).status == 422
    assert (await vms.merge(await make(vms), to(NEW_PHASE), "status")).status == 422


async def test_our_models_read_what_a_newer_release_stored(api: Api, vms: Objects, releases: Releases) -> None:
    await releases.upgrade()
    pools = api.kind("vmpools", releases.namespace)
    (await pools.create(pool("web", zone="south", replicas=2))).ok()
    (await pools.merge("web", {"status": {"cost": 7, "readyReplicas": 2}}, "status")).ok()
    stored = (await pools.get("web")).ok()
    assert stored["spec"]["zone"] == "south"
    assert VMPoolSpec.model_validate(stored["spec"]).replicas == 2
    assert VMPoolStatus.model_validate(stored["status"]).ready_replicas == 2

    machine = (await vms.get(await hibernated(vms))).ok()
    assert machine["spec"]["zone"] == "south"
    assert PooledVMSpec.model_validate(machine["spec"]).pool == "web"
    assert PooledVMStatus.model_validate(machine["status"]).phase == NEW_PHASE
