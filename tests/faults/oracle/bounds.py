"""Judge of numbers: no pool ever has more VMs than it may, and never gives up more than it may.

The history is played again, version by version. An operator decides on what it has seen, so a bound is the widest one
of all specs that it may have had in mind: those of the last ``lag`` seconds, and all of them while a plan holds its
watches up.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.faults.oracle.facts import Facts, Json, Terms, Violation, is_live, phase_of, reason_of
from tests.faults.rig.history import Version
from vmpool.api.meta import resolve
from vmpool.plan.snapshot import REPLACED, Reason

MAX_VMS = 1000
DEFAULT_SHARE = "25%"
QUARANTINED = 2
"""What the schema says of a pool that says nothing."""


def within_bounds(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """I6: never more VMs than maxVMs, than are wanted with surge, or in quarantine; no ready one too many given up."""
    scene = Scene(facts, facts.lag(terms))
    for version in facts.history:
        before = scene.vms.get(version.uid)
        scene.apply(version)
        if version.plural != "pooledvms" or version.event == "DELETED":
            continue
        if before is None:
            yield from _grew(scene, version)
        elif phase_of(before) != phase_of(version.object):
            yield from _moved(scene, before, version)
        scene.note_loss(before, version)


@dataclass
class Scene:
    """The objects as they stood at one version of the history, and what led there."""

    facts: Facts
    lag: float
    vms: dict[str, Json] = field(default_factory=dict)
    losses: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """When a pool's VM that could be handed out went in another way than by being replaced, by uid of the pool."""
    _since: dict[str, list[tuple[float, Version]]] = field(default_factory=dict)
    """Each version of a pool or a VMClaim, with the moment in which it was there."""

    def apply(self, version: Version) -> None:
        """Let a version happen."""
        if version.plural in {"vmpools", "vmclaims"}:
            self._since.setdefault(version.uid, []).append((self.facts.when(version.number), version))
        elif version.plural == "pooledvms":
            self.vms.pop(version.uid, None)
            if version.event != "DELETED":
                self.vms[version.uid] = version.object

    def note_loss(self, before: Json | None, version: Version) -> None:
        """Remember that a VM is not there to be handed out any more, if it was no replacement."""
        if before is None or not is_live(before) or is_live(version.object):
            return
        if reason_of(version.object) not in {*REPLACED, Reason.SURPLUS}:
            self.losses[version.object["spec"]["poolUid"]].append(self.facts.when(version.number))

    def minded(self, uid: str, at: float) -> list[Json]:
        """The states of an object that an operator may have had in mind at a moment: the newest of them included."""
        states = self._since.get(uid, [])
        newest = [one.object for _, one in states[-1:]]
        return [one.object for (_, one), (end, _) in pairwise(states) if end > at - self.lag] + newest

    def lost(self, pool: str, at: float) -> int:
        """How many VMs a pool may just have lost without knowing."""
        return sum(when >= at - self.lag for when in self.losses[pool])

    def of(self, pool: str) -> list[Json]:
        """Every VM of a pool."""
        return [one for one in self.vms.values() if one["spec"]["poolUid"] == pool]

    def waiting(self, at: float) -> int:
        """How many VMs the VMClaims ask for that may still wait, from whatever pool."""
        asked = 0
        for uid, states in self._since.items():
            first = states[0][1]
            if first.plural == "vmclaims" and any(phase_of(one) in {"", "Pending"} for one in self.minded(uid, at)):
                asked += sum(int(request.get("count") or 1) for request in first.object["spec"]["requests"])
        return asked


def _wanted(pool: Json) -> int:
    replicas = pool["spec"].get("replicas")
    return int(replicas if replicas is not None else (pool.get("status") or {}).get("desiredReplicas") or 0)


def _share(pool: Json, key: str, *, round_up: bool) -> int:
    amount: Any = (pool["spec"].get("update") or {}).get(key, DEFAULT_SHARE)
    return resolve(amount, _wanted(pool), round_up=round_up)


def _surge(pool: Json) -> int:
    surge = _share(pool, "maxSurge", round_up=True)
    return surge if surge or _share(pool, "maxUnavailable", round_up=False) else 1


def _grew(scene: Scene, version: Version) -> Iterator[Violation]:
    uid = version.object["spec"]["poolUid"]
    at = scene.facts.when(version.number)
    pools = scene.minded(uid, at)
    if not pools:
        return
    vms = scene.of(uid)
    most = max(int(pool["spec"].get("maxVMs") or MAX_VMS) for pool in pools)
    if len(vms) > most:
        yield Violation("I6", version.name, f"its pool has {len(vms)} VMs with it, maxVMs is {most}", version.number)
    live = sum(map(is_live, vms))
    allowed = max(_wanted(pool) + _surge(pool) for pool in pools) + scene.waiting(at)
    if live > allowed:
        what = f"{live} VMs are ready or on their way with it, {allowed} are wanted with surge"
        yield Violation("I6", version.name, what, version.number)


def _moved(scene: Scene, before: Json, version: Version) -> Iterator[Violation]:
    uid = version.object["spec"]["poolUid"]
    at = scene.facts.when(version.number)
    pools = scene.minded(uid, at)
    if not pools:
        return
    phase, reason = phase_of(version.object), reason_of(version.object)
    vms, lost = scene.of(uid), scene.lost(uid, at)
    if phase == "Quarantined":
        most = max(int((pool["spec"].get("limits") or {}).get("quarantined", QUARANTINED)) for pool in pools)
        kept = sum(phase_of(vm) == "Quarantined" for vm in vms)
        if kept > most:
            yield Violation("I6", version.name, f"{kept} VMs are in quarantine, at most {most} may be", version.number)
    if phase != "Completed" or not is_live(before):
        return
    if reason == Reason.SURPLUS:
        left, least = sum(map(is_live, vms)), min(map(_wanted, pools))
        if left + lost < least:
            what = f"it was one too many, they said, and {left} VMs are left of {least} that are wanted"
            yield Violation("I6", version.name, what, version.number)
    elif reason in REPLACED - {Reason.POOL_RESET} and phase_of(before) == "Ready":
        left = sum(is_live(vm) and phase_of(vm) == "Ready" for vm in vms)
        least = min(_wanted(pool) - _share(pool, "maxUnavailable", round_up=False) for pool in pools)
        if left + lost < least:
            what = f"it was replaced ({reason}) and {left} ready VMs are left, {least} have to stay"
            yield Violation("I6", version.name, what, version.number)
