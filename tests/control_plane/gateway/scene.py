"""Pools and VMs as an operator would have made them, written by the test: no operator runs."""

import asyncio
import secrets
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.api import Api, Json
from tests.objects import LONG_AGO, thing
from tests.waiting import until
from vmpool.api import keys

DOMAIN = "lab.example.com"
IMAGE = "templates/debian-12"
PROVIDER = "sim"
OTHER_PROVIDER = "other"
WRITES_AT_ONCE = 24
DEADLINE = 30.0
HOST = r"[a-z0-9]{8}"


@dataclass(frozen=True)
class Stock:
    """One pool and what it holds."""

    ready: int = 0
    pending: int = 0
    completed: int = 0
    spec: Mapping[str, Any] = field(default_factory=dict)
    """Adds to the pool's spec; ``replicas`` is the number of Ready VMs unless it is given."""


async def together(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Await all, some at once; the results in order."""
    turns = asyncio.Semaphore(WRITES_AT_ONCE)

    async def one(call: Awaitable[Any]) -> Any:
        async with turns:
            return await call

    return await asyncio.gather(*(one(call) for call in calls))


class Scene:
    """Objects with names of their own in one namespace."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self.tag = secrets.token_hex(3)
        self.pools = api.kind("vmpools", namespace)
        self.vms = api.kind("pooledvms", namespace)
        self.claims = api.kind("vmclaims", namespace)
        self.uids: dict[str, str] = {}
        """uid of each pool by its name."""

    def name(self, key: str) -> str:
        """The real name of what a test calls ``key``."""
        return f"{key}-{self.tag}"

    async def pool(self, key: str, stock: Stock) -> str:
        """Make a pool with its VMs and return its name."""
        name = self.name(key)
        spec: Json = {
            "replicas": stock.ready,
            "template": {"image": IMAGE},
            "providers": [{"name": PROVIDER}, {"name": OTHER_PROVIDER, "weight": 0}],
            "hostName": {"domain": DOMAIN},
            **stock.spec,
        }
        made = (await self.pools.create(thing("VMPool", name, spec))).ok()
        self.uids[name] = made["metadata"]["uid"]
        await self.add(name, stock.ready, "Ready")
        await self.add(name, stock.pending, "Pending")
        await self.add(name, stock.completed, "Completed")
        return name

    async def add(self, pool: str, count: int, phase: str = "Ready") -> list[str]:
        """Make VMs of a pool in a phase and return their names."""
        names = [f"{pool}-{secrets.token_hex(4)}" for _ in range(count)]
        await together(self._vm(pool, name, phase, number) for number, name in enumerate(names))
        return names

    async def _vm(self, pool: str, name: str, phase: str, number: int) -> None:
        spec = {
            "pool": pool,
            "poolUid": self.uids[pool],
            "provider": PROVIDER,
            "hostName": f"{name}.{DOMAIN}",
            "requestId": f"request-{number}",
        }
        body = thing("PooledVM", name, spec)
        body["metadata"]["labels"] = {keys.LABEL_POOL: pool}
        (await self.vms.create(body)).ok()
        if phase == "Pending":
            return
        status = {
            "phase": phase,
            "machineId": f"machine-of-{name}",
            "addresses": [f"192.0.2.{number % 250 + 1}"],
            "phaseSince": LONG_AGO,
            **({"readyAt": LONG_AGO} if phase == "Ready" else {}),
        }
        (await self.vms.merge(name, {"status": status}, "status")).ok()

    async def phase(self, vm: str, phase: str) -> None:
        """Write a phase as the operator would."""
        (await self.vms.merge(vm, {"status": {"phase": phase}}, "status")).ok()

    async def vm(self, name: str) -> Json:
        """One PooledVM."""
        return (await self.vms.get(name)).ok()

    async def of(self, pool: str) -> list[Json]:
        """The PooledVMs of a pool."""
        return list((await self.vms.list(fieldSelector=f"spec.pool={pool}")).ok()["items"])

    async def held(self, pool: str) -> list[Json]:
        """Those of them that somebody has."""
        return [vm for vm in await self.of(pool) if is_held(vm)]

    async def gone(self, pools: Iterable[str]) -> None:
        """Delete pools and their VMs."""
        for pool in pools:
            vms = [vm["metadata"]["name"] for vm in await self.of(pool)]
            await together(self.vms.delete(name) for name in vms)
            await self.pools.delete(pool)


def is_held(vm: Json) -> bool:
    """Whether a PooledVM has a claim that has not ended."""
    claim = vm["spec"].get("claim")
    return claim is not None and "releasedAt" not in claim


async def sees(rest: Any, stock: Mapping[str, int]) -> None:
    """Wait until a gateway shows so many ready VMs of these pools."""

    async def shown() -> bool:
        asked = ",".join(stock)
        pools = (await rest.get(f"/poolstat?pool={asked}")).ok()["pools"]
        return {name: pool["ready"] for name, pool in pools.items()} == dict(stock)

    await until(shown, deadline=DEADLINE, what=f"the gateway sees {dict(stock)}")
