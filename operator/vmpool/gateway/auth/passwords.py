"""Password hashes that say how they were made: ``scrypt$n$r$p$salt$hash``. Pure but for the salt's randomness.

The costs are bounded on reading: a hash is data from a file, and must not be able to ask for all memory or for none of
the work that makes it a password hash.
"""

import binascii
import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from typing import Final

N_RANGE: Final = (2**14, 2**17)
R_RANGE: Final = (8, 32)
P_RANGE: Final = (1, 16)
MAX_MEMORY: Final = 128 * 1024 * 1024
"""Bytes that checking one password may take."""
MAX_WORK: Final = 2**22
"""Largest n*r*p: about two seconds of one core."""
SALT_BYTES: Final = 16
DIGEST_BYTES: Final = 32
BYTES_RANGE: Final = (16, 64)
"""Length of salt and digest, in bytes."""
MAX_PASSWORD: Final = 1024
"""Characters; longer ones are wrong without being looked at."""

_BASE64 = re.compile(r"[A-Za-z0-9_-]+={0,2}")
_NUMBER = re.compile(r"[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one check costs: ``128 * n * r`` bytes, and time in proportion to ``n * r * p``."""

    n: int = 2**15
    r: int = 8
    p: int = 3


DEFAULT_COST: Final = Cost()
"""32 MiB and about a quarter of a second; one of the equivalent settings that OWASP recommends."""


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """One hash with what is needed to check a password against it."""

    cost: Cost
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    def text(self) -> str:
        """Return it as it stands in a users file."""
        cost = self.cost
        return f"scrypt${cost.n}${cost.r}${cost.p}${_encode(self.salt)}${_encode(self.digest)}"

    def matches(self, password: str) -> bool:
        """Say whether this is the password. Slow on purpose: call it in a thread."""
        given = _scrypt(password, self.salt, self.cost, len(self.digest))
        return hmac.compare_digest(given, self.digest)


def parse_hash(text: str) -> PasswordHash:
    """Return the hash that ``text`` describes. Raises ValueError, which never repeats the text."""
    parts = text.split("$")
    if len(parts) != 6 or parts[0] != "scrypt":
        raise ValueError("the hash must be scrypt$n$r$p$salt$hash; make one with 'vmpool gateway hash-password'")
    n = _number("n", parts[1], N_RANGE)
    if n & (n - 1):
        raise ValueError(f"scrypt's n must be a power of two, not {n}")
    cost = Cost(n, _number("r", parts[2], R_RANGE), _number("p", parts[3], P_RANGE))
    if 128 * cost.n * cost.r > MAX_MEMORY:
        raise ValueError(f"scrypt's n*r must be at most {MAX_MEMORY // 128}, not {cost.n * cost.r}")
    if cost.n * cost.r * cost.p > MAX_WORK:
        raise ValueError(f"scrypt's n*r*p must be at most {MAX_WORK}, not {cost.n * cost.r * cost.p}")
    return PasswordHash(cost, _decode("salt", parts[4]), _decode("hash", parts[5]))


def hash_password(password: str, cost: Cost = DEFAULT_COST) -> str:
    """Return the hash of a password for a users file. Raises ValueError for an empty or too long one."""
    if not password:
        raise ValueError("the password must not be empty")
    if len(password) > MAX_PASSWORD:
        raise ValueError(f"the password must have at most {MAX_PASSWORD} characters, not {len(password)}")
    salt = secrets.token_bytes(SALT_BYTES)
    return PasswordHash(cost, salt, _scrypt(password, salt, cost, DIGEST_BYTES)).text()


def decoy(cost: Cost) -> PasswordHash:
    """Return a hash that no password has, and that costs as much to check as one of this cost."""
    return PasswordHash(cost, secrets.token_bytes(SALT_BYTES), secrets.token_bytes(DIGEST_BYTES))


def _scrypt(password: str, salt: bytes, cost: Cost, length: int) -> bytes:
    # OpenSSL counts p blocks and some more on top of what the algorithm itself needs.
    memory = 128 * cost.r * (cost.n + cost.p + 4)
    return hashlib.scrypt(
        password.encode(), salt=salt, n=cost.n, r=cost.r, p=cost.p, maxmem=memory + 1024, dklen=length
    )


def _number(name: str, text: str, bounds: tuple[int, int]) -> int:
    least, most = bounds
    if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
        raise ValueError(f"scrypt's {name} must be a number from {least} to {most}")
    return int(text)


def _decode(name: str, text: str) -> bytes:
    if not _BASE64.fullmatch(text):
        raise ValueError(f"the {name} must be URL-safe base64")
    bare = text.rstrip("=")
    try:
        value = urlsafe_b64decode(bare + "=" * (-len(bare) % 4))
    except (binascii.Error, ValueError):
        # Not chained: the cause could repeat what was in the file.
        raise ValueError(f"the {name} must be URL-safe base64") from None
    least, most = BYTES_RANGE
    if not least <= len(value) <= most:
        raise ValueError(f"the {name} must have {least} to {most} bytes, not {len(value)}")
    return value


def _encode(value: bytes) -> str:
    return urlsafe_b64encode(value).decode().rstrip("=")
