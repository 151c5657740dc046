"""Judges of claims: a VM is handed out once, to one, and never again."""

from collections import defaultdict
from collections.abc import Iterator

from tests.faults.oracle.facts import Facts, Json, Object, Terms, Violation, claim_of, phase_of
from vmpool.plan.lifecycle import SUCCESSORS, Phase

FIXED = ("id", "owner", "boundAt")


def no_double_checkout(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """I3: a PooledVM's claim is nobody's, then one's, then over; and each slot of a VMClaim has one VM."""
    for vm in facts.of("pooledvms"):
        yield from _one_claim(vm)
        yield from _one_way(vm)
    yield from _one_vm_for_each_slot(facts)
    yield from _told_once(facts)


def _one_claim(vm: Object) -> Iterator[Violation]:
    first = vm.versions[0]
    if claim_of(first.object):
        yield Violation("I3", vm.name, "it was born with a claim", first.number)
    for before, after in vm.pairs():
        old, new = claim_of(before.object), claim_of(after.object)
        if not old and new and phase_of(before.object) != Phase.READY:
            yield Violation("I3", vm.name, f"it was claimed while {phase_of(before.object)}", after.number)
        if not old and new.get("releasedAt"):
            yield Violation("I3", vm.name, "its claim was over when it began", after.number)
        if old and not new:
            yield Violation("I3", vm.name, f"its claim {old['id']} was taken off again", after.number)
        elif old and any(old.get(key) != new.get(key) for key in FIXED):
            yield Violation("I3", vm.name, f"its claim {old['id']} became {new['id']}", after.number)
        elif old.get("releasedAt") and old != new:
            yield Violation("I3", vm.name, f"its claim {old['id']} changed after its end", after.number)


def _one_way(vm: Object) -> Iterator[Violation]:
    """Every step of its life is a legal one; with a claim there is only Claimed, and Completed after its end."""
    for before, after in vm.pairs():
        was, became = phase_of(before.object), phase_of(after.object)
        if was == became:
            continue
        if became not in SUCCESSORS.get(Phase(was), ()):
            yield Violation("I3", vm.name, f"it went from {was} to {became}", after.number)
        claim = claim_of(after.object)
        ended = became == Phase.COMPLETED and claim.get("releasedAt")
        if claim and became != Phase.CLAIMED and not ended:
            yield Violation("I3", vm.name, f"claim {claim['id']} has it, and it became {became}", after.number)


def _one_vm_for_each_slot(facts: Facts) -> Iterator[Violation]:
    """At the end a claim has at most one VM in each slot; a surplus one was ended."""
    holders: defaultdict[tuple[str, int], list[Object]] = defaultdict(list)
    for vm in facts.of("pooledvms"):
        claim = claim_of(vm.last)
        if vm.exists and claim and not claim.get("releasedAt"):
            holders[claim["id"], claim.get("slot") or 0].append(vm)
    for (claim_id, slot), vms in holders.items():
        if len(vms) > 1 and facts.converged:
            names = ", ".join(vm.name for vm in vms)
            yield Violation("I3", claim_id, f"slot {slot} has several VMs: {names}", vms[-1].versions[-1].number)


def _told_once(facts: Facts) -> Iterator[Violation]:
    """What a VMClaim says it has stays so, is its own, and is told to no other VMClaim."""
    told: dict[str, str] = {}
    for claim in facts.of("vmclaims"):
        slots: dict[int, str] = {}
        for version in claim.versions:
            for vm in _vms(version.object):
                before = slots.setdefault(vm["slot"], vm["uid"])
                if before != vm["uid"]:
                    what = f"slot {vm['slot']} was {before} and became {vm['uid']}"
                    yield Violation("I3", claim.name, what, version.number)
        if len(set(slots.values())) < len(slots):
            yield Violation("I3", claim.name, "the same VM is in two slots", claim.versions[-1].number)
        for slot, uid in slots.items():
            owner = told.setdefault(uid, claim.uid)
            if owner != claim.uid:
                yield Violation("I3", claim.name, f"VM {uid} was told to {owner} too", claim.versions[-1].number)
            held = facts.objects.get(uid)
            if held is None or not any(_is_its(version.object, claim.uid, slot) for version in held.versions):
                yield Violation(
                    "I3", claim.name, f"slot {slot}: VM {uid} never had its claim", claim.versions[-1].number
                )


def _vms(claim: Json) -> list[Json]:
    return list((claim.get("status") or {}).get("vms") or ())


def _is_its(vm: Json, claim_uid: str, slot: int) -> bool:
    claim = claim_of(vm)
    return (claim.get("ref") or {}).get("uid") == claim_uid and claim.get("slot", 0) == slot
