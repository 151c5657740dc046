"""The life of a gateway: connect, serve, follow, be ready, and end: when told to, and on doubt.

It serves before it knows anything: until the first lists are complete, ``/readyz`` is red and requests get 503.
"""

import asyncio
import gc
import secrets
import signal
import ssl
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from vmpool.api import keys
from vmpool.engine.facts import claim_facts, pool_facts, vm_facts
from vmpool.engine.ready import ReadyIndex
from vmpool.engine.reviews import AccessReviews, ReviewSettings
from vmpool.gateway import audit, health, ondemand
from vmpool.gateway.app import FRAME, build_app, runner_options
from vmpool.gateway.auth import gatekeeper
from vmpool.gateway.context import GATEWAY_VM_INDEXES, Gateway
from vmpool.gateway.tables import tables
from vmpool.gateway.tls import Pair, pair_of
from vmpool.kube.client import Client, ClientSettings
from vmpool.kube.connect import connect, keep_clock
from vmpool.kube.errors import Unreachable
from vmpool.kube.kinds import POOLEDVMS, VMCLAIMS, VMPOOLS
from vmpool.kube.mirror import Mirror, MirrorSettings, Selection
from vmpool.settings import GatewaySettings, Settings
from vmpool.telemetry import logs, report
from vmpool.telemetry.gateway import GatewayMetrics

log = logs.get(__name__)

READY_POLL_SECONDS = 0.05
MEASURE_SECONDS = 5.0
"""How old levels may be in the metrics of the process that this gateway runs inside."""


class CannotStart(Exception):
    """A setting, a file or the port is wrong; the message says which."""


class GatewayProcess:
    """One gateway process; ``run`` returns its exit code."""

    def __init__(self, settings: Settings, own: GatewaySettings) -> None:
        self.settings = settings
        self.own = own
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Run until told to stop (0) or until there is doubt (1)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        # Nothing of what is loaded now is garbage: to look through it again and again took half of a cold start.
        gc.disable()
        loop, made = asyncio.get_running_loop(), list[Gateway]()
        report.on_signal(lambda: _sections(self.settings, self.own, loop, made))
        try:
            await serve(self.settings, self.own, GatewayMetrics(), self._stop, _collect_again, made.append)
        except CannotStart as error:
            log.error("gateway_ends", error=str(error))
            return 1
        except Exception as error:
            log.exception("gateway_ends", error=_flat(error))
            return 1
        log.info("gateway_stops")
        return 0


async def serve(
    settings: Settings,
    own: GatewaySettings,
    metrics: GatewayMetrics,
    stop: asyncio.Event,
    on_ready: Callable[[], None] = lambda: None,
    on_made: Callable[[Gateway], None] = lambda _: None,
) -> None:
    """Serve until ``stop`` is set; then requests in flight get ``own.stop_seconds``, and it returns.

    ``on_made`` is called once with what the handlers share, ``on_ready`` when the first lists are complete. Raises
    ``CannotStart``, and an ``ExceptionGroup`` of what gives reason to doubt what is known: then the process should end.
    """
    async with AsyncExitStack() as stack:
        try:
            gateway, pair, context = await _prepare(stack, settings, own, metrics)
            on_made(gateway)
            seen = pair.seen() if pair else ()
            runner = await _listen(stack, gateway, context)
        except (ValueError, OSError, Unreachable) as error:
            raise CannotStart(str(error)) from error
        host, port = runner.addresses[0][:2]
        log.info("gateway_starts", url=f"{'https' if context else 'http'}://{_in_url(host)}:{port}", auth=own.auth)
        if why_not := ondemand.missing(settings):
            log.warning("gateway_without_ondemand", reason=why_not)
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(work) for work in _background(gateway, settings)]
            background.append(group.create_task(_tell_when_ready(gateway, on_ready)))
            if pair and context:
                background.append(group.create_task(pair.follow(context, seen, own.tls_look_seconds)))
            await stop.wait()
            # While the mirrors still move: a checkout in flight may be waiting for them.
            await _drain(gateway, runner)
            for task in background:
                task.cancel()


async def _prepare(
    stack: AsyncExitStack, settings: Settings, own: GatewaySettings, metrics: GatewayMetrics
) -> tuple[Gateway, Pair | None, ssl.SSLContext | None]:
    pair = pair_of(own)
    context = pair.context() if pair else None
    bounds = ClientSettings(in_flight=own.checkouts_in_flight, field_manager=keys.GATEWAY_FIELD_MANAGER)
    client = await stack.enter_async_context(await connect(settings, bounds, metrics.api_requests))
    gateway = _gateway(client, settings, own, metrics)
    stack.push_async_callback(gateway.gatekeeper.close)
    if own.audit:
        audit.listen()
    return gateway, pair, context


