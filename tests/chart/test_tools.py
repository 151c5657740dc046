"""The programs that the tests of the chart need: pinned, apart from the control plane's, whole or not there."""

import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from vmpool.dev import helm as tools
from vmpool.dev.binaries import cached_folder
from vmpool.dev.errors import BuildFailed
from vmpool.dev.helm import CHART_TOOLS_MODULE, RECIPE, ChartTools
from vmpool.dev.progress import Progress

GO_MOD = CHART_TOOLS_MODULE.joinpath("go.mod").read_text()
ASK_SECONDS = 30


def test_every_program_is_a_tool_of_go_mod_and_its_module_is_pinned_by_a_sum() -> None:
    sums = CHART_TOOLS_MODULE.joinpath("go.sum").read_text()
    for target in RECIPE.targets:
        assert f"\t{target.package}\n" in GO_MOD
        module = target.package.split("/cmd/")[0]
        (line,) = [line for line in GO_MOD.splitlines() if line.strip().startswith(f"{module} v")]
        version = line.split()[1]
        assert f"{module} {version} h1:" in sums


def test_they_lie_apart_from_the_control_plane(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    assert tools.tools_folder(environ).is_relative_to(tmp_path)
    assert tools.tools_folder(environ) != cached_folder(environ)


def test_a_failed_build_leaves_no_program_and_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    go = folder / "go"
    go.write_text(
        '#!/bin/sh\n[ "$1" = version ] && echo "go version go9.9.9" && exit 0\necho "no such module" >&2; exit 1\n'
    )
    go.chmod(0o755)
    environ = {"PATH": f"{folder}:/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with pytest.raises(BuildFailed, match="no such module"):
        tools.ensure(environ, Progress(Console(quiet=True)))
    assert not ChartTools(tools.tools_folder(environ)).helm.exists()


def test_helm_and_kubeconform_run(chart_tools: ChartTools) -> None:
    for argv, said in (([chart_tools.helm, "version"], "v4.3"), ([chart_tools.kubeconform, "-h"], "schema-location")):
        done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False, timeout=ASK_SECONDS)
        assert said in done.stdout + done.stderr
