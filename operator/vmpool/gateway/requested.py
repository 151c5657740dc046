"""What a checkout asks for: names and counts, from a body or from a path. The sentences are VMPooler's."""

import json
import re
from typing import Any, Final

from vmpool.api.pool import MAX_REST_NAME
from vmpool.gateway.answers import Refusal, bad_request, not_found
from vmpool.gateway.context import Call
from vmpool.settings import GatewaySettings

Wanted = dict[str, int]
"""How many VMs by requested name, in the order of the request."""

MAX_KEY: Final = 128
SHOWN: Final = 100
"""Most characters of a refused value that the answer repeats."""
NAME = re.compile(r"[-A-Za-z0-9_.]+")
"""As VMPooler's, and dots, which its own pools have."""
DIGITS = re.compile(r"[0-9]+")


async def object_of(call: Call) -> dict[str, Any]:
    """Return the body of a request, which is a JSON object; an empty one is an empty object. Raises ``Refusal`` 400."""
    body = await call.json()
    # Without a value although something was sent: a null, or only blanks.
    if isinstance(body, dict) or (body is None and not call.request.body_exists):
        return body or {}
    raise bad_request(f"Request body must be a JSON object: got {shown(body)}")


def of_body(body: dict[str, Any], own: GatewaySettings) -> Wanted:
    """Return what a JSON body asks for; an object without names is nothing.

    Raises ``Refusal`` 400 with the first mistake: name before count, entry by entry.
    """
    wanted = {name: _entry(name, count, own) for name, count in body.items()}
    _refuse_too_many(wanted, own)
    return wanted


def of_path(text: str, own: GatewaySettings) -> Wanted:
    """Return what ``a+a+b`` asks for. Whether the names make sense is left to the look-up, as VMPooler leaves it.

    Raises ``Refusal`` 400 for more VMs than one request may have.
    """
    names = text.split("+")
    while names and not names[-1]:
        names.pop()
    wanted: Wanted = {}
    for name in names:
        wanted[name] = wanted.get(name, 0) + 1
    for name, count in wanted.items():
        whole(count, "VM count", own.count_max, f" for {shown(name)}")
    _refuse_too_many(wanted, own)
    return wanted


def whole(value: Any, what: str, most: int, where: str = "") -> int:
    """Return a JSON value that is a whole number from 1 to ``most``, or says so in digits.

    Raises ``Refusal`` 400 with VMPooler's sentence, which begins with ``what``, and what was got ``where``.
    """
    got = f"got {shown(value)}{where}"
    if value is None:
        raise bad_request(f"{what} is required: {got}")
    text = value if isinstance(value, str) else str(value)
    if isinstance(value, (bool, float)) or not DIGITS.fullmatch(text):
        raise bad_request(f"{what} must be a valid integer: {got}")
    # By its length first: Python refuses to read thousands of digits.
    digits = text.lstrip("0")
    number = int(digits or 0) if len(digits) <= 20 else most + 1
    if number < 1:
        raise bad_request(f"{what} must be at least 1: {got}")
    if number > most:
        raise bad_request(f"{what} must be at most {most}: {got}")
    return number


def key_of(header: str | None) -> str:
    """Return a valid Idempotency-Key, empty without one. Raises ``Refusal`` 400."""
    if header is None:
        return ""
    if not 1 <= len(header) <= MAX_KEY or not header.isprintable():
        raise bad_request(f"Idempotency-Key must be 1 to {MAX_KEY} printable characters: got {shown(header)}")
    return header


def unknown_name(name: str) -> Refusal:
    """404 for a name that means nothing to this caller; why, nobody is told."""
    return not_found(f"there is no pool or alias {shown(name)} that you may claim from")


def shown(value: Any) -> str:
    """Return a value as an answer may repeat it: as JSON in ASCII, cut."""
    # JSON lets one control character stand as it is.
    text = json.dumps(value, default=str).replace("\x7f", "\\u007f")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def plain(value: Any) -> str:
    """Return a value as ``shown``, but text without its quotation marks, as VMPooler's sentences have it."""
    return shown(value)[1:].removesuffix('"') if isinstance(value, str) else shown(value)


def _entry(name: str, count: Any, own: GatewaySettings) -> int:
    if not name:
        raise bad_request("Pool name is required")
    if len(name) > MAX_REST_NAME:
        raise bad_request(f"Pool name too long: {shown(name)} has more than {MAX_REST_NAME} characters")
    if not NAME.fullmatch(name):
        raise bad_request(f"Invalid pool name format: {shown(name)} may have letters, digits, and any of - _ .")
    return whole(count, "VM count", own.count_max, f" for {shown(name)}")


def _refuse_too_many(wanted: Wanted, own: GatewaySettings) -> None:
    total = sum(wanted.values())
    if total > own.checkout_max:
        raise bad_request(f"VM count must be at most {own.checkout_max} over all pools of one request: got {total}")
