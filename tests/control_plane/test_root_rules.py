"""What the API server itself refuses on a PooledVM: safety that rests on no leader, clock, cache or watch."""

import asyncio
import secrets
from typing import Any

import pytest

from tests.api import Answer, Api, Objects
from tests.objects import LATER, LONG_AGO, claim, vm
from vmpool.plan.lifecycle import Phase, may_become
from vmpool.plan.rules import pooledvm_rules

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("crds_installed")]

RULE = dict(zip("abcdefghi", pooledvm_rules(), strict=True))
"""The rules by their letters in the design."""

HELD = {"spec": {"claim": claim()}}
RELEASE = {"spec": {"claim": {"id": "one", "releasedAt": LATER, "endReason": "Released"}}}
EXTEND = {"spec": {"claim": {"id": "one", "expiresAt": "2027-01-01T00:00:00.000000Z"}}}

STATES = {
    "pending": (),
    "ready": (Phase.READY,),
    "ready-held": (Phase.READY, HELD),
    "ready-released": (Phase.READY, HELD, RELEASE),
    "claimed-held": (Phase.READY, HELD, Phase.CLAIMED),
    "claimed-released": (Phase.READY, HELD, Phase.CLAIMED, RELEASE),
    "quarantined": (Phase.QUARANTINED,),
    "completed": (Phase.COMPLETED,),
    "completed-released": (Phase.READY, HELD, RELEASE, Phase.COMPLETED),
}
"""Every state that a VM can be in, and the writes that bring it there."""
CLAIMED_STATES = [state for state in STATES if "-" in state]

RACES = 60


@pytest.fixture
def vms(api: Api, shared_namespace: str) -> Objects:
    return api.kind("pooledvms", shared_namespace)


def fresh() -> str:
    return f"web-{secrets.token_hex(4)}"


def to(phase: str) -> dict[str, Any]:
    return {"status": {"phase": phase}}


async def bring(vms: Objects, state: str) -> str:
    """Make a VM in one of STATES by legal writes alone, and return its name."""
    name = fresh()
    (await vms.create(vm(name))).ok()
    for write in STATES[state]:
        if isinstance(write, Phase):
            (await vms.merge(name, to(write), "status")).ok()
        else:
            (await vms.merge(name, write)).ok()
    return name


def refused(answer: Answer, *letters: str) -> None:
    """The answer is a refusal by (at least) these rules, which names their fields."""
    assert answer.status == 422, f"{answer.status}: {answer.body}"
    for letter in letters:
        assert RULE[letter].message in answer.message
        assert RULE[letter].field_path.removeprefix(".") in answer.fields


# The way that is meant.


async def test_the_whole_life_passes(vms: Objects) -> None:
    name = fresh()
    body = vm(name, claim=None)
    body["metadata"]["finalizers"] = ["vmpool.dev/machine"]
    (await vms.create(body)).ok()
    for write, where in [
        ({"status": {"machineId": "machine-1"}}, "status"),
        (to("Ready"), "status"),
        (HELD, ""),
        (to("Claimed"), "status"),
        (EXTEND, ""),
        ({"spec": {"claim": {"id": "one", "tags": {"job": "7"}}}}, ""),
        (RELEASE, ""),
        (to("Completed"), "status"),
    ]:
        (await vms.merge(name, write, where)).ok()
    (await vms.delete(name)).ok()
    stored = (await vms.get(name)).ok()
    assert stored["spec"]["claim"]["releasedAt"] == LATER
    (await vms.merge(name, {"metadata": {"finalizers": None}})).ok()
    assert (await vms.get(name)).status == 404


@pytest.mark.parametrize("state", STATES)
async def test_from_every_state_only_legal_phases_follow(vms: Objects, state: str) -> None:
    for after in Phase:
        name = await bring(vms, state)
        before = Phase((await vms.get(name)).ok()["status"]["phase"])
        legal = may_become(before, after)
        if after is not before and state in CLAIMED_STATES:
            legal = legal and (after is Phase.CLAIMED or (after is Phase.COMPLETED and state.endswith("released")))
        if after is not before and state not in CLAIMED_STATES:
            legal = legal and after is not Phase.CLAIMED
        answer = await vms.merge(name, to(after), "status")
        assert answer.status == (200 if legal else 422), f"{state} to {after}: {answer.message}"
        if not legal:
            assert "status.phase" in answer.fields


