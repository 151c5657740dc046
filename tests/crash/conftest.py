"""What the crash tests share: a site of one's own, and as many lives of the operator as a test needs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.api import Api, api
from tests.clouds import SimCloud, make_simcloud, shared_simcloud, simcloud
from tests.crash.site import Site
from tests.operators import Operator
from vmpool.dev.plane import ControlPlane

__all__ = ["api", "make_simcloud", "shared_simcloud", "simcloud"]


@pytest.fixture
def operators(
    plane: ControlPlane, namespace: str, crds_installed: None, tmp_path: Path
) -> Iterator[Callable[..., Operator]]:
    """Start operators that serve the test's namespace, each with a log of its own; settings by name."""
    lives: list[Operator] = []

    def start(**settings: str) -> Operator:
        folder = tmp_path / f"operator-{len(lives)}"
        folder.mkdir()
        life = Operator(
            plane.kubeconfig, folder, VMPOOL_WATCH_NAMESPACE=namespace, VMPOOL_NAMESPACE=namespace, **settings
        )
        lives.append(life)
        life.start()
        return life

    yield start
    for life in lives:
        life.kill()


@pytest.fixture
def site(api: Api, namespace: str, simcloud: SimCloud, crds_installed: None) -> Site:
    """A namespace, and a tenant of its own in the cloud that all tests share."""
    return Site(api, namespace, simcloud, simcloud.tenant())
