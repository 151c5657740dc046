"""``/metrics``, ``/healthz`` and ``/readyz`` from our own app: kopf's endpoint never turns red by itself."""

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from vmpool.telemetry.metrics import Metrics


async def serve(
    host: str, port: int, metrics: Metrics, alive: Callable[[], str], ready: Callable[[], str]
) -> tuple[web.AppRunner, int]:
    """Serve until the runner is cleaned up; return it and the port that was taken.

    ``alive`` and ``ready`` return why not, or the empty string. Raises OSError when the port is taken.
    """
    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", _verdict(alive)),
            web.get("/readyz", _verdict(ready)),
            web.get("/metrics", _metrics(metrics)),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    taken: int = runner.addresses[0][1]
    return runner, taken


def _verdict(why_not: Callable[[], str]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.StreamResponse:
        trouble = why_not()
        return web.Response(text=f"{trouble or 'ok'}\n", status=503 if trouble else 200)

    return answer


def _metrics(metrics: Metrics) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(metrics.registry), headers={"Content-Type": content_type})

    return answer
