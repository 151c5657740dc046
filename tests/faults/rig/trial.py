"""One trial from its first object to its verdict: a scenario, a plan, a namespace and a tenant of its own."""

import asyncio
import itertools
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from tests.api import Api
from tests.clouds import SimCloud
from tests.crash.site import Site
from tests.faults.gate.client import GatedTrial
from tests.faults.gate.plan import Plan
from tests.faults.rig.account import Account
from tests.faults.rig.history import KINDS, Recorder, Version
from tests.faults.rig.inside import ArmingSite, Inside
from tests.faults.rig.nursery import Nursery
from tests.faults.rig.replica import Replica
from tests.operators import FAST
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane

SETTINGS = {
    **FAST,
    # As in life: on a busy machine a short lease is lost for want of a processor. Nobody waits for it here.
    "VMPOOL_LEASE_SECONDS": "15",
    "VMPOOL_LEASE_RENEW_SECONDS": "10",
    "VMPOOL_LEASE_RETRY_SECONDS": "2",
    # An event that is lost for good is found by the next list.
    "VMPOOL_RELIST_SECONDS": "15",
    "VMPOOL_STRAGGLER_GRACE_SECONDS": "1",
    "VMPOOL_STRAGGLER_TTL_SECONDS": "0",
    "VMPOOL_PURGE_LOOK_SECONDS": "0.3",
    "VMPOOL_PURGE_START_SECONDS": "2",
    "VMPOOL_ERROR_PAUSE_SECONDS": "0.1",
    "VMPOOL_ERROR_PAUSE_LONGEST_SECONDS": "1",
    "VMPOOL_CLAIM_RETRY_SECONDS": "0.3",
}
"""Short pauses; none of them changes what is decided."""
CONVERGE_SECONDS = 60.0
"""From the last fault to the scenario's end."""
SCENARIO_SECONDS = 90.0
QUIET_SECONDS = 3.0
"""Without an effective write: then nothing more is to come, on a machine that is busy with a dozen trials too."""
QUIET_DEADLINE = 45.0
"""Long beside what it bounds: a process that has died begins anew, on a machine that runs a dozen trials."""
QUIET_LOOK_SECONDS = 0.25
LEASES = "/apis/coordination.k8s.io/v1"


@dataclass(frozen=True)
class Scenario:
    """What users do, and what it has to come to."""

    name: str
    run: Callable[[Site], Awaitable[None]]
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """All that a verdict rests on."""

    plan: Plan
    history: list[Version]
    machines: list[dict[str, Any]]
    """Every machine that the tenant ever had, as the ledger tells it."""
    leaked: list[dict[str, Any]]
    """Disks and nics without a machine."""
    trace: list[dict[str, Any]]
    events: list[tuple[float, str, str, int]]
    """When, from where, what, and which one of these: of watches, and of sub-steps that the cloud has done."""
    failure: str
    """Why the scenario did not come to its end; empty: it did."""
    seconds: float
    converged_after: float
    """Seconds from the last fault to the scenario's end."""
    lives: int
    met: bool
    """Whether everything of the plan came."""
    log: str
    install_id: str
    began_at: float = 0.0
    """When the trace begins, in Unix seconds: the ledger's times lie on that clock."""
    ended: float = 0.0
    """When the scenario came to its end, in seconds of the trace."""
    looked: float = 0.0
    """When the trace was taken: nothing was said after that, in seconds of the trace."""
    canaries: tuple[str, ...] = ()
    """Secrets that nobody may ever write down."""


