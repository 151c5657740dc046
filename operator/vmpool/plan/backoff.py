"""When to try again, and how many at once: growing pauses per step, a slow start per pool."""

import hashlib
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from vmpool.api.pool import Creation

JITTER: Final = 0.2
"""Share by which a pause is shortened at most, so that what failed together does not return together."""
MAX_REMEMBERED: Final = 1 << 15
"""How many seeds' fractions are remembered: every round of a large pool asks for the same ones again."""


@lru_cache(maxsize=MAX_REMEMBERED)
def fraction(seed: str) -> float:
    """Return a number in [0, 1) that depends on the seed alone: jitter without randomness."""
    digest = hashlib.blake2s(seed.encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / float(1 << 48)


def pause(failures: int, base: timedelta, longest: timedelta, seed: str) -> timedelta:
    """Return the pause after this many failures in a row: ``base`` doubled each time, within ``longest``, jittered.

    0 failures is no pause. The result lies in ``[0.8 * full, full]``.
    """
    if failures <= 0:
        return timedelta()
    doublings = min(failures - 1, 32)
    full = min(base * (1 << doublings), longest)
    return full * (1.0 - JITTER * fraction(f"{seed}/{failures}"))


def after_failure(
    creation: Creation | None, now: datetime, *, base: timedelta, longest: timedelta, seed: str
) -> Creation:
    """Return the slow start after one more VM failed: one VM at a time, after a growing pause.

    Failures of VMs that were begun together count once while the pause that the first of them caused still runs.
    """
    if creation is not None and creation.failures and now < creation.not_before:
        return creation
    failures = (creation.failures if creation else 0) + 1
    return Creation(window=1, failures=failures, not_before=now + pause(failures, base, longest, seed))


def after_success(creation: Creation | None, full: int) -> Creation | None:
    """Return the slow start after a VM became Ready: twice as many at once, until it is no bound any more."""
    if creation is None or creation.window * 2 >= full:
        return None
    return Creation(window=creation.window * 2, failures=0, not_before=creation.not_before)
