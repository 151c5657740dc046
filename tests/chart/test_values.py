"""Values: documented, closed, with the program's settings and bounds."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic.alias_generators import to_camel

import vmpool
from tests.chart.helm import CHART, Helm, Object, environment, one
from vmpool.cli import chart
from vmpool.cli.chartvalues import CHART_DECIDES, CHART_DECIDES_GATEWAY, SETTINGS
from vmpool.settings import GatewaySettings, Settings

ROOT = Path(__file__).parents[2]
VALUES = (CHART / "values.yaml").read_text()

WRONG = [
    pytest.param({"replicaCount": 3}, "'replicaCount' not allowed", id="a name of other charts"),
    pytest.param({"operator": {"replica": 3}}, "at '/operator': additional properties 'replica'", id="a typo"),
    pytest.param({"operator": {"replicas": "2"}}, "at '/operator/replicas': got string, want integer", id="text"),
    pytest.param({"operator": {"replicas": -1}}, "at '/operator/replicas': minimum", id="too small"),
    pytest.param({"operator": {"settings": {"leaseSecond": 5}}}, "at '/operator/settings': additional", id="setting"),
    pytest.param({"operator": {"settings": {"leaseSeconds": 0.5}}}, "/operator/settings/leaseSeconds", id="its bound"),
    pytest.param({"operator": {"settings": {"httpPort": 1}}}, "'httpPort' not allowed", id="decided by the chart"),
    pytest.param(
        {"gateway": {"settings": {"auth": "oidc"}}}, "/gateway/settings/auth': value must be one", id="choice"
    ),
    pytest.param({"gateway": {"tls": {"secret": "x"}}}, "at '/gateway/tls': additional", id="deep"),
    pytest.param({"crds": {"enabled": "yes"}}, "at '/crds/enabled': got string, want boolean", id="no boolean"),
    pytest.param({"image": {"digest": "latest"}}, "at '/image/digest'", id="no digest"),
    pytest.param({"imagePullSecrets": ["mine"]}, "at '/imagePullSecrets/0'", id="in a list"),
    pytest.param({"watchNamespace": "Team_A"}, "at '/watchNamespace'", id="no namespace"),
    pytest.param({"networkPolicy": {"dnsPorts": []}}, "at '/networkPolicy/dnsPorts'", id="no port"),
    pytest.param({"podSecurityContext": 1000}, "at '/podSecurityContext'", id="no piece"),
    pytest.param({"commonLabels": {"a": 1}}, "at '/commonLabels/a': got number, want string", id="label"),
]


@pytest.mark.parametrize(("values", "said"), WRONG)
def test_a_wrong_value_is_refused_with_its_path(helm: Helm, values: Object, said: str) -> None:
    assert said in helm.refusal(values)


IMPOSSIBLE = [
    pytest.param({"watchNamespace": "ci"}, "rbac.clusterRest=true", id="reviews without a right"),
    pytest.param({"gateway": {"settings": {"auth": "static"}}}, "gateway.users.secretName", id="no users"),
    pytest.param({"gateway": {"service": {"nodePort": 30000}}}, "type NodePort", id="no node port"),
]


@pytest.mark.parametrize(("values", "said"), IMPOSSIBLE)
def test_what_could_not_work_is_refused_with_the_way_out(helm: Helm, values: Object, said: str) -> None:
    assert said in helm.refusal(values)


def test_every_value_has_a_comment_and_is_in_the_schema() -> None:
    bare, lines = [], VALUES.splitlines()
    for number, line in enumerate(lines):
        key = line.strip()
        is_value = key and not key.startswith(("#", "-")) and ":" in key
        if is_value and not lines[number - 1].lstrip().startswith("#") and not inside_a_piece(lines, number):
            bare.append(line)
    assert not bare
    missing = list(without_description(chart.schema(), ""))
    assert not missing


def inside_a_piece(lines: list[str], number: int) -> bool:
    """Whether a line is below a default that is a piece of a Kubernetes object: such as requests of resources."""
    depth = len(lines[number]) - len(lines[number].lstrip())
    for above in reversed(lines[:number]):
        own = len(above) - len(above.lstrip())
        if own < depth:
            depth = own
            if above.strip() in {"resources:", "labels:", "podSecurityContext:"}:
                return True
    return False


def without_description(node: Any, path: str) -> Any:
    if isinstance(node, dict):
        for name, value in node.get("properties", {}).items():
            described = {**value, **chart.schema()["$defs"].get(value.get("$ref", "").rsplit("/", 1)[-1], {})}
            if not described.get("description"):
                yield f"{path}.{name}"
        for name, value in node.items():
            yield from without_description(value, f"{path}.{name}")


def test_the_defaults_are_those_of_the_model_and_pass_the_schema(helm: Helm) -> None:
    assert chart.values_yaml() == VALUES
    assert helm.run("lint", "--strict", str(CHART)).returncode == 0
    assert helm.run("lint", "--strict", str(CHART), values=yaml.safe_load(VALUES)).returncode == 0


def test_the_chart_has_the_version_of_the_program() -> None:
    told = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert told["appVersion"] == vmpool.__version__


def some_value(field: Any, default: Any) -> Any:
    """Return a value other than the default that a setting takes."""
    match default:
        case bool():
            return not default
        case int() | float():
            bounds = {type(each).__name__: each for each in field.metadata}
            return bounds["Le"].le
        case dict():
            return {"owner": "^([a-z]+)$"}
        case str() if "Literal" in str(field.annotation):
            return next(each for each in field.annotation.__args__ if each != default)
        case _:
            return "some 'text', 1"


@pytest.mark.parametrize(
    ("model", "part", "prefix", "decided"),
    [
        pytest.param(Settings, "operator", "VMPOOL_", CHART_DECIDES, id="operator"),
        pytest.param(GatewaySettings, "gateway", "VMPOOL_GATEWAY_", CHART_DECIDES_GATEWAY, id="gateway"),
    ],
)
def test_every_setting_reaches_the_program_as_it_was_given(
    helm: Helm, monkeypatch: pytest.MonkeyPatch, model: Any, part: str, prefix: str, decided: frozenset[str]
) -> None:
    assert decided <= set(model.model_fields)
    given = {
        name: some_value(field, field.get_default(call_default_factory=True))
        for name, field in model.model_fields.items()
        if name not in decided
    }
    users = {"users": {"secretName": "users"}} if part == "gateway" else {}
    values = {part: {"settings": {to_camel(name): value for name, value in given.items()}, **users}}
    told = environment(one(helm.template(values), "Deployment", f"vmpool-{part}")["spec"]["template"])
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    read: BaseModel = model()
    assert {name: getattr(read, name) for name in given} == given
    assert {f"{prefix}{name.upper()}" for name in given} <= set(told)


def test_the_schema_is_written_for_editors_too() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    closed = [schema, *schema["$defs"].values()]
    assert all(piece["additionalProperties"] is False for piece in closed)
    for part, (model, decided) in SETTINGS.items():
        name = {"operator": "Operator", "gateway": "GatewayValues"}[part]
        there = set(schema["$defs"][name]["properties"]["settings"]["properties"])
        assert there == {to_camel(field) for field in model.model_fields if field not in decided}
