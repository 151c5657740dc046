"""The loop that asks the Ready VMs of one pool whether they still answer, and wakes the pool when one does not."""

import asyncio
import errno
import socket
from collections.abc import Iterable, Iterator
from datetime import datetime

from vmpool.engine.loop import Done, Loop
from vmpool.engine.world import World
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
        turns = iter(vms)
        workers = min(len(vms), self.settings.probes_in_flight)
        failed = await asyncio.gather(*(self._work(turns, port) for _ in range(workers)))
        if any(failed):
            self.world.wake_pool(self.uid)

    async def _work(self, turns: Iterator[VM], port: int) -> bool:
        failed = False
        for vm in turns:
            failed = not await probe(self.world, vm, vm.addresses[0], port) or failed
        return failed


async def probe(world: World, vm: VM, address: str, port: int) -> bool:
    """Say whether a VM answers, and remember it."""
    async with world.probes:
        ok = await answers(address, port, world.settings.probe_timeout_seconds)
    world.sights.probed(vm.uid, ok=ok, now=world.now())
    world.metrics.probes.labels(vm.namespace, vm.pool, "answered" if ok else "silent").inc()
    return ok


async def answers(address: str, port: int, timeout: float) -> bool:
    """Say whether a TCP connection to an IP address is accepted in time.

    A bare socket: streams and their buffers are for talking, and cost four times as much.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if family == socket.AF_INET and not _is_ipv4(address):
        # Providers promise IP addresses. A name would be looked up while everything else waits.
        return False
    with socket.socket(family) as probe:
        probe.setblocking(False)
        try:
            status = probe.connect_ex((address, port))
        except OSError:
            return False
        if status == errno.EINPROGRESS:
            status = await _outcome(probe, timeout)
    return status == 0


def _is_ipv4(address: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, address)
    except OSError:
        return False
    return True


async def _outcome(probe: socket.socket, timeout: float) -> int:
    """Return the error number with which a connection attempt ended: 0 for none."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[bool] = loop.create_future()

    def end(in_time: bool) -> None:
        if not ended.done():
            ended.set_result(in_time)

    loop.add_writer(probe.fileno(), end, True)
    late = loop.call_later(timeout, end, False)
    try:
        in_time = await ended
    finally:
        late.cancel()
        loop.remove_writer(probe.fileno())
    return probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if in_time else errno.ETIMEDOUT
