"""Users of a real directory: who may log in, what an attacker may try, and what trouble does to everybody else."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests import directory as ldap
from tests.directory import Directory, directory, plain_directory
from tests.waiting import until
from vmpool.dev import credentials
from vmpool.gateway.auth.base import AuthFailed
from vmpool.gateway.auth.caller import Identity, rest_identity
from vmpool.gateway.auth.ldap import LdapSettings, LdapUsers

__all__ = ["directory", "plain_directory"]

TIMEOUT_SECONDS = 20.0
"""Of a login: generous, for a loaded machine; nothing here waits for it but what is meant to."""
SHORT_SECONDS = 1.0

ModeOf = Callable[[Directory], LdapSettings]


def searching(server: Directory) -> LdapSettings:
    """Search with the account, then bind."""
    return LdapSettings(
        url=server.url,
        bases=(ldap.SUFFIX,),
        attributes=("uid",),
        bind_dn=ldap.ACCOUNT,
        bind_password_file=str(server.account_password_file),
        ca_file=str(server.authority),
        timeout_seconds=TIMEOUT_SECONDS,
    )


def direct(server: Directory) -> LdapSettings:
    """Bind at once, under both bases."""
    return replace(searching(server), bases=(ldap.PEOPLE, ldap.ROBOTS), bind_dn="", bind_password_file="")


@pytest.fixture(params=[searching, direct])
def mode(request: pytest.FixtureRequest) -> ModeOf:
    chosen: ModeOf = request.param
    return chosen


async def login(settings: LdapSettings, user: str, password: str) -> Identity | None:
    return await LdapUsers(settings, 2).login(user, password)


@pytest.mark.parametrize("tls", [False, True], ids=["StartTLS", "ldaps"])
async def test_who_can_bind_may_log_in(directory: Directory, mode: ModeOf, tls: bool) -> None:
    settings = mode(directory)
    settings = replace(settings, url=directory.tls_url) if tls else settings
    assert await login(settings, "alice", "alice-secret") == rest_identity("alice")
    assert await login(settings, "robot", "robot-secret") == rest_identity("robot")
    assert await login(settings, "alice", "robot-secret") is None
    assert await login(settings, "nobody", "alice-secret") is None


async def test_a_login_has_one_name_however_it_is_written(directory: Directory, mode: ModeOf) -> None:
    assert await login(mode(directory), "ALICE", "alice-secret") == rest_identity("alice")


async def test_strange_logins_are_logins(directory: Directory) -> None:
    people = replace(searching(directory), bases=(ldap.PEOPLE,))
    assert await login(people, ldap.STRANGE, "strange-secret") == rest_identity(ldap.STRANGE)
    assert await login(direct(directory), ldap.STRANGE, "strange-secret") == rest_identity(ldap.STRANGE)


@pytest.mark.parametrize(
    "user",
    [
        "*",
        "al*",
        "*)(uid=*",
        "alice)(|(uid=*",
        "alice)(objectClass=*",
        "nobody)(|(uid=alice)",
        "alice,ou=people,dc=vmpool,dc=test",
        f"alice,{ldap.PEOPLE}",
        "alice+cn=Alice",
        "alice\\",
        "\\61lice",
        "#616c696365",
        " alice",
        "alice ",
        "alice\0",
        "alice\0x",
        "",
    ],
)
async def test_what_is_written_into_a_login_changes_no_question(directory: Directory, mode: ModeOf, user: str) -> None:
    assert await login(mode(directory), user, "alice-secret") is None


@pytest.mark.parametrize("password", ["", "\0", "\0alice-secret", "alice-secret\0", "x" * 2000])
async def test_no_password_is_no_proof(directory: Directory, mode: ModeOf, password: str) -> None:
    assert await login(mode(directory), "alice", password) is None


async def test_the_directory_would_have_let_nobody_in(directory: Directory) -> None:
    """What the test above guards against: this directory does accept a bind without a password."""
    code, out = await ask_ldapwhoami(directory, "")
    if code is None:
        pytest.skip(out)
    assert (code, out.strip()) == (0, "anonymous")


async def ask_ldapwhoami(server: Directory, password: str) -> tuple[int | None, str]:
    command = ["ldapwhoami", "-x", "-ZZ", "-H", server.url, "-D", f"uid=alice,{ldap.PEOPLE}", "-w", password]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": "/usr/bin:/bin", "LDAPTLS_CACERT": str(server.authority)},
        )
    except FileNotFoundError:
        return None, "ldapwhoami is missing (Debian: apt install ldap-utils)"
    out, _ = await process.communicate()
    return process.returncode, out.decode()


async def test_a_login_that_two_entries_have_is_nobodys(directory: Directory) -> None:
    assert await login(searching(directory), "twin", "twin-secret") is None
    one = replace(searching(directory), bases=(ldap.ROBOTS,))
    assert await login(one, "twin", "twin-secret") == rest_identity("twin")
    both = replace(searching(directory), bases=(ldap.PEOPLE, ldap.ROBOTS))
    assert await login(both, "twin", "twin-secret") is None


async def test_whom_the_account_may_not_see_is_nobody(directory: Directory) -> None:
    people = replace(searching(directory), bases=(ldap.PEOPLE,))
    assert await login(people, "hidden", "hidden-secret") is None
    assert await login(direct(directory), "hidden", "hidden-secret") == rest_identity("hidden")


async def test_several_attributes(directory: Directory) -> None:
    settings = replace(searching(directory), attributes=("uid", "mail"))
    for user in ("alice", "alice@example.org"):
        assert await login(settings, user, "alice-secret") == rest_identity(user)


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """An authority that has signed nothing here."""
    return credentials.ensure(tmp_path / "strangers").authority


@pytest.mark.parametrize("tls", [False, True], ids=["StartTLS", "ldaps"])
async def test_only_the_right_directory_is_asked(
    directory: Directory, mode: ModeOf, strangers: Path, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a user of the library's tools may have set says nothing here.
    monkeypatch.setenv("LDAPTLS_REQCERT", "never")
    settings = mode(directory)
    settings = replace(settings, url=directory.tls_url) if tls else settings
    with pytest.raises(AuthFailed):
        await login(replace(settings, ca_file=str(strangers)), "alice", "alice-secret")
    other_host = replace(settings, url=settings.url.replace("127.0.0.1", "127.0.0.2"))
    with pytest.raises(AuthFailed):
        await login(other_host, "alice", "alice-secret")
    assert await login(settings, "alice", "alice-secret") is not None


async def test_without_starttls_no_password_is_sent(plain_directory: Directory, mode: ModeOf) -> None:
    with pytest.raises(AuthFailed):
        await login(mode(plain_directory), "alice", "alice-secret")


@pytest.mark.parametrize("password", ["wrong", ""])
async def test_a_wrong_account_is_trouble_and_not_a_wrong_user(
    directory: Directory, tmp_path: Path, password: str
) -> None:
    file = tmp_path / "password"
    file.write_text(password)
    with pytest.raises(AuthFailed) as caught:
        await login(replace(searching(directory), bind_password_file=str(file)), "alice", "alice-secret")
    assert "alice-secret" not in repr(caught.value)
    file.write_text(ldap.ACCOUNT_PASSWORD)
    right = replace(searching(directory), bind_password_file=str(file))
    assert await login(right, "alice", "alice-secret") is not None, "read anew for each login"


async def test_under_another_base_is_nobody(directory: Directory, mode: ModeOf) -> None:
    for base in ("dc=elsewhere", f"ou=none,{ldap.SUFFIX}"):
        assert await login(replace(mode(directory), bases=(base,)), "alice", "alice-secret") is None


@asynccontextmanager
async def mute_server() -> AsyncIterator[int]:
    """A server that takes connections and then says nothing."""
    over = asyncio.Event()

    answered: list[asyncio.Task[None]] = []

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        answered.append(task)
        await over.wait()
        writer.transport.abort()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        over.set()
        server.close()
        await asyncio.gather(*answered)
        await asyncio.sleep(0)  # an aborted connection is closed in the loop's next turn


@pytest.mark.parametrize("scheme", ["ldap", "ldaps"])
async def test_a_directory_that_says_nothing_holds_nobody_up(directory: Directory, mode: ModeOf, scheme: str) -> None:
    async with mute_server() as port:
        settings = replace(mode(directory), url=f"{scheme}://127.0.0.1:{port}", timeout_seconds=SHORT_SECONDS)
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        others = asyncio.create_task(take_turns())
        used, began = time.process_time(), time.monotonic()
        with pytest.raises(AuthFailed, match="did not answer within"):
            await login(settings, "alice", "alice-secret")
        others.cancel()
        assert time.monotonic() - began < 10 * SHORT_SECONDS
        assert turns > 100, f"the loop stood still; {time.process_time() - used:.1f} s of CPU"


async def test_a_directory_that_is_not_there(directory: Directory, mode: ModeOf) -> None:
    async with mute_server() as port:
        pass
    with pytest.raises(AuthFailed, match="could not be asked"):
        await login(replace(mode(directory), url=f"ldap://127.0.0.1:{port}"), "alice", "alice-secret")


def children() -> set[str]:
    """The processes that this one has started and not yet buried."""
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


async def test_a_cancelled_login_leaves_no_process(directory: Directory) -> None:
    async with mute_server() as port:
        users = LdapUsers(replace(direct(directory), url=f"ldaps://127.0.0.1:{port}"), 1)
        before = children()
        for _ in range(2):  # the second needs the only slot, so the first has given it back
            task = asyncio.create_task(users.login("alice", "alice-secret"))
            await until(lambda: children() - before, what="the process that asks")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert children() == before


async def test_a_token_of_kubernetes_is_not_the_directorys(directory: Directory) -> None:
    users = LdapUsers(direct(directory), 1)
    assert users.current(rest_identity("alice")) == rest_identity("alice")
    assert users.current(Identity("alice", "alice")) is None
    assert await users.bearer("anything") is None
