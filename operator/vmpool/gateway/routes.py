"""What an endpoint is: from one table come the routes, the OpenAPI document and the labels of the metrics."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vmpool.gateway.answers import Answer
from vmpool.gateway.context import Call

Handler = Callable[[Call], Awaitable[Answer]]
Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a path or query, for the OpenAPI document."""

    name: str
    where: Literal["path", "query", "header"]
    about: str
    schema: Schema = field(default_factory=lambda: {"type": "string"})
    required: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint. ``path`` is aiohttp's; a trailing slash is accepted as well, for every route."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    handler: Handler
    summary: str
    answers: Mapping[int, Schema]
    """JSON schema of the body by status code; every status that the endpoint can answer with is there."""
    body: Schema | None = None
    """JSON schema of the request's body; None: none is read."""
    parameters: tuple[Parameter, ...] = ()
    auth: Literal["open", "token", "basic"] = "open"
    """What the caller must show where an auth provider is configured."""
    limit: Literal["read", "creation", "deletion"] = "read"
    """Which rate limit counts it besides the caller's own."""
    plain: frozenset[int] = frozenset()
    """Those of the statuses whose body is plain text and no JSON."""


OK: Schema = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": True,
}
REFUSED: Schema = {
    "type": "object",
    "properties": {"ok": {"const": False}, "error": {"type": "string"}},
    "required": ["ok"],
    "additionalProperties": True,
}
