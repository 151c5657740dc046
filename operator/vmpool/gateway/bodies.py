"""Bodies of the endpoints whose refusals VMPooler writes under ``message``."""

from typing import Any

from vmpool.gateway.answers import Refusal, not_found
from vmpool.gateway.bounds import INVALID, BodyRefused
from vmpool.gateway.context import Call

NOT_PARSED = "JSON payload could not be parsed"


async def read_object(call: Call) -> dict[str, Any]:
    """Return the object that a body is.

    Raises ``Refusal`` 400 with VMPooler's sentence for one that is no JSON, followed by the cause where it is another;
    404 for a JSON null, which names no pool.
    """
    if not call.request.can_read_body:
        raise Refusal(400, {"message": NOT_PARSED})
    try:
        body = await call.json()
    except BodyRefused as error:
        plain = error.error.startswith(INVALID)
        raise Refusal(400, {"message": NOT_PARSED if plain else f"{NOT_PARSED}: {error.error}"}) from None
    if body is None:
        raise not_found("no pools are named")
    if not isinstance(body, dict):
        raise Refusal(400, {"message": f"{NOT_PARSED}: Request body must be a JSON object"})
    return body
