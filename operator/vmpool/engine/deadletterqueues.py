"""The loop of one DeadLetterQueue: keeps its letters for their time and within its size, and does what people ask."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from vmpool.api.conditions import ConditionType, find
from vmpool.api.deadletterqueue import DeadLetterQueueStatus
from vmpool.engine import writes
from vmpool.engine.archive import Shelf
from vmpool.engine.farside import decoded
from vmpool.engine.loop import Done, Loop
from vmpool.engine.redriving import learn_letter, redrive, write_letter
from vmpool.engine.world import BY_QUEUE, World
from vmpool.kube.errors import Conflict, KubeError, NotFound
from vmpool.kube.events import ObjectRef
from vmpool.kube.kinds import DEAD_LETTER_QUEUES, DEAD_LETTERS, SECRETS
from vmpool.kube.resource import Json
from vmpool.plan.letters import is_settled
from vmpool.plan.policies import Letter, Queue, QueueObject
from vmpool.plan.redrive import Conclude, Later
from vmpool.plan.retention import Holdings, Retention, holdings, plan_retention, queue_status
from vmpool.telemetry import logs
from vmpool.telemetry.reliability import drop

log = logs.get(__name__)

REDIS_NAME = "vmpooler__dlq__"
"""What VMPooler's own log lines put before a queue name: existing greps look for it."""

URGENT = frozenset({"conditions", "observedGeneration"})
"""Fields of the status that are told at once; counts may wait."""


