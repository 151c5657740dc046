"""When to look again: closely where news is near, on a common grid where it is routine."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.worlds import PLANS
from vmpool.plan.looks import (
    EARLY,
    FINE_FIRST,
    FINE_SHARE,
    LOOK_FIRST,
    LOOK_LONGEST,
    LOOK_SHARE,
    TICKS,
    expected_duration,
    look_pause,
    next_turn,
)

SPANS = st.timedeltas(min_value=timedelta(0), max_value=timedelta(hours=1))
DURATIONS = st.timedeltas(min_value=timedelta(milliseconds=10), max_value=timedelta(minutes=30))
INTERVALS = st.timedeltas(min_value=timedelta(seconds=1), max_value=timedelta(hours=1))
MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))  # noqa: DTZ001
SHARES = st.floats(min_value=0.0, max_value=1.0, exclude_max=True)


@PLANS
@given(waited=SPANS)
def test_without_experience_the_pause_grows_with_the_wait(waited: timedelta) -> None:
    assert LOOK_FIRST <= look_pause(waited) <= LOOK_LONGEST
    assert look_pause(waited) <= look_pause(waited + timedelta(seconds=1))


@PLANS
@given(took=DURATIONS, share=st.floats(0.5, 1.5))
def test_what_takes_as_long_as_expected_is_seen_soon_after_it_is_done(took: timedelta, share: float) -> None:
    """Walk through the looks: the first one that finds it done comes at most a fine step late."""
    expected = expected_duration([took * max(1.0, share), took])
    assert expected is not None
    at, looks = timedelta(0), 0
    while at < took:
        at += look_pause(at, expected)
        looks += 1
    assert at - took <= max(FINE_FIRST, expected * FINE_SHARE)
    assert looks <= took / LOOK_LONGEST + 2, "before it should be done hardly anybody looks"


@PLANS
@given(waited=SPANS, expected=DURATIONS)
def test_no_look_is_later_than_the_longest_pause_nor_at_once(waited: timedelta, expected: timedelta) -> None:
    assert FINE_FIRST <= look_pause(waited, expected) <= LOOK_LONGEST


@PLANS
@given(expected=DURATIONS, times=st.floats(1.0, 5.0))
def test_what_is_late_is_looked_at_within_a_share_of_its_lateness(expected: timedelta, times: float) -> None:
    took = expected * times
    at = timedelta(0)
    while at < took:
        at += look_pause(at, expected)
    assert at - took <= max(FINE_FIRST, expected * FINE_SHARE, (took - expected) * LOOK_SHARE)


def test_the_quickest_is_expected_and_a_little_earlier() -> None:
    assert expected_duration([]) is None
    assert expected_duration([timedelta(seconds=9), timedelta(seconds=4)]) == timedelta(seconds=4) * EARLY


@PLANS
@given(after=MOMENTS, interval=INTERVALS, share=SHARES)
def test_turns_come_once_an_interval(after: datetime, interval: timedelta, share: float) -> None:
    turn = next_turn(after, interval, share)
    assert after < turn <= after + interval
    assert next_turn(turn, interval, share) == turn + interval
    assert next_turn(turn - timedelta(microseconds=1), interval, share) == turn


@PLANS
@given(after=MOMENTS, interval=INTERVALS, shares=st.lists(SHARES, min_size=1, max_size=100))
def test_any_number_of_turns_falls_on_few_moments(after: datetime, interval: timedelta, shares: list[float]) -> None:
    """What makes a thousand probes a minute cost a few rounds: there are no more moments than ticks."""
    turns = {next_turn(after, interval, share) for share in shares}
    assert len(turns) <= TICKS
