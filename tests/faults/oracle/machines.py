"""Judges of machines: none is left over, none is made twice, none is destroyed too early or forgotten too soon."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations

from tests.faults.gate.trial import Entry
from tests.faults.oracle.facts import (
    FAR,
    Facts,
    Machine,
    Object,
    Terms,
    Violation,
    claim_of,
    is_deleting,
    machine_id_of,
    phase_of,
)
from vmpool.api import keys


def no_leak(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """I1: at the end each machine has its PooledVM and each PooledVM its machine, and nothing of a machine is left.

    A straggler that was taken in is known. A scenario that did not come to its end may have a create in flight: then
    the object that it was made for is enough. And no machine is made for an object that never was.
    """
    for machine in facts.machines:
        if facts.made_for(machine) not in facts.objects:
            what = f"it was made for {facts.made_for(machine) or 'nobody'}, which never was"
            yield Violation("I1", machine.id, what, machine.created)
    there = [vm for vm in facts.of("pooledvms") if vm.exists]
    known = {machine_id_of(vm.last) for vm in there}
    uids = {vm.uid for vm in there}
    for machine in facts.machines:
        if not machine.alive or machine.id in known or (not facts.converged and facts.made_for(machine) in uids):
            continue
        yield Violation("I1", machine.id, f"no PooledVM knows this machine, made for {machine.name}", machine.created)
    if facts.converged:
        alive = {machine.id for machine in facts.machines if machine.alive}
        for vm in there:
            if machine_id_of(vm.last) not in alive:
                what = f"it has no machine at the end (recorded: {machine_id_of(vm.last) or 'none'})"
                yield Violation("I1", vm.name, what, vm.versions[-1].number)
    for part in facts.evidence.leaked:
        yield Violation("I1", str(part["machine"]), f"its {part['kind']} is left without it")


def never_two(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """I2: no PooledVM has two machines. Without tokens a second one may be made, and is swept within ``twin_seconds``.

    With tokens not even one after the other: the cloud knows the request again.
    """
    made: defaultdict[str, list[Machine]] = defaultdict(list)
    for machine in facts.machines:
        if facts.made_for(machine):
            made[facts.made_for(machine)].append(machine)
    for uid, machines in made.items():
        for first, second in combinations(sorted(machines, key=lambda machine: machine.created), 2):
            together = min(first.gone, second.gone) - second.created
            if not facts.tokenless:
                yield Violation("I2", uid, f"two machines were made for it: {first.id}, {second.id}", second.created)
            elif together > terms.twin_seconds:
                what = f"{first.id} and {second.id} are its machines together for {_span(together)}"
                yield Violation("I2", uid, what, second.created)


def _span(seconds: float) -> str:
    return "good" if seconds > FAR / 2 else f"{seconds:.1f} s"


def no_premature_destroy(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """I4: no machine is destroyed before a PooledVM that it belongs to was Completed, by the ledger's own times.

    Without tokens the younger twin of a machine may go at once: no object was ever told of it.
    """
    if terms.foreign_deletes:
        return
    for machine in facts.machines:
        if machine.deleted >= FAR or (facts.tokenless and _is_twin(facts, machine)):
            continue
        numbers = [done.number for vm in owners(facts, machine) if (done := vm.first("Completed")) is not None]
        if not numbers:
            yield Violation("I4", machine.id, "it was destroyed and its PooledVM was never Completed", machine.deleted)
        elif facts.clock.earliest(min(numbers)) > machine.deleted:
            yield Violation("I4", machine.id, "it was destroyed before its PooledVM was Completed", machine.deleted)


def owners(facts: Facts, machine: Machine) -> list[Object]:
    """The PooledVMs whose Completed lets a machine go: who recorded it or took it in, or whom it was made for.

    Whom it was made for has no say any more once another machine is recorded there.
    """
    found = list(facts.recorded.get(machine.id, ()))
    maker = facts.objects.get(facts.made_for(machine))
    if maker is not None and machine_id_of(maker.last) in {"", machine.id} and maker not in found:
        found.append(maker)
    return found


def was_completed(facts: Facts, machine_id: str, entry: Entry) -> bool:
    """Whether the request to delete a machine came when a PooledVM of it was Completed for sure.

    Another replica may have heard of it from its watch before the write's own answer was back.
    """
    machine = next((one for one in facts.machines if one.id == machine_id), None)
    candidates = owners(facts, machine) if machine is not None else facts.recorded.get(machine_id, [])
    several = len({one.replica for one in facts.trace}) > 1
    for vm in candidates:
        done = vm.first("Completed")
        if done is None:
            continue
        if facts.clock.latest(done.number) <= entry.asked:
            return True
        if several and facts.clock.earliest(done.number) <= entry.asked:
            return True
    return machine is not None and facts.tokenless and _is_twin(facts, machine)


def _is_twin(facts: Facts, machine: Machine) -> bool:
    """Whether it is the younger one of two that were made for one PooledVM and are there together."""
    uid = facts.made_for(machine)
    return bool(uid) and any(
        other.id != machine.id
        and facts.made_for(other) == uid
        and (other.created, other.id) < (machine.created, machine.id)
        and other.gone > machine.created
        for other in facts.machines
    )


def finalizers(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """I8: our finalizer stays on a PooledVM while its machine is there, and what is being deleted goes in the end."""
    by_id = {machine.id: machine for machine in facts.machines}
    for vm in facts.of("pooledvms"):
        freed = _freed(vm)
        machine = by_id.get(_last_machine(vm))
        if freed is None or machine is None:
            continue
        at = facts.clock.latest(freed)
        if machine.alive or (at < FAR and machine.gone > at):
            what = f"our finalizer went although machine {machine.id} was there"
            yield Violation("I8", vm.name, what, freed)
    if facts.converged:
        yield from _undead(facts, terms)


def _last_machine(vm: Object) -> str:
    return next((found for version in reversed(vm.versions) if (found := machine_id_of(version.object))), "")


def _freed(vm: Object) -> int | None:
    """The number of the version in which our finalizer was not on it any more, or in which it went."""
    for before, after in vm.pairs():
        held, holds = (
            keys.FINALIZER_MACHINE in (one.object["metadata"].get("finalizers") or ()) for one in (before, after)
        )
        if (held and not holds) or after.event == "DELETED":
            return after.number
    return None


def _undead(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """What should have gone. A claim that is not over holds its VM, and that its pool and its provider."""
    there = [one for one in facts.objects.values() if one.exists]
    held = [
        vm
        for vm in there
        if vm.plural == "pooledvms" and phase_of(vm.last) != "Completed" and (claim := claim_of(vm.last))
        if not claim.get("releasedAt")
    ]
    rightly = {vm.uid for vm in held}
    for one in there:
        if not is_deleting(one.last) or one.name in terms.kept or one.uid in rightly:
            continue
        if one.plural == "vmpools" and any(vm.last["spec"]["poolUid"] == one.uid for vm in held):
            continue
        if one.plural == "vmproviders" and any(vm.last["spec"]["provider"] == one.name for vm in held):
            continue
        yield Violation(
            "I8", f"{one.plural}/{one.name}", "it is being deleted, and is not gone", one.versions[-1].number
        )
