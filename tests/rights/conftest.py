"""A control plane of their own that writes an audit log, and Helm for it."""

import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.chart.conftest import chart_tools, helm
from tests.chart.helm import Helm
from tests.clouds import make_simcloud, shared_simcloud, simcloud
from tests.planes import kubectl_of, throwaway_plane
from tests.rights.audit import AuditLog
from tests.rights.house import House, api_of
from vmpool.dev.binaries import Binaries
from vmpool.dev.plane import ControlPlane

__all__ = ["chart_tools", "helm", "make_simcloud", "shared_simcloud", "simcloud"]

STRICT = "--enable-admission-plugins=OwnerReferencesPermissionEnforcement"
"""Who makes an object that holds up its owner needs a right on the owner: some clusters ask for it, as this one."""


@dataclass(frozen=True)
class Audited:
    """A control plane, and what its API server writes down."""

    plane: ControlPlane
    log: AuditLog


@pytest.fixture(scope="package")
def audited(plane_binaries: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    """The control plane of these tests; it ends with them."""
    folder: Path = tmp_path_factory.mktemp("audit")
    log = AuditLog(folder)
    with throwaway_plane(plane_binaries, *log.flags, STRICT) as plane:
        yield Audited(plane, log)


@pytest.fixture
async def house(audited: Audited, helm: Helm, tmp_path: Path) -> AsyncIterator[House]:
    """The namespace of a release that the test installs, and what runs of it; all of it ends with the test."""
    plane, kubectl = audited.plane, kubectl_of(audited.plane)
    namespace = f"house-{secrets.token_hex(3)}"
    kubectl("create", "namespace", namespace)
    cluster = replace(helm, kubeconfig=Path(plane.home.kubeconfig))
    async with api_of(plane) as api:
        made = House(plane, audited.log, cluster, kubectl, namespace, tmp_path, api)
        try:
            yield made
        finally:
            made.close()
            cluster.run("uninstall", "vmpool", f"--namespace={namespace}", check=False)
