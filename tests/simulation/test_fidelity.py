"""The model of the API server against the real one: what stories asked of the model is asked of the server again."""

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.api import Api, Json, api
from tests.planes import Kubectl
from tests.simulation.api import Call, Place, place_of
from tests.simulation.run import simulate
from tests.simulation.story import NAMESPACE
from vmpool.dev.plane import ControlPlane

__all__ = ["api"]

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("crds_installed")]

SEEDS = range(52)
PIECES = 4
LEAST_CALLS = 40
"""Of a story, on average."""
UID = re.compile(r"00000000-0000-4000-8000-[0-9a-f]{12}")
UNKNOWN_VERSION = "1"
"""Stands for a version of the model that no answer has shown: no object has it."""


@dataclass
class Replay:
    """One story's calls on the real server; ``uids`` and ``versions`` say what is what there."""

    api: Api
    namespace: str
    uids: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    lists: dict[str, str] = field(default_factory=dict)
    """At which of the server's versions a list was made, by the model's."""

    async def run(self, calls: tuple[Call, ...]) -> list[str]:
        """Repeat every call in order; return where the answers differ, the first ones in each story."""
        wrong: list[str] = []
        for call in calls:
            real = await self._send(call)
            if why := self._differs(call, real.status, real.body):
                wrong.append(f"{call.method} {call.path} {(call.body or b'')[:300]!r}: {why}")
                if len(wrong) == 3:
                    break
        return wrong

    async def _send(self, call: Call) -> Any:
        path = call.path.replace(f"/namespaces/{NAMESPACE}/", f"/namespaces/{self.namespace}/")
        if call.path.count("/") == 4:
            # A list over all namespaces would show what the other stories have.
            path = path.replace("/v1alpha1/", f"/v1alpha1/namespaces/{self.namespace}/")
        body = self._there(json.loads(call.body)) if call.body else None
        query = dict(call.query)
        if "resourceVersion" in query:
            query["resourceVersion"] = self.lists[query["resourceVersion"]]
        return await self.api.call(
            call.method, path, body, content=call.content_type or "application/json", query=query
        )

    def _there(self, body: Any) -> Any:
        """Say in the server's own uids and versions what was said in the model's."""
        text = json.dumps(body).replace(f'"namespace": "{NAMESPACE}"', f'"namespace": "{self.namespace}"')
        said = json.loads(UID.sub(lambda found: self.uids.get(found.group(), found.group()), text))
        for part in ("metadata", "preconditions"):
            if isinstance(said, dict) and (said.get(part) or {}).get("resourceVersion"):
                said[part]["resourceVersion"] = self.versions.get(said[part]["resourceVersion"], UNKNOWN_VERSION)
        for step in said if isinstance(said, list) else ():
            if (step["op"], step["path"]) == ("test", "/metadata/resourceVersion"):
                step["value"] = self.versions.get(step["value"], UNKNOWN_VERSION)
        return said

    def _differs(self, call: Call, status: int, real: Json) -> str:
        model = call.answer
        if status != call.status:
            return f"the model answers {call.status}, the server {status}: {real.get('message')}"
        if status >= 300:
            return _refusals_differ(model, real)
        if "items" in model:
            self.lists[model["metadata"]["resourceVersion"]] = real["metadata"]["resourceVersion"]
            return self._lists_differ(model, real)
        if model.get("kind") == "Status":
            return "" if real.get("kind") == "Status" else "the server shows an object that is gone"
        return self._objects_differ(place_of(call.path), model, real)

    def _lists_differ(self, model: Json, real: Json) -> str:
        counts = [len(one["items"]) + (one["metadata"].get("remainingItemCount") or 0) for one in (model, real)]
        if counts[0] != counts[1]:
            return f"the model counts {counts[0]}, the server {counts[1]}"
        mine, theirs = ({one["metadata"]["name"] for one in found["items"]} for found in (model, real))
        return "" if mine == theirs else f"the model lists {sorted(mine)}, the server {sorted(theirs)}"

    def _objects_differ(self, place: Place, model: Json, real: Json) -> str:
        mine, theirs = model["metadata"], real["metadata"]
        self.uids.setdefault(mine["uid"], theirs["uid"])
        # The answer to the write that removes an object shows it as it was, in whatever version.
        gone = "deletionTimestamp" in mine and not mine.get("finalizers")
        if not gone and theirs["resourceVersion"] != self.versions.setdefault(
            mine["resourceVersion"], theirs["resourceVersion"]
        ):
            return f"the model has version {mine['resourceVersion']} still, the server another one"
        for name in ("generation", "finalizers", "labels", "deletionGracePeriodSeconds"):
            if mine.get(name) != theirs.get(name):
                return f"metadata.{name}: the model has {mine.get(name)}, the server {theirs.get(name)}"
        if ("deletionTimestamp" in mine) != ("deletionTimestamp" in theirs):
            return "only one of them is being deleted"
        if self.uids[mine["uid"]] != theirs["uid"]:
            return "another object"
        for part in ("spec", "status"):
            if self._there(model.get(part)) != real.get(part):
                return f"{part} of {place.plural}: the model has {model.get(part)}, the server {real.get(part)}"
        return ""

    def in_order(self) -> bool:
        """Whether the server's versions grew as the model's did."""
        pairs = sorted((int(mine), int(theirs)) for mine, theirs in self.versions.items())
        theirs = [one for _, one in pairs]
        return theirs == sorted(set(theirs))


