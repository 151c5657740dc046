"""Helm installs, upgrades and uninstalls the chart on a real API server."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.helm import CHART, Helm
from tests.planes import Kubectl

pytestmark = pytest.mark.control_plane

POOL = """
apiVersion: vmpool.dev/v1alpha1
kind: VMPool
metadata: {name: web}
spec: {replicas: 3, template: {image: debian-12}, providers: [{name: simcloud}]}
"""
SERVED = ("wait", "--for=condition=Established", "--timeout=60s", "crd", "vmpools.vmpool.dev")


def install(cluster: Helm, namespace: str, values: dict[str, Any] | None = None, release: str = "vmpool") -> str:
    return cluster.run("install", release, str(CHART), f"--namespace={namespace}", values=values or {}).stdout


def columns(kubectl: Kubectl) -> list[str]:
    return kubectl("get", "vmpools", "-A").splitlines()[0].split()


def test_one_command_installs_everything(cluster: Helm, place: str, chart_kubectl: Kubectl) -> None:
    said = install(cluster, place)
    assert f"is installed as vmpool in namespace {place}" in said
    assert "leaves your objects and machines as they are" in said
    assert "where that group has the verb claim" in " ".join(said.split())

    found = chart_kubectl("get", "deployments,services,pdb,serviceaccounts", "-n", place, "--output=name").split()
    for kind in ("deployment.apps", "service", "poddisruptionbudget.policy", "serviceaccount"):
        assert {f"{kind}/vmpool-operator", f"{kind}/vmpool-gateway"} <= set(found)
    chart_kubectl(*SERVED)
    chart_kubectl("get", "validatingadmissionpolicies", "vmpool-claims")
    # 1.36: the server knows policies that fill something in, and gets ours.
    chart_kubectl("get", "mutatingadmissionpolicies", "vmpool-requester")


def test_the_notes_hold_a_provider_and_a_pool_that_the_server_takes(
    cluster: Helm, place: str, chart_kubectl: Kubectl
) -> None:
    said = install(cluster, place)
    chart_kubectl(*SERVED)
    manifest = said.split("<<'END'\n", 1)[1].split("\nEND\n", 1)[0]
    made = chart_kubectl("apply", "--server-side", "-f", "-", input=manifest)
    assert {line.split()[0] for line in made.splitlines()} == {
        "vmprovider.vmpool.dev/simcloud",
        "vmpool.vmpool.dev/debian-12",
    }
    provider = json.loads(chart_kubectl("get", "vmproviders", "simcloud", "-n", place, "-o", "json"))
    secret = provider["spec"]["secretRef"]["name"]
    assert chart_kubectl("get", "secret", secret, "-n", place, "-o", "jsonpath={.data.apiKey}")
    endpoint = provider["spec"]["config"]["endpoint"]
    service, namespace = endpoint.removeprefix("http://").split(":")[0].split(".")[:2]
    assert namespace == place
    chart_kubectl("get", "service", service, "-n", place)


def test_a_second_release_for_the_whole_cluster_is_refused(cluster: Helm, place: str) -> None:
    install(cluster, place)
    second = cluster.run(
        "install", "other", str(CHART), "--namespace=default", "--set=crds.enabled=false,admission.enabled=false",
        check=False,
    )  # fmt: skip
    assert second.returncode != 0
    assert "vmpool-claimer" in second.stderr
    assert "other" not in cluster.run("list", "--namespace=default", "--short", "--deployed").stdout


def test_an_upgrade_changes_definitions_and_settings_and_leaves_objects(
    cluster: Helm, place: str, chart_kubectl: Kubectl, tmp_path: Path
) -> None:
    install(cluster, place)
    chart_kubectl(*SERVED)
    chart_kubectl("apply", "--server-side", "-n", place, "-f", "-", input=POOL)
    uid = chart_kubectl("get", "vmpool", "web", "-n", place, "-o", "jsonpath={.metadata.uid}")
    assert "FRESH" not in columns(chart_kubectl)

    newer = shutil.copytree(CHART, tmp_path / "vmpool")
    file = newer / "files/crds/vmpools.vmpool.dev.yaml"
    definition = yaml.safe_load(file.read_text())
    version = definition["spec"]["versions"][0]
    version["additionalPrinterColumns"].append({"name": "Fresh", "type": "integer", "jsonPath": ".spec.replicas"})
    version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["fresh"] = {"type": "string"}
    file.write_text(yaml.safe_dump(definition))
    values = {"operator": {"settings": {"leaseSeconds": 20}}}
    cluster.run("upgrade", "vmpool", str(newer), f"--namespace={place}", values=values)

    assert "FRESH" in columns(chart_kubectl)
    assert chart_kubectl("get", "vmpool", "web", "-n", place, "-o", "jsonpath={.metadata.uid}") == uid
    assert chart_kubectl("get", "vmpool", "web", "-n", place, "-o", "jsonpath={.spec.replicas}") == "3"
    container = json.loads(chart_kubectl("get", "deployment", "vmpool-operator", "-n", place, "-o", "json"))["spec"][
        "template"
    ]["spec"]["containers"][0]
    assert {"name": "VMPOOL_LEASE_SECONDS", "value": "20"} in container["env"]
    cluster.run("rollback", "vmpool", "1", f"--namespace={place}")
    assert "FRESH" not in columns(chart_kubectl)


def test_uninstalling_leaves_users_resources_and_installing_takes_over(
    cluster: Helm, place: str, chart_kubectl: Kubectl
) -> None:
    install(cluster, place)
    chart_kubectl(*SERVED)
    chart_kubectl("apply", "--server-side", "-n", place, "-f", "-", input=POOL)
    # As an operator leaves it that has run.
    chart_kubectl(
        "patch", "vmpool", "web", "-n", place, "--type=merge", "-p", '{"metadata":{"finalizers":["vmpool.dev/drain"]}}'
    )
    chart_kubectl("create", "configmap", "vmpool-identity", "-n", place, "--from-literal=installId=one")
    uid = chart_kubectl("get", "vmpool", "web", "-n", place, "-o", "jsonpath={.metadata.uid}")

    cluster.run("uninstall", "vmpool", f"--namespace={place}", "--timeout=60s")
    assert not chart_kubectl("get", "deployments,services,pdb", "-n", place, "--output=name").split()
    assert not [name for name in chart_kubectl("get", "clusterroles", "--output=name").split() if "vmpool" in name]
    kept = json.loads(chart_kubectl("get", "vmpool", "web", "-n", place, "-o", "json"))["metadata"]
    assert kept["uid"] == uid
    assert "deletionTimestamp" not in kept
    for each in ("configmap/vmpool-identity", "secret/vmpool-simcloud"):
        meta = json.loads(chart_kubectl("get", each, "-n", place, "-o", "json"))["metadata"]
        assert "deletionTimestamp" not in meta

    install(cluster, place)
    assert chart_kubectl("get", "vmpool", "web", "-n", place, "-o", "jsonpath={.metadata.uid}") == uid


def test_definitions_that_are_not_kept_take_their_objects_along(
    cluster: Helm, place: str, chart_kubectl: Kubectl
) -> None:
    said = install(cluster, place, {"crds": {"keep": False}})
    assert "takes all your objects with it" in said
    chart_kubectl(*SERVED)
    chart_kubectl("apply", "--server-side", "-n", place, "-f", "-", input=POOL)
    cluster.run("uninstall", "vmpool", f"--namespace={place}")
    chart_kubectl("wait", "--for=delete", "--timeout=60s", "crd", "vmpools.vmpool.dev")


def test_a_release_for_one_namespace_lives_beside_others(cluster: Helm, place: str, chart_kubectl: Kubectl) -> None:
    chart_kubectl("create", "namespace", f"{place}-2")
    one_namespace = {"gateway": {"settings": {"authorization": "open"}}}
    said = install(cluster, place, {**one_namespace, "watchNamespace": place})
    assert "Left out, because it belongs to the whole cluster" in said
    assert "Everybody who reaches it may have VMs of every" in said
    values = {**one_namespace, "watchNamespace": f"{place}-2", "crds": {"enabled": False}}
    install(cluster, f"{place}-2", values, release="second")
    for namespace, release in ((place, "vmpool"), (f"{place}-2", "second-vmpool")):
        chart_kubectl("get", "role", f"{release}-operator", "-n", namespace)
        chart_kubectl("get", "role", "vmpool-claimer", "-n", namespace)
    assert not [name for name in chart_kubectl("get", "clusterroles", "--output=name").split() if "vmpool" in name]
    cluster.run("uninstall", "second", f"--namespace={place}-2")
    chart_kubectl("delete", "namespace", f"{place}-2", "--wait=false")


def test_a_wrong_value_stops_the_installation_before_anything_is_made(
    cluster: Helm, place: str, chart_kubectl: Kubectl
) -> None:
    refused = cluster.run(
        "install", "vmpool", str(CHART), f"--namespace={place}", values={"operator": {"replica": 3}}, check=False
    )
    assert refused.returncode != 0
    assert "at '/operator': additional properties 'replica' not allowed" in refused.stderr
    assert not chart_kubectl("get", "deployments,serviceaccounts", "-n", place, "--output=name").replace(
        "serviceaccount/default\n", ""
    )
