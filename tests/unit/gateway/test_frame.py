"""The frame: ids, unknown paths, what errors become, limits, packing. On a real socket."""

import asyncio
import gzip
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.unit.gateway.frames import gateway_of, served
from vmpool.gateway.answers import Answer, bad_request
from vmpool.gateway.app import build_app
from vmpool.gateway.auth.caller import rest_identity
from vmpool.gateway.context import Call, TokenFacts
from vmpool.gateway.routes import OK, Handler, Route
from vmpool.kube import errors
from vmpool.kube.errors import KubeError

SECRET = "https://10.0.0.1:6443 says Bearer abc"


def route(handler: Handler, method: str = "POST", path: str = "/api/v3/thing", **more: Any) -> Route:
    return Route(method, path, handler, "A thing.", {200: OK}, **more)


def fails(error: BaseException) -> Handler:
    async def handler(_: Call) -> Answer:
        raise error

    return handler


async def fine(_: Call) -> Answer:
    return Answer({"ok": True})


async def echo(call: Call) -> Answer:
    return Answer({"ok": True, "body": await call.json(), "address": call.address, "path": dict(call.path)})


async def test_answers_are_indented_json_as_the_reference_writes_it() -> None:
    async with served(route(echo)) as client:
        answer = await client.post("/api/v3/thing", data=b'{"a": []}')
        assert answer.headers["Content-Type"] == "application/json"
        text = await answer.text()
    assert text.startswith('{\n  "ok": true,\n  "body": {\n    "a": []\n  },\n')


@pytest.mark.parametrize("path", ["/api/v3/thing", "/api/v3/thing/"])
async def test_a_trailing_slash_is_optional(path: str) -> None:
    async with served(route(fine, "GET")) as client:
        assert (await client.get(path)).status == 200
        assert (await client.head(path)).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nowhere"),
        ("GET", "/api/v3/thing//"),
        ("PATCH", "/api/v3/thing"),
        ("PROPFIND", "/x"),
        ("POST", "/readyz"),
    ],
)
async def test_what_nobody_serves_is_404_and_counted_without_its_path(method: str, path: str) -> None:
    gateway, _ = gateway_of()
    async with served(route(fine), gateway=gateway) as client:
        answer = await client.request(method, path)
        assert (answer.status, await answer.json()) == (404, {"ok": False})
    labels = [sample.labels for metric in gateway.metrics.requests.collect() for sample in metric.samples]
    assert {label["route"] for label in labels} == {"unmatched"}
    assert {label["method"] for label in labels} == {"other" if method == "PROPFIND" else method}


@pytest.mark.parametrize("given", ["job-17_a.B", "x" * 64])
async def test_a_proper_request_id_is_taken_over(given: str) -> None:
    async with served(route(fine)) as client:
        answer = await client.post("/api/v3/thing", headers={"X-Request-ID": given})
    assert answer.headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "ü", '"', "a;b"])
async def test_an_improper_request_id_is_replaced(given: str) -> None:
    async with served(route(fine)) as client:
        seen = {
            (await client.post("/api/v3/thing", headers={"X-Request-ID": given})).headers["X-Request-ID"]
            for _ in range(2)
        }
    assert len(seen) == 2
    assert all(len(one) == 32 and one.isalnum() for one in seen)


def kube_error(kind: type[KubeError], **more: Any) -> KubeError:
    return kind(SECRET, details={"name": "x"}, **more)


KUBE_ERRORS = [
    (errors.Unreachable, "cannot be reached"),
    (errors.ServerError, "fails to answer"),
    (errors.Throttled, "overloaded"),
    (errors.Forbidden, "does not allow"),
    (errors.NamespaceTerminating, "does not allow"),
    (errors.Unauthorized, "does not know"),
    (errors.KindNotFound, "does not serve"),
    (errors.Invalid, "refused"),
    (errors.OutcomeUnknown, "it is not known whether this was done; GET /api/v3/token/<token>"),
]


@pytest.mark.parametrize(("kind", "words"), KUBE_ERRORS, ids=[kind.__name__ for kind, _ in KUBE_ERRORS])
async def test_trouble_with_the_api_server_is_503_with_the_cause_in_our_words(
    kind: type[KubeError], words: str
) -> None:
    async with served(route(fails(kube_error(kind))), retry_after_seconds=7) as client:
        answer = await client.post("/api/v3/thing")
        body = await answer.text()
    assert (answer.status, answer.headers["Retry-After"]) == (503, "7")
    assert words in json.loads(body)["error"]
    assert "Bearer" not in body


