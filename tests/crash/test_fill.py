"""Kill -9 in the middle of a fill: started again, the pool is full, and nothing was made twice."""

import random
from collections.abc import Callable

import pytest

from tests.crash import witness
from tests.crash.site import Site
from tests.operators import Operator

pytestmark = pytest.mark.crash

REPLICAS = 50
CREATE_SECONDS = 0.1


@pytest.mark.parametrize("seed", range(20))
async def test_a_killed_fill_is_finished_and_nothing_is_made_twice(
    site: Site, operators: Callable[..., Operator], seed: int
) -> None:
    dice = random.Random(seed)
    threshold = dice.randint(5, 45)
    held = site.hold_up("create", after=threshold + dice.randint(0, 4))
    # Half of the machines are there before their id is known, half of the requests wait for theirs.
    site.fault("slow", "create", seconds=CREATE_SECONDS, when="after", probability=0.5, seed=seed)
    site.fault("slow", "create", seconds=CREATE_SECONDS)
    await site.build(REPLICAS, tokens=seed % 2 == 0)

    first = operators()
    await site.machines(threshold)
    first.kill()
    assert site.alive() < REPLICAS, "the kill came too late to prove anything"
    site.mend(held)
    operators()
    await site.full(REPLICAS)

    await witness.machines_match_objects(site)
    witness.never_two(site)
    witness.never_more_than(site, REPLICAS)
    await witness.no_failure_told(site)
    await site.drain()
    await site.drained()
    await witness.nothing_left(site)


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "no-tokens"])
async def test_a_killed_fill_is_finished_although_replies_are_lost(
    site: Site, operators: Callable[..., Operator], *, tokens: bool
) -> None:
    held = site.hold_up("create", after=REPLICAS // 3)
    losses = (
        site.fault("replyLost", "create", probability=0.25, seed=1, count=12),
        site.fault("failAfterCommit", "create", status=502, probability=0.25, seed=2, count=12),
    )
    site.fault("slow", "create", seconds=CREATE_SECONDS)
    await site.build(REPLICAS, tokens=tokens, retry={"attempts": 50, "backoff": "100ms", "maxBackoff": "1s"})

    first = operators()
    await site.machines(REPLICAS // 3)
    first.kill()
    assert site.alive() < REPLICAS, "the kill came too late to prove anything"
    site.mend(held)
    operators()
    await site.full(REPLICAS)

    fired = [site.fired(rule) for rule in losses]
    assert min(fired) > 0, f"a fault never came up: {fired}"
    await witness.machines_match_objects(site)
    witness.never_two(site)
    witness.never_more_than(site, REPLICAS)
    await witness.no_failure_told(site)
    await site.drain()
    await site.drained()
    await witness.nothing_left(site)
