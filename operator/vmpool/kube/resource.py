"""Where the objects of a kind live in the API."""

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

Json = dict[str, Any]
"""One decoded JSON object."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind as the API serves it; ``group`` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As objects carry it: ``group/version``, or only the version in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path; without ``name`` that of the collection, without ``namespace`` of all namespaces.

        Raises ValueError for a name that would address something else, for an object of a namespaced kind
        without its namespace, and for a namespace where the kind has none.
        """
        # An empty name is the collection: a DELETE there would delete every object.
        if {namespace, name} & {"", ".", ".."}:
            raise ValueError(f"not a name: {namespace!r}, {name!r}")
        if namespace is not None and not self.namespaced:
            raise ValueError(f"{self.plural} have no namespace, got {namespace!r}")
        if namespace is None and self.namespaced and name is not None:
            raise ValueError(f"{self.plural} {name!r} needs its namespace")
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


EVENTS: Final = Resource(group="", version="v1", plural="events", kind="Event")
LEASES: Final = Resource(group="coordination.k8s.io", version="v1", plural="leases", kind="Lease")
