"""What comes out of the chart, for every row of the matrix, without a cluster."""

import re
from pathlib import Path
from typing import Any, Final

import pytest

from tests.chart.helm import CHART, KUBE_VERSION, Helm, Object, environment, of, one
from tests.chart.matrix import FOREIGN, MATRIX
from vmpool.settings import Settings

SELF_NAMED = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
OF_NO_NAMESPACE = re.compile("Cluster|Admission|CustomResource")
ROWS = [pytest.param(values, id=name) for name, values in MATRIX.items()]


def pods(objects: list[Object]) -> dict[str, Object]:
    """Return every pod that the release would have, by the name of what makes it."""
    made = {each["metadata"]["name"]: each["spec"]["template"] for each in of(objects, "Deployment")}
    return {**made, **{each["metadata"]["name"]: each for each in of(objects, "Pod")}}


@pytest.mark.parametrize("values", ROWS)
def test_it_passes_the_linter(helm: Helm, values: Object) -> None:
    helm.run("lint", "--strict", str(CHART), values=values)


@pytest.mark.parametrize("values", ROWS)
def test_names_labels_and_namespaces_fit(helm: Helm, values: Object) -> None:
    made = helm.template(values)
    known = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in made]
    assert len(known) == len(set(known))
    for each in made:
        meta = each["metadata"]
        assert SELF_NAMED.fullmatch(meta["name"])
        assert ("namespace" not in meta) is bool(OF_NO_NAMESPACE.search(each["kind"])), f"{each['kind']} {meta['name']}"
        assert meta.get("namespace") in {None, "vmpool", values.get("watchNamespace")}
        assert meta["labels"]["app.kubernetes.io/instance"] == "vmpool"
        assert set(values.get("commonLabels", {})) <= set(meta["labels"])
        assert set(values.get("commonAnnotations", {}).items()) <= set(meta.get("annotations", {}).items())


@pytest.mark.parametrize("values", ROWS)
def test_selectors_choose_their_own_pods_and_no_others(helm: Helm, values: Object) -> None:
    made = helm.template(values)
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(made).items()}

    def chosen(selector: Object) -> set[str]:
        return {name for name, own in labels.items() if selector.items() <= own.items()}

    for each in of(made, "Deployment"):
        own = {each["metadata"]["name"]}
        assert chosen(each["spec"]["selector"]["matchLabels"]) == own
        for spread in each["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
            assert chosen(spread["labelSelector"]["matchLabels"]) == own
    for kind, where in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for each in of(made, kind):
            assert chosen(each["spec"][where]["matchLabels"]) == {each["metadata"]["name"]}
    for each in of(made, "Service"):
        assert chosen(each["spec"]["selector"]) == {each["metadata"]["name"]}
    services = {each["metadata"]["name"]: each for each in of(made, "Service")}
    for each in of(made, "ServiceMonitor"):
        wanted = each["spec"]["selector"]["matchLabels"]
        found = [name for name, one_ in services.items() if wanted.items() <= one_["metadata"]["labels"].items()]
        assert found == [each["metadata"]["name"]]


@pytest.mark.parametrize("values", ROWS)
def test_ports_are_there_where_something_names_them(helm: Helm, values: Object) -> None:
    made = helm.template(values)
    for each in of(made, "Service"):
        container = one(made, "Deployment", each["metadata"]["name"])["spec"]["template"]["spec"]["containers"][0]
        named = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in each["spec"]["ports"]} <= named
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container.get(probe, {"httpGet": {"port": "http"}})["httpGet"]["port"] in named
    for each in of(made, "ServiceMonitor"):
        service = one(made, "Service", each["metadata"]["name"])
        assert {port["port"] for port in each["spec"]["endpoints"]} <= {
            port["name"] for port in service["spec"]["ports"]
        }


@pytest.mark.parametrize("values", ROWS)
def test_pods_hold_nothing_they_do_not_need(helm: Helm, values: Object) -> None:
    made = helm.template(values)
    for name, pod in pods(made).items():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} <= set(container["resources"])
        mounted = [volume for volume in spec.get("volumes", []) if volume["name"] == "account"]
        assert bool(mounted) is name.endswith(("-operator", "-gateway", "-lifecycle"))
        assert {each["name"] for each in container.get("volumeMounts", [])} == {
            each["name"] for each in spec.get("volumes", [])
        }
    for each in of(made, "ServiceAccount"):
        assert each["automountServiceAccountToken"] is False


