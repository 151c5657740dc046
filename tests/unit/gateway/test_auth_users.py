"""Password hashes and users files: what is read, what is refused, and that neither tells more than it must."""

import asyncio
import base64
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import until
from vmpool.gateway.auth.caller import Identity, rest_identity
from vmpool.gateway.auth.passwords import Cost, PasswordHash, hash_password, parse_hash
from vmpool.gateway.auth.static import LOOK_SECONDS, StaticUsers, UsersFileError, parse_users

CHEAP = Cost(2**14, 8, 1)
RIGHT = "correct horse"
HASH = hash_password(RIGHT, CHEAP)
OTHER = hash_password("battery staple", Cost(2**14, 8, 2))


def problem_of(reader: Callable[[str], object], text: str) -> str:
    """What the reader finds wrong; "none" when it reads the text. Anything but a ValueError fails the test."""
    try:
        reader(text)
    except ValueError as error:
        return str(error)
    return "none"


class Clock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def users(tmp_path: Path, clock: Clock) -> Callable[[str], StaticUsers]:
    def make(text: str) -> StaticUsers:
        (tmp_path / "users").write_text(text)
        return StaticUsers(str(tmp_path / "users"), 2, clock)

    return make


def test_a_hash_knows_its_password() -> None:
    made = parse_hash(hash_password(RIGHT))
    assert made.cost == Cost()
    assert made.matches(RIGHT)
    assert not made.matches(RIGHT + " ")
    assert not made.matches("")


def test_two_hashes_of_one_password_differ() -> None:
    assert hash_password(RIGHT, CHEAP) != HASH


@pytest.mark.parametrize("password", ["", "x" * 1025])
def test_no_hash_of_nothing_or_too_much(password: str) -> None:
    with pytest.raises(ValueError, match="the password must"):
        hash_password(password, CHEAP)


def test_a_hash_that_was_made_elsewhere_is_understood() -> None:
    """With padded base64 and a longer digest than ours."""
    salt = b"SodiumChloride!!"
    digest = hashlib.scrypt(b"pleaseletmein", salt=salt, n=16384, r=8, p=1, maxmem=2**26, dklen=64)
    text = f"scrypt$16384$8$1${base64.urlsafe_b64encode(salt).decode()}${base64.urlsafe_b64encode(digest).decode()}"
    assert parse_hash(text).matches("pleaseletmein")


GOOD = HASH.split("$")


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        pytest.param(0, "bcrypt", "must be scrypt", id="another algorithm"),
        pytest.param(1, "16383", "n must be a number from 16384", id="n too small"),
        pytest.param(1, "20000", "power of two", id="n no power of two"),
        pytest.param(1, str(2**30), "n must be", id="n too large"),
        pytest.param(1, "9" * 5000, "n must be", id="n absurd"),
        pytest.param(1, "-16384", "n must be", id="n negative"),
        pytest.param(1, "16_384", "n must be", id="n as Python would take it"),
        pytest.param(2, "0", "r must be", id="r zero"),
        pytest.param(2, "33", "r must be", id="r too large"),
        pytest.param(3, "17", "p must be", id="p too large"),
        pytest.param(4, "c2hvcnQ", "salt must have 16", id="short salt"),
        pytest.param(4, "=====", "salt must be", id="salt no base64"),
        pytest.param(5, "a" * 1000, "hash must have", id="long digest"),
        pytest.param(5, "", "hash must be", id="no digest"),
        pytest.param(5, "ü", "hash must be", id="digest no ASCII"),
    ],
)
def test_what_no_hash_is(place: int, value: str, says: str) -> None:
    parts = [*GOOD[:place], value, *GOOD[place + 1 :]]
    with pytest.raises(ValueError, match=says):
        parse_hash("$".join(parts))


def test_the_costs_are_bounded_together() -> None:
    with pytest.raises(ValueError, match=r"n\*r must be at most"):
        parse_hash("$".join([GOOD[0], str(2**17), "16", "1", *GOOD[4:]]))
    with pytest.raises(ValueError, match=r"n\*r\*p must be at most"):
        parse_hash("$".join([GOOD[0], str(2**17), "8", "5", *GOOD[4:]]))


