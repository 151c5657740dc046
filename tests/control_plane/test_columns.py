"""What people see: `kubectl get` answers "is it fine, and why not" in one line of an ordinary terminal."""

from typing import Any

import pytest

from tests.api import TABLE, Api, Objects
from tests.objects import (
    CONDITION,
    FULL_SPECS,
    FULL_STATUSES,
    LATER,
    LONG_AGO,
    claim,
    pool,
    provider,
    thing,
    vm,
    vm_claim,
)
from tests.planes import Kubectl
from vmpool.api import crd, keys

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("crds_installed")]

WIDTH = 120
POOL_NAME = "debian-12-x86-64-large"
VM_NAME = f"{POOL_NAME}-k7x2m9qa"
PROVIDER_NAME = "libvirt-rack-12-host-7"
HOLDER = "jenkins"
LONG_HOLDER = "vmpool:jenkins-agents"
RELIABILITY = {
    "deadletterqueues": "failures-of-production",
    "deadletters": f"{VM_NAME}-pending-1",
    "purgepolicies": "conservative-for-production",
    "healthpolicies": "conservative-for-production",
}
"""Names of the objects of queue reliability, by plural."""


def conditions(reason: str) -> list[dict[str, Any]]:
    return [
        {**CONDITION, "status": "False", "reason": reason, "message": "the provider refuses our credentials"},
        {**CONDITION, "type": "Stalled", "reason": reason},
    ]


@pytest.fixture
async def stored(api: Api, namespace: str) -> str:
    """A stalled pool, a provider in trouble, a VM in each phase but Pending, a claim that is served, one that waits."""
    pools, providers = api.kind("vmpools", namespace), api.kind("vmproviders", namespace)
    (await pools.create(pool(POOL_NAME, replicas=5000, maxVMs=10000))).ok()
    counts = {"desiredReplicas": 5000, "readyReplicas": 4321, "pendingReplicas": 100, "claimedReplicas": 4999}
    trouble = conditions("ProviderUnavailable")
    (await pools.merge(POOL_NAME, {"status": {**counts, "conditions": trouble}}, "status")).ok()

    (await providers.create(provider(PROVIDER_NAME))).ok()
    seen = {"machines": 9999, "circuit": "HalfOpen", "conditions": trouble, "identity": "simcloud-1"}
    (await providers.merge(PROVIDER_NAME, {"status": seen}, "status")).ok()

    vms = api.kind("pooledvms", namespace)
    await store_vm(vms, f"{VM_NAME[:-1]}1", phase="Ready", addresses=["192.168.100.101", "2001:db8::1"])
    await store_vm(vms, f"{VM_NAME[:-1]}2", phase="Quarantined", reason="TemplateChanged")
    await store_vm(vms, f"{VM_NAME[:-1]}3", phase="Completed", reason="ProviderDeleted")
    await store_vm(vms, f"{VM_NAME[:-1]}4", phase="Ready", addresses=["192.168.100.102"])
    (await vms.merge(f"{VM_NAME[:-1]}4", {"spec": {"claim": claim(owner=HOLDER)}})).ok()
    (await vms.merge(f"{VM_NAME[:-1]}4", {"status": {"phase": "Claimed"}}, "status")).ok()

    claims = api.kind("vmclaims", namespace)
    slot = {"slot": 0, "uid": "uid-of-vm", "name": VM_NAME, "namespace": namespace, "pool": POOL_NAME}
    slot |= {"hostName": VM_NAME, "address": "192.168.100.102"}
    bound = {"phase": "Bound", "reason": "Bound", "vms": [slot], "expiresAt": LATER}
    for name, seen in (("build-7", bound), ("build-8", {"reason": "NothingReady", "position": "101-1000"})):
        (await claims.create(vm_claim(name))).ok()
        (await claims.merge(name, {"status": seen}, "status")).ok()
    for plural, name in RELIABILITY.items():
        objects = api.kind(plural, namespace)
        kind = next(one.name for one in crd.KINDS if one.plural == plural)
        (await objects.create(thing(kind, name, FULL_SPECS[plural]))).ok()
        (await objects.merge(name, {"status": FULL_STATUSES[plural]}, "status")).ok()
    return namespace


async def store_vm(vms: Objects, name: str, **status: Any) -> None:
    (await vms.create(vm(name, pool=POOL_NAME, provider=PROVIDER_NAME))).ok()
    (await vms.merge(name, {"status": status}, "status")).ok()


async def table(api: Api, namespace: str, plural: str) -> list[dict[str, Any]]:
    """The rows of the server's table, without the columns that only `-o wide` shows."""
    path = api.kind(plural, namespace).path
    body = (await api.call("GET", path, accept=TABLE)).ok()
    heads = [(index, one["name"]) for index, one in enumerate(body["columnDefinitions"]) if not one["priority"]]
    return [{name: row["cells"][index] for index, name in heads} for row in body["rows"]]


async def test_a_pool_says_what_it_has_and_why_not_more(api: Api, stored: str) -> None:
    (row,) = await table(api, stored, "vmpools")
    assert row.pop("Age")
    assert row == {
        "Name": POOL_NAME,
        "Desired": 5000,
        "Ready": 4321,
        "Pending": 100,
        "Claimed": 4999,
        "Status": "ProviderUnavailable",
        "Stalled": "True",
    }


