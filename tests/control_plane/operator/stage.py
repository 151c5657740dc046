"""What the operator's tests share: a tenant at the simulated cloud, the objects of one namespace, and how to wait."""

import base64
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.api import Api, Json, Objects
from tests.clouds import SimCloud, Tenant
from tests.objects import thing
from tests.operators import Operator
from tests.planes import Kubectl
from tests.waiting import until

DEADLINE = 60.0
"""Seconds for what takes one or two on an idle machine."""
IMAGE, OTHER_IMAGE = "sim/one", "sim/two"
QUICK_RETRY = {"backoff": "100ms", "maxBackoff": "1s"}


class Stage:
    """One test's names in a namespace that an operator serves, and its own tenant in the cloud."""

    def __init__(self, api: Api, namespace: str, cloud: SimCloud) -> None:
        tag = secrets.token_hex(3)
        self.api = api
        self.namespace = namespace
        self.cloud = cloud
        self.tenant = cloud.tenant()
        self.pool = f"web-{tag}"
        self.provider = f"cloud-{tag}"
        self.pools = api.kind("vmpools", namespace)
        self.vms = api.kind("pooledvms", namespace)
        self.providers = api.kind("vmproviders", namespace)
        self.secrets = api.kind("secrets", namespace, api="/api/v1")

    # --- building -----------------------------------------------------------------------------------------------

    async def put_secret(self, name: str, **data: str) -> None:
        """Make a Secret, or replace what it holds."""
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": encoded}
        (await self.secrets.apply(body, "test")).ok()

    async def put_provider(
        self, name: str = "", *, tenant: Tenant | None = None, secret: str = "", **spec: Any
    ) -> None:
        """Make a VMProvider for a tenant of the cloud, with its Secret unless one is named."""
        name = name or self.provider
        if not secret:
            await self.put_secret(name, apiKey=(tenant or self.tenant).key)
        base = {
            "config": {"endpoint": self.cloud.url},
            "secretRef": {"name": secret or name},
            "circuitBreaker": {"failures": 5, "pause": "1s"},
            "observe": {"interval": "1s"},
        }
        (await self.providers.create(thing("VMProvider", name, {"type": "simulated", **base, **spec}))).ok()

    async def put_pool(self, name: str = "", **spec: Any) -> None:
        """Make a VMPool on the test's provider; ``spec`` adds to what is required."""
        base = {"template": {"image": IMAGE}, "providers": [{"name": self.provider}], "retry": QUICK_RETRY}
        (await self.pools.create(thing("VMPool", name or self.pool, {**base, **spec}))).ok()

    async def change(self, name: str = "", **spec: Any) -> None:
        """Merge into the pool's spec."""
        (await self.pools.merge(name or self.pool, {"spec": spec})).ok()

    async def filled(self, replicas: int, **spec: Any) -> list[Json]:
        """Make provider and pool, wait until the pool is full, and return its VMs."""
        await self.put_provider()
        await self.put_pool(replicas=replicas, **spec)
        return await self.full(replicas)

    def fault(self, action: str, operation: str, **fields: Any) -> int:
        """Add a fault rule for this tenant alone; return its id."""
        return self.cloud.fault(action, {"operation": operation, "tenant": self.tenant.name}, **fields)

    def mend(self, rule: int) -> None:
        """Remove a fault rule."""
        status, _ = self.cloud.call("DELETE", f"/v1/faults/{rule}")
        assert status == 204, f"fault rule {rule}: {status}"

    # --- seeing -------------------------------------------------------------------------------------------------

    async def vms_of(self, pool: str = "", phase: str = "") -> list[Json]:
        """The PooledVMs of a pool, oldest first; all of them, or those in one phase."""
        items = (await self.vms.list(fieldSelector=f"spec.pool={pool or self.pool}")).ok()["items"]
        chosen = [vm for vm in items if phase in ("", vm["status"]["phase"])]
        return sorted(chosen, key=lambda vm: vm["metadata"]["creationTimestamp"])

    async def vm(self, name: str) -> Json:
        """One PooledVM."""
        return (await self.vms.get(name)).ok()

    async def phase(self, name: str) -> str:
        """The phase of a PooledVM; ``Gone`` when there is none."""
        answer = await self.vms.get(name)
        return "Gone" if answer.status == 404 else str(answer.ok()["status"]["phase"])

    async def status(self, pool: str = "") -> Json:
        """The status of a pool."""
        return dict((await self.pools.get(pool or self.pool)).ok()["status"])

    def alive(self, tenant: Tenant | None = None) -> set[str]:
        """Ids of the machines that the tenant has now, whatever faults its requests meet."""
        return {machine["id"] for machine in self.history(tenant) if machine["state"] != "Gone"}

    def history(self, tenant: Tenant | None = None) -> list[Json]:
        """Every machine that the tenant ever had, as the ledger tells it."""
        name = (tenant or self.tenant).name
        return [machine for machine in self.cloud.ledger()["machines"] if machine["tenant"] == name]

    def high_water(self, tenant: Tenant | None = None) -> int:
        """How many machines the tenant had at once at most."""
        marks = self.cloud.ledger(machines=False)["highWater"].get((tenant or self.tenant).name, {})
        return int(marks.get("machines", 0))

    async def events(self, name: str) -> list[Json]:
        """The Kubernetes events about an object."""
        found = self.api.kind("events", self.namespace, api="/api/v1")
        return list((await found.list(fieldSelector=f"involvedObject.name={name}")).ok()["items"])

    # --- waiting ------------------------------------------------------------------------------------------------

    async def full(self, count: int, pool: str = "") -> list[Json]:
        """Wait until the pool has exactly so many unclaimed VMs, all Ready, and none is on its way out; return them."""

        async def settled() -> list[Json] | bool:
            everything = await self.vms_of(pool)
            phases = Counter(vm["status"]["phase"] for vm in everything)
            vms = [vm for vm in everything if vm["status"]["phase"] not in ("Claimed", "Quarantined")]
            if [vm["status"]["phase"] for vm in vms] != ["Ready"] * count:
                return False
            # A status from before a claim says as many Ready as one from after it: the kept ones are counted too.
            status = await self.status(pool)
            kinds = ("ready", "pending", "draining", "claimed", "quarantined")
            counted = [status.get(f"{kind}Replicas", 0) for kind in kinds]
            return counted == [count, 0, 0, phases["Claimed"], phases["Quarantined"]] and (vms or True)

        vms = await until(settled, deadline=DEADLINE, what=f"{count} VMs are Ready and nothing else is going on")
        return vms if isinstance(vms, list) else []

    async def says(self, objects: Objects, name: str, kind: str, status: str, reason: str = "") -> str:
        """Wait until a condition has this status (and reason) for the present generation; return its message."""

        async def said() -> Json | None:
            found = (await objects.get(name)).ok()
            one = condition(found, kind)
            fresh = one.get("observedGeneration") == found["metadata"]["generation"]
            return one if fresh and one["status"] == status and reason in ("", one["reason"]) else None

        what = f"{name} says {kind}={status} {reason}"
        return str((await until(said, deadline=DEADLINE, what=what))["message"])

    async def pool_says(self, kind: str, status: str, reason: str = "", pool: str = "") -> str:
        """``says`` for the pool."""
        return await self.says(self.pools, pool or self.pool, kind, status, reason)

    async def provider_says(self, kind: str, status: str, reason: str = "") -> str:
        """``says`` for the provider."""
        return await self.says(self.providers, self.provider, kind, status, reason)

    async def in_phase(self, name: str, phase: str) -> None:
        """Wait until a PooledVM is in a phase, or ``Gone``."""

        async def there() -> bool:
            return await self.phase(name) == phase

        await until(there, deadline=DEADLINE, what=f"{name} is {phase}")

    async def gone(self, objects: Objects, name: str) -> None:
        """Wait until an object is gone."""

        async def missing() -> bool:
            return (await objects.get(name)).status == 404

        await until(missing, deadline=DEADLINE, what=f"{name} is gone")

    async def looked(self, operator: Operator, count: int = 3) -> None:
        """Wait until the operator has asked the provider so often again who it is or what it has.

        What it would have done on the strength of an earlier answer, it has done or begun by then.
        """

        def asked() -> float:
            calls = {"name": "vmpool_provider_call_seconds_count", "provider": self.provider}
            return sum(metric(operator, **calls, operation=operation) for operation in ("identity", "list"))

        before = asked()
        await until(lambda: asked() >= before + count, deadline=DEADLINE, what=f"{count} more looks at the provider")

    async def version(self) -> str:
        """The present resourceVersion of the namespace's PooledVMs, for ``replay``."""
        return str((await self.vms.list(limit="1")).ok()["metadata"]["resourceVersion"])

    def replay(self, kubectl: Kubectl, version: str) -> Iterator[Json]:
        """Every version of every PooledVM of the pool since then, in order, as the server's watch tells it."""
        lines = kubectl("get", "--raw", f"{self.vms.path}?watch=1&resourceVersion={version}&timeoutSeconds=1")
        for line in lines.splitlines():
            event = json.loads(line)
            if event["object"]["spec"]["pool"] == self.pool:
                yield {**event["object"], "deleted": event["type"] == "DELETED"}


def condition(found: Json, kind: str) -> Json:
    """A condition of an object; an empty one when it is not there."""
    conditions = found.get("status", {}).get("conditions", ())
    return next((one for one in conditions if one["type"] == kind), {"status": "", "reason": "", "message": ""})


def names(vms: Iterable[Json]) -> set[str]:
    """Names of objects."""
    return {vm["metadata"]["name"] for vm in vms}


def machine_ids(vms: Iterable[Json]) -> set[str]:
    """The machines of PooledVMs."""
    return {vm["status"]["machineId"] for vm in vms if "machineId" in vm["status"]}


def phases(vms: Iterable[Json]) -> Counter[str]:
    """How many are in which phase."""
    return Counter(vm["status"]["phase"] for vm in vms)


def metric(operator: Operator, name: str, **labels: str) -> float:
    """The sum of an operator's samples with these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(operator.http("/metrics"))
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
