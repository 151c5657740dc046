"""Where the binaries of the local control plane come from."""

from pathlib import Path

import pytest

from vmpool.dev.binaries import MODULE, Binaries, cache_key, cached_folder, find
from vmpool.dev.errors import BinariesMissing

ALL = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")


def programs(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch(mode=0o755)
    return folder


def test_other_dependencies_have_another_key() -> None:
    go_sum = MODULE.joinpath("go.sum").read_bytes()
    assert cache_key(go_sum) == cache_key(go_sum)
    assert cache_key(go_sum) != cache_key(go_sum + b"\n")
    assert len(cache_key(go_sum)) == 16


def test_the_cache_is_the_users() -> None:
    assert cached_folder({"XDG_CACHE_HOME": "/caches"}).parent == Path("/caches/vmpool/controlplane")
    assert cached_folder({}).parent == Path.home() / ".cache/vmpool/controlplane"
    assert cached_folder({"XDG_CACHE_HOME": "relative"}).parent == Path.home() / ".cache/vmpool/controlplane"


def test_named_assets_come_before_the_cache(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    programs(cached_folder(environ), *ALL)
    assets = programs(tmp_path / "assets", *ALL)
    assert find(environ) == Binaries(cached_folder(environ))
    assert find({**environ, "KUBEBUILDER_ASSETS": str(assets)}) == Binaries(assets)


@pytest.mark.parametrize("lacking", ["etcd", "kube-apiserver", "kubectl"])
def test_incomplete_assets_are_an_error_that_names_what_is_missing(tmp_path: Path, lacking: str) -> None:
    assets = programs(tmp_path / "assets", *(name for name in ALL if name != lacking))
    with pytest.raises(BinariesMissing, match=f"lacks {lacking};"):
        find({"KUBEBUILDER_ASSETS": str(assets)})


def test_assets_without_controllers_do_but_warn(tmp_path: Path) -> None:
    lean = find({"KUBEBUILDER_ASSETS": str(programs(tmp_path / "lean", "etcd", "kube-apiserver", "kubectl"))})
    assert lean is not None
    assert lean.kube_controller_manager is None
    assert "no kube-controller-manager" in (lean.warning or "")
    whole = find({"KUBEBUILDER_ASSETS": str(programs(tmp_path / "whole", *ALL))})
    assert whole is not None
    assert whole.warning is None


@pytest.mark.parametrize("lacking", ALL)
def test_a_half_built_cache_is_not_used(tmp_path: Path, lacking: str) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = programs(cached_folder(environ), *(name for name in ALL if name != lacking))
    (folder / lacking).touch(mode=0o644)
    assert find(environ) is None
