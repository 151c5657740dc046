"""Tasks of the floor that watch: the least that keeps stock observed, and the least that answers a deletion."""

import asyncio
import errno
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vmpool.kube.kinds import POOLEDVMS
from vmpool.kube.resource import Json
from vmpool.providers.base import Deletion
from vmpool.providers.errors import MachineNotFound

if TYPE_CHECKING:
    from bench.floor import Bare

LIST_SECONDS = 30
"""Between two listings, as a provider's default."""
PROBE_SECONDS = 60
"""Between two probes of one machine, as a pool's default."""
POLL_SECONDS = 0.02
WATCH = timedelta(minutes=30)
SILENCE = timedelta(minutes=5)

Task = Callable[["Bare", Mapping[str, Any], Callable[[], Awaitable[None]]], Awaitable[Mapping[str, float]]]


async def idle(bare: "Bare", options: Mapping[str, Any], go: Callable[[], Awaitable[None]]) -> Mapping[str, float]:
    """List the machines and connect to ``port`` of each, at the default intervals, for ``seconds`` whole seconds."""
    addresses = [machine.addresses[0] async for machine in bare.provider.machines()]
    await go()
    began, cpu = time.monotonic(), time.process_time()
    listings = connections = 0
    pending: list[socket.socket] = []
    for second in range(options["seconds"]):
        await asyncio.sleep(began + second - time.monotonic())
        # A loopback connection that was begun a second ago is there by now, or never.
        connections += sum(map(_connected, pending))
        pending = [_begun(address, options["port"]) for address in addresses[second % PROBE_SECONDS :: PROBE_SECONDS]]
        if second % LIST_SECONDS == 0:
            listed = [machine async for machine in bare.provider.machines()]
            listings += 1
            assert len(listed) == len(addresses), f"{len(listed)} of {len(addresses)} machines are listed"
    await asyncio.sleep(began + options["seconds"] - time.monotonic())
    connections += sum(map(_connected, pending))
    return {
        "cpu_seconds": time.process_time() - cpu,
        "seconds": time.monotonic() - began,
        "listings": listings,
        "connections": connections,
    }


async def react(bare: "Bare", options: Mapping[str, Any], go: Callable[[], Awaitable[None]]) -> Mapping[str, float]:
    """Answer ``count`` deletions of PooledVMs: delete the machine and make a successor, both at once.

    A machine takes ``delete_seconds`` to go; then its object goes too.
    """
    pool = await bare.pool()
    page = await bare.client.list_page(POOLEDVMS, bare.namespace)
    events = bare.client.watch(POOLEDVMS, bare.namespace, page.resource_version, WATCH, SILENCE)
    await go()
    seen: set[str] = set()
    work: list[asyncio.Task[None]] = []
    async for kind, raw in events:
        if kind != "MODIFIED" or "deletionTimestamp" not in raw["metadata"] or raw["metadata"]["uid"] in seen:
            continue
        seen.add(raw["metadata"]["uid"])
        work.append(asyncio.create_task(_destroy(bare, raw, options["delete_seconds"])))
        work.append(asyncio.create_task(bare.make(pool, 0.0)))
        if len(seen) == options["count"]:
            break
    await asyncio.gather(*work)
    await events.aclose()
    return {"cpu_seconds": time.process_time()}


async def _destroy(bare: "Bare", raw: Json, delete_seconds: float) -> None:
    machine_id = raw["status"]["machineId"]
    if await bare.provider.delete(machine_id) is not Deletion.GONE:
        await asyncio.sleep(delete_seconds)
        # A cloud has no event to wait for.
        while await _is_there(bare, machine_id):  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
    gone = [{"op": "remove", "path": "/metadata/finalizers"}]
    await bare.client.patch_json(POOLEDVMS, bare.namespace, raw["metadata"]["name"], gone)


async def _is_there(bare: "Bare", machine_id: str) -> bool:
    try:
        await bare.provider.get(machine_id)
    except MachineNotFound:
        return False
    return True


def _begun(address: str, port: int) -> socket.socket:
    """Begin to connect, without waiting."""
    made = socket.socket()
    made.setblocking(False)
    code = made.connect_ex((address, port))
    assert code in (0, errno.EINPROGRESS), f"{address}: {errno.errorcode[code]}"
    return made


def _connected(made: socket.socket) -> bool:
    """Close a connection that was begun, and say whether it came about."""
    with made:
        return made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 and _has_peer(made)


def _has_peer(made: socket.socket) -> bool:
    try:
        made.getpeername()
    except OSError:
        return False
    return True


TASKS: Mapping[str, Task] = {"idle": idle, "react": react}
