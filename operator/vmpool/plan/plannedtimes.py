"""When what will happen to a pool or a VM by itself, should nothing else happen before: for people who ask."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from vmpool.api.meta import format_duration
from vmpool.api.purge import PurgePolicySpec
from vmpool.plan.lifecycle import Phase
from vmpool.plan.purge import State, active_pause, stale
from vmpool.plan.snapshot import VM, PoolSnapshot, Step
from vmpool.plan.stale import recycled_at
from vmpool.plan.vm import boot_began


@dataclass(frozen=True, slots=True)
class Coming:
    """One thing that is due, and when."""

    at: datetime
    what: str


def coming_to_vm(vm: VM, seen: PoolSnapshot, purge: PurgePolicySpec | None, now: datetime) -> list[Coming]:
    """Return what is due for a VM of a pool, by the rules that the pool's own rounds follow."""
    return [*_of_phase(vm, seen), *_purged(vm, purge, now)]


def coming_to_pool(seen: PoolSnapshot, purge: PurgePolicySpec | None, now: datetime) -> list[Coming]:
    """Return what is due for the pool itself, and the first of what is due for its VMs."""
    found = []
    if seen.creation is not None and seen.creation.not_before > now:
        found.append(Coming(seen.creation.not_before, "creates go on after the pause that failures bring"))
    if seen.pool.spec.reset_before is not None and seen.pool.spec.reset_before > now:
        found.append(Coming(seen.pool.spec.reset_before, "unclaimed VMs made before are replaced"))
    of_vms = ((one, vm) for vm in seen.vms for one in coming_to_vm(vm, seen, purge, now))
    first = min(of_vms, key=lambda pair: pair[0].at, default=None)
    if first is not None:
        found.append(Coming(first[0].at, f"{first[1].name}: {first[0].what}"))
    return found


def _of_phase(vm: VM, seen: PoolSnapshot) -> Iterator[Coming]:
    for step in vm.steps:
        if step.finished_at is None and step.next_at is not None and not (vm.machine_id and step.name == Step.CREATE):
            yield Coming(step.next_at, f"step {step.name} is tried again")
    if vm.claimed and vm.claim is not None:
        yield Coming(vm.claim.expires_at, "its claim ends unless it is extended")
    elif vm.phase == Phase.PENDING and vm.machine_id:
        timeout: timedelta = seen.pool.spec.readiness.timeout
        what = f"it is given up unless it is ready before (readiness.timeout is {format_duration(timeout)})"
        yield Coming(boot_began(vm) + timeout, what)
    elif vm.phase == Phase.READY:
        at = recycled_at(seen, [vm]).get(vm.uid)
        if at is not None:
            yield Coming(at, "it is replaced for its age (recycle.readyTTL)")
    elif vm.phase == Phase.QUARANTINED and vm.expires_at is not None:
        yield Coming(vm.expires_at, "its time in quarantine is over, and its machine is destroyed")


def _purged(vm: VM, purge: PurgePolicySpec | None, now: datetime) -> Iterator[Coming]:
    if purge is None or purge.dry_run or vm.purge_exempt:
        return
    # Asked as if it were much later: then the limit of its state is told, whatever its age is now.
    found = stale(vm, purge, vm.since + timedelta(days=3650))
    if found is None:
        return
    at = max(vm.since + found.limit, now)
    what = "begins its destruction anew" if found.state is State.COMPLETED else "removes it"
    if active_pause(purge, at) is None:
        yield Coming(at, f"the next purge {what} ({found.state} for {found.most} s)")
