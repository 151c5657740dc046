"""One verdict on one trial: everything that it broke."""

from tests.faults.oracle.facts import Facts, Terms, Violation
from tests.faults.oracle.invariants import INVARIANTS
from tests.faults.oracle.lint import RULES
from tests.faults.rig.trial import Evidence

STRICT = Terms()


def judge(evidence: Evidence, terms: Terms = STRICT) -> list[Violation]:
    """Return every violation, invariant by invariant, then rule by rule; empty: all promises were kept."""
    facts = Facts(evidence)
    judges = (*INVARIANTS.values(), *RULES.values())
    return [violation for one in judges for violation in one(facts, terms)]
