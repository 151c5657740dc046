"""Fixtures of the tests of ``deploy``: Helm, kubectl, Argo CD's scripts, and a control plane that Git alone fills."""

import os
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.api import api, shared_namespace
from tests.chart.conftest import chart_tools, helm
from tests.clouds import shared_simcloud, simcloud
from tests.deploy.argo import Scripts, load
from tests.planes import Kubectl, kubectl_of, throwaway_plane
from vmpool.dev.binaries import Binaries
from vmpool.dev.plane import ControlPlane

__all__ = ["api", "chart_tools", "helm", "shared_namespace", "shared_simcloud", "simcloud"]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RENDER_SECONDS = 60


@pytest.fixture(scope="session")
def scripts() -> Scripts:
    """What Argo CD is told about our kinds."""
    return load()


@pytest.fixture(scope="session")
def kustomize(plane_binaries: Binaries) -> Callable[[Path], str]:
    """What kustomize makes of a folder; it asks no server. Fails the test when it has anything to say."""

    @cache
    def build(folder: Path) -> str:
        environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": os.devnull}
        argv = [str(plane_binaries.kubectl), "kustomize", str(folder)]
        done = subprocess.run(
            argv, env=environment, capture_output=True, text=True, check=False, timeout=RENDER_SECONDS
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    return build


@pytest.fixture(scope="module")
def git_plane(plane_binaries: Binaries) -> Iterator[ControlPlane]:
    """A control plane of its own: an environment brings definitions, roles and policies of the whole cluster."""
    with throwaway_plane(plane_binaries) as made:
        yield made


@pytest.fixture(scope="module")
def git_kubectl(git_plane: ControlPlane) -> Kubectl:
    """kubectl for it."""
    return kubectl_of(git_plane)
