"""The twelve invariants of a trial, each a pure function of what happened; names and numbers are those of reports."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from tests.faults.oracle import bounds, claims, ends, failures, machines
from tests.faults.oracle.facts import Facts, Terms, Violation

Judge = Callable[[Facts, Terms], Iterator[Violation]]

INVARIANTS: Final[Mapping[str, Judge]] = {
    "I1": machines.no_leak,
    "I2": machines.never_two,
    "I3": claims.no_double_checkout,
    "I4": machines.no_premature_destroy,
    "I5": failures.no_lost_failure,
    "I6": bounds.within_bounds,
    "I7": ends.comes_to_rest,
    "I8": machines.finalizers,
    "I9": ends.only_forward,
    "I10": ends.no_secret,
    "I11": ends.bulkhead,
    "I12": ends.lives_explained,
}
"""By the code that its violations carry."""
