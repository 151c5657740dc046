"""The reader of Dockerfiles and the rules of .dockerignore: no root needed."""

from pathlib import Path

import pytest

from tests.node import dockerfile
from tests.node.builder import ignored

ROOT = Path(__file__).parents[2]


def test_ours_is_understood() -> None:
    build, last = dockerfile.read((ROOT / "Dockerfile").read_text())
    assert (build.name, build.base) == ("build", last.base)
    assert [step.word for step in last.steps if step.word == "COPY"] == ["COPY"]
    assert last.pairs("ENV")["PATH"].startswith("/opt/vmpool/bin:")


def test_build_arguments_are_put_in_but_not_into_what_the_shell_reads() -> None:
    text = "ARG BASE=a:1\nFROM ${BASE}\nARG V=1\nLABEL v=$V\nRUN echo $V \\\n    # a remark\n    && true\n"
    (stage,) = dockerfile.read(text, {"V": "2"})
    assert stage.base == "a:1"
    assert stage.pairs("LABEL") == {"v": "2"}
    assert stage.last("RUN") == "echo $V  && true"
    (stage,) = dockerfile.read(text, {"BASE": "b@sha256:0"})
    assert stage.base == "b@sha256:0"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("FROM a\nADD x y", "not understood: ADD x y"),
        ("RUN true", "before any FROM: RUN true"),
        ("FROM a\nLABEL v=$V", "no ARG V before"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        dockerfile.read(text)


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("Makefile", True),
        ("tests/waiting.py", True),
        ("operator/vmpool/__main__.py", False),
        ("operator/vmpool/__pycache__/a.pyc", True),
        ("operator/vmpool.egg-info/PKG-INFO", True),
        ("requirements/runtime.txt", False),
        ("pyproject.toml", False),
    ],
)
def test_what_goes_into_the_build(path: str, out: bool) -> None:
    rules = (ROOT / ".dockerignore").read_text().split()
    assert ignored(Path(path), rules) is out
