"""The command line: which verbs there are."""

import sys

import typer
import yaml

import vmpool
from vmpool.cli import demo, dev, dlq, explain, health, purge, simcloud, simulate, uninstall
from vmpool.plan.crds import definitions

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pools of ready-to-use virtual machines as Kubernetes objects.",
)
app.add_typer(dev.app, name="dev")
app.add_typer(dlq.app, name="dlq")
app.add_typer(purge.app, name="purge")
app.add_typer(simulate.app, name="simulate")
app.command(name="health")(health.command)
app.command(name="explain")(explain.command)
app.command(name="simcloud", help="Run a small simulated cloud with a durable ledger.")(simcloud.command)
app.command(name="demo")(demo.command)
app.command(name="uninstall")(uninstall.command)


@app.command()
def crds() -> None:
    """Print the CustomResourceDefinitions, for: vmpool crds | kubectl apply --server-side -f -"""
    yaml.safe_dump_all(definitions().values(), sys.stdout, sort_keys=False, width=110)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(vmpool.__version__)
