"""Makes a node where a container engine answers: the image by the engine, the node by kind."""

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from tests.node.cluster import Cluster

ROOT = Path(__file__).parents[2]
ENGINES = ("docker", "podman")
ANSWER_SECONDS = 20
STEP_SECONDS = 900
# What a container runtime makes of a name without a place.
IMAGE = f"{'.'.join(('docker', 'io'))}/library/vmpool:0.1.0"
"""What nodes make of the chart's default, which names no registry; of a shorter name each engine makes its own."""


def missing() -> str:
    """Why there can be no such node; empty when there can."""
    if _engine() is None:
        return f"no container engine answers ({' or '.join(ENGINES)})"
    return "" if shutil.which("kind") else "the program kind is not on PATH"


@contextmanager
def node(kubectl: Path, helm: Path, tell: Callable[[str], None]) -> Iterator[Cluster]:
    """Run a cluster of one node, with our image on it, until the block ends."""
    engine = _engine()
    assert engine
    name = f"vmpool-{secrets.token_hex(4)}"
    folder = Path(tempfile.mkdtemp(prefix="vmpool-kind-"))
    kubeconfig = folder / "kubeconfig"
    try:
        tell(f"kind: {engine} builds the image")
        _run(engine, "build", "--quiet", "--tag", IMAGE, str(ROOT))
        _run(engine, "save", "--output", str(folder / "image.tar"), IMAGE)
        tell(f"kind: makes cluster {name}")
        _kind(engine, "create", "cluster", f"--name={name}", f"--kubeconfig={kubeconfig}", "--wait=180s")
        _kind(engine, "load", "image-archive", str(folder / "image.tar"), f"--name={name}")
        yield Cluster((str(kubectl),), (str(helm),), kubeconfig, folder)
    finally:
        try:
            _kind(engine, "delete", "cluster", f"--name={name}", f"--kubeconfig={kubeconfig}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _engine() -> str | None:
    for name in ENGINES:
        if shutil.which(name) is None:
            continue
        try:
            done = subprocess.run([name, "info"], capture_output=True, check=False, timeout=ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0:
            return name
    return None


def _kind(engine: str, *args: str) -> None:
    _run("kind", *args, environment={"KIND_EXPERIMENTAL_PROVIDER": engine})


def _run(*argv: str, environment: Mapping[str, str] = MappingProxyType({})) -> None:
    done = subprocess.run(
        argv,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=STEP_SECONDS,
    )
    assert done.returncode == 0, f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
