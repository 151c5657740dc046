"""``python -m bench.profile [name ...]``: keep under ``bench/profiles`` where each benchmark's cost comes from.

The stages are those of the benchmarks, at one size each. Profilers slow down what they look at, so the reports say
which part is large, and the benchmarks say how large.
"""

import asyncio
import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tests.waiting import until

from bench.__main__ import stage
from bench.asking import stock_needed
from bench.listener import free_port, listening
from bench.processes import Clients, Gateway, Operator
from bench.rig import POOL, Field, Rig, raised, serves
from bench.stock import shelf, stocked
from vmpool.kube.kinds import POOLEDVMS, VMPOOLS
from vmpool.kube.resource import Json

ROOT = Path(__file__).parent.parent
PROFILES = Path(__file__).parent / "profiles"
FILLED = 500
STARTED = 2_000
IDLE = 1_000
IDLE_SECONDS = 60.0
IDLE_SETTLES_SECONDS = 70.0
"""Longer than a probe interval: every VM was probed once, and what follows is routine."""
REACTING = 50
DELETED = 30
HELD = 5_000
CHECKED_OUT = 2_000
CLAIMED = 500
CLIENTS = 16
DEADLINE_SECONDS = 120.0


class Inside:
    """A process with a profiler inside, that writes its report where it was told to."""

    _environment: dict[str, str]
    _process: subprocess.Popen[bytes] | None
    log: Path
    task: str

    @property
    def report(self) -> Path:
        """Where the report will be."""
        return self.log.parent / "report.txt"

    def start(self) -> None:
        """Start it; returns at once."""
        argv = [sys.executable, "-m", "bench.profiled", self.task, str(self.report)]
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(argv, env=self._environment, stdout=out, stderr=out)

    def switch(self) -> None:
        """Turn the profiler on, or off."""
        assert self._process is not None, "not started"
        self._process.send_signal(signal.SIGUSR1)

    async def reported(self) -> str:
        """Turn the profiler off and return what it has seen."""
        self.switch()
        await until(self.report.exists, deadline=DEADLINE_SECONDS, what="the report is there")
        return self.report.read_text()


class Profiled(Inside, Operator):
    """An operator with a profiler inside."""

    def __init__(self, rig: Rig, where: Field, task: str) -> None:
        super().__init__(rig.plane.kubeconfig, rig.folder_for("profiled"), PYTHONPATH=str(ROOT), **serves(where))
        self.task = task


class ProfiledGateway(Inside, Gateway):
    """A gateway with a profiler inside."""

    task = "gateway"

    def __init__(self, rig: Rig, where: Field, **settings: str) -> None:
        own = {**serves(where), **settings}
        super().__init__(rig.plane.kubeconfig, rig.folder_for("profiled"), PYTHONPATH=str(ROOT), **own)


@asynccontextmanager
async def _running(rig: Rig, where: Field, task: str) -> AsyncIterator[Profiled]:
    operator = Profiled(rig, where, task)
    operator.start()
    try:
        yield operator
        operator.stop()
    finally:
        operator.kill()


async def fill(rig: Rig) -> str:
    """From the manifest of a pool until its last VM is Ready, at a cloud whose machines run at once."""
    where = await stocked(rig, 0)
    async with _running(rig, where, "busy") as operator:
        await operator.ready()
        await rig.provider_ready(where)
        operator.switch()
        ready = rig.each_ready(where)
        await anext(ready)
        await rig.client.patch_merge(VMPOOLS, where.namespace, "pool", {"spec": {"replicas": FILLED}})
        async for count in ready:
            if count >= FILLED:
                break
        await ready.aclose()
        text = await operator.reported()
    return f"{FILLED} VMs\n{text}"


async def cold_start(rig: Rig) -> str:
    """From the first line of the program until its first plan."""
    where = await stocked(rig, STARTED)
    async with _running(rig, where, "start") as operator:
        await operator.said("first_plan", DEADLINE_SECONDS)
        text = await operator.reported()
    await rig.clear(where)
    return f"{STARTED} existing VMs\n{text}"


async def idle(rig: Rig) -> str:
    """A pool of ready VMs that nobody touches, observed and probed at the default intervals."""
    port = free_port()
    where = await stocked(rig, IDLE, readiness={"tcpSocket": {"port": port}})
    addresses = [vm["status"]["addresses"][0] for vm in await _vms(rig, where)]
    async with listening(port, addresses), _running(rig, where, "quiet") as operator:
        await operator.ready()
        await rig.provider_ready(where)
        await asyncio.sleep(IDLE_SETTLES_SECONDS)
        operator.switch()
        await asyncio.sleep(IDLE_SECONDS)
        text = await operator.reported()
    await rig.clear(where)
    return f"{IDLE} VMs for {IDLE_SECONDS:g} s\n{text}"


