"""``vmpool demo``: the first minute. A real API server, the operator, far sides, pools that fill before your eyes."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from vmpool.dev import build, guest, libvirtd, processes
from vmpool.dev import plane as planes
from vmpool.dev.errors import DevError
from vmpool.dev.progress import Progress
from vmpool.dev.state import Home, default_home
from vmpool.kube.client import Client
from vmpool.kube.kinds import VMPOOLS
from vmpool.kube.resource import Json
from vmpool.plan.crds import definitions

SAMPLES = Path(__file__).resolve().parents[3] / "deploy" / "samples"
SIMCLOUD_PORT = 18080
"""The port that the samples name."""
GATEWAY_PORT = 18067
GATEWAY = f"http://127.0.0.1:{GATEWAY_PORT}"
LIBVIRT_NAME = "vmpool-demo"
"""Network and storage pool that the samples name."""
NAMESPACE = "default"
FULL_SECONDS = 180.0
SERVE_SECONDS = 20.0
POLL_SECONDS = 0.25
PLAIN_SECONDS = 5.0
BAR_WIDTH = 25
STOP_SECONDS = 15.0
CHECKOUT_POOL = "debian-12"

_out = Console(soft_wrap=True)
_progress = Progress(Console(stderr=True))


def command(
    stop: Annotated[bool, typer.Option("--stop", help="End everything that the demo has started.")] = False,
    once: Annotated[bool, typer.Option("--once", help="End everything again when the pools were full.")] = False,
) -> None:
    """Show it: a real API server, the operator, a simulated cloud, real machines where libvirt is."""
    home = default_home(os.environ)
    try:
        if stop:
            _end(home)
            return
        try:
            _run(home)
        finally:
            if once:
                _end(home)
    except DevError as error:
        _progress.note(f"error: {error}")
        raise typer.Exit(1) from error
    if not once:
        _say_what_next()


def _run(home: Home) -> None:
    binaries = build.ensure(os.environ, _progress)
    _progress.note("1/5 starting a real control plane")
    planes.ControlPlane(home, binaries, report=_progress.note).start()
    _progress.note("2/5 applying the CustomResourceDefinitions")
    _kubectl(home, "apply", "--server-side", "-f", "-", text=_crds())
    _kubectl(home, "wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    _progress.note("3/5 starting a simulated cloud and the operator")
    samples = [SAMPLES / "simulated.yaml"]
    _spawn(home, "simcloud", "simcloud", "--ledger", str(home.path / "simcloud.sqlite"), "--port", str(SIMCLOUD_PORT))
    _await_port(SIMCLOUD_PORT)
    # On loopback, for whoever has this machine: nobody is asked who they are.
    rest = {"VMPOOL_GATEWAY_PORT": str(GATEWAY_PORT), "VMPOOL_GATEWAY_AUTHORIZATION": "open"}
    arguments = ("--kubeconfig", str(home.kubeconfig), "--http-port", "0", "--gateway")
    _spawn(home, "operator", "operator", *arguments, environment=rest)
    if _real_machines():
        samples.append(SAMPLES / "libvirt.yaml")
    _progress.note("4/5 applying deploy/samples: " + ", ".join(sample.name for sample in samples))
    for sample in samples:
        _kubectl(home, "apply", "--server-side", "-n", NAMESPACE, "-f", str(sample))
    asyncio.run(_watch(home))
    _progress.note("5/5 checking a machine out over the REST API")
    _check_out()


def _crds() -> str:
    import yaml

    return str(yaml.safe_dump_all(definitions().values(), sort_keys=False))


def _real_machines() -> bool:
    """Prepare libvirt for the sample of real machines; say why not, where it cannot be."""
    why_not = libvirtd.missing() or ("" if os.geteuid() == 0 else "needs root")
    if why_not:
        _progress.note(f"    without real machines: {why_not}")
        return False
    host = libvirtd.LibvirtHost(LIBVIRT_NAME)
    try:
        files = guest.build(host.folder)
        host.start()
    except (DevError, OSError) as error:
        _progress.note(f"    without real machines: {error}")
        return False
    for link, target in (("vmlinuz", files.kernel), ("initrd.img", files.initrd)):
        draft = host.folder / f".{link}"
        draft.unlink(missing_ok=True)
        draft.symlink_to(target.name)
        draft.replace(host.folder / link)
    return True


def _marker(home: Home) -> str:
    return f"{home.marker}#demo"


def _spawn(home: Home, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Start a part of vmpool in the background, unless it runs already."""
    log = home.logs / f"{name}.log"
    if _running(home, name):
        return
    argv = [sys.executable, "-m", "vmpool", *arguments]
    processes.spawn(argv, log=log, marker=f"{_marker(home)}/{name}", environment=environment)


def _running(home: Home, name: str) -> list[processes.ProcessId]:
    return list(processes.marked(f"{_marker(home)}/{name}", {Path(sys.executable).name}))


def _end(home: Home) -> None:
    """End in the order that leaves no machine behind: pools first, then who looks after them."""
    if _running(home, "operator") and planes.healthy_throughout(home):
        _progress.note("deleting the pools, so that no machine is left")
        # The demo's own checkout must not hold its pool back.
        for pool in _kubectl(home, "get", "vmpools", "-n", NAMESPACE, "-o", "name", check=False).split():
            patch = '{"spec":{"deletionPolicy":"Force"}}'
            _kubectl(home, "patch", pool, "-n", NAMESPACE, "--type=merge", "-p", patch, check=False)
        _kubectl(home, "delete", "vmpools", "--all", "-n", NAMESPACE, "--timeout=60s", check=False)
    for name in ("operator", "simcloud"):
        for process in _running(home, name):
            processes.end(process, grace=STOP_SECONDS)
    libvirtd.LibvirtHost(LIBVIRT_NAME).stop()
    planes.stop(home, graceful=True, report=_progress.note)
    _progress.note("everything is stopped")


