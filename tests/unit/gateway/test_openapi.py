"""The OpenAPI document: valid, complete, and the same as what is served."""

import re
from typing import Any

import schemathesis

from tests.unit.gateway.frames import gateway_of, served
from vmpool.gateway import health
from vmpool.gateway.answers import Answer
from vmpool.gateway.context import Call
from vmpool.gateway.openapi import document
from vmpool.gateway.routes import OK, REFUSED, Parameter, Route
from vmpool.gateway.tables import tables


async def handler(_: Call) -> Answer:
    return Answer({"ok": True})


def _plain(path: str) -> str:
    return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", path)


async def made(*routes: Route, configured: bool = False, **own: Any) -> dict[str, Any]:
    gateway, _ = gateway_of(configured=configured, **own)
    await gateway.client.close()
    return document([routes] if routes else [health.ROUTES, *tables()], gateway)


async def test_the_whole_document_is_valid_openapi_with_an_operation_for_every_route() -> None:
    whole = await made(configured=True, rate_limits=True)
    schema = schemathesis.openapi.from_dict(whole)
    schema.validate()
    # Fails for any operation that cannot be understood, references and parameters included.
    operations = {(found.ok().method.upper(), found.ok().path) for found in schema.get_all_operations()}
    routes = {(route.method, _plain(route.path)) for table in (health.ROUTES, *tables()) for route in table}
    assert operations == routes
    ids = [operation["operationId"] for path in whole["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids)), "operation ids must be unique"


async def test_every_status_of_every_route_is_there_with_a_schema_and_so_are_the_frames() -> None:
    whole = await made(configured=True, rate_limits=True)
    for table in tables():
        for route in table:
            responses = whole["paths"][_plain(route.path)][route.method.lower()]["responses"]
            expected = {*route.answers, 400, 429, 500, 503} | ({401} if route.auth != "open" else set())
            assert {int(status) for status in responses} == expected, route.path
            for status, response in responses.items():
                assert response["description"], (route.path, status)
                assert all("schema" in content for content in response["content"].values()), (route.path, status)


async def test_a_status_of_the_frame_that_the_endpoint_has_too_may_look_like_either() -> None:
    own = {"type": "object", "properties": {"failure": {"type": "array"}}}
    whole = await made(Route("POST", "/api/v3/thing", handler, "A thing.", {200: OK, 400: own, 503: REFUSED}))
    responses = whole["paths"]["/api/v3/thing"]["post"]["responses"]
    assert responses["400"]["content"] == {"application/json": {"schema": {"anyOf": [own, REFUSED]}}}
    assert responses["503"]["content"]["application/json"]["schema"] == REFUSED
    assert "Retry-After" in responses["503"]["headers"]


async def test_plain_text_is_said_to_be_plain_text() -> None:
    plain = {"type": "string"}
    route = Route("GET", "/api/v3/thing", handler, "T.", {200: OK, 400: plain}, plain=frozenset({400}))
    responses = (await made(route))["paths"]["/api/v3/thing"]["get"]["responses"]
    assert responses["400"]["content"] == {
        "text/plain": {"schema": plain},
        "application/json": {"schema": REFUSED},
    }


async def test_parameters_of_the_path_are_there_described_or_not() -> None:
    one = Parameter("name", "path", "Whose.", {"type": "string", "pattern": "^a"})
    route = Route("GET", "/api/v3/{name}/{rest:.+}", handler, "T.", {200: OK}, parameters=(one,))
    operation = (await made(route))["paths"]["/api/v3/{name}/{rest}"]["get"]
    parameters = {parameter["name"]: parameter for parameter in operation["parameters"]}
    assert set(parameters) == {"name", "rest"}
    assert parameters["name"]["schema"]["pattern"] == "^a"
    assert all(parameter["required"] and parameter["in"] == "path" for parameter in parameters.values())


async def test_what_must_be_shown_depends_on_the_route_and_on_whether_there_are_users() -> None:
    token = Route("GET", "/api/v3/a", handler, "A.", {200: OK}, auth="token")
    basic = Route("GET", "/api/v3/b", handler, "B.", {200: OK}, auth="basic")
    free = Route("GET", "/api/v3/c", handler, "C.", {200: OK})

    async def security(**own: Any) -> list[Any]:
        paths = (await made(token, basic, free, **own))["paths"]
        return [paths[f"/api/v3/{name}"]["get"].get("security") for name in "abc"]

    assert await security(configured=True, auth="static") == [[{"token": []}], [{"basic": []}], None]
    assert await security(configured=True, auth="kubernetes") == [
        [{"token": []}, {"bearer": []}],
        [{"basic": []}],
        None,
    ]
    assert await security() == [[{}], [{}], None]


async def test_the_document_is_served_as_it_was_made() -> None:
    gateway, _ = gateway_of()
    route = Route("GET", "/api/v3/thing", handler, "A thing.", {200: OK})
    async with served(route, gateway=gateway) as client:
        answer = await (await client.get("/openapi.json")).json()
    assert answer["openapi"] == "3.1.0"
    assert {"/api/v3/thing", "/openapi.json", "/readyz"} <= set(answer["paths"])
    assert answer["servers"] == [{"url": "/"}]
    assert set(answer["components"]["securitySchemes"]) == {"token", "basic", "bearer"}
