"""The header Authorization: what is read, and that nothing in it can do more than be wrong."""

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.gateway.auth.basic import basic, bearer


def header(content: bytes) -> str:
    return f"Basic {b64encode(content).decode()}"


PRINTABLE = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40)


@given(PRINTABLE.filter(lambda user: user and ":" not in user), PRINTABLE)
def test_what_a_client_writes_is_read(user: str, password: str) -> None:
    assert basic(header(f"{user}:{password}".encode())) == (user, password)


@given(st.text(max_size=100))
def test_any_header_is_a_pair_or_none(text: str) -> None:
    for value in (text, f"Basic {text}"):
        pair = basic(value)
        assert pair is None or (pair[0] and ":" not in pair[0])
        assert isinstance(bearer(value), str)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_pair_or_none(content: bytes) -> None:
    pair = basic(header(content))
    assert pair is None or f"{pair[0]}:{pair[1]}".encode() == content


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("", id="none"),
        pytest.param("Basic", id="no pair"),
        pytest.param("Basic !!!!", id="no base64"),
        pytest.param("Basic YWxpY2U6eA", id="base64 without padding"),
        pytest.param("Basic YWxpY2U6eA==\x00", id="something behind it"),
        pytest.param("Digest YWxpY2U6eA==", id="another scheme"),
        pytest.param(header(b"alice"), id="no colon"),
        pytest.param(header(b":secret"), id="no user"),
        pytest.param(header(b"alice:\xff\xfe"), id="no UTF-8"),
        pytest.param(header(b"alice:\0secret"), id="NUL, the end of a password in C"),
        pytest.param(header(b"al\nice:secret"), id="line feed in the user"),
        pytest.param(header(b"alice:" + b"x" * 8192), id="huge"),
        pytest.param("Basic ü", id="no ASCII"),
        pytest.param("Basic \udcff", id="a byte that is no character"),
    ],
)
def test_what_no_pair_is(value: str) -> None:
    assert basic(value) is None


def test_the_scheme_in_any_case_and_a_colon_in_the_password() -> None:
    assert basic("bAsIc " + b64encode(b"alice:a:b:").decode()) == ("alice", "a:b:")
    assert basic(header(b"alice:")) == ("alice", "")


def test_bearer_tokens() -> None:
    assert bearer("Bearer abc.def") == "abc.def"
    assert bearer("bearer  abc ") == "abc"
    for value in ("", "Bearer", "Basic abc", "Bearer " + "x" * 20_000):
        assert bearer(value) == ""
