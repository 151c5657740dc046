"""What a handler says: an answer, or a refusal that names its cause. The frame turns both into HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

REALM = 'Basic realm="Authentication required"'


@dataclass(frozen=True, slots=True)
class Answer:
    """A success: status, JSON document, further headers."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    """Plain text in the place of JSON, for the few endpoints that have it."""


class Refusal(Exception):
    """No success, on purpose: status, JSON document (``ok`` is false), further headers."""

    def __init__(self, status: int, body: Json | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.body: Json = {"ok": False, **(body or {})}
        self.headers = dict(headers or {})
        super().__init__(f"{status}: {self.body}")


def bad_request(error: str, **more: Any) -> Refusal:
    """400 with the cause under ``error``."""
    return Refusal(400, {"error": error, **more})


def unauthorized(error: str = "") -> Refusal:
    """401 with the reference's challenge."""
    return Refusal(401, {"error": error} if error else {}, {"WWW-Authenticate": REALM})


def forbidden(error: str) -> Refusal:
    """403: we know who you are, and you may not."""
    return Refusal(403, {"error": error})


def not_found(error: str = "", **more: Any) -> Refusal:
    """404; the reference gives no cause, we do where there is one."""
    return Refusal(404, {**({"error": error} if error else {}), **more})


def unavailable(error: str, retry_after: int) -> Refusal:
    """503 with the cause and when to try again, in seconds."""
    return Refusal(503, {"error": error}, {"Retry-After": str(retry_after)})


def not_implemented(error: str) -> Refusal:
    """501 with the reason."""
    return Refusal(501, {"error": error})
