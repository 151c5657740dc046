"""Decide when to look at a machine again: often where news is near, seldom where it is not.

What is routine falls on a common grid, so that a thousand VMs cost a pool a few rounds a minute and not a thousand.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

LOOK_FIRST: Final = timedelta(milliseconds=150)
"""Shortest pause between two looks at a machine that is changing, while nobody knows how long that takes."""
LOOK_LONGEST: Final = timedelta(seconds=5)
"""Longest such pause: what fails early is noticed early."""
LOOK_SHARE: Final = 0.2
"""The pause grows with the time already waited, or with how late it is: this share at most is added by looking."""
FINE_FIRST: Final = timedelta(milliseconds=30)
"""Shortest pause around the time at which the machine should be done."""
FINE_SHARE: Final = 0.04
"""Of the expected time, the pause around it."""
EARLY: Final = 0.97
"""Of the quickest of its kind is expected, so that a provider that has become quicker is found out."""
REMEMBERED: Final = 200
"""Durations of one kind that are remembered: more than are begun together, so that one slow wave is not the rule."""
CROWD: Final = timedelta(microseconds=1250)
"""For each machine that is changing, the grid on which looks fall grows by so much: those of a crowd come together."""
TICKS: Final = 12
"""Into so many ticks the interval of a routine is cut."""


def expected_duration(last: Sequence[timedelta]) -> timedelta | None:
    """Return when to begin to look closely, from how long the last ones took; None without any."""
    return min(last) * EARLY if last else None


def look_pause(waited: timedelta, expected: timedelta | None = None) -> timedelta:
    """Return the pause between two looks at a machine that has been changing for ``waited``."""
    if expected is not None:
        if waited < expected:
            return min(max(expected - waited, FINE_FIRST), LOOK_LONGEST)
        late = (waited - expected) * LOOK_SHARE
        return min(max(FINE_FIRST, expected * FINE_SHARE, late), LOOK_LONGEST)
    return min(max(LOOK_FIRST, waited * LOOK_SHARE), LOOK_LONGEST)


def look_grid(changing: int) -> timedelta:
    """Return the grid for the looks of a pool of which ``changing`` machines are on their way."""
    return min(CROWD * changing, LOOK_LONGEST)


def on_grid(due: datetime, grid: timedelta) -> datetime:
    """Return the first moment of the grid that is not before ``due``; a grid of 0 is none."""
    return _EPOCH + -(-(due - _EPOCH) // grid) * grid if grid else due


def tick(interval: timedelta) -> timedelta:
    """Return the grid on which what is due at this interval falls."""
    return interval / TICKS


def next_turn(after: datetime, interval: timedelta, share: float) -> datetime:
    """Return the first turn later than ``after``: one each interval, at the tick of it that ``share`` in [0, 1) names.

    Turns depend on the clock alone: what was begun together, or found together after a restart, is spread.
    """
    offset = tick(interval) * int(share * TICKS)
    return _EPOCH + offset + ((after - _EPOCH - offset) // interval + 1) * interval


def next_tick(after: datetime, interval: timedelta) -> datetime:
    """Return the first moment later than ``after`` that is anybody's turn."""
    return min(next_turn(after, interval, (number + 0.5) / TICKS) for number in range(TICKS))


_EPOCH: Final = datetime.fromtimestamp(0, UTC)
