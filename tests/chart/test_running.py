"""Operator and gateway run as the chart would have them: its environment, its accounts, its rights and no others."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import yaml

from tests.chart.helm import CHART, ROOT, Helm, Object, environment, one
from tests.clouds import SimCloud, Tenant, shared_simcloud, simcloud
from tests.gateways import Gateway
from tests.operators import Operator
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.dev.credentials import kubeconfig
from vmpool.dev.plane import ControlPlane

__all__ = ["shared_simcloud", "simcloud"]

pytestmark = pytest.mark.control_plane

LOCAL = {"VMPOOL_HTTP_HOST": "127.0.0.1", "VMPOOL_GATEWAY_HOST": "127.0.0.1", "VMPOOL_GATEWAY_PORT": "0"}
"""What a process on this machine must have otherwise than a pod."""
SIZE = 3
OPEN = {"gateway": {"settings": {"authorization": "open"}}}


class Release:
    """A release on the API server, whose pods are processes here: there are no nodes."""

    def __init__(self, plane: ControlPlane, kubectl: Kubectl, namespace: str, folder: Path) -> None:
        self._plane = plane
        self.kubectl = kubectl
        self.namespace = namespace
        self._folder = folder

    @property
    def url(self) -> str:
        """The API server's address."""
        return self._plane.url

    @property
    def authority(self) -> str:
        """Whose certificate it shows."""
        return self._plane.ca.read_text()

    def environment(self, part: str) -> dict[str, str]:
        """What the pods of a part see, and where they are."""
        found = self.kubectl("get", "deployment", f"vmpool-{part}", "-n", self.namespace, "-o", "json")
        told = environment(json.loads(found)["spec"]["template"])
        assert set(LOCAL) & set(told), "the chart says where to listen"
        return {
            **told,
            "VMPOOL_NAMESPACE": self.namespace,
            "VMPOOL_POD_UID": f"uid-of-{part}",
            **LOCAL,
            "VMPOOL_HTTP_PORT": "0",
        }

    def account(self, part: str) -> Path:
        """Return a kubeconfig of the account that the chart made for a part."""
        found = self.kubectl("get", "deployment", f"vmpool-{part}", "-n", self.namespace, "-o", "json")
        name = json.loads(found)["spec"]["template"]["spec"]["serviceAccountName"]
        token = self._folder / f"{part}.token"
        token.write_text(self.kubectl("create", "token", name, "-n", self.namespace).strip())
        path = self._folder / f"{part}.kubeconfig"
        path.write_text(kubeconfig(url=self._plane.url, authority=self._plane.ca, token=token))
        return path

    @contextmanager
    def operator(self) -> Iterator[Operator]:
        made = Operator(self.account("operator"), self._folder, **self.environment("operator"))
        made.start()
        try:
            yield made
        finally:
            made.kill()

    @contextmanager
    def gateway(self) -> Iterator[Gateway]:
        made = Gateway(self.account("gateway"), self._folder, **self.environment("gateway"))
        made.start()
        try:
            yield made
        finally:
            made.kill()


@pytest.fixture
def release(
    cluster: Helm, chart_plane: ControlPlane, chart_kubectl: Kubectl, place: str, tmp_path: Path
) -> Iterator[Release]:
    """The namespace of a release that the test installs."""
    yield Release(chart_plane, chart_kubectl, place, tmp_path)
    # Nobody is left who would take them off, and the definitions are about to go.
    left = chart_kubectl("get", "pooledvms,vmpools,vmproviders", "-n", place, "--output=name", check=False)
    for each in left.split():
        chart_kubectl("patch", each, "-n", place, "--type=merge", "-p", '{"metadata":{"finalizers":null}}', check=False)


def pool_on(cloud: SimCloud, tenant: Tenant) -> str:
    objects: list[Object] = [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"apiKey": tenant.key}},
        {
            "apiVersion": "vmpool.dev/v1alpha1",
            "kind": "VMProvider",
            "metadata": {"name": "sim"},
            "spec": {"type": "simulated", "config": {"endpoint": cloud.url}, "secretRef": {"name": "key"}},
        },
        {
            "apiVersion": "vmpool.dev/v1alpha1",
            "kind": "VMPool",
            "metadata": {"name": "web"},
            "spec": {"replicas": SIZE, "template": {"image": "debian-12"}, "providers": [{"name": "sim"}]},
        },
    ]
    return yaml.safe_dump_all(objects)


