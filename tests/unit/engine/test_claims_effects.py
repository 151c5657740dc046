"""What the effects of the queue do with an answer of the server that differs from the picture that was decided on."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.plan.queues import a_claim
from vmpool.engine.absence import DEFINITION, Absence
from vmpool.engine.claimeffects import ClaimEffects
from vmpool.engine.claimwrites import remove, write_status
from vmpool.engine.facts import claim_facts, vm_facts
from vmpool.engine.world import BY_CLAIM, VM_INDEXES
from vmpool.engine.writes import end_claim
from vmpool.kube.errors import Conflict, NotFound, Unreachable
from vmpool.kube.kinds import POOLEDVMS, VMCLAIMS
from vmpool.kube.mirror import Mirror, MirrorSettings, Selection
from vmpool.plan.claimstatus import failed_status
from vmpool.plan.queue import EndHeld, Extend, Note, ProveGone, Why
from vmpool.plan.snapshot import VM, VMClaim
from vmpool.settings import Settings

NOW = datetime(2030, 1, 1, tzinfo=UTC)
KIND = "uid-of-kind"
Json = dict[str, Any]


class Server:
    """Objects by name with the preconditions that an API server keeps; a stand-in for ``Client``."""

    def __init__(self) -> None:
        self.objects: dict[str, Json] = {DEFINITION: {"metadata": {"name": DEFINITION, "uid": KIND}}}
        self.version = 100
        self.silent: set[str] = set()

    def put(self, raw: Json) -> Json:
        self.version += 1
        raw["metadata"]["resourceVersion"] = str(self.version)
        self.objects[raw["metadata"]["name"]] = raw
        return raw

    async def get(self, _resource: object, _namespace: str | None, name: str) -> Json:
        if name in self.silent:
            raise Unreachable("no answer")
        if name not in self.objects:
            raise NotFound(f"{name} not found", status=404, details={"name": name})
        return self.objects[name]

    async def patch_merge(
        self, resource: object, namespace: str, name: str, patch: Json, subresource: str | None = None
    ) -> Json:
        raw = await self.get(resource, namespace, name)
        for key, value in patch["metadata"].items():
            if raw["metadata"][key] != value:
                raise Conflict(f"{name}: another {key}", status=409)
        if subresource:
            return self.put({**raw, "status": {**raw.get("status", {}), **patch["status"]}})
        claim = {**raw["spec"].get("claim", {}), **patch["spec"]["claim"]}
        return self.put({**raw, "spec": {**raw["spec"], "claim": claim}})

    async def delete(self, resource: object, namespace: str, name: str, **preconditions: str) -> None:
        raw = await self.get(resource, namespace, name)
        if raw["metadata"]["resourceVersion"] != preconditions["resource_version"]:
            raise Conflict(f"{name}: another version", status=409)
        del self.objects[name]


def raw_vm(name: str, **spec: Any) -> Json:
    claim = {
        "id": "uid-ci-c",
        "owner": "alice",
        "boundAt": "2030-01-01T00:00:00Z",
        "expiresAt": "2030-01-02T00:00:00Z",
        "ref": {"namespace": "ci", "name": "c", "uid": "uid-ci-c", "kindUid": KIND},
    }
    base = {"pool": "web", "poolUid": "uid-ci-web", "provider": "east", "claim": claim}
    return {"metadata": {"name": name, "namespace": "ci", "uid": f"uid-{name}"}, "spec": {**base, **spec}}


class Scene:
    """A server, mirrors that learn only from answers, and the effects."""

    def __init__(self) -> None:
        self.server = Server()
        client: Any = self.server
        settings = MirrorSettings()
        self.vms = Mirror(client, Selection(POOLEDVMS), vm_facts, settings, VM_INDEXES)
        self.claims = Mirror(client, Selection(VMCLAIMS), claim_facts, settings)
        self.world: Any = SimpleNamespace(
            client=client, settings=Settings(), vms=self.vms, claims=self.claims, now=lambda: NOW, vm=self.vm
        )
        self.notes: dict[str, Note] = {}
        absence = Absence(client, self.claims, 0)
        self.effects = ClaimEffects(self.world, cast("Any", None), absence, cast("Any", None), self.notes)

    def vm(self, uid: str) -> VM | None:
        entry = self.vms.by_uid(uid)
        return entry.fact if entry is not None else None

    def known(self, name: str, **spec: Any) -> VM:
        """A VM that the server and the mirror have."""
        raw = self.server.put(raw_vm(name, **spec))
        self.vms.saw(raw)
        return vm_facts(raw)

    def changes(self, name: str, **claim: Any) -> None:
        """Somebody writes on a VM's claim, and the watch is behind."""
        raw = self.server.objects[name]
        self.server.put({**raw, "spec": {**raw["spec"], "claim": {**raw["spec"]["claim"], **claim}}})

    def claim(self, **status: Any) -> VMClaim:
        """The claim ``c``, Bound unless said otherwise."""
        meta = {"name": "c", "namespace": "ci", "uid": "uid-ci-c", "generation": 1}
        spec = {"requests": [{"pool": "web"}]}
        raw = self.server.put({"metadata": meta, "spec": spec, "status": {"phase": "Bound", **status}})
        self.claims.saw(raw)
        return claim_facts(raw)

    def named(self, *names: str) -> VMClaim:
        """The claim, with a status that names these VMs."""
        base = {"namespace": "ci", "pool": "web"}
        vms = [
            {**base, "slot": slot, "uid": f"uid-{name}", "name": name, "hostName": name}
            for slot, name in enumerate(names)
        ]
        return self.claim(vms=vms)

    def written(self) -> list[str | None]:
        """The end reasons in the claim's status."""
        return [one.get("endReason") for one in self.server.objects["c"]["status"]["vms"]]

    def ends(self, *names: str) -> list[str | None]:
        """How the server says that the claims on VMs have ended."""
        return [self.server.objects[name]["spec"]["claim"].get("endReason") for name in names]


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_vm_that_the_server_has_is_learned_and_never_written_down_as_gone(scene: Scene) -> None:
    claim = scene.named("one")
    scene.server.put(raw_vm("one"))
    assert await scene.effects.run(ProveGone(claim, claim.status.vms, (), None)) is None
    assert scene.written() == [None]
    assert [entry.uid for entry in scene.vms.by_index(BY_CLAIM, claim.uid)] == ["uid-one"]


