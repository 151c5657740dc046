"""The floor of starting and of holding: a bare client that reads a field once and decides nothing.

Run as ``python -m bench.floor_read <task> <options as JSON>`` by ``bench.processes.child_figures``. It is a module
apart from ``bench.floor`` and imports nothing of the rig: what it imports is part of what is measured.
"""

import asyncio
import sys
import time
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import orjson

from vmpool.kube.client import Client
from vmpool.kube.kinds import POOLEDVMS
from vmpool.kube.resource import Json
from vmpool.providers.base import Machine, Session
from vmpool.providers.simulated import SECRET_KEY, Config, SimulatedPlugin

PAGE = 500
"""Objects and machines a page, as the operator's default."""


async def cold_start(client: Client, options: Mapping[str, Any]) -> Mapping[str, float]:
    """Read every PooledVM and every machine of a field; ``cpu_seconds`` are those of this process until then."""
    vms = await _vms(client, options)
    machines = await _machines(options)
    assert len(vms) == len(machines) == options["count"], f"{len(vms)} VMs and {len(machines)} machines"
    return {"cpu_seconds": time.process_time()}


async def memory(client: Client, options: Mapping[str, Any]) -> Mapping[str, float]:
    """Hold every PooledVM of a field as it came, decoded; ``rss_kb`` is what is resident then."""
    vms = await _vms(client, options)
    assert len(vms) == options["count"], f"{len(vms)} VMs"
    return {"rss_kb": _resident_kb(), "vms": len(vms)}


TASKS = {"cold_start": cold_start, "memory": memory}


async def _vms(client: Client, options: Mapping[str, Any]) -> list[Json]:
    vms: list[Json] = []
    async with aclosing(client.list_pages(POOLEDVMS, options["namespace"], PAGE)) as pages:
        async for page in pages:
            vms += page.items
    return vms


async def _machines(options: Mapping[str, Any]) -> list[Machine]:
    config = Config(endpoint=options["endpoint"])
    provider = SimulatedPlugin().open(Session(config, {SECRET_KEY: options["key"]}, options["install"]))
    try:
        return [machine async for machine in provider.machines()]
    finally:
        await provider.close()


def _resident_kb() -> float:
    """Read what psutil would, without importing it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return float(line.split()[1])
    raise AssertionError("/proc/self/status has no VmRSS")


async def _run(task: str, options: Mapping[str, Any]) -> None:
    async with await Client.from_kubeconfig(options["kubeconfig"]) as client:
        figures = await TASKS[task](client, options)
    print(orjson.dumps(figures).decode(), flush=True)


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], orjson.loads(sys.argv[2])))