MODES = [
    pytest.param(lambda _: OPEN, id="the whole cluster"),
    pytest.param(lambda namespace: {**OPEN, "watchNamespace": namespace}, id="one namespace"),
]


@pytest.mark.parametrize("values_in", MODES)
async def test_with_the_charts_rights_a_pool_fills_and_a_machine_is_handed_out(
    cluster: Helm, release: Release, simcloud: SimCloud, values_in: object
) -> None:
    assert callable(values_in)
    kubectl, place = release.kubectl, release.namespace
    cluster.run("install", "vmpool", str(CHART), f"--namespace={place}", values=values_in(place))
    kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "vmpools.vmpool.dev", "pooledvms.vmpool.dev")
    with release.operator() as operator, release.gateway() as gateway:
        await operator.ready()
        kubectl("apply", "--server-side", "-n", place, "-f", "-", input=pool_on(simcloud, simcloud.tenant()))

        def ready() -> int:
            return int(kubectl("get", "vmpool", "web", "-n", place, "-o", "jsonpath={.status.readyReplicas}") or 0)

        await until(lambda: ready() == SIZE, deadline=60, what="the pool is full")
        await gateway.ready()

        def checked_out() -> Object | None:
            request = Request(f"{gateway.url}/api/v3/vm/web", method="POST")
            try:
                with urlopen(request, timeout=10) as answer:
                    return dict(json.load(answer))
            except OSError:
                return None

        got = await until(checked_out, deadline=30, what="a checkout")
        assert got is not None
        assert got["ok"] is True
        name = got["web"]["hostname"]
        vm = json.loads(kubectl("get", "pooledvm", name, "-n", place, "-o", "json"))
        assert vm["spec"]["claim"]["owner"] == "vmpool:anonymous"
        # As the API server, our client and kopf's say it.
        for refused in ("status=403", " 403 ", "forbidden", "Forbidden"):
            assert refused not in operator.lines(), f"a right is missing:\n{operator.lines()[-3000:]}"
            assert refused not in gateway.lines(), f"a right is missing:\n{gateway.lines()[-3000:]}"
        assert helm_test(operator, gateway).returncode == 0


def documented(heading: str, namespace: str) -> list[list[str]]:
    """Return the commands of the last block of shell below a heading of docs/install.md, for this namespace."""
    section = (ROOT / "docs/install.md").read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    block = section.rsplit("```sh\n", 1)[1].split("```", 1)[0]
    return [line.replace("-n vmpool", f"-n {namespace}").split() for line in block.splitlines()]


async def test_the_documented_order_removes_everything_and_nothing_hangs(
    cluster: Helm, release: Release, simcloud: SimCloud
) -> None:
    kubectl, place = release.kubectl, release.namespace
    cluster.run("install", "vmpool", str(CHART), f"--namespace={place}", values=OPEN)
    kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "vmpools.vmpool.dev", "pooledvms.vmpool.dev")
    with release.operator() as operator:
        await operator.ready()
        tenant = simcloud.tenant()
        kubectl("apply", "--server-side", "-n", place, "-f", "-", input=pool_on(simcloud, tenant))

        def machines() -> int:
            return len(simcloud.listed(tenant))

        await until(lambda: machines() == SIZE, deadline=60, what="the pool has its machines")
        commands = documented("Uninstall", place)
        assert {argv[0] for argv in commands} == {"kubectl", "helm"}
        for program, *args in commands:
            (cluster.run if program == "helm" else kubectl)(*args)
        assert machines() == 0
    left = kubectl("get", "all,secrets,configmaps,pdb,roles,rolebindings", "-n", place, "--output=name").split()
    assert set(left) == {"secret/key", "configmap/kube-root-ca.crt"}
    assert not [each for each in kubectl("get", "crds,clusterroles", "--output=name").split() if "vmpool" in each]


