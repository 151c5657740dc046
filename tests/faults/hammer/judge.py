"""The verdict on a run: the oracle's invariants on all of history and ledger, and what users were told against both.

U1 two users were told to have one VM. U2 somebody was told to have a VM that the server never gave them. U3 a VM was
taken from its user before they gave it back and before its time was up. U4 a user was told that a VM is not theirs
which is. P1 a process ended in another way than by doubt, or without a word. I10 a secret was written down.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tests.faults.hammer.book import Denial, Hold, Mark
from tests.faults.oracle.ends import CRASHES, DOUBTS
from tests.faults.oracle.facts import FAR, Facts, Json, Machine, Object, Terms, Violation, claim_of, machine_id_of
from tests.faults.oracle.invariants import INVARIANTS
from tests.faults.rig.trial import Evidence
from vmpool.plan.vm import ENDED_MACHINE_GONE

TERMS = Terms(lag_seconds=20.0)
"""A leader that has only just begun decides on what it has listed, and its machine is busy with the killing."""
ASKED: Final = ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9")
"""Of the oracle's invariants: those that do not ask a gate's plan or trace who had to die."""
SKEW_SECONDS = 0.5
"""How much later a moment may be written down than it was: all of it is one machine's clock."""
LAST_WORDS = re.compile(r'"(operator_ends|gateway_ends|watchdog_verdict)"')
TOLD_WHY = re.compile(r'"error": "([^"]*)"')
GROUPS: Final[Mapping[str, frozenset[str]]] = {
    "leaks": frozenset({"I1", "I2", "I8"}),
    "double_checkouts": frozenset({"I3", "U1", "U2", "U4"}),
    "lost_letters": frozenset({"I5"}),
    "premature_destroys": frozenset({"I4", "U3"}),
    "others": frozenset({"I6", "I7", "I9", "I10", "P1"}),
}
"""What the report counts, and which codes it is made of."""


@dataclass(frozen=True)
class Logs:
    """What one process has logged in all its lives, and how often it ended without being killed."""

    name: str
    text: str
    ends: int


def judge(
    evidence: Evidence, holds: Sequence[Hold], denied: Sequence[Denial] = (), terms: Terms = TERMS
) -> list[Violation]:
    """Return every promise that was broken, to the system and to its users."""
    facts = Facts(evidence)
    found = [violation for code in ASKED for violation in INVARIANTS[code](facts, terms)]
    found += intended(facts)
    found += told_to_one(holds, evidence.began_at)
    found += kept_to_users(facts, holds)
    found += not_denied(facts, denied)
    return found


def counted(violations: Sequence[Violation]) -> dict[str, int]:
    """Return how many violations there are of each kind that the report names."""
    codes = Counter(one.code for one in violations)
    return {name: sum(codes[code] for code in those) for name, those in GROUPS.items()}


def intended(facts: Facts) -> Iterator[Violation]:
    """I1: no machine is made before the object that it is for is written."""
    for machine in facts.machines:
        vm = facts.objects.get(facts.made_for(machine))
        if vm is not None and facts.clock.earliest(vm.versions[0].number) > machine.created:
            yield Violation("I1", machine.id, f"it was made before {vm.name} was written", machine.created)


def told_to_one(holds: Sequence[Hold], began_at: float = 0.0) -> Iterator[Violation]:
    """U1: no VM was ever told to two, for who was claimed once is never handed out again."""
    told: defaultdict[str, list[Hold]] = defaultdict(list)
    for hold in holds:
        told[hold.vm].append(hold)
    for vm, those in told.items():
        if len(those) > 1:
            who = ", ".join(f"{one.user} by {one.way}" for one in those)
            yield Violation("U1", vm, f"{len(those)} checkouts were answered with it: {who}", those[1].told - began_at)


