"""Which trials come next: every pair once, then double faults by seed."""

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence

from tests.faults.gate.plan import LIST_KINDS, Fault, Kind, Plan, Point, Trigger
from tests.faults.gate.plan import Action as Acts
from tests.faults.trials.catalogue import FAULTS, Place

Places = Mapping[str, Sequence[Place]]
"""The places of each scenario."""


def singles(scenario: str, places: Sequence[Place]) -> Iterator[Plan]:
    """One plan for each fault at each place; which of its occurrences, the pair's own name decides."""
    for place in places:
        for action in FAULTS[place.sort]:
            name = f"{scenario}|{place.signature}|{action.name}"
            occurrence = zlib.crc32(name.encode()) % place.occurrences + 1
            fault = Fault(trigger=Trigger(signature=place.signature, occurrence=occurrence), action=action)
            if place.sort == "list":
                yield from _second_list(scenario, places, fault, name)
            else:
                yield Plan(scenario=scenario, faults=(fault,))


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


def double(seed: int, places: Places) -> Plan:
    """Two faults, chosen by the seed."""
    dice = random.Random(seed)
    scenario = dice.choice(sorted(places))
    faults = []
    for _ in range(2):
        place = dice.choice([one for one in places[scenario] if one.sort != "list"])
        trigger = Trigger(signature=place.signature, occurrence=dice.randint(1, place.occurrences))
        faults.append(Fault(trigger=trigger, action=dice.choice(FAULTS[place.sort])))
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
