"""The guide's own words, tried: one operator serves the tests of a module, and every command is what people type."""

from collections.abc import Iterator

import pytest

from tests.api import Api, api, shared_namespace
from tests.clouds import SimCloud, make_simcloud, shared_simcloud, simcloud
from tests.commands import Run, command
from tests.control_plane.operator.box import Box
from tests.control_plane.operator.purges import SOON, Purge
from tests.control_plane.operator.stage import Stage
from tests.operators import Operator, operator, serving
from vmpool.dev.plane import ControlPlane

__all__ = [
    "api",
    "make_simcloud",
    "operator",
    "shared_namespace",
    "shared_simcloud",
    "simcloud",
]


@pytest.fixture(scope="module")
def served(
    plane: ControlPlane, shared_namespace: str, crds_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    """An operator that looks again soon after something changed; what it decides is as ever."""
    with serving(plane, shared_namespace, tmp_path_factory.mktemp("operator"), **SOON) as made:
        yield made


@pytest.fixture
async def stage(api: Api, served: Operator, shared_namespace: str, simcloud: SimCloud) -> Stage:
    """Names of the test's own in the module's namespace, served by the module's operator."""
    await served.ready()
    return Stage(api, shared_namespace, simcloud)


@pytest.fixture
def box(stage: Stage) -> Box:
    """The stage's dead letters."""
    return Box(stage)


@pytest.fixture
def tidy(stage: Stage, served: Operator) -> Purge:
    """The stage's purge policy."""
    return Purge(stage, served)


@pytest.fixture
def run(plane: ControlPlane, stage: Stage) -> Run:
    """Call ``run("dlq", "list")`` as a user types ``vmpool dlq list``; fails unless it ends with ``code``."""
    return command(plane)