async def test_a_vm_that_cannot_be_read_or_asked_for_is_waited_for_and_the_others_are_followed(scene: Scene) -> None:
    claim = scene.named("strange", "silent", "away", "another")
    scene.server.put(raw_vm("strange", claim={"id": "uid-ci-c"}))
    scene.server.silent.add("silent")
    scene.server.put({**raw_vm("another"), "metadata": {**raw_vm("another")["metadata"], "uid": "uid-new"}})
    pause = await scene.effects.run(ProveGone(claim, claim.status.vms, (), None))
    assert pause == timedelta(seconds=3)
    assert scene.notes[claim.uid].retry_at == NOW + timedelta(seconds=3)
    assert scene.written() == [None, None, "Gone", "Gone"]
    assert scene.server.objects["c"]["status"]["phase"] == "Bound"


@pytest.mark.parametrize("kind", [{"uid": KIND, "deletionTimestamp": "2030-01-01T00:00:00Z"}, {"uid": "new"}, None])
async def test_a_deletion_ends_nothing_unless_the_kind_is_the_one_it_was_bound_under(
    scene: Scene, kind: Json | None
) -> None:
    going, vm = replace(scene.claim(), deleting=True), scene.known("one")
    if kind is None:
        scene.server.silent.add(DEFINITION)
    else:
        scene.server.objects[DEFINITION] = {"metadata": kind}
    pause = await scene.effects.run(EndHeld(going, (vm,), "Released"))
    assert pause == timedelta(seconds=30)
    assert scene.notes[going.uid].retry_at == NOW + timedelta(seconds=30)
    assert scene.ends("one") == [None]


