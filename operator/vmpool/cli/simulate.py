"""``vmpool simulate``: what policies would do on a cluster, or on a dump of one, on a virtual clock."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from vmpool.api.meta import Shape, format_duration, parse_duration
from vmpool.cli.cluster import AllNamespaces, Cluster, Context, Kubeconfig, Mistake, Namespace, in_cluster, out
from vmpool.cli.cluster import problems as errors
from vmpool.cli.clusterfacts import ClusterFacts, gather, of_file, purge_groups
from vmpool.cli.health import numbers_of
from vmpool.cli.purge import table
from vmpool.plan.foresight import cycles_ahead
from vmpool.plan.health import Level, State, filled_at, judge, pool_readings, restored_of
from vmpool.plan.policies import PolicyObject

app = typer.Typer(no_args_is_help=True, help="What policies would do, on a virtual clock; nothing is changed.")
S = TypeVar("S", bound=Shape)

Names = Annotated[list[str] | None, typer.Argument(help="Names of policies; default all.")]
Dump = Annotated[Path | None, typer.Option("--file", help="Objects from kubectl get -o yaml instead of a cluster.")]
Span = Annotated[str, typer.Option("--for", help="How far to look ahead, for example 24h.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Another value for a field of the policy, as maxPendingAge=10m.")
]
MOST_STEPS = 10_000
"""So many cycles or checks are looked at; more would take minutes."""


@app.command("purge")
def purge_ahead(
    names: Names = None,
    file: Dump = None,
    span: Span = "24h",
    changes: Changes = None,
    everywhere: AllNamespaces = False,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Show which VMs purge policies would remove, and when, if nothing else happened."""
    found, start, end = _start(file, span, everywhere, (namespace, kubeconfig, context))
    for policy in _chosen(found.purges, names, "PurgePolicy"):
        spec = _changed(policy.spec, changes)
        out.print(f"[bold]PurgePolicy {policy.namespace}/{policy.name}[/], every {format_duration(spec.interval)}")
        _bounded(spec.interval, start, end)
        total = 0
        for cycle in cycles_ahead(purge_groups(found, policy), spec, start, end):
            would = "would stay, it is paused" if cycle.paused else "would be removed"
            more = f", {cycle.found.deferred} wait" if cycle.found.deferred else ""
            more += f", {len(cycle.found.kept)} are kept" if cycle.found.kept else ""
            out.print(f"after {format_duration(cycle.at - start)}: {len(cycle.found.due)} {would}{more}")
            if cycle.found.due:
                out.print(table(cycle.found.due))
            total += 0 if cycle.paused else len(cycle.found.due)
        out.print(f"{total} VMs in {format_duration(end - start)}")


@app.command("health")
def health_ahead(
    names: Names = None,
    file: Dump = None,
    span: Span = "24h",
    changes: Changes = None,
    everywhere: AllNamespaces = False,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """Show what health policies would say of their pools, now and as time passes, if nothing else happened."""
    found, start, end = _start(file, span, everywhere, (namespace, kubeconfig, context))
    for policy in _chosen(found.healths, names, "HealthPolicy"):
        spec = _changed(policy.spec, changes)
        judged = PolicyObject(
            policy.uid, policy.namespace, policy.name, policy.generation, policy.resource_version, spec, policy.status
        )
        out.print(f"[bold]HealthPolicy {policy.namespace}/{policy.name}[/], every {format_duration(spec.interval)}")
        _bounded(spec.interval, start, end)
        for pool in found.naming(policy.namespace, policy.name, lambda pool: pool.spec.health_policy):
            state: State = restored_of(pool.status.conditions)
            if changes:
                # As the operator does: other limits are judged afresh.
                state = State(told=state.told)
            filled = filled_at(pool, found.vms_of(pool), None, spec.thresholds.empty_pool_max_age, start)
            told: Level | None = None
            at = start
            while at <= end:
                numbers = numbers_of(found, judged, pool, at, filled)
                state = judge(state, pool_readings(numbers, spec.thresholds), spec.hysteresis)
                if state.told.level is not told:
                    told = state.told.level
                    after = format_duration(at - start)
                    out.print(f"after {after}: {pool.name} {told.word}: {state.told.message}", markup=False)
                at += spec.interval


def _start(
    file: Path | None, span: str, everywhere: bool, where: tuple[str, str, str]
) -> tuple[ClusterFacts, datetime, datetime]:
    """Return the facts, now, and how far to look."""
    namespace, kubeconfig, context = where
    now = datetime.now(UTC)
    try:
        ahead = parse_duration(span)
        if not isinstance(ahead, timedelta) or ahead <= timedelta():
            raise Mistake(f"--for must be a duration above 0 such as 24h, is {span!r}")
        if file is not None:
            return of_file(file), now, now + ahead
    except (Mistake, ValueError) as error:
        errors.print(f"error: {error}", markup=False)
        raise typer.Exit(1) from None

    async def work(cluster: Cluster) -> ClusterFacts:
        return await gather(cluster, everywhere=everywhere)

    return in_cluster(kubeconfig, context, namespace, work), now, now + ahead


def _bounded(interval: timedelta, start: datetime, end: datetime) -> None:
    """End the command when more would have to be looked at than can be: half an answer would be a wrong one."""
    if (end - start) / interval > MOST_STEPS:
        longest = format_duration(interval * MOST_STEPS)
        errors.print(f"error: with spec.interval {format_duration(interval)} --for can be {longest} at most")
        raise typer.Exit(1)


P = TypeVar("P", bound=PolicyObject[Any, Any])


def _chosen(policies: list[P], names: list[str] | None, kind: str) -> list[P]:
    chosen = [one for one in policies if not names or one.name in names]
    if missing := sorted(set(names or ()) - {one.name for one in chosen}):
        errors.print(f"error: there is no {kind} {', '.join(missing)}")
        raise typer.Exit(1)
    if not chosen:
        out.print(f"no {kind}")
    return sorted(chosen, key=lambda one: (one.namespace, one.name))


def _changed(spec: S, changes: list[str] | None) -> S:
    """Return the spec with other values. Ends the command for a field or value that makes no sense."""
    given: dict[str, Any] = spec.wire()
    try:
        for change in changes or ():
            _set(given, change)
        return type(spec).model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        message = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    except Mistake as error:
        message = str(error)
    errors.print(f"error: {message}", markup=False)
    raise typer.Exit(1)


def _set(given: dict[str, Any], change: str) -> None:
    """Put one ``field.field=value`` into a spec. Raises Mistake for a field that is not there."""
    path, equals, value = change.partition("=")
    if not equals:
        raise Mistake(f"--set takes field=value, is {change!r}")
    target: Any = given
    *outer, last = path.split(".")
    for part in outer:
        target = target.get(part) if isinstance(target, dict) else None
    if not isinstance(target, dict) or last not in target:
        raise Mistake(f"there is no field {path}")
    target[last] = value
