"""Tokens over REST: made and listed by user and password, looked at by whoever has one."""

from datetime import datetime

from vmpool.gateway import audit
from vmpool.gateway.answers import Answer, Json, not_found
from vmpool.gateway.context import BY_TOKEN, Call, TokenBook, TokenFacts
from vmpool.gateway.routes import OK, REFUSED, Parameter, Route, Schema
from vmpool.plan.snapshot import VM


async def list_tokens(call: Call) -> Answer:
    """List the user's tokens, by id: what they are is told only once. 404 when there is none, as VMPooler says."""
    identity = await call.login()
    tokens = _book(call).of(identity)
    if not tokens:
        raise not_found(f"{identity.login} has no tokens")
    body: Json = {"ok": True}
    for token in tokens:
        body[token.id] = {
            "created": written(token.created),
            "last": written(token.last_used) if token.last_used is not None else "never",
        }
    return Answer(body)


async def create_token(call: Call) -> Answer:
    """Make a token and tell it, this once."""
    identity = await call.login()
    token = await _book(call).create(identity)
    audit.record(call, "token_create")
    return Answer({"ok": True, "token": token})


async def show_token(call: Call) -> Answer:
    """Show whose a token is and which VMs were checked out with it; to have it is right enough."""
    text = call.path["token"]
    _book(call)
    token = call.gateway.gatekeeper.valid(text)
    if token is None:
        raise not_found("there is no such token")
    shown: Json = {"user": token.identity.login, "created": written(token.created)}
    if token.last_used is not None:
        shown["last"] = written(token.last_used)
    running = sorted(vm.name for vm in _checked_out(call, token))
    if running:
        shown["vms"] = {"running": running}
    return Answer({"ok": True, text: shown})


async def delete_token(call: Call) -> Answer:
    """Forget a token of the user's own, named by itself or by its id."""
    identity = await call.login()
    book, text = _book(call), call.path["token"]
    given = book.find(text)
    id_ = given.id if given is not None else text
    token = next((one for one in book.of(identity) if one.id == id_), None)
    if token is None:
        raise not_found(f"{identity.login} has no such token")
    await book.delete(token)
    audit.record(call, "token_delete", deleted_token_id=token.id)
    return Answer({"ok": True})


def written(moment: datetime) -> str:
    """Return a time as VMPooler writes it in the data of tokens."""
    return moment.strftime("%Y-%m-%d %H:%M:%S %z")


def _book(call: Call) -> TokenBook:
    book = call.gateway.gatekeeper.tokens
    if book is None:
        raise not_found("there are no tokens: no auth provider is configured")
    return book


def _checked_out(call: Call, token: TokenFacts) -> list[VM]:
    facts = (entry.fact for entry in call.gateway.vms.by_index(BY_TOKEN, token.id))
    return [vm for vm in facts if vm is not None and vm.claim is not None and vm.claim.released_at is None]


_TEXT: Schema = {"type": "string"}
_TIMES: Schema = {
    "type": "object",
    "properties": {"created": _TEXT, "last": _TEXT},
    "required": ["created", "last"],
}
_SHOWN: Schema = {
    "type": "object",
    "properties": {
        "user": _TEXT,
        "created": _TEXT,
        "last": _TEXT,
        "vms": {"type": "object", "properties": {"running": {"type": "array", "items": _TEXT}}},
    },
    "required": ["user", "created"],
}
_TOKEN = Parameter("token", "path", "The token; for DELETE its id will do.", required=True)


def _with_ok(others: Schema) -> Schema:
    return {"type": "object", "properties": {"ok": {"const": True}}, "required": ["ok"], "additionalProperties": others}


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/api/v3/token",
        list_tokens,
        "Your tokens, by id",
        {200: _with_ok(_TIMES), 401: REFUSED, 404: REFUSED, 503: REFUSED},
        auth="basic",
    ),
    Route(
        "POST",
        "/api/v3/token",
        create_token,
        "Make a token; it is shown only here",
        {200: _with_ok(_TEXT), 401: REFUSED, 403: REFUSED, 404: REFUSED, 503: REFUSED},
        auth="basic",
        limit="creation",
    ),
    Route(
        "GET",
        "/api/v3/token/{token}",
        show_token,
        "Whose a token is, and its VMs",
        {200: _with_ok(_SHOWN), 404: REFUSED, 503: REFUSED},
        parameters=(_TOKEN,),
    ),
    Route(
        "DELETE",
        "/api/v3/token/{token}",
        delete_token,
        "Forget a token of yours",
        {200: OK, 401: REFUSED, 404: REFUSED, 503: REFUSED},
        parameters=(_TOKEN,),
        auth="basic",
    ),
)
