"""An HTTP proxy in front of a server that sees every write of the operator, and may end it at any of them."""

import contextlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "host", "content-length"})
UNSEEN = frozenset({"leases", "events"})
"""Writes without a meaning for the machines: the lease's renewals and the events."""
MAX_BODY_BYTES = 16 * 2**20
SHUTDOWN_SECONDS = 0.1

Verdict = Callable[[], bool]
"""Asked before and after a write reaches the server; True: the operator has just been killed."""


class Gate:
    """Passes everything on; use it as an async context manager."""

    def __init__(self, target: str, strike: Verdict, session: aiohttp.ClientSession) -> None:
        self._target = target
        self._strike = strike
        self._session = session
        self._runner: web.AppRunner | None = None
        self.writes = 0
        """Seen since the start."""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """Where to connect to instead of the server."""
        assert self._runner is not None
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        counts = request.method != "GET" and UNSEEN.isdisjoint(request.path.split("/"))
        self.writes += counts
        if counts and self._strike():
            return web.Response(status=503)
        async with self._session.request(
            request.method, f"{self._target}{request.raw_path}", data=body or None, headers=_passed(request.headers)
        ) as answer:
            if counts:
                content = await answer.read()
                self._strike()
                return web.Response(status=answer.status, body=content, headers=_passed(answer.headers))
            response = web.StreamResponse(status=answer.status, headers=_passed(answer.headers))
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
            return response


def _passed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}
