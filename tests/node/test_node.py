"""The image and the chart on a real node: scheduler, kubelet, containerd, Services, probes, evictions.

The tests tell one story, in this order, on one release; each leaves it as it found it.
"""

import json
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.node.cluster import Cluster
from tests.node.conftest import Tell
from tests.node.release import CHART, IMAGE, NAMESPACE, POOL, Release, failures

REPLICAS = 50
"""More than are checked out while an operator is replaced: an empty pool would say nothing of the operator."""
CLIENTS = 2
CLAIMS = 10
IDLE_BYTES = 120 * 10**6
TAKEOVER_SECONDS = 30.0
"""An operator that is told to end gives its lease back; a killed one's would run 15 s. Starting takes the rest."""


def eviction(pod: str) -> tuple[str, ...]:
    """What kubectl is told to evict a pod."""
    return "create", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction", "--filename=-"


def evicted(pod: str) -> str:
    """The object that is sent with it."""
    return json.dumps(
        {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
    )


@pytest.fixture(scope="session")
def release(node: Cluster, tell: Tell) -> Release:
    """The chart, installed with its own values in a namespace that holds pods to the restricted profile."""
    found = Release(node, tell)
    node.kubectl("create", "namespace", NAMESPACE)
    node.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    found.install()
    return found


@pytest.fixture(scope="session")
def running(release: Release) -> Release:
    """With all pods ready and a leader."""
    for part, count in (("simcloud", 1), ("gateway", 2), ("operator", 2)):
        release.until(f"{count} pods of {part} are ready", partial(release.ready, part, count))
    release.until("an operator leads", release.leader)
    return release


@pytest.fixture(scope="session")
def filled(running: Release) -> Release:
    """With a pool that has filled."""
    running.make_pool(POOL, REPLICAS, f"vmpool-simcloud.{NAMESPACE}.svc")
    running.let_everybody_claim()
    return running


@pytest.fixture
def load(filled: Release) -> Iterator[Release]:
    """With clients that check VMs out all the time."""
    filled.until("the pool is full", lambda: filled.full(POOL, REPLICAS))
    filled.start_load(CLIENTS)
    yield filled
    filled.cluster.kubectl("delete", "vmclaims", "--all", "-n", NAMESPACE)
    filled.cluster.kubectl("delete", "pod/load", "-n", NAMESPACE, "--grace-period=0", "--force", "--ignore-not-found")


def test_operator_and_gateway_run_as_pods(running: Release) -> None:
    for part in ("operator", "gateway", "simcloud"):
        for pod in running.pods(part):
            (container,) = pod["status"]["containerStatuses"]
            assert container["image"].endswith(IMAGE)
            assert container["restartCount"] == 0, running.report()


def test_an_idle_operator_is_small(running: Release) -> None:
    # Both: the one that leads has an engine, the other waits. Nothing is to be done for either.
    leader = running.leader()
    for pod in running.pods("operator"):
        name = pod["metadata"]["name"]
        memory = running.resident(name)
        role = "leads" if name == leader else "waits"
        running.tell(
            f"memory: {name} {role}: {memory['Rss'] / 1e6:.1f} MB resident, {memory['Anonymous'] / 1e6:.1f} its own"
        )
        assert 0 < memory["Rss"] <= IDLE_BYTES


def test_a_pool_fills_and_a_checkout_goes_through_the_service(filled: Release) -> None:
    filled.start_load(1)
    filled.until("five checkouts are done", lambda: len(filled.checkouts()) >= 5)
    told = filled.end_load()
    assert failures(told) == []
    assert len({each["name"] for each in told}) == len(told), "a VM was given out twice"
    filled.until("the pool is full again", lambda: filled.full(POOL, REPLICAS))


def test_helm_test_finds_everything_well(filled: Release) -> None:
    assert "Succeeded" in filled.cluster.helm("test", "vmpool", f"--namespace={NAMESPACE}", "--logs")


@pytest.mark.parametrize("part", ["operator", "gateway"])
def test_a_rolling_upgrade_costs_no_claim(load: Release, part: str) -> None:
    before = {pod["metadata"]["name"] for pod in load.pods(part)}
    begin = time.time()
    changed = {part: {"podAnnotations": {"example.com/round": "2"}}}
    load.cluster.helm("upgrade", "vmpool", CHART, "--reuse-values", f"--namespace={NAMESPACE}", values=changed)
    made = 0

    def replaced() -> bool:
        nonlocal made
        if made < CLAIMS:
            load.claim(f"upgrade-{made}")
            made += 1
        return load.ready(part, 2) and not before & {pod["metadata"]["name"] for pod in load.pods(part)}

    load.until(f"both pods of {part} are new", replaced)
    load.until(
        "one of today's operators leads",
        lambda: load.leader() in {p["metadata"]["name"] for p in load.pods("operator")},
    )
    load.until("every claim has its VM", lambda: set(load.claims().values()) == {"Bound"})
    assert len(load.claims()) == made
    told = load.end_load()
    during = [each for each in told if each["at"] >= begin]
    load.tell(f"upgrade: {len(during)} checkouts and {made} claims, slowest {max(e['seconds'] for e in during):.2f} s")
    assert len(during) > CLIENTS
    assert failures(told) == []


def test_an_evicted_leader_is_replaced(load: Release) -> None:
    leader = load.leader()
    (other,) = {pod["metadata"]["name"] for pod in load.pods("operator")} - {leader}
    load.claim("before")
    begin = time.time()
    load.cluster.kubectl(*eviction(leader), given=evicted(leader))
    # While one is away the budget keeps the other.
    assert "disruption budget" in load.cluster.refusal(*eviction(other), given=evicted(other))
    load.claim("after")
    load.until("the other operator leads", lambda: load.leader() == other, TAKEOVER_SECONDS)
    load.until("every claim has its VM", lambda: set(load.claims().values()) == {"Bound"})
    load.until("two operators are ready", lambda: load.ready("operator", 2))
    told = load.end_load()
    load.tell(f"eviction: {len([each for each in told if each['at'] >= begin])} checkouts since")
    assert failures(told) == []


def test_uninstalling_leaves_what_is_the_users(filled: Release) -> None:
    # The cloud of the release goes with it; what is on it is removed first.
    filled.cluster.kubectl("delete", "vmpool", POOL, "-n", NAMESPACE)
    filled.cluster.kubectl("delete", "vmprovider", POOL, "-n", NAMESPACE)
    assert not filled.vms()
    filled.make_pool("kept", 3, filled.make_cloud())
    kept = filled.vms()
    filled.cluster.helm("uninstall", "vmpool", f"--namespace={NAMESPACE}", "--wait")
    filled.until("no pod of the release is left", lambda: not filled.cluster.items("pods", "-n", NAMESPACE))
    assert filled.vms() == kept
    filled.install()
    filled.until("two operators are ready", lambda: filled.ready("operator", 2))
    filled.until(
        "an operator leads again", lambda: filled.leader() in {p["metadata"]["name"] for p in filled.pods("operator")}
    )
    filled.until("the pool is as it was", lambda: filled.full("kept", 3))
    assert filled.vms() == kept


def test_the_documented_order_removes_everything(filled: Release) -> None:
    cluster = filled.cluster
    cluster.kubectl("delete", "vmclaims,vmpools", "--all", "-A")
    filled.until("no VM is left", lambda: not cluster.items("pooledvms", "-A"))
    cluster.kubectl("delete", "vmproviders", "--all", "-A")
    cluster.helm("uninstall", "vmpool", f"--namespace={NAMESPACE}", "--wait")
    cluster.kubectl("delete", "crd", "--selector=app.kubernetes.io/part-of=vmpool")
    assert not cluster.items("crd", "--selector=app.kubernetes.io/part-of=vmpool")
