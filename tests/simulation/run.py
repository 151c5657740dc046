"""One story from its seed to its end: misfortunes first, then calm weather, then the wanted state or a violation."""

import asyncio
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any, Final

import orjson

from tests.simulation.api import ApiModel, Call, Event
from tests.simulation.clock import EPOCH, Stuck, VirtualLoop, virtual
from tests.simulation.cloud import CloudModel
from tests.simulation.net import CALM, Feed, Net, Party, Registry
from tests.simulation.replica import RUNS_IN, Replica, task_factory
from tests.simulation.story import Story, furniture, story_of
from tests.simulation.users import Users
from tests.simulation.witness import Witness
from vmpool.api import keys

TURNS_MOST: Final = 400_000
"""Of the loop, in one story: far more than any needs."""
HEALED_WITHIN: Final = 400.0
"""Seconds from the last misfortune to the wanted state: claims run up to two minutes, stragglers wait for thirty."""
LOOK_EVERY: Final = 2.0
QUIET_FOR: Final = 15.0
"""Seconds without a write once the wanted state is reached: longer than a late request takes to land."""
RESTART: Final = (0.2, 3.0)
COLLECTS: Final = (0.1, 2.0)
"""Seconds until the garbage collector deletes what a deleted owner had."""


@dataclass(frozen=True)
class Outcome:
    """What became of one seed; ``problem`` is empty when every promise held."""

    seed: int
    problem: str
    trace: tuple[str, ...]
    calls: tuple[Call, ...]
    turns: int
    ended_at: float


