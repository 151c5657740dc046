"""``python -m bench [name ...]``: measure, show a table, keep the results."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from tests.clouds import SimCloud
from tests.planes import CRDS

from bench import checkout, claim, cold_start, failures, fill, idle, memory, plan, react, sizes, takeover
from bench.figures import Result
from bench.rig import Rig, raised
from vmpool.dev import build
from vmpool.dev.plane import ControlPlane, kubectl_call
from vmpool.dev.progress import Progress
from vmpool.dev.state import Home

BENCHES: dict[str, Callable[[Rig, int], Awaitable[Result]]] = {
    "checkout": checkout.run,
    "claim": claim.run,
    "cold_start": cold_start.run,
    "failures": failures.run,
    "fill": fill.run,
    "fill_sizes": sizes.run,
    "idle": idle.run,
    "memory": memory.run,
    "plan": plan.run,
    "react": react.run,
    "takeover": takeover.run,
}
PAIRS = 5


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Which of {', '.join(BENCHES)}; all by default.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of ours and the floor; medians are over these.")] = PAIRS,
    keep: Annotated[bool, typer.Option(help="Write bench/results/<name>.json.")] = True,
) -> None:
    """Measure what the operator costs, each figure beside its floor. Ends with 1 when a promise is broken."""
    console = Console()
    unknown = set(names or ()) - BENCHES.keys()
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: must be of {', '.join(BENCHES)}")
    broken = asyncio.run(_run(names or list(BENCHES), pairs, keep=keep, console=console))
    sys.exit(1 if broken else 0)


async def _run(names: list[str], pairs: int, *, keep: bool, console: Console) -> bool:
    broken = False
    with tempfile.TemporaryDirectory(prefix="vmpool-bench-") as name, stage(Path(name), console) as (plane, cloud):
        for bench in names:
            async with raised(plane, cloud, Path(name), console.log) as rig:
                result = await BENCHES[bench](rig, pairs)
            console.print(_table(result))
            broken = broken or bool(result.broken())
            if keep:
                result.write()
    return broken


@contextmanager
def stage(folder: Path, console: Console) -> Iterator[tuple[ControlPlane, SimCloud]]:
    """Yield a control plane that serves our kinds and a simulated cloud, both ended afterwards."""
    binaries = build.ensure(os.environ, Progress(console))
    plane = ControlPlane(Home(folder / "plane"), binaries, throwaway=True)
    (folder / "cloud").mkdir()
    cloud = SimCloud(folder / "cloud")
    # A terminated run takes the way of an interrupted one: what it has started ends with it.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        plane.start()
        files = [f"--filename={file}" for file in sorted(CRDS.glob("*.yaml"))]
        for words in (["apply", "--server-side"], ["wait", "--for=condition=Established", "--timeout=60s"]):
            argv, environment = kubectl_call(plane.home, [*words, *files])
            subprocess.run(argv, env=environment, check=True, capture_output=True)
        cloud.start()
        yield plane, cloud
    finally:
        cloud.stop()
        plane.stop()
        signal.signal(signal.SIGTERM, before)


def _table(result: Result) -> Table:
    table = Table(title=f"{result.name}: medians of {len(result.pairs)} pairs", title_justify="left")
    for heading in ("figure", "ours", "floor", "ratio", "promise", "kept"):
        table.add_column(heading, justify="left" if heading in ("figure", "promise") else "right")
    promises = {promise.metric: promise for promise in result.promises}
    for name, value in result.metrics.items():
        promise = promises.get(name)
        table.add_row(
            name,
            f"{value:.4g}",
            f"{result.floor[name]:.4g}" if name in result.floor else "",
            f"{result.ratio[name]:.2f}" if name in result.ratio else "",
            str(promise) if promise else "",
            ("yes" if result.kept(promise) else "[bold red]no[/]") if promise else "",
        )
    return table


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
