"""On-demand requests: what is asked for, which VMClaim that makes, and what is told of it."""

from collections.abc import AsyncIterator
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.objects import LATER, LONG_AGO, Json
from tests.unit.gateway.frames import gateway_of, served
from tests.unit.gateway.things import held, put_claim, put_pool, put_vm, stored
from vmpool.api import keys
from vmpool.api.claim import MAX_REQUESTS, VMClaimSpec
from vmpool.engine.facts import pool_facts
from vmpool.gateway import notes, ondemand
from vmpool.gateway.auth.caller import ANONYMOUS, Caller, Identity, rest_identity, stamped
from vmpool.gateway.context import Gateway
from vmpool.gateway.notes import Note
from vmpool.gateway.ondemand import claim_body, spread
from vmpool.plan.snapshot import PoolFacts
from vmpool.settings import Settings

NOTE = Note("one", (("web", 2), ("db", 1)), "call-1")
O = "/api/v3/ondemandvm"  # noqa: E741


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made, _ = gateway_of()
    put_pool(made, "web")
    put_pool(made, "db")
    yield made
    await made.client.close()


def pool_of(name: str, namespace: str = "ci", **spec: Any) -> PoolFacts:
    body = {"template": {"image": "one"}, "providers": [{"name": "a"}], **spec}
    return pool_facts(stored({"metadata": {"name": name}, "spec": body}, f"{namespace}/{name}", namespace))


def requested(gateway: Gateway, note: Note = NOTE, caller: Caller = ANONYMOUS) -> Json:
    pools = {name: [pool_of(name)] for name, _ in note.names}
    return claim_body(gateway, caller, note, spread(pools, dict(note.names)))


async def told(gateway: Gateway, request_id: str = "one", method: str = "GET") -> tuple[int, Json]:
    async with served(*ondemand.ROUTES, gateway=gateway) as client:
        answer = await client.request(method, f"{O}/{request_id}")
        return answer.status, await answer.json()


async def ask(gateway: Gateway, body: Any) -> tuple[int, Json]:
    async with served(*ondemand.ROUTES, gateway=gateway) as client:
        answer = await client.post(O, json=body)
        return answer.status, await answer.json()


def given_vm(slot: int, name: str, **more: Any) -> Json:
    where = {"uid": f"uid-{name}", "name": name, "namespace": "ci", "pool": "web", "hostName": f"{name}.example.com"}
    return {"slot": slot, **where, **more}


# --- the VMClaim --------------------------------------------------------------------------------------------------


async def test_the_claim_is_one_that_the_api_takes(gateway: Gateway) -> None:
    body = requested(gateway)
    assert body["metadata"] == {
        "name": "od-7692c3ad3540bb803c020b3aee66cd8887123234",
        "namespace": "default",
        "labels": {keys.LABEL_ONDEMAND: "true"},
        "annotations": {keys.ANNOTATION_ONDEMAND: NOTE.text()},
    }
    spec = VMClaimSpec.model_validate(body["spec"])
    assert [(one.namespace, one.pool, one.count) for one in spec.requests] == [("ci", "web", 2), ("ci", "db", 1)]
    assert (spec.requester, spec.requester_groups) == ("vmpool:anonymous", ("vmpool:rest",))
    assert (spec.deadline, spec.ttl_after_finished) == (timedelta(minutes=5), timedelta(days=1))


IDS = st.text(min_size=1, max_size=notes.MAX_ID)


@given(IDS, st.lists(st.tuples(st.text(max_size=20), st.integers(1, 10)), max_size=10), st.text(max_size=20))
def test_notes_are_read_as_they_were_written(request_id: str, names: list[tuple[str, int]], call: str) -> None:
    note = Note(request_id, tuple(names), call)
    assert notes.read(note.text()) == note
    assert notes.claim_name(request_id) == notes.claim_name(note.id)


@given(st.one_of(st.text(max_size=60), st.sampled_from(["[]", "7", '{"id": 1}', '{"names": 5}', "[" * 100_000])))
def test_what_no_gateway_wrote_is_no_note(text: str) -> None:
    assert notes.read(text) is None


def test_users_of_kubernetes_are_stamped_and_others_stay() -> None:
    assert stamped(rest_identity("alice", ("dev",))) == rest_identity("alice", ("dev",))
    kubernetes = Identity("alice", "alice", ("dev", "x" * 250, "system:authenticated"))
    assert stamped(kubernetes) == Identity(
        "alice",
        "vmpool:kubernetes:alice",
        (keys.REST_GROUP, "vmpool:kubernetes:dev", "vmpool:kubernetes:system:authenticated"),
    )
    assert len(stamped(Identity("bob", "bob", tuple(map(str, range(100))))).groups) == 64


