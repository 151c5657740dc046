"""The schema's defaults, as the API server fills them in on every write."""

from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from vmpool.api import keys
from vmpool.kube.resource import Json

CRDS: Final = Path(__file__).parent.parent.parent / "crds"
ABSENT: Final = object()


@cache
def schema_of(plural: str) -> Json | None:
    """Return the checked-in schema of one of our kinds; None for a kind that is not ours."""
    file = CRDS / f"{plural}.{keys.GROUP}.yaml"
    if not file.exists():
        return None
    definition = yaml.load(file.read_bytes(), yaml.CSafeLoader)
    found: Json = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return _needed(found)


def _needed(schema: Json) -> Json | None:
    """Return the part of a schema that has defaults somewhere below it; None when there are none."""
    made: Json = {}
    if "default" in schema:
        made["default"] = schema["default"]
    for name, below in (schema.get("properties") or {}).items():
        if (part := _needed(below)) is not None:
            made.setdefault("properties", {})[name] = part
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict) and (part := _needed(schema[name])) is not None:
            made[name] = part
    return made or None


def with_defaults(plural: str, obj: Json) -> Json:
    """Return the object with what is absent filled in; what is not changed is shared, the top level is new."""
    schema = schema_of(plural)
    return dict(obj) if schema is None else dict(_filled(schema, obj))


def _filled(schema: Json, value: Any) -> Any:
    if isinstance(value, list):
        items = schema.get("items")
        return value if items is None else [_filled(items, one) for one in value]
    if not isinstance(value, dict):
        return value
    made = value
    for name, below in schema.get("properties", {}).items():
        before = value.get(name, ABSENT)
        if before is ABSENT and "default" not in below:
            continue
        after = _filled(below, below["default"] if before is ABSENT else before)
        if after is not before:
            made = dict(value) if made is value else made
            made[name] = after
    every = schema.get("additionalProperties")
    if every is not None:
        made = {name: _filled(every, one) for name, one in made.items()}
    return made
