"""The values of the Helm chart: names, types, bounds, defaults and what their comments say, all in one place.

``values.yaml`` and ``values.schema.json`` are made from it by ``vmpool.cli.chart``. Objects are closed: a typo is
refused. Where a value is a piece of a Kubernetes object it is open, and the API server judges it.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from vmpool.settings import GatewaySettings, Settings

Piece = dict[str, Any]
"""A piece of a Kubernetes object, as its API reference describes it."""
Labels = dict[str, str]
Port = Annotated[int, Field(ge=1, le=65535)]

CHART_DECIDES: Final = frozenset(
    {
        *("kubeconfig", "context", "watch_namespace", "namespace", "pod_uid", "install_id"),
        *("http_host", "http_port", "gateway", "log_format", "log_level"),
    }
)
"""Settings of the operator that are no values under ``operator.settings``: the chart sets them, from other values."""
CHART_DECIDES_GATEWAY: Final = frozenset(
    {"host", "port", "tls_certificate", "tls_key", "users_file", "ldap_bind_password_file"}
)
"""The same for ``gateway.settings``."""


class Values(BaseModel):
    """Base of every object here: closed, camelCase, described by the strings below its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, use_attribute_docstrings=True)


class Image(Values):
    """Where the image lies; it is the same for all pods."""

    repository: str = Field(default="vmpool", min_length=1)
    """Repository, with the registry's host before it where nodes need one."""
    tag: str = Field(default="", max_length=128)
    """Tag. Empty: the chart's appVersion."""
    digest: str = Field(default="", pattern="^(sha256:[0-9a-f]{64})?$")
    """Digest, such as sha256:0123...; wins over the tag."""
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When nodes pull it."""


class LocalName(Values):
    """The name of an object of the release's namespace."""

    name: str = Field(min_length=1, max_length=253)
    """Its name."""


class Log(Values):
    """What operator and gateway write to standard output."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged."""
    format: Literal["json", "console"] = "json"
    """One JSON object a line, or coloured lines for people."""


class Crds(Values):
    """The definitions of our kinds."""

    enabled: bool = True
    """Install and upgrade them with the release. They belong to the whole cluster: it takes rights there."""
    keep: bool = True
    """Keep them when the release is uninstalled. Without it every pool, VM and claim of the cluster goes with them."""


class Rbac(Values):
    """Roles and their bindings."""

    create: bool = True
    """Make them. Without it the accounts have no rights until somebody gives them: deploy/rbac has the rules."""
    aggregate: bool = False
    """Add vmpool-view, vmpool-edit and vmpool-admin to the cluster's roles view, edit and admin."""
    cluster_rest: bool = False
    """With watchNamespace: also make ClusterRoles of the few rules that no Role can hold, such as access reviews."""


class Admission(Values):
    """Policies that the API server holds VMClaims to. Not with watchNamespace: they belong to the whole cluster."""

    enabled: bool = True
    """Install vmpool-claims: who may make a VMClaim, and in whose name. See docs/tenancy.md."""
    requester: Literal["auto", "always", "never"] = "auto"
    """Install vmpool-requester, which fills in who asks (Kubernetes 1.36). auto: where the cluster can."""


class Account(Values):
    """The service account of the pods."""

    create: bool = True
    """Make it."""
    name: str = Field(default="", max_length=63)
    """Its name. Empty: the Deployment's; with create false: default."""
    annotations: Labels = Field(default_factory=dict)
    """Annotations, for instance for the identity of workloads at a cloud."""


class Disruption(Values):
    """How many pods an eviction may take at once."""

    enabled: bool = True
    """Make a PodDisruptionBudget."""
    max_unavailable: int = Field(default=1, ge=1, le=100)
    """Most pods that are away at once. Pods that are not ready can always be evicted."""


class Spread(Values):
    """How pods are spread over the cluster."""

    enabled: bool = True
    """Spread them."""
    topology_keys: list[Annotated[str, Field(min_length=1)]] = Field(default=["kubernetes.io/hostname"], max_length=8)
    """Labels of nodes; pods are spread evenly over their values."""
    when_unsatisfiable: Literal["ScheduleAnyway", "DoNotSchedule"] = "ScheduleAnyway"
    """What happens where that cannot be."""


