"""A far side that repeats what it is told: every refusal shows the credentials that came with the request."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

BUCKET = "parrots"
EVERYTHING = (401, 403, 429, 500, 503)
"""Statuses in which it refuses whatever it is asked."""
CREATES = (400, 409, 422)
"""Statuses in which it refuses to make machines, and nothing else."""


@dataclass
class Parrot:
    """In front of a simulated cloud, and a bucket of its own that lets nobody in."""

    cloud: str
    angry: int = 0
    """Status of what it answers in the place of the cloud; 0: it lets the cloud answer."""
    talkative: bool = False
    """What the cloud says of a machine holds the credentials too."""
    refused: int = 0
    """How often it has refused something."""
    heard: set[str] = field(default_factory=set)
    """The credentials that it has repeated."""
    url: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        """Pass a request on, or refuse it in its own words."""
        said = request.headers.get("Authorization", "")
        if request.path.startswith(f"/{BUCKET}"):
            self.heard.add(said)
            body = f"<Error><Code>AccessDenied</Code><Message>not with {said}</Message></Error>"
            return web.Response(status=403, text=body, content_type="application/xml")
        if self.angry and (self.angry in EVERYTHING or (request.method, request.path) == ("POST", "/v1/machines")):
            self.heard.add(said)
            self.refused += 1
            error = {"code": said[:64], "message": f"not with {said}", "headers": dict(request.headers)}
            return web.Response(status=self.angry, text=json.dumps({"error": error}), content_type="application/json")
        return await self._passed_on(request, said)

    async def _passed_on(self, request: web.Request, said: str) -> web.Response:
        kept = {name: request.headers[name] for name in ("Authorization", "Content-Type") if name in request.headers}
        asked = {"data": await request.read(), "headers": kept}
        async with (
            aiohttp.ClientSession(self.cloud) as session,
            session.request(request.method, request.path_qs, **asked) as response,
        ):
            body = await response.read()
        if self.talkative and body:
            body = json.dumps(_repeating(json.loads(body), said)).encode()
        return web.Response(status=response.status, body=body, content_type=response.content_type)


def _repeating(document: Any, said: str) -> Any:
    """Return a document whose messages hold what was said."""
    if isinstance(document, list):
        return [_repeating(one, said) for one in document]
    if not isinstance(document, dict):
        return document
    return {name: f"made with {said}" if name == "message" else _repeating(one, said) for name, one in document.items()}


@asynccontextmanager
async def parrot(cloud: str) -> AsyncIterator[Parrot]:
    """A parrot that serves until the context ends."""
    made = Parrot(cloud)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()
