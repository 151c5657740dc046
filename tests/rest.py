"""The gateway's REST API as its clients speak it; every answer is seen as it is sent."""

import asyncio
import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

API = "/api/v3"
REQUEST_TIMEOUT_SECONDS = 60
READ_LIMIT = 2**20
INTERNALS = re.compile(r"Traceback|\.py\b|line \d+, in |aiohttp|pydantic|orjson|<class |object at 0x|vmpool\.dev|Errno")
"""What an answer never shows: stack traces, names of our modules and libraries, internal texts."""
NOTHING: Any = object()
"""No body at all, as opposed to a JSON null."""


@dataclass(frozen=True)
class RestAnswer:
    """What the gateway said."""

    status: int
    headers: CIMultiDictProxy[str]
    content: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode()

    @property
    def body(self) -> Any:
        """The body as JSON; fails when it is none."""
        try:
            return json.loads(self.content)
        except ValueError as error:
            raise AssertionError(f"{self.status} without JSON: {self.content[:500]!r}") from error

    @property
    def cause(self) -> str:
        """The sentence of a refusal, wherever the reference has it."""
        body = self.body
        found = body.get("error") or body.get("message") or body.get("failure") or ""
        return " ".join(found) if isinstance(found, list) else str(found)

    def ok(self, status: int = 200) -> Any:
        """Return the JSON body; fail unless the status is this one."""
        assert self.status == status, f"{self.status} instead of {status}: {self.content[:500]!r}"
        return self.body

    def refused(self, status: int) -> str:
        """Return the cause; fail unless it is a refusal with this status that hides everything internal."""
        body = self.ok(status)
        assert body["ok"] is False, body
        self.hides_internals()
        return self.cause

    def hides_internals(self) -> None:
        """Fail when the answer shows how the gateway is made."""
        found = INTERNALS.search(self.text)
        assert found is None, f"{found} in {self.text[:500]}"


class Rest:
    """One client of one gateway."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url.rstrip("/")

    async def call(
        self,
        method: str,
        path: str,
        body: Any = NOTHING,
        *,
        token: str = "",
        basic: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        raw: bytes | AsyncIterator[bytes] | None = None,
    ) -> RestAnswer:
        """Send one request, the path exactly as it is written; ``raw`` is sent in the place of a JSON body."""
        sent = dict(headers or {})
        if token:
            sent["X-AUTH-TOKEN"] = token
        if basic is not None:
            sent["Authorization"] = basic_header(*basic)
        data = raw
        if body is not NOTHING:
            data = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        url = URL(self.url + path, encoded=True)
        async with self._session.request(method, url, data=data, headers=sent, allow_redirects=False) as response:
            return RestAnswer(response.status, response.headers, await response.read())

    async def get(self, path: str, **more: Any) -> RestAnswer:
        """GET below /api/v3."""
        return await self.call("GET", API + path, **more)

    async def post(self, path: str, body: Any = NOTHING, **more: Any) -> RestAnswer:
        """POST below /api/v3."""
        return await self.call("POST", API + path, body, **more)

    async def put(self, path: str, body: Any = NOTHING, **more: Any) -> RestAnswer:
        """PUT below /api/v3."""
        return await self.call("PUT", API + path, body, **more)

    async def delete(self, path: str, **more: Any) -> RestAnswer:
        """DELETE below /api/v3."""
        return await self.call("DELETE", API + path, **more)

    async def new_token(self, login: str, password: str) -> str:
        """Make a token."""
        return str((await self.post("/token", basic=(login, password))).ok()["token"])


def basic_header(login: str, password: str) -> str:
    """The Authorization header of a user and a password."""
    return f"Basic {b64encode(f'{login}:{password}'.encode()).decode()}"


def hosts(answer: RestAnswer) -> list[str]:
    """The host names of a checkout, in the order of the answer."""
    found: list[str] = []
    for name, given in answer.ok().items():
        if name != "ok":
            names = given["hostname"]
            found += [names] if isinstance(names, str) else names
    return found


def short(host: str) -> str:
    """The host name without its domain."""
    return host.split(".", 1)[0]


@asynccontextmanager
async def rest_client(url: str, *, connections: int = 100) -> AsyncIterator[Rest]:
    """A client with connections of its own, kept alive; it never repeats a request by itself."""
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Rest(session, url)


async def bare_request(url: str, request: bytes, *, deadline: float = 20.0) -> bytes:
    """Send these very bytes and return what comes back until the far side closes, or ``READ_LIMIT`` bytes.

    The request should say ``Connection: close``. Raises TimeoutError when neither happens in time.
    """
    where = URL(url)
    assert where.host is not None
    assert where.port is not None
    reader, writer = await asyncio.open_connection(where.host, where.port)
    try:
        async with asyncio.timeout(deadline):
            writer.write(request)
            await writer.drain()
            return await reader.read(READ_LIMIT)
    finally:
        writer.close()
