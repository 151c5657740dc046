"""The OpenAPI document, made from the table of routes that the application is made from."""

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import vmpool
from vmpool.gateway.answers import Answer
from vmpool.gateway.context import Call, Gateway
from vmpool.gateway.routes import REFUSED, Parameter, Route, Schema

PATH = "/openapi.json"
JSON, TEXT = "application/json", "text/plain"
REQUEST_ID: Schema = {
    "description": "The client's own X-Request-ID, or one that was made for it.",
    "schema": {"type": "string"},
}
RETRY_AFTER: Schema = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
SECURITY: dict[str, Schema] = {
    "token": {
        "type": "apiKey",
        "in": "header",
        "name": "X-AUTH-TOKEN",
        "description": "A token from POST /api/v3/token. Not needed where no auth provider is configured.",
    },
    "basic": {"type": "http", "scheme": "basic"},
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token of Kubernetes, where users are those of Kubernetes.",
    },
}

_VARIABLE = re.compile(r"\{(\w+)(?::[^{}]*)?\}")


def document(tables: Sequence[Iterable[Route]], gateway: Gateway) -> Schema:
    """Return the OpenAPI 3.1 document of these tables."""
    paths: dict[str, dict[str, Any]] = {}
    for table in tables:
        for route in table:
            path = _VARIABLE.sub(r"{\1}", route.path)
            paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, gateway)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vmpool",
            "version": vmpool.__version__,
            "description": "Pools of ready-to-use virtual machines, over the API that VMPooler's clients speak.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"securitySchemes": SECURITY},
    }


def served(made: Schema) -> Route:
    """Return the endpoint of a document."""

    async def show(_: Call) -> Answer:
        return Answer(made)

    return Route(ROUTE.method, ROUTE.path, show, ROUTE.summary, ROUTE.answers)


async def _unmade(_: Call) -> Answer:
    raise AssertionError("the endpoint that is served has its document")


ROUTE = Route("GET", PATH, _unmade, "This document.", {200: {"type": "object"}})
"""As it stands in the document, which cannot hold itself."""


def _operation(route: Route, path: str, gateway: Gateway) -> Schema:
    made: Schema = {
        "operationId": _name(route, path),
        "summary": route.summary,
        "responses": {str(status): _response(route, status, schema) for status, schema in _answers(route, gateway)},
    }
    if parameters := [_parameter(one) for one in _parameters(route, path)]:
        made["parameters"] = parameters
    if route.body is not None:
        # Not required for the document's sake: an empty body is answered, with the endpoint's own refusal.
        made["requestBody"] = {"content": {JSON: {"schema": route.body}}}
    if security := _security(route, gateway):
        made["security"] = security
    return made


def _name(route: Route, path: str) -> str:
    words = re.findall(r"\w+", path.removeprefix("/api/v3"))
    return "_".join([route.method.lower(), *words]) if words else f"{route.method.lower()}_root"


def _parameters(route: Route, path: str) -> list[Parameter]:
    described = {parameter.name for parameter in route.parameters if parameter.where == "path"}
    missing = [name for name in _VARIABLE.findall(path) if name not in described]
    return [*(Parameter(name, "path", f"The {name}.") for name in missing), *route.parameters]


def _parameter(parameter: Parameter) -> Schema:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "description": parameter.about,
        "required": parameter.required or parameter.where == "path",
        "schema": parameter.schema,
    }


def _answers(route: Route, gateway: Gateway) -> list[tuple[int, Schema]]:
    """Return what the endpoint answers, and what the frame may answer in its place."""
    answers: dict[int, Schema] = dict(route.answers)
    for status in _of_frame(route, gateway):
        known = answers.get(status)
        answers[status] = REFUSED if known in (None, REFUSED) else {"anyOf": [known, REFUSED]}
    return sorted(answers.items())


def _of_frame(route: Route, gateway: Gateway) -> list[int]:
    if not route.path.startswith("/api/"):
        return []
    statuses = [400, 500, 503]
    if route.auth != "open" and gateway.gatekeeper.configured:
        statuses.append(401)
    if gateway.own.rate_limits:
        statuses.append(429)
    return statuses


def _response(route: Route, status: int, schema: Schema) -> Schema:
    headers: dict[str, Schema] = {"X-Request-ID": REQUEST_ID}
    if status in (429, 503) and route.path.startswith("/api/"):
        headers["Retry-After"] = RETRY_AFTER
    content: dict[str, Schema] = {TEXT: {"schema": {"type": "string"}}} if status in route.plain else {}
    # An endpoint that says one thing in plain text may be refused by the frame in JSON.
    if status not in route.plain or schema.get("anyOf"):
        content[JSON] = {"schema": REFUSED if status in route.plain else schema}
    return {"description": HTTPStatus(status).phrase, "headers": headers, "content": content}


def _security(route: Route, gateway: Gateway) -> list[Schema]:
    if route.auth == "open":
        return []
    if not gateway.gatekeeper.configured:
        return [{}]
    if route.auth == "basic":
        return [{"basic": []}]
    return [{"token": []}, {"bearer": []}] if gateway.own.auth == "kubernetes" else [{"token": []}]
