"""The body of a request: read within bounds, decoded, and refused with the cause. Nothing here can end in a 500.

VMPooler's own sentences stand where it has one; it checks the size last, when the damage is done.
"""

import asyncio
import json
import math
import re
from typing import Any, NoReturn

import aiohttp
from aiohttp import web

from vmpool.gateway.answers import Refusal
from vmpool.settings import GatewaySettings

MAX_INTEGER = 2**63 - 1
"""Largest amount of an integer: what every other program can read, too."""
TOO_LARGE = "Request body too large"
TOO_COMPLEX = "Request body too complex"
INVALID = "Invalid JSON"
SHOWN = 60
"""Most characters of a name that an error repeats."""

_STRINGS = re.compile(r'"(?:[^"\\]+|\\.)*"?', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")


class BodyRefused(Refusal):
    """400: the body is not the JSON that we read; ``error`` is the cause, also for answers of another shape."""

    def __init__(self, error: str) -> None:
        super().__init__(400, {"error": error})
        self.error = error


async def read_json(request: web.BaseRequest, own: GatewaySettings) -> Any:
    """Return the decoded body, None for an empty one.

    Raises ``BodyRefused`` for one that is too large, too slow, cut off, compressed, or refused by ``decode``.
    """
    return decode(await _read(request, own), own.body_bytes, own.body_depth)


def decode(body: bytes, most_bytes: int, most_depth: int) -> Any:
    """Return what a JSON text says, None for an empty one.

    Raises ``BodyRefused`` for more than ``most_bytes``, for what is no UTF-8 or no JSON, for values inside more than
    ``most_depth`` objects and lists, for a name twice in one object, and for numbers beyond 64 bits.
    """
    if len(body) > most_bytes:
        raise _too_large(most_bytes)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise BodyRefused(f"{INVALID}: not UTF-8 at byte {error.start}") from None
    if not text.strip():
        return None
    # Before it is decoded: a decoder goes down into what it reads, and would find the bottom of its stack there.
    if _depth(text) > most_depth:
        raise BodyRefused(f"{TOO_COMPLEX}: more than {most_depth} objects and lists inside each other")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_repeats,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_float,
        )
    except json.JSONDecodeError as error:
        raise BodyRefused(f"{INVALID}: {error.msg} at character {error.pos}") from None
    if "\\u" in text and not _encodable(value):
        raise BodyRefused(f"{INVALID}: half of a surrogate pair, which no UTF-8 can hold")
    return value


async def _read(request: web.BaseRequest, own: GatewaySettings) -> bytes:
    if not request.can_read_body:
        return b""
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise BodyRefused(f"Content-Encoding {encoding[:SHOWN]!r} is not read; send the body as it is")
    if (request.content_length or 0) > own.body_bytes:
        raise _too_large(own.body_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(own.body_seconds):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > own.body_bytes:
                    raise _too_large(own.body_bytes)
    except TimeoutError:
        raise BodyRefused(f"the body did not arrive within {own.body_seconds:g} s") from None
    except (aiohttp.ClientPayloadError, web.RequestPayloadError, ConnectionError):
        raise BodyRefused("the body is shorter than was announced, or badly framed") from None
    return bytes(body)


def _too_large(most: int) -> BodyRefused:
    return BodyRefused(f"{TOO_LARGE}: more than {most} bytes")


def _depth(text: str) -> int:
    deepest = depth = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub("", text)):
        depth += 1 if bracket[0] in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise BodyRefused(f"{INVALID}: the name {name[:SHOWN]!r} stands twice in one object")
            seen.add(name)
    return found


def _no_constant(word: str) -> NoReturn:
    raise BodyRefused(f"{INVALID}: {word} is no JSON number")


def _integer(digits: str) -> int:
    # Checked by length first: very long numbers are slow to read, and refused by Python itself at some length.
    if len(digits) > 20 or abs(number := int(digits)) > MAX_INTEGER:
        raise BodyRefused(f"{INVALID}: a number of {len(digits)} digits; at most {MAX_INTEGER} is read")
    return number


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise BodyRefused(f"{INVALID}: the number {digits[:SHOWN]} is too large")
    return number


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