async def test_each_wrong_phase_is_refused_by_its_own_rule(vms: Objects) -> None:
    refused(await vms.merge(await bring(vms, "ready"), to("Claimed"), "status"), "f")
    refused(await vms.merge(await bring(vms, "ready"), to("Pending"), "status"), "e")
    refused(await vms.merge(await bring(vms, "ready-held"), to("Completed"), "status"), "d")
    refused(await vms.merge(await bring(vms, "claimed-held"), to("Completed"), "status"), "d")
    refused(await vms.merge(await bring(vms, "claimed-held"), to("Quarantined"), "status"), "d", "e")
    refused(await vms.merge(await bring(vms, "ready-held"), to("Quarantined"), "status"), "d")


async def test_a_phase_that_nobody_knows_is_refused_with_those_that_are(vms: Objects) -> None:
    answer = await vms.merge(await bring(vms, "ready"), to("Sleeping"), "status")
    assert answer.status == 422
    assert "status.phase" in answer.fields
    assert all(phase in answer.message for phase in Phase)


# Who may get a VM.


async def test_a_vm_is_not_born_claimed(vms: Objects) -> None:
    name = fresh()
    refused(await vms.create(vm(name, claim=claim())), "a")
    assert (await vms.get(name)).status == 404
    refused(await vms.apply(vm(name, claim=claim()), "somebody"), "a")


async def test_a_status_that_is_sent_along_does_not_let_a_vm_be_born_further(vms: Objects) -> None:
    name = fresh()
    stored = (await vms.create({**vm(name), **to("Ready")})).ok()
    assert stored["status"]["phase"] == "Pending"


@pytest.mark.parametrize("state", ["pending", "quarantined", "completed"])
async def test_only_a_ready_vm_can_be_claimed(vms: Objects, state: str) -> None:
    name = await bring(vms, state)
    refused(await vms.merge(name, HELD), "c")
    assert "claim" not in (await vms.get(name)).ok()["spec"]


@pytest.mark.parametrize("state", CLAIMED_STATES)
async def test_a_second_claim_is_refused(vms: Objects, state: str) -> None:
    name = await bring(vms, state)
    refused(await vms.merge(name, {"spec": {"claim": claim("two")}}), "b")
    assert (await vms.get(name)).ok()["spec"]["claim"]["id"] == "one"


async def test_a_claim_that_has_ended_cannot_be_a_first_claim(vms: Objects) -> None:
    name = await bring(vms, "ready")
    refused(await vms.merge(name, {"spec": {"claim": claim(releasedAt=LATER)}}), "c")


@pytest.mark.parametrize("write", [RELEASE, EXTEND], ids=["release", "extend"])
async def test_a_later_write_on_a_claim_does_not_claim_a_namesake(vms: Objects, write: dict[str, Any]) -> None:
    name = await bring(vms, "ready")
    answer = await vms.merge(name, write)
    assert answer.status == 422
    assert {"spec.claim.owner", "spec.claim.boundAt"} <= answer.fields
    assert "claim" not in (await vms.get(name)).ok()["spec"]


async def test_a_claim_that_comes_by_the_status_is_ignored(vms: Objects) -> None:
    name = await bring(vms, "ready")
    (await vms.merge(name, {**HELD, "status": {"message": "x"}}, "status")).ok()
    assert "claim" not in (await vms.get(name)).ok()["spec"]


async def test_a_phase_that_comes_by_the_object_is_ignored(vms: Objects) -> None:
    name = await bring(vms, "ready-held")
    (await vms.merge(name, to("Completed"))).ok()
    assert (await vms.get(name)).ok()["status"]["phase"] == "Ready"


# A claim stays what it is.


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"spec": {"claim": None}}, id="claim"),
        pytest.param({"spec": {"claim": {"id": None}}}, id="id"),
        pytest.param({"spec": {"claim": {"owner": None}}}, id="owner"),
        pytest.param({"spec": {"claim": {"boundAt": None}}}, id="boundAt"),
        pytest.param({"spec": {"claim": {"expiresAt": None}}}, id="expiresAt"),
        pytest.param({"spec": None}, id="spec"),
        pytest.param({"spec": {}, "status": None, "metadata": None}, id="metadata"),
    ],
)
@pytest.mark.parametrize("state", CLAIMED_STATES)
async def test_nothing_of_a_claim_can_be_set_to_null(vms: Objects, state: str, change: dict[str, Any]) -> None:
    name = await bring(vms, state)
    before = (await vms.get(name)).ok()
    answer = await vms.merge(name, change)
    assert answer.status in {400, 422}, answer.body
    assert (await vms.get(name)).ok() == before


