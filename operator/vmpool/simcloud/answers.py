"""How the cloud reads requests and answers them: JSON in, JSON out, errors as ``{"error": {code, message}}``."""

import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson
from aiohttp import hdrs, web
from pydantic import BaseModel, ValidationError

from vmpool.simcloud.model import Refused

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
M = TypeVar("M", bound=BaseModel)

BEARER = "Bearer "


def answer(document: Any, status: int = 200) -> web.Response:
    """Return the document as a JSON response."""
    return web.Response(body=orjson.dumps(document), status=status, content_type="application/json")


def refusal(error: Refused) -> web.Response:
    """Return the error as a JSON response, with Retry-After when it names a pause."""
    response = answer({"error": {"code": error.code, "message": error.message}}, error.status)
    if error.retry_after is not None:
        response.headers[hdrs.RETRY_AFTER] = str(math.ceil(error.retry_after))
    return response


@web.middleware
async def json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every refusal, also aiohttp's own (no such path, body too large), into a JSON error."""
    try:
        return await handler(request)
    except Refused as error:
        return refusal(error)
    except web.HTTPException as error:
        return refusal(Refused(error.status, error.reason.replace(" ", ""), f"{request.path}: {error.reason}"))


def bearer(request: web.Request) -> str:
    """Return the API key of the request. Raises Refused (401) without one."""
    header = request.headers.get(hdrs.AUTHORIZATION, "")
    if not header.startswith(BEARER):
        raise Refused(401, "Unauthorized", "an Authorization header with a Bearer key is needed")
    return header.removeprefix(BEARER)


async def document(request: web.Request) -> Any:
    """Return the JSON body. Raises Refused (400)."""
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise Refused(400, "InvalidJSON", f"the body is not JSON: {error}") from error


async def body(request: web.Request, shape: type[M]) -> M:
    """Return the body as the given shape. Raises Refused: 400 for broken JSON, 422 for a wrong field."""
    return parse(shape.model_validate, await document(request))


def parse(validate: Callable[[Any], M], given: Any) -> M:
    """Return ``validate(given)``. Raises Refused (422) that names the first wrong field."""
    try:
        return validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "(root)"
        raise Refused(422, "InvalidRequest", f"field {where}: {first['msg']}") from error


def number(request: web.Request, name: str, default: int, most: int) -> int:
    """Return an integer query parameter between 1 and ``most``. Raises Refused (400)."""
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise Refused(400, "InvalidQuery", f"{name} must be between 1 and {most}, got {text!r:.40}")
    return int(text)


def tag_pairs(request: web.Request, name: str) -> list[tuple[str, str]]:
    """Return every ``name=key=value`` of the query. Raises Refused (400)."""
    pairs: list[tuple[str, str]] = []
    for text in request.query.getall(name, []):
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise Refused(400, "InvalidQuery", f"{name} must be key=value, got {text!r:.80}")
        pairs.append((key, value))
    return pairs
