"""The life of an operator process: connect, take the lease, run the engine inside kopf's frame, end on doubt."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import kopf
from prometheus_client import CollectorRegistry

from vmpool.api import keys
from vmpool.engine.engine import Engine
from vmpool.engine.facts import (
    claim_facts,
    health_object,
    letter_facts,
    pool_facts,
    provider_object,
    purge_object,
    queue_object,
    vm_facts,
)
from vmpool.engine.world import LETTER_INDEXES, VM_INDEXES, World
from vmpool.kube.client import Client, ClientSettings
from vmpool.kube.connect import connect, keep_clock
from vmpool.kube.events import EventRecorder, EventSettings
from vmpool.kube.identity import new_identity
from vmpool.kube.kinds import (
    DEAD_LETTER_QUEUES,
    DEAD_LETTERS,
    HEALTH_POLICIES,
    POOLEDVMS,
    PURGE_POLICIES,
    VMCLAIMS,
    VMPOOLS,
    VMPROVIDERS,
)
from vmpool.kube.lease import Lease, LeaseLost, LeaseSettings
from vmpool.kube.mirror import Mirror, MirrorSettings, Selection
from vmpool.rim import probes, report
from vmpool.rim.fence import Fence, Sentry, fenced_loop
from vmpool.rim.handlers import WATCHED, frame_settings, register
from vmpool.rim.identity import install_id
from vmpool.rim.watchdog import Watchdog, limits_of, silence_of
from vmpool.settings import Settings
from vmpool.telemetry import logs
from vmpool.telemetry import report as reports
from vmpool.telemetry.metrics import Metrics

log = logs.get(__name__)

LAST_SECONDS = 3.0
"""How long a process in doubt may take to stop its engine and to let go of the lease."""
LEASE_REQUEST_SHARE = 0.4
"""Of the renew deadline, for one request: two of them fit."""


class FrameEnded(Exception):
    """kopf does not run any more: what it cannot bear itself (K-list of docs/critiques.md) ends the process."""


Companion = Callable[[CollectorRegistry, asyncio.Event], Coroutine[Any, Any, None]]
"""Runs beside the engine, before and without the lease, until the event is set; then it ends what it has begun.

