"""The loop that asks the Ready VMs of one pool whether they still answer, and wakes the pool when one does not."""

import asyncio
import errno
import socket
from collections.abc import Iterable, Iterator
from datetime import datetime

from vmpool.engine.loop import Done, Loop
from vmpool.engine.world import World
from vmpool.plan.lifecycle import Phase
from vmpool.plan.looks import next_tick
from vmpool.plan.probes import probes_due
from vmpool.plan.snapshot import VM, PoolFacts


class ProbeLoop(Loop):
    """Probes on a clock of its own: a thousand answers as expected are no reason for the pool to plan."""

    kind = "Probes"

    def __init__(self, world: World, pool: PoolFacts) -> None:
        super().__init__(world.settings, world.metrics)
        self.world = world
        self.uid = pool.uid
        self.name = f"{pool.namespace}/{pool.name}"
        self._since = world.now()

    def __str__(self) -> str:
        return self.name

    async def round(self, now: datetime) -> datetime | None:
        """Probe every VM whose turn it is; return when the next turns are."""
        pool = self.world.pool(self.uid)
        if pool is None:
            raise Done
        readiness = pool.spec.readiness
        if readiness.tcp_socket is None or pool.deleting or pool.spec.paused:
            return None
        if not self.world.doubt():
            vms = self.world.vms_of_pool(self.uid)
            due = probes_due(vms, self.world.sights, self._reachable(vms), readiness, now, self._since)
            await self._probe(due, readiness.tcp_socket.port)
        return next_tick(now, readiness.interval)

    async def closed(self) -> None:
        """Nothing is held."""

    def _reachable(self, vms: Iterable[VM]) -> frozenset[str]:
        names = {(vm.namespace, vm.provider) for vm in vms}
        return frozenset(key[1] for key in names if key in self.world.views and self.world.views[key].facts().reachable)

    async def _probe(self, vms: list[VM], port: int) -> None:
        """Probe with as many workers as probes may be in flight; tell the pool when one was not answered."""
        turns, silent = iter(vms), set[str]()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(vms), self.settings.probes_in_flight)):
                    group.create_task(self._work(turns, port, silent))
        finally:
            if silent:
                self.world.wake_pool(self.uid)

    async def _work(self, turns: Iterator[VM], port: int, silent: set[str]) -> None:
        for vm in turns:
            address = vm.addresses[0]
            if not self._still(vm, address):
                continue
            ok = await probe(self.world, vm, address, port)
            # Claimed, gone or moved in the meantime: then the answer is about nothing that is there.
            if self._still(vm, address):
                self.world.sights.probed(vm.uid, ok=ok, now=self.world.now())
                if not ok:
                    silent.add(vm.uid)

    def _still(self, vm: VM, address: str) -> bool:
        now = self.world.vm(vm.uid)
        return now is not None and now.phase == Phase.READY and now.claim is None and now.addresses[:1] == (address,)


async def probe(world: World, vm: VM, address: str, port: int) -> bool:
    """Say whether a VM answers at this address, within the bound on probes of the whole process."""
    async with world.probes:
        ok = await answers(address, port, world.settings.probe_timeout_seconds)
    world.metrics.probes.labels(vm.namespace, vm.pool, "answered" if ok else "silent").inc()
    return ok


async def answers(address: str, port: int, timeout: float) -> bool:
    """Say whether a TCP connection is accepted in time.

    An IP address, which is what providers give, costs a bare socket: streams and their buffers are for talking, and
    cost four times as much. A name is looked up first.
    """
    family = _family(address)
    if family is None:
        return await _answers_by_name(address, port, timeout)
    try:
        with socket.socket(family) as caller:
            caller.setblocking(False)
            status = caller.connect_ex((address, port))
            if status == errno.EINPROGRESS:
                status = await _outcome(caller, timeout)
    except OSError:
        # Such as a family that this host does not have.
        return False
    return status == 0


def _family(address: str) -> socket.AddressFamily | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, address)
        except (OSError, ValueError):
            continue
        return family
    return None


async def _answers_by_name(name: str, port: int, timeout: float) -> bool:
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(name, port)
    except (OSError, ValueError, TimeoutError):
        return False
    writer.close()
    return True


async def _outcome(caller: socket.socket, timeout: float) -> int:
    """Return the error number with which a connection attempt ended: 0 for none."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[bool] = loop.create_future()

    def end(in_time: bool) -> None:
        if not ended.done():
            ended.set_result(in_time)

    loop.add_writer(caller.fileno(), end, True)
    late = loop.call_later(timeout, end, False)
    try:
        in_time = await ended
    finally:
        late.cancel()
        loop.remove_writer(caller.fileno())
    return caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if in_time else errno.ETIMEDOUT
