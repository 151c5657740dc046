"""Write dead letters: with what can still be found out, at a bounded rate, once for each failure."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from vmpool.api import keys
from vmpool.api.deadletter import MAX_DIAGNOSTICS, DeadLetterSpec, Diagnostics
from vmpool.api.pool import Failure
from vmpool.engine.pace import Pace
from vmpool.engine.world import Key, Refusal, World
from vmpool.kube.errors import AlreadyExists, Conflict, KubeError, NamespaceTerminating, NotFound, OutcomeUnknown
from vmpool.kube.kinds import DEAD_LETTERS
from vmpool.kube.resource import Json
from vmpool.plan.letters import attempts_of, fingerprint, letter_name, queue_of, shortened
from vmpool.plan.policies import Queue
from vmpool.plan.snapshot import VM, PoolFacts, Sight
from vmpool.telemetry import logs

log = logs.get(__name__)

REFUSED_CODES = frozenset({404, 405, 413, 422})
"""The server will never take this record: the kind is not there, the record is too large, or it is invalid."""
UNKNOWN_TRIES = 3
"""How often a letter without an answer is sent again before the failure is handled anew."""


def is_for_good(error: KubeError) -> bool:
    """Whether the server will never take this record of a failure; missing rights and quotas may pass."""
    return error.status in REFUSED_CODES or isinstance(error, NamespaceTerminating)


def has_letter(world: World, vm: VM, queue: Queue) -> bool:
    """Whether a letter of this VM's present attempt is known to be there."""
    names = (letter_name(vm, queue, apart=apart) for apart in (False, True))
    found = (world.letters.by_name(vm.namespace, name) for name in names)
    return any(one is not None and one.fact is not None and one.fact.vm_uid == vm.uid for one in found)


@dataclass(frozen=True, slots=True)
class _Hold:
    """Until when a pool's letters are left alone, and why."""

    until: float
    """On the monotonic clock."""
    pause: float
    why: str


