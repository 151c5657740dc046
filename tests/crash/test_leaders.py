"""Two leaders for a moment, and the orderly end of one."""

import os
import signal
from collections.abc import Callable

import pytest

from tests.api import Json
from tests.crash import witness
from tests.crash.site import DEADLINE, POOL, Site
from tests.operators import Operator
from tests.waiting import until
from vmpool.api import keys

pytestmark = pytest.mark.crash

REPLICAS = 30
CREATE_SECONDS = 0.15
LATE_SECONDS = 12.0
"""How long a create is on its way: longer than a new leader needs to take over and to drain a pool."""
QUICK = {"VMPOOL_STRAGGLER_GRACE_SECONDS": "1", "VMPOOL_STRAGGLER_TTL_SECONDS": "0"}
LONG_LEASE = {"VMPOOL_LEASE_SECONDS": "300", "VMPOOL_LEASE_RENEW_SECONDS": "200"}
"""Who leads soon after such a lease was held found it released."""

Operators = Callable[..., Operator]


async def ends_by_itself(operator: Operator) -> None:
    """Let a paused operator go on: it has to see that it leads no more."""
    os.kill(operator.pid, signal.SIGCONT)
    await until(lambda: not operator.running, deadline=DEADLINE, what="the former leader ends")
    assert operator.stop() != 0, "doubt must not look like a clean stop"


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "no-tokens"])
async def test_a_paused_leader_does_no_harm(site: Site, operators: Operators, *, tokens: bool) -> None:
    held = site.hold_up("create", after=REPLICAS // 3)
    site.fault("slow", "create", seconds=CREATE_SECONDS, when="after", probability=0.5)
    site.fault("slow", "create", seconds=CREATE_SECONDS)
    await site.build(REPLICAS, tokens=tokens)
    first = operators()
    await site.machines(REPLICAS // 3)
    os.kill(first.pid, signal.SIGSTOP)
    assert site.alive() < REPLICAS, "the pause came too late to prove anything"
    site.mend(held)

    second = operators(**QUICK)
    await second.ready(DEADLINE)
    await ends_by_itself(first)
    await site.full(REPLICAS)

    assert second.running, "the new leader has no reason to end"
    await witness.machines_match_objects(site)
    if tokens:
        # Without tokens a create of each leader may land for one VM; the sweep has taken the second machine in.
        witness.never_two(site)
        witness.never_more_than(site, REPLICAS)
    await site.drain()
    await site.drained()
    await witness.nothing_left(site)


async def test_a_create_that_lands_after_its_object_has_gone(site: Site, operators: Operators) -> None:
    late = site.fault("slow", "create", seconds=LATE_SECONDS)
    await site.build(REPLICAS)
    first = operators()

    await until(lambda: site.fired(late), deadline=DEADLINE, what="creates are on their way")
    os.kill(first.pid, signal.SIGSTOP)
    site.mend(late)
    (await site.pools.merge(POOL, {"spec": {"replicas": 0}})).ok()
    second = operators(**QUICK)

    async def empty() -> bool:
        return not await site.objects()

    await until(empty, deadline=DEADLINE, what="the new leader has drained everything")
    assert not site.history(), "the creates landed too early to prove anything"
    await until(site.history, deadline=DEADLINE, what="the creates land")
    await until(lambda: not site.alive(), deadline=DEADLINE, what="the stragglers are destroyed")
    await ends_by_itself(first)

    assert second.running
    await site.drain()
    await site.drained()
    await witness.nothing_left(site)


async def test_a_clean_stop_finishes_what_is_in_flight(site: Site, operators: Operators) -> None:
    site.fault("slow", "create", seconds=1.0, when="after")
    await site.build(REPLICAS)
    first = operators(**LONG_LEASE)
    await site.machines(REPLICAS // 3)

    assert first.stop() == 0
    assert site.alive() < REPLICAS, "the stop came too late to prove anything"
    assert not (await _lease(site)).get("holderIdentity"), "the lease is not released"
    await witness.every_machine_is_recorded(site)

    second = operators(**LONG_LEASE)
    await second.ready(DEADLINE)
    await site.full(REPLICAS)
    await witness.machines_match_objects(site)
    witness.never_two(site)
    await witness.no_failure_told(site)
    await site.drain()
    await site.drained()
    await witness.nothing_left(site)


async def _lease(site: Site) -> Json:
    leases = site.api.kind("leases", site.namespace, api="/apis/coordination.k8s.io/v1")
    spec: Json = (await leases.get(keys.LEASE_NAME)).ok()["spec"]
    return spec
