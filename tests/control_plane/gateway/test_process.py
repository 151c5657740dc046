"""The life of a gateway process on a real API server: red, green, told to stop, in doubt; alone and in the operator."""

import asyncio
import functools
import gc
import json
import secrets
import socket
import ssl
import urllib.error
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.api import Api
from tests.certificates import CERTIFICATE, KEY, issue
from tests.gateways import Gateway, MakeGateway
from tests.kube_help import proxy_to
from tests.objects import pool
from tests.operators import Operator
from tests.planes import Kubectl
from tests.proxy import Proxy
from tests.waiting import until
from vmpool.dev.plane import ControlPlane
from vmpool.gateway import process
from vmpool.kube.mirror import MirrorSettings
from vmpool.settings import GatewaySettings, Settings

pytestmark = pytest.mark.control_plane

REFUSED_BODIES = [
    b"\xff\xfe{}",
    b"[" * 9_000,
    b'{"a":' * 1_500,
    b'{"a": 1, "a": 2}',
    b'{"a": 1e999}',
    b'{"a": ' + b"9" * 9_000 + b"}",
    rb'{"\ud800": 1}',
    b'{"a": 1' + b" " * 20_000 + b"}",
    b"nonsense",
]


def kubeconfig_to(plane: ControlPlane, folder: Path, authority: str) -> Path:
    path = folder / f"kubeconfig-{secrets.token_hex(4)}"
    path.write_text(plane.kubeconfig.read_text().replace(plane.url, f"https://{authority}"))
    return path


@asynccontextmanager
async def proxied(plane: ControlPlane, folder: Path) -> AsyncIterator[tuple[Proxy, Path]]:
    """A proxy in front of the API server, and the kubeconfig of who goes through it."""
    async with proxy_to(plane) as proxy:
        yield proxy, kubeconfig_to(plane, folder, f"127.0.0.1:{proxy.port}")


async def get(gateway: Gateway, path: str) -> tuple[int, str]:
    """GET without holding up this loop, in which a proxy may be running."""
    return await asyncio.to_thread(gateway.http, path)