def test_a_user_of_kubernetes_is_never_taken_for_one_of_another_provider() -> None:
    ours = rest_identity("alice", ("dev",))
    theirs = stamped(Identity("alice", "alice", ("dev",)))
    assert theirs.user != ours.user
    assert set(theirs.groups) & set(ours.groups) == {keys.REST_GROUP}


async def test_a_namespace_that_nobody_looks_at_has_no_requests(gateway: Gateway) -> None:
    gateway.settings = Settings(namespace="home", watch_namespace="ci")
    made = [await ask(gateway, {"web": "1"}), await told(gateway, "web+web", "POST")]
    made += [await told(gateway), await told(gateway, "one", "DELETE")]
    for status, body in made:
        assert (status, body["ok"]) == (501, False)
        assert "namespace home" in body["error"]
        assert "only ci is served" in body["error"]
    for namespace in ("", "home"):
        gateway.settings = Settings(namespace="home", watch_namespace=namespace)
        assert (await told(gateway))[0] == 404


COUNTS = st.dictionaries(st.sampled_from("abcdefghij"), st.integers(1, 10), min_size=1, max_size=MAX_REQUESTS)


@given(COUNTS, st.integers(1, 4), st.integers(0, 2**32))
def test_every_vm_is_asked_of_a_pool_that_has_the_name(counts: dict[str, int], pools: int, seed: int) -> None:
    known = {name: [pool_of(f"{name}{number}") for number in range(pools)] for name in counts}
    made = spread(known, counts, Random(seed))
    assert sum(map(len, made)) <= MAX_REQUESTS
    for (name, count), shares in zip(counts.items(), made, strict=True):
        assert sum(given for _, given in shares) == count
        assert {pool.name for pool, _ in shares} <= {pool.name for pool in known[name]}


def test_a_paused_pool_gives_only_where_it_is_the_only_one() -> None:
    paused, open_ = pool_of("paused", paused=True), pool_of("open")
    for seed in range(20):
        made = spread({"any": [paused, open_], "web": [paused]}, {"any": 3, "web": 1}, Random(seed))
        assert made == [[(open_, 3)], [(paused, 1)]]


def test_weights_draw() -> None:
    light, heavy = (pool_of(name, claims={"weight": weight}) for name, weight in (("light", 1), ("heavy", 99)))
    (shares,) = spread({"any": [light, heavy]}, {"any": 100}, Random(7))
    assert {pool.name: count for pool, count in shares}["heavy"] > 90


# --- what is told of it -------------------------------------------------------------------------------------------

WAITING = {"web": {"ready": "0", "pending": "2"}, "db": {"ready": "0", "pending": "1"}}
FAILED = "The request failed to provision instances within the configured ondemand_request_ttl '5'"
ALL = [given_vm(0, "a"), given_vm(1, "b"), given_vm(2, "c")]
HOSTS = {"web": {"hostname": ["a.example.com", "b.example.com"]}, "db": {"hostname": ["c.example.com"]}}
ENDED = [{**vm, "endReason": "Expired"} for vm in ALL]


@pytest.mark.parametrize(
    ("status", "code", "rest"),
    [
        pytest.param({}, 202, {"ready": False, **WAITING}, id="just made"),
        pytest.param({"phase": "Pending", "position": "3"}, 202, {"ready": False, **WAITING}, id="waits"),
        pytest.param({"phase": "Bound", "vms": ALL[::-1]}, 200, {"ready": True, **HOSTS}, id="filled, in any order"),
        pytest.param({"phase": "Released", "vms": ENDED}, 200, {"ready": True, **HOSTS}, id="given back"),
        pytest.param(
            {"phase": "Failed", "boundAt": LONG_AGO, "vms": ENDED}, 200, {"ready": True, **HOSTS}, id="machines gone"
        ),
        pytest.param(
            {"phase": "Failed", "reason": "DeadlinePassed", "message": "no VM was ready"},
            200,
            {"ready": False, "message": f"{FAILED}: no VM was ready"},
            id="too late",
        ),
        pytest.param({"phase": "Failed"}, 200, {"ready": False, "message": FAILED}, id="no reason told"),
    ],
)
async def test_what_became_of_it(gateway: Gateway, status: Json, code: int, rest: Json) -> None:
    put_claim(gateway, requested(gateway), status)
    assert await told(gateway) == (code, {"ok": True, "request_id": "one", **rest})


async def test_vms_count_as_ready_as_soon_as_they_are_bound(gateway: Gateway) -> None:
    body = requested(gateway)
    uid = put_claim(gateway, body, {"phase": "Pending", "vms": ALL[2:]})["metadata"]["uid"]
    put_vm(gateway, "web-a", phase="Ready", claim=held(id=uid, slot=1))
    put_vm(gateway, "web-b", phase="Claimed", claim=held(id=uid, slot=0, releasedAt=LATER))
    code, answer = await told(gateway)
    assert code == 202
    assert (answer["web"], answer["db"]) == ({"ready": "1", "pending": "1"}, {"ready": "1", "pending": "0"})


