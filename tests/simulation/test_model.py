"""The models' own rules; whether the real server keeps the same ones is asked in ``test_fidelity``."""

import asyncio
from datetime import UTC, datetime
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.objects import LATER, LONG_AGO, claim, pool, vm
from tests.simulation import rules
from tests.simulation.api import MERGE, Answer, ApiModel, Event, merged
from tests.simulation.clock import EPOCH, Stuck, VirtualLoop, virtual
from tests.simulation.cloud import CloudModel, CloudScript
from tests.simulation.run import simulate
from vmpool.api import keys
from vmpool.engine import world
from vmpool.kube.resource import Json
from vmpool.plan.lifecycle import SUCCESSORS, Phase

BASE = f"/apis/{keys.API_VERSION}/namespaces/lab"
TAGS = {"vmpool-install": "one", "vmpool-uid": "uid-1"}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from("abc"), below, max_size=3),
    max_leaves=8,
)


class Server:
    """A model with short ways to ask it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.model = ApiModel(lambda: datetime(2026, 1, 1, tzinfo=UTC), self.events.append)

    def ask(self, method: str, plural: str, name: str = "", body: Any = None) -> Answer:
        path = f"{BASE}/{plural}" + (f"/{name}" if name else "")
        data = orjson.dumps(body) if body is not None else None
        return self.model.handle(method, path, {}, data, MERGE if method == "PATCH" else "application/json")

    def ok(self, method: str, plural: str, name: str = "", body: Any = None) -> Json:
        status, answer = self.ask(method, plural, name, body)
        assert status < 300, answer
        return answer

    def json_patch(self, name: str, *steps: Json) -> Answer:
        path = f"{BASE}/pooledvms/{name}"
        return self.model.handle("PATCH", path, {}, orjson.dumps(steps), "application/json-patch+json")


@pytest.fixture
def server() -> Server:
    return Server()


def held_vm() -> Json:
    body = vm()
    body["metadata"]["finalizers"] = [keys.FINALIZER_MACHINE]
    return body


def test_a_new_object_gets_what_the_server_gives(server: Server) -> None:
    made = server.ok("POST", "pooledvms", body={**held_vm(), "status": {"phase": "Ready"}})

    assert made["status"] == {"phase": "Pending", "observedGeneration": -1, "attempt": 1}
    assert made["metadata"]["generation"] == 1
    assert made["metadata"]["creationTimestamp"] == "2026-01-01T00:00:00Z"
    assert server.ask("POST", "pooledvms", body=held_vm())[1]["reason"] == "AlreadyExists"


def test_only_the_spec_counts_generations_and_only_changes_count_versions(server: Server) -> None:
    new = server.ok("POST", "vmpools", body=pool(replicas=1))
    made = server.ok("PATCH", "vmpools", "web", {"spec": {"replicas": 1}})
    same = server.ok("PATCH", "vmpools", "web", {"spec": {"replicas": 1}})
    scaled = server.ok("PATCH", "vmpools", "web", {"spec": {"replicas": 2}})
    told = server.ok("PATCH", "vmpools", "web/status", {"status": {"readyReplicas": 1}, "spec": {"replicas": 9}})

    assert same["metadata"] == made["metadata"]
    assert {**made["metadata"], "resourceVersion": ""} == {**new["metadata"], "resourceVersion": ""}
    assert (scaled["metadata"]["generation"], told["metadata"]["generation"]) == (2, 2)
    versions = [int(one["metadata"]["resourceVersion"]) for one in (new, made, scaled, told)]
    assert versions == sorted(set(versions))
    assert told["spec"]["replicas"] == 2


def test_a_write_meant_for_another_version_or_object_is_refused(server: Server) -> None:
    made = server.ok("POST", "vmpools", body=pool())
    server.ok("PATCH", "vmpools", "web", {"spec": {"replicas": 2}})
    old = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "spec": {"replicas": 3}}
    other = {"metadata": {"uid": "another"}, "spec": {"replicas": 3}}

    assert server.ask("PATCH", "vmpools", "web", old)[0] == 409
    status, refused = server.ask("PATCH", "vmpools", "web", other)
    assert (status, refused["details"]["causes"][0]["field"]) == (422, "metadata.uid")
    assert server.ask("DELETE", "vmpools", "web", {"preconditions": {"uid": "another"}})[0] == 409
    assert server.ask("GET", "vmpools", "none")[1]["details"]["name"] == "none"


def test_finalizers_hold_an_object_until_the_last_is_gone(server: Server) -> None:
    made = server.ok("POST", "pooledvms", body=held_vm())
    going = server.ok("DELETE", "pooledvms", "web-a", {"preconditions": {"uid": made["metadata"]["uid"]}})
    again = server.ok("DELETE", "pooledvms", "web-a", {})
    wrong = server.json_patch("web-a", {"op": "test", "path": "/metadata/uid", "value": "another"})
    more = server.ask("PATCH", "pooledvms", "web-a", {"metadata": {"finalizers": [keys.FINALIZER_MACHINE, "a.b/c"]}})
    status, _ = server.json_patch("web-a", {"op": "replace", "path": "/metadata/finalizers", "value": []})

    assert (going["metadata"]["generation"], going["metadata"]["deletionGracePeriodSeconds"]) == (2, 0)
    assert again == going
    assert (wrong[0], more[0], status) == (422, 422, 200)
    assert server.ask("GET", "pooledvms", "web-a")[0] == 404
    assert [event.type for event in server.events] == ["ADDED", "MODIFIED", "DELETED"]


def test_every_rule_of_the_kinds_has_its_predicate() -> None:
    assert {plural: len(found) for plural, found in rules.PREDICATES.items()} == {
        plural: len(found) for plural, found in rules.RULES.items()
    }


@pytest.mark.parametrize("before", Phase)
@pytest.mark.parametrize("after", Phase)
def test_phases_follow_the_table(server: Server, before: Phase, after: Phase) -> None:
    made = server.ok("POST", "pooledvms", body=held_vm())
    stored = {**made, "status": {**made["status"], "phase": before.value}}
    server.model.objects["pooledvms"]["lab", "web-a"] = stored

    status, _ = server.ask("PATCH", "pooledvms", "web-a/status", {"status": {"phase": after.value}})

    legal = before is after or (after in SUCCESSORS[before] and after is not Phase.CLAIMED)
    assert status == (200 if legal else 422)


def test_a_vm_is_claimed_once_and_ends_once(server: Server) -> None:
    server.ok("POST", "pooledvms", body=held_vm())
    too_soon = server.ask("PATCH", "pooledvms", "web-a", {"spec": {"claim": claim("one")}})[0]
    server.ok("PATCH", "pooledvms", "web-a/status", {"status": {"phase": "Ready"}})
    server.ok("PATCH", "pooledvms", "web-a", {"spec": {"claim": claim("one")}})
    second = server.ask("PATCH", "pooledvms", "web-a", {"spec": {"claim": claim("two")}})[0]
    destroyed = server.ask("PATCH", "pooledvms", "web-a/status", {"status": {"phase": "Completed"}})[0]
    dropped = server.ask("PATCH", "pooledvms", "web-a", {"spec": {"claim": None}})[0]
    server.ok("PATCH", "pooledvms", "web-a", {"spec": {"claim": {"releasedAt": LATER}}})
    back = server.ask("PATCH", "pooledvms", "web-a", {"spec": {"claim": {"releasedAt": None}}})[0]
    ended = server.ask("PATCH", "pooledvms", "web-a/status", {"status": {"phase": "Completed"}})[0]

    assert (too_soon, second, destroyed, dropped, back, ended) == (422, 422, 422, 422, 422, 200)
    assert server.ask("POST", "pooledvms", body=vm("web-b", claim=claim("x", boundAt=LONG_AGO)))[0] == 422


@given(VALUES, VALUES)
def test_a_merge_leaves_what_it_was_given_as_it_was(target: Any, patch: Any) -> None:
    before = orjson.dumps([target, patch])

    once = merged(target, patch)

    assert orjson.dumps([target, patch]) == before
    assert merged(once, patch) == once


# --- the cloud ----------------------------------------------------------------------------------------------------


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def cloud_of(**script: Any) -> tuple[CloudModel, Clock]:
    clock = Clock()
    return CloudModel(clock, Random(1), CloudScript(**script)), clock


def make(cloud: CloudModel, token: str | None = None) -> Answer:
    return cloud.handle("POST", "v1/machines", {"name": "a", "tags": TAGS, "token": token})


def test_a_token_never_makes_a_second_machine() -> None:
    cloud, clock = cloud_of()
    first = make(cloud, "uid-1")[1]["id"]
    again = make(cloud, "uid-1")
    cloud.handle("DELETE", f"v1/machines/{first}", params={"ifTag": "vmpool-install=one"})
    clock.seconds = 60.0

    assert again[0] == 200
    assert again[1]["id"] == first
    assert make(cloud, "uid-1")[0] == 410
    assert cloud.handle("GET", f"v1/machines/{first}")[0] == 404


def test_without_tokens_every_create_makes_one_and_listings_lag() -> None:
    cloud, clock = cloud_of(tokens=False, lag=5.0)
    made = {make(cloud)[1]["id"], make(cloud)[1]["id"]}
    early = cloud.handle("GET", "v1/machines", params=[("tag", "vmpool-uid=uid-1")])[1]["machines"]
    clock.seconds = 6.0
    late = cloud.handle("GET", "v1/machines", params=[("tag", "vmpool-uid=uid-1")])[1]["machines"]

    assert len(early) < 2
    assert {one["id"] for one in late} == made
    assert make(cloud, "uid-1")[1]["error"]["code"] == "TokenUnsupported"


def test_machines_boot_fail_and_go_in_their_time() -> None:
    cloud, clock = cloud_of(boot_fails=1.0)
    machine = make(cloud, "uid-1")[1]
    clock.seconds = 60.0
    failed = cloud.handle("GET", f"v1/machines/{machine['id']}")[1]["state"]
    foreign = cloud.handle("DELETE", f"v1/machines/{machine['id']}", params={"ifTag": "vmpool-install=two"})[0]
    going = cloud.handle("DELETE", f"v1/machines/{machine['id']}", params={"ifTag": "vmpool-install=one"})[1]["state"]

    assert (machine["state"], failed, foreign, going) == ("Creating", "Failed", 412, "Deleting")


# --- the clock ----------------------------------------------------------------------------------------------------


def test_time_jumps_and_the_engine_reads_it() -> None:
    loop = VirtualLoop(100)
    before = vars(world)["datetime"]

    async def wait() -> float:
        await asyncio.sleep(3600.0)
        return float((vars(world)["datetime"].now() - EPOCH).total_seconds())

    with virtual(loop, Random(1), None):
        seen = loop.run_until_complete(wait())
    loop.close()

    assert loop.time() == pytest.approx(3600.0)
    assert seen == pytest.approx(3600.0)
    assert vars(world)["datetime"] is before


def test_a_story_without_an_end_is_stuck() -> None:
    for work, why in ((asyncio.Event().wait, "nothing is due"), (_spin, "turns of the loop")):
        loop = VirtualLoop(100)
        task = loop.create_task(work())
        with pytest.raises(Stuck, match=why):
            loop.run_until_complete(task)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, Stuck)):
            loop.run_until_complete(task)
        loop.close()


async def _spin() -> None:
    for _ in range(1000):
        await asyncio.sleep(0.0)


def test_a_failing_story_can_be_read() -> None:
    outcome = simulate(3, trace=True)

    text = "\n".join(outcome.trace)
    assert "replica-1 starts" in text
    assert "POST v1/machines" in text
    assert f"Story(seed={outcome.seed}" in text