async def test_a_longer_wait_that_the_api_server_asks_for_is_passed_on() -> None:
    error = kube_error(errors.Throttled, retry_after=timedelta(seconds=30))
    async with served(route(fails(error))) as client:
        assert (await client.post("/api/v3/thing")).headers["Retry-After"] == "30"


async def test_what_took_too_long_is_503() -> None:
    async with served(route(fails(TimeoutError()))) as client:
        answer = await client.post("/api/v3/thing")
        assert answer.status == 503
        assert "took too long" in (await answer.json())["error"]


@pytest.mark.parametrize("body", [{"a": object()}, {("a", "b"): 1}])
async def test_what_is_unforeseen_is_500_without_a_stack(body: Any) -> None:
    async def broken(_: Call) -> Answer:
        return Answer(body)

    with capture_logs() as logged:
        async with served(route(fails(KeyError(SECRET))), route(broken, "GET")) as client:
            for method in ("POST", "GET"):
                answer = await client.request(method, "/api/v3/thing", headers={"X-Request-ID": f"id-{method}"})
                assert answer.status == 500
                assert await answer.json() == {"ok": False, "error": "internal error", "request_id": f"id-{method}"}
    assert [line["request_id"] for line in logged] == ["id-POST", "id-GET"]
    assert isinstance(logged[0]["exc_info"], KeyError), "the log has what the client must not see"


async def test_of_errors_that_came_together_the_most_telling_one_is_answered() -> None:
    refusal, unknown = bad_request("no"), kube_error(errors.OutcomeUnknown)
    down = kube_error(errors.Unreachable)
    cases: list[tuple[list[Exception], int, str]] = [
        ([down, unknown], 503, "not known"),
        ([down, refusal], 400, "no"),
        ([down, ValueError(SECRET), refusal], 500, "internal error"),
    ]
    for group, status, words in cases:
        nested = ExceptionGroup("outer", [ExceptionGroup("inner", group)])
        async with served(route(fails(nested))) as client:
            answer = await client.post("/api/v3/thing")
            assert answer.status == status
            assert words in (await answer.json())["error"]


async def test_nothing_is_answered_before_the_first_lists() -> None:
    async with served(route(fine), loaded=False) as client:
        answer = await client.post("/api/v3/thing")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        assert "vmpools" in (await answer.json())["error"]
        assert (await client.get("/nowhere")).status == 404
        assert (await client.get("/readyz")).status == 503
        for path in ("/ping", "/healthz", "/metrics", "/prometheus", "/healthcheck", "/openapi.json"):
            assert (await client.get(path)).status == 200, path


async def test_ready_says_why_not() -> None:
    gateway, keeper = gateway_of()
    async with served(route(fine), gateway=gateway) as client:
        keeper.why_not = "the tokens are not known yet"
        # Without a list of their own the mirrors are older than any bound.
        assert "last heard of" in await (await client.get("/readyz")).text()
        for mirror in (gateway.pools, gateway.vms, gateway.claims):
            mirror._proved_at = asyncio.get_running_loop().time()
        assert await (await client.get("/readyz")).text() == "the tokens are not known yet\n"
        keeper.why_not = ""
        assert (await client.get("/readyz")).status == 200
        gateway.vms.regressed = True
        assert "went back in time" in await (await client.get("/readyz")).text()
        gateway.vms.regressed = False
        gateway.client._transport.clock_skew = timedelta(seconds=-6)
        assert "clock" in await (await client.get("/readyz")).text()


async def test_the_root_leads_to_the_dashboard_that_is_not_there() -> None:
    async with served() as client:
        answer = await client.get("/", allow_redirects=False)
        assert (answer.status, answer.headers["Location"]) == (302, "/dashboard/")
        for path in ("/dashboard/", "/dashboard/stats/vmpooler/pool?history=1"):
            answer = await client.get(path)
            assert answer.status == 404
            assert "no dashboard" in (await answer.json())["error"]


async def test_a_client_above_its_limit_is_told_when_to_come_back() -> None:
    gateway, _ = gateway_of(rate_limits=True, rate_per_address=2, rate_period_seconds=50)
    async with served(route(fine), gateway=gateway) as client:
        first, second, third = [await client.post("/api/v3/thing") for _ in range(3)]
        assert [one.status for one in (first, second, third)] == [200, 200, 429]
        assert [one.headers["X-RateLimit-Remaining"] for one in (first, second, third)] == ["1", "0", "0"]
        wait = int(third.headers["Retry-After"])
        assert 0 < wait <= 50
        assert await third.json() == {
            "ok": False,
            "error": "Rate limit exceeded",
            "limit": 2,
            "period": 50,
            "retry_after": wait,
        }
        assert (await client.get("/readyz")).status == 503, "probes are not limited"
        assert (await client.get("/nowhere")).status == 429, "guessing is"
    assert gateway.metrics.limited.labels("address")._value.get() == 2