def test_a_hash_shows_nothing_of_itself() -> None:
    shown = repr(parse_hash(HASH))
    assert shown == f"PasswordHash(cost={CHEAP!r})"


@given(st.text(max_size=300))
def test_any_text_is_a_hash_or_a_value_error(text: str) -> None:
    problem = problem_of(parse_hash, text)
    assert len(text) < 12 or text not in problem


def test_a_users_file_is_read() -> None:
    users = parse_users(f"# people\n\nalice:{HASH}\nbob:{OTHER}:ops, dev\r\nci-1@example.org:{HASH}:\n")
    assert list(users) == ["alice", "bob", "ci-1@example.org"]
    assert users["alice"].groups == ()
    assert users["bob"].groups == ("ops", "dev")
    assert users["ci-1@example.org"].groups == ()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        pytest.param("alice", "it has 1 parts", id="no hash"),
        pytest.param(f"alice:{HASH}:a:b", "it has 4 parts", id="too many parts"),
        pytest.param(f":{HASH}", "the user must have", id="no user"),
        pytest.param(f"al ice:{HASH}", "the user must have", id="space"),
        pytest.param(f"älice:{HASH}", "the user must have", id="no ASCII"),
        pytest.param(f"{'a' * 129}:{HASH}", "the user must have", id="long user"),
        pytest.param("alice:secret password", "must be scrypt", id="password in clear"),
        pytest.param(f"alice:{HASH}:a,,b", "group '' must have", id="empty group"),
        pytest.param(f"alice:{HASH}:a b", "group 'a b' must have", id="group with a space"),
        pytest.param(f"alice:{HASH}:{','.join(f'g{n}' for n in range(64))}", "at most 63 groups", id="many groups"),
        pytest.param(f"first:{HASH}", "user 'first' is there twice", id="twice"),
    ],
)
def test_a_bad_line_is_named_and_not_repeated(line: str, says: str) -> None:
    with pytest.raises(UsersFileError, match=says) as caught:
        parse_users(f"# people\nfirst:{HASH}\n{line}\n")
    assert str(caught.value).startswith("line 3: ")
    assert "secret password" not in str(caught.value)
    assert HASH not in str(caught.value)


@given(st.text(alphabet=st.sampled_from("ab:$,#\n\r\x0b\x85\u2028 é\0" + "scrypt0123456789"), max_size=200))
def test_any_text_is_a_users_file_or_an_error_with_a_line(text: str) -> None:
    assert problem_of(parse_users, text).startswith(("none", "line "))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"alice:x", b"x" * (4 * 1024 * 1024 + 1)])
def test_a_bad_file_is_refused_at_the_start(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "users"
    file.write_bytes(content)
    with pytest.raises(UsersFileError, match="users_file"):
        StaticUsers(str(file), 1)


def test_a_missing_file_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsersFileError, match=r"users_file '.*/none' cannot be read: No such file"):
        StaticUsers(str(tmp_path / "none"), 1)


async def test_who_may_log_in(users: Callable[[str], StaticUsers]) -> None:
    known = users(f"alice:{HASH}:ops\n")
    assert await known.login("alice", RIGHT) == Identity("alice", "vmpool:alice", ("vmpool:rest", "vmpool:ops"))
    for login, password in [("alice", "wrong"), ("Alice", RIGHT), ("bob", RIGHT), ("alice", ""), ("", RIGHT)]:
        assert await known.login(login, password) is None, (login, password)
    assert await known.bearer(RIGHT) is None
    await known.close()


async def test_a_password_that_is_only_longer_is_wrong(users: Callable[[str], StaticUsers]) -> None:
    longest = "x" * 1024
    known = users(f"alice:{hash_password(longest, CHEAP)}\n")
    assert await known.login("alice", longest) is not None
    assert await known.login("alice", longest + "y") is None
    await known.close()


