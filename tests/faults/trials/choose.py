"""Which trials come next: every pair once, then double faults by seed."""

import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tests.faults.gate.plan import LIST_KINDS, WATCH_KINDS, Fault, Kind, Plan, Point, Trigger
from tests.faults.gate.plan import Action as Acts
from tests.faults.trials.catalogue import FAULTS, Place

Places = Mapping[str, Sequence[Place]]
"""The places of each scenario."""
CREATES = "cloud create machines"
FIRST = frozenset({"write", "cloud", "event"})
SECOND = frozenset({"step", "end"})
"""Sorts of places for double faults: these come second only."""
ALONE = frozenset({"kill-committed"})
"""Faults of sub-steps in which the gate has a part: they do not come second."""
HEALING = frozenset({Kind.KILL, Kind.ERROR})
"""Whatever a process believed wrongly is gone behind these: it begins anew, or lists anew."""


def singles(scenario: str, places: Sequence[Place]) -> Iterator[Plan]:
    """One plan for each fault at each place; which of its occurrences, the pair's own name decides."""
    for place in places:
        for action in FAULTS[place.sort]:
            name = f"{scenario}|{place.signature}|{action.name}"
            occurrence = zlib.crc32(name.encode()) % place.occurrences + 1
            call = _call_of(places) if place.sort == "step" else ""
            trigger = Trigger(signature=place.signature, occurrence=occurrence, call=call)
            fault = Fault(trigger=trigger, action=action)
            if place.sort == "list":
                yield from _second_list(scenario, places, fault, name)
            else:
                yield Plan(scenario=scenario, faults=(fault,))


def _call_of(places: Sequence[Place]) -> str:
    """The call that makes a machine. Raises StopIteration: there are sub-steps of nothing."""
    return next(place.signature for place in places if place.signature.startswith(CREATES))


def _second_list(scenario: str, places: Sequence[Place], fault: Fault, name: str) -> Iterator[Plan]:
    """A list that matters is that of a process which finds something there: the one before was killed at a write."""
    writes = [place for place in places if place.sort == "write"]
    if not writes:
        return
    dice = random.Random(zlib.crc32(name.encode()))
    place = dice.choice(writes)
    trigger = Trigger(signature=place.signature, occurrence=dice.randint(1, place.occurrences))
    death = Fault(trigger=trigger, action=Acts(kind=Kind.KILL, point=Point.COMMITTED))
    later = Trigger(signature=fault.trigger.signature, occurrence=1)
    yield Plan(scenario=scenario, faults=(death, Fault(trigger=later, action=fault.action)))


def pair_of(plan: Plan) -> tuple[str, str, str]:
    """The pair that a plan of ``singles`` stands for."""
    fault = plan.faults[-1]
    return (plan.scenario, fault.trigger.signature, fault.action.name)


def is_single(plan: Plan) -> bool:
    """Whether a plan stands for one pair: alone, or a list's after the death that makes it matter."""
    return (
        len(plan.faults) == 1
        or plan.faults[-1].action.kind in LIST_KINDS
        or (plan.faults[-1].trigger.signature.startswith("list "))
    )


def paired(plans: Iterable[Plan], seed: int) -> list[Plan]:
    """Put two plans of a pair each into one trial, where neither can hide what the other one breaks; the rest alone.

    One trial of two faults proves of both pairs what two trials would, and of the two together something more.
    """
    dice = random.Random(seed)
    waiting: dict[str, list[Plan]] = {}
    made: list[Plan] = []
    shuffled = list(plans)
    dice.shuffle(shuffled)
    for plan in shuffled:
        fits = waiting.setdefault(plan.scenario, [])
        partner = next((one for one in fits if not _hides(one, plan)), None)
        if partner is None:
            fits.append(plan)
            continue
        fits.remove(partner)
        made.append(joined(partner, plan))
    alone = [plan for those in waiting.values() for plan in those]
    dice.shuffle(alone)
    return [*made, *alone]


def joined(one: Plan, other: Plan) -> Plan:
    """Both plans' faults in one trial, in whatever order they come; one of a sub-step stands last."""
    faults = sorted((*one.faults, *other.faults), key=lambda fault: fault.trigger.is_step)
    return Plan(scenario=one.scenario, faults=tuple(faults), together=True)


def parted(plan: Plan) -> tuple[Plan, ...]:
    """The plans of one pair each that ``joined`` put together; those that were in it alone come back as they were."""
    if not plan.together:
        return (plan,)
    return tuple(Plan(scenario=plan.scenario, faults=(fault,)) for fault in plan.faults)


def _hides(one: Plan, other: Plan) -> bool:
    """Whether one of two faults could mend, or keep away, what the other one breaks."""
    faults = (*one.faults, *other.faults)
    if len(faults) > 2 or any(fault.needs_call for fault in faults) or all(fault.trigger.is_step for fault in faults):
        return True
    if faults[0].trigger.signature == faults[1].trigger.signature:
        return True
    kinds = [fault.action.kind for fault in faults]
    if (kinds[0] in HEALING) != (kinds[1] in HEALING):
        return True
    # An event that was lost comes back with the earlier ones of its stream.
    return Kind.REPLAY in kinds and all(kind in WATCH_KINDS for kind in kinds)


def double(seed: int, places: Places) -> Plan:
    """Two faults, chosen by the seed; only the second may be inside the cloud."""
    dice = random.Random(seed)
    scenario = dice.choice(sorted(places))
    faults: list[Fault] = []
    for sorts in (FIRST, FIRST | SECOND):
        place = dice.choice([one for one in places[scenario] if one.sort in sorts])
        inside = place.sort in SECOND
        # From the first fault on the cloud counts anew, and the next one is there for sure.
        occurrence = 1 if inside else dice.randint(1, place.occurrences)
        actions = [one for one in FAULTS[place.sort] if not inside or one.name not in ALONE]
        trigger = Trigger(signature=place.signature, occurrence=occurrence)
        faults.append(Fault(trigger=trigger, action=dice.choice(actions)))
    return Plan(scenario=scenario, seed=seed, faults=tuple(faults))


def stratified(plans: Sequence[Plan], count: int, seed: int) -> list[Plan]:
    """Choose so many plans that every signature has its share: round after round, one of each."""
    dice = random.Random(seed)
    groups: dict[tuple[str, str], list[Plan]] = {}
    for plan in plans:
        scenario, signature, _ = pair_of(plan)
        groups.setdefault((scenario, signature), []).append(plan)
    for group in groups.values():
        dice.shuffle(group)
    order = sorted(groups)
    dice.shuffle(order)
    chosen: list[Plan] = []
    while len(chosen) < count and any(groups.values()):
        chosen += [groups[key].pop() for key in order if groups[key]]
    return chosen[:count]
