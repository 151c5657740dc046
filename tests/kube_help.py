"""What the tests of ``vmpool.kube`` share: ways to a client, and a small kind of their own."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from tests.proxy import Proxy
from vmpool.dev.plane import ControlPlane
from vmpool.kube.client import Client, ClientSettings, RequestSeen
from vmpool.kube.resource import Json, Resource
from vmpool.kube.transport import ignore_request

CONFIGMAPS = Resource("", "v1", "configmaps", "ConfigMap")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
QUICK = ClientSettings(
    request_timeout=timedelta(seconds=10), pause_base=timedelta(milliseconds=20), pause_max=timedelta(seconds=1)
)


@asynccontextmanager
async def client_to(
    plane: ControlPlane,
    proxy: Proxy | None = None,
    settings: ClientSettings = QUICK,
    on_request: Callable[[RequestSeen], None] = ignore_request,
    folder: Path | None = None,
) -> AsyncIterator[Client]:
    """A client of the plane; with ``proxy`` (and a ``folder`` for its kubeconfig) through it."""
    path = plane.kubeconfig
    if proxy is not None:
        assert folder is not None, "a proxied client needs a place for its kubeconfig"
        detour = plane.kubeconfig.read_text().replace(plane.url, f"https://127.0.0.1:{proxy.port}")
        path = folder / f"kubeconfig-{secrets.token_hex(4)}"
        path.write_text(detour)
    async with await Client.from_kubeconfig(path, settings=settings, on_request=on_request) as client:
        yield client


def proxy_to(plane: ControlPlane) -> Proxy:
    url = urlsplit(plane.url)
    assert url.hostname is not None
    assert url.port is not None
    return Proxy(url.hostname, url.port)


def configmap(name: str, **data: str) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def crd(group: str, plural: str = "widgets", kind: str = "Widget") -> Json:
    """A namespaced kind with a status and one rule."""
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {"size": {"type": "integer"}},
                "x-kubernetes-validations": [{"rule": "!has(self.size) || self.size < 10", "message": "too big"}],
            },
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    }
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind},
            "versions": [version],
        },
    }
