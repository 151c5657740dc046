"""The floor: bare clients that make the requests of ours, as fast as they can, and decide nothing.

Run as ``python -m bench.floor <task> <options as JSON>`` by ``bench.processes.Floor``.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

from bench import floor_claim, floor_watch
from bench.rig import INSTALL_ID, POOL, PROVIDER
from vmpool.api.meta import format_time
from vmpool.api.pool import template_digest
from vmpool.engine.effects import machine_request
from vmpool.engine.facts import pool_facts, vm_facts
from vmpool.engine.writes import new_request_id, new_vm, random_suffix
from vmpool.kube.client import Client
from vmpool.kube.kinds import POOLEDVMS, VMPOOLS
from vmpool.plan.actions import CreateVM
from vmpool.plan.snapshot import PoolFacts
from vmpool.providers import registry
from vmpool.providers.base import Machine, MachineState, Provider

REQUESTS = 32
"""Requests in flight, as the operator's default: so many VMs the floor makes at a time where nothing else bounds it."""
CALLS = 20
"""Provider calls in flight, as a provider's default."""
POLL_SECONDS = 0.05
START_SECONDS = 60.0
"""A machine that is this late fails the benchmark."""


class Bare:
    """One namespace at the API server and one tenant at the cloud, with nothing in between."""

    def __init__(self, client: Client, provider: Provider, namespace: str) -> None:
        self.client = client
        self.provider = provider
        self.namespace = namespace
        self._calls = asyncio.Semaphore(CALLS)

    async def pool(self, name: str = POOL) -> PoolFacts:
        """Return the pool whose VMs are made."""
        return pool_facts(await self.client.get(VMPOOLS, self.namespace, name))

    async def make(self, pool: PoolFacts, machine_seconds: float) -> None:
        """Make one VM as the operator does: intent, machine, id, Ready. Two writes for a machine that runs at once."""
        request = CreateVM(PROVIDER, "", 0)
        prefix = f"{pool.name}-"
        body = new_vm(
            pool, template_digest(pool.spec.template), f"{prefix}{random_suffix()}", new_request_id(), request
        )
        vm = vm_facts(await self.client.create(POOLEDVMS, self.namespace, body))
        began = now()
        async with self._calls:
            machine = await self.provider.ensure(machine_request(vm, pool.spec.template, _tags(vm.uid)))
        created = {"name": "create", "startedAt": began, "finishedAt": now()}
        status: dict[str, Any] = {"machineId": machine.id, "steps": [created]}
        if machine.state is MachineState.RUNNING:
            await self._status(vm.name, {**status, **_ready(machine)})
            return
        await self._status(vm.name, status)
        asked = time.monotonic()
        await asyncio.sleep(machine_seconds)
        while (machine := await self.provider.get(machine.id)).state is not MachineState.RUNNING:
            assert time.monotonic() < asked + START_SECONDS + machine_seconds, "the machine does not start"
            await asyncio.sleep(POLL_SECONDS)
        booted = {"name": "boot", "startedAt": created["finishedAt"], "finishedAt": now()}
        await self._status(vm.name, {**_ready(machine), "steps": [created, booted]})

    async def _status(self, name: str, status: Mapping[str, Any]) -> None:
        await self.client.patch_merge(POOLEDVMS, self.namespace, name, {"status": status}, "status")


async def fill(bare: Bare, options: Mapping[str, Any], go: Callable[[], Awaitable[None]]) -> Mapping[str, float]:
    """Make ``count`` VMs, ``pending`` of them at a time."""
    pool = await bare.pool(options.get("pool", POOL))
    await go()
    began = time.monotonic()
    left = iter(range(options["count"]))

    async def worker() -> None:
        for _ in left:
            await bare.make(pool, options["machine_seconds"])

    await asyncio.gather(*(worker() for _ in range(options["pending"])))
    return {"fill_seconds": time.monotonic() - began, "cpu_seconds": time.process_time()}


TASKS = {"fill": fill, **floor_claim.TASKS, **floor_watch.TASKS}


def _tags(uid: str) -> dict[str, str]:
    return {"vmpool-install": INSTALL_ID, "vmpool-uid": uid, "vmpool-pool": POOL}


def _ready(machine: Machine) -> dict[str, Any]:
    at = now()
    return {"phase": "Ready", "phaseSince": at, "readyAt": at, "addresses": list(machine.addresses)}


def now() -> str:
    """Return the present as our objects carry it."""
    return format_time(datetime.now(UTC))


async def _run(task: str, options: Mapping[str, Any]) -> None:
    async def go() -> None:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(await Client.from_kubeconfig(options["kubeconfig"]))
        config = {"endpoint": options["endpoint"]}
        provider = registry.open_provider("simulated", config, {"apiKey": options["key"]}, INSTALL_ID)
        stack.push_async_callback(provider.close)
        figures = await TASKS[task](Bare(client, provider, options["namespace"]), options, go)
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], json.loads(sys.argv[2])))
