"""Everything that the chart renders is admitted by a real API server, its pods under the restricted profile."""

import copy
import json
from collections.abc import Iterator

import pytest
import yaml

from tests.chart.helm import Helm, Object, of
from tests.chart.matrix import FOREIGN, MATRIX
from tests.chart.test_render import pods
from tests.planes import Kubectl

pytestmark = pytest.mark.control_plane

ROWS = [pytest.param(values, id=name) for name, values in MATRIX.items()]
HOME = "vmpool"
"""Where the rendered objects are meant to be."""


@pytest.fixture(scope="module")
def home(chart_kubectl: Kubectl) -> Iterator[str]:
    """Their namespace; it enforces the restricted profile."""
    chart_kubectl("create", "namespace", HOME)
    chart_kubectl("label", "namespace", HOME, "pod-security.kubernetes.io/enforce=restricted")
    yield HOME
    chart_kubectl("delete", "namespace", HOME, "--wait=false")


def bare(name: str, template: Object) -> Object:
    """Return the pod that a template makes."""
    meta = {key: value for key, value in template["metadata"].items() if key in {"labels", "annotations"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **meta}, "spec": template["spec"]}


def dry_run(kubectl: Kubectl, namespace: str, objects: list[Object], *, check: bool = True) -> set[str]:
    """Apply, and have the server do everything but store; return the names of what it would have made."""
    text = yaml.safe_dump_all(objects)
    flags = ("--server-side", "--dry-run=server", "--validate=strict", "--output=name")
    said = kubectl("apply", "-n", namespace, *flags, "-f", "-", input=text, check=check)
    return set(said.split())


@pytest.mark.parametrize("values", ROWS)
def test_the_server_takes_every_object(helm: Helm, home: str, chart_kubectl: Kubectl, values: Object) -> None:
    made = [each for each in helm.template(values) if each["kind"] not in FOREIGN]
    # A Role elsewhere is judged by itself: kubectl asks for one namespace at a time.
    made = [each for each in made if each["metadata"].get("namespace") in {None, home}]
    # The test's pod comes after the rest.
    made = [each for each in made if each["kind"] != "Pod"]
    assert len(dry_run(chart_kubectl, home, made)) == len(made)


@pytest.mark.parametrize("values", ROWS)
def test_every_pod_is_admitted_under_the_restricted_profile(
    helm: Helm, home: str, chart_kubectl: Kubectl, values: Object
) -> None:
    made = helm.template(values)
    accounts = of(made, "ServiceAccount")
    wanted = {pod["spec"].get("serviceAccountName", "default") for pod in pods(made).values()} - {"default"}
    there = {each["metadata"]["name"] for each in accounts}
    accounts += [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": each}} for each in wanted - there]
    if accounts:
        chart_kubectl(
            "apply", "--server-side", "--force-conflicts", "-n", home, "-f", "-", input=yaml.safe_dump_all(accounts)
        )
    templates = [bare(name, pod) for name, pod in pods(made).items()]
    assert dry_run(chart_kubectl, home, templates) == {f"pod/{name}" for name in pods(made)}


SPOILED = {
    "root": lambda spec: spec["securityContext"].update(runAsNonRoot=False),
    "escalation": lambda spec: spec["containers"][0]["securityContext"].update(allowPrivilegeEscalation=True),
    "capabilities": lambda spec: spec["containers"][0]["securityContext"].pop("capabilities"),
    "seccomp": lambda spec: spec["securityContext"].pop("seccompProfile"),
    "host path": lambda spec: spec["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
}


@pytest.mark.parametrize("spoil", SPOILED)
def test_that_profile_does_refuse_pods(helm: Helm, home: str, chart_kubectl: Kubectl, spoil: str) -> None:
    made = helm.template({"operator": {"serviceAccount": {"create": False}}})
    pod = copy.deepcopy(bare("spoiled", pods(made)["vmpool-operator"]))
    SPOILED[spoil](pod["spec"])
    assert not dry_run(chart_kubectl, home, [pod], check=False)


def test_the_namespace_of_the_tests_enforces_it(home: str, chart_kubectl: Kubectl) -> None:
    labels = json.loads(chart_kubectl("get", "namespace", home, "-o", "json"))["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
