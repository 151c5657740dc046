"""Rate limits by client: VMPooler's numbers, headers and body, without its weakness.

There, each request puts the end of the count off again, so that a slow, steady client is blocked in the end. Here a
count begins with a client's first request and ends one period later, whatever comes in between; and what is refused is
not counted. The core is pure: the time comes in as an argument.
"""

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vmpool.gateway.answers import Refusal
from vmpool.gateway.context import Call, Gateway
from vmpool.settings import GatewaySettings

Kind = Literal["address", "token", "creation", "deletion"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

IPV6_CLIENT_BITS = 64
"""One customer has at least so much of IPv6 to himself: single addresses would be no limit to him."""


@dataclass(slots=True)
class _Count:
    began: float
    requests: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a limit says about one request."""

    kind: Kind
    allowed: bool
    limit: int
    remaining: int
    """Requests that are still allowed in this period, after this one."""
    reset_seconds: float
    """Until the count begins anew."""


class Limits:
    """Counts by kind and client; at most ``entries`` of them, those seen longest ago are forgotten first."""

    def __init__(self, limits: dict[Kind, int], period: float, entries: int) -> None:
        self.period = period
        self._limits = limits
        self._entries = entries
        self._counts: OrderedDict[tuple[Kind, str], _Count] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def count(self, kinds: Sequence[Kind], client: str, now: float) -> Verdict:
        """Count one request against each kind if all allow it, else against none; return the tightest verdict.

        ``now`` is seconds of a clock that never goes back.
        """
        counts = [self._current(kind, client, now) for kind in kinds]
        allowed = all(count.requests < self._limits[kind] for kind, count in zip(kinds, counts, strict=True))
        if allowed:
            for count in counts:
                count.requests += 1
        verdicts = [self._verdict(kind, count, allowed, now) for kind, count in zip(kinds, counts, strict=True)]
        return min(verdicts, key=lambda verdict: (verdict.remaining, -verdict.reset_seconds))

    def _current(self, kind: Kind, client: str, now: float) -> _Count:
        key = kind, client
        count = self._counts.get(key)
        if count is None or now - count.began >= self.period:
            count = self._counts[key] = _Count(now, 0)
        self._counts.move_to_end(key)
        while len(self._counts) > self._entries:
            self._counts.popitem(last=False)
        return count

    def _verdict(self, kind: Kind, count: _Count, allowed: bool, now: float) -> Verdict:
        limit = self._limits[kind]
        left = min(self.period, count.began + self.period - now)
        return Verdict(kind, allowed, limit, limit - count.requests, left)


def limits_of(own: GatewaySettings) -> Limits | None:
    """Return the limits that the settings ask for; None when they ask for none."""
    if not own.rate_limits:
        return None
    limits: dict[Kind, int] = {
        "address": own.rate_per_address,
        "token": own.rate_per_token,
        "creation": own.rate_creation,
        "deletion": own.rate_deletion,
    }
    return Limits(limits, own.rate_period_seconds, own.rate_entries)


def hold_to(limits: Limits, call: Call, limit: Literal["read", "creation", "deletion"]) -> dict[str, str]:
    """Count a request and return the headers that say what is left. Raises ``Refusal`` 429 above a limit.

    The client is the user of a valid token of ours, with however many tokens, else the address: a made-up token is no
    way around the limit.
    """
    caller, client = _client(call.gateway, call)
    kinds: list[Kind] = [caller] if limit == "read" else [caller, limit]
    verdict = limits.count(kinds, client, time.monotonic())
    wait = max(1, math.ceil(verdict.reset_seconds))
    headers = {
        "X-RateLimit-Limit": str(verdict.limit),
        "X-RateLimit-Remaining": str(verdict.remaining),
        "X-RateLimit-Reset": str(math.ceil(time.time()) + wait),
    }
    if verdict.allowed:
        return headers
    call.gateway.metrics.limited.labels(verdict.kind).inc()
    period = limits.period
    body = {
        "error": "Rate limit exceeded",
        "limit": verdict.limit,
        "period": int(period) if period.is_integer() else period,
        "retry_after": wait,
    }
    raise Refusal(429, body, {**headers, "Retry-After": str(wait)})


def _client(gateway: Gateway, call: Call) -> tuple[Kind, str]:
    token = call.request.headers.get("X-AUTH-TOKEN", "")
    # Bytes that are no UTF-8 arrive as halves of surrogate pairs; no token of ours has anything but ASCII.
    known = gateway.gatekeeper.valid(token) if token.isascii() and token else None
    if known is not None:
        return "token", f"user {known.identity.user}"
    return "address", f"address {_block(call.address)}"


def _block(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed.packed, IPV6_CLIENT_BITS), strict=False))


def networks(text: str) -> tuple[Network, ...]:
    """Return the networks of a list with commas. Raises ValueError that names the setting and the wrong part."""
    found: list[Network] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            found.append(ipaddress.ip_network(part, strict=False))
        except ValueError:
            raise ValueError(f"trusted_proxies: {part!r} is no network such as 10.0.0.0/8 or fd00::/8") from None
    return tuple(found)


def client_address(peer: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """Return the client's address: the peer's, or the last of X-Forwarded-For that no trusted proxy has.

    Every proxy appends whom it heard, so only what trusted ones appended counts; what is no address ends the search.
    """
    address = peer
    hops = [hop.strip() for hop in forwarded.split(",")] if forwarded else []
    while hops and _is_trusted(address, trusted):
        hop = hops.pop()
        try:
            address = str(ipaddress.ip_address(hop))
        except ValueError:
            break
    return address


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if parsed.version == 6 and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed.version == network.version and parsed in network for network in trusted)