def helm_test(operator: Operator, gateway: Gateway, leader: str = "1") -> subprocess.CompletedProcess[str]:
    """Run what the pod of ``helm test`` runs."""
    port = operator.lines().rsplit('"http": "127.0.0.1:', 1)[1].split('"', 1)[0]
    wanted = [
        f"http://127.0.0.1:{port}/metrics vmpool_leader {leader}",
        f"{gateway.url}/readyz",
        f"{gateway.url}/api/v3/status",
    ]
    script = (CHART / "answers.py").read_text().replace("DEADLINE_SECONDS = 60.0", "DEADLINE_SECONDS = 3.0")
    return subprocess.run(
        [sys.executable, "-c", script, *wanted], capture_output=True, text=True, check=False, timeout=60
    )


async def test_helm_test_fails_without_a_leader_or_a_gateway(cluster: Helm, release: Release) -> None:
    cluster.run("install", "vmpool", str(CHART), f"--namespace={release.namespace}", values=OPEN)
    with release.operator() as operator, release.gateway() as gateway:
        await operator.ready()
        await gateway.ready()
        assert helm_test(operator, gateway).returncode == 0
        assert "none of 1 pods says vmpool_leader 0" in helm_test(operator, gateway, leader="0").stdout
        gateway.stop()
        done = helm_test(operator, gateway)
        assert done.returncode == 1
        assert "failed: http://127.0.0.1" in done.stdout


async def test_helm_test_lives_the_life_of_a_machine_with_the_rights_of_its_account(
    cluster: Helm, release: Release, simcloud: SimCloud, tmp_path: Path
) -> None:
    kubectl, place = release.kubectl, release.namespace
    cluster.run("install", "vmpool", str(CHART), f"--namespace={place}", values=OPEN)
    kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "vmpools.vmpool.dev", "vmclaims.vmpool.dev")
    hooks = list(yaml.safe_load_all(cluster.run("get", "hooks", "vmpool", f"--namespace={place}").stdout))
    rights = [each for each in hooks if each and each["kind"] in {"ServiceAccount", "Role", "RoleBinding"}]
    kubectl("apply", "--server-side", "-n", place, "-f", "-", input=yaml.safe_dump_all(rights))
    pod = one([each for each in hooks if each], "Pod", "vmpool-test-lifecycle")["spec"]
    tenant = simcloud.tenant()
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"apiKey": tenant.key}}
    kubectl("apply", "--server-side", "-n", place, "-f", "-", input=yaml.safe_dump(secret))
    (tmp_path / "token").write_text(kubectl("create", "token", pod["serviceAccountName"], "-n", place).strip())
    (tmp_path / "ca.crt").write_text(release.authority)
    (tmp_path / "namespace").write_text(place)
    script, name, *_ = pod["containers"][0]["args"]
    told = {"ACCOUNT_NAME": pod["serviceAccountName"], "ACCOUNT": str(tmp_path), "API_SERVER": release.url}

    def run(secret: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", script.replace("SECONDS = 120.0", "SECONDS = 30.0"), name, simcloud.url, secret]
        return subprocess.run(argv, env=told, capture_output=True, text=True, check=False, timeout=120)

    with release.operator() as operator:
        await operator.ready()
        done = await asyncio.to_thread(run, "key")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "well: the claim has its machine" in done.stdout
        assert simcloud.listed(tenant) == []
    assert not kubectl("get", "vmproviders,vmpools,vmclaims,pooledvms", "-n", place, "--output=name")


async def test_a_second_operator_is_alive_while_it_waits_for_the_lease(
    cluster: Helm, release: Release, tmp_path: Path
) -> None:
    cluster.run("install", "vmpool", str(CHART), f"--namespace={release.namespace}", values=OPEN)
    with release.operator() as first:
        await first.ready()
        (tmp_path / "second").mkdir()
        standby = Operator(
            release.account("operator"),
            tmp_path / "second",
            **{**release.environment("operator"), "VMPOOL_POD_UID": "another"},
        )
        standby.start()
        try:
            await until(lambda: '"operator_starts"' in standby.lines(), deadline=30, what="the standby has started")
            # What the chart's probes ask.
            assert standby.http("/healthz")
            assert "vmpool_leader 0.0" in standby.http("/metrics")
            first.stop()
            await standby.ready()
        finally:
            standby.kill()
