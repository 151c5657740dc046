"""Users in a file: ``user:hash[:group,group]`` a line, empty lines and lines that begin with ``#`` aside.

The file is looked at again on logins and requests, at most once a second, so that a changed Secret or ConfigMap is
taken over without a restart. A changed file that makes no sense is logged, and the last good one stays.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmpool.api.vm import MAX_GROUPS
from vmpool.gateway.auth.caller import Identity, rest_identity
from vmpool.gateway.auth.passwords import (
    DEFAULT_COST,
    MAX_PASSWORD,
    Cost,
    PasswordHash,
    decoy,
    hash_password,
    parse_hash,
)
from vmpool.telemetry import logs

__all__ = ["StaticUsers", "User", "UsersFileError", "hash_password", "parse_users"]

log = logs.get(__name__)

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
LOOK_SECONDS: Final = 1.0
"""Least time between two looks at the file."""
MAX_USER_GROUPS: Final = MAX_GROUPS - 1
"""A claim keeps as many groups, and one of them is every REST user's."""

_LOGIN = re.compile(r"[A-Za-z0-9._@+-]{1,128}")
_GROUP = re.compile(r"[A-Za-z0-9._@/+-]{1,128}")


class UsersFileError(ValueError):
    """The file cannot be read or makes no sense; the message names the line, and never what is secret in it."""


@dataclass(frozen=True, slots=True)
class User:
    """One line."""

    hash: PasswordHash
    groups: tuple[str, ...] = ()


def parse_users(text: str) -> dict[str, User]:
    """Return the users by login. Raises ``UsersFileError`` that names the line."""
    users: dict[str, User] = {}
    # Not splitlines(): it would end a line at characters that an editor shows inside of one.
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            login, user = _parse_line(line)
            if login in users:
                raise ValueError(f"user {login!r} is there twice")
        except ValueError as error:
            raise UsersFileError(f"line {number}: {error}") from None
        users[login] = user
    return users


def _parse_line(line: str) -> tuple[str, User]:
    parts = line.split(":")
    if len(parts) not in (2, 3):
        raise ValueError(f"must be user:hash or user:hash:group,group; it has {len(parts)} parts")
    login = parts[0]
    if not _LOGIN.fullmatch(login):
        raise ValueError("the user must have 1 to 128 of letters, digits and ._@+-")
    groups = tuple(group.strip() for group in parts[2].split(",")) if len(parts) == 3 and parts[2].strip() else ()
    for group in groups:
        if not _GROUP.fullmatch(group):
            raise ValueError(f"group {group[:128]!r} must have 1 to 128 of letters, digits and ._@/+-")
    if len(groups) > MAX_USER_GROUPS:
        raise ValueError(f"a user must have at most {MAX_USER_GROUPS} groups, not {len(groups)}")
    return login, User(parse_hash(parts[1].strip()), groups)


class StaticUsers:
    """The users of one file. Raises ``UsersFileError`` when the file is bad at the start."""

    def __init__(self, path: str, at_once: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = Path(path)
        self._monotonic = monotonic
        self._looked_at = monotonic()
        self._stamp = self._stamp_of()
        self._users: Mapping[str, User] = self._read()
        # Threads of our own: a check whose request has gone goes on, and must still count.
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="password")

    async def login(self, login: str, password: str) -> Identity | None:
        """Return who that is; an unknown user costs as much time as a wrong password."""
        self._look()
        user = self._users.get(login)
        hashed = user.hash if user is not None else decoy(self._cost_like(login))
        # The length is not looked at before the work is done, or time would tell what was wrong.
        right = await asyncio.get_running_loop().run_in_executor(self._threads, hashed.matches, password[:MAX_PASSWORD])
        if user is None or not right or not 0 < len(password) <= MAX_PASSWORD:
            return None
        return rest_identity(login, user.groups)

    async def bearer(self, token: str) -> Identity | None:  # noqa: ARG002 - the protocol's argument
        """Return None: the file knows no tokens."""
        return None

    def current(self, identity: Identity) -> Identity | None:
        """Return the user with the groups of now; None when the file has lost it."""
        self._look()
        user = self._users.get(identity.login)
        if user is None:
            return None
        now = rest_identity(identity.login, user.groups)
        # A token that was made while another provider was configured is somebody else's.
        return now if now.user == identity.user else None

    async def close(self) -> None:
        """End the threads; a check that is running ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _cost_like(self, login: str) -> Cost:
        """Return the cost that this unknown user would have, drawn like those of the known ones, always the same."""
        costs = [user.hash.cost for user in self._users.values()]
        if not costs:
            return DEFAULT_COST
        return costs[int.from_bytes(hashlib.sha256(login.encode(errors="replace")).digest()[:8]) % len(costs)]

    def _look(self) -> None:
        """Read the file again when it is another than last time."""
        now = self._monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        try:
            stamp = self._stamp_of()
            if stamp == self._stamp:
                return
            # Also after an error: the same bad file is complained about once.
            self._stamp = stamp
            self._users = self._read()
        except UsersFileError as error:
            log.error("users_file_kept", path=str(self._path), error=str(error), users=len(self._users))
            return
        log.info("users_file_read", path=str(self._path), users=len(self._users))

    def _stamp_of(self) -> tuple[int, int, int]:
        try:
            stat = self._path.stat()
        except OSError as error:
            raise self._unreadable(error) from None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    def _read(self) -> dict[str, User]:
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise self._unreadable(error) from None
        if len(content) > MAX_FILE_BYTES:
            raise UsersFileError(f"users_file {str(self._path)!r} must have at most {MAX_FILE_BYTES} bytes")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsersFileError(f"users_file {str(self._path)!r} is no UTF-8 at byte {error.start}") from None
        try:
            return parse_users(text)
        except UsersFileError as error:
            raise UsersFileError(f"users_file {str(self._path)!r}, {error}") from None

    def _unreadable(self, error: OSError) -> UsersFileError:
        return UsersFileError(f"users_file {str(self._path)!r} cannot be read: {error.strerror or error}")
