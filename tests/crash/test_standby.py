"""Two replicas and one lease: who stands by takes over, and nothing depends on there being one leader."""

import logging
import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.crash import witness
from tests.crash.site import DEADLINE, POOL, Site
from tests.operators import Operator
from tests.waiting import until
from vmpool.api import keys

pytestmark = pytest.mark.crash

log = logging.getLogger(__name__)

REPLICAS = int(os.environ.get("VMPOOL_TEST_STANDBY", "30"))
AS_IN_LIFE = {"VMPOOL_LEASE_SECONDS": "15", "VMPOOL_LEASE_RENEW_SECONDS": "10", "VMPOOL_LEASE_RETRY_SECONDS": "2"}
FIRST, SECOND = ({**AS_IN_LIFE, "VMPOOL_POD_UID": uid} for uid in ("one", "two"))
"""Replicas in pods of their own: of each other's end they know nothing but that the lease is not renewed."""
TAKEOVER_SECONDS = 20.0
"""What is promised from the death of the leader to the next useful write; guarded by three times that."""
RESTART_SECONDS = 10.0
"""The same when the dead one itself is started again and nobody stands by: its lease is its own no more."""
CONVERGED_SECONDS = 60.0

Operators = Callable[..., Operator]


async def leads(operator: Operator) -> None:
    """Wait until an operator leads."""
    await operator.ready(DEADLINE)


async def first_write_after(site: Site, act: Callable[[], object], replicas: int) -> float:
    """Ask for one VM more, act, and return the seconds until somebody has begun to make it."""
    before = {vm["metadata"]["uid"] for vm in await site.objects()}
    began = time.monotonic()
    act()
    (await site.pools.merge(POOL, {"spec": {"replicas": replicas}})).ok()

    async def begun() -> bool:
        return bool({vm["metadata"]["uid"] for vm in await site.objects()} - before)

    await until(begun, deadline=3 * TAKEOVER_SECONDS, what="somebody makes the VM that is asked for")
    return time.monotonic() - began


async def test_who_stands_by_takes_over_from_a_leader_that_was_killed(site: Site, operators: Operators) -> None:
    await site.build(REPLICAS)
    first = operators(**FIRST)
    await leads(first)
    second = operators(**SECOND)
    await site.full(REPLICAS)
    killed = time.monotonic()
    took = await first_write_after(site, first.kill, REPLICAS + 1)
    log.info("useful write %.1f s after the leader was killed, with a standby", took)
    await site.full(REPLICAS + 1)
    converged = time.monotonic() - killed
    log.info("converged %.1f s after it", converged)
    assert converged < 3 * CONVERGED_SECONDS
    assert second.running
    await witness.machines_match_objects(site)
    witness.never_two(site)


async def test_alone_it_goes_on_when_it_is_started_again(site: Site, operators: Operators) -> None:
    await site.build(REPLICAS)
    first = operators(**FIRST)
    await leads(first)
    await site.full(REPLICAS)

    def die_and_rise() -> None:
        first.kill()
        first.start()

    took = await first_write_after(site, die_and_rise, REPLICAS + 1)
    log.info("useful write %.1f s after the only operator was killed and started again", took)
    assert took < float(AS_IN_LIFE["VMPOOL_LEASE_SECONDS"]), "it has waited for its own dead lease"
    await site.full(REPLICAS + 1)
    await witness.machines_match_objects(site)
    witness.never_two(site)


async def test_told_to_stop_a_leader_hands_over_at_once(site: Site, operators: Operators) -> None:
    await site.build(REPLICAS)
    first = operators(**FIRST)
    await leads(first)
    second = operators(**SECOND)
    await site.full(REPLICAS)

    def stop() -> None:
        assert first.stop() == 0

    took = await first_write_after(site, stop, REPLICAS + 1)
    log.info("useful write %.1f s after the leader was told to stop", took)
    assert took < float(AS_IN_LIFE["VMPOOL_LEASE_SECONDS"]), "the lease was not handed over, it ran out"
    assert second.running
    await site.full(REPLICAS + 1)


async def test_with_two_leaders_at_once_every_promise_holds(site: Site, operators: Operators) -> None:
    """The lease is deleted under the leader: for some seconds both believe that they lead."""
    site.fault("slow", "create", seconds=0.05)
    await site.build(REPLICAS)
    first = operators(**FIRST)
    await leads(first)
    second = operators(**SECOND)
    leases = site.api.kind("leases", site.namespace, api="/apis/coordination.k8s.io/v1")
    await site.machines(REPLICAS // 4)
    # Held still the first one cannot see that it is replaced; when it goes on it believes in its lease for a moment.
    os.kill(first.pid, signal.SIGSTOP)
    (await leases.delete(keys.LEASE_NAME)).ok()
    await leads(second)
    os.kill(first.pid, signal.SIGCONT)
    await site.full(REPLICAS)
    (await site.pools.merge(POOL, {"spec": {"template": {"image": "sim/two"}}})).ok()
    await site.full(REPLICAS, "sim/two")
    await until(lambda: not first.running, deadline=DEADLINE, what="the former leader has ended")
    assert second.running
    await witness.machines_match_objects(site)
    witness.never_two(site)
    await site.drain()
    await site.drained()
    await witness.nothing_left(site)


async def test_both_may_be_killed_at_any_moment(site: Site, operators: Operators) -> None:
    """Leader and standby die in turns while the pool rolls."""
    await site.build(REPLICAS)
    pair = [operators(), operators()]
    images = ("sim/two", "sim/one")
    for number in range(4):
        (await site.pools.merge(POOL, {"spec": {"template": {"image": images[number % 2]}}})).ok()
        victim = pair[number % 2]
        victim.kill()
        victim.start()
        await site.full(REPLICAS, images[number % 2])
    await witness.machines_match_objects(site)
    witness.never_two(site)