@dataclass
class Rig:
    """What serves many trials."""

    plane: ControlPlane
    api: Api
    cloud: SimCloud
    gate: aiohttp.ClientSession
    nursery: Nursery
    recorder: Recorder
    folder: Path
    account: Account
    """The operator's."""
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def trial(self, scenario: Scenario, plan: Plan) -> Evidence:
        """Run a scenario under a plan and gather what happened; leaves nothing behind but the tenant's ledger."""
        name = f"f-{next(self._numbers)}"
        folder = self.folder / name
        folder.mkdir()
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        (await self.api.call("POST", "/api/v1/namespaces", body)).ok()
        gated = GatedTrial(self.gate, name)
        await self.account.admit(self.api, name)
        await gated.begin(plan.at_gate, {"api": self.plane.url, "cloud": self.cloud.url}, ["a"])
        tenant = self.cloud.tenant()
        inside = Inside(plan, self.cloud, tenant, gated)
        site = ArmingSite(
            self.api,
            name,
            self.cloud,
            tenant,
            endpoint=gated.url("a", "cloud"),
            arm=inside.build,
            patient=inside.needs_patience,
            shown=partial(self._shown, name),
        )
        replica = inside.replica = self._replica(gated, site, folder, scenario)
        began, failure = time.monotonic(), ""
        try:
            await replica.start()
            await inside.before()
            async with asyncio.timeout(SCENARIO_SECONDS):
                await scenario.run(site)
        except (AssertionError, TimeoutError) as error:
            failure = str(error) or f"not done after {SCENARIO_SECONDS:g} s"
        if (dead := replica.failed()) is not None:
            failure = f"{failure}; {dead}".strip("; ")
        seconds = time.monotonic() - began
        ended = (await gated.state())["now"]
        if not failure:
            failure = await self._quiet(gated, replica, site.namespace)
        await replica.stop(signal.SIGKILL)
        await inside.close()
        return await self._evidence(inside, site, gated, replica, (failure, seconds, ended))

    def _replica(self, gated: GatedTrial, site: Site, folder: Path, scenario: Scenario) -> Replica:
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(self.account.kubeconfig.replace(self.plane.url, gated.url("a", "api")))

        async def died() -> None:
            # Who leads next need not wait: these trials are about writes, not about the lease.
            await self.api.kind("leases", site.namespace, api=LEASES).delete(keys.LEASE_NAME)

        settings = {
            **SETTINGS,
            **scenario.settings,
            "VMPOOL_KUBECONFIG": str(kubeconfig),
            "VMPOOL_WATCH_NAMESPACE": site.namespace,
            "VMPOOL_NAMESPACE": site.namespace,
        }
        return Replica("a", self.nursery, folder / "operator.log", settings, gated.runs, died)

    async def _quiet(self, gated: GatedTrial, replica: Replica, namespace: str) -> str:
        """Wait until nothing is written, or broken, any more; return what is wrong if that does not come."""
        writes, since, end = -1, 0.0, time.monotonic() + QUIET_DEADLINE
        while time.monotonic() < end:
            state = await gated.state()
            if state["writes"] != writes or state["inHand"] or not self._at_rest(replica, namespace):
                writes, since = state["writes"], time.monotonic()
            if time.monotonic() - since >= QUIET_SECONDS:
                return ""
            await asyncio.sleep(QUIET_LOOK_SECONDS)
        return f"still at work {QUIET_DEADLINE:g} s after its end"

    def _at_rest(self, replica: Replica, namespace: str) -> bool:
        """Whether a process leads that could still do something, and nothing is on its way in or out."""
        return replica.leads and not any(map(_moves, self.recorder.latest(namespace)))

    async def _evidence(
        self, inside: Inside, site: Site, gated: GatedTrial, replica: Replica, came_to: tuple[str, float, float]
    ) -> Evidence:
        failure, seconds, ended = came_to
        told = await gated.trace()
        await gated.end()
        history = await self.recorder.of(site.namespace)
        ledger = await asyncio.to_thread(partial(self.cloud.ledger, tenant=site.tenant.name))
        maps = await self.api.kind("configmaps", site.namespace, api="/api/v1").get(keys.IDENTITY_CONFIGMAP)
        began_at = told["beganAt"]
        came = [at for at in (told["metAt"], inside.came_at and inside.came_at - began_at) if at is not None]
        evidence = Evidence(
            plan=inside.plan,
            history=history,
            machines=ledger["machines"],
            leaked=ledger["leaked"],
            trace=sorted((*told["trace"], *inside.entries(began_at)), key=lambda entry: float(entry["at"])),
            events=[*(tuple(event) for event in told["events"]), *inside.events(began_at)],
            failure=failure,
            seconds=seconds,
            converged_after=ended - max(came) if came else 0.0,
            lives=replica.lives,
            met=told["met"] and inside.met(told["trace"], began_at),
            log=replica.log.read_text() if replica.log.exists() else "",
            install_id=maps.body.get("data", {}).get("installId", ""),
            began_at=began_at,
            ended=ended,
            looked=told["now"],
            canaries=(site.tenant.key,),
        )
        await self._clear(site.namespace)
        self.recorder.forget(site.namespace)
        await asyncio.to_thread(self._mend, site)
        return evidence

    def _mend(self, site: Site) -> None:
        """Take away what still breaks the tenant's calls: each request of every other trial would look at it."""
        for rule in self.cloud.faults():
            if rule["match"].get("tenant") == site.tenant.name:
                site.mend(rule["id"])

    def _shown(self, namespace: str) -> list[dict[str, Any]]:
        return [dict(one.object) for one in self.recorder.latest(namespace) if one.plural == "pooledvms"]

    async def _clear(self, namespace: str) -> None:
        """Remove every object of ours, whatever holds it: nobody does it for us here.

        The empty namespace stays. To have the server empty it costs more than all the trial before: a list and a
        deletion of every kind that there is.
        """
        for plural in KINDS:
            if not self.recorder.there(namespace, plural):
                continue
            objects = self.api.kind(plural, namespace)
            await self.api.call("DELETE", objects.path)
            for item in (await objects.list()).ok()["items"]:
                if item["metadata"].get("finalizers"):
                    await objects.merge(item["metadata"]["name"], {"metadata": {"finalizers": None}})
            await until(partial(_empty, objects), what=f"no {plural} are left")
        await self.api.call("DELETE", f"/api/v1/namespaces/{namespace}/secrets")
        await self.api.kind("leases", namespace, api=LEASES).delete(keys.LEASE_NAME)
        await self.account.dismiss(self.api, namespace)


def _moves(version: Version) -> bool:
    """Whether an object is on its way: a VM that will be ready, or is given up, and whatever is deleted."""
    phase = (version.object.get("status") or {}).get("phase") if version.plural == "pooledvms" else None
    return phase in {"Pending", "Completed"} or bool(version.object["metadata"].get("deletionTimestamp"))


async def _empty(objects: Any) -> bool:
    return not (await objects.list()).ok()["items"]