class Workload(Values):
    """What the Deployments of operator and gateway have in common."""

    replicas: int = Field(default=2, ge=0, le=32)
    """Number of pods. null leaves it to others, such as an autoscaler."""
    extra_args: list[str] = Field(default_factory=list)
    """Arguments behind those of the chart."""
    extra_env: list[Piece] = Field(default_factory=list)
    """Environment variables, as in a container. They win over those of the chart."""
    extra_volumes: list[Piece] = Field(default_factory=list)
    """Further volumes of the pod."""
    extra_volume_mounts: list[Piece] = Field(default_factory=list)
    """Where the container has them."""
    service_account: Account = Account()
    """The account that the pods run as."""
    pod_labels: Labels = Field(default_factory=dict)
    """Further labels of the pods."""
    pod_annotations: Labels = Field(default_factory=dict)
    """Further annotations of the pods."""
    node_selector: Labels = Field(default_factory=dict)
    """Labels of the nodes that pods may run on."""
    tolerations: list[Piece] = Field(default_factory=list)
    """Taints of nodes that pods bear."""
    affinity: Piece = Field(default_factory=dict)
    """Affinity of the pods, beside the spread."""
    spread: Spread = Spread()
    """How the pods are spread over the cluster."""
    priority_class_name: str = Field(default="", max_length=253)
    """PriorityClass of the pods. Empty: the cluster's default."""
    pod_disruption_budget: Disruption = Disruption()
    """How many pods an eviction may take at once."""
    termination_grace_period_seconds: int = Field(default=45, ge=1, le=3600)
    """How long a pod may take to end: longer than the settings about stopping."""