SECURE: Final = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "fsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
NUMBERS: Final = {"runAsUser": None, "runAsGroup": None, "fsGroup": None}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        pytest.param({}, SECURE, id="default"),
        pytest.param(
            NUMBERS, {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}, id="the cluster chooses"
        ),
        pytest.param({"fsGroup": 1000}, {**SECURE, "fsGroup": 1000}, id="another number"),
        pytest.param({"supplementalGroups": [7]}, {**SECURE, "supplementalGroups": [7]}, id="one more key"),
    ],
)
def test_as_whom_pods_run_can_be_told(helm: Helm, given: Object, wanted: Object) -> None:
    made = pods(helm.template({"podSecurityContext": given}))
    assert len(made) == 5
    for pod in made.values():
        assert pod["spec"]["securityContext"] == wanted


@pytest.mark.parametrize("values", ROWS)
def test_foreign_kinds_come_only_when_asked_for(helm: Helm, values: Object) -> None:
    there = {each["kind"] for each in helm.template(values)} & set(FOREIGN)
    assert there == (set(FOREIGN) if "monitoring" in values else set())


def test_metrics_keep_our_labels(helm: Helm) -> None:
    made = helm.template(MATRIX["monitored"])
    ends = {each["metadata"]["name"]: each["spec"]["endpoints"][0] for each in of(made, "ServiceMonitor")}
    assert set(ends) == {"vmpool-operator", "vmpool-gateway"}
    assert all(end["honorLabels"] is True for end in ends.values())
    assert "scheme" not in ends["vmpool-operator"]
    assert ends["vmpool-gateway"]["scheme"] == "https"
    assert ends["vmpool-gateway"]["tlsConfig"] == {"serverName": "vmpool.example.com"}


def test_a_pod_knows_its_uid_and_its_namespace_from_the_downward_api(helm: Helm) -> None:
    made = helm.template()
    for part in ("operator", "gateway"):
        container = one(made, "Deployment", f"vmpool-{part}")["spec"]["template"]["spec"]["containers"][0]
        fields = {
            each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"] for each in container["env"] if "valueFrom" in each
        }
        assert fields == {"VMPOOL_NAMESPACE": "metadata.namespace", "VMPOOL_POD_UID": "metadata.uid"}
        assert container["args"] == [part]


def test_two_operators_and_a_rollout_need_no_lease_to_be_available(helm: Helm) -> None:
    deployment = one(helm.template(), "Deployment", "vmpool-operator")
    assert deployment["spec"]["replicas"] == 2
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    # /readyz is red on a standby.
    assert container["readinessProbe"]["httpGet"]["path"] == "/healthz"
    budget = one(helm.template(), "PodDisruptionBudget", "vmpool-operator")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_pods_end_in_their_own_time(helm: Helm) -> None:
    made = helm.template()
    spec = one(made, "Deployment", "vmpool-gateway")["spec"]["template"]["spec"]
    sleep = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > sleep + 15
    grace = one(made, "Deployment", "vmpool-operator")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > Settings().stop_grace_seconds


def test_files_are_mounted_where_the_program_is_told(helm: Helm) -> None:
    for name, variable, key in (("users", "USERS_FILE", "vmpool"), ("production", "LDAP_BIND_PASSWORD_FILE", "bind")):
        pod = one(helm.template(MATRIX[name]), "Deployment", "vmpool-gateway")["spec"]["template"]
        path = environment(pod)[f"VMPOOL_GATEWAY_{variable}"]
        folder, file = path.rsplit("/", 1)
        (mount,) = [each for each in pod["spec"]["containers"][0]["volumeMounts"] if each["mountPath"] == folder]
        (volume,) = [each for each in pod["spec"]["volumes"] if each["name"] == mount["name"]]
        assert volume["secret"]["items"] == [{"key": key, "path": file}]
    pod = one(helm.template(MATRIX["production"]), "Deployment", "vmpool-gateway")["spec"]["template"]
    assert environment(pod)["VMPOOL_GATEWAY_TLS_KEY"] == "/etc/vmpool/tls/tls.key"
    assert pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"


@pytest.mark.parametrize(
    ("values", "image"),
    [
        pytest.param({}, "vmpool:0.1.0", id="default"),
        pytest.param({"image": {"tag": "1.2"}}, "vmpool:1.2", id="tag"),
        pytest.param(MATRIX["production"], f"registry.example.com/ci/vmpool@sha256:{'0' * 64}", id="digest"),
    ],
)
def test_every_pod_has_the_same_image(helm: Helm, values: Object, image: str) -> None:
    assert {pod["spec"]["containers"][0]["image"] for pod in pods(helm.template(values)).values()} == {image}


