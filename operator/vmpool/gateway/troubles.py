"""What a client is told when something went wrong that no handler refused on purpose. The log has the rest."""

from collections.abc import Iterator, Mapping

from vmpool.gateway.answers import Refusal, unavailable
from vmpool.gateway.context import Call
from vmpool.kube.errors import (
    Forbidden,
    KindNotFound,
    KubeError,
    OutcomeUnknown,
    Refused,
    ServerError,
    Throttled,
    Unauthorized,
    Unreachable,
)
from vmpool.telemetry import logs

log = logs.get(__name__)

UNKNOWN = (
    "no answer from the API server: it is not known whether this was done; "
    "GET /api/v3/token/<token> shows the VMs that you have"
)
_WORDS: Mapping[type[KubeError], str] = {
    OutcomeUnknown: UNKNOWN,
    Throttled: "the API server is overloaded; nothing was done",
    Unreachable: "the API server cannot be reached; nothing was done",
    ServerError: "the API server fails to answer; nothing was done",
    Unauthorized: "the API server does not know this gateway",
    Forbidden: "the API server does not allow this gateway to do that",
    KindNotFound: "the API server does not serve the kinds of vmpool",
    Refused: "the API server refused it",
}
"""By class, the first that fits; never the server's own text, which may show what is none of the client's business."""


def refusal_of(error: Exception, call: Call, route: str) -> Refusal:
    """Return what the client is told: 503 with the cause for what may pass, else 500 with the request's id.

    Of errors that came together (an ``ExceptionGroup``) it is the most telling one: a refusal on purpose, then an
    outcome that nobody knows, then other trouble with the API server.
    """
    single = min(_leaves(error), key=_weight)
    if isinstance(single, Refusal):
        return single
    about = {"route": route, "request_id": call.request_id, "error": f"{type(single).__name__}: {single}"}
    if isinstance(single, KubeError):
        log.warning("request_failed", **about)
        wait = max(call.gateway.own.retry_after_seconds, round(_wanted(single)))
        return unavailable(next(words for kind, words in _WORDS.items() if isinstance(single, kind)), wait)
    if isinstance(single, TimeoutError):
        log.warning("request_failed", **about)
        return unavailable("it took too long; " + UNKNOWN.split(": ", 1)[1], call.gateway.own.retry_after_seconds)
    log.error("request_broke", **about, exc_info=error)
    return Refusal(500, {"error": "internal error", "request_id": call.request_id})


def _wanted(error: KubeError) -> float:
    return error.retry_after.total_seconds() if error.retry_after is not None else 0.0


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


def _weight(error: Exception) -> int:
    if isinstance(error, Refusal):
        return 0
    if isinstance(error, OutcomeUnknown):
        return 1
    if isinstance(error, (KubeError, TimeoutError)):
        return 2
    # Unforeseen ones outrank all: they must not be hidden behind a server that happens to be down.
    return -1
