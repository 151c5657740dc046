"""The converter from models to structural schemas, and what it makes of our kinds."""

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, create_model

from tests.objects import FULL_SPECS, FULL_STATUSES
from vmpool.api import crd
from vmpool.api.meta import IntOrPercent, Shape
from vmpool.api.schema import UnsupportedSchema, structural
from vmpool.plan.crds import definitions
from vmpool.plan.lifecycle import Phase


def field(annotation: Any, default: Any = ...) -> Any:
    """The schema of one field of this type."""
    return structural(create_model("Model", value=(annotation, default)))["properties"]["value"]


class Leaf(Shape):
    """One section."""

    size: Annotated[int, Field(ge=1, le=9)] = 3
    """How large it is."""


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int


class Node(BaseModel):
    below: list["Node"] = []


class Left(BaseModel):
    beyond: "Right | None" = None


class Right(BaseModel):
    beyond: Left | None = None


SIZE = {"description": "How large it is.", "type": "integer", "default": 3, "minimum": 1, "maximum": 9}
LEAF = {"description": "One section.", "type": "object", "properties": {"size": SIZE}}


@pytest.mark.parametrize(
    ("annotation", "default", "made"),
    [
        pytest.param(int, ..., {"type": "integer"}, id="number"),
        pytest.param(int | None, None, {"type": "integer"}, id="optional without null"),
        pytest.param(int | None, 3, {"type": "integer", "default": 3}, id="optional with a default"),
        pytest.param(int, 0, {"type": "integer", "default": 0}, id="zero is a default"),
        pytest.param(bool, False, {"type": "boolean", "default": False}, id="false is a default"),
        pytest.param(Literal["a"], "a", {"type": "string", "default": "a", "enum": ["a"]}, id="const"),
        pytest.param(Literal["a", "b"], ..., {"type": "string", "enum": ["a", "b"]}, id="enum"),
        pytest.param(Annotated[int, Field(gt=3, lt=9)], ..., {"type": "integer", "minimum": 4, "maximum": 8}, id="gt"),
        pytest.param(
            Annotated[float, Field(gt=0, lt=1)],
            ...,
            {"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 1, "exclusiveMaximum": True},
            id="gt of a fraction",
        ),
        pytest.param(list[str], ..., {"type": "array", "items": {"type": "string"}}, id="list"),
        pytest.param(tuple[str, ...], (), {"type": "array", "items": {"type": "string"}}, id="empty list"),
        pytest.param(dict[str, int], ..., {"type": "object", "additionalProperties": {"type": "integer"}}, id="map"),
        pytest.param(datetime, ..., {"type": "string", "format": "date-time"}, id="time"),
        pytest.param(
            Closed, ..., {"type": "object", "required": ["size"], "properties": {"size": {"type": "integer"}}}
        ),
    ],
)
def test_what_a_type_becomes(annotation: Any, default: Any, made: Any) -> None:
    assert field(annotation, default) == made


def test_a_section_is_written_in_place_and_has_no_default_of_its_own() -> None:
    assert field(Leaf, Leaf(size=7)) == field(Leaf | None, None) == LEAF


def test_the_same_section_may_stand_twice() -> None:
    made = structural(create_model("Model", one=(Leaf, ...), two=(list[Leaf], ...)))["properties"]
    assert made["one"] == made["two"]["items"]


def test_what_is_said_at_the_field_wins_over_what_the_section_says() -> None:
    assert field(Annotated[Leaf, Field(description="The leaf here.")])["description"] == "The leaf here."


def test_a_number_or_percentage_is_a_number_or_string() -> None:
    made = field(IntOrPercent, "25%")
    assert made["x-kubernetes-int-or-string"] is True
    assert made["anyOf"] == [{"type": "integer"}, {"type": "string"}]
    assert made["default"] == "25%"
    assert "type" not in made


def test_a_free_object_keeps_what_we_do_not_know() -> None:
    free = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
    assert field(free) == {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def test_a_bound_on_keys_becomes_a_rule() -> None:
    made = field(dict[Annotated[str, Field(max_length=5)], str])
    (rule,) = made["x-kubernetes-validations"]
    assert rule["rule"] == "self.all(key, key.size() <= 5)"
    assert "5" in rule["message"]


@pytest.mark.parametrize(
    ("annotation", "named"),
    [
        pytest.param(int | str, "union", id="union"),
        pytest.param(int | str | None, "union", id="optional union"),
        pytest.param(Leaf | Closed, "union", id="union of sections"),
        pytest.param(Node, "recursive shape Node", id="recursion"),
        pytest.param(Left, "recursive shape Left", id="recursion over two"),
        pytest.param(tuple[int, str], "prefixItems", id="tuple of fixed shape"),
        pytest.param(set[int], "uniqueItems", id="set"),
        pytest.param(Any, "any type", id="anything"),
        pytest.param(dict[str, Any], "any type", id="map of anything"),
        pytest.param(list[Any], "any type", id="list of anything"),
        pytest.param(dict[Annotated[str, Field(pattern="^a")], str], "patternProperties", id="keys with a pattern"),
        pytest.param(dict[Annotated[str, Field(min_length=1)], str], "keys", id="keys with another bound"),
    ],
)
def test_what_cannot_be_said_is_refused_and_named(annotation: Any, named: str) -> None:
    with pytest.raises(UnsupportedSchema, match=named) as refused:
        field(annotation)
    assert str(refused.value).startswith("value")


# What it makes of our kinds.

LONGEST_TEXT = 4096
"""Of a machine's console; everything else is shorter."""
ALTERNATIVES = {"deadletterqueues.archive.folder"}
"""Fields that stand where another one may not."""

SCHEMAS = {
    one["spec"]["names"]["plural"]: one["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for one in definitions().values()
}


def nodes(schema: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every node below spec and status; the content of free objects has none."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


ALL = [
    pytest.param(node, id=path)
    for plural, schema in SCHEMAS.items()
    for part in ("spec", "status")
    for path, node in nodes(schema["properties"][part], f"{plural}.{part}")
]


@pytest.mark.parametrize("node", ALL)
def test_everything_is_bounded(node: Any) -> None:
    if "x-kubernetes-int-or-string" in node:
        assert node["maxLength"]
        assert "10000" in node["x-kubernetes-validations"][0]["message"]
    elif node["type"] == "integer":
        assert node["minimum"] <= node["maximum"]
    elif node["type"] == "string":
        assert "enum" in node or node["maxLength"] <= LONGEST_TEXT
    elif node["type"] == "array":
        assert node["maxItems"] <= 100
        assert node["x-kubernetes-list-type"] if node["items"]["type"] == "object" else True
    elif "additionalProperties" in node:
        assert node["maxProperties"] <= 100
        assert any("keys" in rule["message"] for rule in node["x-kubernetes-validations"])
    elif node["type"] == "object":
        assert "properties" in node or node["x-kubernetes-preserve-unknown-fields"]


@pytest.mark.parametrize("plural", SCHEMAS)
def test_every_field_says_what_it_is(plural: str) -> None:
    for part in ("spec", "status"):
        section = SCHEMAS[plural]["properties"][part]
        for path, node in nodes(section, part):
            silent = path.endswith("[]") and node["type"] != "object"
            assert silent or node["description"].endswith("."), path


@pytest.mark.parametrize("plural", SCHEMAS)
def test_every_rule_has_a_sentence_of_our_own(plural: str) -> None:
    for _, node in nodes(SCHEMAS[plural], plural):
        for rule in node.get("x-kubernetes-validations", ()):
            assert "self" not in rule["message"]
            assert rule["reason"] in {"FieldValueInvalid", "FieldValueForbidden"}


@pytest.mark.parametrize("plural", SCHEMAS)
@pytest.mark.parametrize(("part", "full"), [("spec", FULL_SPECS), ("status", FULL_STATUSES)])
def test_the_full_objects_of_the_tests_are_full(plural: str, part: str, full: Any) -> None:
    def missing(node: Any, value: Any, path: str) -> Iterator[str]:
        for name, child in node.get("properties", {}).items():
            if name not in value:
                yield f"{path}.{name}"
            elif "items" in child:
                # One entry need not have everything: there are fields of which each entry has only one.
                entries = [one for one in value[name] if isinstance(one, dict)]
                together = {key: part for one in entries for key, part in one.items()}
                yield from missing(child["items"], together or value[name][0], f"{path}.{name}")
            else:
                yield from missing(child, value[name], f"{path}.{name}")

    found = set(missing(SCHEMAS[plural]["properties"][part], full[plural], plural))
    assert found <= ALTERNATIVES


def test_the_full_objects_come_back_from_the_models_as_they_went_in() -> None:
    for kind in crd.KINDS:
        for model, full in ((kind.spec, FULL_SPECS), (kind.status, FULL_STATUSES)):
            assert model.model_validate(full[kind.plural]).model_dump(
                mode="json", by_alias=True, exclude_none=True
            ) == {**full[kind.plural]}


def test_replicas_has_no_default_so_that_dropping_it_holds_the_size() -> None:
    assert "default" not in SCHEMAS["vmpools"]["properties"]["spec"]["properties"]["replicas"]


def test_the_template_has_no_defaults_so_that_an_upgrade_never_makes_stock_stale() -> None:
    template = SCHEMAS["vmpools"]["properties"]["spec"]["properties"]["template"]
    assert all("default" not in node for _, node in nodes(template, "template"))


def test_the_phases_of_the_schema_are_those_of_the_lifecycle() -> None:
    phase = SCHEMAS["pooledvms"]["properties"]["status"]["properties"]["phase"]
    assert phase["enum"] == [str(one) for one in Phase]
    assert phase["default"] == "Pending"


def test_no_category_is_also_the_name_of_a_kind() -> None:
    """`kubectl delete <category> --all` takes all kinds, so it must not look like one of them."""
    for one in definitions().values():
        names = one["spec"]["names"]
        spoken = {names["plural"], names["singular"], *names["shortNames"]}
        for other in definitions().values():
            assert not spoken & set(other["spec"]["names"]["categories"])
