"""Read what a client says about itself in the header ``Authorization``. Pure."""

import binascii
import unicodedata
from base64 import b64decode
from typing import Final

MAX_HEADER: Final = 8192
"""Characters of a Basic header."""
MAX_BEARER: Final = 16_384


def basic(header: str) -> tuple[str, str] | None:
    """Return user and password of a Basic header (RFC 7617); None for anything else.

    Neither may hold control characters: the standard says so, and to what is written in C a NUL is the end.
    """
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic" or len(header) > MAX_HEADER:
        return None
    try:
        text = b64decode(encoded.strip(" ").encode("ascii"), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeError):
        return None
    user, colon, password = text.partition(":")
    if not colon or not user or any(unicodedata.category(char) == "Cc" for char in text):
        return None
    return user, password


def bearer(header: str) -> str:
    """Return the token of a Bearer header (RFC 6750); empty for anything else."""
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or len(header) > MAX_BEARER:
        return ""
    return token.strip(" ")
