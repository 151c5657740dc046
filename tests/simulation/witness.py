"""What must hold at every step, judged by what the API server and the cloud have really done, never by the operator.

The numbers of the promises (design, section 2) stand beside each check.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.simulation.api import Event
from tests.simulation.cloud import MachineModel
from vmpool.api import keys
from vmpool.kube.resource import Json
from vmpool.plan.lifecycle import Phase
from vmpool.plan.snapshot import PLANNED

if TYPE_CHECKING:
    from tests.simulation.run import Site

LETTER_FREE = frozenset({*PLANNED, "ClaimEnded"})
"""Reasons to end a VM that are nobody's failure."""


@dataclass
class Witness:
    """Follows one story."""

    site: "Site"
    made: Counter[str] = field(default_factory=Counter)
    """How many machines were made for each PooledVM uid."""
    owners: dict[str, str] = field(default_factory=dict)
    """The claim id that each PooledVM was given to, by uid."""
    machines: dict[str, str] = field(default_factory=dict)
    """The PooledVM uid that was claimed with each machine, by machine id."""
    letters: set[tuple[str, int]] = field(default_factory=set)
    """Every failure that ever got a letter: uid and attempt of its VM. Letters expire, and are trimmed."""
    proven_at: float = -1.0
    """When the cloud made the last listing that whoever sent the present request had in hand."""
    writer: str = ""
    """Who that is."""
    handed: dict[str, str] = field(default_factory=dict)
    """What the gateway told its users: the claim id by PooledVM uid."""

    def fail(self, what: str) -> None:
        """Note a violation; the story ends with the first."""
        self.site.violated(what)

    # --- the API server ------------------------------------------------------------------------------------------

    def event(self, event: Event) -> None:
        """Judge one change of an object."""
        if event.plural == "pooledvms":
            if event.type == "DELETED":
                self._vm_gone(event.obj)
            else:
                self._vm(event.before, event.obj)
        elif event.plural == "deadletters" and event.type == "ADDED":
            self._letter(event.obj)

    def _vm(self, before: Json | None, after: Json) -> None:
        uid, name = after["metadata"]["uid"], after["metadata"]["name"]
        claim, phase = after["spec"].get("claim"), after["status"]["phase"]
        old_claim = before["spec"].get("claim") if before is not None else None
        old_phase = before["status"]["phase"] if before is not None else Phase.PENDING
        machine = after["status"].get("machineId", "")
        if claim is not None:
            if self.owners.setdefault(uid, claim["id"]) != claim["id"]:
                self.fail(f"P2: {name} is claimed by {claim['id']} after {self.owners[uid]}")
            if old_claim is None and machine and self.machines.setdefault(machine, uid) != uid:
                self.fail(f"P2: machine {machine} is claimed twice, as {name} and as {self.machines[machine]}")
            if phase == Phase.READY and old_phase != Phase.READY:
                self.fail(f"P2: {name} is Ready again after a claim")
            if phase == Phase.COMPLETED and "releasedAt" not in claim:
                self.fail(f"P3: {name} is Completed while it is claimed")
        elif uid in self.owners:
            self.fail(f"P2: the claim of {name} is gone")
        if phase == Phase.COMPLETED and old_phase != Phase.COMPLETED:
            self._completed(after, old_phase)
        if phase == Phase.QUARANTINED and old_phase != Phase.QUARANTINED:
            self._told(after, old_phase)
        if before is None:
            self._bound(after)

    def _bound(self, vm: Json) -> None:
        """P8: never more VMs than ``maxVMs``, as far as one leader alone decides."""
        pool = self.site.api.objects["vmpools"].get((vm["metadata"]["namespace"], vm["spec"]["pool"]))
        if pool is None or pool["metadata"]["uid"] != vm["spec"]["poolUid"] or not self.site.one_leader:
            return
        count = sum(1 for one in self.site.api.all("pooledvms") if one["spec"]["poolUid"] == pool["metadata"]["uid"])
        most = self.site.most_vms(pool["metadata"]["name"]) + self.site.net.late_landings
        if count > most:
            self.fail(f"P8: pool {pool['metadata']['name']} has {count} VMs, at most {most} may be")

    def _completed(self, vm: Json, old_phase: str) -> None:
        if old_phase in (Phase.PENDING, Phase.READY) and vm["spec"].get("claim") is None:
            self._told(vm, old_phase)

    def _told(self, vm: Json, old_phase: str) -> None:
        """P4: a failure is a dead letter before its VM leaves its phase."""
        reason, meta = vm["status"].get("reason", ""), vm["metadata"]
        pool = self.site.api.objects["vmpools"].get((meta["namespace"], vm["spec"]["pool"]))
        if reason in LETTER_FREE or pool is None or pool["metadata"]["uid"] != vm["spec"]["poolUid"]:
            return
        if pool["spec"].get("deadLetterQueue") is None:
            return
        if (meta["uid"], vm["status"].get("attempt", 1)) not in self.letters:
            self.fail(f"P4: {meta['name']} left {old_phase} because of {reason}, without a dead letter")

    def _letter(self, letter: Json) -> None:
        """P4: exactly one letter for a failure; a destruction that does not end may have its own."""
        spec = letter["spec"]
        self.letters.add((spec["vmUid"], spec.get("attempt", 1)))
        same = [
            one["metadata"]["name"]
            for one in self.site.api.all("deadletters")
            if (one["spec"]["vmUid"], one["spec"].get("attempt", 1)) == (spec["vmUid"], spec.get("attempt", 1))
            and one["spec"]["queueFrom"] == spec["queueFrom"]
        ]
        if len(same) > 1:
            self.fail(f"P4: two letters for one failure: {same}")

    def _vm_gone(self, vm: Json) -> None:
        """P1: an object goes only when its machine is gone; one that lands later is a straggler."""
        uid, name = vm["metadata"]["uid"], vm["metadata"]["name"]
        if self.site.story.leaders > 1 and self.site.cloud.script.lag:
            # Two that both lead, by a listing that lags: what one of them records the other may not know when it
            # forgets the object. The machine is a straggler then, and must not be there at the end.
            return
        # Seeds 1774, 725: an id that was never recorded, and listings that lag, leave a straggler for the sweep.
        script = self.site.cloud.script
        recorded = {vm["status"].get("machineId"), (vm["spec"].get("adopt") or {}).get("machineId")} - {None}
        # Seeds 20871, 93139: nor can anybody have seen one that landed late, or was made by another leader, after the
        # listing that proved its absence.
        left = [
            one.id
            for one in self.site.cloud.alive()
            if one.id in recorded or (one.uid == uid and script.tokens and not script.lag and not self._unseen(one))
        ]
        if left:
            self.fail(f"P1: {name} is gone and its machines {left} are not")
        if vm["status"]["phase"] != Phase.COMPLETED:
            self.fail(f"P3: {name} is gone as {vm['status']['phase']}")

    def _unseen(self, machine: MachineModel) -> bool:
        """Whether it came behind the last look of whoever removes its object, and not by that one's own hand."""
        return machine.born > self.proven_at and (machine.late or machine.maker != self.writer)

    # --- the cloud -----------------------------------------------------------------------------------------------

    def made_machine(self, machine: MachineModel) -> None:
        """P1: with tokens a PooledVM never has two machines, and never one before its object."""
        self.made[machine.uid] += 1
        if self.site.cloud.script.tokens and self.made[machine.uid] > 1:
            self.fail(f"P1: a second machine, {machine.id}, is made for {machine.uid}")
        if machine.uid not in self.site.uids:
            self.fail(f"P1: machine {machine.id} is made before the object {machine.uid}")

    def deleting(self, machine: MachineModel) -> None:
        """P3: a machine is destroyed only after the object that stands for it is Completed."""
        for vm in self.site.api.all("pooledvms"):
            recorded = vm["status"].get("machineId")
            adopts = (vm["spec"].get("adopt") or {}).get("machineId")
            stands = machine.id in (recorded, adopts) or (not recorded and vm["metadata"]["uid"] == machine.uid)
            if stands and vm["status"]["phase"] != Phase.COMPLETED and not self._is_second(machine):
                self.fail(f"P3: {machine.id} of {vm['metadata']['name']} is destroyed as {vm['status']['phase']}")
        if keys.TAG_CLAIM in machine.tags and not self._ended(machine.id, machine.tags[keys.TAG_CLAIM]):
            self.fail(f"P3: {machine.id} is destroyed while its claim {machine.tags[keys.TAG_CLAIM]} stands")

    def _is_second(self, machine: MachineModel) -> bool:
        """Whether it is one of several that were made for one object: without tokens the younger ones may go."""
        if self.site.cloud.script.tokens:
            return False
        return any(one.uid == machine.uid and one.id != machine.id for one in self.site.cloud.machines.values())

    def _ended(self, machine_id: str, claim_id: str) -> bool:
        """Whether no VM is held by this claim with this machine: a claim of several VMs may lose one of them."""
        for vm in self.site.api.all("pooledvms"):
            claim = vm["spec"].get("claim") or {}
            if vm["status"].get("machineId") == machine_id and claim.get("id") == claim_id:
                return "releasedAt" in claim
        return True

    # --- users ---------------------------------------------------------------------------------------------------

    def hand_out(self, vm_uid: str, claim_id: str) -> None:
        """P2: the gateway tells a user that a VM is theirs."""
        if self.owners.get(vm_uid) != claim_id:
            self.fail(f"P2: {vm_uid} is handed out for {claim_id}, and the server has {self.owners.get(vm_uid)}")
        if self.handed.setdefault(vm_uid, claim_id) != claim_id:
            self.fail(f"P2: {vm_uid} is handed out twice")

    # --- the end -------------------------------------------------------------------------------------------------

    def unsettled(self) -> str:
        """Return why the wanted state is not reached; empty when it is."""
        api, cloud = self.site.api, self.site.cloud
        vms, living = api.all("pooledvms"), {}
        for pool in api.all("vmpools"):
            meta = pool["metadata"]
            if "deletionTimestamp" in meta:
                return f"pool {meta['name']} is not gone"
            living[meta["uid"]] = pool
        for vm in vms:
            name, phase = vm["metadata"]["name"], vm["status"]["phase"]
            if vm["spec"]["poolUid"] not in living:
                return f"{name} of no pool is {phase}"
            if phase != Phase.READY or vm["spec"].get("claim") is not None or "deletionTimestamp" in vm["metadata"]:
                return f"{name} is {phase}, claimed or being deleted"
        for uid, pool in living.items():
            have = sum(1 for vm in vms if vm["spec"]["poolUid"] == uid)
            if have != pool["spec"]["replicas"]:
                return f"pool {pool['metadata']['name']} has {have} ready VMs of {pool['spec']['replicas']}"
            if pool["status"].get("readyReplicas") != have:
                return f"the status of pool {pool['metadata']['name']} says {pool['status'].get('readyReplicas')} ready"
        alive = {one.id: one.uid for one in cloud.alive()}
        recorded = {vm["status"].get("machineId"): vm["metadata"]["uid"] for vm in vms}
        if alive != recorded:
            return f"machines {alive} and objects {recorded} differ"
        if claims := api.all("vmclaims"):
            return f"VMClaim {claims[0]['metadata']['name']} is {claims[0]['status'].get('phase')}"
        return ""
