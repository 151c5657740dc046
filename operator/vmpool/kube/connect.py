"""From settings to a client, and what every process does with one."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kubernetes.aio import config
from prometheus_client import Counter

from vmpool.api import keys
from vmpool.kube.client import Client, ClientSettings, RequestSeen
from vmpool.kube.errors import KubeError, Unreachable
from vmpool.kube.kinds import CONFIGMAPS
from vmpool.settings import Settings

CLOCK_SECONDS = 10.0
"""How often the API server's clock is asked for when nothing else is."""
POD_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


async def connect(settings: Settings, bounds: ClientSettings, requests: Counter) -> Client:
    """Return a client for the API server that the settings mean; its requests are counted.

    ``requests`` has the labels method, resource and code. Raises ``Unreachable`` when there is no way to find one.
    """
    count = _counted(requests)
    if settings.kubeconfig or not _in_pod():
        path = settings.kubeconfig or os.environ.get("KUBECONFIG", "") or str(Path.home() / ".kube" / "config")
        return await Client.from_kubeconfig(path, settings.context or None, bounds, count)
    return await Client.in_cluster(bounds, count)


async def keep_clock(client: Client, namespace: str) -> None:
    """Keep the clock comparison of an idle process fresh, by a read that costs the server nothing. Never returns.

    Every answer carries the server's time, a refusal too, so no right is needed.
    """
    while True:
        with suppress(KubeError):
            await client.get(CONFIGMAPS, namespace, keys.IDENTITY_CONFIGMAP)
        await asyncio.sleep(CLOCK_SECONDS)


def _in_pod() -> bool:
    return POD_TOKEN.exists()


def _counted(requests: Counter) -> Callable[[RequestSeen], None]:
    def count(seen: RequestSeen) -> None:
        resource = f"{seen.plural}/{seen.subresource}" if seen.subresource else seen.plural
        requests.labels(seen.method, resource, seen.status).inc()

    return count


async def context_namespace(path: str, context: str = "") -> str:
    """Return the namespace that a kubeconfig's context names (by default the current one); ``default`` without any.

    Raises ``Unreachable`` when the file is missing or makes no sense, or has no such context.
    """
    try:
        contexts, current = await asyncio.to_thread(config.list_kube_config_contexts, path)
    except config.ConfigException as error:
        raise Unreachable(f"kubeconfig {path}: {error}") from error
    chosen = next((one for one in contexts if one["name"] == context), None) if context else current
    if chosen is None:
        raise Unreachable(f"kubeconfig {path}: it has no context {context!r}")
    return str(chosen["context"].get("namespace") or "default")
