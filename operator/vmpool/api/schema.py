"""Turn a pydantic model into a structural schema that a Kubernetes API server accepts.

pydantic writes JSON Schema 2020-12, a CRD wants OpenAPI 3.0 without references, unions with null, titles or
closed objects. The rules stand one a function; whatever has no rule is refused rather than guessed.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

_DROPPED = ("title", "examples", "discriminator", "$defs")
_KEPT = frozenset(
    {
        "type", "description", "properties", "required", "items", "enum", "default", "format", "pattern",
        "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
        "additionalProperties", "anyOf", "multipleOf",
    }
)  # fmt: skip


class UnsupportedSchema(TypeError):
    """The model uses something that a structural schema cannot say."""


def structural(model: type[BaseModel]) -> Schema:
    """Return the structural schema of a model.

    Raises UnsupportedSchema for recursion, tuples of fixed shape and real unions.
    """
    raw = model.model_json_schema(by_alias=True, mode="validation")
    return _node(raw, raw.get("$defs", {}), ())


def _node(raw: Mapping[str, Any], defs: Mapping[str, Any], path: tuple[str, ...]) -> Schema:
    raw = _resolve(raw, defs, path)
    if raw.get("x-kubernetes-preserve-unknown-fields"):
        return {
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": True,
            **{key: raw[key] for key in ("description",) if key in raw},
        }
    made: Schema = {}
    for key, value in raw.items():
        if key in _DROPPED:
            continue
        if key == "properties":
            made[key] = {name: _node(child, defs, (*path, name)) for name, child in value.items()}
        elif key == "items":
            made[key] = _node(value, defs, (*path, "items"))
        elif key == "additionalProperties":
            if isinstance(value, Mapping):
                made[key] = _node(value, defs, (*path, "*"))
        elif key in _KEPT or key.startswith("x-kubernetes-"):
            made[key] = value
        elif key in _SPECIAL:
            _SPECIAL[key](made, value)
        elif key == "maxProperties":
            made[key] = value
        else:
            raise UnsupportedSchema(f"{'.'.join(path) or '(root)'}: {key} has no counterpart in a structural schema")
    return made


def _resolve(raw: Mapping[str, Any], defs: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    """Follow references and drop ``| None``; keys beside a reference override what it points at."""
    if len(path) > 32:
        raise UnsupportedSchema(f"{'.'.join(path)}: recursive shapes cannot be written as a structural schema")
    if "$ref" in raw:
        target = defs[raw["$ref"].removeprefix("#/$defs/")]
        return _resolve({**target, **{k: v for k, v in raw.items() if k != "$ref"}}, defs, (*path, "$ref"))
    options = [option for option in raw.get("anyOf", ()) if option.get("type") != "null"]
    if "anyOf" in raw and len(options) == 1 and "x-kubernetes-int-or-string" not in raw:
        beside = {key: value for key, value in raw.items() if key != "anyOf"}
        if beside.get("default", ...) is None:
            del beside["default"]
        return _resolve({**_resolve(options[0], defs, path), **beside}, defs, (*path, "anyOf"))
    if len(options) > 1 and "x-kubernetes-int-or-string" not in raw:
        raise UnsupportedSchema(f"{'.'.join(path)}: a union needs x-kubernetes-int-or-string or a kind of its own")
    if raw.get("type") == "object" and "properties" in raw and isinstance(raw.get("default"), Mapping):
        # Defaults stand at the leaves; a default of a whole section would fill every stored object with it.
        return {key: value for key, value in raw.items() if key != "default"}
    if raw.get("default", ...) in (None, [], {}):
        return {key: value for key, value in raw.items() if key != "default"}
    return raw


def _const(made: Schema, value: Any) -> None:
    made["enum"] = [value]


def _exclusive_minimum(made: Schema, value: Any) -> None:
    made["minimum"] = value
    made["exclusiveMinimum"] = True


_SPECIAL: Mapping[str, Callable[[Schema, Any], None]] = {
    "const": _const,
    "exclusiveMinimum": _exclusive_minimum,
}
