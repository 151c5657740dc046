"""Rights as roles grant them and as requests use them; what is granted and not used, and what is used and not granted.

Pure: roles are documents, requests are lines of an audit log.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

DECISION = "authorization.k8s.io/decision"
REASON = "authorization.k8s.io/reason"
_ROLE = re.compile(r' of (?:Cluster)?Role "(?P<role>[^"]+)"')


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource of one group; on the object of one name, or (empty) on all."""

    group: str
    resource: str
    """With its subresource: ``vmpools/status``."""
    verb: str
    name: str = ""

    def __str__(self) -> str:
        where = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {where}{f' {self.name!r}' if self.name else ''}"

    def covers(self, other: "Right") -> bool:
        """Whether who has this right has the other one too."""
        same = (self.group, self.resource, self.verb) == (other.group, other.resource, other.verb)
        return same and self.name in ("", other.name)


@dataclass(frozen=True, order=True)
class Granted:
    """A right, and the role that grants it."""

    role: str
    """Its kind and name: ``ClusterRole vmpool-operator``."""
    right: Right

    def __str__(self) -> str:
        return f"{self.role}: {self.right}"


@dataclass(frozen=True)
class Request:
    """One request as the audit log tells it."""

    user: str
    right: Right
    namespace: str
    allowed: bool
    """By the authorizer; what admission or validation says is another matter."""
    role: str
    """Which role allowed it, as ``Granted`` names them; empty where it was refused."""
    status: int


def grants(roles: Iterable[Mapping[str, Any]]) -> list[Granted]:
    """Return every right of these Role and ClusterRole documents, each as often as it is granted.

    Raises ValueError for a rule that grants what has no name: a wildcard, or paths.
    """
    found = []
    for role in roles:
        for rule in role["rules"]:
            if "nonResourceURLs" in rule or "*" in (*rule["apiGroups"], *rule["resources"], *rule["verbs"]):
                raise ValueError(f"{role['metadata']['name']}: no one can tell what of this rule is used: {rule}")
            parts = product(rule["apiGroups"], rule["resources"], rule["verbs"], rule.get("resourceNames") or [""])
            name = f"{role['kind']} {role['metadata']['name']}"
            found += [Granted(name, Right(*part)) for part in parts]
    return found


def request(event: Mapping[str, Any]) -> Request | None:
    """Return what an audit event tells; None for requests on paths that are no objects (discovery)."""
    thing = event.get("objectRef")
    if thing is None or "resource" not in thing:
        return None
    notes = event.get("annotations") or {}
    allowed = notes.get(DECISION) == "allow"
    sub = f"/{thing['subresource']}" if thing.get("subresource") else ""
    resource = f"{thing['resource']}{sub}"
    right = Right(thing.get("apiGroup", ""), resource, event["verb"], thing.get("name", ""))
    return Request(
        event["user"]["username"],
        right,
        thing.get("namespace", ""),
        allowed,
        _role(notes.get(REASON, "")) if allowed else "",
        (event.get("responseStatus") or {}).get("code", 0),
    )


def _role(reason: str) -> str:
    """Return the role in the authorizer's sentence, ``RBAC: allowed by RoleBinding "…" of Role "…" to …``."""
    found = _ROLE.search(reason)
    if found is None:
        return ""
    kind = "ClusterRole" if ' of ClusterRole "' in reason else "Role"
    return f"{kind} {found['role']}"


def used(granted: Iterable[Granted], requests: Iterable[Request]) -> set[Granted]:
    """Return the grants that allowed one of these requests."""
    made = {(one.role, one.right) for one in requests if one.allowed}
    return {one for one in granted if any(role == one.role and one.right.covers(right) for role, right in made)}


def surplus(granted: Iterable[Granted], requests: Iterable[Request]) -> list[Granted]:
    """Return the grants that no request used, and those that are granted twice."""
    every = list(granted)
    seen = used(every, requests)
    rights = [one.right for one in every]
    twice = [one for one in every if rights.count(one.right) > 1]
    return sorted({*twice, *(one for one in every if one not in seen)})


def deficit(requests: Iterable[Request]) -> list[tuple[str, Right]]:
    """Return who was refused which right."""
    return sorted({(one.user, one.right) for one in requests if not one.allowed})
