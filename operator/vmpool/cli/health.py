"""``vmpool health``: the verdicts of health policies, with their numbers as they are now."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vmpool.cli.cluster import AllNamespaces, Cluster, Context, Kubeconfig, Namespace, in_cluster, out, problems
from vmpool.cli.clusterfacts import ClusterFacts, gather
from vmpool.plan.health import Judgement, State, filled_at, judge, pool_readings, restored_of
from vmpool.plan.healthnumbers import PoolNumbers, pool_numbers
from vmpool.plan.policies import HealthObject
from vmpool.plan.snapshot import PoolFacts

STYLES = {"healthy": "green", "degraded": "yellow", "unhealthy": "red", "": "dim"}


def command(
    names: Annotated[list[str] | None, typer.Argument(help="Names of HealthPolicies; default all.")] = None,
    everywhere: AllNamespaces = False,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Show how pools are, and why. The exit code is 0 when all is healthy, 2 when something is unhealthy, else 1."""

    async def work(cluster: Cluster) -> ClusterFacts:
        return await gather(cluster, everywhere=everywhere)

    found, now = in_cluster(kubeconfig, context, namespace, work), datetime.now(UTC)
    chosen = [one for one in found.healths if not names or one.name in names]
    if missing := sorted(set(names or ()) - {one.name for one in chosen}):
        problems.print(f"error: there is no HealthPolicy {', '.join(missing)}")
        raise typer.Exit(1)
    if not chosen:
        out.print("no health policies")
        return
    for policy in sorted(chosen, key=lambda one: (one.namespace, one.name)):
        word = policy.status.health
        out.print(
            f"HealthPolicy {policy.namespace}/{policy.name}: [{STYLES.get(word, '')}]{word or 'not judged yet'}[/]"
            f" {escape(policy.status.message or '')}"
        )
        out.print(_table(found, policy, now))
    worst = {one.status.health for one in chosen}
    raise typer.Exit(2 if "unhealthy" in worst else 0 if worst == {"healthy"} else 1)


def numbers_of(
    found: ClusterFacts, policy: HealthObject, pool: PoolFacts, now: datetime, filled: datetime | None = None
) -> PoolNumbers:
    """Count one pool as the policy does. ``filled`` is when it last had a VM ready, where that is known already."""
    limits, vms = policy.spec.thresholds, found.vms_of(pool)
    return pool_numbers(
        pool,
        vms,
        found.letters_of(pool),
        stuck_after=limits.stuck_vm_age_threshold,
        waiting=pool.status.waiting_replicas,
        filled=filled_at(pool, vms, filled, limits.empty_pool_max_age, now),
        now=now,
    )


def verdict_of(policy: HealthObject, pool: PoolFacts, numbers: PoolNumbers) -> Judgement:
    """Judge one pool by its numbers of now, after the verdict that stands."""
    past: State = restored_of(pool.status.conditions)
    return judge(past, pool_readings(numbers, policy.spec.thresholds), policy.spec.hysteresis).told


def _table(found: ClusterFacts, policy: HealthObject, now: datetime) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("POOL", "HEALTH", "PENDING", "OLDEST", "STUCK", "READY", "COMPLETED", "DLQ", "WHY"):
        made.add_column(name, no_wrap=name != "WHY")
    for pool in found.naming(policy.namespace, policy.name, lambda pool: pool.spec.health_policy):
        numbers = numbers_of(found, policy, pool, now)
        told = verdict_of(policy, pool, numbers)
        made.add_row(
            pool.name,
            f"[{STYLES[told.level.word]}]{told.level.word}[/]",
            str(numbers.pending.size),
            f"{numbers.pending.oldest:.0f}s",
            str(numbers.stuck),
            str(numbers.ready.size),
            str(numbers.completed.size),
            str(numbers.dead),
            escape(told.message) if told.findings else "",
        )
    return made
