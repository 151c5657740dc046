"""Whatever is sent: the reference's status and a JSON error that names the cause; never a trace, never a 500."""

import asyncio
import json
import string
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api import Api
from tests.control_plane.gateway.scene import Scene, Stock
from tests.control_plane.gateway.stagehand import scene_with
from tests.control_plane.gateway.table import ALICE, OPEN, PASSWORDS, STATIC
from tests.control_plane.gateway.users import two_gateways
from tests.gateways import Gateway
from tests.rest import API, Rest, bare_request, rest_client
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane

BODY_BYTES = 10_240
EXAMPLES = 80
WRITES = (
    ("POST", "/vm"),
    ("PUT", "/vm/nowhere-12345678"),
    ("POST", "/ondemandvm"),
    ("POST", "/config/poolsize"),
    ("POST", "/config/pooltemplate"),
    ("POST", "/config/clonetarget"),
    ("POST", "/poolreset"),
)
"""Every endpoint that reads a body."""
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def served(
    plane: ControlPlane, shared_namespace: str, crds_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Gateway]]:
    with two_gateways(plane, shared_namespace, tmp_path_factory.mktemp("gateways")) as gateways:
        yield gateways


@pytest.fixture
async def rest(served: dict[str, Gateway]) -> AsyncIterator[Rest]:
    """A client of the gateway without users."""
    await served[OPEN].ready()
    async with rest_client(served[OPEN].url) as client:
        yield client


@pytest.fixture(scope="module")
def known_tokens() -> dict[str, str]:
    """A token of alice, made by the first test that needs it."""
    return {}


@pytest.fixture
async def alice(served: dict[str, Gateway], known_tokens: dict[str, str]) -> AsyncIterator[tuple[Rest, str]]:
    """A client of the gateway with users and configuration endpoints, and alice's token."""
    await served[STATIC].ready()
    async with rest_client(served[STATIC].url) as client:
        if ALICE not in known_tokens:
            known_tokens[ALICE] = await client.new_token(ALICE, PASSWORDS[ALICE])
        yield client, known_tokens[ALICE]


def no_500(status: int, content: bytes) -> None:
    """Not broken: a refusal is a JSON object with ok false and nothing internal in it."""
    assert status != 500, content
    if status >= 400:
        body = json.loads(content)
        assert body["ok"] is False


# Bodies.

BAD_BODIES = {
    "empty": b"",
    "blank": b" \r\n\t",
    "half": b'{"web": 1',
    "words": b"give me a VM",
    "not-utf-8": b'{"\xff\xfe": 1}',
    "utf-16": '{"web": 1}'.encode("utf-16"),
    "nul": b"\x00" * 100,
    "lone-surrogate": b'{"\\ud800": 1}',
    "twice": b'{"web": 1, "web": 2}',
    "nan": b'{"web": NaN}',
    "infinite": b'{"web": 1e999}',
    "long-number": b'{"web": ' + b"9" * 5000 + b"}",
    "deep-list": b"[" * 5000 + b"]" * 5000,
    "deep-object": b'{"a":' * 1500 + b"1" + b"}" * 1500,
    "deep-half": b'{"a":[' * 1500,
    "null": b"null",
    "list": b"[]",
    "string": b'"web"',
    "number": b"7",
    "large": json.dumps({"web" * 4000: 1}).encode(),
}


@pytest.mark.parametrize("label", BAD_BODIES)
@pytest.mark.parametrize(("method", "path"), WRITES, ids=[path[1:] for _, path in WRITES])
async def test_bad_bodies_are_refused_with_the_cause(
    alice: tuple[Rest, str], method: str, path: str, label: str
) -> None:
    rest, token = alice
    answer = await rest.call(method, API + path, raw=BAD_BODIES[label], token=token)
    assert answer.status in (400, 404), f"{answer.status} {answer.text}"
    cause = answer.refused(answer.status)
    if answer.status == 400:
        assert cause, "no cause is named"


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(rest: Rest) -> None:
    request = f"POST {API}/vm HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {10**12}\r\n\r\n{{"
    answer = await bare_request(rest.url, request.encode())
    assert answer.split(b" ", 2)[1] in (b"400", b"413"), answer[:300]
    assert b"Request body too large" in answer


