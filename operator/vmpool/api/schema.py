"""Turn a pydantic model into a structural schema that a Kubernetes API server accepts.

pydantic writes JSON Schema 2020-12, a CRD wants OpenAPI 3.0 without references, unions with null, titles or
closed objects. The rules stand one a function; whatever has no rule is refused rather than guessed.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from vmpool.api.meta import RULES, Rule

Schema = dict[str, Any]

PRESERVE = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING = "x-kubernetes-int-or-string"

_DROPPED = frozenset({"title", "examples", "discriminator", "$defs"})
_KEPT = (
    "description", "type", "format", "enum", "default", "pattern", "minimum", "maximum", "multipleOf", "minLength",
    "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "anyOf", "required", "properties", "items",
    "additionalProperties",
)  # fmt: skip
"""What goes over unchanged, in the order in which a reader wants to see it."""


class UnsupportedSchema(TypeError):
    """The model uses something that a structural schema cannot say."""


def structural(model: type[BaseModel]) -> Schema:
    """Return the structural schema of a model.

    Raises UnsupportedSchema for recursion, tuples of fixed shape, real unions and values of any type.
    """
    raw = model.model_json_schema(by_alias=True, mode="validation")
    return _Converter(raw.get("$defs", {})).node(raw, (), frozenset())


class _Converter:
    """Walks one model's schema; ``path`` is where it is, ``inside`` which references it came through."""

    def __init__(self, defs: Mapping[str, Any]) -> None:
        self._defs = defs

    def node(self, raw: Mapping[str, Any], path: tuple[str, ...], inside: frozenset[str]) -> Schema:
        raw, inside = self._resolved(raw, path, inside)
        if raw.get(PRESERVE):
            return {**_only(raw, "description"), "type": "object", PRESERVE: True}
        if "type" not in raw and INT_OR_STRING not in raw:
            raise _unsupported(path, "a value of any type")
        made: Schema = {}
        for key, value in raw.items():
            if key == "properties":
                made[key] = {name: self.node(child, (*path, name), inside) for name, child in value.items()}
            elif key == "items":
                made[key] = self.node(value, (*path, "items"), inside)
            elif key == "additionalProperties":
                made.update(self._values(value, path, inside))
            elif key == "propertyNames":
                made.update(self._keys(value, path))
            elif key in _SPECIAL:
                _SPECIAL[key](made, value, raw)
            elif key in _KEPT or key.startswith("x-kubernetes-"):
                made[key] = value
            elif key not in _DROPPED:
                raise _unsupported(path, key)
        return _ordered(made)

    def _values(self, value: Any, path: tuple[str, ...], inside: frozenset[str]) -> Schema:
        """Convert the values of a map. A closed object needs no word: the server refuses unknown fields itself."""
        if value is False:
            return {}
        if value is True:
            raise _unsupported(path, "a map with values of any type")
        return {"additionalProperties": self.node(value, (*path, "*"), inside)}

    def _keys(self, value: Mapping[str, Any], path: tuple[str, ...]) -> Schema:
        """Bound the keys of a map: OpenAPI 3.0 cannot, a rule can."""
        if set(value) - _DROPPED != {"maxLength"}:
            raise _unsupported(path, "a map whose keys are bounded by more than their length")
        longest = value["maxLength"]
        rule = f"self.all(key, key.size() <= {longest})"
        return {RULES: [Rule(rule=rule, message=f"keys must be at most {longest} characters long").wire()]}

    def _resolved(
        self, raw: Mapping[str, Any], path: tuple[str, ...], inside: frozenset[str]
    ) -> tuple[Mapping[str, Any], frozenset[str]]:
        """Follow references and drop ``| None``; keys beside a reference override what it points at."""
        while True:
            if "$ref" in raw:
                name = raw["$ref"].removeprefix("#/$defs/")
                if name in inside:
                    raise _unsupported(path, f"the recursive shape {name}")
                inside |= {name}
                raw = {**self._defs[name], **_without(raw, "$ref")}
            elif "anyOf" in raw and INT_OR_STRING not in raw:
                options = [option for option in raw["anyOf"] if option.get("type") != "null"]
                if len(options) != 1:
                    raise _unsupported(path, "a union")
                raw = {**options[0], **_without(raw, "anyOf")}
            else:
                return _without_idle_default(raw), inside


def _without_idle_default(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drop a default that says nothing, and that of a section.

    Defaults stand at the leaves; a default of a whole section would fill every stored object with it.
    """
    section = raw.get("type") == "object" and "properties" in raw
    return _without(raw, "default") if section or raw.get("default") in (None, [], {}) else raw


def _const(made: Schema, value: Any, _: Mapping[str, Any]) -> None:
    made["enum"] = [value]


def _exclusive_minimum(made: Schema, value: Any, raw: Mapping[str, Any]) -> None:
    whole = raw.get("type") == "integer"
    made.update({"minimum": value + 1} if whole else {"minimum": value, "exclusiveMinimum": True})


def _exclusive_maximum(made: Schema, value: Any, raw: Mapping[str, Any]) -> None:
    whole = raw.get("type") == "integer"
    made.update({"maximum": value - 1} if whole else {"maximum": value, "exclusiveMaximum": True})


_SPECIAL: Mapping[str, Callable[[Schema, Any, Mapping[str, Any]], None]] = {
    "const": _const,
    "exclusiveMinimum": _exclusive_minimum,
    "exclusiveMaximum": _exclusive_maximum,
}


def _unsupported(path: tuple[str, ...], what: str) -> UnsupportedSchema:
    return UnsupportedSchema(f"{'.'.join(path) or '(root)'}: {what} has no counterpart in a structural schema")


def _only(raw: Mapping[str, Any], *keys: str) -> Schema:
    return {key: raw[key] for key in keys if key in raw}


def _without(raw: Mapping[str, Any], key: str) -> Schema:
    return {name: value for name, value in raw.items() if name != key}


def _ordered(made: Schema) -> Schema:
    return {**_only(made, *_KEPT), **made}
