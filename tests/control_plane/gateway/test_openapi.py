"""The OpenAPI document against the running gateway: what it says is so, and nothing that it allows breaks anything."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import checks
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks as openapi_checks

from tests.api import Api
from tests.control_plane.gateway.scene import Scene, Stock, sees
from tests.control_plane.gateway.table import ALICE, OPEN, PASSWORDS, STATIC, Row, table
from tests.control_plane.gateway.users import two_gateways
from tests.gateways import Gateway
from tests.rest import hosts, rest_client
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane

EXAMPLES = {GenerationMode.POSITIVE: 12, GenerationMode.NEGATIVE: 6}
"""Requests by endpoint and gateway."""
TOLD = {501, 503}
"""The only statuses from 500 on that an endpoint may have, and only where its document says so."""
CHECKS = [
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def served(
    plane: ControlPlane, shared_namespace: str, crds_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Gateway]]:
    with two_gateways(plane, shared_namespace, tmp_path_factory.mktemp("gateways")) as gateways:
        yield gateways


@pytest.fixture
async def known(served: dict[str, Gateway], api: Api, shared_namespace: str) -> tuple[dict[str, list[str]], str]:
    """Real values by the name of a parameter, and a token: so that requests get past "unknown"."""
    scene = Scene(api, shared_namespace)
    pool = await scene.pool("web", Stock(ready=60, pending=2))
    for gateway in served.values():
        await gateway.ready()
    async with rest_client(served[OPEN].url) as rest:
        await sees(rest, {pool: 60})
        mine = hosts(await rest.post("/vm", {pool: 4}))
        asked = (await rest.post(f"/ondemandvm/{pool}")).ok(201)["request_id"]
    async with rest_client(served[STATIC].url) as rest:
        await sees(rest, {pool: 56})
        token = await rest.new_token(ALICE, PASSWORDS[ALICE])
        mine += hosts(await rest.post("/vm", {pool: 4}, token=token))
    values = {"pool": [pool, f"{pool}+{pool}"], "hostname": mine, "id": [asked], "token": [token]}
    return values, token


def real(case: Any, values: dict[str, list[str]], turn: int) -> None:
    """Put real names into every other request, where its path and body have places for them."""
    if turn % 2:
        return
    for name in case.path_parameters or {}:
        for kind, choices in values.items():
            if kind in name or (kind == "pool" and name in ("names", "template", "request")):
                case.path_parameters[name] = choices[turn // 2 % len(choices)]
    if isinstance(case.body, dict) and case.body and case.operation.method.upper() == "POST":
        first = next(iter(case.body))
        case.body = {values["pool"][0]: case.body[first]}


def tried(operation: Any, mode: GenerationMode, url: str, values: dict[str, list[str]], token: str) -> None:
    """Send so many requests that the document allows (or, negative, forbids); raise what the checks find."""
    documented = {int(status) for status in operation.definition.raw["responses"] if status.isdigit()}

    @settings(
        max_examples=EXAMPLES[mode],
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), turn=st.integers(0, 7))
    def run(case: Any, turn: int) -> None:
        real(case, values, turn)
        response = case.call(base_url=url, headers={"X-AUTH-TOKEN": token} if token else {}, allow_redirects=False)
        status = response.status_code
        assert status < 500 or status in TOLD & documented, f"{status}: {response.text}"
        case.validate_response(response, checks=CHECKS, excluded_checks=[checks.not_a_server_error])

    run()


@pytest.mark.parametrize("on", [OPEN, STATIC])
def test_answers_conform_and_nothing_breaks(
    on: str, served: dict[str, Gateway], known: tuple[dict[str, list[str]], str]
) -> None:
    values, token = known
    url = served[on].url
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    found: list[str] = []
    done: Counter[GenerationMode] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()
        # Any string will do as a part of a path: without more there is next to nothing that the document forbids.
        modes = EXAMPLES if operation.body or operation.query else (GenerationMode.POSITIVE,)
        for mode in modes:
            try:
                tried(operation, mode, url, values, token if on == STATIC else "")
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE, f"{operation.label} allows nothing"
                continue
            except Exception as error:  # noqa: BLE001 - collected: one run tells of every endpoint
                found.append(f"{mode.name} {operation.label}: {told(error)}")
            done[mode] += 1
    assert not found, f"{len(found)} of {done.total()}:\n\n" + "\n\n".join(found)
    assert done[GenerationMode.POSITIVE] > 30, "the document is nearly empty"
    assert done[GenerationMode.NEGATIVE] > 5, "the document forbids nearly nothing"
    assert "request_broke" not in served[on].lines()


def told(error: BaseException) -> str:
    """What went wrong, at moderate length."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(told(one) for one in error.exceptions)
    return f"{type(error).__name__}: {str(error)[:600]}"


