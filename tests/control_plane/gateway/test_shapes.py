"""The judge of the contract tests is judged: every kind of shape refuses what it should."""

from typing import Any

import pytest

from tests.control_plane.gateway.shapes import (
    ANYTHING,
    NUMBER,
    Around,
    Each,
    Has,
    Match,
    Maybe,
    Says,
    Shape,
    filled,
    mismatch,
)

FITS: list[tuple[Shape, Any]] = [
    (int, 1),
    (bool, True),
    (NUMBER, 1.5),
    (ANYTHING, None),
    ("x", "x"),
    ({"a": int, Maybe("b"): str}, {"a": 1}),
    ({"a": int, Each("b.*"): str}, {"a": 1, "b1": "x", "b2": "y"}),
    ([int], [1, 2]),
    ([int], []),
    ((int, str), [1, "x"]),
    (Match("a+"), "aa"),
    (Says("b"), "abc"),
    (Has(("a",), without=("b",)), ["a", "c"]),
    (Around(1, 0.1), 1.05),
]
DIFFERS: list[tuple[Shape, Any]] = [
    (int, True),
    (int, 1.0),
    (bool, 1),
    (str, None),
    (NUMBER, True),
    (NUMBER, "1"),
    ("x", "y"),
    (1, True),
    (False, 0),
    ({"a": int}, {"a": 1, "b": 2}),
    ({"a": int}, {}),
    ({"a": int}, [1]),
    ({"a": int, Maybe("b"): str}, {"a": 1, "b": 2}),
    ({Each("b.*"): str}, {"c": "x"}),
    ({Each("b.*"): str}, {"b": 1}),
    ([int], [1, "x"]),
    ([int], {}),
    ((int, int), [1]),
    ((int, int), [1, "x"]),
    (Match("a+"), "aab"),
    (Match("a+"), None),
    (Says("b"), "ac"),
    (Has(("a",)), ["b"]),
    (Has((), without=("b",)), ["b"]),
    (Around(1, 0.1), 1.2),
]


@pytest.mark.parametrize(("shape", "value"), FITS)
def test_fits(shape: Shape, value: Any) -> None:
    assert mismatch(shape, value) == ""


@pytest.mark.parametrize(("shape", "value"), DIFFERS)
def test_differs_and_says_where(shape: Shape, value: Any) -> None:
    assert mismatch(shape, value).startswith("$")


def test_names_are_filled_in_everywhere() -> None:
    names = {"web": "web-1"}
    shape = {"<web>": (Match("<web>-.*"), Says("<web>"), Has(("<web>",))), Maybe("<web>x"): ["<web>"]}
    assert filled(shape, names) == {
        "web-1": (Match("web-1-.*"), Says("web-1"), Has(("web-1",))),
        Maybe("web-1x"): ["web-1"],
    }
    with pytest.raises(KeyError):
        filled("<nobody>", names)
