"""What a checkout asks for: every mistake is a 400 with VMPooler's sentence, never an error of ours."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.gateway.answers import Refusal
from vmpool.gateway.requested import MAX_KEY, NAME, SHOWN, key_of, of_body, of_path, plain, shown, whole
from vmpool.settings import GatewaySettings

OWN = GatewaySettings()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    assert caught.value.status == 400
    assert caught.value.body["ok"] is False
    return str(caught.value.body["error"])


def taken(call: Any, *arguments: Any) -> Any:
    """What a call returns; None when it refuses with a 400 that can be sent."""
    try:
        return call(*arguments)
    except Refusal as refusal:
        if refusal.status != 400:
            raise
        json.dumps(refusal.body).encode("ascii")
        return None


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "must be at least 1"),
        ("0", "must be at least 1"),
        ("000", "must be at least 1"),
        (-1, "must be a valid integer"),
        ("-1", "must be a valid integer"),
        ("+1", "must be a valid integer"),
        (101, "must be at most 100"),
        ("9" * 5000, "must be at most 100"),
        (10**18, "must be at most 100"),
        ("x", "must be a valid integer"),
        ("", "must be a valid integer"),
        (" 1", "must be a valid integer"),
        ("1\n", "must be a valid integer"),
        ("١", "must be a valid integer"),
        (1.5, "must be a valid integer"),
        (1.0, "must be a valid integer"),
        (True, "must be a valid integer"),
        ([1], "must be a valid integer"),
        ({"n": 1}, "must be a valid integer"),
        (None, "is required"),
    ],
)
def test_a_count_is_a_whole_number_within_bounds(count: Any, words: str) -> None:
    cause = refused(of_body, {"web": count}, OWN)
    assert cause.startswith(f"VM count {words}: got ")
    assert cause.endswith('for "web"')


@pytest.mark.parametrize(("count", "number"), [(1, 1), ("1", 1), (100, 100), ("100", 100), ("007", 7)])
def test_a_count_may_be_written_in_digits(count: Any, number: int) -> None:
    assert of_body({"web": count}, OWN) == {"web": number}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "Pool name is required"),
        ("n" * 101, "Pool name too long"),
        ("a b", "Invalid pool name format"),
        ("web\x00", "Invalid pool name format"),
        ("web\n", "Invalid pool name format"),
        ("wéb", "Invalid pool name format"),
        ("a/b", "Invalid pool name format"),
    ],
)
def test_a_name_is_checked_before_its_count(name: str, words: str) -> None:
    assert refused(of_body, {name: 0}, OWN).startswith(words)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_any_body_is_taken_or_refused(body: dict[str, Any]) -> None:
    wanted = taken(of_body, body, OWN)
    if wanted is not None:
        assert wanted.keys() == body.keys()
        assert all(NAME.fullmatch(name) and 1 <= count <= 100 for name, count in wanted.items())


@given(st.text(st.sampled_from("ab+\x00é")))
def test_any_path_is_taken_or_refused(text: str) -> None:
    wanted = taken(of_path, text, OWN)
    if wanted is not None:
        kept = text.rstrip("+")
        assert sum(wanted.values()) == (kept.count("+") + 1 if kept else 0)
        assert all(wanted[name] == kept.split("+").count(name) for name in wanted)


def test_a_path_counts_names_in_their_order() -> None:
    assert list(of_path("b+a+b+", OWN).items()) == [("b", 2), ("a", 1)]
    assert of_path("a++b", OWN) == {"a": 1, "": 1, "b": 1}
    assert of_path("+", OWN) == {}


def test_requests_are_bounded_as_a_whole() -> None:
    assert refused(of_path, "+".join(["a"] * 101), OWN).startswith("VM count must be at most 100")
    body = {f"pool-{number}": 100 for number in range(6)}
    assert refused(of_body, body, OWN) == "VM count must be at most 500 over all pools of one request: got 600"
    assert of_body(dict(list(body.items())[:5]), OWN)
    small = GatewaySettings(checkout_max=2)
    assert refused(of_path, "a+b+c", small).startswith("VM count must be at most 2 over all")


@pytest.mark.parametrize("key", ["", "k" * 129, "a\x00", "a\nb", "a\x7f", "\udc80"])
def test_a_key_is_short_and_printable(key: str) -> None:
    assert refused(key_of, key).startswith("Idempotency-Key must be 1 to 128 printable characters")


@pytest.mark.parametrize("key", ["a", "k" * MAX_KEY, "build 7/linux", "größe"])
def test_other_keys_are_taken(key: str) -> None:
    assert key_of(key) == key
    assert key_of(None) == ""


@given(VALUES)
def test_what_is_repeated_is_short_and_ascii(value: Any) -> None:
    for text in (shown(value), plain(value)):
        assert len(text) <= SHOWN + 3
        assert text.isascii()
        assert text.isprintable()


def test_text_is_repeated_with_and_without_quotation_marks() -> None:
    assert (shown("x"), plain("x"), plain(""), plain(1)) == ('"x"', "x", "", "1")


def test_whole_numbers_have_any_bound() -> None:
    assert whole("2048", "Disk size", 2048) == 2048
    assert refused(whole, "2049", "Disk size", 2048) == 'Disk size must be at most 2048: got "2049"'
