"""The contract of the REST API, written down once and not from our own code: request, status, shape of the answer.

It follows puppetlabs/vmpooler 3.9.1. A row with ``difference`` says in one sentence where and why we answer
otherwise; each such sentence has its place in ``docs/vmpooler-differences.md``, found by the row's name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.control_plane.gateway.scene import Stock
from tests.control_plane.gateway.shapes import ANYTHING, Match, Maybe, Shape
from tests.rest import NOTHING

OPEN = "open"
"""A gateway without auth and without configuration endpoints."""
STATIC = "static"
"""A gateway with users and tokens, and with configuration endpoints."""
ALICE, BOB, WRONG = "alice", "bob", "wrong"
PASSWORDS = {ALICE: "open sesame", BOB: "correct horse"}
CHALLENGE = {"WWW-Authenticate": 'Basic realm="Authentication required"'}
RETRY = {"Retry-After": "[1-9][0-9]*"}

DONE = {"ok": True}
DETAILS = {Maybe(key): ANYTHING for key in ("pool", "field", "value", "least", "most", "allowed")}
"""What was wrong about a value, beside the reference's sentence."""
REFUSED = {"ok": False, Maybe("error"): str, Maybe("message"): str, **DETAILS}
"""The reference says nothing more; we name the cause where there is one."""
CAUSE = {**REFUSED, "error": Match("(?s).{10,}")}
EMPTY: Mapping[str, Stock] = {}
WEB: Mapping[str, Stock] = {"web": Stock(ready=1)}
TWO: Mapping[str, Stock] = {"web": Stock(ready=2), "other": Stock(ready=1)}


@dataclass(frozen=True)
class Held:
    """A VM that was checked out before the request."""

    pool: str = "web"
    by: str = ALICE
    released: bool = False
    phase: str = ""
    """Phase written afterwards, as the operator would."""


@dataclass(frozen=True)
class Before:
    """A request that comes before the row's and must succeed; ``keep`` stores a value of its answer as a name."""

    method: str
    path: str
    body: Any = NOTHING
    who: str = ALICE
    basic: str = ""
    keep: Mapping[str, str] = field(default_factory=dict)
    """Name by key of the answer."""


@dataclass(frozen=True)
class Patch:
    """A status that the operator would have written on a VMClaim: the one of the on-demand request with this id."""

    request_id: str
    status: Mapping[str, Any]
    bind: str = ""
    """Pool whose Ready VMs are bound to the claim first, as the engine does; the status then lists them."""


@dataclass(frozen=True)
class Row:
    """One request and what must come back. ``<name>`` in any string is filled in by the test."""

    name: str
    method: str
    path: str
    status: int
    shape: Shape
    body: Any = NOTHING
    raw: bytes | None = None
    on: tuple[str, ...] = (OPEN,)
    who: str = ALICE
    """Whose token is sent, where there are users; ``wrong`` is nobody's, empty sends none."""
    basic: str = ""
    """Who logs in; ``wrong`` is alice with a wrong password."""
    sent: Mapping[str, str] = field(default_factory=dict)
    """Further headers of the request."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers that the answer must have: a regular expression by name, or the exact value."""
    pools: Mapping[str, Stock] = field(default_factory=lambda: EMPTY)
    """Pools by the name that stands in ``<...>``; ``<web.0>`` is the first Ready VM of ``web``."""
    vms: Mapping[str, Held] = field(default_factory=dict)
    before: tuple[Before | Patch, ...] = ()
    taken: Mapping[str, int] = field(default_factory=dict)
    """How many VMs of each pool somebody has afterwards."""
    difference: str = ""


BOTH = (OPEN, STATIC)


def says(words: str) -> dict[str, Any]:
    """A refusal whose ``error`` is this sentence, or begins with it and goes on."""
    return {**DETAILS, "ok": False, "error": Match(rf"(?s){re.escape(words)}([.:,;] .*)?")}


def table() -> tuple[Row, ...]:
    """Every row."""
    from tests.control_plane.gateway import (
        rows_checkout,
        rows_config,
        rows_ondemand,
        rows_status,
        rows_tokens,
        rows_vms,
    )

    tables = (
        rows_checkout.ROWS,
        rows_vms.ROWS,
        rows_tokens.ROWS,
        rows_ondemand.ROWS,
        rows_status.ROWS,
        rows_config.ROWS,
    )
    return tuple(row for rows in tables for row in rows)


def differences() -> dict[str, str]:
    """What each row that differs says, by the row's name."""
    return {row.name: row.difference for row in table() if row.difference}