@pytest.mark.parametrize("field", ["id", "owner", "boundAt"])
@pytest.mark.parametrize("state", CLAIMED_STATES)
async def test_id_owner_and_time_of_a_claim_never_change(vms: Objects, state: str, field: str) -> None:
    name = await bring(vms, state)
    value = "2026-01-01T00:00:01.000000Z" if field == "boundAt" else "mallory"
    refused(await vms.merge(name, {"spec": {"claim": {field: value}}}), "b")


@pytest.mark.parametrize("missing", ["spec", "claim", "claim.id"])
async def test_a_claim_cannot_be_replaced_away(vms: Objects, missing: str) -> None:
    name = await bring(vms, "claimed-held")
    body = (await vms.get(name)).ok()
    if missing == "spec":
        del body["spec"]
    elif missing == "claim":
        del body["spec"]["claim"]
    else:
        del body["spec"]["claim"]["id"]
    assert (await vms.put(body)).status == 422
    assert (await vms.get(name)).ok()["spec"]["claim"]["id"] == "one"


@pytest.mark.parametrize("path", ["/spec", "/spec/claim", "/spec/claim/id", "/spec/claim/owner"])
async def test_a_claim_cannot_be_removed_by_json_patch(vms: Objects, path: str) -> None:
    name = await bring(vms, "claimed-held")
    assert (await vms.json_patch(name, [{"op": "remove", "path": path}])).status == 422


async def test_a_claim_cannot_be_applied_over_or_away(vms: Objects) -> None:
    name = await bring(vms, "ready")
    (await vms.apply(vm(name, claim=claim()), "first")).ok()
    stolen = await vms.api.call(
        "PATCH",
        f"{vms.path}/{name}",
        vm(name, claim=claim("two", owner="mallory")),
        content="application/apply-patch+yaml",
        query={"fieldManager": "second", "force": "true"},
    )
    refused(stolen, "b")
    refused(await vms.apply(vm(name), "first"), "b")


@pytest.mark.parametrize("state", ["ready-released", "claimed-released", "completed-released"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"expiresAt": "2027-01-01T00:00:00.000000Z"}, id="extend"),
        pytest.param({"releasedAt": None}, id="take the release back"),
        pytest.param({"releasedAt": "2027-01-01T00:00:00.000000Z"}, id="release later"),
        pytest.param({"endReason": "Expired"}, id="another reason"),
        pytest.param({"tags": {"job": "7"}}, id="tags"),
    ],
)
async def test_an_ended_claim_is_frozen(vms: Objects, state: str, change: dict[str, Any]) -> None:
    name = await bring(vms, state)
    refused(await vms.merge(name, {"spec": {"claim": {"id": "one", **change}}}), "g")


@pytest.mark.parametrize("state", ["ready-held", "claimed-held"])
async def test_a_held_claim_is_extended_tagged_and_released(vms: Objects, state: str) -> None:
    name = await bring(vms, state)
    for write in (EXTEND, {"spec": {"claim": {"id": "one", "tags": {"job": "7"}}}}, RELEASE):
        (await vms.merge(name, write)).ok()


# The status cannot be emptied, and what a VM is never changes.


@pytest.mark.parametrize("state", [state for state in STATES if state != "pending"])
async def test_the_phase_cannot_be_emptied(vms: Objects, state: str) -> None:
    """Quarantined may go to Pending, which is what an absent phase means: a redrive, not a by-pass."""
    name = await bring(vms, state)
    status = (await vms.get(name)).ok()["status"]
    without = {key: value for key, value in status.items() if key != "phase"}
    answers = [
        await vms.merge(name, {"status": None}, "status"),
        await vms.merge(name, {"status": {"phase": None}}, "status"),
        await vms.json_patch(name, [{"op": "remove", "path": "/status"}], "status"),
        await vms.json_patch(name, [{"op": "remove", "path": "/status/phase"}], "status"),
    ]
    for missing in ({}, {"status": without}):
        body = (await vms.get(name)).ok()
        del body["status"]
        answers.append(await vms.put({**body, **missing}, "status"))
    for answer in answers:
        if state == "quarantined":
            assert answer.ok()["status"]["phase"] == "Pending"
        else:
            refused(answer, "e")


async def test_a_status_set_to_null_on_the_object_is_ignored(vms: Objects) -> None:
    name = await bring(vms, "claimed-held")
    before = (await vms.get(name)).ok()
    (await vms.merge(name, {"status": None})).ok()
    assert (await vms.get(name)).ok()["status"] == before["status"]