def kept_to_users(facts: Facts, holds: Sequence[Hold]) -> Iterator[Violation]:
    """U2 and U3: what was told is true, and stays so until its user gives it back or its time is up."""
    named: defaultdict[str, list[Object]] = defaultdict(list)
    for vm in facts.of("pooledvms"):
        named[vm.name].append(vm)
    machines = {machine.id: machine for machine in facts.machines}
    began_at = facts.evidence.began_at
    for hold in holds:
        mine = [vm for vm in named[hold.vm] if any(_is_theirs(claim_of(one.object), hold) for one in vm.versions)]
        if not mine:
            yield Violation(
                "U2", hold.vm, f"{hold.user} was told by {hold.way} to have it, and never had", hold.told - began_at
            )
            continue
        machine = machines.get(_machine_of(mine[0]))
        yield from _not_taken(facts, hold, mine[0], machine)


def not_denied(facts: Facts, denied: Sequence[Denial]) -> Iterator[Violation]:
    """U4: nobody is told that a VM is not theirs before their claim on it has ended; by what it may end, U3 says."""
    vms = facts.of("pooledvms")
    for denial in denied:
        hold = denial.hold
        claims = (claim_of(one.versions[-1].object) for one in vms if one.name == hold.vm)
        ends = [claim.get("releasedAt") for claim in claims if _is_theirs(claim, hold)]
        if not ends or not ends[0] or unix(ends[0]) > denial.at:
            what = f"{hold.user} has it, and was answered {denial.answer}"
            yield Violation("U4", hold.vm, what, denial.at - facts.evidence.began_at)


def _machine_of(vm: Object) -> str:
    return next((found for one in reversed(vm.versions) if (found := machine_id_of(one.object))), "")


def _is_theirs(claim: Json, hold: Hold) -> bool:
    known = (claim.get("ref") or {}).get("uid") if hold.mark is Mark.REF else claim.get(hold.mark.value)
    return known == hold.value


def _not_taken(facts: Facts, hold: Hold, vm: Object, machine: Machine | None) -> Iterator[Violation]:
    """U3: its claim and its machine last until then, unless the machine is gone by itself."""
    began_at = facts.evidence.began_at
    till = min(hold.until, FAR if hold.given_back is None else hold.given_back) - SKEW_SECONDS
    vanished = machine is not None and machine.ended_by == "vanished"
    claim = next((found for one in reversed(vm.versions) if (found := claim_of(one.object))), {})
    reason, ended = claim.get("endReason"), claim.get("releasedAt")
    if ended and unix(ended) < till and not (vanished and reason == ENDED_MACHINE_GONE):
        what = f"the claim of {hold.user} was ended ({reason}) {till - unix(ended):.1f} s too early"
        yield Violation("U3", vm.name, what, hold.told - began_at)
    if machine is not None and machine.deleted < FAR and machine.deleted + began_at < till and not vanished:
        what = f"its machine was destroyed {till - machine.deleted - began_at:.1f} s before {hold.user} let go of it"
        yield Violation("U3", vm.name, what, hold.told - began_at)


def unix(text: str) -> float:
    """A time of the API in Unix seconds."""
    return datetime.fromisoformat(text).timestamp()


def processes(logs: Sequence[Logs]) -> Iterator[Violation]:
    """P1: whoever is not killed ends on doubt, and says so; no error is left to the interpreter."""
    for one in logs:
        words = [line for line in one.text.splitlines() if LAST_WORDS.search(line)]
        for line in words:
            told = TOLD_WHY.search(line)
            if told is not None and not DOUBTS.search(told[1]):
                yield Violation("P1", one.name, f"it ended with {told[1][:300]}")
        if one.ends > len(words):
            yield Violation("P1", one.name, f"it ended {one.ends} times by itself and told of {len(words)}")
        for line in one.text.splitlines():
            if not line.startswith("{") and any(word in line for word in CRASHES):
                yield Violation("P1", one.name, f"nobody caught: {line[:300]}")


def secrets_kept(logs: Sequence[Logs], secrets: Sequence[bytes], spilled: Sequence[str]) -> Iterator[Violation]:
    """I10: no secret stands in a log, nor, as it was noticed meanwhile, in an object."""
    for where in spilled:
        yield Violation("I10", where, "a secret stands in it")
    for one in logs:
        if any(secret.decode() in one.text for secret in secrets):
            yield Violation("I10", one.name, "a secret stands in its log")
