"""The stage of every benchmark: a throw-away control plane, a simulated cloud, and eyes on both from outside."""

import asyncio
import base64
import secrets
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families
from tests.clouds import SimCloud, Tenant
from tests.waiting import until

from bench.processes import Gateway, Operator
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane
from vmpool.kube.client import Client
from vmpool.kube.errors import NotFound
from vmpool.kube.kinds import POOLEDVMS, SECRETS, VMCLAIMS, VMPOOLS, VMPROVIDERS
from vmpool.kube.resource import Json, Resource

NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
WRITES = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"})
"""Verbs of ``apiserver_request_total`` that change something."""
READS = frozenset({"GET", "LIST"})
"""Verbs that ask for something once; a watch is told without being asked."""
IMAGE = "sim/bench"
PROVIDER = "cloud"
POOL = "pool"
INSTALL_ID = "bench"


@dataclass(frozen=True)
class Field:
    """One run's own namespace at the API server and tenant at the cloud."""

    namespace: str
    tenant: Tenant


@dataclass
class Rig:
    """What a benchmark may use."""

    plane: ControlPlane
    client: Client
    cloud: SimCloud
    folder: Path
    http: aiohttp.ClientSession
    say: Callable[[str], None]
    exits: AsyncExitStack = field(default_factory=AsyncExitStack)

    # --- setting up ------------------------------------------------------------------------------

    async def field(self) -> Field:
        """Make a namespace and a tenant that nobody has used."""
        name = f"bench-{secrets.token_hex(4)}"
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        await self.client.create(NAMESPACES, None, body)
        return Field(name, self.cloud.tenant())

    async def provider(self, where: Field, **spec: Any) -> None:
        """Make the VMProvider of a field, with its Secret."""
        key = base64.b64encode(where.tenant.key.encode()).decode()
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": PROVIDER}, "data": {"apiKey": key}}
        await self.client.create(SECRETS, where.namespace, secret)
        base = {"type": "simulated", "config": {"endpoint": self.cloud.url}, "secretRef": {"name": PROVIDER}}
        await self.client.create(VMPROVIDERS, where.namespace, thing(VMPROVIDERS, PROVIDER, {**base, **spec}))

    async def pool(self, where: Field, replicas: int, name: str = POOL, **spec: Any) -> Json:
        """Make a VMPool on the field's provider and return it."""
        return await self.client.create(VMPOOLS, where.namespace, pool_body(replicas, name, **spec))

    def operator(self, where: Field, **settings: str) -> Operator:
        """Return an operator, not started, with default settings, that serves one field only."""
        made = Operator(self.plane.kubeconfig, self.folder_for("operator"), **serves(where), **settings)
        self.exits.callback(made.kill)
        return made

    def gateway(self, where: Field, **settings: str) -> Gateway:
        """Return a gateway, not started, with default settings, that serves one field only."""
        made = Gateway(self.plane.kubeconfig, self.folder_for("gateway"), **serves(where), **settings)
        self.exits.callback(made.kill)
        return made

    def folder_for(self, what: str) -> Path:
        """Make a folder that nobody has used."""
        folder = self.folder / f"{what}-{secrets.token_hex(3)}"
        folder.mkdir()
        return folder

    async def provider_ready(self, where: Field, deadline: float = 30.0) -> None:
        """Wait until the operator has said that the provider is Ready."""

        async def ready() -> bool:
            raw = await self.client.get(VMPROVIDERS, where.namespace, PROVIDER)
            conditions = raw.get("status", {}).get("conditions", ())
            return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

        await until(ready, deadline=deadline, what="the provider is Ready")

    async def clear(self, where: Field) -> None:
        """Remove a field's objects past every finalizer: leftovers would slow later runs down. Nobody may serve it."""
        limit = asyncio.Semaphore(16)

        async def drop(resource: Resource, raw: Json) -> None:
            meta = raw["metadata"]
            async with limit:
                if meta.get("finalizers"):
                    gone = [{"op": "remove", "path": "/metadata/finalizers"}]
                    await self.client.patch_json(resource, where.namespace, meta["name"], gone)
                with suppress(NotFound):
                    await self.client.delete(resource, where.namespace, meta["name"], uid=meta["uid"])

        # Owners last: the garbage collector would race for what they own.
        for resource in (VMCLAIMS, POOLEDVMS, VMPROVIDERS, VMPOOLS):
            async for page in self.client.list_pages(resource, where.namespace):
                await asyncio.gather(*(drop(resource, item) for item in page.items))

    def access(self, where: Field) -> dict[str, str]:
        """Return what a floor needs to reach a field."""
        return {
            "kubeconfig": str(self.plane.kubeconfig),
            "endpoint": self.cloud.url,
            "key": where.tenant.key,
            "namespace": where.namespace,
        }

    # --- looking ---------------------------------------------------------------------------------

    async def writes(self) -> dict[str, float]:
        """Return how often the API server was asked to change something, by ``resource[/subresource]``."""
        return await self.requests(WRITES)

    async def requests(self, verbs: Collection[str]) -> dict[str, float]:
        """Return how often the API server was asked with these verbs, by ``resource[/subresource]``."""
        async with self.http.get(f"{self.plane.url}/metrics") as answer:
            text = await answer.text()
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "apiserver_request_total" and sample.labels["verb"] in verbs:
                    parts = (sample.labels["resource"], sample.labels["subresource"])
                    name = "/".join(part for part in parts if part)
                    found[name] = found.get(name, 0.0) + sample.value
        return found

    @staticmethod
    def cpu_seconds(pid: int) -> float:
        """Return the CPU seconds that a process has used, all its threads together; children are not counted."""
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)

    def plane_cpu_seconds(self) -> float:
        """Return the CPU seconds that the control plane has used, all its processes together."""
        return sum(self.cpu_seconds(process.pid) for process in self.plane.home.load().processes.values())

    async def each_ready(self, where: Field) -> AsyncGenerator[int]:
        """Yield how many PooledVMs of a field are Ready, at each change; the same eyes for ours and the floor."""
        ready: set[str] = set()
        page = await self.client.list_page(POOLEDVMS, where.namespace)
        for item in page.items:
            if item["status"]["phase"] == "Ready":
                ready.add(item["metadata"]["uid"])
        yield len(ready)
        events = self.client.watch(
            POOLEDVMS,
            where.namespace,
            page.resource_version,
            timedelta(minutes=30),
            timedelta(minutes=5),
            field_selector="status.phase=Ready",
        )
        async for kind, obj in events:
            if kind in ("ADDED", "MODIFIED"):
                ready.add(obj["metadata"]["uid"])
                yield len(ready)
            elif kind == "DELETED":
                ready.discard(obj["metadata"]["uid"])
                yield len(ready)