@pytest.mark.parametrize("field", ["pool", "poolUid", "provider"])
@pytest.mark.parametrize("value", ["other", None], ids=["changed", "removed"])
async def test_what_a_vm_belongs_to_never_changes(vms: Objects, field: str, value: str | None) -> None:
    name = await bring(vms, "ready")
    answer = await vms.merge(name, {"spec": {field: value}})
    assert answer.status == 422
    if value:
        refused(answer, "h")
    else:
        assert f"spec.{field}" in answer.fields


@pytest.mark.parametrize("value", ["machine-2", None, ""], ids=["changed", "removed", "emptied"])
async def test_a_machine_id_is_written_once(vms: Objects, value: str | None) -> None:
    name = await bring(vms, "pending")
    (await vms.merge(name, {"status": {"machineId": "machine-1"}}, "status")).ok()
    answer = await vms.merge(name, {"status": {"machineId": value}}, "status")
    assert answer.status == 422
    if value != "":
        refused(answer, "i")
    (await vms.merge(name, {"status": {"machineId": "machine-1", "phase": "Ready"}}, "status")).ok()


# Which object a write meant.


async def test_a_write_that_means_another_object_is_refused_by_its_uid(vms: Objects) -> None:
    name = await bring(vms, "ready")
    answer = await vms.merge(name, {"metadata": {"uid": "of-another"}, **HELD})
    assert answer.status == 422
    assert answer.fields == {"metadata.uid"}
    uid = (await vms.get(name)).ok()["metadata"]["uid"]
    (await vms.merge(name, {"metadata": {"uid": uid}, **HELD})).ok()


async def test_a_status_write_on_an_old_look_is_a_conflict(vms: Objects) -> None:
    name = await bring(vms, "ready")
    seen = (await vms.get(name)).ok()["metadata"]["resourceVersion"]
    (await vms.merge(name, HELD)).ok()
    (await vms.merge(name, RELEASE)).ok()
    answer = await vms.merge(name, {"metadata": {"resourceVersion": seen}, **to("Completed")}, "status")
    assert answer.status == 409
    assert (await vms.get(name)).ok()["status"]["phase"] == "Ready"


async def test_a_claim_wins_over_a_deletion_that_was_asked_for_before(vms: Objects) -> None:
    name = fresh()
    body = vm(name)
    body["metadata"]["finalizers"] = ["vmpool.dev/machine"]
    (await vms.create(body)).ok()
    (await vms.merge(name, to("Ready"), "status")).ok()
    assert (await vms.delete(name)).ok()["metadata"]["deletionTimestamp"]
    (await vms.merge(name, HELD)).ok()
    refused(await vms.merge(name, to("Completed"), "status"), "d")
    (await vms.merge(name, RELEASE)).ok()
    (await vms.merge(name, to("Completed"), "status")).ok()


@pytest.mark.parametrize("state", STATES)
async def test_our_finalizer_can_always_be_removed(vms: Objects, state: str) -> None:
    name = await bring(vms, state)
    (await vms.merge(name, {"metadata": {"finalizers": ["vmpool.dev/machine", "example.com/other"]}})).ok()
    (await vms.delete(name)).ok()
    path = "/metadata/finalizers/0"
    test = {"op": "test", "path": path, "value": "vmpool.dev/machine"}
    left = (await vms.json_patch(name, [test, {"op": "remove", "path": path}])).ok()
    assert left["metadata"]["finalizers"] == ["example.com/other"]
    assert (await vms.json_patch(name, [test, {"op": "remove", "path": path}])).status == 422
    (await vms.merge(name, {"metadata": {"finalizers": None}})).ok()
    assert (await vms.get(name)).status == 404


async def test_of_two_claims_and_an_end_exactly_one_wins(vms: Objects) -> None:
    """Nobody looks first: every write is blind, and all three are on their way at once."""

    async def race(number: int) -> tuple[str, list[Answer]]:
        name = await bring(vms, "ready")
        writes = [
            vms.merge(name, {"spec": {"claim": claim("one")}}),
            vms.merge(name, {"spec": {"claim": claim("two", boundAt=LONG_AGO)}}),
            vms.merge(name, to("Completed"), "status"),
        ]
        # A different one is sent first each time.
        turn = number % len(writes)
        return name, list(await asyncio.gather(*writes[turn:], *writes[:turn]))

    for name, answers in [await race(number) for number in range(RACES)]:
        assert sorted(answer.status for answer in answers) == [200, 422, 422], [a.message for a in answers]
        stored = (await vms.get(name)).ok()
        assert ("claim" in stored["spec"]) != (stored["status"]["phase"] == "Completed")