async def test_a_vm_says_where_it_is_and_who_has_it(api: Api, stored: str) -> None:
    ready, quarantined, completed, claimed = await table(api, stored, "pooledvms")
    assert list(ready) == ["Name", "Phase", "Address", "Owner", "Reason", "Age"]
    assert (ready["Phase"], ready["Address"], ready["Owner"]) == ("Ready", "192.168.100.101", None)
    assert (quarantined["Phase"], quarantined["Reason"]) == ("Quarantined", "TemplateChanged")
    assert (completed["Phase"], completed["Reason"]) == ("Completed", "ProviderDeleted")
    assert (claimed["Phase"], claimed["Owner"]) == ("Claimed", HOLDER)


async def test_a_provider_says_whether_it_answers(api: Api, stored: str) -> None:
    (row,) = await table(api, stored, "vmproviders")
    assert row.pop("Age")
    assert row == {
        "Name": PROVIDER_NAME,
        "Type": "simulated",
        "Machines": 9999,
        "Circuit": "HalfOpen",
        "Status": "ProviderUnavailable",
        "Stalled": "True",
    }


async def test_a_wish_says_what_came_of_it(api: Api, stored: str) -> None:
    bound, waits = await table(api, stored, "vmclaims")
    assert list(bound) == ["Name", "Phase", "VM", "Address", "Position", "Reason", "Age"]
    assert (bound["Phase"], bound["VM"], bound["Address"]) == ("Bound", VM_NAME, "192.168.100.102")
    assert (waits["Phase"], waits["Position"], waits["Reason"]) == ("Pending", "101-1000", "NothingReady")


async def test_a_queue_says_how_much_it_holds_and_what_is_wrong_most_often(api: Api, stored: str) -> None:
    (row,) = await table(api, stored, "deadletterqueues")
    assert list(row) == ["Name", "Entries", "Oldest", "Cause", "Times", "Status", "Age"]
    assert (row["Entries"], row["Cause"], row["Times"]) == (3, "PendingTimeout", 3)


async def test_a_letter_says_where_its_vm_was_and_what_became_of_it(api: Api, stored: str) -> None:
    (row,) = await table(api, stored, "deadletters")
    assert list(row) == ["Name", "Queue", "Cause", "Retries", "Status", "Failed"]
    assert (row["Queue"], row["Cause"], row["Status"]) == ("pending", "PendingTimeout", "Redriven")


async def test_policies_say_what_they_found(api: Api, stored: str) -> None:
    (purge,) = await table(api, stored, "purgepolicies")
    assert (purge["Dry-Run"], purge["Found"], purge["Purged"]) == (True, 1, 0)
    (health,) = await table(api, stored, "healthpolicies")
    assert (health["Health"], health["Pools"]) == ("degraded", 2)


async def test_a_claim_shows_its_end_in_the_wide_table(api: Api, kubectl: Kubectl, stored: str) -> None:
    wide = kubectl("get", "pvm", f"{VM_NAME[:-1]}4", "-n", stored, "-o", "wide")
    assert LATER in wide
    assert POOL_NAME in wide.split()
    assert PROVIDER_NAME in wide.split()
    assert LONG_AGO not in wide


@pytest.mark.parametrize("names", [*(kind.short for kind in crd.KINDS), "vmp,pvm,vmprov", keys.CATEGORY])
async def test_a_line_fits_a_terminal(kubectl: Kubectl, stored: str, names: str) -> None:
    lines = kubectl("get", names, "-n", stored).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= WIDTH, "\n".join(lines)


async def test_a_line_with_a_long_owner_fits_too(api: Api, kubectl: Kubectl, stored: str) -> None:
    vms = api.kind("pooledvms", stored)
    (await vms.merge(f"{VM_NAME[:-1]}1", {"spec": {"claim": claim(owner=LONG_HOLDER)}})).ok()
    lines = kubectl("get", "pvm", "-n", stored).splitlines()
    assert any(LONG_HOLDER in line for line in lines)
    assert max(map(len, lines)) <= WIDTH, "\n".join(lines)


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.plural) for kind in crd.KINDS])
async def test_every_column_shows_something_of_a_full_object(api: Api, namespace: str, kind: crd.Kind) -> None:
    """A column whose path is wrong would be empty for ever, and nobody would be told."""
    objects = api.kind(kind.plural, namespace)
    spec = {key: value for key, value in FULL_SPECS[kind.plural].items() if key != "claim"}
    (await objects.create(thing(kind.name, "full", spec))).ok()
    status = {**FULL_STATUSES[kind.plural], "conditions": [CONDITION, {**CONDITION, "type": "Stalled"}]}
    (await objects.merge("full", {"status": status}, "status")).ok()
    if kind is crd.VM:
        (await objects.merge("full", {"spec": {"claim": claim()}})).ok()

    body = (await api.call("GET", objects.path, accept=TABLE)).ok()
    cells = dict(zip((one["name"] for one in body["columnDefinitions"]), body["rows"][0]["cells"], strict=True))
    assert list(cells) == ["Name", *(column.name for column in kind.columns)]
    assert not [name for name, cell in cells.items() if cell in (None, "", "<unknown>")]
