"""What is still there while everything of ours is removed, and why: from objects, without asking anybody."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import yaml

from vmpool.api import keys
from vmpool.kube.kinds import CRDS
from vmpool.kube.resource import Json

OURS: Final = frozenset({keys.FINALIZER_MACHINE, keys.FINALIZER_DRAIN, keys.FINALIZER_IN_USE})
LEASES_MISSED: Final = 2
"""A lease that was not renewed for so many times its duration is nobody's."""
WATCHED: Final = "VMPOOL_WATCH_NAMESPACE"
KEEP: Final = "helm.sh/resource-policy"


class Absence:
    """Whether an operator is gone for good: for ``seconds``, without a break, nobody was seen to work."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def lasts(self, works: bool, now: float) -> bool:
        """Note a look at ``now``, by the monotonic clock; say whether nobody works any more."""
        if works:
            # A lease is nobody's for a moment at each clean stop.
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= self._seconds


@dataclass(frozen=True, slots=True)
class Left:
    """One object that is still there."""

    kind: str
    namespace: str
    name: str
    why: str
    machine: str = ""
    """Of a PooledVM: the machine that its provider has; empty when it has none yet."""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}: {self.why}"


@dataclass(frozen=True, slots=True)
class Remains:
    """Everything of ours that an operator has to let go."""

    claims: tuple[Json, ...] = ()
    pools: tuple[Json, ...] = ()
    vms: tuple[Json, ...] = ()
    providers: tuple[Json, ...] = ()

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return not (self.claims or self.pools or self.vms or self.providers)

    @property
    def taken(self) -> tuple[Json, ...]:
        """The VMs that somebody has."""
        return tuple(vm for vm in self.vms if is_taken(vm))

    @property
    def idle_claims(self) -> tuple[Json, ...]:
        """The VMClaims that have no VM: what holds one ends, and the VM goes, when its VMClaim is deleted."""
        busy = {(vm["spec"]["claim"].get("ref") or {}).get("uid") for vm in self.taken}
        return tuple(claim for claim in self.claims if claim["metadata"]["uid"] not in busy)

    def counted(self) -> str:
        """Return in a few words how many there are of each kind."""
        counts = {
            "VMs": len(self.vms),
            "pools": len(self.pools),
            "claims": len(self.claims),
            "providers": len(self.providers),
        }
        said = [f"{count} {what.removesuffix('s') if count == 1 else what}" for what, count in counts.items() if count]
        return ", ".join(said) or "nothing"

    def reasons(self) -> list[Left]:
        """Return every object with why it is still there: VMs first, for the others wait for them."""
        found = [_vm(vm) for vm in self.vms]
        found += [_left(pool, f"waits for its VMs, {self._of_pool(pool)} of them") for pool in self.pools]
        found += [_left(claim, _claim(claim)) for claim in self.claims]
        return found + [_left(one, _provider(one, self._of_provider(one))) for one in self.providers]

    def holders(self) -> list[Left]:
        """Return every object with the finalizers that hold it, in the order of ``reasons``."""
        things = (*self.vms, *self.pools, *self.claims, *self.providers)
        return [_left(thing, _holders(thing)) for thing in things]

    def _of_pool(self, pool: Json) -> int:
        return sum(vm["spec"].get("poolUid") == pool["metadata"]["uid"] for vm in self.vms)

    def _of_provider(self, provider: Json) -> int:
        where = (provider["metadata"]["namespace"], provider["metadata"]["name"])
        return sum((vm["metadata"]["namespace"], vm["spec"].get("provider")) == where for vm in self.vms)


def is_taken(vm: Mapping[str, Any]) -> bool:
    """Say whether somebody has this VM: its claim has not ended."""
    claim = vm["spec"].get("claim")
    return claim is not None and "releasedAt" not in claim


def is_going(thing: Mapping[str, Any]) -> bool:
    """Say whether an object was deleted, and only its finalizers keep it."""
    return "deletionTimestamp" in thing["metadata"]


def without_ours(finalizers: Iterable[str]) -> list[str]:
    """Return the finalizers that are not ours."""
    return [one for one in finalizers if one not in OURS]


def letting_go(thing: Mapping[str, Any]) -> list[Json]:
    """Return the JSON patch that takes our finalizers off and leaves those of others; empty when none is on it.

    It tests the list that it was made from: one that somebody puts on meanwhile is not dropped, the patch fails.
    """
    meta = thing["metadata"]
    held = list(meta.get("finalizers") or ())
    if (kept := without_ours(held)) == held:
        return []
    path = "/metadata/finalizers"
    return [
        {"op": "test", "path": "/metadata/uid", "value": meta["uid"]},
        {"op": "test", "path": path, "value": held},
        {"op": "replace", "path": path, "value": kept},
    ]


def served_by(deployment: Mapping[str, Any]) -> str | None:
    """Return the one namespace that an operator's Deployment serves; "" is every one, None one that is not written."""
    pod = deployment["spec"]["template"]["spec"]
    told = [one for container in pod["containers"] for one in container.get("env") or () if one["name"] == WATCHED]
    if any("valueFrom" in one for one in told):
        return None
    return next((one["value"] for one in told if one.get("value")), "")


def unkept(manifest: str) -> list[str]:
    """Return the definitions that ``helm uninstall`` would delete, by the manifest that Helm has stored."""
    metas = [each["metadata"] for each in yaml.safe_load_all(manifest) if each and each["kind"] == CRDS.kind]
    return [meta["name"] for meta in metas if (meta.get("annotations") or {}).get(KEEP) != "keep"]


def is_held(lease: Mapping[str, Any], now: datetime) -> bool:
    """Say whether an operator works: it has renewed this lease of late, by the API server's clock ``now``."""
    spec = lease.get("spec") or {}
    if not spec.get("holderIdentity") or not spec.get("renewTime"):
        return False
    lasting = timedelta(seconds=LEASES_MISSED * int(spec.get("leaseDurationSeconds") or 0))
    return now - datetime.fromisoformat(spec["renewTime"]) < lasting


def _left(thing: Json, why: str, machine: str = "") -> Left:
    meta = thing["metadata"]
    return Left(thing["kind"], meta["namespace"], meta["name"], why, machine)


def _vm(vm: Json) -> Left:
    status, machine = vm.get("status") or {}, ""
    if status.get("machineId"):
        machine = f"{vm['spec'].get('provider', '?')}: {status['machineId']}"
    if is_taken(vm):
        claim = vm["spec"]["claim"]
        return _left(vm, f"{claim.get('owner', 'somebody')} has it until {claim.get('expiresAt', '?')}", machine)
    said = " ".join(filter(None, (status.get("reason"), status.get("message"))))
    return _left(vm, f"{status.get('phase', 'Pending')}{f': {said}' if said else ''}", machine)


def _holders(thing: Json) -> str:
    finalizers = thing["metadata"].get("finalizers") or ()
    return f"held by finalizer {', '.join(finalizers)}" if finalizers else "held by nothing, and not deleted yet"


def _claim(claim: Json) -> str:
    status = claim.get("status") or {}
    return str(status.get("message") or status.get("phase") or "nobody has looked at it yet")


def _provider(provider: Json, vms: int) -> str:
    status = provider.get("status") or {}
    said = [f"waits for its machines, {vms} known here" if vms else "waits for the operator"]
    said += [f"its circuit is {status['circuit']}"] if status.get("circuit") not in (None, "", "Closed") else []
    said += [f"last error {status['lastError']}"] if status.get("lastError") else []
    return "; ".join(said)