async def test_a_deletion_under_the_same_kind_gives_back(scene: Scene) -> None:
    going, vm = replace(scene.claim(), deleting=True), scene.known("one")
    assert await scene.effects.run(EndHeld(going, (vm,), "Released")) is None
    assert scene.ends("one") == ["Released"]


async def test_a_refused_end_teaches_the_mirror_and_keeps_no_other_vm(scene: Scene) -> None:
    claim, moved, lost, last = scene.claim(), scene.known("moved"), scene.known("lost"), scene.known("last")
    scene.changes("moved", expiresAt="2030-01-09T00:00:00Z")
    del scene.server.objects["lost"]
    with pytest.raises(Conflict):
        await scene.effects.run(EndHeld(claim, (moved, lost, last), "Surplus"))
    assert scene.ends("moved", "last") == [None, "Surplus"]
    known = scene.vm(moved.uid)
    assert known is not None
    assert known.claim is not None
    assert known.claim.expires_at == datetime(2030, 1, 9, tzinfo=UTC)
    assert scene.vm(lost.uid) is None
    scene.server.silent.add("last")
    with pytest.raises(Unreachable):
        await scene.effects.run(EndHeld(claim, (moved, replace(last, resource_version="1")), "Surplus"))


async def test_an_end_that_is_refused_for_a_namesake_teaches_too(scene: Scene) -> None:
    vm = scene.known("one")
    scene.server.put({**raw_vm("one"), "metadata": {**raw_vm("one")["metadata"], "uid": "uid-new"}})
    with pytest.raises(Conflict):
        await end_claim(scene.world, vm, "Surplus", NOW)
    assert (scene.vm(vm.uid), scene.vm("uid-new") is None) == (None, False)


async def test_an_extension_goes_to_every_vm_and_never_over_a_newer_one(scene: Scene) -> None:
    claim, away, newer, last = scene.claim(), scene.known("away"), scene.known("newer"), scene.known("last")
    del scene.server.objects["away"]
    scene.changes("newer", expiresAt="2030-01-09T00:00:00Z")
    end = NOW + timedelta(hours=30)
    await scene.effects.run(Extend(claim, ((away, end),)))
    assert scene.vm(away.uid) is None, "an end that came first is news, not an error"
    with pytest.raises(Conflict):
        await scene.effects.run(Extend(claim, ((newer, end), (last, end))))
    ends = [scene.server.objects[name]["spec"]["claim"]["expiresAt"] for name in ("newer", "last")]
    assert ends == ["2030-01-09T00:00:00Z", "2030-01-02T06:00:00.000000Z"]
    known = scene.vm(newer.uid)
    assert known is not None
    assert known.resource_version != newer.resource_version


async def test_the_writes_on_a_claim_teach_the_mirror_what_refused_them(scene: Scene) -> None:
    claim = scene.claim(phase="Pending")
    status = failed_status(a_claim("c"), Why("TooLate", "it is too late"), NOW)
    scene.server.put(dict(scene.server.objects["c"], status={"phase": "Bound"}))
    with pytest.raises(Conflict):
        await write_status(scene.world, claim, status)
    entry = scene.claims.by_uid(claim.uid)
    assert entry is not None
    assert entry.fact is not None
    assert entry.fact.phase == "Bound"
    scene.server.put(scene.server.objects["c"])
    with pytest.raises(Conflict):
        await remove(scene.world, entry.fact)
    newest = scene.claims.by_uid(claim.uid)
    assert newest is not None
    assert newest.resource_version > entry.resource_version
    del scene.server.objects["c"]
    with pytest.raises(NotFound):
        await write_status(scene.world, entry.fact, status)
    assert scene.claims.by_uid(claim.uid) is None
    await remove(scene.world, entry.fact)
