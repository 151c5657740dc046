"""Creates in flight: nobody plans with room that is taken."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vmpool.engine.creates import Creates

PLACES = [(pool, ("lab", cloud)) for pool in ("p1", "p2") for cloud in ("east", "west")]


@given(st.lists(st.tuples(st.sampled_from(PLACES), st.booleans())))
def test_what_is_in_flight_is_counted_for_its_pool_and_its_provider(
    steps: list[tuple[tuple[str, tuple[str, str]], bool]],
) -> None:
    creates, flying = Creates(), Counter[tuple[str, tuple[str, str]]]()
    for place, begins in steps:
        if begins:
            creates.begin(*place)
            flying[place] += 1
        elif flying[place]:
            creates.end(*place)
            flying[place] -= 1
        for uid in ("p1", "p2"):
            names = [name for (pool, (_, name)), count in flying.items() if pool == uid for _ in range(count)]
            assert sorted(creates.of_pool(uid)) == sorted(names)
        for key in (("lab", "east"), ("lab", "west")):
            assert creates.of_provider(key) == sum(flying[place] for place in PLACES if place[1] == key)
        assert len(creates) == flying.total()
