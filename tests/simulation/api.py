"""A model of the API server: real JSON bodies in, real JSON bodies out, by the HTTP requests of the engine's client.

What it models: one growing resourceVersion, uids, generations (of the spec alone, and of the beginning of a
deletion), finalizers, merge patches, JSON patches with tests, creates, deletes with preconditions, the status
subresource, the schema's defaults, and the root rules. ``test_fidelity`` replays its answers on the real server.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import orjson

from tests.simulation import rules
from tests.simulation.schema import with_defaults
from vmpool.api import keys
from vmpool.kube.resource import Json

MERGE: Final = "application/merge-patch+json"
Answer = tuple[int, Json]
"""HTTP status and document."""
KINDS: Final[Mapping[str, str]] = {
    "vmpools": "VMPool",
    "pooledvms": "PooledVM",
    "vmproviders": "VMProvider",
    "vmclaims": "VMClaim",
    "deadletterqueues": "DeadLetterQueue",
    "deadletters": "DeadLetter",
    "purgepolicies": "PurgePolicy",
    "healthpolicies": "HealthPolicy",
    "customresourcedefinitions": "CustomResourceDefinition",
}
OURS: Final = keys.GROUP
FIXED: Final = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds")
"""Metadata that no write changes."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request with its answer, for the replay on the real server."""

    at: float
    who: str
    method: str
    path: str
    query: Mapping[str, str]
    body: bytes | None
    content_type: str
    status: int
    answer: Json


@dataclass(frozen=True, slots=True)
class Event:
    """One change, as a watch tells it."""

    version: int
    plural: str
    type: str
    before: Json | None
    obj: Json
    line: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """What a path names."""

    group: str
    plural: str
    namespace: str
    name: str
    subresource: str


class Refusal(Exception):
    """The server says no."""

    def __init__(self, code: int, reason: str, message: str, details: Json | None = None) -> None:
        super().__init__(message)
        self.answer: Answer = (
            code,
            {
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": reason,
                "details": details or {},
                "code": code,
            },
        )