async def test_an_unknown_user_costs_what_a_known_one_costs(
    users: Callable[[str], StaticUsers], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = users(f"alice:{HASH}\nbob:{OTHER}\n")
    costs: list[Cost] = []

    def matches(self: PasswordHash, password: str) -> bool:
        costs.append(self.cost)
        return False

    monkeypatch.setattr(PasswordHash, "matches", matches)
    for login in ("alice", "bob", *(f"nobody{n}" for n in range(20))):
        assert await known.login(login, RIGHT) is None
    assert len(costs) == 22
    assert set(costs[2:]) == set(costs[:2]), "unknown users cost what some known user costs"
    again = costs[2:]
    costs.clear()
    for n in range(20):
        await known.login(f"nobody{n}", RIGHT)
    assert costs == again, "the same unknown user costs the same every time"
    await known.close()


def replace_file(path: Path, text: str) -> None:
    """As a mounted Secret changes: another file takes the name."""
    draft = path.with_name("draft")
    draft.write_text(text)
    draft.replace(path)


async def test_a_changed_file_is_taken_over(users: Callable[[str], StaticUsers], clock: Clock, tmp_path: Path) -> None:
    known = users(f"alice:{HASH}\n")
    replace_file(tmp_path / "users", f"bob:{HASH}:ops\n")
    assert await known.login("alice", RIGHT) is not None, "not looked at more than once a second"
    clock.now += LOOK_SECONDS
    assert await known.login("bob", RIGHT) is not None
    assert await known.login("alice", RIGHT) is None
    await known.close()


@pytest.mark.parametrize("change", ["bad", "gone"])
async def test_a_file_gone_bad_leaves_the_last_good_one(
    users: Callable[[str], StaticUsers], clock: Clock, tmp_path: Path, change: str
) -> None:
    known = users(f"alice:{HASH}\n")
    file = tmp_path / "users"
    if change == "bad":
        replace_file(file, f"alice:{HASH}\nbob:secret password\n")
    else:
        file.unlink()
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            clock.now += LOOK_SECONDS
            assert await known.login("alice", RIGHT) is not None
    assert {line["event"] for line in logged} == {"users_file_kept"}
    if change == "bad":
        (line,) = logged
        assert "line 2" in line["error"]
        assert "secret password" not in repr(logged)
    replace_file(file, f"alice:{HASH}\ncarol:{HASH}\n")
    clock.now += LOOK_SECONDS
    assert await known.login("carol", RIGHT) is not None
    await known.close()


async def test_a_users_token_ends_with_the_user(
    users: Callable[[str], StaticUsers], clock: Clock, tmp_path: Path
) -> None:
    known = users(f"alice:{HASH}:ops\n")
    alice = await known.login("alice", RIGHT)
    assert alice is not None
    assert known.current(alice) == alice
    replace_file(tmp_path / "users", f"alice:{HASH}:dev\n")
    clock.now += LOOK_SECONDS
    assert known.current(alice) == rest_identity("alice", ("dev",)), "groups are those of now"
    replace_file(tmp_path / "users", f"bob:{HASH}\n")
    clock.now += LOOK_SECONDS
    assert known.current(alice) is None
    assert known.current(Identity("bob", "bob")) is None, "bob of Kubernetes is not bob of the file"
    await known.close()


async def test_no_more_threads_than_told(users: Callable[[str], StaticUsers], monkeypatch: pytest.MonkeyPatch) -> None:
    known = users(f"alice:{HASH}\n")
    lock, gate = threading.Lock(), threading.Event()
    running, most = 0, 0

    def matches(self: PasswordHash, password: str) -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(10)
        with lock:
            running -= 1
        return False

    monkeypatch.setattr(PasswordHash, "matches", matches)
    logins = [asyncio.create_task(known.login("alice", "x")) for _ in range(8)]
    await until(lambda: running == 2, what="two checks to run")
    gate.set()
    await asyncio.gather(*logins)
    assert most == 2
    await known.close()
