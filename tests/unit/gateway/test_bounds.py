"""What a body may be: whatever comes, it is a value or a 400 that names the cause."""

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmpool.gateway.bounds import MAX_INTEGER, BodyRefused, decode

BYTES, DEPTH = 10_240, 5

numbers = st.integers(-MAX_INTEGER, MAX_INTEGER) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20)


def depth_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


def refused(body: bytes, most_bytes: int = BYTES, most_depth: int = DEPTH) -> str:
    with pytest.raises(BodyRefused) as caught:
        decode(body, most_bytes, most_depth)
    assert (caught.value.status, caught.value.body["ok"]) == (400, False)
    assert caught.value.body["error"] == caught.value.error
    return caught.value.error


@given(values, st.booleans())
def test_what_is_within_the_bounds_is_read_as_it_was_written(value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert decode(body, len(body), depth_of(value)) == value


@given(values.filter(lambda value: depth_of(value) > 0))
def test_one_level_too_many_is_refused(value: Any) -> None:
    body = json.dumps(value).encode()
    assert refused(body, len(body), depth_of(value) - 1).startswith("Request body too complex")


@given(values)
def test_one_byte_too_many_is_refused(value: Any) -> None:
    body = json.dumps(value).encode()
    assert refused(body, len(body) - 1, 100).startswith("Request body too large")


@given(st.binary())
@example(b"\xff\xfe")
@example(b"[" * 10_000)
@example(b'{"a":' * 2_000)
@example(b'"' + b"[" * 100)
@example(b'"\\')
@example(b"\xef\xbb\xbf{}")
@example(b"\x00")
def test_any_bytes_are_a_value_or_a_refusal(body: bytes) -> None:
    try:
        value = decode(body, BYTES, DEPTH)
    except BodyRefused:
        return
    assert depth_of(value) <= DEPTH


@pytest.mark.parametrize("body", [b"", b" ", b"\r\n\t "])
def test_nothing_is_none(body: bytes) -> None:
    assert decode(body, BYTES, DEPTH) is None


def test_brackets_in_strings_are_no_depth() -> None:
    assert decode(rb'{"a": "[[[[[[[[\"{{{{{{{{\\"}', BYTES, 1) == {"a": '[[[[[[[["{{{{{{{{\\'}


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the name 'c' stands twice"),
        (b'{"a": NaN}', "NaN"),
        (b"-Infinity", "-Infinity"),
        (b"1e999", "1e999 is too large"),
        (b"9223372036854775808", "19 digits"),
        (b"1" * 5_000, "5000 digits"),
        (rb'"\ud800"', "surrogate"),
        (rb'{"\udfff": 1}', "surrogate"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b'{"a"', "at character 4"),
        (b"{} {}", "Extra data at character 3"),
    ],
)
def test_a_refusal_names_the_cause(body: bytes, cause: str) -> None:
    error = refused(body)
    assert error.startswith("Invalid JSON")
    assert cause in error


def test_the_largest_number_is_read() -> None:
    assert decode(str(MAX_INTEGER).encode(), BYTES, DEPTH) == MAX_INTEGER
    assert math.isclose(decode(b"1.5e300", BYTES, DEPTH), 1.5e300)
    assert decode(rb'"\ud83d\ude00"', BYTES, DEPTH) == "\N{GRINNING FACE}"
