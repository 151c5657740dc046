"""What a purge policy would do on a virtual clock, if nothing else happened: no VM is made, taken or becomes ready."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from vmpool.api.purge import PurgePolicySpec
from vmpool.plan.purge import Found, Group, active_pause, look


@dataclass(frozen=True, slots=True)
class CycleAhead:
    """One cycle that finds something."""

    at: datetime
    found: Found
    paused: bool
    """Whether a pause of the policy keeps everything in its place."""


def cycles_ahead(
    groups: Sequence[Group], spec: PurgePolicySpec, start: datetime, end: datetime
) -> Iterator[CycleAhead]:
    """Yield the cycles from ``start`` to ``end`` that find something new. What one removes the next does not see.

    Completed VMs are never gone by a purge: their destruction is begun anew, once for all that follows.
    """
    at, left, kept = start, list(groups), frozenset[str]()
    while at <= end:
        found, paused = look(left, spec, at), active_pause(spec, at) is not None
        stays = frozenset(one.vm.uid for one in found.kept)
        if found.due or stays - kept:
            yield CycleAhead(at, found, paused)
        kept |= stays
        if not paused:
            gone = {one.vm.uid for one in found.due}
            left = [replace(group, vms=tuple(vm for vm in group.vms if vm.uid not in gone)) for group in left]
        at += spec.interval
