"""Every sample, and the development environment, with the operator running: Ready for kubectl, Flux and Argo CD alike.

The samples of real machines become Ready in ``tests/e2e``; here the server takes them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.api import MERGE, Api
from tests.clouds import SimCloud, Tenant
from tests.deploy.argo import Scripts
from tests.deploy.conftest import DEPLOY
from tests.deploy.kstatus import KStatus, compute
from tests.deploy.states import PLURALS
from tests.objects import Json
from tests.operators import Operator, serving
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane

SAMPLES = DEPLOY / "samples"
OURS = "vmpool.dev/v1alpha1"
OF_A_CLOUD = "simulated.yaml"
ON_IT = sorted(file.name for file in SAMPLES.glob("*.yaml") if file.name not in {OF_A_CLOUD, "libvirt.yaml"})
ENDPOINT, KEY = "http://127.0.0.1:18080", "demo-key"
READY_SECONDS = 180
CALM = {"VMPOOL_LEASE_SECONDS": "30", "VMPOOL_LEASE_RENEW_SECONDS": "25", "VMPOOL_LEASE_RETRY_SECONDS": "1"}
"""Nobody takes over here, and a busy machine must not end the only operator."""
CYCLE = "Starting stale queue entry purge cycle"


@pytest.fixture(scope="module")
def served(
    plane: ControlPlane, shared_namespace: str, crds_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    """An operator that runs and serves the module's namespace."""
    with serving(plane, shared_namespace, tmp_path_factory.mktemp("operator"), **CALM) as made:
        yield made


@pytest.fixture(scope="module")
def tenant(shared_simcloud: SimCloud) -> Tenant:
    """The account that the samples' Secret has the key of."""
    return shared_simcloud.tenant()


class Git:
    """Applies manifests as a tool that follows Git does, and looks at what became of them as tools do."""

    def __init__(self, api: Api, kubectl: Kubectl, namespace: str, cloud: SimCloud, tenant: Tenant) -> None:
        self.api, self.kubectl, self.namespace = api, kubectl, namespace
        self._cloud, self._tenant = cloud, tenant

    def apply(self, text: str) -> list[Json]:
        """Apply, with the test's cloud in the place of the one that is named; return the objects of ours."""
        for named, there in ((ENDPOINT, self._cloud.url), (KEY, self._tenant.key)):
            text = text.replace(named, there)
        self.kubectl(
            "apply", "--server-side", "--field-manager=gitops", "--validate=strict", "-n", self.namespace, "-f", "-",
            input=text,
        )  # fmt: skip
        return [each for each in yaml.safe_load_all(text) if each and each["apiVersion"] == OURS]

    def sample(self, name: str) -> list[Json]:
        return self.apply((SAMPLES / name).read_text())

    async def now(self, made: Json) -> Json:
        """The object as it is now."""
        return (await self.api.kind(PLURALS[made["kind"]], self.namespace).get(made["metadata"]["name"])).ok()

    async def current(self, made: Json) -> Json:
        """Wait until Flux would go on, and return the object."""
        name = f"{made['kind']} {made['metadata']['name']}"
        seen: Json = {}

        async def there() -> bool:
            seen.update(await self.now(made))
            return compute(seen) is KStatus.CURRENT

        await until(there, deadline=READY_SECONDS, what=f"{name} is Current")
        return seen

    async def act(self, scripts: Scripts, made: Json, action: str) -> Json:
        """Press a button of Argo CD; return the object as it is then."""
        found = await self.now(made)
        assert action in scripts.enabled(found), f"{action} is not offered"
        path = f"{self.api.kind(PLURALS[made['kind']], self.namespace).path}/{made['metadata']['name']}"
        return (await self.api.call("PATCH", path, scripts.patch(found, action), content=MERGE)).ok()


@pytest.fixture
async def git(
    api: Api, kubectl: Kubectl, shared_namespace: str, served: Operator, shared_simcloud: SimCloud, tenant: Tenant
) -> Git:
    await served.ready()
    made = Git(api, kubectl, shared_namespace, shared_simcloud, tenant)
    for each in made.sample(OF_A_CLOUD):
        await made.current(each)
    return made


def conditions(found: Json) -> dict[str, Json]:
    return {one["type"]: one for one in found["status"]["conditions"]}


async def all_ready(git: Git, scripts: Scripts, made: list[Json]) -> None:
    """Wait until each is Ready, for everybody who may ask."""
    assert made
    for each in made:
        found = await git.current(each)
        known = conditions(found)
        verdict = known["Healthy" if each["kind"] == "HealthPolicy" else "Ready"]
        assert (verdict["status"], verdict["observedGeneration"]) == ("True", found["metadata"]["generation"])
        assert scripts.health(found)["status"] == "Healthy", found["status"]


