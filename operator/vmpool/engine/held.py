"""The VMs that VMClaims have, by the claim's uid, and when each namespace last got one."""

from collections.abc import Iterator, Mapping
from datetime import datetime

from vmpool.kube.mirror import Change, Mirror
from vmpool.plan.snapshot import VM, ClaimRefFacts


class HeldIndex:
    """Follows the mirror of VMs from its making on; make it before that runs.

    A VM stays until its object goes, also when its claim has ended: how it ended has to be written down.
    """

    def __init__(self, vms: Mirror[VM]) -> None:
        self._held: dict[str, dict[str, VM]] = {}
        self._by_vm: dict[str, str] = {}
        """The claim's uid by the VM's: what was known of one that cannot be read any more when it goes."""
        self._refs: dict[str, ClaimRefFacts] = {}
        self._served: dict[str, datetime] = {}
        vms.on_change(self._changed)

    @property
    def served(self) -> Mapping[str, datetime]:
        """When a namespace's claims last got a VM, as far as this process has seen it."""
        return self._served

    def of(self, claim_uid: str) -> tuple[VM, ...]:
        """Return the VMs that carry this uid."""
        return tuple(self._held.get(claim_uid, {}).values())

    def ref(self, claim_uid: str) -> ClaimRefFacts | None:
        """Return the VMClaim of this uid that some VM was bound for; None when no VM carries the uid."""
        return self._refs.get(claim_uid)

    def refs(self) -> Iterator[ClaimRefFacts]:
        """Yield every VMClaim that some VM was bound for, once; do not wait for anything while iterating."""
        return iter(self._refs.values())

    def _changed(self, change: Change[VM]) -> None:
        after = change.new.fact if change.new is not None else None
        # An object that cannot be read any more is no proof of anything: what was known of it stays.
        if change.new is None:
            self._drop(change.entry.uid)
        if after is None or after.claim is None or after.claim.ref is None:
            return
        ref, bound_at = after.claim.ref, after.claim.bound_at
        self._by_vm[after.uid] = ref.uid
        self._held.setdefault(ref.uid, {})[after.uid] = after
        self._refs[ref.uid] = ref
        if bound_at is not None:
            self._served[ref.namespace] = max(bound_at, self._served.get(ref.namespace, bound_at))

    def _drop(self, vm_uid: str) -> None:
        uid = self._by_vm.pop(vm_uid, None)
        if uid is None:
            return
        same = self._held.get(uid, {})
        same.pop(vm_uid, None)
        if not same:
            self._held.pop(uid, None)
            self._refs.pop(uid, None)
