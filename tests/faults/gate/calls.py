"""What a request is, without what differs between two runs: names, times, numbers.

The signature of a call is stable under other timing, so that a plan that names it finds the same place again.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qs

import orjson

Far = Literal["api", "cloud"]

UNCOUNTED = frozenset({"leases", "events", "selfsubjectaccessreviews", "subjectaccessreviews", "tokenreviews"})
"""Writes that say nothing of machines: the lease's renewals, events and questions."""
_API = re.compile(
    r"^/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?$"
)
_CLOUD = re.compile(r"^/v1/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?$")
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_TOLD = ("phase", "action", "reason", "queueFrom")
"""Fields whose value says what the write is about."""
_COUNTS = frozenset(
    f"{kind}eplicas"
    for kind in ("r", "readyR", "pendingR", "claimedR", "quarantinedR", "drainingR", "staleR", "waitingR")
)
"""Of a pool's status: how many VMs there are of which kind."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request of one replica."""

    far: Far
    replica: str
    verb: str
    """create, get, list, watch, patch, update or delete."""
    plural: str
    subresource: str
    namespace: str
    name: str
    content_type: str
    query: Mapping[str, str]
    fields: tuple[str, ...]
    """What a write touches, sorted; where the value matters, with it."""
    body: Any = None
    """The decoded body of a write."""

    @property
    def is_write(self) -> bool:
        """Whether it may change something that matters."""
        return self.verb in _VERBS.values() and self.plural not in UNCOUNTED

    @property
    def signature(self) -> str:
        """What it does, the same in every run."""
        where = self.plural + (f"/{self.subresource}" if self.subresource else "")
        if self.query.get("resourceVersionMatch") == "Exact":
            # How many there were at a version: not the list itself, though it is asked for in the same way.
            where += " exact"
        side = "cloud " if self.far == "cloud" else ""
        return f"{side}{self.verb} {where} {' '.join(self.fields)}".rstrip()


def classify(far: Far, replica: str, method: str, target: str, content_type: str, body: bytes) -> Call:
    """Return what a request is; ``target`` is its path with its query."""
    path, _, raw_query = target.partition("?")
    query = {name: values[-1] for name, values in parse_qs(raw_query, keep_blank_values=True).items()}
    found = (_API if far == "api" else _CLOUD).match(path)
    parts = found.groupdict() if found else {}
    plural, name, sub = (parts.get(key) or "" for key in ("plural", "name", "sub"))
    document = _document(body) if method in _VERBS else None
    return Call(
        far=far,
        replica=replica,
        verb=_verb(method, name, query),
        plural=plural or path.strip("/"),
        subresource=sub,
        namespace=parts.get("namespace") or "",
        name=name,
        content_type=content_type,
        query=query,
        fields=tuple(sorted(set(_fields(method, far, document)))),
        body=document,
    )


def _document(body: bytes) -> Any:
    try:
        return orjson.loads(body) if body else None
    except orjson.JSONDecodeError:
        return None


def _verb(method: str, name: str, query: Mapping[str, str]) -> str:
    if method in _VERBS:
        return _VERBS[method]
    if query.get("watch") in {"1", "true", "True"}:
        return "watch"
    return "get" if name else "list"


def _fields(method: str, far: Far, document: Any) -> Iterator[str]:
    if method == "DELETE":
        return
    if isinstance(document, list):
        changes = [one for one in document if isinstance(one, dict) and one.get("op") != "test"]
        yield from (f"{one.get('op')}:{_generic(str(one.get('path')))}" for one in changes)
    elif not isinstance(document, dict):
        return
    elif far == "cloud":
        yield from (f"{key}" for key in document if key not in {"name", "hostname"})
    elif method == "POST":
        yield from _told(document.get("spec") or {})
    else:
        for part in ("spec", "status"):
            yield from _paths(part, document.get(part))
        meta = document.get("metadata") or {}
        yield from (f"metadata.{key}" for key in meta if key in {"annotations", "finalizers", "labels"})


def _told(part: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{key}={part[key]}" for key in _TOLD if isinstance(part.get(key), str))


def _paths(prefix: str, part: Any) -> Iterator[str]:
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        if key in _TOLD and isinstance(value, str):
            yield f"{prefix}.{key}={value}"
        elif key == "steps" and isinstance(value, list) and value:
            last = value[-1]
            # A step that is done, one that was tried in vain, one that has begun: three different writes.
            mark = "." if last.get("finishedAt") else "!" if last.get("reason") else ""
            yield f"{prefix}.steps[{last.get('name', '')}{mark}]"
        elif key == "claim" and isinstance(value, dict):
            # Handing out, changing and ending are three different writes of one field.
            yield f"{prefix}.claim[{','.join(word for word in ('boundAt', 'releasedAt') if word in value)}]"
        elif prefix == "status" and key in _COUNTS:
            # Which of them changed since the last write is a matter of moments.
            yield "status.counts"
        elif value is None:
            yield f"{prefix}.{key}-"
        else:
            yield f"{prefix}.{key}"


def _generic(path: str) -> str:
    return re.sub(r"/\d+", "/#", path)


class Occurrences:
    """Counts how often each signature came, from each replica."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[str, str]] = Counter()

    def next(self, replica: str, signature: str) -> int:
        """Return the number of this one, from 1."""
        self._seen[replica, signature] += 1
        return self._seen[replica, signature]
