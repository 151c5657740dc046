"""A frame around handlers of the test's own: the real application on a real socket, without an API server behind it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from kubernetes.aio.client import Configuration

from vmpool.engine.facts import claim_facts, pool_facts, vm_facts
from vmpool.engine.ready import ReadyIndex
from vmpool.engine.reviews import AccessReviews
from vmpool.gateway.app import build_app, runner_options
from vmpool.gateway.auth.caller import ANONYMOUS, Caller, Identity
from vmpool.gateway.context import GATEWAY_VM_INDEXES, Gateway, TokenBook, TokenFacts
from vmpool.gateway.routes import Route
from vmpool.kube.client import Client, ClientSettings
from vmpool.kube.kinds import POOLEDVMS, VMCLAIMS, VMPOOLS
from vmpool.kube.mirror import Mirror, MirrorSettings, Selection
from vmpool.plan.snapshot import PoolFacts
from vmpool.settings import GatewaySettings, Settings
from vmpool.telemetry.gateway import GatewayMetrics


class Server(TestServer):
    """Serves as the process does; aiohttp's own would end a handler when its client goes away."""

    async def _make_runner(self, **_: Any) -> web.AppRunner:
        return web.AppRunner(self.app, **runner_options())


class Tokens(TokenBook):
    """Tokens that the test gives."""

    def __init__(self, known: Mapping[str, TokenFacts]) -> None:
        self.known = known

    def find(self, token: str) -> TokenFacts | None:
        # As the real one does, which hashes it.
        return self.known.get(token.encode().decode())


class Keeper:
    """Lets everybody in, and knows the tokens that the test gives."""

    def __init__(self, tokens: Mapping[str, TokenFacts], configured: bool) -> None:
        self.configured = configured
        self.tokens: TokenBook | None = Tokens(tokens)
        self.why_not = ""
        self.gone = False
        """Whether the provider knows its users no longer."""

    def valid(self, token: str) -> TokenFacts | None:
        return self.tokens.find(token) if self.tokens is not None and not self.gone else None

    async def caller(self, headers: Mapping[str, str]) -> Caller:
        return ANONYMOUS

    async def login(self, headers: Mapping[str, str]) -> Identity:
        return ANONYMOUS.identity

    async def may_claim(self, caller: Caller, pool: PoolFacts) -> bool:
        return True

    async def run(self) -> None:
        raise AssertionError("the frame runs nothing")

    def healthy(self) -> str:
        return self.why_not

    async def close(self) -> None:
        return None


def gateway_of(
    tokens: Mapping[str, TokenFacts] | None = None, *, configured: bool = False, **own: Any
) -> tuple[Gateway, Keeper]:
    """A gateway whose mirrors know nothing; call it inside the loop, and close its client."""
    configuration = Configuration()
    configuration.host = "http://127.0.0.1:9"
    client = Client(configuration, ClientSettings())
    pools = Mirror(client, Selection(VMPOOLS), pool_facts, MirrorSettings())
    vms = Mirror(client, Selection(POOLEDVMS), vm_facts, MirrorSettings(), GATEWAY_VM_INDEXES)
    keeper = Keeper(tokens or {}, configured)
    made = Gateway(
        client=client,
        settings=Settings(),
        own=GatewaySettings(**own),
        metrics=GatewayMetrics(),
        pools=pools,
        vms=vms,
        claims=Mirror(client, Selection(VMCLAIMS), claim_facts, MirrorSettings()),
        ready=ReadyIndex("test", vms, pools),
        reviews=AccessReviews(client),
        gatekeeper=keeper,
    )
    return made, keeper


@asynccontextmanager
async def served(
    *routes: Route, gateway: Gateway | None = None, loaded: bool = True, unpack: bool = True, **own: Any
) -> AsyncIterator[TestClient[Any, Any]]:
    """Serve these routes and the frame's own; ``own`` are settings of the gateway.

    Without ``unpack`` the client shows packed answers as they are.
    """
    if gateway is None:
        gateway, _ = gateway_of(**own)
    if loaded:
        for mirror in (gateway.pools, gateway.vms, gateway.claims):
            mirror.synced.set()
    server = Server(build_app(gateway, [routes]), host="127.0.0.1")
    try:
        async with TestClient(server, auto_decompress=unpack) as client:
            yield client
    finally:
        await gateway.client.close()