def _refusals_differ(model: Json, real: Json) -> str:
    if model["reason"] != real.get("reason") and real.get("reason"):
        return f"the model says {model['reason']}, the server {real.get('reason')}"
    mine, theirs = ((one.get("details") or {}) for one in (model, real))
    if model["code"] == 404 and mine["name"] != theirs.get("name"):
        return f"the model misses {mine['name']}, the server {theirs.get('name')}"
    for cause in mine.get("causes", ()):
        said = [one for one in theirs.get("causes", ()) if one["field"] == cause["field"]]
        rule = cause["message"].removeprefix("Forbidden: ")
        if not any(rule in one["message"] for one in said):
            return f"the model refuses {cause}, the server {theirs.get('causes')}"
    return ""


@pytest.fixture
def namespaces(kubectl: Kubectl, plane: ControlPlane) -> list[str]:
    """One namespace for each story of a piece; the control plane is thrown away with them."""
    del plane
    names = [f"story-{seed}" for seed in SEEDS]
    there = kubectl("get", "namespaces", "-o", "name")
    missing = [name for name in names if f"namespace/{name}\n" not in there]
    if missing:
        manifests = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in missing]
        kubectl("create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))
    return names


@pytest.mark.parametrize("piece", range(PIECES))
async def test_the_server_answers_as_the_model_did(piece: int, api: Api, namespaces: list[str]) -> None:
    seeds = SEEDS[piece::PIECES]
    stories = [simulate_in_thread(seed) for seed in seeds]
    replays = [Replay(api, namespaces[seed]) for seed in seeds]

    wrong = await asyncio.gather(*(replay.run(calls) for replay, calls in zip(replays, stories, strict=True)))

    for seed, replay, found in zip(seeds, replays, wrong, strict=True):
        assert not found, f"seed {seed}: " + "\n".join(found)
        assert replay.in_order(), f"seed {seed}: versions do not grow alike"
    assert sum(map(len, stories)) > LEAST_CALLS * len(seeds), "the stories have hardly asked for anything"


def simulate_in_thread(seed: int) -> tuple[Call, ...]:
    """Play a story beside the running event loop: an event loop belongs to one thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: simulate(seed, record=True).calls).result()


def test_the_stories_ask_for_what_matters() -> None:
    calls = [call for seed in SEEDS for call in simulate(seed, record=True).calls]
    statuses = {call.status for call in calls}
    asked = {(call.method, place_of(call.path).plural, place_of(call.path).subresource) for call in calls}

    assert {200, 201, 404, 409, 422} <= statuses
    for wanted in (("PATCH", "pooledvms", ""), ("PATCH", "pooledvms", "status"), ("POST", "deadletters", "")):
        assert wanted in asked
    assert {"user", "gateway", "replica-1", "replica-2"} <= {call.who for call in calls}