class Letters:
    """The one way to a new DeadLetter. Bounded: so many at once, and so many a second."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._turns = asyncio.Semaphore(world.settings.letters_in_flight)
        self._pace = Pace(world.settings.letters_per_second)
        self._reading: Counter[Key] = Counter()
        """Consoles that are being read, by provider."""
        self._held: dict[str, _Hold] = {}
        """Pools whose letters the server does not take for now, by uid."""

    async def write(self, pool: PoolFacts, vm: VM, failure: Failure) -> Refusal | bool:
        """Write the letter of a failure into the pool's queue; False: it was there already, and is the same one.

        Returns why when the server refuses it for good: then the failure is logged whole and counted, and the work
        goes on. Raises Conflict when the VM is not any more what it was (somebody has it, say), and another KubeError
        when the server does not take the letter now: then nothing may end yet.
        """
        assert pool.spec.dead_letter_queue is not None, "only a pool that names a queue has letters"
        hold = self._held.get(pool.uid)
        if hold is not None and time.monotonic() < hold.until:
            # Another error each time: one that is raised again and again grows by its own traceback.
            raise KubeError(f"letters of the pool wait after: {hold.why}")
        # Before its turn: a provider that is slow to show consoles must not keep the others' letters waiting.
        found = await self._diagnostics(vm)
        async with self._turns:
            # A thousand failures at once must not flood the API server.
            await self._pace.turn()
            self._still(vm)
            body = letter(pool, vm, failure, found)
            try:
                new = await self._create(vm, body)
            except KubeError as error:
                if is_for_good(error):
                    return self._refused(body, error)
                self._hold(pool, error)
                raise
        self._held.pop(pool.uid, None)
        if new:
            self._tell(pool, body)
        return new

    def _still(self, vm: VM) -> None:
        """Raise Conflict when the VM has moved on while its letter waited."""
        now = self._world.vm(vm.uid)
        same = now is not None and (now.phase, now.claimed, now.attempt) == (vm.phase, vm.claimed, vm.attempt)
        if not same:
            raise Conflict(f"PooledVM {vm.name} has moved on")

    def _hold(self, pool: PoolFacts, error: KubeError) -> None:
        """Leave a pool's letters alone for a growing time: a quota of one namespace must not use up the rate of all."""
        settings, before = self._world.settings, self._held.get(pool.uid)
        pause = settings.error_pause_seconds if before is None else before.pause * 2
        pause = min(pause, settings.error_pause_longest_seconds)
        self._held[pool.uid] = _Hold(time.monotonic() + pause, pause, str(error))

    async def _create(self, vm: VM, body: Json) -> bool:
        meta, sent = body["metadata"], False
        for _ in range(UNKNOWN_TRIES):
            try:
                self._world.letters.saw(await self._world.client.create(DEAD_LETTERS, meta["namespace"], body))
                return True
            except AlreadyExists:
                if await self._is_of(vm, meta["name"]):
                    # After a try without an answer it is that one.
                    return sent
                meta["name"] = letter_name(vm, Queue(body["spec"]["queueFrom"]), apart=True)
            except OutcomeUnknown:
                sent = True
        raise KubeError(f"no answer to the creation of DeadLetter {body['metadata']['name']}")

    async def _is_of(self, vm: VM, name: str) -> bool:
        """Whether a letter that is there is of this very VM, and not of an earlier one of its name."""
        try:
            found = await self._world.letters.quorum_get(vm.namespace, name)
        except NotFound:
            # Removed just now: whoever did so has seen it.
            return True
        return bool(found["spec"]["vmUid"] == vm.uid)

    def _tell(self, pool: PoolFacts, body: Json) -> None:
        spec = body["spec"]
        labels = (pool.namespace, spec["queue"], spec["queueFrom"])
        self._world.metrics.reliability.letters_written.labels(*labels).inc()
        log.warning(
            f"[!] [dlq] Moved '{spec['vm']}' from '{spec['queueFrom']}' queue to DLQ: {spec['errorMessage']}",
            pool=f"{pool.namespace}/{pool.name}",
            letter=body["metadata"]["name"],
        )

    def _refused(self, body: Json, error: KubeError) -> Refusal:
        self._world.metrics.lost_letters.inc()
        log.error("dead_letter_refused", error=str(error), letter=body)
        return Refusal(str(error))

    async def _diagnostics(self, vm: VM) -> Diagnostics:
        """Return what is known of the machine, and the end of its console where the provider has one."""
        sight = self._world.sights.of(vm.uid)
        console, missing = await self._console(vm)
        return Diagnostics(
            console=console[-MAX_DIAGNOSTICS // 2 :],
            machine=shortened((f"machine {vm.machine_id}" if vm.machine_id else "", sight.state, sight.message), 1024),
            probe=_probes(sight),
            missing=missing[:1024],
        )

    async def _console(self, vm: VM) -> tuple[str, str]:
        key = (vm.namespace, vm.provider)
        view = self._world.views.get(key)
        if not vm.machine_id or view is None:
            return "", ""
        if self._reading[key] >= self._world.settings.diagnostics_in_flight:
            return "", "the console was not read: too many machines of its provider failed at once"
        self._reading[key] += 1
        try:
            return await view.console(vm.machine_id, timedelta(seconds=self._world.settings.diagnostics_seconds))
        finally:
            self._reading[key] -= 1


def _probes(sight: Sight) -> str:
    if sight.probed_at is None:
        return ""
    how = "answered" if sight.probe_ok else f"not answered, {sight.probe_failures} in a row"
    return f"last probe {sight.probed_at.isoformat(timespec='seconds')}: {how}"


def letter(pool: PoolFacts, vm: VM, failure: Failure, found: Diagnostics) -> Json:
    """Return the body of the DeadLetter of a failure."""
    queue = queue_of(vm, failure.step, failure.error_class)
    print_of = fingerprint(vm, failure.step, failure.error_class, failure.message)
    assert pool.spec.dead_letter_queue is not None, "only a pool that names a queue has letters"
    spec = DeadLetterSpec(
        queue=pool.spec.dead_letter_queue,
        vm=vm.name,
        vm_uid=vm.uid,
        pool=pool.name,
        pool_uid=pool.uid,
        queue_from=queue.value,
        error_class=failure.error_class,
        error_message=failure.message,
        failed_at=failure.failed_at,
        retry_count=vm.retry_count,
        request_id=vm.request_id,
        pool_alias=pool.spec.aliases[0] if pool.spec.aliases else "",
        provider=vm.provider,
        step=failure.step,
        template_digest=vm.digest,
        machine_id=vm.machine_id,
        attempt=vm.attempt,
        attempts=attempts_of(vm, failure),
        fingerprint=print_of,
        diagnostics=found,
    )
    labels: Mapping[str, Any] = {
        keys.LABEL_POOL: pool.name,
        keys.LABEL_QUEUE: queue.value,
        keys.LABEL_DEAD_LETTER_QUEUE: pool.spec.dead_letter_queue,
        keys.LABEL_FINGERPRINT: print_of,
    }
    return {
        "apiVersion": keys.API_VERSION,
        "kind": DEAD_LETTERS.kind,
        "metadata": {"name": letter_name(vm, queue), "namespace": pool.namespace, "labels": labels},
        "spec": spec.wire(),
    }
