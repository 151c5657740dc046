"""Judges of failures: none is lost, none is told twice."""

from collections import defaultdict
from collections.abc import Iterator

from tests.faults.oracle.facts import Facts, Json, Object, Terms, Violation, attempt_of, claim_of, phase_of, reason_of
from vmpool.engine.letters import REFUSED_CODES
from vmpool.plan.lifecycle import Phase
from vmpool.plan.snapshot import PLANNED, Reason
from vmpool.plan.vm import ENDED_MACHINE_GONE

REFUSALS = REFUSED_CODES | {403}
"""Answers after which a letter is told in another way; 403 for a namespace that is going."""


def no_lost_failure(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """I5: each VM that failed is written down before the write that ended it, once for each attempt and queue.

    Where the pool names a queue, in a DeadLetter; else, or when the server refuses that for good, among the pool's
    recent failures.
    """
    letters = facts.of("deadletters")
    for vm in facts.of("pooledvms"):
        for number, attempt in failures_of(vm):
            yield from _written_down(facts, letters, vm, attempt, number)
    told: defaultdict[tuple[str, int, str], set[str]] = defaultdict(set)
    for letter in letters:
        spec = letter.last["spec"]
        if spec["vmUid"] not in facts.objects:
            # Somebody else wrote it, of a VM that was never here.
            continue
        told[spec["vmUid"], int(spec.get("attempt") or 1), spec["queueFrom"]].add(letter.uid)
    for (uid, attempt, queue), uids in told.items():
        if len(uids) > 1:
            yield Violation("I5", uid, f"{len(uids)} letters tell of attempt {attempt} in queue {queue}")


def failures_of(vm: Object) -> Iterator[tuple[int, int]]:
    """The numbers of the writes that ended it because it failed, with the attempt that it was at."""
    for before, after in vm.pairs():
        old, new = before.object, after.object
        left = phase_of(old) in {Phase.PENDING, Phase.READY} and phase_of(old) != phase_of(new)
        bad = phase_of(new) in {Phase.QUARANTINED, Phase.COMPLETED} and reason_of(new) not in PLANNED
        # A machine that is kept for a human failed, whatever its reason is called; a straggler is only put there.
        kept = phase_of(new) == Phase.QUARANTINED and reason_of(new) != Reason.STRAGGLER
        lost = claim_of(new).get("endReason") == ENDED_MACHINE_GONE != claim_of(old).get("endReason")
        if (left and (bad or kept)) or lost:
            yield after.number, attempt_of(old)


def _written_down(facts: Facts, letters: list[Object], vm: Object, attempt: int, number: int) -> Iterator[Violation]:
    pool = facts.objects.get(vm.last["spec"]["poolUid"])
    if pool is None or pool.gone < number:
        return
    mine = [
        letter
        for letter in letters
        if letter.last["spec"]["vmUid"] == vm.uid and int(letter.last["spec"].get("attempt") or 1) == attempt
    ]
    if any(letter.versions[0].number < number for letter in mine):
        return
    if mine:
        yield Violation("I5", vm.name, f"it ended before its letter {mine[0].name} was written", number)
        return
    if _has_queue(pool, number) and not _refused(facts, vm.name, attempt):
        yield Violation("I5", vm.name, f"it failed in attempt {attempt}, and there is no letter", number)
        return
    before = [version for version in pool.versions if version.number < number]
    after = [version for version in pool.versions if version.number >= number]
    if any(_remembers(version.object, vm.name, attempt) for version in before):
        return
    # What the server refuses for good is logged, and written with the pool's next status.
    if not (_status_refused(facts, vm.name) and any(_remembers(one.object, vm.name, attempt) for one in after)):
        yield Violation("I5", vm.name, f"it failed in attempt {attempt}, and its pool did not write it down", number)


def _has_queue(pool: Object, number: int) -> bool:
    """Whether a pool names a queue through all of what an operator may have had in mind at that moment."""
    named = [bool(v.object["spec"].get("deadLetterQueue")) for v in pool.versions if v.number < number]
    return bool(named) and all(named)


def _refused(facts: Facts, vm: str, attempt: int) -> bool:
    """Whether the server, or who stands before it, would not have the letter, and the log has it whole."""
    for entry in facts.writes("deadletters", "create"):
        spec = (entry.body or {}).get("spec") or {}
        # What a plan answers in the server's place stands in the trace by the name of its action.
        planned = any(f"answer-{code}" in entry.fault for code in REFUSALS)
        if spec.get("vm") == vm and int(spec.get("attempt") or 1) == attempt and (entry.status in REFUSALS or planned):
            return "dead_letter_refused" in facts.evidence.log
    return False


def _status_refused(facts: Facts, vm: str) -> bool:
    """Whether the server, or who stands before it, would not have a pool's status for good, and the log has it."""
    for entry in facts.writes("vmpools", "patch"):
        planned = any(f"answer-{code}-before" in entry.fault for code in REFUSED_CODES)
        # A finalizer's patch is a list of steps.
        body = entry.body if isinstance(entry.body, dict) else {}
        recent = (body.get("status") or {}).get("recentFailures") or ()
        if any(one["vm"] == vm for one in recent) and (entry.status in REFUSED_CODES or planned):
            return "failure_record_refused" in facts.evidence.log
    return False


def _remembers(pool: Json, vm: str, attempt: int) -> bool:
    recent = (pool.get("status") or {}).get("recentFailures") or ()
    return any(one["vm"] == vm and int(one.get("attempt") or 1) == attempt for one in recent)
