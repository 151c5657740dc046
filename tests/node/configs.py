"""What the programs of a node are told: their command lines and their files.

The values that are not plain were found by trial; each says what happens without it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

BRIDGE = "vmpool-node"
NODE = "node"
ADDRESS = "10.88.0.1"
"""Of the bridge, which is the node's and the API server's: pods must reach both, so they cannot be loopback's."""
PODS = "10.88.0.0/24"
SERVICES = "10.96.0.0/24"
API_PORT = 6443
DOMAIN = "cluster.local"
USERS = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
    "proxy": ("system:kube-proxy", ""),
    "names": ("names", "system:masters"),
}
PAUSE_IMAGE = "localhost/vmpool-node/pause:1"


@dataclass(frozen=True)
class Programs:
    """Where the programs are."""

    plane: Path
    kubernetes: Path
    containerd: Path
    coredns: Path
    network: Path


@dataclass(frozen=True)
class Files:
    """One folder for everything that a node writes and is told."""

    folder: Path
    cgroup: str

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @property
    def socket(self) -> Path:
        """containerd's; ctr wants an absolute path."""
        return self.folder / "containerd.sock"

    @property
    def authority(self) -> Path:
        """The certificate that the API server makes for itself: leaf and authority in one file."""
        return self.folder / "certificates" / "apiserver.crt"

    def kubeconfig(self, who: str) -> Path:
        """The kubeconfig of one of ``USERS``."""
        return self.folder / f"{who}.kubeconfig"


def write_all(files: Files, programs: Programs, tokens: dict[str, str]) -> None:
    """Write what the programs read at their start."""
    lines = [f'{tokens[who]},{name},{who},"{group}"\n' for who, (name, group) in USERS.items()]
    (files / "tokens.csv").write_text("".join(lines))
    for who in USERS:
        files.kubeconfig(who).write_text(json.dumps(_kubeconfig(files, tokens[who])))
    (files / "resolv.conf").write_text(f"nameserver {ADDRESS}\n")
    (files / "Corefile").write_text(_names(files))
    (files / "containerd.toml").write_text(_containerd(files, programs))
    (files / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet(files)))
    (files / "proxy.yaml").write_text(yaml.safe_dump(_proxy(files)))
    network = files / "network"
    network.mkdir()
    (network / "10-bridge.conflist").write_text(json.dumps(_network(files)))


def etcd(files: Files, programs: Programs) -> list[str]:
    """The command line."""
    clients, peers = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return [
        str(programs.plane / "etcd"),
        f"--data-dir={files / 'etcd'}",
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        "--unsafe-no-fsync=true",
        "--log-level=warn",
        # As installers set it: without progress notices an idle watch gets no bookmark and looks dead.
        "--watch-progress-notify-interval=5s",
    ]


def api_server(files: Files, programs: Programs) -> list[str]:
    """The command line."""
    return [
        str(programs.plane / "kube-apiserver"),
        "--etcd-servers=http://127.0.0.1:2379",
        f"--bind-address={ADDRESS}",
        f"--advertise-address={ADDRESS}",
        f"--secure-port={API_PORT}",
        f"--cert-dir={files / 'certificates'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={files / 'accounts.key'}",
        f"--service-account-signing-key-file={files / 'accounts.key'}",
        f"--service-cluster-ip-range={SERVICES}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--token-auth-file={files / 'tokens.csv'}",
        "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP",
    ]


def controller_manager(files: Files, programs: Programs) -> list[str]:
    """The command line."""
    return [
        str(programs.plane / "kube-controller-manager"),
        *_as("controller-manager", files),
        f"--service-account-private-key-file={files / 'accounts.key'}",
        # Every pod with a token mounts this authority.
        f"--root-ca-file={files.authority}",
        "--use-service-account-credentials=true",
        "--secure-port=10257",
    ]


def scheduler(files: Files, programs: Programs) -> list[str]:
    """The command line."""
    return [str(programs.kubernetes / "kube-scheduler"), *_as("scheduler", files), "--secure-port=10259"]