async def test_the_limit_is_the_tokens_only_if_the_token_is_one() -> None:
    tokens = {name: TokenFacts(name, rest_identity("ada"), datetime.now(UTC)) for name in ("good", "second")}
    tokens["fresh"] = TokenFacts("fresh", rest_identity("eve"), datetime.now(UTC))
    gateway, keeper = gateway_of(tokens, rate_limits=True, rate_per_address=1, rate_per_token=3)
    async with served(route(fine), gateway=gateway) as client:

        async def statuses(token: str, count: int) -> list[int]:
            headers = {"X-AUTH-TOKEN": token} if token else {}
            return [(await client.post("/api/v3/thing", headers=headers)).status for _ in range(count)]

        assert await statuses("made-up", 2) == [200, 429]
        assert await statuses("other", 1) == [429], "the same address"
        assert await statuses("good", 3) == [200, 200, 200]
        assert await statuses("second", 1) == [429], "the same user"
        assert await statuses("fresh", 1) == [200], "another user"
        keeper.gone = True
        assert await statuses("fresh", 1) == [429], "a user who is known no longer is anybody at that address"


async def test_creations_have_a_limit_of_their_own() -> None:
    async with served(
        route(fine, limit="creation"), route(fine, "GET"), rate_limits=True, rate_creation=1, rate_per_address=5
    ) as client:
        seen = [(await client.post("/api/v3/thing")).status for _ in range(3)]
        assert seen == [200, 429, 429]
        assert (await client.get("/api/v3/thing")).headers["X-RateLimit-Remaining"] == "3"


async def test_too_many_requests_at_once_are_turned_away() -> None:
    release = asyncio.Event()
    entered = asyncio.Event()

    async def slow(_: Call) -> Answer:
        entered.set()
        await release.wait()
        return Answer({"ok": True})

    async with served(route(slow), requests_at_once=1) as client:
        waiting = asyncio.create_task(client.post("/api/v3/thing"))
        await entered.wait()
        answer = await client.post("/api/v3/thing")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        release.set()
        assert (await waiting).status == 200


async def test_the_clients_address_is_the_one_behind_trusted_proxies() -> None:
    headers = {"X-Forwarded-For": "198.51.100.7, 203.0.113.9"}
    for trusted, address in (("", "127.0.0.1"), ("127.0.0.0/8", "203.0.113.9")):
        async with served(route(echo), trusted_proxies=trusted) as client:
            body = await (await client.post("/api/v3/thing", headers=headers)).json()
            assert body["address"] == address


async def test_large_answers_are_packed_for_those_who_can_unpack() -> None:
    async def large(_: Call) -> Answer:
        return Answer({"names": ["name"] * 1000})

    async with served(route(large), unpack=False) as client:
        for accepted, packed in [
            ("gzip", True),
            ("deflate, gzip;q=0.5", True),
            ("*", True),
            ("gzip;q=0", False),
            ("identity", False),
            ("gzipped", False),
        ]:
            answer = await client.post("/api/v3/thing", headers={"Accept-Encoding": accepted})
            raw = await answer.read()
            assert (answer.headers.get("Content-Encoding") == "gzip") is packed, accepted
            assert json.loads(gzip.decompress(raw) if packed else raw) == {"names": ["name"] * 1000}
            assert answer.headers["Vary"] == "Accept-Encoding"


@pytest.mark.parametrize("part", ["%FF", "%00", "%E2%82%AC", "a%0Ab", "%25"])
async def test_strange_paths_are_no_trouble(part: str) -> None:
    async with served(route(echo, "GET", "/api/v3/thing/{name}")) as client:
        answer = await client.get(client.make_url("/").build(path=f"/api/v3/thing/{part}", encoded=True))
        assert answer.status == 200
        assert (await answer.json())["path"]["name"]


