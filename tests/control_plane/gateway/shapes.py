"""Shapes of JSON documents: exact keys, types, and exact values where a document promises them."""

import re
from dataclasses import dataclass
from typing import Any

Shape = Any
"""A type, a value, a dict of shapes with exact keys, a list of one shape (any length), a tuple (exact length),
or one of the classes below. ``bool`` is no ``int`` here."""

ADDRESS = re.compile(r"[0-9a-fA-F.:]*")


@dataclass(frozen=True)
class Maybe:
    """A key that may be missing."""

    key: str


@dataclass(frozen=True)
class Each:
    """The keys of a map that are named by no other key, and the shape of their values."""

    pattern: str


@dataclass(frozen=True)
class Match:
    """A string that a regular expression matches as a whole."""

    pattern: str


@dataclass(frozen=True)
class Says:
    """A string that has this sentence in it."""

    words: str


@dataclass(frozen=True)
class Has:
    """A list that has these elements, whatever else is in it."""

    elements: tuple[Any, ...]
    without: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Text:
    """A body that is plain text and not JSON: exactly this."""

    words: str


@dataclass(frozen=True)
class Around:
    """A number near another one."""

    value: float
    within: float


class _Any:
    """Anything."""


ANYTHING = _Any()
NUMBER = object()
"""An int or a float."""
NO_BODY = object()
"""An answer without a body."""


def mismatch(shape: Shape, value: Any, where: str = "$") -> str:  # noqa: C901 - one case a kind of shape
    """Say where and how a document differs from its shape; empty when it does not."""
    if shape is ANYTHING:
        return ""
    if shape is NUMBER:
        return _unless(isinstance(value, int | float) and not isinstance(value, bool), where, "a number", value)
    if isinstance(shape, type):
        fits = isinstance(value, shape) and (shape is bool or not isinstance(value, bool))
        return _unless(fits, where, shape.__name__, value)
    if isinstance(shape, dict):
        return _mapping(shape, value, where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _unless(False, where, "a list", value)
        return _first(mismatch(shape[0], element, f"{where}[{i}]") for i, element in enumerate(value))
    if isinstance(shape, tuple):
        if not isinstance(value, list) or len(value) != len(shape):
            return _unless(False, where, f"a list of {len(shape)}", value)
        pairs = zip(shape, value, strict=True)
        return _first(mismatch(one, element, f"{where}[{i}]") for i, (one, element) in enumerate(pairs))
    if isinstance(shape, Match):
        fits = isinstance(value, str) and re.fullmatch(shape.pattern, value) is not None
        return _unless(fits, where, f"/{shape.pattern}/", value)
    if isinstance(shape, Says):
        return _unless(isinstance(value, str) and shape.words in value, where, f"... {shape.words} ...", value)
    if isinstance(shape, Has):
        fits = isinstance(value, list) and all(one in value for one in shape.elements)
        fits = fits and not any(one in value for one in shape.without)
        return _unless(fits, where, f"a list with {shape.elements} and without {shape.without}", value)
    if isinstance(shape, Around):
        fits = isinstance(value, int | float) and abs(value - shape.value) <= shape.within
        return _unless(fits, where, f"{shape.value} +- {shape.within}", value)
    return _unless(type(value) is type(shape) and value == shape, where, repr(shape), value)


def filled(shape: Shape, names: dict[str, str]) -> Shape:
    """The shape with every ``<name>`` in its strings replaced."""
    if isinstance(shape, str):
        return fill(shape, names)
    if isinstance(shape, dict):
        return {filled(key, names): filled(value, names) for key, value in shape.items()}
    if isinstance(shape, list | tuple):
        return type(shape)(filled(one, names) for one in shape)
    if isinstance(shape, Match | Each):
        return type(shape)(fill(shape.pattern, names))
    if isinstance(shape, Says | Text):
        return type(shape)(fill(shape.words, names))
    if isinstance(shape, Maybe):
        return Maybe(fill(shape.key, names))
    if isinstance(shape, Has):
        return Has(filled(shape.elements, names), filled(shape.without, names))
    return shape


def fill(text: str, names: dict[str, str]) -> str:
    """The text with every ``<name>`` replaced. Fails for a name that nobody knows."""
    return re.sub(r"<([a-z][a-z.0-9-]*)>", lambda found: names[found[1]], text)


def _mapping(shape: dict[Any, Shape], value: Any, where: str) -> str:
    if not isinstance(value, dict):
        return _unless(False, where, "an object", value)
    fixed = {(key.key if isinstance(key, Maybe) else key): one for key, one in shape.items() if type(key) is not Each}
    needed = {key for key in shape if isinstance(key, str)}
    if missing := needed - value.keys():
        return f"{where}: {sorted(missing)} missing in {value}"
    each = next(((key.pattern, one) for key, one in shape.items() if isinstance(key, Each)), None)
    for key, element in value.items():
        if key in fixed:
            found = mismatch(fixed[key], element, f"{where}.{key}")
        elif each is not None and re.fullmatch(each[0], key):
            found = mismatch(each[1], element, f"{where}.{key}")
        else:
            return f"{where}: unexpected key {key!r} with {element!r}"
        if found:
            return found
    return ""


def _first(found: Any) -> str:
    return next((one for one in found if one), "")


def _unless(fits: bool, where: str, wanted: str, value: Any) -> str:
    return "" if fits else f"{where}: {value!r} is not {wanted}"