async def react(rig: Rig) -> str:
    """From the DELETE of a Ready VM until its object is gone and its successor Ready, again and again."""
    where = await stocked(rig, REACTING, maxVMs=REACTING + 10)
    async with _running(rig, where, "quiet") as operator:
        await operator.ready()
        await rig.provider_ready(where)
        operator.switch()
        for _ in range(DELETED):
            await _replaced(rig, where, (await _vms(rig, where))[0])
        text = await operator.reported()
    await rig.clear(where)
    return f"{DELETED} deletions in a pool of {REACTING} VMs\n{text}"


async def _replaced(rig: Rig, where: Field, vm: Json) -> None:
    meta = vm["metadata"]
    await rig.client.delete(POOLEDVMS, where.namespace, meta["name"], uid=meta["uid"])

    async def full_again() -> bool:
        vms = await _vms(rig, where)
        ready = [one for one in vms if one["status"].get("phase") == "Ready"]
        return len(ready) == len(vms) == REACTING and all(one["metadata"]["uid"] != meta["uid"] for one in vms)

    await until(full_again, deadline=DEADLINE_SECONDS, what="the successor is Ready")


async def checkout(rig: Rig) -> str:
    """Checkouts over the REST API by clients that each ask again as soon as they have their VM."""
    where = await shelf(rig, stock_needed(CLIENTS, CHECKED_OUT))
    gateway = ProfiledGateway(rig, where, VMPOOL_GATEWAY_AUTHORIZATION="open")
    gateway.start()
    try:
        await gateway.ready()
        clients = await Clients.start("checkout", url=gateway.url, pool=POOL, clients=CLIENTS, count=CHECKED_OUT)
        gateway.switch()
        await clients.waits()
        text = await gateway.reported()
        gateway.stop()
    finally:
        gateway.kill()
    await rig.clear(where)
    return f"{CHECKED_OUT} checkouts by {CLIENTS} clients\n{text}"


async def claim(rig: Rig) -> str:
    """From making a VMClaim until it is Bound, by clients that each make the next one then."""
    needed = stock_needed(CLIENTS, CLAIMED)
    where = await stocked(rig, needed, maxVMs=needed)
    address = {"kubeconfig": str(rig.plane.kubeconfig), "namespace": where.namespace, "pool": POOL}
    async with _running(rig, where, "quiet") as operator:
        await operator.ready()
        await rig.provider_ready(where)
        clients = await Clients.start("claim", **address, clients=CLIENTS, count=CLAIMED)
        operator.switch()
        await clients.waits()
        text = await operator.reported()
    await rig.clear(where)
    return f"{CLAIMED} VMClaims by {CLIENTS} clients\n{text}"


async def memory(rig: Rig) -> str:
    """What an operator holds that has read, listed and planned for its VMs."""
    where = await stocked(rig, HELD)
    async with _running(rig, where, "memory") as operator:
        await operator.said("first_plan", DEADLINE_SECONDS)

        def observed() -> bool:
            found = [line for line in operator.http("/metrics").splitlines() if line.startswith("vmpool_machines{")]
            return any(float(line.rsplit(" ", 1)[1]) == HELD for line in found)

        await until(observed, deadline=DEADLINE_SECONDS, what="the machines are listed")
        text = await operator.reported()
    await rig.clear(where)
    return f"{HELD} VMs\n{text}"


async def _vms(rig: Rig, where: Field) -> Sequence[Json]:
    return [item async for page in rig.client.list_pages(POOLEDVMS, where.namespace) for item in page.items]


async def plan(folder: Path) -> str:
    """One plan over a large pool, again and again."""
    to = folder / "plan.txt"
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.profiled", "plan", str(to), cwd=ROOT)
    assert await process.wait() == 0, "the profile of the plan failed"
    return to.read_text()


ON_STAGE: dict[str, Callable[[Rig], Awaitable[str]]] = {
    "checkout": checkout,
    "claim": claim,
    "cold_start": cold_start,
    "fill": fill,
    "idle": idle,
    "memory": memory,
    "react": react,
}
NAMES = sorted([*ON_STAGE, "plan"])


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Which of {', '.join(NAMES)}; all by default.")] = None,
) -> None:
    """Profile the benchmarks, each into bench/profiles/<name>.txt."""
    unknown = set(names or ()) - set(NAMES)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: must be of {', '.join(NAMES)}")
    asyncio.run(_run(names or NAMES, Console()))


async def _run(names: Sequence[str], console: Console) -> None:
    with tempfile.TemporaryDirectory(prefix="vmpool-profile-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if "plan" in names:
            _keep("plan", plan.__doc__ or "", await plan(folder), console)
        staged = [one for one in names if one in ON_STAGE]
        if staged:
            plane, cloud = stack.enter_context(stage(folder, console))
            for one in staged:
                async with raised(plane, cloud, folder, console.log) as rig:
                    _keep(one, ON_STAGE[one].__doc__ or "", await ON_STAGE[one](rig), console)


def _keep(name: str, what: str, text: str, console: Console) -> None:
    PROFILES.mkdir(exist_ok=True)
    path = PROFILES / f"{name}.txt"
    path.write_text(f"{name}: {what}\n{text}")
    console.log(f"{path.relative_to(ROOT)} is written")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
