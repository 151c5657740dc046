"""Changes of a pool over REST, and the way back: what stood there before is noted once, on the pool itself. Pure."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from vmpool.api import keys
from vmpool.api.meta import format_time
from vmpool.gateway.answers import Json


@dataclass(frozen=True, slots=True)
class Override:
    """One field of a pool that the config endpoints change."""

    name: str
    """As the endpoint is called, and as the note on the pool has it."""
    read: Callable[[Json], Any]
    """Return its value in a spec; None when it is absent."""
    write: Callable[[Any], Json]
    """Return the merge patch of a spec to a value; None removes it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One change of a pool: the merge patch, None when there is nothing to change, and the values around it."""

    patch: Json | None
    present: Any
    """The value that stands there now."""
    original: Any
    """The value that stood there before the first of our changes that still hold."""


def _targets(spec: Json) -> list[Json]:
    return [{"name": one["name"], "weight": one.get("weight", 1)} for one in spec["providers"]]


POOL_SIZE = Override("poolsize", lambda spec: spec.get("replicas"), lambda value: {"replicas": value})
POOL_TEMPLATE = Override(
    "pooltemplate", lambda spec: spec["template"].get("image"), lambda value: {"template": {"image": value}}
)
CLONE_TARGET = Override("clonetarget", _targets, lambda value: {"providers": value})


def change(raw: Json, override: Override, value: Any) -> Step:
    """Return the step from a pool, as the server has it, to a value."""
    present = override.read(raw["spec"])
    notes = _notes(raw)
    original = _original(notes, override, present)
    if present == value:
        return Step(None, present, original)
    notes.pop(override.name, None)
    if value != original:
        notes[override.name] = {"was": original, "set": value}
    return Step(_patch(raw, notes, override.write(value)), present, original)


def restore(raw: Json, override: Override) -> Step:
    """Return the step from a pool, as the server has it, back to what stood there before our changes.

    A value that somebody else has written since stays: then ours is gone already.
    """
    present = override.read(raw["spec"])
    notes = _notes(raw)
    original = _original(notes, override, present)
    if present == original:
        return Step(None, present, original)
    del notes[override.name]
    return Step(_patch(raw, notes, override.write(original)), present, original)


def reset(raw: Json, now: datetime) -> Json:
    """Return the patch that has all unclaimed VMs of a pool replaced that are there now.

    Objects tell their age in whole seconds: one made in this very second is replaced as well.
    """
    before = (now + timedelta(seconds=1)).replace(microsecond=0) if now.microsecond else now
    return {"metadata": _meant(raw), "spec": {"resetBefore": format_time(before)}}


def only_target(raw: Json, name: str) -> list[Json]:
    """Return a pool's providers such that new machines come from one of them alone."""
    return [
        {"name": one["name"], "weight": (one["weight"] or 1) if one["name"] == name else 0}
        for one in _targets(raw["spec"])
    ]


def _patch(raw: Json, notes: Mapping[str, Json], spec: Json) -> Json:
    text = json.dumps(notes, sort_keys=True) if notes else None
    return {"metadata": {**_meant(raw), "annotations": {keys.ANNOTATION_OVERRIDE: text}}, "spec": spec}


def _meant(raw: Json) -> Json:
    meta = raw["metadata"]
    return {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}


def _notes(raw: Json) -> dict[str, Json]:
    text = (raw["metadata"].get("annotations") or {}).get(keys.ANNOTATION_OVERRIDE, "")
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    # Anybody who may write the pool can write the note: what makes no sense in it was never there.
    if not isinstance(found, dict):
        return {}
    return {name: one for name, one in found.items() if isinstance(one, dict) and {"was", "set"} <= one.keys()}


def _original(notes: Mapping[str, Json], override: Override, present: Any) -> Any:
    note = notes.get(override.name)
    return note["was"] if note is not None and note["set"] == present else present