@dataclass
class ApiModel:
    """One API server. ``now`` is its clock; ``on_event`` hears of every change at once, in order."""

    now: Callable[[], datetime]
    on_event: Callable[[Event], None] = lambda _: None
    record: bool = False
    version: int = 100
    objects: dict[str, dict[tuple[str, str], Json]] = field(default_factory=lambda: {plural: {} for plural in KINDS})
    calls: list[Call] = field(default_factory=list)
    _uids: int = 0
    _past: list[tuple[int, str, str, tuple[str, str]]] = field(default_factory=list)
    """Version, plural, type and key of what came and what went."""
    _bare: set[str] = field(default_factory=set)
    """Objects that are stored without the default of their status, as a create leaves them: the first write after it
    changes what is stored, even where it changes nothing that is shown."""

    # --- requests ------------------------------------------------------------------------------------------------

    def handle(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        *,
        who: str = "",
    ) -> Answer:
        """Carry out one request and return what the server answers."""
        place = place_of(path)
        try:
            status, answer = self._handle(method, place, query or {}, body, content_type)
        except Refusal as refusal:
            status, answer = refusal.answer
        if self.record and place.group == OURS:
            at = self.now().timestamp()
            self.calls.append(Call(at, who, method, path, query or {}, body, content_type, status, answer))
        return status, answer

    def _handle(
        self, method: str, place: Place, query: Mapping[str, str], body: bytes | None, content_type: str
    ) -> Answer:
        if place.plural not in self.objects:
            raise Refusal(404, "NotFound", f"{place.plural} {place.name} not found", _details(place))
        match method:
            case "GET" if place.name:
                return 200, self._found(place)
            case "GET":
                if query.get("resourceVersionMatch") == "Exact":
                    return 200, self._exact(place, int(query["resourceVersion"]), int(query["limit"]))
                return 200, self._list(place, query.get("fieldSelector", ""))
            case "POST":
                return 201, self._create(place, orjson.loads(body or b"{}"))
            case "PATCH":
                return 200, self._patch(place, orjson.loads(body or b"{}"), merge=content_type == MERGE)
            case "DELETE":
                return 200, self._delete(place, orjson.loads(body or b"{}"))
        raise Refusal(405, "MethodNotAllowed", method)

    def _found(self, place: Place) -> Json:
        obj = self.objects[place.plural].get((place.namespace, place.name))
        if obj is None:
            raise Refusal(404, "NotFound", f'{place.plural}.{place.group} "{place.name}" not found', _details(place))
        return obj

    def _list(self, place: Place, selector: str) -> Json:
        wanted = [tuple(one.split("=")) for one in selector.split(",") if one]
        items = [
            obj
            for (namespace, _), obj in self.objects[place.plural].items()
            if (not place.namespace or namespace == place.namespace)
            and all(_field(obj, path) == value for path, value in wanted)
        ]
        kind = KINDS[place.plural]
        return {"kind": f"{kind}List", "metadata": {"resourceVersion": str(self.version)}, "items": items}

    def _exact(self, place: Place, version: int, limit: int) -> Json:
        """The first ones of what there was at a version, by name alone, and how many more there were."""
        there = set(self.objects[place.plural])
        for at, plural, kind, key in reversed(self._past):
            if at <= version:
                break
            if plural == place.plural:
                (there.discard if kind == "ADDED" else there.add)(key)
        names = sorted(key for key in there if not place.namespace or key[0] == place.namespace)
        items = [{"metadata": {"namespace": namespace, "name": name}} for namespace, name in names[:limit]]
        more = {"continue": "more", "remainingItemCount": len(names) - limit} if len(names) > limit else {}
        return {
            "kind": f"{KINDS[place.plural]}List",
            "metadata": {"resourceVersion": str(version), **more},
            "items": items,
        }

    def _create(self, place: Place, body: Json) -> Json:
        meta = body["metadata"]
        name = meta["name"]
        if (place.namespace, name) in self.objects[place.plural]:
            said = f'{place.plural}.{place.group} "{name}" already exists'
            raise Refusal(409, "AlreadyExists", said, {"name": name, "kind": place.plural})
        self._uids += 1
        made = {
            "name": name,
            "namespace": place.namespace,
            **{key: meta[key] for key in ("labels", "annotations", "finalizers", "ownerReferences") if meta.get(key)},
            "uid": f"00000000-0000-4000-8000-{self._uids:012x}",
            "creationTimestamp": self.now().strftime("%Y-%m-%dT%H:%M:%SZ"),
            "generation": 1,
        }
        obj = {**{key: value for key, value in body.items() if key != "status"}, "metadata": made}
        obj = with_defaults(place.plural, obj)
        if "status" in obj:
            self._bare.add(made["uid"])
        self._judge(place.plural, None, obj)
        return self._commit("ADDED", place.plural, None, obj)

    def _patch(self, place: Place, patch: Any, *, merge: bool) -> Json:
        old = self._found(place)
        if merge:
            wanted_version = (patch.get("metadata") or {}).get("resourceVersion")
            new = merged(old, patch)
        else:
            wanted_version = None
            new = _json_patched(old, patch)
        meta = old["metadata"]
        if wanted_version is not None and wanted_version != meta["resourceVersion"]:
            raise Refusal(409, "Conflict", f"{place.name}: the object has been modified", _details(place))
        if new["metadata"].get("uid") != meta["uid"]:
            raise _invalid(place, [("metadata.uid", "field is immutable")])
        return self._update(place, old, new)

    def _update(self, place: Place, old: Json, new: Json) -> Json:
        """Store what a patch made of an object, as far as the endpoint lets it."""
        meta = old["metadata"]
        if place.subresource == "status":
            kept = {key: value for key, value in old.items() if key != "status"}
            new = {**kept, "status": new["status"]} if new.get("status") is not None else kept
        else:
            status = {"status": old["status"]} if "status" in old else {}
            new = {**{key: value for key, value in new.items() if key != "status"}, **status}
            fixed = {key: meta[key] for key in FIXED if key in meta}
            new["metadata"] = {
                **{key: value for key, value in new["metadata"].items() if key not in FIXED and value not in ([], {})},
                **fixed,
            }
        new = with_defaults(place.plural, new)
        new["metadata"] = {**new["metadata"], "resourceVersion": meta["resourceVersion"]}
        left, wanted = meta.get("finalizers", []), new["metadata"].get("finalizers", [])
        if "deletionTimestamp" in meta and set(wanted) - set(left):
            raise _invalid(place, [("metadata.finalizers", "Forbidden: no new finalizers while it is being deleted")])
        self._judge(place.plural, old, new)
        if new == old and meta["uid"] not in self._bare:
            return old
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = meta["generation"] + 1
        if "deletionTimestamp" in meta and not wanted:
            return self._commit("DELETED", place.plural, old, new)
        return self._commit("MODIFIED", place.plural, old, new)

    def _delete(self, place: Place, options: Json) -> Json:
        old = self._found(place)
        meta = old["metadata"]
        for name, value in (options.get("preconditions") or {}).items():
            if meta["uid" if name == "uid" else "resourceVersion"] != value:
                raise Refusal(409, "Conflict", f"{place.name}: precondition {name} failed", _details(place))
        if not meta.get("finalizers"):
            self._commit("DELETED", place.plural, old, {**old, "metadata": dict(meta)})
            details = {"name": place.name, "group": place.group, "kind": place.plural, "uid": meta["uid"]}
            return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        if "deletionTimestamp" in meta:
            return old
        going = {
            **meta,
            "deletionTimestamp": self.now().strftime("%Y-%m-%dT%H:%M:%SZ"),
            "deletionGracePeriodSeconds": 0,
            "generation": meta["generation"] + 1,
        }
        return self._commit("MODIFIED", place.plural, old, {**old, "metadata": going})

    # --- storing -------------------------------------------------------------------------------------------------

    def _judge(self, plural: str, old: Json | None, new: Json) -> None:
        causes = rules.broken(plural, old, new)
        if causes:
            meta = new["metadata"]
            place = Place(OURS, plural, meta["namespace"], meta["name"], "")
            raise _invalid(place, [(path, f"Forbidden: {message}") for message, path in causes])

    def _commit(self, kind: str, plural: str, old: Json | None, new: Json) -> Json:
        """Store an object, or remove it, and tell it. What is stored is never changed in place."""
        self.version += 1
        meta = new["metadata"]
        if old is not None:
            self._bare.discard(meta["uid"])
        meta["resourceVersion"] = str(self.version)
        key = (meta["namespace"], meta["name"])
        if kind == "DELETED":
            del self.objects[plural][key]
        else:
            self.objects[plural][key] = new
        if kind != "MODIFIED":
            self._past.append((self.version, plural, kind, key))
        line = b'{"type":"%s","object":%s}' % (kind.encode(), orjson.dumps(new))
        self.on_event(Event(self.version, plural, kind, old, new, line))
        return new

    def all(self, plural: str) -> list[Json]:
        """Return the objects of a kind as they are now; they must not be changed."""
        return list(self.objects[plural].values())


