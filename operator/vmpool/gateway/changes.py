"""What ``PUT /vm/<hostname>`` asks for, checked against what is allowed. Pure; the sentences are VMPooler's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from vmpool.api.vm import MAX_TAGS
from vmpool.gateway.answers import Refusal
from vmpool.gateway.requested import DIGITS, plain, shown
from vmpool.gateway.vmwire import HOUR, hours
from vmpool.plan.snapshot import ClaimFacts, PoolFacts
from vmpool.settings import GatewaySettings

MAX_TAG_KEY: Final = 63
MAX_TAG_VALUE: Final = 255
TAG_KEY = re.compile(r"[-A-Za-z0-9_.]+")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A change of a claim; nothing is wanted where it is empty."""

    expires_at: datetime | None = None
    tags: Mapping[str, str | None] = field(default_factory=dict)
    """None removes a tag."""

    def __bool__(self) -> bool:
        return self.expires_at is not None or bool(self.tags)


def wanted_of(body: Mapping[str, Any], claim: ClaimFacts, pool: PoolFacts | None, own: GatewaySettings) -> Wanted:
    """Return the change. Raises ``Refusal`` 400 with every mistake under ``failure``; then nothing is changed."""
    failures: list[str] = []
    expires_at: datetime | None = None
    tags: dict[str, str | None] = {}
    for name, value in body.items():
        if name == "lifetime":
            expires_at = _lifetime(value, claim, pool, failures)
        elif name == "tags":
            tags = _tags(value, claim, own, failures)
        else:
            failures.append(f"Unknown argument {plain(value)}.")
    if failures:
        raise Refusal(400, {"failure": failures})
    return Wanted(expires_at, tags)


def _lifetime(value: Any, claim: ClaimFacts, pool: PoolFacts | None, failures: list[str]) -> datetime | None:
    text = value if isinstance(value, str) else str(value)
    if isinstance(value, (bool, float)) or not DIGITS.fullmatch(text) or not text.strip("0"):
        failures.append(f"Lifetime must be a positive integer (got {plain(value)})")
        return None
    if pool is None or claim.bound_at is None:
        failures.append("The lifetime cannot be changed any more, because the VM's pool is gone.")
        return None
    most: timedelta = pool.spec.claims.max_lifetime
    # By its length first: Python refuses to read thousands of digits, and its times end at some year.
    if len(text.lstrip("0")) > 9 or int(text) * HOUR > most:
        failures.append(
            f"You provided a lifetime ({plain(value)}) that exceeds the configured maximum of {hours(most)}."
        )
        return None
    return claim.bound_at + int(text) * HOUR


def _tags(value: Any, claim: ClaimFacts, own: GatewaySettings, failures: list[str]) -> dict[str, str | None]:
    if not isinstance(value, dict):
        failures.append(f"You provided tags ({plain(value)}) as something other than a hash.")
        return {}
    before = len(failures)
    for key, text in value.items():
        failures += _mistakes(key, text)
    allowed = {name.strip() for name in own.allowed_tags.split(",") if name.strip()}
    if allowed and not allowed.issuperset(value):
        failures.append(f"You provided unsuppored tags ({shown(value)}). Allowed are {', '.join(sorted(allowed))}.")
    if len(failures) > before:
        return {}
    # An empty value is no value: VMPooler leaves such a tag as it is.
    tags = {key: _filtered(key, text, own) for key, text in value.items()}
    tags = {key: text for key, text in tags.items() if text != ""}
    after = set(claim.tags) | {key for key, text in tags.items() if text is not None}
    after -= {key for key, text in tags.items() if text is None}
    if len(after) > MAX_TAGS:
        failures.append(f"A VM has at most {MAX_TAGS} tags; with these it would have {len(after)}.")
        return {}
    # To remove what is not there would be a write for nothing.
    return {key: text for key, text in tags.items() if claim.tags.get(key) != text}


def _mistakes(key: str, text: Any) -> list[str]:
    found: list[str] = []
    if not key:
        found.append("Tag key is required")
    elif len(key) > MAX_TAG_KEY:
        found.append(f"Tag key too long: {shown(key)} has more than {MAX_TAG_KEY} characters")
    elif not TAG_KEY.fullmatch(key):
        found.append(f"Invalid tag key format: {shown(key)} may have letters, digits, and any of - _ .")
    if text is None:
        return found
    if not isinstance(text, str):
        found.append(f"Tag value must be text: {shown(key)} has {shown(text)}")
    elif len(text) > MAX_TAG_VALUE:
        found.append(f"Tag value too long: {shown(key)} has more than {MAX_TAG_VALUE} characters")
    elif not text.isprintable():
        found.append(f"Tag value contains invalid characters: {shown(key)} has {shown(text)}")
    return found


def _filtered(key: str, text: str | None, own: GatewaySettings) -> str | None:
    """Return what a tag's filter keeps: what its groups match, joined. What it does not match stays as it is."""
    pattern = own.tag_filters.get(key)
    if pattern is None or text is None:
        return text
    match = re.search(pattern, text)
    return text if match is None else "".join(group or "" for group in match.groups())