What it raises ends the process.
"""


class Process:
    """One operator process; ``run`` returns its exit code. ``fence`` is the selector of the loop that it runs in."""

    def __init__(self, settings: Settings, companions: Sequence[Companion], fence: Fence) -> None:
        self.settings = settings
        self._companions = companions
        self.metrics = Metrics()
        self.watchdog = Watchdog(limits_of(settings), self.metrics.watchdog)
        self.sentry = Sentry(self.watchdog, fence)
        self.engine: Engine | None = None
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Run until told to stop (0) or until there is doubt (1)."""
        self._take_signals()
        loop = asyncio.get_running_loop()
        reports.on_signal(lambda: report.sections(self.settings, loop, self.watchdog, self.engine))
        self.watchdog.report = lambda: reports.write(
            report.sections(self.settings, loop, self.watchdog, self.engine), "verdict"
        )
        self.watchdog.start()
        self.sentry.start()
        work = asyncio.create_task(self._work(), name="operator")
        waiter = asyncio.create_task(self._stop.wait(), name="stop")
        beside = [asyncio.create_task(run(self.metrics.registry, self._stop)) for run in self._companions]
        watch = asyncio.create_task(self.watchdog.wait(), name="watchdog")
        await asyncio.wait({work, waiter, watch, *beside}, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        for task in (work, watch, *beside):
            error = task.exception() if task.done() else None
            if error is not None or work.done():
                self._hurry()
                log.error("operator_ends", error=_flat(error), exc_info=error)
                # The engine stops and the lease is let go; whatever else there is need not end in order.
                work.cancel()
                await asyncio.wait({work}, timeout=LAST_SECONDS)
                return 1
        self.watchdog.at_ease = True
        watch.cancel()
        log.info("operator_stops")
        # While the lease is still held: kopf, once it ends, cancels every task of the process.
        engine = [self.engine.stop()] if self.engine is not None else []
        await asyncio.gather(*engine, *beside, return_exceptions=True)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return 0

    def _hurry(self) -> None:
        """Doubt: nothing that is in flight gets time to finish."""
        if self.engine is not None:
            self.engine.world.stop_grace_seconds = 0.0

    def _take_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)

    async def _work(self) -> None:
        async with AsyncExitStack() as stack:
            runner, port = await probes.serve(
                self.settings.http_host, self.settings.http_port, self.metrics, self._alive, self._ready
            )
            stack.push_async_callback(runner.cleanup)
            client = await stack.enter_async_context(await self._client())
            log.info("operator_starts", http=f"{self.settings.http_host}:{port}")
            me = new_identity(self.settings.pod_uid)
            lease = Lease(client, self.settings.namespace, keys.LEASE_NAME, me, self._lease_settings())
            self.watchdog.lease = lease
            await lease.acquire()
            self.metrics.leader.set(1)
            stack.push_async_callback(lease.release)
            world = await self._world(client)
            self.watchdog.mirrors = world.mirrors
            self.engine = Engine(world)
            stack.push_async_callback(self.engine.stop)
            # Nothing of what is loaded now is garbage: to look through it again and again took half of a cold start.
            gc.disable()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_collect_again(self.engine))
                    group.create_task(self._hold(lease, world, self.engine))
                    group.create_task(self.engine.run())
                    group.create_task(self._frame(client, self.engine))
                    group.create_task(keep_clock(client, self.settings.namespace))
            except BaseExceptionGroup:
                self._hurry()
                raise

    async def _hold(self, lease: Lease, world: World, engine: Engine) -> None:
        """Hold the lease. When it is lost another may be leading by now: the engine ends before anything else."""
        try:
            await lease.hold()
        except LeaseLost:
            world.stop_grace_seconds = 0.0
            await engine.stop()
            raise

    def _alive(self) -> str:
        """Not ready is no reason to be restarted; doubt is shown for a moment, then it ends the process by itself."""
        return self.watchdog.trouble()

    def _ready(self) -> str:
        if self.engine is None:
            return "waits for the lease"
        return self.engine.healthy()

    async def _client(self) -> Client:
        bounds = ClientSettings(in_flight=self.settings.requests_in_flight)
        return await connect(self.settings, bounds, self.metrics.api_requests)

    def _lease_settings(self) -> LeaseSettings:
        given = self.settings
        return LeaseSettings(
            duration=timedelta(seconds=given.lease_seconds),
            renew_deadline=timedelta(seconds=given.lease_renew_seconds),
            retry_period=timedelta(seconds=given.lease_retry_seconds),
            request_timeout=timedelta(seconds=given.lease_renew_seconds * LEASE_REQUEST_SHARE),
        )

    async def _world(self, client: Client) -> World:
        namespace = self.settings.watch_namespace or None
        ours = await install_id(client, self.settings.namespace, self.settings.install_id)
        silence, max_age = silence_of(self.settings)
        bounds = MirrorSettings(
            silence=silence,
            relist=timedelta(seconds=self.settings.relist_seconds),
            recounts=self.settings.list_recounts,
            gone_kept=self.settings.gone_kept,
            max_age=max_age,
        )
        return World(
            client=client,
            settings=self.settings,
            metrics=self.metrics,
            events=EventRecorder(client, "vmpool", new_identity(self.settings.pod_uid), EventSettings()),
            install_id=ours,
            stop_grace_seconds=self.settings.stop_grace_seconds,
            probes=asyncio.Semaphore(self.settings.probes_in_flight),
            suspicion=self.watchdog.trouble,
            pools=Mirror(client, Selection(VMPOOLS, namespace), pool_facts, bounds),
            vms=Mirror(client, Selection(POOLEDVMS, namespace), vm_facts, bounds, VM_INDEXES),
            providers=Mirror(client, Selection(VMPROVIDERS, namespace), provider_object, bounds),
            claims=Mirror(client, Selection(VMCLAIMS, namespace), claim_facts, bounds),
            queues=Mirror(client, Selection(DEAD_LETTER_QUEUES, namespace), queue_object, bounds),
            letters=Mirror(client, Selection(DEAD_LETTERS, namespace), letter_facts, bounds, LETTER_INDEXES),
            purge_policies=Mirror(client, Selection(PURGE_POLICIES, namespace), purge_object, bounds),
            health_policies=Mirror(client, Selection(HEALTH_POLICIES, namespace), health_object, bounds),
        )

    async def _frame(self, client: Client, engine: Engine) -> None:
        """Run kopf while we lead."""
        registry = kopf.OperatorRegistry()
        register(registry, engine.wake, client)
        namespaces = [self.settings.watch_namespace] if self.settings.watch_namespace else []
        ours = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=registry,
            settings=frame_settings(),
            # It has no peers; left to itself it asks who the user is, and a container's often has no name.
            identity=new_identity(self.settings.pod_uid),  # type: ignore[arg-type]  # a name for str, within kopf
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
        )
        # kopf has just taken the signals, and its own stop waits for 5 s, in which new work would begin.
        self._take_signals()
        self.watchdog.follow(tasks, [kind.plural for kind in WATCHED])
        try:
            await kopf.run_tasks(tasks, ignored=ours)
        except Exception as error:
            raise FrameEnded(f"kopf has ended: {error}") from error
        raise FrameEnded("kopf has ended by itself")


async def _collect_again(engine: Engine) -> None:
    """Collect garbage from the first lists on, and leave out what was loaded until then."""
    await engine.ready.wait()
    gc.freeze()
    gc.enable()


def _flat(error: BaseException | None) -> str:
    """Say what is inside an exception group, in one line."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_flat(one) for one in error.exceptions)
    return f"{type(error).__name__}: {error}"


def run_operator(settings: Settings, companions: Sequence[Companion] = ()) -> None:
    """Run the operator, with what is to run in the same process, and exit with its code."""
    logs.configure(settings.log_format, settings.log_level)
    fence = Fence()
    process = Process(settings, companions, fence)
    with asyncio.Runner(loop_factory=fenced_loop(fence)) as runner:
        code = runner.run(process.run())
        if code != 0:
            # kopf's tasks, told to end, may take seconds, and nobody waits for what they do.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    # Not before: the end too may be held up.
    process.sentry.stop()
    sys.exit(code)
