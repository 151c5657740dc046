"""The programs that the tests of the chart need: pinned, apart from the control plane's, whole or not there."""

import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from tests.toolchains import assert_pinned, broken_go
from vmpool.dev import helm as tools
from vmpool.dev.binaries import cached_folder
from vmpool.dev.errors import BuildFailed
from vmpool.dev.helm import RECIPE, ChartTools
from vmpool.dev.progress import Progress

ASK_SECONDS = 30


def test_every_program_is_a_tool_of_go_mod_and_its_module_is_pinned_by_a_sum() -> None:
    assert_pinned(RECIPE)


def test_they_lie_apart_from_the_control_plane(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    assert tools.tools_folder(environ).is_relative_to(tmp_path)
    assert tools.tools_folder(environ) != cached_folder(environ)


def test_a_failed_build_leaves_no_program_and_says_why(tmp_path: Path) -> None:
    environ = broken_go(tmp_path)
    with pytest.raises(BuildFailed, match="no such module"):
        tools.ensure(environ, Progress(Console(quiet=True)))
    assert not ChartTools(tools.tools_folder(environ)).helm.exists()


def test_helm_and_kubeconform_run(chart_tools: ChartTools) -> None:
    for argv, said in (([chart_tools.helm, "version"], "v4.3"), ([chart_tools.kubeconform, "-h"], "schema-location")):
        done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False, timeout=ASK_SECONDS)
        assert said in done.stdout + done.stderr
