"""Counts that follow the mirror, and the status made of them."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.objects import LATER
from tests.unit.gateway.frames import gateway_of, served
from tests.unit.gateway.things import held, put_pool, put_vm, vm_object
from vmpool.engine.facts import vm_facts
from vmpool.gateway import status
from vmpool.gateway.context import Gateway
from vmpool.gateway.status import status_document
from vmpool.gateway.tally import Place, Tally, place
from vmpool.kube.client import Client
from vmpool.kube.kinds import POOLEDVMS
from vmpool.kube.mirror import Mirror, MirrorSettings, Selection

MADE = {"name": "create", "startedAt": LATER, "finishedAt": LATER}
ENDED = {"releasedAt": LATER, "endReason": "Released"}


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made, _ = gateway_of()
    yield made
    await made.client.close()


@pytest.mark.parametrize(
    ("phase", "more", "where"),
    [
        pytest.param("Pending", {}, Place.CLONING, id="being cloned"),
        pytest.param("Pending", {"status": {"steps": [MADE]}}, Place.BOOTING, id="booting"),
        pytest.param("Pending", {"adopt": {"machineId": "m"}}, Place.CLONING, id="being taken in"),
        pytest.param("Ready", {}, Place.READY, id="ready"),
        pytest.param("Ready", {"claim": held()}, Place.RUNNING, id="handed out before the phase follows"),
        pytest.param("Claimed", {"claim": held()}, Place.RUNNING, id="running"),
        pytest.param("Claimed", {"claim": held(**ENDED)}, Place.COMPLETED, id="given back"),
        pytest.param("Ready", {"claim": held(**ENDED)}, Place.COMPLETED, id="given back at once"),
        pytest.param("Completed", {}, Place.COMPLETED, id="completed"),
        pytest.param("Quarantined", {}, None, id="kept for a human"),
        pytest.param("Napping", {}, None, id="of a newer release"),
    ],
)
def test_every_vm_counts_in_one_place(phase: str, more: dict[str, Any], where: Place | None) -> None:
    assert place(vm_facts(vm_object("web-a", phase=phase, **more))) == where


def test_a_ready_vm_that_is_being_deleted_is_not_ready() -> None:
    raw = vm_object("web-a")
    raw["metadata"]["deletionTimestamp"] = LATER
    assert place(vm_facts(raw)) == Place.COMPLETED


PHASES = st.sampled_from(["Pending", "Ready", "Claimed", "Completed", "Quarantined", "Napping", "gone"])
NEWS = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["web", "db"]), PHASES, st.booleans()), max_size=60)


@given(NEWS)
def test_counts_are_those_of_a_recount(news: list[tuple[str, str, str, bool]]) -> None:
    client: Any = Client.__new__(Client)
    vms = Mirror(client, Selection(POOLEDVMS), vm_facts, MirrorSettings())
    tally = Tally(vms)
    gone = Counter[str]()
    for name, pool, phase, claimed in news:
        # A uid never comes back: what follows a deletion is another VM.
        vm = f"{pool}-{name}-{gone[name + pool]}"
        if phase == "gone":
            vms.saw_deleted(f"uid-{vm}")
            gone[name + pool] += 1
        else:
            vms.saw(vm_object(vm, pool, phase, **({"claim": held()} if claimed else {})))
        for of in ("web", "db"):
            alive = [entry.fact for entry in vms if entry.fact is not None and entry.fact.pool == of]
            places = Counter(found for found in map(place, alive) if found is not None)
            assert tally.of(f"ci/{of}") == places


def test_pools_without_vms_cost_nothing() -> None:
    client: Any = Client.__new__(Client)
    vms = Mirror(client, Selection(POOLEDVMS), vm_facts, MirrorSettings())
    tally = Tally(vms)
    vms.saw(vm_object("web-a"))
    vms.saw_deleted("uid-web-a")
    assert not tally._pools


async def test_the_whole_status(gateway: Gateway) -> None:
    put_pool(gateway, "web", replicas=3, aliases=["debian"])
    put_pool(gateway, "db", replicas=1)
    put_vm(gateway, "web-a")
    put_vm(gateway, "web-b", phase="Claimed", claim=held())
    put_vm(gateway, "web-c", phase="Pending")
    put_vm(gateway, "web-d", phase="Pending", status={"steps": [MADE]})
    put_vm(gateway, "web-e", phase="Completed")
    made = status_document(gateway, None)
    uptime = made["status"].pop("uptime")
    nothing = {"duration": {"average": 0.0, "min": 0.0, "max": 0.0, "total": 0.0}, "count": {"total": 0}}
    assert uptime >= 0
    assert made == {
        "boot": nothing,
        "capacity": {"current": 1, "total": 4, "percent": 25.0},
        "clone": nothing,
        "pools": {
            "db": {"ready": 0, "running": 0, "pending": 0, "max": 1, "lastBoot": ""},
            "web": {"ready": 1, "running": 1, "pending": 2, "max": 3, "lastBoot": "", "alias": ["debian"]},
        },
        "queue": {
            "requested": 0,
            "pending": 2,
            "cloning": 1,
            "booting": 1,
            "ready": 1,
            "running": 1,
            "completed": 1,
            "total": 5,
        },
        "status": {"ok": False, "message": "Found 1 empty pools.", "empty": ["db"]},
    }
    assert list(made) == sorted(made)


async def test_pools_that_want_no_vms_are_not_empty(gateway: Gateway) -> None:
    put_pool(gateway, "web", replicas=0)
    put_pool(gateway, "held")
    assert status_document(gateway, ["pools"])["status"]["ok"] is True


async def test_a_size_that_others_own_is_the_present_one(gateway: Gateway) -> None:
    raw = put_pool(gateway, "web")
    raw["status"] = {"desiredReplicas": 7, "waitingReplicas": 2}
    raw["metadata"]["resourceVersion"] = "1000000"
    gateway.pools.saw(raw)
    made = status_document(gateway, ["capacity", "queue"])
    assert made["capacity"] == {"current": 0, "total": 7, "percent": 0.0}
    assert made["queue"]["requested"] == 2


async def test_only_the_pools_view_looks_for_empty_ones(gateway: Gateway) -> None:
    put_pool(gateway, "web", replicas=3)
    assert status_document(gateway, ["capacity"])["status"]["ok"] is True
    assert set(status_document(gateway, ["capacity", "nonsense"])) == {"capacity", "status"}


async def test_the_younger_of_two_namesakes_is_shown_by_its_whole_name(gateway: Gateway) -> None:
    put_pool(gateway, "web", "beta", created="2026-01-01T00:00:00Z", replicas=1)
    put_pool(gateway, "web", "alpha", created="2026-01-02T00:00:00Z", replicas=2)
    assert {name: pool["max"] for name, pool in status_document(gateway, ["pools"])["pools"].items()} == {
        "web": 1,
        "alpha_web": 2,
    }


async def test_vms_of_pools_that_are_gone_do_not_count(gateway: Gateway) -> None:
    put_pool(gateway, "web", replicas=1)
    put_vm(gateway, "web-a", phase="Claimed", claim=held())
    put_vm(gateway, "old-a", of="old", phase="Claimed", claim=held())
    async with served(*status.ROUTES, gateway=gateway) as client:
        answer = await client.get("/api/v3/totalrunning")
        assert await answer.json() == {"running": 1}


@pytest.mark.parametrize("asked", ["web", "debian", "ci_web", "nowhere,debian"])
async def test_poolstat_takes_every_name_of_a_pool(gateway: Gateway, asked: str) -> None:
    put_pool(gateway, "web", replicas=3, aliases=["debian"])
    put_pool(gateway, "db", replicas=3)
    put_vm(gateway, "web-a")
    async with served(*status.ROUTES, gateway=gateway) as client:
        answer = await client.get(f"/api/v3/poolstat?pool={asked}")
        assert await answer.json() == {"pools": {"web": {"max": 3, "alias": ["debian"], "ready": 1}}}
