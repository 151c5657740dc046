"""Who may do what on the local control plane, and what its controllers do."""

import asyncio
import json
import secrets
import ssl
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.planes import Kubectl
from tests.waiting import until
from vmpool.dev.plane import ControlPlane
from vmpool.dev.state import API_SERVER, ETCD

pytestmark = pytest.mark.control_plane

SECRETS = "/api/v1/namespaces/default/secrets"


@pytest.fixture
async def http(plane: ControlPlane) -> AsyncIterator[aiohttp.ClientSession]:
    trust = ssl.create_default_context(cafile=str(plane.ca))
    # As the `kubernetes` client 37 sets it.
    trust.verify_flags |= ssl.VERIFY_X509_STRICT
    connector = aiohttp.TCPConnector(ssl=trust)
    async with aiohttp.ClientSession(plane.url, connector=connector) as session:
        yield session


async def code(http: aiohttp.ClientSession, path: str, token: str | None = None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with http.get(path, headers=headers) as response:
        return response.status


async def test_only_the_right_token_opens_the_door(plane: ControlPlane, http: aiohttp.ClientSession) -> None:
    assert await code(http, SECRETS, plane.token) == 200
    assert await code(http, SECRETS, secrets.token_urlsafe()) == 401
    assert await code(http, SECRETS) in {401, 403}


async def test_a_service_account_may_not_read_secrets(
    http: aiohttp.ClientSession, kubectl: Kubectl, namespace: str
) -> None:
    kubectl("create", "serviceaccount", "poor", "-n", namespace)
    token = kubectl("create", "token", "poor", "-n", namespace).strip()
    assert await code(http, f"/api/v1/namespaces/{namespace}/secrets", token) == 403
    assert await code(http, "/version", token) == 200


async def test_the_certificate_is_not_trusted_by_everybody(plane: ControlPlane) -> None:
    async with aiohttp.ClientSession(plane.url) as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get("/version")


async def test_etcd_refuses_who_has_no_certificate(plane: ControlPlane) -> None:
    port = plane.home.load().ports[ETCD]
    trust = ssl.create_default_context(cafile=str(plane.ca))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session:
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await session.get(f"https://127.0.0.1:{port}/health")


async def test_what_an_owner_owns_goes_with_it(kubectl: Kubectl, namespace: str) -> None:
    kubectl("create", "configmap", "owner", "-n", namespace)
    owner = json.loads(kubectl("get", "configmap", "owner", "-n", namespace, "-o", "json"))["metadata"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["uid"]}
    metadata = {"name": "owned", "namespace": namespace, "ownerReferences": [reference]}
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    kubectl("create", "-f", "-", input=json.dumps(manifest))
    kubectl("delete", "configmap", "owner", "-n", namespace)
    owned = ("get", "configmap", "owned", "-n", namespace, "--ignore-not-found")
    await until(lambda: not kubectl(*owned), deadline=60, what="the end of the owned object")


async def test_a_namespace_and_its_content_can_be_deleted(kubectl: Kubectl) -> None:
    name = f"t-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    kubectl("create", "configmap", "content", "-n", name)
    kubectl("delete", "namespace", name, "--timeout=60s")


async def test_a_namespace_gets_its_default_account(kubectl: Kubectl, namespace: str) -> None:
    account = ("get", "serviceaccount", "default", "-n", namespace, "--ignore-not-found")
    await until(lambda: kubectl(*account), deadline=30, what="the default account")


async def test_a_killed_api_server_comes_back_at_the_same_place(
    plane: ControlPlane, http: aiohttp.ClientSession, kubectl: Kubectl, namespace: str
) -> None:
    before = plane.url
    plane.kill(API_SERVER)
    with pytest.raises(aiohttp.ClientError):
        await code(http, "/version", plane.token)
    plane.start_component(API_SERVER)
    assert plane.url == before
    assert namespace in kubectl("get", "namespaces")


async def test_a_paused_api_server_keeps_its_clients_waiting(plane: ControlPlane, http: aiohttp.ClientSession) -> None:
    plane.pause(API_SERVER)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await code(http, "/version", plane.token)
    finally:
        plane.resume(API_SERVER)
    assert await code(http, "/version", plane.token) == 200
