"""What the gateway writes on the VMClaim of an on-demand request, and which one it is by the request's id."""

import hashlib
import json
from dataclasses import dataclass

NAME_PREFIX = "od-"
NAME_DIGITS = 40
MAX_ID = 128
"""Characters of a request id."""


@dataclass(frozen=True, slots=True)
class Note:
    """An on-demand request as its client wrote it."""

    id: str
    names: tuple[tuple[str, int], ...]
    """What was asked for: names and counts, in the order of the VMClaim's requests and so of its slots."""
    call: str = ""
    """Id of the HTTP request that made it: tells our own write, when its answer was lost, from somebody else's."""

    @property
    def count(self) -> int:
        """How many VMs were asked for."""
        return sum(count for _, count in self.names)

    def text(self) -> str:
        """Return the annotation."""
        names = [{"name": name, "count": count} for name, count in self.names]
        return json.dumps({"id": self.id, "names": names, "call": self.call})


def read(text: str) -> Note | None:
    """Return what an annotation says; None for one that no gateway wrote."""
    try:
        found = json.loads(text)
        names = tuple((str(one["name"]), int(one["count"])) for one in found["names"])
        return Note(str(found["id"]), names, str(found.get("call", "")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def claim_name(request_id: str) -> str:
    """Return the name of the VMClaim of a request: as long as its id is new, nobody else has it."""
    digest = hashlib.sha256(request_id.encode(errors="surrogatepass")).hexdigest()
    return f"{NAME_PREFIX}{digest[:NAME_DIGITS]}"
