"""The frame around the handlers: routes, request ids, limits, and what becomes of errors.

One wrapper a route, no stack of middlewares: a checkout must not cost much more than the write that it is.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from vmpool.gateway import health, openapi, wire
from vmpool.gateway.answers import Refusal, unavailable
from vmpool.gateway.context import GATEWAY, Call, Gateway
from vmpool.gateway.limits import client_address, hold_to, limits_of, networks
from vmpool.gateway.routes import Route
from vmpool.gateway.troubles import refusal_of

REQUEST_ID = "X-Request-ID"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})

_REQUEST_ID = re.compile(r"[-A-Za-z0-9._]{1,64}")

KEEP_ALIVE_SECONDS = 75.0
"""How long an idle connection is kept: a little more than most load balancers keep theirs."""
LINGER_SECONDS = 1.0
"""How long what is left of a refused body is still taken, so that its client can read the refusal."""
CUT_SECONDS = 1.0
"""How long a request that was not answered in time has for its end."""
_SOURCE = "vmpool.gateway.http"

Admit = Callable[[Route, Call], dict[str, str]]
"""Lets a request in, and returns headers for its answer. Raises ``Refusal``."""


def build_app(gateway: Gateway, tables: Sequence[Sequence[Route]]) -> web.Application:
    """Return the application of these endpoints and the frame's own (``health``, the OpenAPI document).

    Raises ValueError for a setting that makes no sense and for two routes of one method and path.
    """
    frame = Frame(gateway)
    document = openapi.document([health.ROUTES, (openapi.ROUTE,), *tables], gateway)
    own = (*health.ROUTES, openapi.served(document))
    served: list[tuple[Route, Admit]] = [(route, frame.free) for route in own]
    served += [(route, frame.admit) for table in tables for route in table]
    _refuse_twins(route for route, _ in served)
    app = web.Application()
    app[GATEWAY] = gateway
    app[FRAME] = frame
    for route, admit in served:
        _add(app, route, frame.endpoint(route, admit))
    # Last, and for every method: VMPooler answers a wrong method like a wrong path. A dot would not match a line's end.
    app.router.add_route("*", r"/{path:[\s\S]*}", frame.endpoint(health.UNKNOWN_ROUTE, frame.limit))
    return app


def runner_options() -> dict[str, Any]:
    """Return what ``web.AppRunner`` needs to serve the application as its handlers expect."""
    return {
        "access_log": None,
        "logger": _http_log(),
        # ``Frame.drain`` has waited for requests before.
        "shutdown_timeout": CUT_SECONDS,
        "keepalive_timeout": KEEP_ALIVE_SECONDS,
        "lingering_time": LINGER_SECONDS,
        # A client that goes away cancels nothing: a write half-way is finished.
        "handler_cancellation": False,
        # ``bounds`` refuses packed bodies: unpacked, a small one can be of any size.
        "auto_decompress": False,
    }


class Frame:
    """What all endpoints of one application share."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._limits = limits_of(gateway.own)
        self._trusted = networks(gateway.own.trusted_proxies)
        self._loaded = False
        self._draining = False
        self._idle = asyncio.Event()
        self.in_flight = 0
        """Requests that are being answered."""

    async def drain(self, seconds: float) -> None:
        """Wait until nothing is in flight, at most so long; every answer from now on ends its connection.

        aiohttp itself, when it is told to stop, takes no more bytes: also not the rest of a request that has begun.
        """
        self._draining = True
        if self.in_flight:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._idle.wait()

    def endpoint(self, route: Route, admit: Admit) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Return the handler of a route as aiohttp wants it; it raises nothing but cancellation."""
        gateway = self._gateway
        requests, seconds = gateway.metrics.requests, gateway.metrics.request_seconds

        async def serve(request: web.Request) -> web.Response:
            began = time.perf_counter()
            call = Call(gateway, request, _request_id(request), self._address(request))
            self.in_flight += 1
            try:
                response = await self._respond(route, admit, call)
            finally:
                self.in_flight -= 1
                if self._draining and not self.in_flight:
                    self._idle.set()
            response.headers[REQUEST_ID] = call.request_id
            if self._draining:
                response.force_close()
            method = request.method if request.method in METHODS else "other"
            requests.labels(method, route.path, response.status).inc()
            seconds.labels(method, route.path).observe(time.perf_counter() - began)
            return response

        return serve

    def free(self, route: Route, call: Call) -> dict[str, str]:  # noqa: ARG002 - an ``Admit``
        """Admit everything."""
        return {}

    def limit(self, route: Route, call: Call) -> dict[str, str]:
        """Admit what is below the bound and its client's limits."""
        if self.in_flight > self._gateway.own.requests_at_once:
            raise unavailable(
                f"{self._gateway.own.requests_at_once} requests are being answered already",
                self._gateway.own.retry_after_seconds,
            )
        return {} if self._limits is None else hold_to(self._limits, call, route.limit)

    def admit(self, route: Route, call: Call) -> dict[str, str]:
        """The same, once the gateway knows what there is."""
        headers = self.limit(route, call)
        # Asked until it is so: a first list stays complete.
        if not self._loaded:
            if missing := health.loading(self._gateway):
                raise unavailable(f"this gateway is not ready: {missing}", self._gateway.own.retry_after_seconds)
            self._loaded = True
        return headers

    async def _respond(self, route: Route, admit: Admit, call: Call) -> web.Response:
        headers: dict[str, str] = {}
        try:
            headers = admit(route, call)
            answer = await route.handler(call)
            return wire.response(call.request, answer.status, answer.body, {**headers, **answer.headers}, answer.text)
        except Refusal as refused:
            refusal = refused
        except Exception as error:  # noqa: BLE001 - refusal_of logs what it cannot explain
            refusal = refusal_of(error, call, route.path)
        return wire.response(call.request, refusal.status, refusal.body, {**headers, **refusal.headers})

    def _address(self, request: web.Request) -> str:
        peer = request.remote or ""
        if not self._trusted:
            return peer
        return client_address(peer, ",".join(request.headers.getall("X-Forwarded-For", ())), self._trusted)


def _request_id(request: web.Request) -> str:
    given = request.headers.get(REQUEST_ID, "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _add(app: web.Application, route: Route, handler: Callable[[web.Request], Awaitable[web.Response]]) -> None:
    paths = [route.path] if route.path == "/" else [route.path.rstrip("/"), route.path.rstrip("/") + "/"]
    for path in paths:
        resource = app.router.add_resource(path)
        resource.add_route(route.method, handler)
        if route.method == "GET":
            resource.add_route("HEAD", handler)


def _refuse_twins(routes: Iterable[Route]) -> None:
    seen: set[tuple[str, str]] = set()
    for route in routes:
        key = route.method, route.path.rstrip("/")
        if key in seen:
            raise ValueError(f"two routes for {route.method} {route.path}")
        seen.add(key)


def _http_log() -> logging.Logger:
    """Return the log of aiohttp's server, where what is no HTTP gets one line and no stack."""
    found = logging.getLogger(_SOURCE)
    if not found.filters:
        found.addFilter(_briefly)
    return found


def _briefly(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args = "refused what is no HTTP request: %s", (type(error).__name__,)
        record.exc_info = None
    return True


FRAME: web.AppKey[Frame] = web.AppKey("frame", Frame)
