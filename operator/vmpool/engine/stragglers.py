"""Machines with our install tag that no PooledVM stands for: taken in as objects, then quarantined and destroyed.

They come from a create that landed after its object had gone (a leader that was paused in the middle). Nothing is
destroyed here: a straggler gets an object with ``spec.adopt``, and from then on it goes the way of every VM.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from vmpool.api import keys
from vmpool.engine.world import World
from vmpool.kube.errors import AlreadyExists, Forbidden, NamespaceTerminating
from vmpool.kube.kinds import POOLEDVMS
from vmpool.kube.resource import Json
from vmpool.plan.lifecycle import Phase
from vmpool.plan.snapshot import VM
from vmpool.providers.base import Machine
from vmpool.telemetry import logs

if TYPE_CHECKING:
    from vmpool.engine.provider import ProviderLoop

log = logs.get(__name__)

STRAGGLER_POOL_UID = "straggler"
"""``spec.poolUid`` of a PooledVM that was made for a straggler: no pool has it, so the sweep carries it to its end."""
UNKNOWN_POOL = "unknown"
NOBODY = "(nobody)"
"""Stands for the machine id of a uid that no object has."""
ADOPTED_PER_LISTING = 10
"""How many are taken in at once: a mass of them is more likely our mistake than theirs."""


class Stragglers:
    """The candidates of one provider, by machine id, with the start of the listing that first showed them."""

    def __init__(self, world: World, loop: ProviderLoop) -> None:
        self._world = world
        self._loop = loop
        self._since: dict[str, datetime] = {}

    async def look(self, machines: Sequence[Machine], began: datetime) -> None:
        """Judge one complete listing: two sightings the grace apart and a quorum list before any is taken in."""
        listed = {machine.id for machine in machines}
        recorded = {found for vm in self._world.vms_of_provider(self._loop.key) for found in (vm.machine_id, vm.adopt)}
        unknown = [m for m in machines if m.id not in recorded and not self._known(m, listed)]
        self._since = {m.id: self._since.get(m.id, began) for m in unknown}
        self._world.metrics.stragglers.labels(*self._loop.key).set(len(unknown))
        grace = timedelta(seconds=self._world.settings.straggler_grace_seconds)
        due = [machine for machine in unknown if began - self._since[machine.id] >= grace]
        if not due or not self._may_act():
            return
        try:
            owners, taken_in = await self._quorum()
        except Forbidden as error:
            log.warning("stragglers_only_reported", provider=str(self._loop), count=len(due), error=str(error))
            return
        for machine in due[:ADOPTED_PER_LISTING]:
            if owners.get(machine.token, NOBODY) in ("", machine.id) or machine.id in taken_in:
                continue
            if machine.tags.get(keys.TAG_CLAIM):
                log.warning("straggler_is_claimed", provider=str(self._loop), machine=machine.id)
                continue
            await self._take_in(machine)

    def _known(self, machine: Machine, listed: Collection[str]) -> bool:
        """Whether an object stands for it; none does for a second machine of one object, made without a token.

        Where the first one is not listed beside it, it may be the same machine under a new id: then it is left alone
        until its object is Completed, for somebody may work on it.
        """
        owner = self._world.vm(machine.token)
        if owner is None:
            return False
        second = owner.machine_id in listed or owner.phase == Phase.COMPLETED
        return owner.machine_id in ("", machine.id) or not second

    def _may_act(self) -> bool:
        return not self._world.doubt()

    async def _quorum(self) -> tuple[dict[str, str], set[str]]:
        """Ask the server itself: machine ids by uid (empty where none is recorded), and machines that are taken in.

        Always in all namespaces: an operator that serves only one may share its install id and its provider with
        objects elsewhere, and must not take their machines for nobody's.
        """
        owners: dict[str, str] = {}
        taken_in: set[str] = set()
        async for page in self._world.client.list_pages(POOLEDVMS, None):
            for item in page.items:
                owners[item["metadata"]["uid"]] = (item.get("status") or {}).get("machineId", "")
                taken_in.add((item["spec"].get("adopt") or {}).get("machineId", ""))
        return owners, taken_in

    async def _take_in(self, machine: Machine) -> None:
        name = f"straggler-{hashlib.sha256(machine.id.encode()).hexdigest()[:16]}"
        namespace, provider = self._loop.key
        body = straggler_body(namespace, name, provider, machine)
        try:
            self._world.vms.saw(await self._world.client.create(POOLEDVMS, namespace, body))
        except (AlreadyExists, NamespaceTerminating) as error:
            log.info("straggler_not_taken_in", machine=machine.id, error=str(error))
            return
        log.warning("straggler_taken_in", provider=str(self._loop), machine=machine.id, vm=name)


def straggler_body(namespace: str, name: str, provider: str, machine: Machine) -> Json:
    """Return the PooledVM that stands for a straggler from now on."""
    pool = machine.tags.get(keys.TAG_POOL, UNKNOWN_POOL)
    return {
        "apiVersion": keys.API_VERSION,
        "kind": POOLEDVMS.kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "finalizers": [keys.FINALIZER_MACHINE],
            "labels": {keys.LABEL_POOL: pool},
        },
        "spec": {
            "pool": pool,
            "poolUid": STRAGGLER_POOL_UID,
            "provider": provider,
            "adopt": {"machineId": machine.id},
        },
    }


def is_straggler(vm: VM) -> bool:
    """Whether a VM was made for a straggler."""
    return vm.pool_uid == STRAGGLER_POOL_UID