def serves(where: Field) -> dict[str, str]:
    """Return the settings of a process that serves one field only."""
    only = {"VMPOOL_WATCH_NAMESPACE": where.namespace, "VMPOOL_NAMESPACE": where.namespace}
    return {**only, "VMPOOL_INSTALL_ID": INSTALL_ID}


def since(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return what was added between two readings of counters; what did not change is left out."""
    changed = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return {name: value for name, value in changed.items() if value}


def thing(resource: Resource, name: str, spec: Json) -> Json:
    """Return the body of an object of ours."""
    return {"apiVersion": keys.API_VERSION, "kind": resource.kind, "metadata": {"name": name}, "spec": spec}


def pool_body(replicas: int, name: str = POOL, **spec: Any) -> Json:
    """Return the body of a pool on the field's provider."""
    base = {"template": {"image": IMAGE}, "providers": [{"name": PROVIDER}], "maxVMs": max(1000, replicas)}
    return thing(VMPOOLS, name, {"replicas": replicas, **base, **spec})


@asynccontextmanager
async def raised(plane: ControlPlane, cloud: SimCloud, folder: Path, say: Callable[[str], None]) -> AsyncIterator[Rig]:
    """Yield a rig on a control plane and a cloud that run."""
    tls = ssl.create_default_context(cafile=str(plane.ca))
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(await Client.from_kubeconfig(plane.kubeconfig))
        http = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls), headers={"Authorization": f"Bearer {plane.token}"}
            )
        )
        rig = Rig(plane, client, cloud, folder, http, say)
        await stack.enter_async_context(rig.exits)
        yield rig