async def test_a_chunked_body_without_end_is_cut_at_the_bound(rest: Rest) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 64 * 2**20:
            sent += 4096
            yield b"[" * 4096
            await asyncio.sleep(0)

    try:
        answer = await rest.call("POST", f"{API}/vm", raw=chunks())
        assert "Request body too large" in answer.refused(400)
    except ConnectionError:
        # The gateway may close while we are still sending.
        pass
    assert sent < 16 * 2**20, "the body was read to its end"
    (await rest.get("/vm")).ok()


async def test_a_lying_length_is_refused_and_nothing_hangs(rest: Rest) -> None:
    for head in (
        "Content-Length: 5",
        "Content-Length: -1",
        "Content-Length: 1\r\nContent-Length: 2",
        "Content-Length: x",
    ):
        request = f"POST {API}/vm HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}\r\n\r\n" + '{"web": 1}'
        answer = await bare_request(rest.url, request.encode())
        assert answer.split(b" ", 2)[1] in (b"400", b"404"), answer[:300]
        assert b"Traceback" not in answer
    (await rest.get("/vm")).ok()


async def test_a_body_cut_off_changes_nothing(rest: Rest, api: Api, shared_namespace: str) -> None:
    scene = await scene_with(api, shared_namespace, rest, web=Stock(ready=1))
    pool = scene.name("web")
    body = json.dumps({pool: 1})
    _, writer = await asyncio.open_connection("127.0.0.1", int(rest.url.rsplit(":", 1)[1]))
    head = f"POST {API}/vm HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body) + 5}\r\n\r\n"
    writer.write((head + body).encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await rest.get(f"/poolstat?pool={pool}")).ok()["pools"][pool]["ready"] == 1
    assert not await scene.held(pool)


@pytest.mark.parametrize(
    "line",
    [
        b"GET /api/v3/vm\x00 HTTP/1.1",
        b"GET /api/v3/\xff\xfe HTTP/1.1",
        b"GET /api/v3/%zz HTTP/1.1",
        b"GET /api/v3/%c3%28 HTTP/1.1",
        b"GET http://elsewhere/api/v3/vm HTTP/1.1",
        b"GET //api/v3/vm HTTP/1.1",
        b"BREW /api/v3/vm HTTP/1.1",
        b"GET /api/v3/vm HTTP/9.9",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1",
        b"nonsense",
    ],
    ids=["nul", "bytes", "percent", "overlong", "absolute", "slashes", "method", "version", "long", "nonsense"],
)
async def test_odd_request_lines_break_nothing(rest: Rest, line: bytes) -> None:
    answer = await bare_request(rest.url, line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1."), answer[:200]
    assert answer.split(b" ", 2)[1] in (b"200", b"400", b"404", b"414", b"431", b"505"), answer[:300]
    assert b"Traceback" not in answer
    (await rest.get("/vm")).ok()


@pytest.mark.parametrize("path", ["/%0A", "/api/v3/%0D%0A", "/api/v3/config/poolsize/a%0Ab", "/dashboard/a%0Ab"])
async def test_a_newline_in_a_path_is_404_in_json(rest: Rest, path: str) -> None:
    (await rest.call("GET", path)).refused(404)


# Tokens and logins.


async def test_odd_tokens_are_401(alice: tuple[Rest, str], api: Api, shared_namespace: str) -> None:
    rest, token = alice
    scene = await scene_with(api, shared_namespace, rest, web=Stock(ready=1))
    pool = scene.name("web")
    odd = ("x", token[:-1], token + "x", token.upper(), token.swapcase(), "a" * 7000, "\xff", " ", "..", "*", "%00")
    for one in odd:
        answer = await rest.post(f"/vm/{pool}", headers={"X-AUTH-TOKEN": one})
        answer.refused(401)
        assert token not in answer.text
    assert not await scene.held(pool)


async def test_no_secret_stands_in_the_log(served: dict[str, Gateway], alice: tuple[Rest, str]) -> None:
    rest, token = alice
    (await rest.get("/token", basic=(ALICE, PASSWORDS[ALICE]))).ok()
    (await rest.post("/vm/nowhere", token=token)).refused(404)
    (await rest.get("/token", basic=(ALICE, "my other password"))).refused(401)
    (await rest.get(f"/token/{token}")).ok()
    log = served[STATIC].lines()
    for secret in (token, PASSWORDS[ALICE], "my other password"):
        assert secret not in log


# The rest, by hypothesis: one loop of asyncio for all examples of a test.

NAMES = st.text(min_size=0, max_size=110) | st.text(alphabet=string.printable, max_size=20)
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)
COUNTS = SCALARS | st.sampled_from([0, -1, 1, 100, 101, "1", "01", "+1", "1e1", "0x1", "1_0", " 1", "1 ", "１"])


