"""What becomes of the body of one list."""

from typing import Any

import orjson

from tests.faults.gate.plan import Action, Kind


def changed(action: Action, body: bytes, first: bytes | None) -> bytes:
    """Return the body that the replica gets instead; ``first`` is the first list of this kind that it got."""
    page: dict[str, Any] = orjson.loads(body)
    match action.kind:
        case Kind.STALE:
            return first if first is not None else body
        case Kind.EMPTY:
            items: list[Any] = []
        case Kind.PARTIAL:
            items = page["items"][: len(page["items"]) // 2]
        case _:
            raise ValueError(f"{action.kind} does not happen to lists")
    page["items"] = items
    page.get("metadata", {}).pop("continue", None)
    page.get("metadata", {}).pop("remainingItemCount", None)
    return orjson.dumps(page)
