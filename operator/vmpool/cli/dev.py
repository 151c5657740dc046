"""`vmpool dev`: a local Kubernetes control plane for daily work."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vmpool.dev import build
from vmpool.dev import plane as planes
from vmpool.dev.errors import DevError
from vmpool.dev.progress import Progress
from vmpool.dev.state import Home, default_home

MEBIBYTE = 2**20

app = typer.Typer(no_args_is_help=True, help="A local Kubernetes control plane: etcd, API server, controllers.")
_out = Console(soft_wrap=True)
_progress = Progress(Console(stderr=True))


@app.command()
def up(
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what is stored.")] = False,
    throwaway: Annotated[
        bool, typer.Option("--unsafe-no-fsync", help="Faster, but a power failure loses what is stored.")
    ] = False,
) -> None:
    """Start the control plane, building it first where needed. Safe to repeat."""
    with _errors_explained():
        home = default_home(os.environ)
        binaries = build.ensure(os.environ, _progress)
        if binaries.warning:
            _progress.note(f"note: {binaries.warning}")
        plane = planes.ControlPlane(home, binaries, throwaway=throwaway, report=_progress.note)
        started = plane.start(fresh=fresh)
        _progress.note("the control plane is up" if started else "the control plane was up already")
        _say_what_next(home, plane.url)


@app.command("build")
def build_only() -> None:
    """Build the binaries that are not in the cache yet, and start nothing."""
    with _errors_explained():
        binaries = build.ensure(os.environ, _progress)
        _progress.note(f"the control plane's binaries are in {binaries.folder}")


@app.command()
def down(
    purge: Annotated[bool, typer.Option("--purge", help="Also remove the state folder with all data.")] = False,
) -> None:
    """Stop the control plane. What is stored stays, unless you say --purge."""
    with _errors_explained():
        home = default_home(os.environ)
        if purge:
            planes.purge(home, report=_progress.note)
            _progress.note(f"stopped, and {home.path} is removed")
        elif planes.stop(home, graceful=True, report=_progress.note):
            _progress.note("stopped; the data stay until: vmpool dev down --purge")
        else:
            _progress.note("nothing was running")


@app.command()
def status() -> None:
    """Show every component; the exit code is 0 only if all are healthy."""
    home = default_home(os.environ)
    found = planes.statuses(home)
    if not found:
        _progress.note("not running; type: vmpool dev up")
        raise typer.Exit(1)
    table = Table("COMPONENT", "PID", "ADDRESS", "HEALTHY", "MEMORY", box=None)
    for each in found:
        pid = "-" if each.pid is None else str(each.pid)
        healthy = "yes" if each.healthy else "no"
        table.add_row(each.name, pid, each.address, healthy, f"{each.resident // MEBIBYTE} MiB")
    _out.print(table)
    if not planes.healthy_throughout(home):
        _progress.note("not all of it is well; type: vmpool dev up")
        raise typer.Exit(1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def kubectl(context: typer.Context) -> None:
    """Run kubectl against this control plane; all arguments are its own."""
    with _errors_explained():
        argv, environment = planes.kubectl_call(default_home(os.environ), context.args)
    os.execve(argv[0], argv, environment)  # noqa: S606 -- a fixed program, no shell


@contextmanager
def _errors_explained() -> Iterator[None]:
    try:
        yield
    except DevError as error:
        _progress.note(f"error: {error}")
        raise typer.Exit(1) from error


def _say_what_next(home: Home, url: str) -> None:
    _out.print(f"API server   {url}", highlight=False)
    _out.print(f"kubeconfig   {home.kubeconfig}", highlight=False)
    _out.print("next         vmpool dev kubectl get namespaces", highlight=False)
    _out.print(f"or           export KUBECONFIG={shlex.quote(str(home.kubeconfig))}", highlight=False)


if __name__ == "__main__":
    app()
