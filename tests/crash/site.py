"""One namespace with its tenant at a simulated cloud: what a crash test builds, watches and takes down."""

import base64
from dataclasses import dataclass
from typing import Any

from tests.api import Answer, Api, Json, Objects
from tests.clouds import SimCloud, Tenant
from tests.waiting import until
from vmpool.api import keys

POOL = "web"
PROVIDER = "cloud"
IMAGE, OTHER_IMAGE = "sim/one", "sim/two"
HELD_SECONDS = 0.6
"""How long requests are held up: they land before anybody else can lead."""
DEADLINE = 90.0
"""Seconds for everything that needs a few: the machine may be busy with other things."""


@dataclass(frozen=True)
class Site:
    """The objects of one namespace and the machines of one tenant."""

    api: Api
    namespace: str
    cloud: SimCloud
    tenant: Tenant
    endpoint: str = ""
    """Where the operator finds the cloud; empty: at the cloud's own address."""

    @property
    def vms(self) -> Objects:
        return self.api.kind("pooledvms", self.namespace)

    @property
    def pools(self) -> Objects:
        return self.api.kind("vmpools", self.namespace)

    @property
    def providers(self) -> Objects:
        return self.api.kind("vmproviders", self.namespace)

    # --- building -----------------------------------------------------------------------------------------------

    async def build(self, replicas: int, *, tokens: bool = True, operate: int = 8, **spec: Any) -> None:
        """Make Secret, VMProvider and VMPool; ``spec`` adds to the pool's."""
        secrets = self.api.kind("secrets", self.namespace, api="/api/v1")
        key = base64.b64encode(self.tenant.key.encode()).decode()
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": PROVIDER}, "data": {"apiKey": key}}
        (await secrets.create(body)).ok()
        provider = {
            "type": "simulated",
            "config": {"endpoint": self.endpoint or self.cloud.url, "tokenMode": "Token" if tokens else "None"},
            "secretRef": {"name": PROVIDER},
            "limits": {"operate": operate},
            "circuitBreaker": {"failures": 5, "pause": "1s"},
            "observe": {"interval": "1s"},
        }
        (await self.providers.create(_object("VMProvider", PROVIDER, provider))).ok()
        pool = {
            "replicas": replicas,
            "template": {"image": IMAGE},
            "providers": [{"name": PROVIDER}],
            "retry": {"backoff": "100ms", "maxBackoff": "1s"},
            **spec,
        }
        (await self.pools.create(_object("VMPool", POOL, pool))).ok()

    def fault(self, action: str, operation: str, **fields: Any) -> int:
        """Add a fault rule for this tenant alone; return its id."""
        return self.cloud.fault(action, {"operation": operation, "tenant": self.tenant.name}, **fields)

    def hold_up(self, operation: str, after: int) -> int:
        """Delay every request behind the first ``after`` ones, so that there is time to kill; return the rule's id."""
        return self.fault("slow", operation, seconds=HELD_SECONDS, skip=after)

    def mend(self, rule: int) -> None:
        """Remove a fault rule."""
        status, _ = self.cloud.call("DELETE", f"/v1/faults/{rule}")
        assert status == 204, f"fault rule {rule}: {status}"

    def fired(self, rule: int) -> int:
        """How often a fault rule has come up."""
        return int(next(standing["fired"] for standing in self.cloud.faults() if standing["id"] == rule))

    # --- watching -----------------------------------------------------------------------------------------------

    def alive(self) -> int:
        """How many machines the tenant has now."""
        return len(self.cloud.listed(self.tenant, "limit=1000"))

    def images(self) -> dict[str, int]:
        """How many machines there are of each image."""
        page = self.cloud.call("GET", "/v1/machines?limit=1000", key=self.tenant.key)[1]
        images = [machine["image"] for machine in page["machines"]]
        return {image: images.count(image) for image in set(images)}

    def history(self) -> list[Json]:
        """Every machine that the tenant ever had, as the ledger tells it."""
        return list(self.cloud.ledger(tenant=self.tenant.name)["machines"])

    async def objects(self) -> list[Json]:
        """Every PooledVM."""

        async def served() -> Answer | None:
            answer = await self.vms.list()
            # The server asks for patience while a kind is new, and after its own start.
            return answer if answer.status != 429 else None

        return list((await until(served, deadline=DEADLINE, what="the API server lists VMs")).ok()["items"])

    async def phases(self) -> list[str]:
        """The phase of every PooledVM."""
        return [vm["status"]["phase"] for vm in await self.objects()]

    async def machines(self, least: int) -> None:
        """Wait until so many machines are there; one wait for each, so that the last one is seen at once."""
        for count in range(1, least + 1):
            await until(lambda count=count: self.alive() >= count, deadline=DEADLINE, what=f"{count} machines")

    async def is_full(self, replicas: int, image: str = IMAGE) -> bool:
        """Whether there are exactly so many VMs, all Ready, and so many machines, all made from this image."""
        return await self.phases() == ["Ready"] * replicas and self.images() == {image: replicas}

    async def full(self, replicas: int, image: str = IMAGE) -> None:
        """Wait until ``is_full``."""
        await until(
            lambda: self.is_full(replicas, image),
            deadline=DEADLINE,
            what=f"{replicas} VMs are Ready from {image}, and no others are there",
        )

    # --- taking down --------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Delete the pool; a running operator empties it."""
        (await self.pools.delete(POOL)).ok()

    async def is_empty(self) -> bool:
        """Whether pool and VMs are gone."""
        return (await self.pools.get(POOL)).status == 404 and not await self.objects()

    async def release(self) -> None:
        """Delete the provider; a running operator lets it go."""
        (await self.providers.delete(PROVIDER)).ok()

    async def is_released(self) -> bool:
        """Whether the provider is gone."""
        return (await self.providers.get(PROVIDER)).status == 404

    async def drained(self) -> None:
        """Wait until pool and VMs are gone, then take the provider away too."""
        await until(self.is_empty, deadline=DEADLINE, what="the pool and its VMs are gone")
        await self.release()
        await until(self.is_released, deadline=DEADLINE, what="the provider is gone")


def _object(kind: str, name: str, spec: Json) -> Json:
    return {"apiVersion": keys.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
