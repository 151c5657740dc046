"""The rooms of the project: what they are called, what they say of themselves, and that their walls hold."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "operator" / "vmpool"
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
TOP_LEVEL = ("pyproject.toml", "operator", "crds", "charts", "tests", "deploy", "Dockerfile")
CHECK_SECONDS = 120


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_the_top_level_is_as_promised(name: str) -> None:
    assert (ROOT / name).exists()


def test_the_folder_operator_does_not_shadow_the_standard_module() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_every_room_says_what_belongs_there_and_what_it_may_touch(room: Path) -> None:
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    assert "elongs here" in text, f"{room.name} does not say what belongs there"
    assert "mport" in text, f"{room.name} does not say what it may import"


def test_every_module_begins_with_a_docstring() -> None:
    bare = [path for path in PACKAGE.rglob("*.py") if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not bare


PLANTED = {
    "a decision that does I/O": ("plan/planted.py", "import asyncio"),
    "a shape that looks up": ("api/planted.py", "from vmpool.plan import vm"),
    "kopf outside the rim": ("engine/planted.py", "import kopf"),
    "kubernetes outside kube": ("engine/planted.py", "import kubernetes"),
    "a provider that knows the engine": ("providers/planted.py", "from vmpool.engine import loop"),
    "kube that knows providers": ("kube/planted.py", "from vmpool.providers import base"),
    "the cloud that knows the operator": ("simcloud/planted.py", "from vmpool.api import keys"),
    "the rim that calls the command line": ("rim/planted.py", "from vmpool.cli import main"),
}


def contracts(root: Path) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / ".importlinter", root / ".importlinter")
    tool = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    code = f"import sys; sys.path.insert(0, {str(root)!r}); {tool}"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=CHECK_SECONDS,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "vmpool", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_contracts_hold(copy: Path) -> None:
    done = contracts(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("file", "line"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_violation_is_found(copy: Path, file: str, line: str) -> None:
    (copy / "vmpool" / file).write_text(f'"""Planted."""\n\n{line}\n')
    done = contracts(copy)
    assert done.returncode != 0, done.stdout
    assert "BROKEN" in done.stdout
