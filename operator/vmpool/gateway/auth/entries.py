"""What a REST token is, and what is kept of it. Pure but for the randomness of a new token.

Kept is, in one of 16 Secrets, ``<HMAC-SHA-256 of the token>: <JSON>``. The key of the HMAC is in another Secret: who
can read the 16 can neither use a token nor try guesses against it.
"""

import binascii
import hmac
import re
import secrets
import string
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from vmpool.api import keys
from vmpool.gateway.auth.caller import Identity
from vmpool.gateway.context import TokenFacts
from vmpool.kube.resource import Json

ALPHABET: Final = string.ascii_lowercase + string.digits
"""That of VMPooler's tokens, which is safe in a path and in a shell."""
TOKEN_LENGTH: Final = 50
"""258 random bits."""
ID_BYTES: Final = 8
KEY_BYTES: Final = 32
"""Least and usual length of the key."""
MAX_ENTRY: Final = 16_384
"""Characters of one token in a Secret's data, which has room for 1 MiB: only a user of very many groups needs more."""
DIGITS: Final = "0123456789abcdef"

_TOKEN = re.compile(f"[a-z0-9]{{{TOKEN_LENGTH}}}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class TokenKeys:
    """The key of new tokens, and the one before it, under which older tokens are still found. Empty: none."""

    current: bytes = field(default=b"", repr=False)
    previous: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """One token as it is kept: under which digest, in which words, and what they say."""

    digest: str = field(repr=False)
    raw: str = field(repr=False)
    facts: TokenFacts


@dataclass(frozen=True, slots=True)
class Shelf:
    """What one of the 16 Secrets holds, by digest."""

    entries: Mapping[str, Entry]
    broken: Mapping[str, str]
    """Why an entry could not be read, by the first characters of its key."""


def new_token() -> str:
    """Return the text of a new token."""
    return "".join(secrets.choice(ALPHABET) for _ in range(TOKEN_LENGTH))


def looks_like_token(text: str) -> bool:
    """Say whether a text could be a token of ours."""
    return _TOKEN.fullmatch(text) is not None


def digest_of(key: bytes, token: str) -> str:
    """Return under what a token is kept."""
    return hmac.digest(key, token.encode(), "sha256").hex()


def secret_of(digest: str) -> str:
    """Return the name of the Secret for a digest."""
    return f"{keys.TOKEN_SECRET_PREFIX}{digest[0]}"


def new_key() -> str:
    """Return a new key as it stands in a Secret's data."""
    return b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def read_keys(obj: Json) -> TokenKeys:
    """Return the keys in the key Secret. Raises ValueError, which names the field and never the key."""
    data = obj.get("data") or {}
    found = {}
    for name in ("current", "previous"):
        try:
            found[name] = b64decode(data.get(name) or "", validate=True)
        except binascii.Error:
            raise ValueError(f"data.{name} is no base64") from None
        if found[name] and len(found[name]) < KEY_BYTES:
            raise ValueError(f"data.{name} must have at least {KEY_BYTES} bytes, not {len(found[name])}")
    return TokenKeys(**found)


def encode(facts: TokenFacts) -> str:
    """Return a token as it stands in a Secret's data."""
    identity = facts.identity
    content = orjson.dumps(
        {
            "id": facts.id,
            "login": identity.login,
            "user": identity.user,
            "groups": identity.groups,
            "created": facts.created,
            "expires": facts.expires,
            "lastUsed": facts.last_used,
            "provider": facts.provider,
        },
        option=orjson.OPT_OMIT_MICROSECONDS | orjson.OPT_UTC_Z,
    )
    return b64encode(content).decode()


def decode(raw: str) -> TokenFacts:
    """Return what ``encode`` has written. Raises ValueError."""
    try:
        content: Any = orjson.loads(b64decode(raw, validate=True))
        created = _moment(content["created"])
        if created is None:
            raise ValueError("created is missing")
        groups = content.get("groups") or []
        if not isinstance(groups, list):
            raise ValueError("groups is no list")
        texts = [content["id"], content["login"], content["user"], *groups]
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError("id, login, user and groups must be texts")
        provider = content.get("provider") or ""
        if not isinstance(provider, str):
            raise ValueError("provider must be a text")
        identity = Identity(content["login"], content["user"], tuple(groups))
        last_used, expires = (_moment(content.get(name)) for name in ("lastUsed", "expires"))
        return TokenFacts(content["id"], identity, created, last_used, expires, provider)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not what a token is kept as: {type(error).__name__} {error}") from None


def _moment(text: str | None) -> datetime | None:
    if not text:
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time must have a zone")
    return moment.astimezone(UTC)


class ShelfReader:
    """Turns one of the 16 Secrets into a shelf; an entry that has not changed is not read again."""

    def __init__(self) -> None:
        self._last: Mapping[str, Entry] = {}

    def __call__(self, obj: Json) -> Shelf:
        """Return what the Secret holds; an entry that cannot be read is left out and named."""
        entries: dict[str, Entry] = {}
        broken: dict[str, str] = {}
        for digest, raw in (obj.get("data") or {}).items():
            known = self._last.get(digest)
            if known is not None and known.raw == raw:
                entries[digest] = known
                continue
            try:
                if not _DIGEST.fullmatch(digest) or secret_of(digest) != obj["metadata"]["name"]:
                    raise ValueError("its key is no digest that belongs into this Secret")
                entries[digest] = Entry(digest, raw, decode(raw))
            except ValueError as error:
                broken[digest[:8]] = str(error)
        self._last = entries
        return Shelf(entries, broken)
