"""The base and its parts are what Helm makes of the chart today, and parts only add."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests.chart.helm import Helm
from vmpool.cli import gitbase
from vmpool.dev.errors import DevError

ROOT = Path(__file__).parents[2]


def manifests(*names: str, **changed: str) -> str:
    """Manifests of a release, Helm's marks on them."""
    labels = {"app.kubernetes.io/component": "operator", **dict.fromkeys(gitbase.HELMS_LABELS, "x")}
    made = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "labels": labels, "annotations": {gitbase.KEEP: "keep"}},
            "data": {"text": changed.get(name, "")},
        }
        for name in names
    ]
    return yaml.safe_dump_all(made)


def test_the_committed_files_are_what_helm_makes_of_the_chart(helm: Helm) -> None:
    wanted = gitbase.outputs(gitbase.rendering(helm.binary))
    assert gitbase.stale(ROOT, wanted) == [], "type: python -m vmpool.cli.gitbase"


def test_the_base_is_the_release_without_helms_marks(helm: Helm) -> None:
    """One truth: every object of a release is there, and differs by what says that it is of a release alone."""
    made = helm.template({"simcloud": {"enabled": False}}, "--skip-tests")
    base = [each for file in sorted((ROOT / gitbase.BASE).glob("*.yaml")) for each in documents(file)]
    assert {gitbase.identity(each) for each in base} == {gitbase.identity(each) for each in made}
    released = {gitbase.identity(each): each for each in made}
    for each in base:
        was = released[gitbase.identity(each)]
        assert {**was, "metadata": None} == {**each, "metadata": None}
        assert set(was["metadata"]["labels"]) - set(each["metadata"]["labels"]) == set(gitbase.HELMS_LABELS)


def documents(file: Path) -> list[gitbase.Object]:
    return [each for each in yaml.safe_load_all(file.read_text()) if each["kind"] not in {"Kustomization", "Component"}]


def test_what_helm_keeps_argo_cd_and_flux_keep_too() -> None:
    kept = documents(ROOT / gitbase.BASE / "crds.yaml")
    assert kept
    for each in kept:
        assert each["metadata"]["annotations"] == {
            "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
            "kustomize.toolkit.fluxcd.io/prune": "disabled",
        }
    text = "".join((ROOT / path).read_text() for path in gitbase.present(ROOT))
    assert "helm.sh/" not in text
    assert "managed-by" not in text


def test_a_part_adds_and_a_part_that_changes_something_is_refused() -> None:
    def render(values: Mapping[str, str]) -> str:
        return manifests("one", *(name for name in values if name != "simcloud.enabled"))

    made = gitbase.outputs(render)
    assert set(made) >= {"deploy/base/operator.yaml", "deploy/common/network/network.yaml"}
    (added,) = yaml.safe_load_all(made["deploy/common/network/network.yaml"])
    assert added["metadata"]["name"] == "networkPolicy.enabled"

    def spoils(values: Mapping[str, str]) -> str:
        return manifests("one", one="changed" if "networkPolicy.enabled" in values else "")

    with pytest.raises(ValueError, match=r"network changes what is in the base: v1/ConfigMap//one"):
        gitbase.outputs(spoils)


def test_stale_files_are_found_written_and_removed(tmp_path: Path) -> None:
    wanted = gitbase.outputs(lambda values: manifests("one", *values))
    assert gitbase.stale(tmp_path, wanted) == sorted(wanted)
    assert gitbase.write(tmp_path, wanted) == sorted(wanted)
    assert gitbase.write(tmp_path, wanted) == []
    (tmp_path / gitbase.BASE / "old.yaml").write_text("of a part that is gone")
    changed = tmp_path / gitbase.BASE / "operator.yaml"
    changed.write_text("edited by hand")
    beside = tmp_path / gitbase.COMMON / "pools" / "kustomization.yaml"
    beside.parent.mkdir()
    beside.write_text("not ours to touch")
    assert gitbase.stale(tmp_path, wanted) == ["deploy/base/old.yaml", "deploy/base/operator.yaml"]
    gitbase.write(tmp_path, wanted)
    assert changed.read_text() == wanted["deploy/base/operator.yaml"]
    assert not (tmp_path / gitbase.BASE / "old.yaml").exists()
    assert beside.read_text() == "not ours to touch"


def test_what_helm_refuses_is_said(tmp_path: Path) -> None:
    refusing = tmp_path / "helm"
    refusing.write_text("#!/bin/sh\necho 'no such value' >&2; exit 3\n")
    refusing.chmod(0o755)
    with pytest.raises(DevError, match="helm template ended with 3: no such value"):
        gitbase.rendering(refusing)({})
