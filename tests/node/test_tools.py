"""The programs of a node: pinned, of the control plane's version, whole or not there. No root needed."""

from pathlib import Path

import pytest
from rich.console import Console

from tests.toolchains import assert_pinned, broken_go
from vmpool.dev import node
from vmpool.dev.binaries import MODULE, cached_folder
from vmpool.dev.build import Recipe, kubernetes_version
from vmpool.dev.errors import BuildFailed
from vmpool.dev.progress import Progress


@pytest.mark.parametrize("recipe", node.RECIPES, ids=lambda recipe: recipe.module.name)
def test_every_program_is_a_tool_of_go_mod_and_its_module_is_pinned_by_a_sum(recipe: Recipe) -> None:
    assert_pinned(recipe)


def test_the_node_is_of_the_control_planes_version() -> None:
    assert kubernetes_version((MODULE / "go.mod").read_text()) == node.VERSION


def test_they_lie_apart_from_each_other_and_the_control_plane(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    found = node.tools(environ)
    places = {found.kubernetes, found.containerd, found.coredns, cached_folder(environ)}
    assert len(places) == 4
    assert all(place.is_relative_to(tmp_path) for place in places)
    assert found.program("kubelet").parent == found.kubernetes
    assert found.program("ctr").parent == found.containerd
    with pytest.raises(KeyError):
        found.program("runc")


def test_a_failed_build_leaves_no_program_and_says_why(tmp_path: Path) -> None:
    environ = broken_go(tmp_path)
    with pytest.raises(BuildFailed, match="no such module"):
        node.ensure(environ, Progress(Console(quiet=True)))
    assert not node.tools(environ).program("kubelet").exists()


def test_network_plug_ins_count_only_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "NETWORK_FOLDERS", (tmp_path / "one", tmp_path / "other"))
    assert node.network_folder() is None
    for place, names in (("one", node.NETWORK_PLUGINS[:-1]), ("other", node.NETWORK_PLUGINS)):
        (tmp_path / place).mkdir()
        for name in names:
            (tmp_path / place / name).touch(mode=0o755)
    assert node.network_folder() == tmp_path / "other"


def test_one_can_ask_without_building(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = [name for recipe in node.RECIPES for name in recipe.names]
    assert node.main(["--cached"]) == 1
    said = capsys.readouterr().err
    assert all(name in said for name in names)
    for name in names:
        path = node.tools({"XDG_CACHE_HOME": str(tmp_path)}).program(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        assert node.main(["--cached"]) == 1
        path.touch(mode=0o755)
    assert node.main(["--cached"]) == 0
    assert node.main([]) == 0
    assert len(capsys.readouterr().out.split()) == len(node.RECIPES)
