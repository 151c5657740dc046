"""What the client tries again and what it does not.

A real API server cannot be asked to throttle or fail on command, so these answers come from a small HTTP server.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.aio.client import Configuration

from tests.kube_help import CONFIGMAPS
from vmpool.kube.client import Client, ClientSettings, retry_pause
from vmpool.kube.errors import BadRequest, Invalid, OutcomeUnknown, ServerError, Throttled
from vmpool.kube.mirror import MirrorSettings, reopen_pause

SETTINGS = ClientSettings(tries=3, pause_base=timedelta(milliseconds=1), pause_max=timedelta(milliseconds=20))
Act = Callable[[Client], Awaitable[object]]
Answer = tuple[int, str, dict[str, str]]


class Script:
    """A server that gives the answers it was told, then 200."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[web.Request] = []

    def will_say(self, status: int, *, times: int = 1, body: str = "{}", **headers: str) -> None:
        self.answers += [(status, body, headers)] * times

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        status, body, headers = self.answers.pop(0) if self.answers else (200, '{"ok": true}', {})
        return web.Response(status=status, text=body, headers=headers)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def client(script: Script) -> AsyncIterator[Client]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", script.handle)
    async with TestServer(app) as server:
        configuration = Configuration(host=str(server.make_url("/proxied/")).rstrip("/"))
        async with Client(configuration, SETTINGS) as client:
            yield client


async def read(client: Client) -> object:
    return await client.get(CONFIGMAPS, "n", "a")


async def write(client: Client) -> object:
    return await client.patch_merge(CONFIGMAPS, "n", "a", {"data": {}})


async def remove(client: Client) -> object:
    return await client.delete(CONFIGMAPS, "n", "a", uid="u")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_read_is_asked_again(client: Client, script: Script, status: int) -> None:
    script.will_say(status, times=2)
    assert await read(client) == {"ok": True}
    assert len(script.asked) == 3


async def test_a_read_is_given_up_in_the_end(client: Client, script: Script) -> None:
    script.will_say(503, times=9)
    with pytest.raises(ServerError):
        await read(client)
    assert len(script.asked) == SETTINGS.tries


@pytest.mark.parametrize("act", [write, remove])
async def test_a_throttled_write_is_asked_again(client: Client, script: Script, act: Act) -> None:
    script.will_say(429, times=2)
    assert await act(client) == {"ok": True}
    script.will_say(429, times=9, **{"Retry-After": "7"})
    with pytest.raises(Throttled) as throttled:
        await act(client)
    assert throttled.value.retry_after == timedelta(seconds=7)


@pytest.mark.parametrize("act", [write, remove])
@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_write_in_doubt_is_never_sent_twice(client: Client, script: Script, status: int, act: Act) -> None:
    script.will_say(status)
    with pytest.raises(OutcomeUnknown) as doubt:
        await act(client)
    assert doubt.value.status == status
    assert len(script.asked) == 1


@pytest.mark.parametrize(("status", "error"), [(400, BadRequest), (422, Invalid)])
async def test_a_clear_no_is_not_asked_again(
    client: Client, script: Script, status: int, error: type[Exception]
) -> None:
    for act in (read, write):
        script.will_say(status)
        with pytest.raises(error):
            await act(client)
    assert len(script.asked) == 2


async def test_an_answer_that_is_no_json_proves_nothing(client: Client, script: Script) -> None:
    script.will_say(200, body="<html>")
    with pytest.raises(OutcomeUnknown):
        await write(client)
    script.will_say(200, body="[1]")
    assert await read(client) == {"ok": True}


async def test_a_redirect_is_not_followed(client: Client, script: Script) -> None:
    script.will_say(302, Location="/elsewhere")
    with pytest.raises(BadRequest):
        await read(client)


async def test_a_request_keeps_the_server_s_own_path_and_says_who_asks(client: Client, script: Script) -> None:
    await write(client)
    (request,) = script.asked
    assert request.path == "/proxied/api/v1/namespaces/n/configmaps/a"
    assert dict(request.query) == {"fieldManager": "vmpool-operator"}
    assert request.headers["User-Agent"].startswith("vmpool/")
    assert request.headers["Content-Type"] == "application/merge-patch+json"


async def test_a_watch_ends_with_the_error_it_was_told(client: Client, script: Script) -> None:
    bookmark = '{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}\n'
    failure = '{"type":"ERROR","object":{"kind":"Status","code":500,"message":"cannot decode"}}\n'
    script.will_say(200, body=bookmark + failure)
    watch = client.watch(CONFIGMAPS, "n", "1", timedelta(seconds=5), timedelta(seconds=5))
    first = await anext(watch)
    with pytest.raises(ServerError, match="cannot decode"):
        await anext(watch)
    assert first == ("BOOKMARK", {"metadata": {"resourceVersion": "7"}})


@pytest.mark.parametrize(("excepted", "proxy"), [("", "http://proxy.test:3128"), ("api.test", None), (".test", None)])
async def test_the_proxy_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, excepted: str, proxy: str | None
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.test:3128")
    monkeypatch.setenv("no_proxy", excepted)
    async with Client(Configuration(host="https://api.test:6443"), SETTINGS) as client:
        assert client.api.configuration.proxy == proxy


@given(tried=st.integers(1, 100), roll=st.floats(0, 1, exclude_max=True), wanted=st.integers(0, 100))
def test_a_pause_honours_the_server_within_its_bound(tried: int, roll: float, wanted: int) -> None:
    settings = ClientSettings()
    pause = retry_pause(tried, roll, settings, timedelta(seconds=wanted))
    assert min(timedelta(seconds=wanted), settings.pause_max) <= pause <= settings.pause_max
    assert pause >= min(settings.pause_base / 2, settings.pause_max)


@given(fruitless=st.integers(0, 10_000), roll=st.floats(0, 1, exclude_max=True))
def test_a_watch_is_opened_again_at_a_bounded_pace(fruitless: int, roll: float) -> None:
    settings = MirrorSettings()
    pause = reopen_pause(fruitless, roll, settings)
    assert pause <= settings.pause_max
    assert (pause == timedelta(0)) == (fruitless == 0)
