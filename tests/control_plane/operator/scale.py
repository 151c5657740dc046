"""What the tests of large numbers share: a control plane of their own, an operator that bears a busy one, and eyes."""

import asyncio
import json
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api import Json
from tests.operators import Operator
from tests.planes import Kubectl, install_crds, kubectl_of, throwaway_plane
from tests.waiting import until
from vmpool.dev.binaries import Binaries
from vmpool.dev.plane import ControlPlane, kubectl_call

T = TypeVar("T")

PATIENT = {"VMPOOL_LEASE_SECONDS": "15", "VMPOOL_LEASE_RENEW_SECONDS": "10", "VMPOOL_LEASE_RETRY_SECONDS": "2"}
"""The lease as users have it: a server that is kept busy for its own sake must not end the operator."""
DEADLINE = 300.0
AT_ONCE = 16
STOP_SECONDS = 10


@pytest.fixture(scope="module")
def plane(plane_binaries: Binaries) -> Iterator[ControlPlane]:
    """A control plane for one module: to throw thousands of objects away with it is quicker than to delete them."""
    with throwaway_plane(plane_binaries) as made:
        yield made


@pytest.fixture(scope="module")
def kubectl(plane: ControlPlane) -> Kubectl:
    """As everywhere, for the module's own control plane."""
    return kubectl_of(plane)


@pytest.fixture(scope="module")
def crds_installed(kubectl: Kubectl) -> None:
    """Every kind of ours is served there."""
    install_crds(kubectl)


def patient(plane: ControlPlane, namespace: str, folder: Path, **settings: str) -> Operator:
    """An operator of one namespace, not started, with the lease that users have."""
    own = {"VMPOOL_WATCH_NAMESPACE": namespace, "VMPOOL_NAMESPACE": namespace}
    return Operator(plane.kubeconfig, folder, **own, **PATIENT, **settings)


async def while_running(operator: Operator, check: Callable[[], Awaitable[T]], what: str) -> T:
    """``until``, with time for thousands; fails at once when the operator has ended."""

    async def running() -> T:
        assert operator.running, f"the operator ended:\n{operator.lines()[-3000:]}"
        return await check()

    return await until(running, deadline=DEADLINE, what=what)


async def each(things: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Do something with everything, some of them at once; begun in their order."""
    left = iter(things)

    async def worker() -> None:
        for one in left:
            await work(one)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


def memory_kb(pid: int) -> dict[str, int]:
    """What a process has resident, in KB: in all, in proportion where it is shared, and its own alone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    found = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    return {"rss": found["Rss"], "pss": found["Pss"], "uss": found["Private_Clean"] + found["Private_Dirty"]}


@contextmanager
def watched(plane: ControlPlane, path: str, version: str, file: Path) -> Iterator[None]:
    """Write every event since a version into a file."""
    raw = f"{path}?watch=1&resourceVersion={version}&timeoutSeconds=3600"
    argv, environment = kubectl_call(plane.home, ["get", "--raw", raw])
    with file.open("wb") as out, subprocess.Popen(argv, env=environment, stdout=out) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


def watch_events(file: Path) -> list[Json]:
    """The events in a file of ``watched``; what was cut off at its end is left out."""
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def requests(operator: Operator) -> Counter[tuple[str, str]]:
    """What the operator has asked of the API server so far, by method and resource."""
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(operator.http("/metrics")):
        for sample in family.samples:
            if sample.name == "vmpool_api_requests_total":
                found[sample.labels["method"], sample.labels["resource"]] += int(sample.value)
    return found
