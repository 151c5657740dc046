"""Decide the next step of a VM that no pool owns any more: it is carried to its end, claims first."""

from datetime import datetime, timedelta

from vmpool.api.pool import Readiness
from vmpool.plan.actions import Complete, EnsureMachine, Quarantine
from vmpool.plan.lifecycle import Phase
from vmpool.plan.purge import may_go
from vmpool.plan.snapshot import VM, ProviderFacts, Purge, Reason, Sight, Step
from vmpool.plan.vm import WAIT, Next, next_step

NO_READINESS = Readiness()


def next_of_orphan(
    vm: VM,
    sight: Sight,
    provider: ProviderFacts,
    now: datetime,
    *,
    straggler_ttl: timedelta | None,
    governed: bool = False,
    order: Purge | None = None,
) -> Next:
    """Return the next step of a VM without a pool. ``straggler_ttl`` is set for machines that were taken in.

    ``governed``: a purge policy decides when such a machine's quarantine ends, and not its time; ``order`` is its word.
    """
    if vm.phase in (Phase.PENDING, Phase.READY) and vm.claim is None and not vm.deleting:
        if straggler_ttl is None:
            return Next(Complete(vm, Reason.POOL_GONE, f"its pool {vm.pool} ({vm.pool_uid}) is gone"))
        if not vm.machine_id and sight.failure is None:
            return _take_in(vm, provider, now)
        why = "a machine of ours without an object; it is destroyed when its time in quarantine is over"
        return Next(Quarantine(vm, Step.ADOPT, Reason.STRAGGLER, why, now + straggler_ttl))
    if vm.phase == Phase.QUARANTINED and straggler_ttl is None and not vm.deleting:
        return Next(Complete(vm, Reason.POOL_GONE, f"its pool {vm.pool} ({vm.pool_uid}) is gone"))
    if governed and vm.phase == Phase.QUARANTINED and vm.claim is None and not vm.deleting:
        return Next(Complete(vm, Reason.PURGED, order.message)) if order is not None and may_go(vm, order) else WAIT
    return next_step(vm, sight, provider, NO_READINESS, now)


def _take_in(vm: VM, provider: ProviderFacts, now: datetime) -> Next:
    step = vm.step(Step.ADOPT)
    if step.next_at is not None and now < step.next_at:
        return Next(wake_at=step.next_at)
    return Next(EnsureMachine(vm)) if provider.reachable else Next()
