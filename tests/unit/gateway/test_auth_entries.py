"""What is kept of a token."""

import json
from base64 import b64decode, b64encode
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.gateway.auth import entries
from vmpool.gateway.auth.caller import Identity, rest_identity
from vmpool.gateway.auth.entries import ShelfReader, TokenKeys
from vmpool.gateway.context import TokenFacts
from vmpool.kube.resource import Json

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
FACTS = TokenFacts("0011223344556677", rest_identity("alice", ("ops",)), NOW, None, None)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
MOMENT = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1)).map(lambda at: at.replace(microsecond=0, tzinfo=UTC))  # noqa: DTZ001
KEY = b"k" * 32


def secret(name: str = "vmpool-tokens-a", **data: str) -> Json:
    return {"metadata": {"name": name}, "data": data}


@given(
    st.builds(
        TokenFacts,
        TEXT,
        st.builds(Identity, TEXT, TEXT, st.lists(TEXT, max_size=4).map(tuple)),
        MOMENT,
        st.none() | MOMENT,
        st.none() | MOMENT,
    )
)
def test_what_is_kept_is_what_is_read(facts: TokenFacts) -> None:
    assert entries.decode(entries.encode(facts)) == facts


@given(st.text(max_size=50) | st.binary(max_size=50).map(lambda raw: b64encode(raw).decode()))
def test_anything_else_is_a_value_error(raw: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any kind
        entries.decode(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(["id", "login", "user", "groups", "created", "expires", "lastUsed"]), JSON)
def test_a_field_of_another_type_is_a_value_error_or_read(name: str, value: object) -> None:
    content = json.loads(b64decode(entries.encode(FACTS)))
    content[name] = value
    with suppress(ValueError):
        facts = entries.decode(b64encode(json.dumps(content).encode()).decode())
        assert entries.decode(entries.encode(facts)) == facts


def test_a_new_token_is_one_of_ours_and_random() -> None:
    made = {entries.new_token() for _ in range(100)}
    assert len(made) == 100
    assert all(entries.looks_like_token(token) for token in made)
    assert set("".join(made)) == set(entries.ALPHABET), "5,000 characters leave none of 36 out"


@pytest.mark.parametrize("text", ["", "a" * 49, "a" * 51, "A" * 50, "a" * 49 + "\n", "a" * 49 + "ü", "\udcff" * 50])
def test_what_no_token_is(text: str) -> None:
    assert not entries.looks_like_token(text)


def test_the_digest_is_hmac_sha256() -> None:
    """RFC 4231, test case 2."""
    expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert entries.digest_of(b"Jefe", "what do ya want for nothing?") == expected
    assert entries.secret_of(expected) == "vmpool-tokens-5"


def test_keys_are_read_and_never_shown() -> None:
    raw = b64encode(KEY).decode()
    keys = entries.read_keys(secret(current=raw, previous=raw))
    assert keys == TokenKeys(KEY, KEY)
    assert repr(keys) == "TokenKeys()"
    assert entries.read_keys(secret(current=raw)) == TokenKeys(KEY, b"")
    assert entries.read_keys({"metadata": {}}) == TokenKeys()
    assert len(b64decode(entries.new_key())) == 32


@pytest.mark.parametrize("name", ["current", "previous"])
@pytest.mark.parametrize("raw", ["?", b64encode(b"k" * 31).decode()])
def test_bad_keys_are_named(name: str, raw: str) -> None:
    with pytest.raises(ValueError, match=f"data.{name}"):
        entries.read_keys(secret(**{name: raw}))


def test_a_broken_entry_takes_no_other_with_it() -> None:
    raw = entries.encode(FACTS)
    good = "a" * 64
    shelf = ShelfReader()(secret(**{good: raw, "ab": raw, "b" * 64: raw, "a" + "0" * 63: "???"}))
    assert [entry.facts for entry in shelf.entries.values()] == [FACTS]
    assert set(shelf.broken) == {"ab", "b" * 8, "a0000000"}


def test_what_has_not_changed_is_not_read_again() -> None:
    reader = ShelfReader()
    one, two = "a" * 64, "a" + "1" * 63
    before = reader(secret(**{one: entries.encode(FACTS), two: entries.encode(FACTS)})).entries
    used = TokenFacts(FACTS.id, FACTS.identity, NOW, NOW + timedelta(hours=1))
    after = reader(secret(**{one: entries.encode(FACTS), two: entries.encode(used)})).entries
    assert after[one] is before[one]
    assert after[two].facts.last_used == NOW + timedelta(hours=1)
    assert reader(secret()).entries == {}
