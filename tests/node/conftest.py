"""Fixtures of the image and of the node that runs it, on this machine or in a container engine."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.node import dockerfile, kinded, oci, unshared
from tests.node.base import base
from tests.node.builder import Builder, Layer
from tests.node.cluster import Cluster
from tests.node.configs import PAUSE_IMAGE, Programs
from vmpool.dev import helm
from vmpool.dev import node as node_tools
from vmpool.dev.binaries import Binaries, cache_folder
from vmpool.dev.errors import DevError
from vmpool.dev.files import locked
from vmpool.dev.helm import ChartTools
from vmpool.dev.progress import Progress

ROOT = Path(__file__).parents[2]
# What a container runtime makes of a name without a place.
IMAGE = f"{'.'.join(('docker', 'io'))}/library/vmpool:0.1.0"
"""What nodes make of the chart's default, which names no registry."""
BUILD_SECONDS = 1800.0
PAUSE = {"User": "65534:65534", "Env": ["PATH=/usr/bin:/bin"], "Entrypoint": ["/bin/sleep"], "Cmd": ["infinity"]}

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Image:
    """The image as it was built here, its layers as folders and as tar files, the base first."""

    stages: list[dockerfile.Stage]
    layers: list[Layer]
    tars: list[Path]
    pause: Path
    archive: Path


class Loud(Progress):
    """Lines on the console while a test runs, whatever is captured."""

    def __init__(self, capture: Any) -> None:
        super().__init__(Console(stderr=True))
        self._capture = capture

    def note(self, line: str) -> None:
        """Print a line that stays."""
        with self._capture.global_and_fixture_disabled():
            super().note(line)


@pytest.fixture(scope="session")
def progress(pytestconfig: pytest.Config) -> Progress:
    """Says on the console what happens, while it happens."""
    return Loud(pytestconfig.pluginmanager.getplugin("capturemanager"))


@pytest.fixture(scope="session")
def tell(progress: Progress) -> Tell:
    """Says one line."""
    return progress.note


@pytest.fixture(scope="session")
def this_machine() -> None:
    """Skips with the reason where neither an image can be made nor a node run."""
    if why := unshared.missing():
        pytest.skip(f"no node: {why}")


@pytest.fixture(scope="session")
def image(this_machine: None, tell: Tell, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image of this tree, built by the steps of the Dockerfile over a base of Debian's packages."""
    cache = cache_folder(os.environ) / "image"
    stages = dockerfile.read((ROOT / "Dockerfile").read_text())
    with locked(cache / "lock", deadline=BUILD_SECONDS, on_wait=lambda: tell("image: waits for another build")):
        layers = Builder(ROOT, base(cache, tell), cache / "layers", tell).build(stages)
    folder = tmp_path_factory.mktemp("image")
    tars = [oci.pack(layer, folder) for layer in layers]
    oci.write(folder / "pause.tar", PAUSE_IMAGE, tars[:1], PAUSE)
    oci.write(folder / "vmpool.tar", IMAGE, tars, oci.settings(stages[-1]))
    return Image(stages, layers, tars, folder / "pause.tar", folder / "vmpool.tar")


@pytest.fixture(scope="session")
def chart_tools(progress: Progress) -> ChartTools:
    """Helm, built on the first run of a machine."""
    try:
        return helm.ensure(os.environ, progress)
    except DevError as error:
        pytest.skip(f"no Helm: {error}")


def _unshared(request: pytest.FixtureRequest, ending: ExitStack) -> Cluster:
    tell = request.getfixturevalue("tell")
    request.getfixturevalue("this_machine")
    network = node_tools.network_folder()
    if network is None:
        pytest.skip(f"no node: {', '.join(node_tools.NETWORK_PLUGINS)} of containernetworking-plugins not installed")
    binaries: Binaries = request.getfixturevalue("plane_binaries")
    try:
        tools = node_tools.ensure(os.environ, request.getfixturevalue("progress"))
    except DevError as error:
        pytest.skip(f"no node: {error}")
    image: Image = request.getfixturevalue("image")
    programs = Programs(binaries.folder, tools.kubernetes, tools.containerd, tools.coredns, network)
    helm_binary = request.getfixturevalue("chart_tools").helm
    return ending.enter_context(unshared.node(programs, helm_binary, [image.pause, image.archive], tell))


def _kind(request: pytest.FixtureRequest, ending: ExitStack) -> Cluster:
    tell = request.getfixturevalue("tell")
    if why := kinded.missing():
        pytest.skip(f"no kind: {why}")
    binaries: Binaries = request.getfixturevalue("plane_binaries")
    helm_binary = request.getfixturevalue("chart_tools").helm
    return ending.enter_context(kinded.node(binaries.kubectl, helm_binary, tell))


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(_unshared, id="unshare", marks=pytest.mark.node),
        pytest.param(_kind, id="kind", marks=pytest.mark.kind),
    ],
)
def node(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A real node with the image on it, on this machine or in a container engine; nothing of ours is installed."""
    with ExitStack() as ending:
        yield request.param(request, ending)
