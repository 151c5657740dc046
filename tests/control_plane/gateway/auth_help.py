"""What the tests of auth share: token books on a real API server."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tests.kube_help import QUICK, client_to
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.dev.plane import ControlPlane
from vmpool.gateway.auth.tokens import Tokens
from vmpool.kube.client import Client, RequestSeen
from vmpool.settings import GatewaySettings, Settings
from vmpool.telemetry.gateway import GatewayMetrics


def own(**given: Any) -> GatewaySettings:
    """Settings of a gateway, whatever the environment says."""
    return GatewaySettings.model_validate({**GatewaySettings().model_dump(), **given})


def tokens_of(client: Client, namespace: str, settings: GatewaySettings | None = None) -> Tokens:
    """A token book that does not run yet."""
    return Tokens(client, Settings(namespace=namespace), settings or own(), GatewayMetrics())


def _sockets() -> int:
    """How many sockets this process has open."""
    count = 0
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += file.readlink().name.startswith("socket:")
    return count


@asynccontextmanager
async def all_closed() -> AsyncIterator[None]:
    """Wait at the end until every connection made meanwhile is closed: the many watches over TLS take a while."""
    before = _sockets()
    yield
    await until(lambda: _sockets() <= before, what="the end of the connections")


@asynccontextmanager
async def running(*books: Tokens) -> AsyncIterator[None]:
    """The books follow their Secrets and have read them once."""
    tasks = [asyncio.create_task(book.run()) for book in books]
    try:

        def settled() -> bool:
            assert not any(task.done() for task in tasks), [task.exception() for task in tasks if task.done()]
            return not any(book.healthy() for book in books)

        await until(settled, what="the first lists")
        yield
        assert not any(task.done() for task in tasks), "a book has ended"
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def gateways(
    plane: ControlPlane, namespace: str, count: int, **settings: Any
) -> AsyncIterator[tuple[list[Tokens], list[RequestSeen]]]:
    """Token books of several gateways, each with a connection of its own; and the requests of the first."""
    seen: list[RequestSeen] = []
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(all_closed())
        clients = [
            await stack.enter_async_context(client_to(plane, on_request=seen.append if n == 0 else lambda _: None))
            for n in range(count)
        ]
        books = [tokens_of(client, namespace, own(**settings)) for client in clients]
        await stack.enter_async_context(running(*books))
        yield books, seen


@asynccontextmanager
async def client_as(plane: ControlPlane, token: str, folder: Path) -> AsyncIterator[Client]:
    """A client that shows this token of Kubernetes instead of the administrator's."""
    path = folder / "kubeconfig-as"
    path.write_text(plane.kubeconfig.read_text().replace(plane.token, token))
    async with all_closed(), await Client.from_kubeconfig(path, settings=QUICK) as client:
        yield client


def account(kubectl: Kubectl, namespace: str, name: str) -> str:
    """Make a service account and return a token of its."""
    kubectl("create", "serviceaccount", name, "-n", namespace)
    return kubectl("create", "token", name, "-n", namespace).strip()


def secrets_of(kubectl: Kubectl, namespace: str) -> dict[str, dict[str, str]]:
    """The data of every Secret, by name."""
    found = json.loads(kubectl("get", "secrets", "-n", namespace, "-o", "json"))["items"]
    return {item["metadata"]["name"]: item.get("data") or {} for item in found}