class Site:
    """Everything that one story has."""

    def __init__(self, story: Story, loop: VirtualLoop, random: Random, *, trace: bool, record: bool) -> None:
        self.story, self.loop, self.random = story, loop, random
        self.install_id = "install-1"
        self.lines: list[str] | None = [] if trace else None
        self.api = ApiModel(self.now, self._event, record=record)
        self.history: defaultdict[str, list[tuple[float, Event]]] = defaultdict(list)
        self.feeds: list[Feed] = []
        self.net = Net(self, loop, random, story.weather)
        self.witness = Witness(self)
        self.cloud = CloudModel(
            loop.time, random, story.cloud, on_made=self.witness.made_machine, on_delete=self.witness.deleting
        )
        self.users = Users(self, random)
        self.uids: set[str] = set()
        """Of every PooledVM that ever was."""
        self.owners: dict[asyncio.Task[Any], Party] = {}
        self.replicas: list[Replica] = []
        self.problem: asyncio.Future[str] = loop.create_future()
        self.wanted = story.leaders
        """How many replicas there should be."""
        self._most: dict[str, int] = {}
        self._started = 0
        self._over = False

    # --- what others see -----------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """Return the present time."""
        return EPOCH + timedelta(seconds=self.loop.time())

    def tell(self, line: str) -> None:
        """Add a line to the trace."""
        if self.lines is not None:
            self.lines.append(f"{self.loop.time():9.3f} {line}")

    def violated(self, what: str) -> None:
        """Note that a promise is broken: the story ends."""
        self.tell(f"VIOLATION {what}")
        if not self.problem.done():
            self.problem.set_result(what)

    def broken(self, context: dict[str, Any]) -> None:
        """An error that the loop found: one in a callback is a mistake of the simulation, and ends the story."""
        if "handle" in context:
            self.violated(f"the simulation itself: {context.get('exception')!r}")

    @property
    def one_leader(self) -> bool:
        """Whether one replica at a time decides; then the bounds of numbers hold too."""
        return self.story.leaders == 1

    def most_vms(self, pool: str) -> int:
        """Return the largest ``maxVMs`` that a pool of this name ever had."""
        return self._most[pool]

    def _event(self, event: Event) -> None:
        if event.plural == "pooledvms" and event.type == "ADDED":
            self.uids.add(event.obj["metadata"]["uid"])
        if event.plural == "vmpools":
            name = event.obj["metadata"]["name"]
            self._most[name] = max(self._most.get(name, 0), event.obj["spec"]["maxVMs"])
            if event.type == "DELETED":
                self.loop.call_later(self.random.uniform(*COLLECTS), self._collect, event.obj["metadata"]["uid"])
        self.witness.event(event)
        self.history[event.plural].append((self.loop.time(), event))
        for feed in self.feeds:
            if feed.plural == event.plural:
                feed.news.set()

    def _collect(self, owner: str) -> None:
        for obj in self.api.all("pooledvms"):
            meta = obj["metadata"]
            if any(ref["uid"] == owner for ref in meta.get("ownerReferences", ())):
                path = f"/apis/{keys.API_VERSION}/namespaces/{meta['namespace']}/pooledvms/{meta['name']}"
                body = orjson.dumps({"preconditions": {"uid": meta["uid"]}})
                self.api.handle("DELETE", path, {}, body, who="collector")

    # --- replicas ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start one more replica."""
        if not self._over:
            self._started += 1
            self.replicas.append(Replica(self, self._started))

    def kill(self, who: Party) -> None:
        """SIGKILL a replica; another process takes its place."""
        if isinstance(who, Replica) and not who.dead:
            self.tell(f"{who.name} is killed")
            who.kill()
            self._replace(who)

    def ended(self, who: Replica, error: Exception) -> None:
        """A replica has ended by itself: that is its right when in doubt, and what a mirror that broke does."""
        del error
        who.kill()
        self._replace(who)

    def _replace(self, who: Replica) -> None:
        self.replicas.remove(who)
        self.loop.call_later(self.random.uniform(*RESTART), self._start_if_missing)

    def _start_if_missing(self) -> None:
        if len(self.replicas) < self.wanted:
            self.start()

    # --- the story -----------------------------------------------------------------------------------------------

    async def play(self) -> str:
        """Play the story; return what went wrong, or an empty text."""
        told = self.loop.create_task(self._acts())
        await asyncio.wait({told, self.problem}, return_when=asyncio.FIRST_COMPLETED)
        if self.problem.done():
            told.cancel()
            await asyncio.wait({told})
            return self.problem.result()
        return told.result() or (self.problem.result() if self.problem.done() else "")

    async def _acts(self) -> str:
        self._set_the_scene()
        for _ in range(self.story.leaders):
            self.start()
        for at, deed in self.story.deeds:
            await asyncio.sleep(max(0.0, at - self.loop.time()))
            if deed in ("kill", "hold") and not self.replicas:
                continue
            await self.users.do(deed)
        await asyncio.sleep(max(0.0, self.story.heals_at - self.loop.time()))
        self.tell("the weather clears up")
        self.net.weather, self.cloud.calm = CALM, True
        # In calm weather there is one lease: only safety may be asked of two that both believe that they lead.
        self.wanted = 1
        for replica in self.replicas[1:]:
            self.kill(replica)
        await self.users.calm()
        return await self._settle()

    def _set_the_scene(self) -> None:
        definition = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        named = {**definition, "metadata": {"name": "vmclaims.vmpool.dev"}}
        self.api.handle("POST", crds, {}, orjson.dumps(named))
        for body in (*furniture(self.story.most_letters), *self.story.pools):
            self.users.create(body)

    async def _settle(self) -> str:
        """Wait for the wanted state, and for it to stay without a write for a while."""
        latest = self.loop.time() + HEALED_WITHIN
        while self.loop.time() < latest:
            why = self.witness.unsettled()
            if why:
                await asyncio.sleep(LOOK_EVERY)
                continue
            version = self.api.version
            await asyncio.sleep(QUIET_FOR)
            if self.api.version == version and not self.witness.unsettled():
                return ""
            why = f"{self.api.version - version} writes in {QUIET_FOR:.0f} s although nothing is wanted any more"
            self.tell(f"not quiet yet: {why}")
        return f"liveness: {HEALED_WITHIN:.0f} s after the last misfortune {why}"

    async def close(self) -> None:
        """End whatever still runs."""
        self._over = True
        for replica in list(self.replicas):
            replica.kill()
        # Not asked of asyncio: its set has the tasks of every loop that there was.
        while left := [task for task in self.owners if not task.done()]:
            for task in left:
                task.cancel()
            await asyncio.wait(left)
        for task in self.owners:
            # Asked for, so that nobody complains about an error that nobody has asked for.
            if not task.cancelled():
                task.exception()


def simulate(seed: int, *, trace: bool = False, record: bool = False) -> Outcome:
    """Play the story of a seed; the same seed plays the same story."""
    story = story_of(seed)
    random = Random(seed + 1)
    loop = VirtualLoop(TURNS_MOST)
    site = Site(story, loop, random, trace=trace, record=record)
    loop.set_exception_handler(lambda _, context: site.broken(context))
    loop.set_task_factory(task_factory(site.owners))
    site.tell(str(story))
    try:
        with virtual(loop, random, site.tell if trace else None, registry=Registry(site, RUNS_IN.get)):
            try:
                problem = loop.run_until_complete(site.play())
            except Stuck as stuck:
                problem = f"stuck: {stuck}"
            except Exception as error:  # noqa: BLE001 - what still runs must be ended whatever it is
                problem = f"the simulation itself: {error!r}"
            ended_at = loop.time()
            with suppress(Stuck):
                loop.run_until_complete(site.close())
    finally:
        loop.close()
    lines = tuple(site.lines or ())
    return Outcome(seed, problem, lines, tuple(site.api.calls), loop.turns, ended_at)