async def test_a_claim_of_that_name_with_another_note_is_no_request(gateway: Gateway) -> None:
    body = requested(gateway)
    body["metadata"]["annotations"][keys.ANNOTATION_ONDEMAND] = Note("two", NOTE.names).text()
    put_claim(gateway, body)
    assert (await told(gateway))[0] == 404


async def test_a_claim_of_another_namespace_is_no_request(gateway: Gateway) -> None:
    body = requested(gateway)
    body["metadata"]["namespace"] = "elsewhere"
    put_claim(gateway, body)
    assert (await told(gateway))[0] == 404


# --- after its deletion -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["Pending", "Bound"])
async def test_a_deletion_that_the_watch_tells_is_remembered(gateway: Gateway, phase: str) -> None:
    raw = put_claim(gateway, requested(gateway), {"phase": phase})
    gateway.claims.saw_deleted(raw["metadata"]["uid"])
    assert await told(gateway) == (
        200,
        {"ok": True, "request_id": "one", "ready": False, "message": "The request has been deleted"},
    )
    assert await told(gateway, method="DELETE") == (
        200,
        {"ok": True, "message": "the request has already been deleted"},
    )
    status, body = await ask(gateway, {"web": 1, "request_id": "one"})
    assert (status, body["message"]) == (409, "request_id 'one' has already been created")


@pytest.mark.parametrize("phase", ["Released", "Expired", "Failed"])
async def test_a_request_whose_time_is_over_is_unknown(gateway: Gateway, phase: str) -> None:
    raw = put_claim(gateway, requested(gateway), {"phase": phase})
    gateway.claims.saw_deleted(raw["metadata"]["uid"])
    assert (await told(gateway))[0] == 404


async def test_one_that_is_held_back_while_it_is_deleted_is_deleted(gateway: Gateway) -> None:
    put_claim(gateway, requested(gateway), {"phase": "Bound"}, deletionTimestamp=LATER, finalizers=["some/body"])
    assert (await told(gateway))[1]["message"] == "The request has been deleted"
    assert (await told(gateway, method="DELETE"))[1]["message"] == "the request has already been deleted"


async def test_of_too_many_deleted_ones_the_first_is_forgotten() -> None:
    gateway, _ = gateway_of(ondemand_deleted_entries=2)
    for name in ("one", "two", "three"):
        gateway.deleted_requests.remember(name)
    assert [name in gateway.deleted_requests for name in ("one", "two", "three")] == [False, True, True]
    await gateway.client.close()


async def test_after_its_time_a_deleted_one_is_forgotten() -> None:
    gateway, _ = gateway_of(ondemand_kept_seconds=0.0)
    gateway.deleted_requests.remember("one")
    gateway.deleted_requests._deleted["one"] -= 1
    assert "one" not in gateway.deleted_requests
    await gateway.client.close()


# --- refused before anything is written: there is no server behind these -------------------------------------------


@pytest.mark.parametrize("request_id", ["", "a/b", ".", "..", "a\nb", "\x00", "x" * 129, 5, True, [], {}, "a\u202eb"])
async def test_ids_that_no_path_can_hold(gateway: Gateway, request_id: Any) -> None:
    status, body = await ask(gateway, {"web": 1, "request_id": request_id})
    assert status == 400
    assert body["message"].startswith("request_id must be 1 to 128 printable characters")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        pytest.param(dict.fromkeys("abcdefghijk", 10), 404, "", id="unknown names first"),
        pytest.param({"web": 11}, 403, "exceeds the maximum 10", id="too many of one"),
        pytest.param({"web": "9" * 30}, 400, "VM count", id="no number that can be meant"),
        pytest.param({"request_id": "x"}, 404, "", id="nothing asked"),
    ],
)
async def test_what_is_refused(gateway: Gateway, body: Json, status: int, words: str) -> None:
    answer = await ask(gateway, body)
    assert answer[0] == status
    assert words in answer[1].get("message", "")


async def test_more_pools_than_a_claim_can_name(gateway: Gateway) -> None:
    names = [f"pool-{number}" for number in range(MAX_REQUESTS + 1)]
    for name in names:
        put_pool(gateway, name)
    status, body = await ask(gateway, dict.fromkeys(names, 1))
    assert (status, body["message"]) == (403, "requested amount of pools exceeds the maximum 10")
    status, body = await ask(gateway, dict.fromkeys([*names, "web", "db"], 10))
    assert (status, body["message"]) == (
        403,
        "requested amount of instances exceeds the maximum 100 of all pools together",
    )


async def test_another_users_request_is_not_deleted(gateway: Gateway) -> None:
    put_claim(gateway, requested(gateway, caller=Caller(rest_identity("alice"))))
    status, body = await told(gateway, method="DELETE")
    assert (status, body) == (403, {"ok": False, "error": "only the user who made a request can delete it"})
