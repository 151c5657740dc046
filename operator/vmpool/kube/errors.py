"""What the API server, or the way to it, can say instead of doing what was asked.

::

    KubeError                    (abstract) status, reason, message, details
    ├── Refused                  the server answered: it did nothing
    │   ├── BadRequest           400, 405, 413, 415 and other 4xx: the request makes no sense there
    │   ├── Unauthorized         401: it does not know us (now)
    │   ├── Forbidden            403: it knows us, and we may not
    │   │   └── NamespaceTerminating   nothing new may be made in a namespace that is going
    │   ├── NotFound             404 of one object: ``details.name`` says which
    │   ├── KindNotFound         404 of a whole kind: proves nothing about any object
    │   ├── AlreadyExists        409: the name is taken
    │   ├── Conflict             409: another resourceVersion or uid than the write was meant for
    │   ├── Gone                 410: the resourceVersion or continue token is too old; list again
    │   ├── Invalid              422: ``causes`` name the fields or the rules that refused
    │   └── Throttled            429: later; ``retry_after`` says when
    ├── ServerError              5xx to a read
    ├── Unreachable              no answer to a read, or a write that was provably never sent
    └── OutcomeUnknown           a write that may have happened: look again before doing it again
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import orjson

NAMESPACE_TERMINATING = "NamespaceTerminating"
MAX_PLAIN_TEXT = 300
"""Characters kept of an answer that is no Status: a proxy's HTML page helps nobody in a log."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason out of ``details.causes``; ``field`` is a path such as ``spec.claim``, or empty."""

    field: str
    message: str
    reason: str


class KubeError(Exception):
    """No success. ``status`` is the HTTP code, 0 when there was no answer."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason or type(self).__name__
        self.details: Mapping[str, Any] = details or {}
        self.retry_after = retry_after

    def __str__(self) -> str:
        """For logs and conditions: the server's words with its code."""
        return f"{self.reason} ({self.status}): {self.message}" if self.status else self.message

    @property
    def causes(self) -> tuple[Cause, ...]:
        """What the server names in detail; empty for most errors."""
        return tuple(
            Cause(field=cause.get("field", ""), message=cause.get("message", ""), reason=cause.get("reason", ""))
            for cause in self.details.get("causes") or ()
        )


class Refused(KubeError):
    """The server answered and did nothing."""


class BadRequest(Refused):
    """The request makes no sense to this server; the same one never will."""


class Unauthorized(Refused):
    """The server does not know us. Nothing may be concluded from such an answer."""


class Forbidden(Refused):
    """We may not do that. Nothing may be concluded from such an answer."""


class NamespaceTerminating(Forbidden):
    """The namespace is being deleted, so nothing new can be made in it, now or later."""


class NotFound(Refused):
    """The server has no object of this name; for a create, ``kind`` says ``namespaces``."""

    @property
    def name(self) -> str:
        """Of the missing object."""
        return str(self.details["name"])

    @property
    def kind(self) -> str:
        """Of the missing object, as the server calls it: its plural."""
        return str(self.details.get("kind", ""))


class KindNotFound(Refused):
    """The server does not serve this kind (now): it says nothing about any object."""


class AlreadyExists(Refused):
    """The name is taken."""


class Conflict(Refused):
    """The object is not the one, or not in the version, that the write was meant for."""


class Gone(Refused):
    """Too old a resourceVersion or continue token: list again."""


class Invalid(Refused):
    """Fields or rules refused the object; ``causes`` says which."""


class Throttled(Refused):
    """The server sheds load; ask again after ``retry_after``."""


class ServerError(KubeError):
    """The server failed to answer a read."""


class Unreachable(KubeError):
    """No answer to a read, or a connection for a write that never came to be."""


class OutcomeUnknown(KubeError):
    """The write may or may not have happened."""


_BY_STATUS: Mapping[int, type[Refused]] = {
    401: Unauthorized,
    403: Forbidden,
    410: Gone,
    422: Invalid,
    429: Throttled,
}


def error_from_answer(status: int, body: bytes, retry_after: str | None = None) -> KubeError:
    """The typed error of an HTTP answer that is no success."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict) or answer.get("kind") != "Status":
        text = body[: MAX_PLAIN_TEXT * 4].decode(errors="replace").strip()[:MAX_PLAIN_TEXT]
        answer = {"message": text or f"HTTP {status}", "code": status}
    return error_from_status(status, answer, retry_after)


def error_from_status(status: int, answer: Mapping[str, Any], retry_after: str | None = None) -> KubeError:
    """The typed error of a Status object; a watch sends those as events, without an HTTP code."""
    reason = str(answer.get("reason") or "")
    details: Mapping[str, Any] = answer.get("details") or {}
    return _type_of(status, reason, details)(
        str(answer.get("message") or reason or f"HTTP {status}"),
        status=status,
        reason=reason,
        details=details,
        retry_after=_pause(retry_after, details),
    )


def _type_of(status: int, reason: str, details: Mapping[str, Any]) -> type[KubeError]:
    if status >= 500:
        return ServerError
    if status == 404:
        return NotFound if details.get("name") else KindNotFound
    if status == 409:
        return AlreadyExists if reason == "AlreadyExists" else Conflict
    if status == 403 and any(c.get("reason") == NAMESPACE_TERMINATING for c in details.get("causes") or ()):
        return NamespaceTerminating
    return _BY_STATUS.get(status, BadRequest)


def _pause(header: str | None, details: Mapping[str, Any]) -> timedelta | None:
    # A date is legal there too, but no API server sends one; the clocks may differ anyway.
    if header is not None and header.isdecimal():
        return timedelta(seconds=int(header))
    seconds = details.get("retryAfterSeconds")
    return timedelta(seconds=seconds) if isinstance(seconds, int) and seconds > 0 else None
