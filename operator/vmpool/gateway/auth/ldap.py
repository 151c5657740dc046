"""Users of an LDAP directory: right is who can bind there.

The directory is asked by a short-lived process of its own (``directory``), because the library behind it, like libldap
below it, waits inside C: measured, a directory that accepts a connection and then says nothing keeps the whole process
from doing anything else, during a TLS handshake without an end, and the library's asyncio connection turns in a busy
loop for as long as it waits. A process can be ended in time, whatever it waits for. It costs a tenth of a second for a
login, and logins are rare: the token that follows needs no directory.
"""

import asyncio
import importlib.util
import os
import re
import ssl
import sys
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import orjson

from vmpool.api import keys
from vmpool.gateway.auth.base import AuthFailed
from vmpool.gateway.auth.caller import Identity, rest_identity
from vmpool.settings import GatewaySettings
from vmpool.telemetry import logs

log = logs.get(__name__)

MAX_LOGIN: Final = 128
MAX_PASSWORD: Final = 1024
"""Characters; longer ones are wrong without being sent."""
MAX_PLACES: Final = 16
"""Most bases times attributes: each may cost a connection."""
MAX_ANSWER: Final = 16_384

_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@")


@dataclass(frozen=True, slots=True)
class LdapSettings:
    """How to ask the directory; the account's password stays in its file until it is needed."""

    url: str
    bases: tuple[str, ...]
    attributes: tuple[str, ...]
    bind_dn: str
    bind_password_file: str
    ca_file: str
    timeout_seconds: float
    turn_seconds: float = 10.0

    @classmethod
    def of(cls, own: GatewaySettings) -> "LdapSettings":
        """Return the settings, checked. Raises ValueError that names the setting, its value and what is allowed."""
        bases = tuple(base.strip() for base in own.ldap_base.split(";") if base.strip())
        attributes = tuple(name.strip() for name in own.ldap_user_attribute.split(",") if name.strip())
        if not bases:
            raise ValueError("ldap_base must name at least one base DN, several separated by semicolons")
        for name in attributes:
            if not _ATTRIBUTE.fullmatch(name):
                raise ValueError(f"ldap_user_attribute {name!r} must be the name of an attribute, such as uid")
        if not 0 < len(bases) * len(attributes) <= MAX_PLACES:
            raise ValueError(
                f"ldap_base and ldap_user_attribute must make 1 to {MAX_PLACES} combinations, "
                f"not {len(bases)} times {len(attributes)}"
            )
        if bool(own.ldap_bind_dn) != bool(own.ldap_bind_password_file):
            missing = "ldap_bind_password_file" if own.ldap_bind_dn else "ldap_bind_dn"
            raise ValueError(f"{missing} is missing: the account that searches needs both a DN and a password file")
        settings = cls(
            url=_url(own.ldap_url),
            bases=bases,
            attributes=attributes,
            bind_dn=own.ldap_bind_dn,
            bind_password_file=own.ldap_bind_password_file,
            ca_file=_authorities(own.ldap_ca_file),
            timeout_seconds=own.ldap_timeout_seconds,
            turn_seconds=own.ldap_turn_seconds,
        )
        if settings.bind_dn:
            try:
                settings.bind_password()
            except AuthFailed as error:
                raise ValueError(f"ldap_bind_password_file: {error}") from None
        return settings

    def bind_password(self) -> str:
        """Return the account's password, read anew: it may be rotated. Raises ``AuthFailed``."""
        try:
            password = Path(self.bind_password_file).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            cause = error.strerror if isinstance(error, OSError) else "no UTF-8"
            raise AuthFailed(f"the file {self.bind_password_file!r} cannot be read: {cause}") from None
        if not password:
            # A bind with a DN and no password succeeds as nobody.
            raise AuthFailed(f"the file {self.bind_password_file!r} is empty")
        return password


