"""Decide which VMs are to be replaced by fresh ones: of an older template, ready for too long, or before a reset."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from vmpool.plan import backoff
from vmpool.plan.lifecycle import Phase
from vmpool.plan.snapshot import BEGINNING, VM, PoolSnapshot, Reason


def stale_reason(
    seen: PoolSnapshot, vm: VM, recycled_at: Mapping[str, datetime], now: datetime
) -> tuple[Reason, str] | None:
    """Why a live VM should be replaced by a fresh one; None when it should not."""
    spec = seen.pool.spec
    if reset_until(seen, now) > vm.created_at:
        return Reason.POOL_RESET, "it was made before spec.resetBefore"
    if vm.digest != seen.digest and not vm.adopt and (spec.update.strategy == "Rolling" or not vm.machine_id):
        return Reason.TEMPLATE_CHANGED, "it was made from an older template"
    if vm.uid in recycled_at and now >= recycled_at[vm.uid]:
        return Reason.READY_TTL, "it was ready for as long as recycle.readyTTL allows"
    return None


def reset_until(seen: PoolSnapshot, now: datetime) -> datetime:
    """Return the time before which a VM must not have been made.

    Rounded up to the second, as objects tell their age: what is made within it cannot be told from what was there. A
    time that has not come yet resets nothing.
    """
    before: datetime | None = seen.pool.spec.reset_before
    if before is None or now < before:
        return BEGINNING
    return before if not before.microsecond else before.replace(microsecond=0) + timedelta(seconds=1)


def recycled_at(seen: PoolSnapshot, live: Iterable[VM]) -> dict[str, datetime]:
    """When each Ready VM's time is over; empty without ``recycle.readyTTL``."""
    recycle = seen.pool.spec.recycle
    ttl: timedelta | None = recycle.ready_ttl
    if ttl is None:
        return {}
    share = recycle.jitter_percent / 100.0
    return {vm.uid: vm.since + ttl * (1.0 - share * backoff.fraction(vm.uid)) for vm in live if vm.phase == Phase.READY}