async def send(gateway: Gateway, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection and send the beginning of a request."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    await writer.drain()
    return reader, writer


async def post(gateway: Gateway, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """POST and return status, headers in lower case, and body."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    reader, writer = await send(gateway, head.encode() + body)
    answer = await reader.read()
    writer.close()
    top, _, content = answer.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, content


async def test_serves_before_it_knows_anything_then_turns_ready_and_stops_when_told(
    make_gateway: MakeGateway, plane: ControlPlane, tmp_path: Path
) -> None:
    async with proxied(plane, tmp_path) as (proxy, kubeconfig):
        proxy.freeze()
        gateway = make_gateway(kubeconfig)
        gateway.start()
        await gateway.listens()
        status, why_not = await get(gateway, "/readyz")
        assert (status, why_not.startswith("the first list of vmpools")) == (503, True)
        assert await get(gateway, "/healthz") == (200, "ok\n")
        status, body = await get(gateway, "/api/v3/vm")
        assert status == 503
        assert "not ready: the first list of" in json.loads(body)["error"]
        proxy.thaw()
        await gateway.ready()
        assert await get(gateway, "/readyz") == (200, "ok\n")
        assert (await get(gateway, "/api/v3/vm"))[0] == 200
        assert gateway.stop() == 0
    assert '"gateway_stops"' in gateway.lines()


async def test_metrics_show_the_gateway_and_what_it_sees(gateway: Gateway, api: Api, namespace: str) -> None:
    (await api.kind("vmpools", namespace).create(pool("web"))).ok()
    gateway.start()
    await gateway.ready()
    gateway.http("/some/path/that/nobody/serves")
    _, text = gateway.http("/metrics")
    assert f'vmpool_gateway_ready{{namespace="{namespace}",pool="web"}} 0.0' in text
    assert 'vmpool_gateway_requests_total{code="404",method="GET",route="unmatched"} 1.0' in text
    assert "that/nobody" not in text
    for kind in ("vmpools", "pooledvms", "vmclaims"):
        assert f'vmpool_gateway_watch_age_seconds{{kind="{kind}"}}' in text
        assert f'vmpool_gateway_api_requests_total{{code="200",method="GET",resource="{kind}"}}' in text
    await until(lambda: "vmpool_gateway_clock_skew_seconds" in gateway.http("/metrics")[1], what="the clock is known")


async def test_requests_in_flight_are_answered_before_it_ends(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    gateway.start()
    await gateway.ready()
    reader, writer = await send(gateway, b"POST /api/v3/vm HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
    kept_reader, kept = await send(gateway, b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
    await kept_reader.readuntil(b"}")
    gateway.ask_to_stop()

    async def closed() -> bool:
        try:
            _, one = await send(gateway, b"")
        except (ConnectionRefusedError, ConnectionResetError):
            # Reset: it came in just before the door was closed.
            return True
        one.close()
        return False

    await until(closed, what="nobody new is let in")
    # Who is in already is answered, for the last time.
    kept.write(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
    last = await kept_reader.read()
    assert b"pong" in last
    assert b"connection: close" in last.lower()
    assert gateway.running
    writer.write(b"}")
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 4"), "the body names no pool, which is an answer all the same"
    assert await gateway.ended() == 0
    for one in (writer, kept):
        one.close()


async def test_a_request_that_never_ends_does_not_hold_up_the_stop(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(VMPOOL_GATEWAY_STOP_SECONDS="0.5", VMPOOL_GATEWAY_BODY_SECONDS="300")
    gateway.start()
    await gateway.ready()
    _, writer = await send(gateway, b"POST /api/v3/vm HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
    gateway.ask_to_stop()
    assert await gateway.ended() == 0
    writer.close()


async def test_no_body_is_a_500(gateway: Gateway) -> None:
    gateway.start()
    await gateway.ready()
    for path in ("/api/v3/vm", "/api/v3/ondemandvm"):
        for body in REFUSED_BODIES:
            status, headers, content = await post(gateway, path, body)
            assert status == 400, (path, body[:40], content)
            assert json.loads(content)["ok"] is False
            assert headers["x-request-id"]
    assert "request_broke" not in gateway.lines()


async def test_an_api_server_that_is_down_is_503_with_the_reason_and_the_gateway_recovers(
    make_gateway: MakeGateway, plane: ControlPlane, api: Api, namespace: str, tmp_path: Path
) -> None:
    (await api.kind("vmpools", namespace).create(pool("web", replicas=1, maxVMs=5))).ok()
    claims = api.kind("vmclaims", namespace)
    async with proxied(plane, tmp_path) as (proxy, kubeconfig):
        gateway = make_gateway(kubeconfig, VMPOOL_GATEWAY_AUTHORIZATION="open", VMPOOL_GATEWAY_RETRY_AFTER_SECONDS="7")
        gateway.start()
        await gateway.ready()
        proxy.close_door()
        status, headers, content = await post(gateway, "/api/v3/ondemandvm", b'{"web": "1"}')
        answer = json.loads(content)
        assert (status, headers["retry-after"], answer["ok"]) == (503, "7", False)
        assert "API server" in str(answer)
        assert str(proxy.port) not in str(answer), "addresses are none of the client's business"
        assert not (await claims.list()).ok()["items"]
        # What needs no API server goes on.
        assert (await get(gateway, "/api/v3/vm"))[0] == 200
        proxy.open_door()

        async def served() -> bool:
            return (await post(gateway, "/api/v3/ondemandvm", b'{"web": "1"}'))[0] == 201

        await until(served, deadline=30, what="the gateway serves again")
        assert gateway.running
        assert gateway.stop() == 0


async def test_a_certificate_is_renewed_while_it_runs(make_gateway: MakeGateway, tmp_path: Path) -> None:
    issue(tmp_path, 1)
    gateway = make_gateway(
        VMPOOL_GATEWAY_TLS_CERTIFICATE=str(tmp_path / CERTIFICATE),
        VMPOOL_GATEWAY_TLS_KEY=str(tmp_path / KEY),
        VMPOOL_GATEWAY_TLS_LOOK_SECONDS="0.1",
    )
    gateway.start()
    await gateway.ready()
    assert gateway.url.startswith("https://")
    first = ssl.create_default_context(cafile=str(tmp_path / CERTIFICATE))
    assert gateway.http("/readyz", first) == (200, "ok\n")
    issue(tmp_path, 2)
    second = ssl.create_default_context(cafile=str(tmp_path / CERTIFICATE))
    await gateway.logs('"certificate_loaded"')
    assert gateway.http("/readyz", second) == (200, "ok\n")
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        gateway.http("/readyz", first)
    assert gateway.stop() == 0


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one.getsockname()[1]


async def test_what_keeps_it_from_starting_is_named(make_gateway: MakeGateway, taken: int, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    cases: list[tuple[dict[str, str], int, str]] = [
        ({"VMPOOL_GATEWAY_PORT": str(taken)}, 1, "address already in use"),
        ({"VMPOOL_GATEWAY_TLS_CERTIFICATE": nowhere, "VMPOOL_GATEWAY_TLS_KEY": nowhere}, 1, "tls_certificate: "),
        ({"VMPOOL_GATEWAY_TRUSTED_PROXIES": "next door"}, 1, "trusted_proxies: 'next door'"),
        ({"VMPOOL_GATEWAY_AUTH": "static"}, 1, "users_file"),
        ({"VMPOOL_KUBECONFIG": nowhere}, 1, "nowhere"),
        ({"VMPOOL_GATEWAY_PORT": "many"}, 2, "port"),
    ]
    gateways = [make_gateway(**settings) for settings, _, _ in cases]
    for gateway in gateways:
        gateway.start()
    for gateway, (_, code, words) in zip(gateways, cases, strict=True):
        assert await gateway.ended(60) == code, words
        lines = [line for line in gateway.lines().splitlines() if '"gateway_ends"' in line]
        assert words in (json.loads(lines[0])["error"] if code == 1 else gateway.lines())
        assert "Traceback" not in gateway.lines()


async def test_doubt_ends_the_process(
    plane: ControlPlane,
    kubectl: Kubectl,
    namespace: str,
    crds_installed: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mirror that may not be followed for longer than its grace, which is made short here."""
    short = functools.partial(MirrorSettings, missing_grace=timedelta(seconds=0.3))
    monkeypatch.setattr(process, "MirrorSettings", short)
    kubectl("create", "serviceaccount", "stranger", "-n", namespace)
    token = kubectl("create", "token", "stranger", "-n", namespace).strip()
    stranger = tmp_path / "stranger"
    stranger.write_text(plane.kubeconfig.read_text().replace(plane.token, token))
    own = GatewaySettings(port=0)
    with capture_logs() as logged:
        try:
            assert await process.GatewayProcess(Settings(kubeconfig=str(stranger)), own).run() == 1
        finally:
            gc.enable()
    assert logged[-1]["event"] == "gateway_ends"
    assert "Forbidden" in logged[-1]["error"]


@pytest.fixture
def operator(plane: ControlPlane, namespace: str, crds_installed: None, tmp_path: Path) -> Iterator[list[Operator]]:
    """Two operators with a gateway inside; not started yet."""
    made = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        settings = {
            "VMPOOL_WATCH_NAMESPACE": namespace,
            "VMPOOL_NAMESPACE": namespace,
            "VMPOOL_GATEWAY": "true",
            "VMPOOL_GATEWAY_PORT": "0",
        }
        made.append(Operator(plane.kubeconfig, tmp_path / name, **settings))
    yield made
    for one in made:
        one.kill()


async def test_inside_the_operator_it_serves_with_and_without_the_lease(operator: list[Operator]) -> None:
    leader, standby = operator
    leader.start()
    await leader.ready()
    standby.start()
    for one in (leader, standby):
        await until(lambda one=one: '"gateway_ready"' in one.lines(), deadline=30, what="the gateway is ready")
    assert '"engine_ready"' not in standby.lines()
    assert "vmpool_gateway_watch_age_seconds" in leader.http("/metrics"), "one registry for both"
    assert "vmpool_leader 1.0" in leader.http("/metrics")
    assert leader.stop() == 0
    await standby.ready()
    assert standby.stop() == 0


async def test_a_gateway_that_cannot_go_on_ends_the_operator_too(
    plane: ControlPlane, namespace: str, crds_installed: None, taken: int, tmp_path: Path
) -> None:
    settings = {"VMPOOL_WATCH_NAMESPACE": namespace, "VMPOOL_NAMESPACE": namespace, "VMPOOL_GATEWAY": "true"}
    one = Operator(plane.kubeconfig, tmp_path, **settings, VMPOOL_GATEWAY_PORT=str(taken))
    one.start()
    try:
        await until(lambda: not one.running, deadline=30, what="the operator has ended")
        assert one.stop() == 1
        assert "address already in use" in one.lines()
    finally:
        one.kill()