class Asked:
    """Runs one request of a Hypothesis example in a loop that all examples share."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._runner = asyncio.Runner()

    def __call__(self, method: str, path: str, *, token: str = "", body: Any = None) -> tuple[int, bytes]:
        async def ask() -> tuple[int, bytes]:
            async with rest_client(self._url) as rest:
                raw = json.dumps(body).encode() if body is not None else None
                answer = await rest.call(method, path, raw=raw, token=token)
                return answer.status, answer.content

        return self._runner.run(ask())

    def close(self) -> None:
        self._runner.close()


@pytest.fixture
def asked(served: dict[str, Gateway]) -> Iterator[Asked]:
    """Asks the gateway without users."""
    one = Asked(served[OPEN].url)
    one._runner.run(served[OPEN].ready())
    yield one
    one.close()


@SETTINGS
@given(body=st.dictionaries(NAMES, COUNTS, min_size=1, max_size=4))
def test_any_checkout_body(asked: Asked, body: dict[str, Any]) -> None:
    status, content = asked("POST", f"{API}/vm", body=body)
    assert status in (400, 404), content
    no_500(status, content)


@SETTINGS
@given(body=VALUES, where=st.sampled_from([path for path in WRITES if "/config" not in path[1]]))
def test_any_json(asked: Asked, body: Any, where: tuple[str, str]) -> None:
    status, content = asked(where[0], API + where[1], body=body)
    assert status in (400, 403, 404, 405), content
    no_500(status, content)


@SETTINGS
@given(name=st.text(min_size=1, max_size=300), method=st.sampled_from(["GET", "PUT", "POST", "DELETE"]))
def test_any_name_in_a_path(asked: Asked, name: str, method: str) -> None:
    for head in ("vm", "token", "ondemandvm", "summary", "config/poolsize"):
        path = f"{API}/{head}/{quote(name.encode('utf-8', 'surrogatepass'), safe='')}"
        status, content = asked(method, path)
        no_500(status, content)
        assert status in (200, 400, 404, 405), f"{method} {path}: {status} {content!r}"


@SETTINGS
@given(query=st.text(max_size=60))
def test_any_query(asked: Asked, query: str) -> None:
    sent = quote(query.encode("utf-8", "surrogatepass"), safe="=&,-")
    for path in ("status?view=", "poolstat?pool=", "summary?from=", "summary?to=", "summary/tag?from="):
        status, content = asked("GET", f"{API}/{path}{sent}")
        assert status in (200, 400), f"{path}{sent}: {status} {content!r}"


async def test_nothing_was_taken_or_broken_by_all_that(
    served: dict[str, Gateway], api: Api, shared_namespace: str
) -> None:
    scene = Scene(api, shared_namespace)
    assert not [vm for vm in (await scene.vms.list()).ok()["items"] if vm["spec"].get("claim")]
    for gateway in served.values():
        assert gateway.running
        assert "request_broke" not in gateway.lines()
