"""Turn a plan into the status of a pool: counts, conditions and the one sentence that explains them.

Nothing here changes without a change: no ages, no positions, so that an idle pool costs no writes.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from vmpool.api import keys
from vmpool.api.conditions import Condition, ConditionType, find, merge, observed
from vmpool.api.pool import Failure, VMPoolStatus
from vmpool.plan.actions import CreateVM
from vmpool.plan.demand import NAME_TAKEN
from vmpool.plan.letters import is_poison, poisoned
from vmpool.plan.lifecycle import Phase
from vmpool.plan.pool import Plan
from vmpool.plan.snapshot import PoolSnapshot, ProviderFacts, Step

FILLED = "Filled"
MAX_NAMED = 3
"""How many VMs a sentence names before it only counts."""


def pool_status(
    seen: PoolSnapshot,
    plan: Plan,
    *,
    failures: Sequence[Failure],
    stalled: tuple[str, str] | None,
    now: datetime,
) -> VMPoolStatus:
    """Return the status that this round arrives at. ``stalled`` is a reason and sentence that only a human can cure."""
    pool, counts = seen.pool, plan.counts
    reached = _reached(seen, plan)
    reason, message = _why(seen, plan, reached, stalled)
    generation = pool.generation
    new = [observed(ConditionType.READY, reached, reason, message, generation=generation, now=now)]
    if stalled is not None and (not reached or counts.deficit):
        new.append(observed(ConditionType.STALLED, True, *stalled, generation=generation, now=now))
    elif pool.deleting or (not reached and not pool.spec.paused):
        # Not for every VM that is made anew: a pool under load would never be done, and Flux would call it failed.
        new.append(observed(ConditionType.RECONCILING, True, reason, message, generation=generation, now=now))
    if seen.name_taken and not any(one.type == ConditionType.STALLED for one in new):
        new.append(observed(ConditionType.STALLED, True, *_name_taken(seen), generation=generation, now=now))
    new.extend(_policies(seen, now))
    return VMPoolStatus(
        observed_generation=generation,
        conditions=merge(pool.status.conditions, new, now),
        desired_replicas=counts.desired,
        replicas=counts.ready + counts.pending,
        ready_replicas=counts.ready,
        pending_replicas=counts.pending,
        claimed_replicas=counts.claimed,
        waiting_replicas=seen.waiting,
        quarantined_replicas=counts.quarantined,
        draining_replicas=counts.draining,
        stale_replicas=counts.stale,
        selector=f"{keys.LABEL_POOL}={pool.name}",
        template_digest=seen.digest,
        creation=seen.creation,
        recent_failures=tuple(failures),
        poison=seen.poison,
    )


HEALTH_TYPES = (ConditionType.HEALTHY, ConditionType.DEGRADED, ConditionType.UNHEALTHY)


def health_conditions(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """Return those that a health policy has written: they stand until its next check."""
    return tuple(one for one in conditions if one.type in HEALTH_TYPES)


def _policies(seen: PoolSnapshot, now: datetime) -> list[Condition]:
    """Return the conditions that come from what the pool names."""
    generation = seen.pool.generation
    new = list(seen.health)
    if seen.poison is not None and is_poison(seen.poison, seen.poison_limit):
        message = poisoned(seen.poison)
        new.append(observed(ConditionType.POISONED, True, "SameFailure", message, generation=generation, now=now))
    if seen.missing:
        where = f"in namespace {seen.pool.namespace}"
        message = f"{' and '.join(seen.missing)} {'does' if len(seen.missing) == 1 else 'do'} not exist {where}"
        new.append(observed(ConditionType.POLICY_MISSING, True, "NotFound", message, generation=generation, now=now))
    return new


def _name_taken(seen: PoolSnapshot) -> tuple[str, str]:
    spec = seen.pool.spec
    return NAME_TAKEN, (
        f"spec.restName {spec.rest_name} is what VMPool {seen.name_taken} is called in REST already: choose another; "
        f"until then this pool is {seen.pool.namespace}_{seen.pool.name} there"
    )


def _reached(seen: PoolSnapshot, plan: Plan) -> bool:
    """Whether the spec of this generation was reached once; a checkout that empties the pool does not take it back."""
    pool, counts = seen.pool, plan.counts
    if pool.deleting or pool.spec.paused:
        return False
    before = find(pool.status.conditions, ConditionType.READY)
    if before is not None and before.status == "True" and before.observed_generation == pool.generation:
        return True
    return counts.ready >= counts.desired and not counts.stale and not counts.surplus


def _why(seen: PoolSnapshot, plan: Plan, reached: bool, stalled: tuple[str, str] | None) -> tuple[str, str]:
    pool, counts = seen.pool, plan.counts
    if pool.spec.paused:
        head = "being deleted, but paused" if pool.deleting else "paused"
        return "Paused", f"{head}: nothing is created, replaced or deleted until spec.paused is false"
    if pool.deleting:
        return "Draining", _draining(seen)
    head = f"{counts.ready} of {counts.desired} ready"
    if counts.pending:
        head += f", {counts.pending} on their way"
    if counts.stale:
        head += f", {counts.stale} to be replaced"
    if stalled is not None and not reached:
        return stalled[0], f"{head}: {stalled[1]}"
    trouble = provider_trouble(seen) if counts.deficit else None
    if trouble is not None or plan.held_back:
        head += f"; {_held_back(plan)}: {trouble[1] if trouble is not None else plan.held_back}"
    elif hindrance := _hindrance(seen):
        head += f"; {hindrance}"
    if reached:
        unset = pool.spec.replicas is None and not counts.desired
        return ("ReplicasUnset", f"{head}; spec.replicas is not set") if unset else (FILLED, head)
    if trouble is not None:
        return trouble[0], head
    return "Updating" if counts.stale else "Shrinking" if counts.surplus else "Filling", head


def _hindrance(seen: PoolSnapshot) -> str:
    """Say what most of those that still have no machine were told last; empty when nobody was refused."""
    tries = [vm.step(Step.CREATE) for vm in seen.vms if vm.phase == Phase.PENDING and not vm.machine_id]
    told = Counter((step.reason, step.message) for step in tries if step.reason)
    if not told:
        return ""
    (reason, message), count = told.most_common(1)[0]
    return f"{count} could not be created yet: {message or reason}"


def _held_back(plan: Plan) -> str:
    """Say what is held back: VMs that are missing, or fresh ones in the place of those to be replaced."""
    missing = plan.counts.deficit - sum(1 for action in plan.actions if isinstance(action, CreateVM))
    return f"{missing} wait" if missing > 0 else "replacing waits"


def provider_trouble(seen: PoolSnapshot) -> tuple[str, str] | None:
    """Return reason and sentence when no provider of the pool can be used; None when at least one can."""
    found = None
    for share in seen.pool.spec.providers:
        if not share.weight:
            continue
        provider = seen.providers.get(share.name)
        if provider is None:
            where = f"VMProvider {share.name} does not exist in namespace {seen.pool.namespace}"
            found = found or ("ProviderNotFound", where)
        elif provider.usable:
            return None
        else:
            found = found or (
                provider.reason,
                f"VMProvider {share.name}: {provider.message or provider.reason}",
            )
    return found or ("NoProvider", "all providers have weight 0")


def stalled_reason(seen: PoolSnapshot, failures: Sequence[Failure], terminal: frozenset[str]) -> tuple[str, str] | None:
    """Return why the pool cannot get where it should without a human, or None.

    Either all its providers are stalled, or the present template failed for good last time.
    """
    providers = [seen.providers.get(share.name) for share in seen.pool.spec.providers if share.weight]
    if providers and all(one is not None and one.stalled for one in providers):
        return provider_trouble(seen)
    if seen.creation is not None and seen.creation.failures and failures and failures[0].error_class in terminal:
        return failures[0].error_class, failures[0].message
    return None


def _reachable(seen: PoolSnapshot, provider: str) -> bool:
    facts = seen.providers.get(provider)
    return facts is not None and facts.reachable


def _draining(seen: PoolSnapshot) -> str:
    claimed = [vm for vm in seen.vms if vm.claimed]
    if not claimed:
        left = len(seen.vms)
        lost = sorted({vm.provider for vm in seen.vms if not _reachable(seen, vm.provider)})
        if lost:
            provider = seen.providers.get(lost[0], ProviderFacts(lost[0]))
            return f"being deleted: waits for VMProvider {provider.name}: {provider.message or provider.reason}"
        return f"being deleted: {left} machines are being destroyed" if left else "being deleted: nothing is left"
    named = ", ".join(f"{vm.name} ({vm.claim.owner})" for vm in claimed[:MAX_NAMED] if vm.claim is not None)
    more = f" and {len(claimed) - MAX_NAMED} more" if len(claimed) > MAX_NAMED else ""
    how = (
        "they are released"
        if seen.pool.spec.deletion_policy == "Drain"
        else "their claims are ended (deletionPolicy Force)"
    )
    return f"being deleted: waits for {len(claimed)} claimed VMs until {how}: {named}{more}"
