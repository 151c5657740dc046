"""Kill -9 between the claim on a VM and the status of the VMClaim: the next life goes on from either side."""

import json
import os
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.api import Api, Json
from tests.clouds import SimCloud
from tests.control_plane.operator.claimant import Claimant
from tests.control_plane.operator.stage import DEADLINE, Stage
from tests.crash.gate import Gate
from tests.operators import Operator
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane

Chosen = Callable[[web.Request, Json], bool]


class Trap(Gate):
    """A gate that kills the operator at a chosen write: before the server hears of it, or before the answer comes."""

    def __init__(self, target: str, session: aiohttp.ClientSession) -> None:
        super().__init__(target, lambda: False, session)
        self._armed: tuple[Chosen, bool] | None = None
        self._victim: Operator | None = None
        self.sprung = False

    def arm(self, victim: Operator, chosen: Chosen, *, before: bool) -> None:
        """Kill this operator at the next write that is chosen."""
        self._victim, self._armed, self.sprung = victim, (chosen, before), False

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        hit = False
        if self._armed is not None and request.method == "PATCH":
            chosen, before = self._armed
            hit = chosen(request, json.loads(body))
            if hit:
                self._armed = None
            if hit and before:
                self._kill()
                return web.Response(status=503)
        response = await super()._pass(request)
        if hit:
            self._kill()
        return response

    def _kill(self) -> None:
        assert self._victim is not None
        os.kill(self._victim.pid, signal.SIGKILL)
        self.sprung = True


def claim_write(request: web.Request, body: Json) -> bool:
    """A write that hands out a VM."""
    return "/pooledvms/" in request.path and "boundAt" in (body.get("spec") or {}).get("claim", {})


def bound_write(request: web.Request, body: Json) -> bool:
    """The write that says Bound."""
    return "/vmclaims/" in request.path and (body.get("status") or {}).get("phase") == "Bound"


@pytest.fixture
async def trap(plane: ControlPlane) -> AsyncIterator[Trap]:
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(plane.ca)), limit=0)
    async with (
        aiohttp.ClientSession(
            connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
        ) as session,
        Trap(plane.url, session) as made,
    ):
        yield made


@pytest.fixture
def behind(plane: ControlPlane, namespace: str, crds_installed: None, tmp_path: Path, trap: Trap) -> Operator:
    """An operator whose way to the API server leads through the trap."""
    detour = tmp_path / "kubeconfig"
    detour.write_text(plane.kubeconfig.read_text().replace(plane.url, trap.url))
    return Operator(detour, tmp_path, VMPOOL_WATCH_NAMESPACE=namespace, VMPOOL_NAMESPACE=namespace)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("chosen", [claim_write, bound_write])
async def test_killed_between_the_two_writes(
    api: Api, namespace: str, simcloud: SimCloud, behind: Operator, trap: Trap, chosen: Chosen, before: bool
) -> None:
    stage = Stage(api, namespace, simcloud)
    claimant = Claimant(stage)
    try:
        behind.start()
        await behind.ready()
        ready = {vm["metadata"]["name"] for vm in await stage.filled(3)}
        trap.arm(behind, chosen, before=before)
        name = await claimant.ask(2)
        await until(lambda: trap.sprung and not behind.running, deadline=DEADLINE, what="the operator is killed")
        behind.kill()
        written = await claimant.status(name)
        if not (chosen is bound_write and not before):
            assert written["phase"] == "Pending"
        leases = api.kind("leases", namespace, api="/apis/coordination.k8s.io/v1")
        await leases.delete(keys.LEASE_NAME)
        behind.start()
        status = await claimant.comes_to(name, "Bound")
        await stage.full(3)
    finally:
        behind.kill()
    uids = {one["uid"] for one in status["vms"]}
    assert [one["slot"] for one in status["vms"]] == [0, 1]
    vms = await stage.vms_of()
    claimed = {vm["metadata"]["uid"] for vm in vms if "claim" in vm["spec"] and "releasedAt" not in vm["spec"]["claim"]}
    assert claimed == uids, "every VM that was handed out is in the status, and no other"
    # One on its way may go: that the claim waits is not written down yet when the operator is killed so early, and the
    # next one takes what was begun for it for too much, until it has looked at the claim.
    gone = {one["name"] for one in stage.history() if one["state"] == "Gone"}
    assert not gone & ready, "no VM that was there was given up"


async def test_a_vm_that_is_bound_for_a_filled_slot_is_given_back(
    api: Api, namespace: str, simcloud: SimCloud, operator: Operator
) -> None:
    stage = Stage(api, namespace, simcloud)
    claimant = Claimant(stage)
    operator.start()
    await operator.ready()
    ready = await stage.filled(2)
    name = await claimant.ask()
    status = await claimant.comes_to(name, "Bound")
    (vm,) = await claimant.vms(name)
    spare = next(one for one in ready if one["metadata"]["uid"] != status["vms"][0]["uid"])
    (await stage.vms.merge(spare["metadata"]["name"], {"spec": {"claim": vm["spec"]["claim"]}})).ok()

    async def surplus() -> bool:
        found = await stage.vms.get(spare["metadata"]["name"])
        return found.status == 404 or found.body["spec"]["claim"].get("endReason") == "Surplus"

    await until(surplus, deadline=DEADLINE, what="the second VM for the slot is given back")
    assert (await claimant.status(name))["vms"] == status["vms"]
    await stage.in_phase(vm["metadata"]["name"], "Claimed")