def _await_port(port: int) -> None:
    end = time.monotonic() + SERVE_SECONDS
    while time.monotonic() < end:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(POLL_SECONDS)
    raise DevError(f"the simulated cloud does not answer on port {port}")


def _kubectl(home: Home, *arguments: str, text: str | None = None, check: bool = True) -> str:

    argv, environment = planes.kubectl_call(home, arguments)
    done = subprocess.run(argv, env=environment, input=text, text=True, capture_output=True, check=False)
    if check and done.returncode:
        raise DevError(f"kubectl {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


async def _watch(home: Home) -> None:
    async with await Client.from_kubeconfig(home.kubeconfig) as client:
        began = time.monotonic()
        await _until_full(client)
        _progress.note(f"    every pool is Ready after {time.monotonic() - began:.1f} s")


async def _until_full(client: Client) -> None:
    end = time.monotonic() + FULL_SECONDS
    with _screen() as show:
        while True:
            pools = (await client.list_page(VMPOOLS, NAMESPACE)).items
            show(pools)
            if pools and all(_condition(pool, "Ready").get("status") == "True" for pool in pools):
                return
            if time.monotonic() > end:
                reasons = "; ".join(f"{p['metadata']['name']}: {_condition(p, 'Ready').get('message')}" for p in pools)
                raise DevError(f"not every pool is Ready after {FULL_SECONDS:.0f} s: {reasons}")
            await asyncio.sleep(POLL_SECONDS)


@contextmanager
def _screen() -> Iterator[Callable[[Sequence[Json]], None]]:
    if _out.is_terminal:
        with Live(console=_out, refresh_per_second=8) as live:
            yield lambda pools: live.update(_table(pools))
        return
    shown: list[float | str] = [0.0, ""]

    def plain(pools: Sequence[Json]) -> None:
        line = ", ".join(_summary(pool) for pool in pools)
        if line != shown[1] and time.monotonic() - float(shown[0]) > PLAIN_SECONDS:
            shown[:] = [time.monotonic(), line]
            _out.print(f"    {line}")

    yield plain


def _summary(pool: Json) -> str:
    status = pool.get("status") or {}
    return f"{pool['metadata']['name']} {status.get('readyReplicas', 0)}/{status.get('desiredReplicas', 0)}"


def _table(pools: Sequence[Json]) -> Table:
    table = Table("POOL", "READY", "", "PENDING", "CLAIMED", "STATUS", box=None)
    for pool in pools:
        status = pool.get("status") or {}
        ready, desired = status.get("readyReplicas", 0), status.get("desiredReplicas", 0)
        filled = round(BAR_WIDTH * min(1.0, ready / desired)) if desired else 0
        bar = f"[green]{'█' * filled}[/][dim]{'░' * (BAR_WIDTH - filled)}[/]"
        reason = _condition(pool, "Ready").get("reason", "")
        counts = (
            f"{ready}/{desired}",
            bar,
            str(status.get("pendingReplicas", 0)),
            str(status.get("claimedReplicas", 0)),
        )
        table.add_row(pool["metadata"]["name"], *counts, reason)
    return table


def _condition(obj: Json, kind: str) -> Json:
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one["type"] == kind), {})


def _check_out() -> None:
    """Have a VM handed out over the REST API, as VMPooler's clients do it, and show how long it took."""
    request = urllib.request.Request(f"{GATEWAY}/api/v3/vm/{CHECKOUT_POOL}", method="POST")  # noqa: S310
    _await_port(GATEWAY_PORT)
    for _ in range(2):
        # The first one also opens the connections that later ones use.
        began = time.perf_counter()
        try:
            with urllib.request.urlopen(request, timeout=SERVE_SECONDS) as answer:  # noqa: S310
                got = json.load(answer)[CHECKOUT_POOL]["hostname"]
        except urllib.error.HTTPError as error:
            raise DevError(f"the gateway answered {error.code}: {error.read().decode(errors='replace')}") from error
        spent = (time.perf_counter() - began) * 1000
    _out.print(f"    {got} is yours for a day; that took {spent:.1f} ms", highlight=False)


def _say_what_next() -> None:
    # `make demo` runs in an environment of its own, which is on nobody's PATH.
    own = "vmpool" if shutil.which("vmpool") else str(Path(sys.executable).parent / "vmpool")
    for what, type_this in (
        ("check out", f"curl -X POST {GATEWAY}/api/v3/vm/{CHECKOUT_POOL}"),
        ("claim", f"vmpool dev kubectl apply -f {SAMPLES / 'claim.yaml'}"),
        ("look", "vmpool dev kubectl get vmp,vmc,pvm,vmprov"),
        ("scale", "vmpool dev kubectl scale vmp debian-12 --replicas=30"),
        ("explain", "vmpool dev kubectl get vmp -o wide"),
        ("describe", "vmpool dev kubectl describe vmp debian-12"),
        ("end it all", "vmpool demo --stop"),
    ):
        _out.print(f"{what:<12} {type_this.replace('vmpool', own, 1)}", highlight=False)
