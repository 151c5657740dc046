"""The lease: of two operators on one namespace one leads, and the other goes on where it left off."""

import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.api import Api
from tests.clouds import SimCloud
from tests.control_plane.operator.stage import DEADLINE, Stage, metric, names
from tests.operators import Operator
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane


@pytest.fixture
def two(plane: ControlPlane, namespace: str, crds_installed: None, tmp_path: Path) -> Iterator[list[Operator]]:
    """Two operators for the test's namespace; not started yet."""
    made = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        settings = {"VMPOOL_WATCH_NAMESPACE": namespace, "VMPOOL_NAMESPACE": namespace}
        made.append(Operator(plane.kubeconfig, tmp_path / name, **settings))
    yield made
    for one in made:
        one.kill()


@pytest.mark.parametrize("end", [Operator.stop, Operator.kill], ids=["stopped", "killed"])
async def test_one_leads_and_the_other_takes_over(
    two: list[Operator], end: Callable[[Operator], int | None], api: Api, namespace: str, simcloud: SimCloud
) -> None:
    leader, rival = two
    leader.start()
    await leader.ready()
    rival.start()
    await until(lambda: '"operator_starts"' in rival.lines(), deadline=DEADLINE, what="the rival has started")
    await until(lambda: "held by" in rival.lines(), deadline=DEADLINE, what="the rival has seen the lease")
    stage = Stage(api, namespace, simcloud)
    before = await stage.filled(3)
    assert [metric(one, "vmpool_leader") for one in two] == [1, 0]
    assert not metric(rival, "vmpool_api_requests_total", resource="pooledvms")
    assert "waits for the lease" in _not_ready(rival)

    assert end(leader) in (0, None)
    await rival.ready()
    assert metric(rival, "vmpool_leader") == 1
    lease = (await api.kind("leases", namespace, api="/apis/coordination.k8s.io/v1").get(keys.LEASE_NAME)).ok()
    assert f"_{rival.pid}_" in lease["spec"]["holderIdentity"]
    assert names(await stage.full(3)) == names(before)
    await stage.change(replicas=5)
    assert names(before) <= names(await stage.full(5))
    assert len(stage.history()) == 5


def _not_ready(operator: Operator) -> str:
    """The answer of a /readyz that is not 200."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        operator.http("/readyz")
    with caught.value as answer:
        assert answer.status == 503
        return answer.read().decode()
