"""The chart has no rule, definition, policy or alert of its own: it has those of the repository, as they are now."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.helm import Helm, Object, of, one
from tests.chart.matrix import MATRIX
from vmpool.api import keys
from vmpool.cli import chart, generate
from vmpool.plan.crds import definitions

ROOT = Path(__file__).parents[2]
RBAC = ROOT / "deploy" / "rbac"
ADMISSION = ROOT / "deploy" / "admission"
OPEN = {"gateway": {"settings": {"authorization": "open", "configEndpoints": True}}}
ALL_ON = {"gateway": {"settings": {"configEndpoints": True}}, "admission": {"requester": "always"}}
HIDDEN = ("subjectaccessreviews", "tokenreviews", "customresourcedefinitions", "validatingadmissionpolicies")


def documents(folder: Path) -> list[Object]:
    return [each for file in sorted(folder.glob("*.yaml")) for each in yaml.safe_load_all(file.read_text())]


def installed(helm: Helm, values: Object | None = None, *args: str) -> list[Object]:
    """Return what a release is made of: all but the test."""
    return helm.template(values, "--skip-tests", *args)


def rules(objects: list[Object]) -> dict[tuple[str, str], Any]:
    """Return the rules of every role, by kind and name; the order of rules means nothing."""
    return {
        (each["kind"], each["metadata"]["name"]): sorted(map(written, each["rules"]))
        for each in objects
        if each["kind"] in {"Role", "ClusterRole"}
    }


def written(rule: Object) -> str:
    return yaml.safe_dump(rule)


@pytest.mark.parametrize("path", [path for path in generate.outputs() if path.startswith(chart.CHART)])
def test_the_copy_is_current(path: str) -> None:
    assert (ROOT / path).read_text() == generate.outputs()[path], f"{path} is stale; type: make generate"


def test_no_copy_is_left_of_what_is_gone() -> None:
    assert set(chart.present(ROOT)) <= set(generate.outputs())


def test_roles_are_those_of_deploy_to_the_letter(helm: Helm) -> None:
    made = rules(installed(helm, ALL_ON))
    assert rules(documents(RBAC)).items() <= made.items()
    people = {("ClusterRole", f"vmpool-{name}") for name in ("view", "edit", "admin")}
    assert set(made) - set(rules(documents(RBAC))) == people


def test_accounts_are_bound_to_their_roles_and_nobody_else_is(helm: Helm) -> None:
    made = installed(helm, ALL_ON)
    bound = {
        (each["kind"], each["roleRef"]["kind"], each["roleRef"]["name"]): each["subjects"]
        for each in made
        if each["kind"] in {"RoleBinding", "ClusterRoleBinding"}
    }
    who = {
        part: [{"kind": "ServiceAccount", "name": f"vmpool-{part}", "namespace": "vmpool"}]
        for part in ("operator", "gateway")
    }
    assert bound == {
        ("ClusterRoleBinding", "ClusterRole", "vmpool-operator"): who["operator"],
        ("RoleBinding", "Role", "vmpool-operator"): who["operator"],
        ("ClusterRoleBinding", "ClusterRole", "vmpool-gateway"): who["gateway"],
        ("RoleBinding", "Role", "vmpool-gateway"): who["gateway"],
        ("ClusterRoleBinding", "ClusterRole", "vmpool-gateway-config"): who["gateway"],
    }
    accounts = {each["metadata"]["name"] for each in of(made, "ServiceAccount")}
    assert accounts == {"vmpool-operator", "vmpool-gateway"}


def test_a_release_for_one_namespace_has_the_same_rules_in_roles_there(helm: Helm) -> None:
    made = installed(helm, {"watchNamespace": "ci", **OPEN})
    assert not of(made, "ClusterRole")
    assert not of(made, "ClusterRoleBinding")
    assert not [each for each in made if each["kind"].endswith(("Policy", "PolicyBinding"))]
    shipped = rules(documents(RBAC))
    for name in ("vmpool-operator", "vmpool-gateway"):
        inside = {
            each["metadata"]["namespace"]: each["rules"]
            for each in of(made, "Role")
            if each["metadata"]["name"] == name
        }
        assert sorted(map(written, inside["vmpool"])) == shipped["Role", name]
        left_out = set(shipped["ClusterRole", name]) - set(map(written, inside["ci"]))
        assert left_out
        assert all(any(word in rule for word in HIDDEN) for rule in left_out)
        assert not [rule for rule in map(written, inside["ci"]) if rule not in shipped["ClusterRole", name]]
    assert one(made, "Role", "vmpool-claimer")["metadata"]["namespace"] == "ci"


def test_in_its_own_namespace_both_sets_of_rules_are_one_role(helm: Helm) -> None:
    made = installed(helm, {"watchNamespace": "vmpool", **OPEN})
    apart = installed(helm, {"watchNamespace": "ci", **OPEN})
    for name in ("vmpool-operator", "vmpool-gateway"):
        both = [rule for each in of(apart, "Role") if each["metadata"]["name"] == name for rule in each["rules"]]
        assert sorted(map(written, one(made, "Role", name)["rules"])) == sorted(map(written, both))


def test_what_no_role_can_hold_is_made_when_asked_for(helm: Helm) -> None:
    made = installed(helm, {"watchNamespace": "ci", "rbac": {"clusterRest": True}})
    shipped = rules(documents(RBAC))
    for name in ("vmpool-operator", "vmpool-gateway"):
        rest = list(map(written, one(made, "ClusterRole", f"{name}.vmpool")["rules"]))
        inside = [
            written(rule)
            for each in of(made, "Role")
            if each["metadata"]["namespace"] == "ci"
            for rule in each["rules"]
        ]
        assert set(rest) | set(inside) >= set(shipped["ClusterRole", name])
        assert all(any(word in rule for word in HIDDEN) for rule in rest)
    assert {(each["metadata"]["name"], each["roleRef"]["name"]) for each in of(made, "ClusterRoleBinding")} == {
        ("vmpool-operator.vmpool", "vmpool-operator.vmpool"),
        ("vmpool-gateway.vmpool", "vmpool-gateway.vmpool"),
    }


def test_releases_for_one_namespace_each_share_nothing_of_the_cluster_but_the_definitions(helm: Helm) -> None:
    def of_the_cluster(namespace: str, values: Object) -> set[tuple[str, str]]:
        made = installed(helm, values, f"--namespace={namespace}")
        return {(each["kind"], each["metadata"]["name"]) for each in made if "namespace" not in each["metadata"]}

    asked = {
        **ALL_ON,
        "rbac": {"clusterRest": True, "aggregate": True},
        "monitoring": MATRIX["monitored"]["monitoring"],
    }
    first, second = (of_the_cluster(name, {**asked, "watchNamespace": name}) for name in ("ci", "qa"))
    assert {kind for kind, _ in first} == {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
    assert {kind for kind, _ in first & second} == {"CustomResourceDefinition"}
    # One beside a release for the whole cluster, in a namespace whose name could be taken for a part's.
    beside = of_the_cluster("config", {**asked, "watchNamespace": "ci"})
    assert {kind for kind, _ in beside & of_the_cluster("vmpool", asked)} == {"CustomResourceDefinition"}


def test_a_rule_of_a_group_nobody_has_sorted_is_an_error(tmp_path: Path) -> None:
    for source in (*chart.COPIES, *(file for file, _ in chart.ROLES.values())):
        copy = tmp_path / source
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((ROOT / source).read_text())
    assert chart.outputs(tmp_path, {})
    operator = tmp_path / "deploy/rbac/operator.yaml"
    operator.write_text(operator.read_text().replace("apiextensions.k8s.io", "storage.k8s.io"))
    with pytest.raises(ValueError, match=r"storage\.k8s\.io"):
        chart.outputs(tmp_path, {})


def test_no_role_for_people_may_write_what_is_believed(helm: Helm) -> None:
    made = installed(helm)
    for name in ("vmpool-view", "vmpool-edit", "vmpool-admin", "vmpool-claimer"):
        for rule in one(made, "ClusterRole", name)["rules"]:
            assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"])
            assert "stamp" not in rule["verbs"]
            writes = set(rule["verbs"]) - {"get", "list", "watch"}
            if writes:
                assert "pooledvms" not in rule["resources"]
                assert not [each for each in rule["resources"] if each.endswith("/status")]
    may = {name: rules(made)["ClusterRole", f"vmpool-{name}"] for name in ("view", "edit", "admin")}
    assert set(may["view"]) < set(may["edit"]) < set(may["admin"])


def names_a_secret(schema: Any) -> bool:
    """Whether a field below, at any depth, is the name of a Secret."""
    if isinstance(schema, list):
        return any(map(names_a_secret, schema))
    if not isinstance(schema, dict):
        return False
    fields = schema.get("properties", {})
    return any("secret" in field.lower() for field in fields) or any(map(names_a_secret, schema.values()))


def test_what_names_a_secret_is_for_admins_to_write(helm: Helm) -> None:
    made = installed(helm)
    naming = {
        each["spec"]["names"]["plural"]
        for each in definitions().values()
        for version in each["spec"]["versions"]
        if names_a_secret(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    }
    assert naming == {"vmproviders", "deadletterqueues"}
    written_by = {
        role: {
            resource
            for rule in one(made, "ClusterRole", f"vmpool-{role}")["rules"]
            if set(rule["verbs"]) & {"create", "update", "patch"}
            for resource in rule["resources"]
        }
        for role in ("view", "edit", "admin", "claimer")
    }
    assert naming <= written_by.pop("admin")
    for role, writes in written_by.items():
        assert not naming & writes, role


@pytest.mark.parametrize("asked", [False, True])
def test_aggregation_is_opt_in(helm: Helm, asked: bool) -> None:
    made = installed(helm, {"rbac": {"aggregate": asked}})
    for name in ("view", "edit", "admin"):
        labels = one(made, "ClusterRole", f"vmpool-{name}")["metadata"]["labels"]
        assert (f"rbac.authorization.k8s.io/aggregate-to-{name}" in labels) is asked


def test_definitions_are_those_of_the_code(helm: Helm) -> None:
    made = {f"{each['metadata']['name']}.yaml": each for each in of(installed(helm), "CustomResourceDefinition")}
    wanted = definitions()
    assert set(made) == set(wanted)
    for name, definition in wanted.items():
        assert made[name]["spec"] == definition["spec"]
        assert made[name]["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_definitions_can_be_left_out_and_not_kept(helm: Helm) -> None:
    assert not of(installed(helm, {"crds": {"enabled": False}}), "CustomResourceDefinition")
    made = of(installed(helm, {"crds": {"keep": False}}), "CustomResourceDefinition")
    assert made
    assert not [each for each in made if each["metadata"].get("annotations")]


def test_policies_are_those_of_deploy(helm: Helm) -> None:
    made = {
        (each["kind"], each["metadata"]["name"]): each["spec"]
        for each in installed(helm, ALL_ON)
        if "Admission" in each["kind"]
    }
    assert made == {(each["kind"], each["metadata"]["name"]): each["spec"] for each in documents(ADMISSION)}


def test_policies_can_be_left_out(helm: Helm) -> None:
    def kinds(values: Object, *args: str) -> set[str]:
        return {each["kind"] for each in installed(helm, values, *args) if "Admission" in each["kind"]}

    claims = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    requester = {"MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"}
    assert kinds({"admission": {"enabled": False}}) == set()
    assert kinds({"admission": {"requester": "never"}}) == claims
    assert kinds({"admission": {"requester": "always"}}) == claims | requester
    assert kinds({}) == claims
    assert kinds({}, "--api-versions=admissionregistration.k8s.io/v1/MutatingAdmissionPolicy") == claims | requester


def test_rules_and_dashboard_are_those_of_deploy(helm: Helm) -> None:
    asked = {"monitoring": {"rules": {"enabled": True, "labels": {"release": "p"}}, "dashboard": {"enabled": True}}}
    made = installed(helm, asked)
    (rule,) = of(made, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy/monitoring/rules.yaml").read_text())
    assert rule["metadata"]["labels"]["release"] == "p"
    dashboard = one(made, "ConfigMap", "vmpool-dashboard")
    assert dashboard["data"]["vmpool.json"].strip() == (ROOT / "deploy/monitoring/dashboard.json").read_text().strip()
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_the_chart_grants_names_that_the_program_uses(helm: Helm) -> None:
    text = yaml.safe_dump_all(of(installed(helm), "Role"))
    assert keys.LEASE_NAME in text
    assert keys.IDENTITY_CONFIGMAP in text