async def documents_of(served: dict[str, Gateway]) -> dict[str, dict[str, Any]]:
    """What each gateway says of itself."""
    found = {}
    for on, gateway in served.items():
        await gateway.ready()
        async with rest_client(gateway.url) as rest:
            found[on] = (await rest.call("GET", "/openapi.json")).ok()
    return found


async def test_every_row_of_the_contract_is_documented(served: dict[str, Gateway]) -> None:
    """Each method, path and status that the contract's table has stands in the document."""
    documents = await documents_of(served)
    missing = {
        f"{row.method} {row.path} {row.status} ({on})"
        for row in table()
        for on in row.on
        if not is_documented(documents[on], row)
    }
    assert not missing, "\n".join(sorted(missing))


async def test_every_documented_endpoint_has_rows(served: dict[str, Gateway]) -> None:
    """Each method and path of the document is asked for by some row, and each of its successes is seen."""
    missing = set()
    for document in (await documents_of(served)).values():
        for template, item in document["paths"].items():
            for method, operation in item.items():
                seen = {row.status for row in table() if row.method == method.upper() and fits(template, row)}
                good = {int(status) for status in operation["responses"] if status.isdigit() and int(status) < 300}
                # 202 of disks and snapshots comes with VMOperation.
                if not seen or (good and not good & seen and 501 not in seen):
                    missing.add(f"{method.upper()} {template}: rows with {seen}, successes {good}")
    assert not missing, "\n".join(sorted(missing))


def plain(path: str) -> str:
    """The path of a row without query and slash at the end, an ``x`` for each name."""
    return re.sub(r"<[^>]*>", "x", path).split("?")[0].rstrip("/") or "/"


def fits(template: str, row: Row) -> bool:
    """Whether a row's path is one of a template of the document."""
    pattern = re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(template.rstrip("/") or "/"))
    return re.fullmatch(pattern, plain(row.path)) is not None


def is_documented(document: dict[str, Any], row: Row) -> bool:
    """Whether a row's request and status stand in the document; what nobody serves need not."""
    method = row.method.lower()
    found = [item[method] for template, item in document["paths"].items() if method in item and fits(template, row)]
    if not found:
        return row.status == 404 or row.method == "HEAD"
    return any(str(row.status) in operation["responses"] for operation in found)


async def test_the_document_says_how_to_authenticate(served: dict[str, Gateway]) -> None:
    await served[OPEN].ready()
    async with rest_client(served[OPEN].url) as rest:
        document = (await rest.call("GET", "/openapi.json")).ok()
    schemes = document["components"]["securitySchemes"].values()
    assert {"type": "http", "scheme": "basic"}.items() <= next(one for one in schemes if one["type"] == "http").items()
    assert next(one for one in schemes if one["type"] == "apiKey")["name"].upper() == "X-AUTH-TOKEN"
    assert document["openapi"].startswith("3.1.")
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["responses"], f"{method} {path}"
            assert operation.get("summary"), f"{method} {path} has no summary"