class LdapUsers:
    """The users of one directory. Raises ValueError where the library is missing."""

    def __init__(self, settings: LdapSettings, at_once: int) -> None:
        if importlib.util.find_spec("bonsai") is None:
            raise ValueError("auth ldap needs a package that is not here: pip install 'vmpool[ldap]'")
        self._settings = settings
        self._slots = asyncio.Semaphore(at_once)

    async def login(self, login: str, password: str) -> Identity | None:
        """Return who that is, with the login as ``canonical`` writes it. Raises ``AuthFailed``."""
        name = canonical(login)
        # No password is no proof: directories let such a bind succeed as nobody (RFC 4513, 5.1.2).
        if name is None or not 0 < len(password) <= MAX_PASSWORD or _has_controls(password):
            return None
        await self._turn()
        try:
            right = await self._ask(name, password)
        finally:
            self._slots.release()
        return rest_identity(name) if right else None

    async def bearer(self, token: str) -> Identity | None:  # noqa: ARG002 - the protocol's argument
        """Return None: the directory knows no tokens."""
        return None

    def current(self, identity: Identity) -> Identity | None:
        """Return the identity unchanged, unless Kubernetes once vouched for it: the directory is not asked."""
        return identity if identity.user.startswith(keys.REST_USER_PREFIX) else None

    async def close(self) -> None:
        """Hold nothing, so give back nothing."""

    async def _turn(self) -> None:
        seconds = self._settings.turn_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise AuthFailed(f"other logins kept the directory busy for ldap_turn_seconds ({seconds:g} s)") from None

    async def _ask(self, login: str, password: str) -> bool:
        settings = self._settings
        question = {
            "url": settings.url,
            "ca": settings.ca_file,
            "seconds": settings.timeout_seconds,
            "password": password,
        }
        if settings.bind_dn:
            question |= {
                "account": {"dn": settings.bind_dn, "password": settings.bind_password()},
                "bases": settings.bases,
                "filter": search_filter(login, settings.attributes),
                "decoy": direct_dn(login, settings.attributes[0], settings.bases[0]),
            }
        else:
            question["dns"] = [direct_dn(login, name, base) for base in settings.bases for name in settings.attributes]
        answer = await self._in_a_process(orjson.dumps(question))
        match answer:
            case {"result": "right"}:
                return True
            case {"result": "wrong"}:
                return False
            case {"result": "ambiguous"}:
                log.warning("ldap_login_ambiguous", login=login, cause="more than one entry has this login")
                return False
            case {"result": "failed", "why": str(why)}:
                raise AuthFailed(why)
        raise AuthFailed("the directory could not be asked")

    async def _in_a_process(self, question: bytes) -> object:
        """Return what ``directory`` answers; it is ended when the time is over."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # no module out of the working directory
            "-m",
            "vmpool.gateway.auth.directory",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(),
        )
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                output, _ = await process.communicate(question)
        except TimeoutError:
            raise AuthFailed(
                f"the directory did not answer within ldap_timeout_seconds ({self._settings.timeout_seconds:g} s)"
            ) from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        try:
            return orjson.loads(output[:MAX_ANSWER])
        except orjson.JSONDecodeError:
            raise AuthFailed("the process that asks the directory has failed") from None


def canonical(login: str) -> str | None:
    """Return the one way to write a login: lower case, NFKC; None for what no login can be.

    Directories compare without regard to case and to the kind of character, and squeeze spaces: without this one
    person would have many names, each with tokens and rights of its own.
    """
    # Folding case can undo the normal form.
    name = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", login).casefold())
    if not 0 < len(name) <= MAX_LOGIN or name != " ".join(name.split()) or _has_controls(name):
        return None
    return name


def escaped(text: str) -> str:
    """Return ``text`` for a filter (RFC 4515) or an attribute value of a DN (RFC 4514): both know ``\\xx``.

    Everything but letters, digits and ``._-@`` of ASCII is escaped, so that nothing can be forgotten.
    """
    return "".join(chr(byte) if byte in _PLAIN else f"\\{byte:02x}" for byte in text.encode())


def search_filter(login: str, attributes: tuple[str, ...]) -> str:
    """Return the filter that finds the entry of a login."""
    terms = "".join(f"({name}={escaped(login)})" for name in attributes)
    return f"(|{terms})" if len(attributes) > 1 else terms


def direct_dn(login: str, attribute: str, base: str) -> str:
    """Return the DN that a login has directly under a base."""
    return f"{attribute}={escaped(login)},{base}"


def _has_controls(text: str) -> bool:
    """Say whether there are control characters, which C could take for the end, or characters that are none."""
    return any(unicodedata.category(char) in ("Cc", "Cs") for char in text)


def _url(text: str) -> str:
    allowed = "ldap_url must be ldap://host[:port] or ldaps://host[:port]"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"{allowed}, not {text!r}") from None
    if parts.scheme not in ("ldap", "ldaps") or not parts.hostname:
        raise ValueError(f"{allowed}, not {text!r}")
    if parts.username is not None or parts.password is not None:
        # Not shown: it may hold a password.
        raise ValueError(f"{allowed}, without a user: the account that searches is ldap_bind_dn")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{allowed}, not {text!r}: the base DN is ldap_base")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port or (636 if parts.scheme == 'ldaps' else 389)}"


def _authorities(path: str) -> str:
    """Return the file of the authorities that are trusted: the given one, else the system's."""
    chosen = path or ssl.get_default_verify_paths().cafile or ""
    if not chosen:
        raise ValueError("ldap_ca_file is missing, and the system has no file of trusted authorities")
    try:
        ssl.create_default_context(cafile=chosen)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ldap_ca_file {chosen!r} holds no certificates in PEM: {error}") from None
    return chosen


def _environment() -> dict[str, str]:
    """Return what the process needs of our environment: to find Python's packages, and nothing that steers libldap."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")}
    # Neither ldap.conf nor LDAPTLS_REQCERT=never of whoever started us has a say.
    return {**kept, "LDAPNOINIT": "1", "PYTHONDONTWRITEBYTECODE": "1"}
