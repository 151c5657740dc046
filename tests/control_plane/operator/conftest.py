"""A real operator process on a real API server and the simulated cloud; one operator serves the tests of a module."""

import secrets
from collections.abc import Iterator

import pytest

from tests.api import Api
from tests.clouds import SimCloud, make_simcloud, shared_simcloud, simcloud
from tests.control_plane.operator.stage import Stage
from tests.operators import Operator, operator, serving
from tests.planes import Kubectl
from vmpool.dev.plane import ControlPlane

__all__ = ["make_simcloud", "operator", "shared_simcloud", "simcloud"]


@pytest.fixture(scope="module")
def served(
    plane: ControlPlane, shared_namespace: str, crds_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    """An operator that runs and serves the module's namespace."""
    with serving(plane, shared_namespace, tmp_path_factory.mktemp("operator")) as made:
        yield made


@pytest.fixture
async def stage(api: Api, served: Operator, shared_namespace: str, simcloud: SimCloud) -> Stage:
    """Names of the test's own in the module's namespace, served by the module's operator."""
    await served.ready()
    return Stage(api, shared_namespace, simcloud)


@pytest.fixture
def doomed(kubectl: Kubectl) -> Iterator[str]:
    """A namespace that the test itself deletes."""
    name = f"doomed-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