async def test_bytes_in_paths_and_headers_that_are_no_text_break_nothing() -> None:
    async def tell(call: Call) -> Answer:
        return Answer({"ok": True, "header": call.request.headers.get("X-Thing", "")})

    async with served(route(tell, "GET"), rate_limits=True) as client:

        async def raw(line: bytes, *headers: bytes) -> bytes:
            reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
            writer.write(b"\r\n".join([line, b"Host: x", b"Connection: close", *headers, b"", b""]))
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answer

        assert b" 400 " in (await raw(b"GET /api/v3/thing?\xff HTTP/1.1")).split(b"\r\n")[0]
        odd = await raw(b"GET /api/v3/thing HTTP/1.1", b"X-Thing: a\xffb", b"X-AUTH-TOKEN: \xff")
        assert b" 200 " in odd.split(b"\r\n")[0]
        assert b'"a?b"' in odd


async def test_two_routes_of_one_path_are_a_mistake() -> None:
    gateway, _ = gateway_of()
    with pytest.raises(ValueError, match="two routes for POST /api/v3/thing"):
        build_app(gateway, [[route(fine)], [route(fine, path="/api/v3/thing/")]])
    await gateway.client.close()


async def test_a_wrong_setting_is_named() -> None:
    gateway, _ = gateway_of(trusted_proxies="nonsense")
    with pytest.raises(ValueError, match="trusted_proxies"):
        build_app(gateway, [])
    await gateway.client.close()


async def test_packed_bodies_are_refused_unread() -> None:
    async with served(route(echo)) as client:
        for encoding in ("gzip", "deflate", "br"):
            bomb = gzip.compress(b" " * 1_000_000)
            answer = await client.post("/api/v3/thing", data=bomb, headers={"Content-Encoding": encoding})
            assert answer.status == 400
            assert f"Content-Encoding {encoding!r}" in (await answer.json())["error"]
        answer = await client.post("/api/v3/thing", data=b"{}", headers={"Content-Encoding": "identity"})
        assert answer.status == 200


async def test_bodies_are_bounded_in_size_and_time_however_they_are_announced() -> None:
    async with served(route(echo), body_bytes=100, body_seconds=0.2) as client:

        async def raw(*parts: bytes) -> bytes:
            reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
            writer.write(b"POST /api/v3/thing HTTP/1.1\r\nHost: x\r\n" + b"".join(parts))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            answer = head + await reader.readexactly(length)
            writer.close()
            await writer.wait_closed()
            return answer

        chunked = b"Transfer-Encoding: chunked\r\n\r\n"
        cases: list[tuple[tuple[bytes, ...], bytes, bytes]] = [
            ((b"Content-Length: 2\r\n\r\n{}",), b"200", b'"body": {}'),
            ((chunked, b"2\r\n{}\r\n0\r\n\r\n"), b"200", b'"body": {}'),
            ((b"Content-Length: 101\r\n\r\n", b"x" * 101), b"400", b"more than 100 bytes"),
            ((b"Content-Length: 999999999\r\n\r\n",), b"400", b"more than 100 bytes"),
            ((chunked, b"65\r\n" + b"x" * 101 + b"\r\n0\r\n\r\n"), b"400", b"more than 100 bytes"),
            ((chunked, *[b"1\r\n \r\n"] * 200), b"400", b"more than 100 bytes"),
            ((b"Content-Length: 50\r\n\r\n{}",), b"400", b"did not arrive within 0.2 s"),
            ((chunked, b"2\r\n{}\r\n"), b"400", b"did not arrive within 0.2 s"),
            ((b"Content-Length: -1\r\n\r\n{}",), b"400", b""),
            ((b"Content-Length: two\r\n\r\n{}",), b"400", b""),
            ((b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",), b"400", b""),
            ((b"Content-Length: 2\r\n" + chunked + b"2\r\n{}\r\n0\r\n\r\n",), b"400", b""),
            ((chunked, b"zz\r\n{}"), b"400", b""),
        ]
        for parts, status, words in cases:
            async with asyncio.timeout(3):
                answer = await raw(*parts)
            assert answer.split(b" ")[1] == status, (parts, answer)
            assert words in answer, (parts, answer)


async def test_a_client_that_goes_away_cancels_nothing() -> None:
    entered, release, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def writes(_: Call) -> Answer:
        entered.set()
        await release.wait()
        finished.set()
        return Answer({"ok": True})

    gateway, _ = gateway_of()
    async with served(route(writes), route(fine, "GET"), gateway=gateway) as client:
        _, writer = await asyncio.open_connection(client.server.host, client.server.port)
        writer.write(b"POST /api/v3/thing HTTP/1.1\r\nHost: x\r\n\r\n")
        await entered.wait()
        writer.transport.abort()
        # The server has seen the end of that connection before it takes what comes after it.
        assert (await client.get("/api/v3/thing")).status == 200
        release.set()
        await asyncio.wait_for(finished.wait(), 5)