def place_of(path: str) -> Place:
    """Return what a URL path of the API names."""
    parts = path.split("/")[2:]
    group, rest = (parts[0], parts[2:]) if path.startswith("/apis/") else ("", parts[1:])
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    rest = [*rest, "", ""]
    return Place(group, rest[0], namespace, rest[1], rest[2])


def merged(target: Any, patch: Any) -> Any:
    """Return RFC 7396's result; what is not changed is shared with ``target``."""
    if not isinstance(patch, dict):
        return patch
    made = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = merged(made.get(key), value)
    return made


def _json_patched(target: Json, patch: list[Json]) -> Json:
    """Return RFC 6902's result for what the engine sends: test, add and replace of members of the metadata."""
    made = {**target, "metadata": dict(target["metadata"])}
    for step in patch:
        _, _, name = step["path"].split("/")
        if step["op"] == "test" and made["metadata"].get(name) != step["value"]:
            raise Refusal(422, "Invalid", f"testing path {step['path']} failed")
        if step["op"] in ("add", "replace"):
            made["metadata"][name] = step["value"]
    return made


def _invalid(place: Place, causes: list[tuple[str, str]]) -> Refusal:
    told = [{"reason": "FieldValueForbidden", "message": message, "field": path} for path, message in causes]
    said = f'{KINDS[place.plural]}.{place.group} "{place.name}" is invalid: {causes[0][1]}'
    return Refusal(422, "Invalid", said, {**_details(place), "causes": told})


def _details(place: Place) -> Json:
    return {"name": place.name, "group": place.group, "kind": place.plural}


def _field(obj: Json, path: str) -> str:
    found: Any = obj
    for part in path.split("."):
        found = (found or {}).get(part)
    return str(found or "")