class QueueLoop(Loop):
    """Looks after the letters of one queue.

    Every letter wakes it, so it looks at all of them at most once in ``status_pause_seconds``, unless there is more to
    remove or its spec has changed.
    """

    kind = "DeadLetterQueue"

    def __init__(self, world: World, obj: QueueObject) -> None:
        super().__init__(world.settings, world.metrics)
        self.world = world
        self.uid = obj.uid
        self.key = (obj.namespace, obj.name)
        failed = world.metrics.reliability.archive_errors.labels(*self.key).inc
        self.shelf = Shelf(*self.key, world.settings, failed, self._secret)
        self._began = world.now()
        self._looked: tuple[int, datetime] | None = None
        self._status_at: datetime | None = None
        self._waiting: dict[str, tuple[datetime, str]] = {}
        """By letter uid: when a redrive that could not be done is tried again, and what was said about it."""
        self._beaten = False
        """A removal of this round has to wait, or met another version: look again."""

    def __str__(self) -> str:
        return "/".join(self.key)

    async def round(self, now: datetime) -> datetime | None:
        """Look at every letter, do what is due, write the status if it changed."""
        entry = self.world.queues.by_uid(self.uid)
        if entry is None or entry.fact is None:
            raise Done
        queue = entry.fact
        pause = timedelta(seconds=self.settings.status_pause_seconds)
        if self._looked is not None and self._looked[0] == queue.generation and now < self._looked[1] + pause:
            return self._looked[1] + pause
        if doubt := self.world.doubt():
            log.warning("frozen", queue=str(self), why=doubt)
            return now + timedelta(seconds=self.settings.stalled_pause_seconds)
        self._looked = (queue.generation, now)
        plan = plan_retention(self._letters(), queue.spec, now)
        self.shelf.use(queue.spec.archive)
        trouble: KubeError | None = None
        more = False
        try:
            more = await self._work(queue, plan, now)
        except KubeError as error:
            trouble = error
        held = holdings(self._letters())
        self._measure(held)
        late = await self._write_status(held)
        if trouble is not None:
            raise trouble
        if more:
            self._looked = None
            return now
        # Whatever made the server say no may leave no event behind that would wake us.
        again = now + timedelta(seconds=self.settings.stalled_pause_seconds) if self._beaten else None
        times = (late, again, plan.next_at, self.shelf.try_at, *(at for at, _ in self._waiting.values()))
        return min((at for at in times if at is not None), default=None)

    async def closed(self) -> None:
        """Forget the levels: the queue is gone, or the process ends. Its letters stay."""
        reliability = self.metrics.reliability
        for gauge in (reliability.letters, reliability.letters_oldest):
            drop(gauge, namespace=self.key[0], dead_letter_queue=self.key[1])

    async def _secret(self, name: str) -> Mapping[str, str]:
        return decoded(await self.world.client.get(SECRETS, self.key[0], name))

    def _letters(self) -> list[Letter]:
        entries = self.world.letters.by_index(BY_QUEUE, self.key)
        return [entry.fact for entry in entries if entry.fact is not None]

    async def _work(self, queue: QueueObject, plan: Retention, now: datetime) -> bool:
        """Do what is due, so much of each kind; return whether there is more of what can be done at once."""
        most = self.settings.letters_per_round
        hold = timedelta(seconds=self.settings.discard_hold_seconds)
        # Those that wait stand in nobody's way, and are looked at again after a pause, not at once.
        settled = [one for one in plan.discard if is_settled(one, self.world.vm(one.vm_uid), now, self._began, hold)]
        self._beaten = len(settled) < len(plan.discard)
        for letter in settled[:most]:
            if await self._delete(letter):
                self._removed("discarded")
        more = await self._redrive(plan.redrive, now)
        going, instead = (*plan.expired, *plan.trimmed), ""
        if queue.spec.archive is None:
            gone = [letter for letter in going[:most] if await self._delete(letter)]
        else:
            gone = await self._archive(going, now)
            if self.shelf.error:
                going, instead = plan.overflow, "unarchived"
                gone = await self._abandon(going[:most])
        self._tell_removed(gone, {letter.uid for letter in plan.expired}, instead)
        return more or len(settled) > most or (bool(gone) and len(gone) < len(going))

    async def _archive(self, letters: Sequence[Letter], now: datetime) -> list[Letter]:
        """Archive so many letters, then remove them; return which are gone."""
        if not await self.shelf.ready(now, bool(letters)):
            return []
        # A single one after a failure: a hundred need not be read to learn that it still fails.
        whole = await self._read(letters[: 1 if self.shelf.doubtful else self.settings.letters_per_round])
        if not whole or not await self.shelf.store([raw for _, raw in whole], now):
            return []
        self.metrics.reliability.letters_archived.labels(*self.key).inc(len(whole))
        return [letter for letter, _ in whole if await self._delete(letter)]

    async def _abandon(self, letters: Sequence[Letter]) -> list[Letter]:
        """Remove letters that the archive did not take in time; their text goes into the log."""
        gone = []
        for letter, raw in await self._read(letters):
            log.error("dead_letter_not_archived", queue=str(self), why=self.shelf.error, letter=raw)
            if await self._delete(letter):
                gone.append(letter)
        return gone

    async def _read(self, letters: Sequence[Letter]) -> list[tuple[Letter, Json]]:
        """Return the whole of those letters that are as they were decided on."""
        found = []
        for letter in letters:
            await self.world.removals.turn()
            try:
                raw = await self.world.letters.quorum_get(letter.namespace, letter.name)
            except NotFound:
                self.world.letters.saw_deleted(letter.uid, letter.resource_version)
                continue
            meta = raw["metadata"]
            if (meta["uid"], meta["resourceVersion"]) == (letter.uid, letter.resource_version):
                found.append((letter, raw))
        return found

    async def _delete(self, letter: Letter) -> bool:
        """Remove a letter unless it has changed since it was decided on; return whether it is gone."""
        await self.world.removals.turn()
        where = (DEAD_LETTERS, letter.namespace, letter.name)
        try:
            left = await self.world.client.delete(*where, uid=letter.uid, resource_version=letter.resource_version)
        except NotFound:
            left = None
        except Conflict:
            self._beaten = True
            await learn_letter(self.world.letters, letter)
            return False
        if left is not None:
            self.world.letters.saw(left)
            return False
        self.world.letters.saw_deleted(letter.uid, letter.resource_version)
        return True

    def _removed(self, why: str) -> None:
        self.metrics.reliability.letters_removed.labels(*self.key, why).inc()

    def _tell_removed(self, gone: Sequence[Letter], late: set[str], instead: str) -> None:
        trimmed: Counter[str] = Counter()
        for letter in gone:
            self._removed(instead or ("expired" if letter.uid in late else "trimmed"))
            if letter.uid not in late:
                trimmed[letter.queue_from] += 1
        for name, count in trimmed.items():
            log.warning(f"[!] [dlq] Trimmed {count} oldest entries from {REDIS_NAME}{name}", queue=str(self))
        if len(gone) > trimmed.total():
            log.info("dead_letters_expired", queue=str(self), count=len(gone) - trimmed.total())

    # --- redrives -------------------------------------------------------------------------------------------------

    async def _redrive(self, letters: Sequence[Letter], now: datetime) -> bool:
        """Try letters again whose turn it is; return whether more of them wait for their turn only."""
        there = {letter.uid for letter in letters}
        self._waiting = {uid: wait for uid, wait in self._waiting.items() if uid in there}
        due = [one for one in letters if one.uid not in self._waiting or self._waiting[one.uid][0] <= now]
        for letter in due[: self.settings.letters_per_round]:
            await self.world.removals.turn()
            try:
                answer: Conclude | Later = await redrive(self.world, letter, self.world.now())
            except (Conflict, NotFound) as error:
                log.info("redrive_looks_again", letter=letter.name, error=str(error))
                self._try_later(letter, now, self._waiting.get(letter.uid, (now, ""))[1])
                continue
            except KubeError as error:
                # One letter's trouble, a quota say, keeps no other one waiting.
                answer = Later(f"the API server refuses it: {error}")
            if isinstance(answer, Later):
                await self._later(letter, answer, now)
            else:
                self._waiting.pop(letter.uid, None)
                self.metrics.reliability.redrives.labels(*self.key, answer.phase.value).inc()
        return len(due) > self.settings.letters_per_round

    def _try_later(self, letter: Letter, now: datetime, said: str) -> None:
        self._waiting[letter.uid] = (now + timedelta(seconds=self.settings.stalled_pause_seconds), said)

    async def _later(self, letter: Letter, answer: Later, now: datetime) -> None:
        """Say once on the letter why its redrive has to wait."""
        said = self._waiting.get(letter.uid, (now, ""))[1]
        if said != answer.message:
            log.info("redrive_waits", letter=letter.name, why=answer.message)
            try:
                await write_letter(self.world, letter, {"message": answer.message[:1024]})
                said = answer.message
            except KubeError as error:
                log.info("not_said", letter=letter.name, error=str(error))
        self._try_later(letter, now, said)

    # --- status ---------------------------------------------------------------------------------------------------

    def _measure(self, held: Holdings) -> None:
        reliability = self.metrics.reliability
        sizes = {size.name: size.entries for size in held.queues}
        for name in {queue.value for queue in Queue} | sizes.keys():
            reliability.letters.labels(*self.key, name).set(sizes.get(name, 0))
        oldest = held.oldest_since.timestamp() if held.oldest_since is not None else 0
        reliability.letters_oldest.labels(*self.key).set(oldest)

    async def _write_status(self, held: Holdings) -> datetime | None:
        """Write the status if it differs; return when to come back if a mere change of counts has to wait."""
        entry = self.world.queues.by_uid(self.uid)
        if entry is None or entry.fact is None:
            return None
        queue, now = entry.fact, self.world.now()
        status = queue_status(queue, held, self.shelf.error, now)
        changes = writes.status_changes(queue.status, status)
        if not changes:
            return None
        pause = timedelta(seconds=self.settings.status_pause_seconds)
        if not changes.keys() & URGENT and self._status_at is not None and now < self._status_at + pause:
            return self._status_at + pause
        body = {"metadata": {"uid": queue.uid, "resourceVersion": queue.resource_version}, "status": changes}
        try:
            written = await self.world.client.patch_merge(DEAD_LETTER_QUEUES, *self.key, body, "status")
        except NotFound:
            self.world.queues.saw_deleted(queue.uid, queue.resource_version)
            return None
        except Conflict:
            await self.world.queues.quorum_get(*self.key)
            self._looked = None
            self.wake()
            return None
        self._status_at = now
        self.world.queues.saw(written)
        self._announce(queue, status)
        return None

    def _announce(self, before: QueueObject, after: DeadLetterQueueStatus) -> None:
        """Tell people when letters begin or cease to get into the archive."""
        new = find(after.conditions, ConditionType.ARCHIVING)
        old = find(before.status.conditions, ConditionType.ARCHIVING)
        if new is None or (old is not None and old.status == new.status) or (old is None and new.status == "True"):
            return
        ref = ObjectRef.of(DEAD_LETTER_QUEUES, *self.key, self.uid)
        self.world.events.emit(ref, "Normal" if new.status == "True" else "Warning", new.reason, new.message)
        log.warning("archive", queue=str(self), archiving=new.status, why=new.message)
