"""What every plan of the queue keeps to, whatever state the queue is in."""

from collections import Counter
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.queues import Server, a_pool
from tests.unit.plan.worlds import NOW, PLANS
from vmpool.plan.claims import plan_claims
from vmpool.plan.demand import claim_size
from vmpool.plan.queue import Bind, EndHeld, Extend, SetStatus


@st.composite
def worlds(draw: st.DrawFn) -> Server:
    """A server with some claims in any state that the queue itself brings about."""
    alias = "any"
    server = Server({name: a_pool(name, aliases=[alias], maxVMs=draw(st.integers(1, 6))) for name in ("web", "big")})
    one = st.one_of(
        st.fixed_dictionaries({"pool": st.sampled_from(("web", "big", "nope")), "count": st.integers(1, 4)}),
        st.fixed_dictionaries({"alias": st.just(alias), "count": st.integers(1, 5)}),
    )
    for _ in range(draw(st.integers(1, 3))):
        for requests in draw(st.lists(st.lists(one, min_size=1, max_size=3), max_size=4)):
            server.make(requests=requests, priority=draw(st.integers(-1, 1)))
        for name, count in draw(st.dictionaries(st.sampled_from(("web", "big")), st.integers(0, 4))).items():
            for _ in range(count):
                server.ready(name)
        if draw(st.booleans()):
            server.writes_left = draw(st.integers(0, 5))
            server.round()
            server.writes_left = None
    return server


@PLANS
@given(server=worlds(), room=st.integers(0, 5))
def test_a_plan_hands_out_what_there_is_once_and_keeps_its_bounds(server: Server, room: int) -> None:
    plan = plan_claims(server.snapshot(room=room), NOW)
    assert len(plan.actions) <= room
    used: Counter[str] = Counter()
    keys = [action.claim.uid for action in plan.actions]
    assert len(keys) == len(set(keys)), "one effect a claim"
    several: Counter[str] = Counter()
    for action in plan.actions:
        if isinstance(action, Bind):
            used.update(pool.uid for _, pool in action.places)
            slots = [slot for slot, _ in action.places]
            assert len(slots) == len(set(slots))
            begun = bool(server.held(action.claim.uid))
            assert begun or len(slots) == claim_size(action.claim), "all or nothing"
            if claim_size(action.claim) > 1 and not begun:
                several.update({pool.uid for _, pool in action.places})
    for pool in server.pools.values():
        assert used[pool.uid] <= len(server.free(pool))
        assert several[pool.uid] <= 1


@PLANS
@given(server=worlds())
def test_a_world_that_has_settled_stays_settled(server: Server) -> None:
    for _ in range(30):
        if not server.round().actions:
            break
    server.now += timedelta(minutes=1)
    assert server.round().actions == ()
    # A process that starts anew knows nothing but what is written.
    server.notes.clear()
    again = server.round()
    assert not any(isinstance(action, SetStatus | Bind | EndHeld | Extend) for action in again.actions)