@pytest.mark.parametrize(
    ("release", "overrides", "name"),
    [
        ("vmpool", {}, "vmpool-operator"),
        ("ci-vmpool", {}, "ci-vmpool-operator"),
        ("blue", {}, "blue-vmpool-operator"),
        ("blue", {"fullnameOverride": "machines"}, "machines-operator"),
    ],
)
def test_objects_are_named_after_the_release(helm: Helm, release: str, overrides: Object, name: str) -> None:
    made = helm.template(overrides, release=release)
    for kind in ("Deployment", "ServiceAccount", "ClusterRole", "PodDisruptionBudget"):
        one(made, kind, name)
    # What the program and its messages name.
    one(made, "ValidatingAdmissionPolicy", "vmpool-claims")
    one(made, "ClusterRole", "vmpool-claimer")


def test_the_network_is_closed_but_for_what_is_told(helm: Helm) -> None:
    made = helm.template(MATRIX["production"])
    operator: Any = one(made, "NetworkPolicy", "vmpool-operator")["spec"]
    assert operator["policyTypes"] == ["Ingress", "Egress"]
    names, server, *others = operator["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert server == {"to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}], "ports": [{"port": 6443}]}
    assert others == MATRIX["production"]["networkPolicy"]["egress"]
    *told, test = operator["ingress"][0]["from"]
    assert told == MATRIX["production"]["networkPolicy"]["metricsFrom"]
    assert test["podSelector"]["matchLabels"].items() <= pods(made)["vmpool-test"]["metadata"]["labels"].items()
    open_to = one(helm.template(MATRIX["network closed"]), "NetworkPolicy", "vmpool-operator")["spec"]["egress"][1][
        "to"
    ]
    assert open_to[0]["ipBlock"] == {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}


@pytest.mark.parametrize(("given", "wanted"), [({}, [53]), ({"dnsPorts": [53, 5353]}, [53, 5353])])
def test_names_are_asked_for_where_the_cluster_answers(helm: Helm, given: Object, wanted: list[int]) -> None:
    policies = of(helm.template({"networkPolicy": {"enabled": True, **given}}), "NetworkPolicy")
    asking = [each for each in policies if "Egress" in each["spec"]["policyTypes"] and each["spec"].get("egress")]
    assert {each["metadata"]["name"] for each in asking} == {"vmpool-operator", "vmpool-gateway"}
    for each in asking:
        assert each["spec"]["egress"][0] == {
            "ports": [{"port": port, "protocol": protocol} for port in wanted for protocol in ("UDP", "TCP")]
        }


def test_what_the_user_adds_wins_where_nothing_rests_on_it(helm: Helm) -> None:
    made = helm.template(MATRIX["everything placed"])
    pod = one(made, "Deployment", "vmpool-operator")["spec"]["template"]
    names = [each["name"] for each in pod["spec"]["containers"][0]["env"]]
    assert len(names) == len(set(names))
    assert environment(pod)["VMPOOL_LOG_LEVEL"] == "warning"
    assert pod["metadata"]["labels"]["team"] == "ci"
    assert pod["metadata"]["labels"]["cost"] == "42"
    # Selectors rest on these.
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "operator"
    assert pod["metadata"]["labels"]["app.kubernetes.io/instance"] == "vmpool"


def test_the_install_id_is_taken_over(helm: Helm) -> None:
    pod = one(helm.template({"installId": "blue-1"}), "Deployment", "vmpool-operator")["spec"]["template"]
    assert environment(pod)["VMPOOL_INSTALL_ID"] == "blue-1"
    pod = one(helm.template(), "Deployment", "vmpool-operator")["spec"]["template"]
    assert "VMPOOL_INSTALL_ID" not in environment(pod)


def test_a_package_renders_the_same(helm: Helm, tmp_path: Path) -> None:
    helm.run("package", str(CHART), f"--destination={tmp_path}")
    (package,) = tmp_path.glob("vmpool-*.tgz")
    told = ("--namespace=vmpool", f"--kube-version={KUBE_VERSION}")
    packed = helm.run("template", "vmpool", str(package), *told).stdout
    assert packed == helm.run("template", "vmpool", str(CHART), *told).stdout
    assert "kind: Deployment" in packed
