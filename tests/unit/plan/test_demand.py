"""What waiting claims lack, by pool."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.queues import a_claim, a_pool, a_vm, hold
from tests.unit.plan.worlds import NOW, PLANS, ago
from vmpool.api.claim import VMClaimStatus
from vmpool.api.conditions import ConditionType, observed
from vmpool.api.pool import VMPoolStatus
from vmpool.plan.demand import by_alias, demand, named_by, room
from vmpool.plan.snapshot import VM, PoolFacts, VMClaim

WAITS = VMClaimStatus(position="1")


def waiting(name: str = "c", count: int = 1, **changes: object) -> VMClaim:
    return a_claim(name, count, **{"status": WAITS, **changes})


def lacked(claims: list[VMClaim], pools: list[PoolFacts], vms: tuple[VM, ...] = ()) -> dict[str, int]:
    """The demand by the pool's name."""
    by_key = {(pool.namespace, pool.name): pool for pool in pools}
    names = {pool.uid: pool.name for pool in pools}

    def bound(uid: str) -> list[VM]:
        return [vm for vm in vms if vm.claim is not None and vm.claim.id == uid]

    return {names[uid]: count for uid, count in demand(claims, by_key, bound).items()}


def test_only_what_the_engine_has_written_as_waiting_counts() -> None:
    claims = [
        waiting("one", 2),
        waiting("two"),
        a_claim("new", 5),
        waiting("bound", 5, status=VMClaimStatus(phase="Bound", position="1")),
        waiting("failed", 5, status=VMClaimStatus(phase="Failed")),
        waiting("going", 5, deleting=True),
        waiting("nowhere", 5, requests=[{"pool": "nope"}]),
    ]
    assert lacked(claims, [a_pool()]) == {"web": 3}
    assert lacked([], [a_pool()]) == {}


def test_what_is_bound_already_is_not_lacked() -> None:
    claim, pool = waiting("c", 3), a_pool()
    ended = a_vm("ended", pool, hold(claim, 1, released_at=NOW, end_reason="Expired"))
    vms = (a_vm("one", pool, hold(claim, 0)), a_vm("again", pool, hold(claim, 0)), ended)
    assert lacked([claim], [pool], vms) == {"web": 2}
    stranger = a_vm("other", pool, replace(hold(claim, 1), ref=None))
    assert lacked([claim], [pool], (*vms, stranger)) == {"web": 2}


def test_the_pool_of_another_namespace_is_found_there() -> None:
    pools = [a_pool(), a_pool("lab", "lab")]
    claim = waiting(requests=[{"pool": "lab", "namespace": "lab", "count": 2}, {"pool": "lab"}])
    assert lacked([claim], pools) == {"lab": 2}


def an_alias(count: int, name: str = "c") -> VMClaim:
    return waiting(name, requests=[{"alias": "any", "count": count}])


def test_an_alias_is_put_on_the_pool_with_most_room_vm_by_vm() -> None:
    small, big = a_pool("small", maxVMs=4, aliases=["any"]), a_pool("big", maxVMs=6, aliases=["any"])
    assert lacked([an_alias(2)], [small, big]) == {"big": 2}
    assert lacked([an_alias(6)], [small, big]) == {"big": 4, "small": 2}
    taken = replace(big, status=VMPoolStatus(claimed_replicas=3, quarantined_replicas=1, draining_replicas=1))
    assert room(taken) == 1
    assert lacked([an_alias(2)], [small, taken]) == {"small": 2}
    wanted = waiting("own", 3, requests=[{"pool": "big", "count": 3}])
    assert lacked([an_alias(2), wanted], [small, big]) == {"big": 4, "small": 1}


def test_an_alias_goes_to_pools_that_can_make_vms() -> None:
    told = observed(ConditionType.STALLED, True, "ProviderNotFound", "why", generation=1, now=NOW)
    stalled = a_pool("stalled", maxVMs=90, aliases=["any"], status=VMPoolStatus(conditions=(told,)))
    paused = a_pool("paused", maxVMs=90, aliases=["any"], paused=True)
    going = a_pool("going", maxVMs=90, aliases=["any"], deleting=True)
    well = a_pool("well", maxVMs=1, aliases=["any"])
    assert lacked([an_alias(3)], [stalled, paused, going, well]) == {"well": 3}
    assert lacked([an_alias(3)], [going]) == {}


def test_a_pool_that_is_being_deleted_is_named_by_nobody() -> None:
    going = a_pool(deleting=True)
    (request,) = a_claim().spec.requests
    assert named_by(request, "ci", {("ci", "web"): going}, by_alias([going])) == ()


@PLANS
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4),
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    served=st.integers(0, 20),
)
def test_serving_from_where_it_was_counted_moves_nothing_else(
    sizes: list[tuple[int, int, int]], counts: list[int], served: int
) -> None:
    """Or a VM that was made for one claim would be surplus as soon as another one is served."""
    pools = [
        a_pool(
            f"p{number}",
            maxVMs=most,
            aliases=["any"],
            status=VMPoolStatus(desired_replicas=want, claimed_replicas=have),
        )
        for number, (most, want, have) in enumerate(sizes)
    ]
    claims = [
        replace(an_alias(count, f"c{number}"), created_at=ago(seconds=number)) for number, count in enumerate(counts)
    ]
    before = lacked(claims, pools)
    assert sum(before.values()) == sum(counts)
    assert lacked(list(reversed(claims)), pools) == before
    slots = [(claim, slot) for claim in claims for slot in range(claim.spec.requests[0].count)]
    name = sorted(before)[served % len(before)]
    (place,) = [pool for pool in pools if pool.name == name]
    claim, slot = slots[served % len(slots)]
    more = place.status.model_copy(update={"claimed_replicas": place.status.claimed_replicas + 1})
    others = [replace(pool, status=more) if pool.name == name else pool for pool in pools]
    after = lacked(claims, others, (a_vm("one", place, hold(claim, slot)),))
    assert {**after, name: after.get(name, 0) + 1} == before