def proxy(files: Files, programs: Programs) -> list[str]:
    """The command line."""
    return [str(programs.kubernetes / "kube-proxy"), f"--config={files / 'proxy.yaml'}", f"--hostname-override={NODE}"]


def containerd(files: Files, programs: Programs) -> list[str]:
    """The command line."""
    return [str(programs.containerd / "containerd"), f"--config={files / 'containerd.toml'}"]


def coredns(files: Files, programs: Programs) -> list[str]:
    """The command line."""
    return [str(programs.coredns / "coredns"), f"-conf={files / 'Corefile'}"]


def kubelet(files: Files, programs: Programs) -> list[str]:
    """The command line."""
    return [
        str(programs.kubernetes / "kubelet"),
        f"--config={files / 'kubelet.yaml'}",
        f"--kubeconfig={files.kubeconfig('kubelet')}",
        f"--root-dir={files / 'kubelet'}",
        f"--cert-dir={files / 'kubelet-certificates'}",
        f"--hostname-override={NODE}",
        f"--node-ip={ADDRESS}",
    ]


def _as(who: str, files: Files) -> list[str]:
    config = files.kubeconfig(who)
    return [
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--cert-dir={files / f'{who}-certificates'}",
    ]


def _kubeconfig(files: Files, token: str) -> dict[str, Any]:
    server = {"server": f"https://{ADDRESS}:{API_PORT}", "certificate-authority": str(files.authority)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "node", "cluster": server}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "node", "context": {"cluster": "node", "user": "user"}}],
        "current-context": "node",
    }


def _network(files: Files) -> dict[str, Any]:
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": PODS}]],
        # Services and nothing else: without a default route no packet of a pod leaves the machine.
        "routes": [{"dst": SERVICES}],
        "dataDir": str(files / "addresses"),
    }
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipMasq": False, "ipam": ipam}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}


def _names(files: Files) -> str:
    # Names of the cluster and no others: there is nobody to ask.
    return f""".:53 {{
    bind {ADDRESS}
    errors
    ready 127.0.0.1:8181
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {files.kubeconfig("names")}
    }}
}}
"""


def _containerd(files: Files, programs: Programs) -> str:
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE nobody may lower it, and no pod would start.
    return f"""version = 4
root = "{files / "containerd"}"
state = "{files / "containerd-state"}"
imports = []
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.blockfile"]

[plugins.'io.containerd.server.v1.grpc']
address = "{files.socket}"
[plugins.'io.containerd.server.v1.ttrpc']
address = "{files.socket}.ttrpc"
[plugins.'io.containerd.shim.v1.manager']
socket_dir = "{files / "shims"}"
[plugins.'io.containerd.internal.v1.opt']
path = "{files / "opt"}"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
cdi_spec_dirs = []
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{programs.network}"]
conf_dir = "{files / "network"}"
use_internal_loopback = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def _kubelet(files: Files) -> dict[str, Any]:
    # A test machine's disk may be nearly full; zero must be a share, or kubelet ends.
    never = {f"{what}.available": "0%" for what in ("memory", "nodefs", "imagefs")}
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        # cgroup v1 serves, and its default is to refuse it.
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": files.cgroup,
        "address": ADDRESS,
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        # Who reaches kubelet's port is in this network namespace: the API server for logs and exec.
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": f"unix://{files.socket}",
        "podLogsDir": str(files / "pod-logs"),
        "volumePluginDir": str(files / "volume-plugins"),
        "resolvConf": str(files / "resolv.conf"),
        "clusterDNS": [ADDRESS],
        "clusterDomain": DOMAIN,
        "failSwapOn": False,
        "evictionHard": {**never, "nodefs.inodesFree": "0%", "imagefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": False,
        # Both for the want of CAP_SYS_RESOURCE.
        "maxOpenFiles": 20000,
        "oomScoreAdj": 0,
    }


def _proxy(files: Files) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": PODS,
        "clientConnection": {"kubeconfig": str(files.kubeconfig("proxy"))},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # Else it writes limits of the whole machine.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
