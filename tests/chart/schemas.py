"""JSON schemas for kubeconform: of the API server's own kinds as it tells them, of ours as crds/ has them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.planes import CRDS, Kubectl

LOCATION = "{{ .ResourceKind }}{{ .KindSuffix }}.json"
"""How kubeconform is told where a kind's schema is."""
POINTER = "#/definitions/"
META = {"type": "object", "required": ["name"]}


def write_schemas(kubectl: Kubectl, folder: Path) -> None:
    """Write one file for each kind, closed: a field that nobody knows is an error."""
    told = json.loads(kubectl("get", "--raw", "/openapi/v2"))["definitions"]
    closed = {name: _closed(schema) for name, schema in told.items()}
    for name, schema in told.items():
        for kind in schema.get("x-kubernetes-group-version-kind", ()):
            needed = {each: closed[each] for each in _needed(name, closed)}
            _write(folder / _file(**kind), {"$ref": f"{POINTER}{name}", "definitions": needed})
    for kind, schema in _ours():
        _write(folder / _file(**kind), schema)


def _needed(name: str, closed: dict[str, Any]) -> set[str]:
    """Return this definition and all that it refers to, however far."""
    found, waiting = {name}, [closed[name]]
    while waiting:
        node = waiting.pop()
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        reference = node.get("$ref") if isinstance(node, dict) else None
        if isinstance(reference, str) and (other := reference.removeprefix(POINTER)) not in found:
            found.add(other)
            waiting.append(closed[other])
    return found


def _ours() -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    for file in sorted(CRDS.glob("*.yaml")):
        spec = yaml.safe_load(file.read_text())["spec"]
        for version in spec["versions"]:
            schema = _closed(version["schema"]["openAPIV3Schema"])
            named = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": META}
            schema["properties"] = {**schema["properties"], **named}
            yield {"group": spec["group"], "version": version["name"], "kind": spec["names"]["kind"]}, schema


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    if node.get("format") == "int-or-string" or node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: _closed(value) for key, value in node.items() if key != "properties"}
    if isinstance(node.get("properties"), dict):
        # Names, not keywords: a definition of a definition has properties that are called like these.
        made["properties"] = {name: _closed(value) for name, value in node["properties"].items()}
    open_ended = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if isinstance(node.get("properties"), dict) and node.get("type") == "object" and not open_ended:
        made["additionalProperties"] = False
    return made


def _file(group: str, version: str, kind: str) -> str:
    # As kubeconform builds it: the first part of the group, and none of the core's.
    return "-".join(part for part in (kind.lower(), group.split(".", maxsplit=1)[0], version) if part) + ".json"


def _write(path: Path, schema: Any) -> None:
    path.write_text(json.dumps(schema))