def _gateway(client: Client, settings: Settings, own: GatewaySettings, metrics: GatewayMetrics) -> Gateway:
    namespace = settings.watch_namespace or None
    bounds = MirrorSettings(
        relist=timedelta(seconds=settings.relist_seconds),
        recounts=settings.list_recounts,
        gone_kept=settings.gone_kept,
    )
    pools = Mirror(client, Selection(VMPOOLS, namespace), pool_facts, bounds)
    vms = Mirror(client, Selection(POOLEDVMS, namespace), vm_facts, bounds, GATEWAY_VM_INDEXES)
    reviews = AccessReviews(client, ReviewSettings(seconds=own.review_seconds, entries=own.review_entries))
    return Gateway(
        client=client,
        settings=settings,
        own=own,
        metrics=metrics,
        pools=pools,
        vms=vms,
        claims=Mirror(client, Selection(VMCLAIMS, namespace), claim_facts, bounds),
        # A place of its own: several gateways begin with different VMs.
        ready=ReadyIndex(secrets.token_hex(8), vms, pools),
        reviews=reviews,
        gatekeeper=gatekeeper.build(client, settings, own, metrics, reviews),
    )


async def _listen(stack: AsyncExitStack, gateway: Gateway, context: ssl.SSLContext | None) -> web.AppRunner:
    own = gateway.own
    runner = web.AppRunner(build_app(gateway, tables()), **runner_options())
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, own.host, own.port, ssl_context=context).start()
    return runner


async def _drain(gateway: Gateway, runner: web.AppRunner) -> None:
    """Take no new connections, and let end what has begun, also behind the back of its client."""
    end = time.monotonic() + gateway.own.stop_seconds
    for site in list(runner.sites):
        await site.stop()
    assert runner.app is not None
    await runner.app[FRAME].drain(gateway.own.stop_seconds)
    await gateway.followups.settle(max(0.0, end - time.monotonic()))
    await runner.cleanup()


def _background(gateway: Gateway, settings: Settings) -> list[Coroutine[Any, Any, None]]:
    return [
        gateway.pools.run(),
        gateway.vms.run(),
        gateway.claims.run(),
        gateway.gatekeeper.run(),
        keep_clock(gateway.client, settings.namespace),
        _measure(gateway),
    ]


async def _measure(gateway: Gateway) -> None:
    """Keep the levels fresh: inside the operator it is the operator's endpoint that shows them."""
    while True:
        health.measure(gateway)
        await asyncio.sleep(MEASURE_SECONDS)


async def _tell_when_ready(gateway: Gateway, on_ready: Callable[[], None]) -> None:
    """Log why the gateway is not ready, whenever that changes, until it is for the first time."""
    before = ""
    while why_not := health.trouble(gateway):
        # A number of seconds in it changes all the time.
        if why_not.rstrip("0123456789. s") != before:
            before = why_not.rstrip("0123456789. s")
            log.info("gateway_waits", reason=why_not)
        await asyncio.sleep(READY_POLL_SECONDS)
    on_ready()
    log.info("gateway_ready", pools=len(gateway.pools), vms=len(gateway.vms), claims=len(gateway.claims))


def _sections(
    settings: Settings, own: GatewaySettings, loop: asyncio.AbstractEventLoop, made: Sequence[Gateway]
) -> Mapping[str, report.Section]:
    """Return the sections of the report that SIGUSR1 asks for."""
    sections: dict[str, report.Section] = {
        "process": report.process,
        "settings": report.settings(settings),
        "gateway_settings": report.settings(own),
        "tasks": report.tasks(loop),
        "threads": report.threads,
    }
    if made:
        gateway = made[0]
        mirrors = (gateway.pools, gateway.vms, gateway.claims)
        sections["mirrors"] = lambda: {str(mirror.selection): mirror.levels() for mirror in mirrors}
        sections["gateway"] = lambda: {"unready": health.trouble(gateway)}
    return sections


def _collect_again() -> None:
    gc.freeze()
    gc.enable()


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _flat(error: BaseException) -> str:
    """Say what is inside an exception group, in one line."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_flat(one) for one in error.exceptions)
    return f"{type(error).__name__}: {error}"


def companion(
    settings: Settings, own: GatewaySettings
) -> Callable[[CollectorRegistry, asyncio.Event], Coroutine[Any, Any, None]]:
    """Return a gateway to run inside another process, on its registry of metrics, until its event is set."""

    async def run(registry: CollectorRegistry, stop: asyncio.Event) -> None:
        await serve(settings, own, GatewayMetrics(registry), stop)

    return run


def run_gateway(settings: Settings, own: GatewaySettings) -> None:
    """Run the gateway and exit with its code."""
    logs.configure(settings.log_format, settings.log_level)
    sys.exit(asyncio.run(GatewayProcess(settings, own).run()))
