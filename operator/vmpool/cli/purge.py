"""``vmpool purge``: what purge policies would remove now."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from vmpool.cli.cluster import AllNamespaces, Cluster, Context, Kubeconfig, Namespace, in_cluster, out, problems
from vmpool.cli.clusterfacts import ClusterFacts, gather, purge_groups
from vmpool.plan import purge

app = typer.Typer(no_args_is_help=True, help="Purge policies: what is too old.")


@app.callback()
def about() -> None:
    """Purge policies: what is too old."""


@app.command()
def run(
    names: Annotated[list[str] | None, typer.Argument(help="Names of PurgePolicies; default all.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed.")] = False,
    everywhere: AllNamespaces = False,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = "",
    context: Context = "",
) -> None:
    """List what would be removed now. Removing is the operator's: it does when spec.dryRun is false."""
    if not dry_run:
        problems.print("error: only --dry-run can be asked for here; the operator purges where spec.dryRun is false")
        raise typer.Exit(2)

    async def work(cluster: Cluster) -> ClusterFacts:
        return await gather(cluster, everywhere=everywhere)

    found, now = in_cluster(kubeconfig, context, namespace, work), datetime.now(UTC)
    chosen = [one for one in found.purges if not names or one.name in names]
    if missing := sorted(set(names or ()) - {one.name for one in chosen}):
        problems.print(f"error: there is no PurgePolicy {', '.join(missing)}")
        raise typer.Exit(1)
    for policy in sorted(chosen, key=lambda one: (one.namespace, one.name)):
        looked = purge.look(purge_groups(found, policy), policy.spec, now)
        head = f"PurgePolicy {policy.namespace}/{policy.name}: {len(looked.due)} would be removed"
        more = [f"{looked.deferred} wait for later cycles"] if looked.deferred else []
        more += [f"{len(looked.kept)} are kept (exempt, paused, or out of reach)"] if looked.kept else []
        pause = purge.active_pause(policy.spec, now)
        more += [f"nothing is removed: {purge.paused_by(pause)}"] if pause is not None else []
        out.print("; ".join([head, *more]))
        if looked.due:
            out.print(table(looked.due))
    if not chosen:
        out.print("no purge policies")


def table(stale: tuple[purge.Stale, ...]) -> Table:
    """Return the list of what is too old, as people read it."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("VM", "POOL", "STATE", "AGE", "MAX"):
        made.add_column(name, no_wrap=True)
    for one in stale:
        made.add_row(one.vm.name, one.vm.pool, one.state.value, f"{one.seconds}s", f"{one.most}s")
    return made
