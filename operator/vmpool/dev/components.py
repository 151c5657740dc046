"""How each component is called and how one sees that it is well."""

import http.client
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmpool.dev.binaries import Binaries
from vmpool.dev.credentials import Credentials
from vmpool.dev.state import API_SERVER, CONTROLLER_MANAGER, ETCD, Home

LOOPBACK = "127.0.0.1"
ETCD_PEER = "etcd-peer"
PORT_NAMES = (ETCD, ETCD_PEER, API_SERVER, CONTROLLER_MANAGER)
HEALTH_PATHS = {ETCD: "/health", API_SERVER: "/readyz", CONTROLLER_MANAGER: "/healthz"}
HEALTH_TIMEOUT_SECONDS = 2.0
# What a cluster without nodes needs: cascading deletion, quotas, accounts, autoscaling of custom kinds.
CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "garbage-collector-controller",
    "horizontal-pod-autoscaler-controller",
    "namespace-controller",
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "validatingadmissionpolicy-status-controller",
)


@dataclass(frozen=True)
class Component:
    """One process to run."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def components(
    home: Home, files: Credentials, binaries: Binaries, ports: dict[str, int], *, throwaway: bool
) -> tuple[Component, ...]:
    """Every component in the order in which they start."""
    # A garbage collector that comes four times as seldom: a fifth of the API server's work, for a gigabyte.
    environment = {"GOGC": "400"} if throwaway else {}
    wanted = [
        Component(ETCD, _etcd(home, files, binaries.etcd, ports, throwaway=throwaway)),
        Component(API_SERVER, _api_server(files, binaries, ports), environment),
    ]
    if binaries.kube_controller_manager is not None:
        argv = _controller_manager(home, files, binaries.kube_controller_manager, ports)
        wanted.append(Component(CONTROLLER_MANAGER, argv))
    return tuple(wanted)


def api_url(ports: dict[str, int]) -> str:
    """Where the API server answers."""
    return f"https://{LOOPBACK}:{ports[API_SERVER]}"


def controller_manager_kubeconfig(home: Home) -> Path:
    """The kubeconfig of kube-controller-manager."""
    return home.credentials / "controller-manager.kubeconfig"


def healthy(component: str, port: int, files: Credentials) -> bool:
    """Ask a component over verified TLS; no answer in time is an unhealthy one."""
    try:
        context = ssl.create_default_context(cafile=str(files.authority))
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if component == ETCD:
            context.load_cert_chain(files.certificate("etcd-client"), files.key("etcd-client"))
        connection = http.client.HTTPSConnection(LOOPBACK, port, timeout=HEALTH_TIMEOUT_SECONDS, context=context)
        try:
            connection.request("GET", HEALTH_PATHS[component])
            return connection.getresponse().status == http.HTTPStatus.OK
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return False


def _etcd(home: Home, files: Credentials, binary: Path, ports: dict[str, int], *, throwaway: bool) -> tuple[str, ...]:
    clients = f"https://{LOOPBACK}:{ports[ETCD]}"
    peers = f"https://{LOOPBACK}:{ports[ETCD_PEER]}"
    certificate, key = files.certificate("etcd"), files.key("etcd")
    argv = (
        str(binary),
        f"--data-dir={home.etcd_data}",
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        f"--cert-file={certificate}",
        f"--key-file={key}",
        f"--trusted-ca-file={files.authority}",
        "--client-cert-auth",
        f"--peer-cert-file={certificate}",
        f"--peer-key-file={key}",
        f"--peer-trusted-ca-file={files.authority}",
        "--peer-client-cert-auth",
        "--log-level=warn",
        # As installers set it: without progress notices an idle watch gets no bookmark and looks dead.
        "--watch-progress-notify-interval=5s",
    )
    return (*argv, "--unsafe-no-fsync") if throwaway else argv


def _api_server(files: Credentials, binaries: Binaries, ports: dict[str, int]) -> tuple[str, ...]:
    argv = (
        str(binaries.kube_apiserver),
        f"--etcd-servers=https://{LOOPBACK}:{ports[ETCD]}",
        f"--etcd-cafile={files.authority}",
        f"--etcd-certfile={files.certificate('etcd-client')}",
        f"--etcd-keyfile={files.key('etcd-client')}",
        f"--bind-address={LOOPBACK}",
        f"--advertise-address={LOOPBACK}",
        f"--secure-port={ports[API_SERVER]}",
        f"--tls-cert-file={files.certificate(API_SERVER)}",
        f"--tls-private-key-file={files.key(API_SERVER)}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={files.service_account_key}",
        f"--service-account-signing-key-file={files.service_account_key}",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--authorization-mode=RBAC",
        f"--token-auth-file={files.token_file}",
        # Endpoints refuse a loopback address, and nothing here reaches the server through its service.
        "--endpoint-reconciler-type=none",
    )
    if binaries.kube_controller_manager is None:
        # Nobody would create the default accounts that this plug-in demands of every pod.
        return (*argv, "--disable-admission-plugins=ServiceAccount")
    return argv


def _controller_manager(home: Home, files: Credentials, binary: Path, ports: dict[str, int]) -> tuple[str, ...]:
    config = controller_manager_kubeconfig(home)
    return (
        str(binary),
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={ports[CONTROLLER_MANAGER]}",
        f"--tls-cert-file={files.certificate(CONTROLLER_MANAGER)}",
        f"--tls-private-key-file={files.key(CONTROLLER_MANAGER)}",
        f"--controllers={','.join(CONTROLLERS)}",
        f"--root-ca-file={files.authority}",
        f"--service-account-private-key-file={files.service_account_key}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--horizontal-pod-autoscaler-sync-period=1s",
        "--horizontal-pod-autoscaler-downscale-stabilization=10s",
    )
