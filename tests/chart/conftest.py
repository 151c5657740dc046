"""Fixtures of the chart's tests: Helm, and a control plane on which it alone installs what belongs to the cluster."""

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.chart.helm import Helm
from tests.planes import Kubectl, kubectl_of, leave, throwaway_plane
from vmpool.dev import helm as built
from vmpool.dev.binaries import Binaries
from vmpool.dev.errors import DevError
from vmpool.dev.helm import ChartTools
from vmpool.dev.plane import ControlPlane
from vmpool.dev.progress import Progress

GONE_WAITS = 4
GONE_TIMEOUT = "--timeout=45s"
"""So often and so long the definitions are waited for: with less than what one call of kubectl may take."""


@pytest.fixture(scope="session")
def chart_tools() -> ChartTools:
    """Helm and kubeconform; builds them on the first run of a machine, skips where that is impossible."""
    try:
        return built.ensure(os.environ, Progress(Console(stderr=True)))
    except DevError as error:
        pytest.skip(f"no Helm: {error}")


@pytest.fixture(scope="session")
def helm(chart_tools: ChartTools, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm without a cluster."""
    return Helm(chart_tools.helm, tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def chart_plane(plane_binaries: Binaries) -> Iterator[ControlPlane]:
    """A control plane of their own: on the others' the definitions are not Helm's."""
    with throwaway_plane(plane_binaries) as made:
        yield made


@pytest.fixture(scope="session")
def chart_kubectl(chart_plane: ControlPlane) -> Kubectl:
    """kubectl for it."""
    return kubectl_of(chart_plane)


@pytest.fixture
def cluster(helm: Helm, chart_plane: ControlPlane, chart_kubectl: Kubectl) -> Iterator[Helm]:
    """Helm for that control plane, which has no release before and after the test."""
    there = replace(helm, kubeconfig=Path(chart_plane.home.kubeconfig))
    yield there
    for left in json.loads(there.run("list", "--all-namespaces", "--output=json").stdout):
        there.run("uninstall", left["name"], f"--namespace={left['namespace']}")
    ours = chart_kubectl("get", "crds", "--output=name").split()
    mine = [name for name in ours if name.endswith(".vmpool.dev")]
    if mine:
        chart_kubectl("delete", *mine, "--wait=false")
        # The server takes its time now and then, while it is busy with namespaces that go at the same time.
        for _ in range(GONE_WAITS):
            chart_kubectl("wait", "--for=delete", GONE_TIMEOUT, *mine, check=False)
        assert not [each for each in chart_kubectl("get", "crds", "--output=name").split() if each in mine]


@pytest.fixture
def place(chart_plane: ControlPlane, chart_kubectl: Kubectl) -> Iterator[str]:
    """A namespace that enforces the restricted profile; its deletion goes on after the test."""
    name = f"c-{secrets.token_hex(4)}"
    chart_kubectl("create", "namespace", name)
    chart_kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    leave(chart_plane, name)
