"""What docs/gitops.md says of files, actions and states is so."""

import re

import pytest
import yaml

from tests.deploy.argo import Scripts
from tests.deploy.conftest import DEPLOY, ROOT
from vmpool.cli import gitbase

PAGE = ROOT / "docs" / "gitops.md"
TEXT = PAGE.read_text()
PATHS = sorted(set(re.findall(r"\bdeploy/[\w./-]*\w", TEXT)))
LINKS = sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT)))


@pytest.mark.parametrize("path", PATHS)
def test_the_path_is_there(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("link", LINKS)
def test_the_link_leads_somewhere(link: str) -> None:
    assert (PAGE.parent / link).exists()


def test_the_layout_names_every_common_part_and_no_other() -> None:
    layout = TEXT.split("```")[1]
    told = set(re.findall(r"^    (\w+)/", layout, re.MULTILINE)) - {"operator", "machines"}
    assert told == {each.name for each in (DEPLOY / "common").iterdir()}
    folders = set(re.findall(r"^  (\w+)/", layout, re.MULTILINE)) | {"flux"}
    assert folders == {each.name for each in DEPLOY.iterdir()} - {"admission", "monitoring", "rbac", "samples"}


def test_an_upgrade_takes_the_generated_parts_and_no_others() -> None:
    (row,) = re.findall(r"^\| upgrade \| (.*) \|$", TEXT, re.MULTILINE)
    (named,) = re.findall(r"`deploy/common/\{([\w,]+)\}`", row)
    assert set(named.split(",")) == set(gitbase.PARTS)
    assert f"`{gitbase.BASE}`" in row


def test_to_remove_machines_names_every_namespace_that_the_shipped_pools_let_in() -> None:
    pools = [
        each
        for file in (DEPLOY / "environments").glob("*/machines/*.yaml")
        for each in yaml.safe_load_all(file.read_text())
        if each["kind"] == "VMPool"
    ]
    let_in = {name for each in pools for name in each["spec"].get("claims", {}).get("allowedNamespaces", ())}
    told = set(re.findall(r"kubectl delete vmclaims --all -n (\S+)", TEXT.split("## Remove")[1]))
    assert let_in
    assert told == let_in | {"machines"}


def test_the_table_of_actions_has_all_of_them(scripts: Scripts) -> None:
    table = TEXT.split("| Kind | Actions |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (\w+) \| (`.*) \|$", table, re.MULTILINE)
    told = {kind: set(re.findall(r"`([a-z-]+)`(?! \|)", names)) - {"replicas", "lifetime"} for kind, names in rows}
    assert told == {kind: set(scripts.defined(kind)) for kind in scripts.kinds_with_actions()}


def test_every_piece_of_yaml_is_yaml() -> None:
    pieces = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert pieces
    for piece in pieces:
        assert yaml.safe_load(piece)


def test_others_lead_here() -> None:
    assert "(docs/gitops.md)" in (ROOT / "README.md").read_text()
    assert "(gitops.md)" in (ROOT / "docs" / "install.md").read_text()
