"""Who owns which field: Helm, a person, an autoscaler, a tool that applies what stands in Git."""

import json
from pathlib import Path

import pytest
import yaml

from tests.chart.helm import CHART, Helm, one
from tests.chart.test_install import POOL, SERVED, install
from tests.planes import CRDS, Kubectl
from vmpool.api import keys

pytestmark = pytest.mark.control_plane


def replicas(kubectl: Kubectl, place: str, what: str) -> str:
    return kubectl("get", what, "-n", place, "-o", "jsonpath={.spec.replicas}")


def test_helm_applies_and_nobody_elses_fields_are_lost(cluster: Helm, place: str, chart_kubectl: Kubectl) -> None:
    install(cluster, place)
    chart_kubectl("annotate", "deployment", "vmpool-gateway", "-n", place, "team=ci")
    install_again(cluster, place)
    found = json.loads(
        chart_kubectl("get", "deployment", "vmpool-gateway", "-n", place, "-o", "json", "--show-managed-fields")
    )["metadata"]
    assert found["annotations"]["team"] == "ci"
    assert ("helm", "Apply") in {(each["manager"], each["operation"]) for each in found["managedFields"]}


def install_again(cluster: Helm, place: str, *flags: str, check: bool = True, **values: object) -> str:
    return cluster.run(
        "upgrade", "vmpool", str(CHART), f"--namespace={place}", *flags, values=values, check=check
    ).stderr


def test_upgrading_without_a_change_writes_nothing(cluster: Helm, place: str, chart_kubectl: Kubectl) -> None:
    install(cluster, place)
    chart_kubectl(*SERVED)

    def versions() -> dict[str, str]:
        kinds = "deployments,services,serviceaccounts,pdb,roles,rolebindings,clusterroles,clusterrolebindings"
        text = chart_kubectl("get", f"{kinds},validatingadmissionpolicies", "-n", place, "-o", "json")
        return {
            f"{each['kind']}/{each['metadata']['name']}": each["metadata"]["resourceVersion"]
            for each in json.loads(text)["items"]
            if "vmpool" in each["metadata"]["name"] and each["kind"] != "ValidatingAdmissionPolicy"
        }

    before = versions()
    assert before
    install_again(cluster, place)
    assert versions() == before


def test_a_scaled_gateway_is_a_conflict_that_says_so_unless_its_size_is_left_to_others(
    cluster: Helm, place: str, chart_kubectl: Kubectl
) -> None:
    install(cluster, place)
    chart_kubectl("scale", "deployment", "vmpool-gateway", "-n", place, "--replicas=5")
    said = install_again(cluster, place, check=False)
    assert "conflict" in said
    assert ".spec.replicas" in said
    assert replicas(chart_kubectl, place, "deployment/vmpool-gateway") == "5"
    install_again(cluster, place, gateway={"replicas": None})
    assert replicas(chart_kubectl, place, "deployment/vmpool-gateway") == "5"
    install_again(cluster, place, "--force-conflicts", gateway={"replicas": 2})
    assert replicas(chart_kubectl, place, "deployment/vmpool-gateway") == "2"


def test_a_size_that_is_left_to_others_is_not_rendered(helm: Helm) -> None:
    made = helm.template({"gateway": {"replicas": None}})
    assert "replicas" not in one(made, "Deployment", "vmpool-gateway")["spec"]
    assert one(made, "Deployment", "vmpool-operator")["spec"]["replicas"] == 2
    none = helm.template({"gateway": {"replicas": 0}})
    assert one(none, "Deployment", "vmpool-gateway")["spec"]["replicas"] == 0


def test_a_scaled_pool_and_git_get_a_conflict_and_no_silent_fight(
    cluster: Helm, place: str, chart_kubectl: Kubectl
) -> None:
    install(cluster, place)
    chart_kubectl(*SERVED)
    git = ("apply", "--server-side", "--field-manager=gitops", "-n", place, "-f", "-")
    chart_kubectl(*git, input=POOL)
    chart_kubectl("scale", "vmpool", "web", "-n", place, "--replicas=7")
    assert not chart_kubectl(*git, input=POOL, check=False)
    assert replicas(chart_kubectl, place, "vmpool/web") == "7"
    unsized = yaml.safe_load(POOL)
    del unsized["spec"]["replicas"]
    chart_kubectl(*git, input=yaml.safe_dump(unsized))
    assert replicas(chart_kubectl, place, "vmpool/web") == "7"
    managers = json.loads(
        chart_kubectl("get", "vmpool", "web", "-n", place, "-o", "json", "--show-managed-fields")
    )["metadata"]["managedFields"]  # fmt: skip
    owners = {each["manager"] for each in managers if "f:replicas" in each["fieldsV1"].get("f:spec", {})}
    assert "gitops" not in owners
    assert owners


def test_definitions_that_were_there_before_are_taken_over(
    cluster: Helm, place: str, chart_kubectl: Kubectl, tmp_path: Path
) -> None:
    old = tmp_path / "old.yaml"
    definitions = [yaml.safe_load(file.read_text()) for file in sorted(CRDS.glob("*.yaml"))]
    for each in definitions:
        each["spec"]["versions"][0]["additionalPrinterColumns"].pop()
    old.write_text(yaml.safe_dump_all(definitions))
    chart_kubectl("apply", "--server-side", "-f", str(old))
    chart_kubectl(*SERVED)
    chart_kubectl("apply", "--server-side", "-n", place, "-f", "-", input=POOL)
    refused = cluster.run("install", "vmpool", str(CHART), f"--namespace={place}", check=False).stderr
    assert "invalid ownership metadata" in refused
    flags = ("--take-ownership", "--force-conflicts")
    cluster.run("install", "vmpool", str(CHART), f"--namespace={place}", *flags)
    told = json.loads(chart_kubectl("get", "crd", f"vmpools.{keys.GROUP}", "-o", "json"))
    wanted = yaml.safe_load((CRDS / f"vmpools.{keys.GROUP}.yaml").read_text())
    columns = told["spec"]["versions"][0]["additionalPrinterColumns"]
    assert len(columns) == len(wanted["spec"]["versions"][0]["additionalPrinterColumns"])
    assert told["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert replicas(chart_kubectl, place, "vmpool/web") == "3"
