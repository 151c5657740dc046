"""``vmpool uninstall`` and ``helm uninstall`` on a real API server, with an operator under the chart's account."""

import asyncio
import json
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.chart.conftest import chart_tools, helm
from tests.chart.helm import CHART, Helm
from tests.chart.test_running import Release
from tests.clouds import SimCloud, shared_simcloud, simcloud
from tests.crash.site import PROVIDER, Site
from tests.faults.rig.trial import SETTINGS
from tests.faults.scenarios.users import ask, bound, check_out, has, put, wait
from tests.operators import Operator
from tests.planes import Kubectl, kubectl_of, leave, throwaway_plane
from tests.rights.house import api_of, served
from tests.waiting import until
from vmpool.api import keys
from vmpool.cli.cluster import Mistake
from vmpool.cli.uninstall import Pace, Wish, drain, let_go
from vmpool.dev.binaries import Binaries
from vmpool.dev.plane import ControlPlane
from vmpool.kube.client import Client
from vmpool.kube.kinds import VMPOOLS

__all__ = ["chart_tools", "helm", "shared_simcloud", "simcloud"]

pytestmark = pytest.mark.control_plane

SIZE = 2
COMMAND_SECONDS = 240
SERVED = ("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
HERE = {"gateway": {"enabled": False}, "simcloud": {"enabled": False}}
THEIRS = "example.com/theirs"
"""A finalizer that is not ours."""


@pytest.fixture(scope="module")
def own_plane(plane_binaries: Binaries) -> Iterator[ControlPlane]:
    """A control plane of their own: they take the definitions of all kinds away."""
    with throwaway_plane(plane_binaries) as made:
        yield made


@dataclass
class Estate:
    """A release in a namespace, and what its users have there."""

    plane: ControlPlane
    helm: Helm
    kubectl: Kubectl
    site: Site
    folder: Path
    operators: list[Operator] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return self.site.namespace

    async def install(self, **values: Any) -> None:
        """Install the release."""
        taken = ("--take-ownership", "--force-conflicts")
        self.helm.run("install", "vmpool", str(CHART), f"-n={self.namespace}", *taken, values={**HERE, **values})
        self.kubectl(*SERVED)
        await served(self.site.api, self.namespace)

    async def operator(self) -> Operator:
        """Start its operator."""
        release = Release(self.plane, self.kubectl, self.namespace, self.folder)
        environment = {**release.environment("operator"), **SETTINGS, "VMPOOL_CLAIM_POLICY_MARGIN_SECONDS": "0"}
        made = Operator(release.account("operator"), self.folder, **environment)
        self.operators.append(made)
        made.start()
        await made.ready(60)
        return made

    async def filled(self) -> Operator:
        """Install, and wait for a pool that is full; return the operator that fills it."""
        await self.install()
        operator = await self.operator()
        await self.site.build(SIZE)
        await self.site.full(SIZE)
        return operator

    def uninstall(self, *options: str, code: int = 0, said: str = "") -> str:
        """Type ``vmpool uninstall``; return what it says."""
        done = subprocess.run(
            [sys.executable, "-m", "vmpool", "uninstall", "vmpool", "-n", self.namespace, *options],
            env={
                **os.environ,
                "KUBECONFIG": str(self.plane.kubeconfig),
                "PATH": f"{self.helm.binary.parent}:{os.environ['PATH']}",
                "COLUMNS": "200",
                "NO_COLOR": "1",
            },
            input=said,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def wish(self, **asked: Any) -> Wish:
        """Return what ``--yes --abandon`` asks for, with these fields otherwise."""
        told: dict[str, Any] = {"only": "", "seconds": 0.0, "end_claims": False, "abandon": True, "helm": False}
        there = {"kubeconfig": str(self.plane.kubeconfig), "context": ""}
        return Wish("vmpool", self.namespace, **{**told, **there, **asked})

    def definitions(self) -> list[str]:
        found = self.kubectl("get", "crds", "--output=name").split()
        return [name for name in found if name.endswith(f".{keys.GROUP}")]

    def left(self) -> set[str]:
        kinds = "all,secrets,configmaps,leases,pdb,roles,rolebindings,serviceaccounts"
        return set(self.kubectl("get", kinds, "-n", self.namespace, "--output=name").split())

    def releases(self) -> list[str]:
        return self.helm.run("list", f"--namespace={self.namespace}", "--short").stdout.split()


@pytest.fixture
async def estate(own_plane: ControlPlane, helm: Helm, simcloud: SimCloud, tmp_path: Path) -> AsyncIterator[Estate]:
    kubectl, namespace = kubectl_of(own_plane), f"u-{secrets.token_hex(3)}"
    kubectl("create", "namespace", namespace)
    there = replace(helm, kubeconfig=Path(own_plane.home.kubeconfig))
    async with api_of(own_plane) as api:
        site = Site(api, namespace, simcloud, simcloud.tenant(), endpoint=simcloud.url)
        made = Estate(own_plane, there, kubectl, site, tmp_path)
        yield made
        for one in made.operators:
            one.kill()
        there.run("uninstall", "vmpool", f"--namespace={namespace}", "--ignore-not-found")
        # Else it is another release's to the next test.
        kubectl("delete", "lease", keys.LEASE_NAME, "-n", namespace, "--ignore-not-found")
        leave(own_plane, namespace)


async def test_one_command_removes_machines_operator_and_definitions(estate: Estate) -> None:
    await estate.install()
    await estate.operator()
    site = estate.site
    await put(site, "deadletterqueues", "DeadLetterQueue", "failures")
    await site.build(SIZE, deadLetterQueue="failures")
    await site.full(SIZE)
    await put(site, "vmclaims", "VMClaim", "idle", requests=[{"pool": "nowhere"}])

    said = estate.uninstall("--yes", "--timeout=90s")

    assert site.alive() == 0
    assert not estate.definitions()
    # The user's own Secret, which is held no longer, and what every namespace has.
    assert estate.left() == {f"secret/{PROVIDER}", "configmap/kube-root-ca.crt", "serviceaccount/default"}
    assert not [one for one in estate.kubectl("get", "clusterroles", "--output=name").split() if "vmpool" in one]
    steps = [said.index(step) for step in ("to be removed: ", "1/3 machines", "2/3 operator", "3/3", "done: nothing")]
    assert steps == sorted(steps)
    assert "  1 provider left" in said
    estate.kubectl("delete", "namespace", estate.namespace, "--timeout=45s")


async def test_what_somebody_has_stays_and_is_named_until_claims_are_to_end(estate: Estate) -> None:
    await estate.install()
    await estate.operator()
    site = estate.site
    await site.build(SIZE)
    await site.full(SIZE)
    vm, _ = await check_out(site)
    wish = await ask(site)
    await bound(site, wish)
    await has(site, unclaimed=SIZE, claimed=2)
    await put(site, "vmclaims", "VMClaim", "idle", requests=[{"pool": "nowhere"}])
    claims = site.api.kind("vmclaims", site.namespace)
    uid = (await claims.get(wish)).ok()["metadata"]["uid"]

    said = estate.uninstall("--yes", "--timeout=10s", code=1)

    assert "note: 2 VMs are somebody's" in said
    assert f"PooledVM {estate.namespace}/{vm}: alice has it until " in said
    assert f"VMPool {estate.namespace}/web: waits for its VMs, " in said
    assert f"VMClaim {estate.namespace}/{wish}: " in said
    assert (await claims.get("idle")).status == 404
    kept = (await claims.get(wish)).ok()
    assert "deletionTimestamp" not in kept["metadata"]
    assert kept["status"]["phase"] == "Bound"
    (its,) = [one for one in await site.objects() if one["spec"].get("claim", {}).get("ref", {}).get("uid") == uid]
    assert "releasedAt" not in its["spec"]["claim"]
    assert its["status"]["phase"] == "Claimed"
    assert "nothing more was removed; do it again to go on" in said
    assert "2/3" not in said
    assert estate.releases() == ["vmpool"]
    assert estate.definitions()
    assert site.alive() >= 2

    estate.uninstall("--yes", "--timeout=60s", "--end-claims")
    assert site.alive() == 0
    assert not estate.definitions()


async def test_without_an_operator_nothing_is_removed_unless_machines_may_stay(estate: Estate) -> None:
    operator, site = await estate.filled(), estate.site
    assert operator.stop() == 0

    said = estate.uninstall("--yes", code=1)
    assert f"no operator works here (nobody renews lease {estate.namespace}/vmpool-operator)" in said
    assert "deletionTimestamp" not in (await site.pools.get("web")).ok()["metadata"]
    machines = {vm["status"]["machineId"] for vm in await site.objects()}

    said = estate.uninstall("--yes", "--abandon", "--timeout=1s")
    assert site.alive() == SIZE
    assert all(f"abandoned: machine {PROVIDER}: {machine} " in said for machine in machines)
    assert not estate.definitions()
    secret = json.loads(estate.kubectl("get", "secret", PROVIDER, "-n", estate.namespace, "-o", "json"))
    assert not secret["metadata"].get("finalizers")
    estate.kubectl("delete", "namespace", estate.namespace, "--timeout=45s")


async def test_a_lease_that_is_nobodys_for_a_moment_abandons_nothing(estate: Estate) -> None:
    operator, site = await estate.filled(), estate.site
    assert operator.stop() == 0

    command = asyncio.create_task(asyncio.to_thread(estate.uninstall, "--yes", "--abandon", "--timeout=180s"))

    async def begun() -> bool:
        return "deletionTimestamp" in (await site.pools.get("web")).ok()["metadata"]

    await wait(begun, "it has begun, while nobody has the lease")
    await estate.operator()
    said = await command
    assert "abandoned" not in said
    assert site.alive() == 0
    assert not estate.definitions()


async def test_what_others_hold_ends_what_is_abandoned_and_each_machine_is_named_once(
    estate: Estate, capsys: pytest.CaptureFixture[str]
) -> None:
    await estate.install()
    operator = await estate.operator()
    site = estate.site
    await site.build(1)
    await site.full(1)
    assert operator.stop() == 0
    (vm,) = await site.objects()
    name, machine = vm["metadata"]["name"], vm["status"]["machineId"]
    held = [*vm["metadata"]["finalizers"], THEIRS]
    (await site.vms.merge(name, {"metadata": {"finalizers": held}})).ok()

    async with await Client.from_kubeconfig(estate.plane.kubeconfig) as client:
        with pytest.raises(Mistake, match="abandoned, and not gone within 2 s") as raised:
            await drain(client, estate.wish(pace=Pace(step=2.0)))
        assert f"PooledVM {estate.namespace}/{name}: held by finalizer {THEIRS}\n" in str(raised.value)
        assert capsys.readouterr().out.count(f"abandoned: machine {PROVIDER}: {machine} ") == 1

        (await site.vms.merge(name, {"metadata": {"finalizers": None}})).ok()
        await drain(client, estate.wish())
    assert not await site.objects()


async def test_without_an_operator_for_the_whole_time_it_says_so(estate: Estate) -> None:
    await estate.install()
    pools = estate.site.pools
    await estate.site.build(0)
    (await pools.merge("web", {"metadata": {"finalizers": [keys.FINALIZER_DRAIN]}})).ok()
    async with await Client.from_kubeconfig(estate.plane.kubeconfig) as client:
        with pytest.raises(Mistake, match="no operator has worked for 1 s"):
            await drain(client, estate.wish(seconds=60.0, abandon=False, pace=Pace(absent=1.0)))
    assert (await pools.get("web")).ok()["metadata"]["finalizers"] == [keys.FINALIZER_DRAIN]


async def test_a_finalizer_of_others_that_comes_between_look_and_write_stays(estate: Estate) -> None:
    await estate.install()
    pools = estate.site.pools
    await estate.site.build(0)
    (await pools.merge("web", {"metadata": {"finalizers": [keys.FINALIZER_DRAIN]}})).ok()
    async with await Client.from_kubeconfig(estate.plane.kubeconfig) as client:
        looked = await client.get(VMPOOLS, estate.namespace, "web")
        (await pools.merge("web", {"metadata": {"finalizers": [keys.FINALIZER_DRAIN, THEIRS]}})).ok()
        assert await let_go(client, VMPOOLS, looked)
    assert (await pools.get("web")).ok()["metadata"]["finalizers"] == [THEIRS]
    (await pools.merge("web", {"metadata": {"finalizers": None}})).ok()


async def test_it_asks_before_it_does_anything(estate: Estate) -> None:
    await estate.install()
    await estate.operator()
    await estate.site.build(1)
    await estate.site.full(1)
    said = estate.uninstall(code=1, said="n\n")
    assert "to be removed: 1 VM, 1 pool, 1 provider, release " in said
    assert "Aborted" in said
    assert "deletionTimestamp" not in (await estate.site.pools.get("web")).ok()["metadata"]
    assert estate.releases() == ["vmpool"]
    estate.uninstall("--timeout=60s", said="y\n")
    assert not estate.definitions()


async def test_a_release_of_one_namespace_leaves_others_and_the_definitions(estate: Estate) -> None:
    await estate.install(watchNamespace=estate.namespace)
    await estate.operator()
    site, other = estate.site, f"{estate.namespace}-other"
    estate.kubectl("create", "namespace", other)
    elsewhere = replace(site, namespace=other)
    await elsewhere.build(1)
    await site.build(1)
    await site.full(1)

    alone = f"release {estate.namespace}/vmpool serves {estate.namespace}"
    said = estate.uninstall("--yes", code=1)
    assert f"{alone} alone, and what others have would go: type --only={estate.namespace}" in said
    said = estate.uninstall("--yes", f"--only={other}", code=1)
    assert f"{alone}, not {other} alone: type --only={estate.namespace}" in said
    for one in (site, elsewhere):
        assert "deletionTimestamp" not in (await one.pools.get("web")).ok()["metadata"]

    estate.uninstall("--yes", f"--only={estate.namespace}", "--timeout=60s")

    assert site.alive() == 0
    assert not estate.releases()
    assert len(estate.definitions()) == 8
    assert "deletionTimestamp" not in (await elsewhere.pools.get("web")).ok()["metadata"]
    leave(estate.plane, other)


async def test_with_another_operators_lease_nothing_goes_that_may_be_its_own(estate: Estate) -> None:
    await estate.install()
    await estate.operator()
    site, other = estate.site, f"{estate.namespace}-other"
    await site.build(1)
    await site.full(1)
    estate.kubectl("create", "namespace", other)
    lease = {"metadata": {"name": keys.LEASE_NAME}, "spec": {"holderIdentity": "theirs"}}
    leases = site.api.kind("leases", other, api="/apis/coordination.k8s.io/v1")
    (await leases.create({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **lease})).ok()

    said = estate.uninstall("--yes", code=1)
    assert f"other operators have leases here ({other}/{keys.LEASE_NAME})" in said
    assert "type --only and that one" in said
    said = estate.uninstall("--yes", f"--only={estate.namespace}", code=1)
    assert f"serves every namespace, not {estate.namespace} alone: leave --only out" in said
    assert "deletionTimestamp" not in (await site.pools.get("web")).ok()["metadata"]
    assert estate.releases() == ["vmpool"]

    (await leases.delete(keys.LEASE_NAME)).ok()
    estate.uninstall("--yes", "--timeout=60s")
    assert site.alive() == 0
    assert not estate.definitions()


async def test_a_release_of_one_namespace_that_would_take_the_definitions_along_stays(estate: Estate) -> None:
    await estate.install(watchNamespace=estate.namespace, crds={"keep": False})
    only = f"--only={estate.namespace}"

    said = estate.uninstall("--yes", only, "--abandon", code=1)
    assert "helm uninstall would delete definitions that others use too" in said
    assert f"vmpools.{keys.GROUP}" in said
    assert f"helm upgrade vmpool CHART -n {estate.namespace} --reuse-values --set crds.keep=true" in said
    assert estate.releases() == ["vmpool"]

    estate.helm.run("upgrade", "vmpool", str(CHART), f"-n={estate.namespace}", "--reuse-values", "--set=crds.keep=true")
    estate.uninstall("--yes", only)
    assert not estate.releases()
    assert len(estate.definitions()) == 8


async def test_helm_uninstall_alone_leaves_machines_and_a_new_release_goes_on(estate: Estate) -> None:
    operator, site = await estate.filled(), estate.site
    vm, identity = await check_out(site)
    await has(site, unclaimed=SIZE, claimed=1)
    before = {one["metadata"]["uid"]: one["status"]["machineId"] for one in await site.objects()}
    operator.stop()

    estate.helm.run("uninstall", "vmpool", f"--namespace={estate.namespace}")
    assert {one["metadata"]["uid"]: one["status"]["machineId"] for one in await site.objects()} == before
    assert site.alive() == len(before)
    (await site.vms.merge(vm, {"spec": {"claim": {"id": identity, "tags": {"still": "mine"}}}})).ok()

    await estate.install()
    await estate.operator()
    (await site.pools.merge("web", {"spec": {"replicas": SIZE + 1}})).ok()
    await has(site, unclaimed=SIZE + 1, claimed=1)
    after = {one["metadata"]["uid"]: one["status"]["machineId"] for one in await site.objects()}
    assert before.items() <= after.items(), "what was there is there still, with its machine"
    assert site.alive() == len(after)


async def test_credentials_rotate_without_a_restart(estate: Estate) -> None:
    """The old key is refused from now on; the new one is in the Secret, and nobody tells the operator."""
    await estate.install()
    operator = await estate.operator()
    site = estate.site
    await site.build(1)
    await site.full(1)
    process, fresh = operator.pid, secrets.token_hex(12)
    status, _ = site.cloud.call("PUT", f"/v1/tenants/{site.tenant.name}", {"key": fresh})
    assert status < 300
    kind = site.api.kind("secrets", estate.namespace, api="/api/v1")
    (await site.pools.merge("web", {"spec": {"replicas": 2}})).ok()

    async def refused() -> bool:
        conditions = (await site.providers.get(PROVIDER)).ok()["status"]["conditions"]
        return any((one["type"], one.get("reason")) == ("Stalled", "CredentialsRefused") for one in conditions)

    await wait(refused, "the provider says that its credentials are refused")
    (await kind.merge(PROVIDER, {"stringData": {"apiKey": fresh}})).ok()
    rotated = replace(site, tenant=replace(site.tenant, key=fresh))
    await rotated.full(2)
    assert operator.pid == process
    assert operator.running
    await until(lambda: rotated.alive() == 2, what="both machines are there")