def test_every_sample_is_tried() -> None:
    assert ON_IT == ["claim.yaml", "reliability-development.yaml", "reliability-production.yaml", "reliability.yaml"]


@pytest.mark.parametrize("name", [OF_A_CLOUD, *ON_IT])
async def test_a_sample_becomes_ready(git: Git, scripts: Scripts, name: str) -> None:
    await all_ready(git, scripts, git.sample(name))


def test_the_server_takes_the_sample_of_real_machines(kubectl: Kubectl, shared_namespace: str) -> None:
    flags = ("--server-side", "--dry-run=server", "--validate=strict", "--output=name")
    said = kubectl("apply", *flags, "-n", shared_namespace, "-f", str(SAMPLES / "libvirt.yaml"))
    assert said.split() == ["vmprovider.vmpool.dev/libvirt", "vmpool.vmpool.dev/real"]


async def test_the_development_environment_becomes_ready(
    git: Git, scripts: Scripts, kustomize: Callable[[Path], str]
) -> None:
    text = kustomize(DEPLOY / "environments" / "development" / "machines")
    text = text.replace("http://vmpool-simcloud.vmpool.svc:18080", ENDPOINT)
    objects = [each for each in yaml.safe_load_all(text) if each["kind"] != "Namespace"]
    for each in objects:
        del each["metadata"]["namespace"]
    await all_ready(git, scripts, git.apply(yaml.safe_dump_all(objects)))


async def test_a_pool_that_is_emptied_stays_current_and_healthy(git: Git, scripts: Scripts) -> None:
    """A checkout must not turn a pipeline red: neither for its moment nor for as long as nothing can be made."""
    (pool,) = [each for each in git.sample("reliability.yaml") if each["kind"] == "VMPool"]
    await git.current(pool)
    provider: Json = {"kind": "VMProvider", "metadata": {"name": "simcloud"}}
    await git.act(scripts, provider, "pause")
    try:
        vms = git.api.kind("pooledvms", git.namespace)
        for name in sorted(await vms.names(f"spec.pool={pool['metadata']['name']}")):
            taken = {
                "id": f"c-{name}",
                "owner": "a",
                "boundAt": "2030-01-01T00:00:00Z",
                "expiresAt": "2031-01-01T00:00:00Z",
            }
            (await vms.merge(name, {"spec": {"claim": taken}})).ok()

        async def emptied() -> bool:
            status = (await git.now(pool))["status"]
            return bool(status["readyReplicas"] == 0 and status["claimedReplicas"] == 5)

        await until(emptied, deadline=READY_SECONDS, what="the pool knows that it is empty")
        found = await git.now(pool)
        assert compute(found) is KStatus.CURRENT, found["status"]
        assert scripts.health(found)["status"] == "Healthy", found["status"]
    finally:
        await git.act(scripts, provider, "resume")


# What people do in Argo CD, and what the operator makes of it.


async def test_a_pool_that_is_paused_is_shown_as_such_until_it_is_resumed(git: Git, scripts: Scripts) -> None:
    (pool,) = [each for each in git.sample("reliability-development.yaml") if each["kind"] == "VMPool"]
    await git.current(pool)
    for action, health in (("pause", "Suspended"), ("resume", "Healthy")):
        await git.act(scripts, pool, action)

        async def shown(wanted: str = health) -> bool:
            found = await git.now(pool)
            seen = found["status"]["observedGeneration"] == found["metadata"]["generation"]
            return bool(seen and scripts.health(found)["status"] == wanted)

        await until(shown, deadline=READY_SECONDS, what=f"Argo CD shows {health}")
    assert (await git.now(pool))["spec"]["paused"] is False


async def test_a_purge_that_is_asked_for_begins_a_cycle_and_pauses_nothing(
    git: Git, scripts: Scripts, served: Operator
) -> None:
    (policy,) = [each for each in git.sample("reliability.yaml") if each["kind"] == "PurgePolicy"]
    await git.current(policy)

    def cycles() -> int:
        whole = f"{git.namespace}/{policy['metadata']['name']}"
        return sum(CYCLE in line and whole in line for line in served.lines().splitlines())

    await until(cycles, deadline=READY_SECONDS, what="the first cycle")
    before = cycles()
    await git.act(scripts, policy, "purge-now")
    await until(lambda: cycles() > before, deadline=READY_SECONDS, what="another cycle")
    found = await git.current(policy)
    assert conditions(found).keys() == {"Ready"}
    assert conditions(found)["Ready"]["reason"] != "Paused"
    # It is nobody's drift: Git never wrote that field.
    assert [each["metadata"]["name"] for each in git.sample("reliability.yaml")]
    assert [each["name"] for each in (await git.now(policy))["spec"]["pauses"]] == ["purge-now"]
