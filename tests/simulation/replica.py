"""One operator process: the real engine with the real client, mirrors, lanes and loops, on the virtual clock.

It is killed by cancelling everything that it runs; a new one starts from the objects alone. Nothing here elects a
leader: a story that has two replicas has two that both believe that they lead.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from tests.simulation.net import Party, client_of
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
from vmpool.kube.events import EventRecorder
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
from vmpool.kube.mirror import Mirror, MirrorSettings, Selection
from vmpool.settings import Settings

if TYPE_CHECKING:
    from tests.simulation.run import Site
    from vmpool.telemetry.metrics import Metrics

RUNS_IN: Final[ContextVar[Party]] = ContextVar("party")
"""Whose task is running."""


class Uncounted:
    """Stands for the metrics: nobody decides by what is counted, and counting would cost a fifth of a story."""

    def __getattr__(self, _: str) -> "Uncounted":
        return self

    def __call__(self, *_: object, **__: object) -> "Uncounted":
        return self

    def __enter__(self) -> "Uncounted":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is counted."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())


METRICS: Final = cast("Metrics", Uncounted())
SETTINGS: Final = Settings(
    straggler_grace_seconds=30.0,
    straggler_ttl_seconds=1.0,
    sweep_seconds=10.0,
    claim_proof_seconds=5.0,
    stop_grace_seconds=0.0,
    round_pause_seconds=0.06,
)
"""Those of production, but for what would only make stories longer."""


class Quiet(EventRecorder):
    """Nobody reads events here."""

    def __init__(self) -> None:
        """Needs no client."""

    def emit(self, *_: object) -> None:
        """Forget it."""

    async def run(self) -> NoReturn:
        """Wait for ever."""
        await asyncio.Event().wait()
        raise AssertionError("unreachable: nobody sets it")


class Replica(Party):
    """A process that runs the engine until it is killed or ends by itself."""

    def __init__(self, site: "Site", number: int) -> None:
        super().__init__(f"replica-{number}")
        self._site = site
        context = copy_context()
        context.run(RUNS_IN.set, self)
        self._task = site.loop.create_task(self._run(), context=context)

    async def _run(self) -> None:
        self._site.tell(f"{self.name} starts")
        self.engine = Engine(self._world())
        try:
            await self.engine.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the process ends and the next one starts
            self._site.tell(f"{self.name} ends by itself: {error!r}")
            self._site.ended(self, error)

    def _world(self) -> World:
        client, bounds = client_of(self._site, self), MirrorSettings()
        return World(
            client=client,
            settings=SETTINGS,
            metrics=METRICS,
            events=Quiet(),
            install_id=self._site.install_id,
            stop_grace_seconds=0.0,
            probes=asyncio.Semaphore(SETTINGS.probes_in_flight),
            pools=Mirror(client, Selection(VMPOOLS), pool_facts, bounds),
            vms=Mirror(client, Selection(POOLEDVMS), vm_facts, bounds, VM_INDEXES),
            providers=Mirror(client, Selection(VMPROVIDERS), provider_object, bounds),
            claims=Mirror(client, Selection(VMCLAIMS), claim_facts, bounds),
            queues=Mirror(client, Selection(DEAD_LETTER_QUEUES), queue_object, bounds),
            letters=Mirror(client, Selection(DEAD_LETTERS), letter_facts, bounds, LETTER_INDEXES),
            purge_policies=Mirror(client, Selection(PURGE_POLICIES), purge_object, bounds),
            health_policies=Mirror(client, Selection(HEALTH_POLICIES), health_object, bounds),
        )

    def kill(self) -> None:
        """End everything that it runs, now; requests that have left it still land."""
        self.dead = True
        for task, owner in self._site.owners.items():
            if owner is self:
                task.cancel()


def task_factory(owners: "dict[asyncio.Task[Any], Party]") -> Callable[..., "asyncio.Task[Any]"]:
    """Return a factory that notes whose each task is: Python 3.11 does not show the context of a task."""

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, context: Context | None = None) -> "asyncio.Task[Any]":
        task = asyncio.Task(coroutine, loop=loop, context=context)
        owner = context.get(RUNS_IN) if context is not None else RUNS_IN.get(None)
        if owner is not None:
            owners[task] = owner
        return task

    return make