class Operator(Workload):
    """The operator."""

    replicas: int = Field(default=2, ge=0, le=8)
    """Number of pods. One of them works; another takes over when that one ends or is cut off. null: others say it."""
    settings: Piece = Field(default_factory=dict, json_schema_extra={"settings": "operator"})
    """Settings of the operator. What is absent is as the program has it."""
    resources: Piece = Field(
        default={"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
    )
    """Requests and limits. 10,000 VMs fit into 1 CPU and 1 GiB."""


class Service(Values):
    """The Service of the gateway."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Who can reach it."""
    port: Port = 80
    """Its port; 443 is usual with tls."""
    node_port: int = Field(default=0, ge=0, le=65535)
    """Port on the nodes. 0: the cluster chooses."""
    annotations: Labels = Field(default_factory=dict)
    """Annotations, for instance for a load balancer."""


class FromSecret(Values):
    """One key of a Secret, mounted as a file; a change needs no restart."""

    secret_name: str = Field(default="", max_length=253)
    """Name of the Secret, in the release's namespace. Empty: none."""
    key: str = Field(default="", max_length=253)
    """Key in it."""


class Users(FromSecret):
    """The users file, for auth static."""

    key: str = Field(default="users", min_length=1, max_length=253)
    """Key in it."""


class Password(FromSecret):
    """The password of the directory's account, for auth ldap with ldapBindDn."""

    key: str = Field(default="password", min_length=1, max_length=253)
    """Key in it."""


class Tls(Values):
    """TLS of the REST API."""

    secret_name: str = Field(default="", max_length=253)
    """Secret of type kubernetes.io/tls, followed when it changes. Empty: plain HTTP."""


class GatewayValues(Workload):
    """The REST API that VMPooler's clients speak."""

    enabled: bool = True
    """Run it."""
    settings: Piece = Field(default_factory=dict, json_schema_extra={"settings": "gateway"})
    """Settings of the gateway. What is absent is as the program has it; beware of auth: it begins as none."""
    service: Service = Service()
    """How it is reached."""
    tls: Tls = Tls()
    """TLS of the REST API."""
    users: Users = Users()
    """The users file, for auth static."""
    ldap_password: Password = Password()
    """The password of the directory's account, for auth ldap with ldapBindDn."""
    resources: Piece = Field(
        default={"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
    )
    """Requests and limits. Checking a password takes up to 128 MiB, logins_at_once at a time."""


class ApiServer(Values):
    """Where the API server is, as pods see it behind its Service."""

    cidrs: list[Annotated[str, Field(min_length=3)]] = Field(default=["0.0.0.0/0", "::/0"], min_length=1)
    """Networks. The address that hands out a node's credentials is never among them."""
    ports: list[Port] = Field(default=[443, 6443], min_length=1)
    """Ports."""


class NetworkPolicy(Values):
    """Traffic of the pods: nothing but what is needed."""

    enabled: bool = False
    """Make NetworkPolicies. They need a network that holds pods to them."""
    api_server: ApiServer = ApiServer()
    """Where the API server is, as pods see it behind its Service."""
    dns_ports: list[Port] = Field(default=[53], min_length=1)
    """Ports of the pods that answer for names, behind their Service: OpenShift's listen on 5353."""
    egress: list[Piece] = Field(default_factory=list)
    """Rules for what the operator must reach besides: providers, machines that are probed, archives."""
    gateway_egress: list[Piece] = Field(default_factory=list)
    """Rules for what the gateway must reach besides: a directory."""
    gateway_from: list[Piece] = Field(default_factory=list)
    """Who may reach the REST API. Empty: everybody."""
    metrics_from: list[Piece] = Field(default_factory=list)
    """Who may read the operator's metrics. Empty: everybody."""


class ServiceMonitor(Values):
    """How Prometheus finds the metrics."""

    enabled: bool = False
    """Make ServiceMonitors of operator and gateway."""
    labels: Labels = Field(default_factory=dict)
    """Labels that your Prometheus looks for."""
    interval: str = Field(default="30s", pattern="^[0-9]+(ms|s|m|h)$")
    """Time between two looks."""
    tls_config: Piece = Field(default_factory=dict)
    """With gateway.tls: what Prometheus must know of the certificate."""


class Rules(Values):
    """Recording rules and alerts, those of deploy/monitoring/rules.yaml."""

    enabled: bool = False
    """Make a PrometheusRule."""
    labels: Labels = Field(default_factory=dict)
    """Labels that your Prometheus looks for."""


class Dashboard(Values):
    """The dashboard of Grafana, that of deploy/monitoring/dashboard.json."""

    enabled: bool = False
    """Make a ConfigMap with it."""
    labels: Labels = Field(default={"grafana_dashboard": "1"})
    """Labels that Grafana's sidecar looks for."""
    annotations: Labels = Field(default_factory=dict)
    """Annotations, for instance the folder."""


class Monitoring(Values):
    """All off: the kinds of the Prometheus operator need not be there."""

    service_monitor: ServiceMonitor = ServiceMonitor()
    """How Prometheus finds the metrics."""
    rules: Rules = Rules()
    """Recording rules and alerts, those of deploy/monitoring/rules.yaml."""
    dashboard: Dashboard = Dashboard()
    """The dashboard of Grafana, that of deploy/monitoring/dashboard.json."""


class SimCloud(Values):
    """A simulated cloud, to try vmpool with. It forgets its machines when its pod goes."""

    enabled: bool = True
    """Run it. Turn it off where real machines are made."""
    api_key: str = Field(default="demo-key", min_length=1, max_length=256, pattern="^[^=]+$")
    """What providers must show. It protects nothing of worth."""
    resources: Piece = Field(
        default={"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
    )
    """Requests and limits."""


class Chart(Values):
    """Every value."""

    name_override: str = Field(default="", max_length=40)
    """In the place of the chart's name in names and labels."""
    fullname_override: str = Field(default="", max_length=50)
    """Beginning of the names of all objects. Empty: the release's name, and the chart's where the release lacks it."""
    image: Image = Image()
    """Where the image lies; it is the same for all pods."""
    image_pull_secrets: list[LocalName] = Field(default_factory=list)
    """Secrets with which nodes pull it."""
    pod_security_context: Piece = Field(
        default={
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    )
    """As whom all pods run. null leaves a key out: OpenShift gives runAsUser, runAsGroup and fsGroup numbers itself."""
    common_labels: Labels = Field(default_factory=dict)
    """Labels of every object."""
    common_annotations: Labels = Field(default_factory=dict)
    """Annotations of every object."""
    install_id: str = Field(default="", max_length=63, pattern="^[a-z0-9-]*$")
    """Take over machines of this install id, after ConfigMap vmpool-identity was lost. Empty: that of the ConfigMap."""
    watch_namespace: str = Field(default="", max_length=63, pattern="^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")
    """Serve only this namespace, with Roles in the place of ClusterRoles. Empty: the whole cluster."""
    log: Log = Log()
    """What operator and gateway write to standard output."""
    crds: Crds = Crds()
    """The definitions of our kinds."""
    rbac: Rbac = Rbac()
    """Roles and their bindings."""
    admission: Admission = Admission()
    """Policies that the API server holds VMClaims to. Not with watchNamespace: they belong to the whole cluster."""
    operator: Operator = Operator()
    """The operator."""
    gateway: GatewayValues = GatewayValues()
    """The REST API that VMPooler's clients speak."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """Traffic of the pods: nothing but what is needed."""
    monitoring: Monitoring = Monitoring()
    """All off: the kinds of the Prometheus operator need not be there."""
    simcloud: SimCloud = SimCloud()
    """A simulated cloud, to try vmpool with. It forgets its machines when its pod goes."""


SETTINGS: Final[dict[str, tuple[type[BaseModel], frozenset[str]]]] = {
    "operator": (Settings, CHART_DECIDES),
    "gateway": (GatewaySettings, CHART_DECIDES_GATEWAY),
}
"""Which settings a value with that mark holds, and which of them the chart decides itself."""
