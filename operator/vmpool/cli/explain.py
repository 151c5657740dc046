"""``vmpool explain``: why something is as it is, what has happened to it, and what comes next."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from vmpool.api.conditions import Condition
from vmpool.api.meta import format_duration
from vmpool.api.pool import template_digest
from vmpool.cli.cluster import Cluster, Context, Kubeconfig, Namespace, age, in_cluster, out
from vmpool.cli.clusterfacts import ClusterFacts, gather
from vmpool.kube.resource import EVENTS, Json
from vmpool.plan.lifecycle import ClaimPhase
from vmpool.plan.plannedtimes import Coming, coming_to_pool, coming_to_vm
from vmpool.plan.policies import HealthObject, PurgeObject
from vmpool.plan.pool import plan_pool
from vmpool.plan.snapshot import VM, PoolFacts, PoolSnapshot, VMClaim

KINDS = {
    "pool": ("VMPool", "pools"),
    "vm": ("PooledVM", "vms"),
    "claim": ("VMClaim", "claims"),
}
"""By the word that people type: the kind, and the facts that hold its objects."""
EVENTS_SHOWN = 10
FAILURES_SHOWN = 3
NEVER = "nothing is due; it changes when something happens to it"


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened."""

    at: datetime
    what: str


def command(
    what: Annotated[str, typer.Argument(help="pool/NAME, vm/NAME or claim/NAME.")],
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Explain why a pool, a VM or a claim is in its state: the rule with its numbers, what happened, what is next."""
    kind, _, name = what.partition("/")
    if kind not in KINDS or not name:
        out.print(f"error: {what!r} is none of pool/NAME, vm/NAME, claim/NAME")
        raise typer.Exit(2)

    async def work(cluster: Cluster) -> tuple[ClusterFacts, list[Json], str]:
        fields = f"involvedObject.kind={KINDS[kind][0]},involvedObject.name={name}"
        return await gather(cluster), await cluster.every(EVENTS, fields=fields), cluster.namespace

    found, events, where = in_cluster(kubeconfig, context, namespace, work)
    now = datetime.now(UTC)
    one: Any = next((one for one in getattr(found, KINDS[kind][1]) if one.name == name), None)
    if one is None:
        out.print(f"error: there is no {KINDS[kind][0]} {name} in namespace {where}")
        raise typer.Exit(1)
    tell: dict[str, Callable[[ClusterFacts, Any, datetime], None]] = {"pool": _pool, "vm": _vm, "claim": _claim}
    tell[kind](found, one, now)
    _events(events)


# --- a pool ------------------------------------------------------------------------------------------------------


def _pool(found: ClusterFacts, pool: PoolFacts, now: datetime) -> None:
    status = pool.status
    out.print(f"[bold]VMPool {pool.name}[/]")
    _conditions(status.conditions, now)
    seen = snapshot_of(found, pool)
    plan = plan_pool(seen, now)
    counts = plan.counts
    out.print("[bold]Numbers[/]")
    out.print(
        f"  wants {counts.desired} ready, and {seen.waiting} for waiting claims; has {counts.ready} ready, "
        f"{counts.pending} pending, {counts.claimed} claimed, {counts.quarantined} quarantined, "
        f"{counts.draining} draining; {len(seen.vms)} of maxVMs {pool.spec.max_vms}"
    )
    if counts.deficit:
        out.print(f"  lacks {counts.deficit}" + (f": {plan.held_back}" if plan.held_back else ""), markup=False)
    if counts.surplus:
        out.print(f"  has {counts.surplus} too many")
    for failure in status.recent_failures[:FAILURES_SHOWN]:
        out.print(
            f"  failed {age(failure.failed_at, now)} ago: {failure.vm} at step {failure.step}: "
            f"{failure.error_class}: {failure.message}",
            markup=False,
        )
    purge, _ = policies_of(found, pool)
    _next(coming_to_pool(seen, purge.spec if purge is not None else None, now), now)


def snapshot_of(found: ClusterFacts, pool: PoolFacts) -> PoolSnapshot:
    """Return what the operator would decide on, as far as objects tell it: looks and probes are its own."""
    queue = next((one for one in found.queues if one.name == pool.spec.dead_letter_queue), None)
    return PoolSnapshot(
        pool=pool,
        digest=template_digest(pool.spec.template),
        vms=found.vms_of(pool),
        providers=found.provider_facts(pool.namespace),
        creation=pool.status.creation,
        waiting=pool.status.waiting_replicas,
        poison=pool.status.poison,
        poison_limit=queue.spec.poison.failures if queue is not None else 0,
    )


def policies_of(found: ClusterFacts, pool: PoolFacts) -> tuple[PurgeObject | None, HealthObject | None]:
    """Return the policies that a pool names and that exist."""
    purge = next((one for one in found.purges if one.name == pool.spec.purge_policy), None)
    health = next((one for one in found.healths if one.name == pool.spec.health_policy), None)
    return purge, health


# --- a VM --------------------------------------------------------------------------------------------------------


def _vm(found: ClusterFacts, vm: VM, now: datetime) -> None:
    out.print(f"[bold]PooledVM {vm.name}[/] of VMPool {vm.pool}: {vm.phase} for {age(vm.since, now)}")
    if vm.reason:
        out.print(f"  {vm.reason}: {vm.message}", markup=False)
    if vm.claim is not None:
        ended = f", ended {vm.claim.end_reason or 'Released'}" if vm.claim.released_at is not None else ""
        out.print(f"  claimed by {vm.claim.owner} until {_at(vm.claim.expires_at)}{ended}", markup=False)
    machine = f"machine {vm.machine_id}" if vm.machine_id else "no machine yet"
    out.print(f"  {machine} at VMProvider {vm.provider} {' '.join(vm.addresses)}".rstrip(), markup=False)
    if vm.deleting:
        out.print("  it is being deleted; it goes when its machine is proven gone")
    out.print("[bold]What happened[/]")
    for moment in sorted(_moments(vm, found), key=lambda one: one.at):
        out.print(f"  {_at(moment.at)}  {moment.what}", markup=False)
    pool = next((one for one in found.pools if one.uid == vm.pool_uid), None)
    if pool is None:
        out.print("  its pool is gone: it is carried to its end")
        return
    purge, _ = policies_of(found, pool)
    _next(coming_to_vm(vm, snapshot_of(found, pool), purge.spec if purge is not None else None, now), now)


def _moments(vm: VM, found: ClusterFacts) -> Iterator[Moment]:
    yield Moment(vm.created_at, f"asked for ({vm.request_id or 'no request id'}, {vm.retry_count} failed before)")
    for step in vm.steps:
        if step.started_at is not None:
            yield Moment(step.started_at, f"step {step.name} began")
        if step.finished_at is not None:
            yield Moment(step.finished_at, f"step {step.name} was done")
        elif step.reason:
            when = step.failed_at or step.started_at or vm.created_at
            yield Moment(when, f"step {step.name} failed {step.retries} times: {step.reason}: {step.message}")
    if vm.claim is not None and vm.claim.bound_at is not None:
        yield Moment(vm.claim.bound_at, f"handed out to {vm.claim.owner}")
    if vm.claim is not None and vm.claim.released_at is not None:
        yield Moment(vm.claim.released_at, f"claim ended: {vm.claim.end_reason or 'Released'}")
    if vm.phase_since is not None:
        yield Moment(vm.phase_since, f"became {vm.phase}")
    for letter in found.letters:
        if letter.vm_uid == vm.uid:
            yield Moment(letter.failed_at, f"dead letter {letter.name}: {letter.error_class}: {letter.error_message}")


# --- a claim -----------------------------------------------------------------------------------------------------


def _claim(found: ClusterFacts, claim: VMClaim, now: datetime) -> None:
    status = claim.status
    out.print(f"[bold]VMClaim {claim.name}[/]: {claim.phase}" + (f", {status.reason}" if status.reason else ""))
    if status.message:
        out.print(f"  {status.message}", markup=False)
    _conditions(status.conditions, now)
    if status.position:
        out.print(f"  place in the queue: {status.position}")
    for request in claim.spec.requests:
        namespace = request.namespace or claim.namespace
        for pool in found.pools:
            wanted = pool.name == request.pool if request.pool else request.alias in pool.spec.aliases
            if pool.namespace == namespace and wanted:
                counts = pool.status
                out.print(
                    f"  {request.count} of VMPool {pool.name}: {counts.ready_replicas} ready, "
                    f"{counts.pending_replicas} pending"
                )
    for one in status.vms:
        ended = f" (ended: {one.end_reason})" if one.end_reason else ""
        out.print(f"  slot {one.slot}: {one.host_name} {one.address}{ended}", markup=False)
    coming: list[Coming] = []
    if claim.phase == ClaimPhase.PENDING and claim.spec.deadline is not None:
        coming.append(Coming(claim.created_at + claim.spec.deadline, "it fails unless it is served before"))
    if claim.phase == ClaimPhase.BOUND and status.expires_at is not None:
        coming.append(Coming(status.expires_at, "its first VM is taken back unless it is extended"))
    if status.finished_at is not None:
        coming.append(Coming(status.finished_at + claim.spec.ttl_after_finished, "it is removed"))
    _next(coming, now)


# --- shared ------------------------------------------------------------------------------------------------------


def _conditions(conditions: tuple[Condition, ...], now: datetime) -> None:
    for one in conditions:
        since = age(one.last_transition_time, now)
        out.print(f"  {one.type}={one.status} for {since}: {one.reason}: {one.message}", markup=False)


def _next(coming: list[Coming], now: datetime) -> None:
    out.print("[bold]What comes next[/]")
    for one in sorted(coming, key=lambda one: one.at):
        when = f"in {format_duration(one.at - now)[:12]}" if one.at > now else "now"
        out.print(f"  {_at(one.at)} ({when})  {one.what}", markup=False)
    if not coming:
        out.print(f"  {NEVER}")


def _events(events: list[Json]) -> None:
    shown = sorted(events, key=_event_time)[-EVENTS_SHOWN:]
    if shown:
        out.print("[bold]Events[/]")
    for one in shown:
        out.print(f"  {_event_time(one)}  {one.get('reason', '')}: {one.get('message', '')}", markup=False)


def _event_time(event: Json) -> str:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return next((str(one) for one in times if one), "")


def _at(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
