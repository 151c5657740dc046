"""Decide which Ready VMs are asked now whether they still answer.

Apart from the pool's plan, because it is so frequent and changes so little: only what stopped answering is news.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from vmpool.api.pool import Readiness
from vmpool.plan import backoff
from vmpool.plan.lifecycle import Phase
from vmpool.plan.looks import next_turn
from vmpool.plan.snapshot import NOTHING_SEEN, VM, Sight


def probes_due(
    vms: Iterable[VM],
    sights: Mapping[str, Sight],
    reachable: Collection[str],
    readiness: Readiness,
    now: datetime,
    since: datetime,
) -> list[VM]:
    """Return the VMs whose turn has come: each once an interval, those of a pool spread over it.

    ``reachable`` names the providers that are; with one that is not, silence says nothing about a VM. ``since`` is
    when this process began to look: after a restart nothing is made up for.
    """
    return [
        vm
        for vm in vms
        if vm.phase == Phase.READY
        and vm.claim is None
        and not vm.deleting
        and vm.addresses
        and vm.provider in reachable
        and _turn(vm, sights.get(vm.uid, NOTHING_SEEN), readiness, since) <= now
    ]


def _turn(vm: VM, sight: Sight, readiness: Readiness, since: datetime) -> datetime:
    last = sight.probed_at or max(vm.since, since)
    return next_turn(last, readiness.interval, backoff.fraction(vm.uid))
