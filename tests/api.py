"""The API server over plain HTTP: fast, and every answer is seen as it is sent."""

import json
import secrets
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from tests.planes import Kubectl, leave
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane

Json = dict[str, Any]

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY = "application/apply-patch+yaml"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
REQUEST_TIMEOUT_SECONDS = 30
STRICT = {"fieldValidation": "Strict"}


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    body: Json

    @property
    def message(self) -> str:
        """The sentence of a refusal."""
        return str(self.body.get("message", ""))

    @property
    def fields(self) -> set[str]:
        """The fields that a refusal names."""
        return {str(cause.get("field")) for cause in self.body.get("details", {}).get("causes", ())}

    def ok(self) -> Json:
        """Return the body; fail unless the server agreed."""
        assert 200 <= self.status < 300, f"{self.status}: {self.message}"
        return self.body


class Api:
    """One connection to the API server as administrator."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content: str = "application/json",
        accept: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request; a refusal is an answer like any other."""
        headers = {"Content-Type": content, "Accept": accept}
        data = None if body is None else json.dumps(body)
        async with self._session.request(method, path, data=data, headers=headers, params=query) as response:
            return Answer(response.status, json.loads(await response.read()))

    def kind(self, plural: str, namespace: str, *, api: str = f"/apis/{keys.API_VERSION}") -> "Objects":
        """The objects of one kind in one namespace; ours unless ``api`` says another group."""
        return Objects(self, f"{api}/namespaces/{namespace}/{plural}")


@dataclass(frozen=True)
class Objects:
    """The objects of one kind in one namespace."""

    api: Api
    path: str

    async def create(self, body: Json, **query: str) -> Answer:
        """POST, with strict field validation."""
        return await self.api.call("POST", self.path, body, query={**STRICT, **query})

    async def get(self, name: str, subresource: str = "") -> Answer:
        """GET one object."""
        return await self.api.call("GET", self._of(name, subresource))

    async def list(self, **query: str) -> Answer:
        """GET all of them."""
        return await self.api.call("GET", self.path, query=query)

    async def names(self, field_selector: str) -> set[str]:
        """The names of those that a field selector selects."""
        body = (await self.list(fieldSelector=field_selector)).ok()
        return {item["metadata"]["name"] for item in body["items"]}

    async def merge(self, name: str, patch: Json, subresource: str = "") -> Answer:
        """Merge patch, with strict field validation."""
        return await self.api.call("PATCH", self._of(name, subresource), patch, content=MERGE, query=STRICT)

    async def json_patch(self, name: str, patch: "list[Json]", subresource: str = "") -> Answer:
        """JSON patch."""
        return await self.api.call("PATCH", self._of(name, subresource), patch, content=JSON_PATCH)

    async def apply(self, body: Json, manager: str, subresource: str = "") -> Answer:
        """Server-side apply."""
        path = self._of(body["metadata"]["name"], subresource)
        return await self.api.call("PATCH", path, body, content=APPLY, query={**STRICT, "fieldManager": manager})

    async def put(self, body: Json, subresource: str = "") -> Answer:
        """Replace the whole object."""
        return await self.api.call("PUT", self._of(body["metadata"]["name"], subresource), body, query=STRICT)

    async def delete(self, name: str) -> Answer:
        """DELETE one object."""
        return await self.api.call("DELETE", self._of(name))

    def _of(self, name: str, subresource: str = "") -> str:
        return f"{self.path}/{name}/{subresource}" if subresource else f"{self.path}/{name}"


@pytest.fixture(scope="module")
def shared_namespace(kubectl: Kubectl, plane: ControlPlane) -> Iterator[str]:
    """One namespace for the tests of a module: for tests that name their objects anew."""
    name = f"t-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    yield name
    leave(plane, name)


@pytest.fixture
async def api(plane: ControlPlane) -> AsyncIterator[Api]:
    """The API server, as administrator."""
    trust = ssl.create_default_context(cafile=str(plane.ca))
    async with aiohttp.ClientSession(
        plane.url,
        connector=aiohttp.TCPConnector(ssl=trust),
        headers={"Authorization": f"Bearer {plane.token}"},
        timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS),
    ) as session:
        yield Api(session)
