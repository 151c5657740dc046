"""The chart's release on a node, as its users see it: pods, lease, pools, claims, checkouts."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.node.cluster import Cluster, Object

ROOT = Path(__file__).parents[2]
CHART = str(ROOT / "charts" / "vmpool")
NAMESPACE = "vmpool"
POOL = "debian-12"
API_VERSION = "vmpool.dev/v1alpha1"
IMAGE = "vmpool:0.1.0"
POLL_SECONDS = 1.0
"""Each look is a process of its own."""

UNTIL_SECONDS = 300.0
"""On two cores that others use too, a pod takes up to a minute to start."""

T = TypeVar("T")


@dataclass(frozen=True)
class Release:
    """A release called vmpool in namespace vmpool."""

    cluster: Cluster
    tell: Callable[[str], None]

    def until(self, what: str, condition: Callable[[], T], deadline: float = UNTIL_SECONDS) -> T:
        """Return the first truthy value; fails with the namespace's pods and warnings after ``deadline`` seconds."""
        begin = time.monotonic()
        while not (value := condition()):
            if time.monotonic() - begin > deadline:
                raise AssertionError(f"{what} did not hold within {deadline:g} s; last: {value!r}\n{self.report()}")
            time.sleep(POLL_SECONDS)
        self.tell(f"well: {what} ({time.monotonic() - begin:.1f} s)")
        return value

    def report(self) -> str:
        """What helps to understand a failure."""
        looks = [
            ("get", "pods,vmpools,vmclaims,vmproviders", "-o", "wide"),
            ("get", "events", "--field-selector=type=Warning", "--sort-by=.lastTimestamp"),
            ("logs", "--selector=app.kubernetes.io/component=operator", "--tail=20", "--prefix"),
        ]
        return "\n".join(self.cluster.kubectl(*look, "-n", NAMESPACE, check=False)[-6000:] for look in looks)

    def install(self) -> None:
        """Install with the chart's own values."""
        self.cluster.helm("install", "vmpool", CHART, f"--namespace={NAMESPACE}")

    def pods(self, part: str) -> list[Object]:
        """The pods of a part that are not on their way out."""
        found = self.cluster.items("pods", "-n", NAMESPACE, f"--selector=app.kubernetes.io/component={part}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def ready(self, part: str, count: int) -> bool:
        """Whether a part has so many pods, all of them ready."""
        pods = self.pods(part)
        return len(pods) == count and all(_condition(pod, "Ready") for pod in pods)

    def leader(self) -> str:
        """The name of the pod that holds the lease; empty when nobody does."""
        lease = self.cluster.get("lease", "vmpool-operator", "-n", NAMESPACE)
        return str(lease.get("spec", {}).get("holderIdentity") or "").split("_", maxsplit=1)[0]

    def make_pool(self, name: str, replicas: int, cloud: str) -> None:
        """A pool, and a provider of the same name at the simulated cloud of this host name."""
        provider = {
            "type": "simulated",
            "config": {"endpoint": f"http://{cloud}:18080"},
            "secretRef": {"name": "vmpool-simcloud"},
        }
        template = {"image": "debian-12"}
        pool = {"replicas": replicas, "maxVMs": 8 * replicas, "template": template, "providers": [{"name": name}]}
        self.cluster.apply(_object("VMProvider", name, provider), _object("VMPool", name, pool))
        self.until(f"{replicas} VMs of {name} are ready", lambda: self.full(name, replicas))

    def let_everybody_claim(self) -> None:
        """Give whoever reaches the REST API the right to claim from the pools here."""
        rbac = "rbac.authorization.k8s.io"
        self.cluster.apply(
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "RoleBinding",
                "metadata": {"name": "rest-claims", "namespace": NAMESPACE},
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "vmpool-claimer"},
                "subjects": [{"apiGroup": rbac, "kind": "Group", "name": "vmpool:rest"}],
            }
        )

    def make_cloud(self) -> str:
        """A simulated cloud that is not the release's and outlives it; return its host name."""
        meta = {"name": "cloud", "namespace": "cloud"}
        labels = {"app": "cloud"}
        told = ["--host=0.0.0.0", "--port=18080", "--ledger=/tmp/ledger.sqlite", "--tenant=demo=demo-key"]
        container = {"name": "cloud", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "args": ["simcloud", *told]}
        self.cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cloud"}},
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {**meta, "labels": labels},
                "spec": {"containers": [container], "automountServiceAccountToken": False},
            },
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": meta,
                "spec": {"selector": labels, "ports": [{"port": 18080}]},
            },
        )
        return "cloud.cloud.svc"

    def full(self, pool: str, replicas: int) -> bool:
        """Whether a pool has so many VMs ready."""
        status = self.cluster.get("vmpool", pool, "-n", NAMESPACE).get("status") or {}
        return bool(status.get("readyReplicas") == replicas)

    def vms(self) -> list[str]:
        """The names of all VMs."""
        return sorted(vm["metadata"]["name"] for vm in self.cluster.items("pooledvms", "-n", NAMESPACE))

    def claim(self, name: str) -> None:
        """Wish for one VM, by an object."""
        self.cluster.apply(_object("VMClaim", name, {"requests": [{"pool": POOL, "count": 1}], "lifetime": "1h"}))

    def claims(self) -> dict[str, str]:
        """The phase of each VMClaim."""
        found = self.cluster.items("vmclaims", "-n", NAMESPACE)
        return {each["metadata"]["name"]: (each.get("status") or {}).get("phase", "") for each in found}

    def resident(self, pod: str) -> dict[str, int]:
        """Memory of the pod's first process, in bytes, by the kernel's names: Rss, Pss, Anonymous and so on."""
        text = self.cluster.kubectl("exec", pod, "-n", NAMESPACE, "--", "cat", "/proc/1/smaps_rollup")
        fields = (line.split() for line in text.splitlines()[1:])
        return {name.rstrip(":"): int(size) * 1024 for name, size, *_ in fields}

    def start_load(self, clients: int) -> None:
        """Begin to check VMs out through the gateway's Service, in a pod of its own."""
        script = {"load.py": Path(__file__).with_name("load.py").read_text()}
        meta = {"name": "load", "namespace": NAMESPACE}
        self.cluster.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": script},
            {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": _client(clients)},
        )
        self.until("the load has begun", self.checkouts)

    def checkouts(self) -> list[dict[str, Any]]:
        """What the load has told so far."""
        lines = self.cluster.kubectl("logs", "load", "-n", NAMESPACE, "--tail=-1", check=False).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def end_load(self) -> list[dict[str, Any]]:
        """Let the load finish its rounds and end; return all it told."""
        self.cluster.kubectl("exec", "load", "-n", NAMESPACE, "--", "python", "-c", "import os; os.kill(1, 15)")
        self.until("the load has ended", lambda: self._phase() == "Succeeded", 60.0)
        told = self.checkouts()
        self.cluster.kubectl("delete", "pod/load", "configmap/load", "-n", NAMESPACE)
        return told

    def _phase(self) -> str:
        return str(self.cluster.get("pod", "load", "-n", NAMESPACE).get("status", {}).get("phase", ""))


def failures(told: list[dict[str, Any]]) -> list[str]:
    """Checkouts that got no VM, or could not give it back, in words."""
    lost = [each for each in told if each["status"] != 200 or each["returned"] != 200]
    return [f"{each['status']} {each.get('returned', '')} {' '.join(str(each['said']).split())}" for each in lost]


def _condition(pod: Object, kind: str) -> bool:
    return any(each["type"] == kind and each["status"] == "True" for each in pod["status"].get("conditions", []))


def _object(kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def _client(clients: int) -> Object:
    security = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "load",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": ["python", "/script/load.py", f"http://vmpool-gateway.{NAMESPACE}.svc", POOL, str(clients)],
                "securityContext": security,
                "volumeMounts": [{"name": "script", "mountPath": "/script"}],
            }
        ],
        "volumes": [{"name": "script", "configMap": {"name": "load"}}],
    }
