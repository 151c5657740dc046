"""A real control plane for the tests: one for the whole run, thrown away at its end."""

import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from rich.console import Console

import vmpool
from vmpool.api import crd, keys
from vmpool.dev import build
from vmpool.dev.binaries import Binaries
from vmpool.dev.errors import DevError
from vmpool.dev.plane import ControlPlane, kubectl_call
from vmpool.dev.progress import Progress
from vmpool.dev.state import Home

CRDS = Path(__file__).parent.parent / "crds"
KUBECTL_TIMEOUT_SECONDS = 60
ESTABLISHED_TIMEOUT = "--timeout=60s"


class Kubectl(Protocol):
    """Runs kubectl as administrator and returns its standard output."""

    def __call__(self, *args: str, input: str | None = None, check: bool = True) -> str: ...  # noqa: A002


@pytest.fixture(scope="session")
def plane_binaries() -> Binaries:
    """The cached binaries; builds them on the first run of a machine, skips where that is impossible."""
    try:
        return build.ensure(os.environ, Progress(Console(stderr=True)))
    except DevError as error:
        pytest.skip(f"no control plane: {error}")


@pytest.fixture(scope="session")
def plane(plane_binaries: Binaries) -> Iterator[ControlPlane]:
    """A throw-away control plane that ends with the run, however the run ends."""
    with throwaway_plane(plane_binaries) as made:
        yield made


@contextmanager
def throwaway_plane(binaries: Binaries, *api_server_flags: str) -> Iterator[ControlPlane]:
    """Run a control plane, and end it and remove its data however the run ends."""
    folder = Path(tempfile.mkdtemp(prefix="vmpool-plane-"))
    # A terminated run takes the way of an interrupted one, through the fixtures' ends; a killed run cannot.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    guard = _guard(folder)
    server = ControlPlane(Home(folder), binaries, throwaway=True, api_server_flags=api_server_flags)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        guard.communicate()
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def kubectl(plane: ControlPlane) -> Kubectl:
    """Call ``kubectl("get", "pods", "-n", namespace)``; fails the test unless ``check=False``."""
    return kubectl_of(plane)


def kubectl_of(plane: ControlPlane) -> Kubectl:
    """Return kubectl for a control plane."""

    def run(*args: str, input: str | None = None, check: bool = True) -> str:  # noqa: A002
        argv, environment = kubectl_call(plane.home, args)
        done = subprocess.run(
            argv,
            env=environment,
            input=input,
            capture_output=True,
            text=True,
            check=False,
            timeout=KUBECTL_TIMEOUT_SECONDS,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(args)} ended with {done.returncode}:\n{done.stderr}")
        return done.stdout

    return run


@pytest.fixture(scope="session")
def crds_installed(kubectl: Kubectl) -> None:
    """Every kind of ours is served."""
    install_crds(kubectl)


def install_crds(kubectl: Kubectl) -> None:
    """Make the server serve every kind of ours."""
    files = sorted(CRDS.glob("*.yaml"))
    if not files:
        return
    arguments = [f"--filename={file}" for file in files]
    kubectl("apply", "--server-side", *arguments)
    kubectl("wait", "--for=condition=Established", ESTABLISHED_TIMEOUT, *arguments)


@pytest.fixture
def namespace(kubectl: Kubectl, plane: ControlPlane) -> Iterator[str]:
    """A namespace of the test's own; it is empty of our kinds after the test."""
    name = f"t-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    yield name
    leave(plane, name)


def leave(plane: ControlPlane, namespace: str) -> None:
    """Delete every object of ours in a namespace, and take off the finalizers whose operator has ended with its test.

    The empty namespace stays: to have the server delete it costs a list and a deletion of every kind that there is,
    which was two thirds of all requests of a run.
    """
    trust = ssl.create_default_context(cafile=str(plane.ca))

    def ask(method: str, path: str, body: object = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {plane.token}", "Content-Type": "application/merge-patch+json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{plane.url}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=KUBECTL_TIMEOUT_SECONDS, context=trust) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError:
            # The kind is not served, or the object has gone meanwhile.
            return {}

    for kind in crd.KINDS:
        path = f"/apis/{keys.API_VERSION}/namespaces/{namespace}/{kind.plural}"
        items = ask("GET", path).get("items", ())
        if items:
            ask("DELETE", path)
        for item in items:
            if item["metadata"].get("finalizers"):
                ask("PATCH", f"{path}/{item['metadata']['name']}", {"metadata": {"finalizers": None}})


def _guard(folder: Path) -> subprocess.Popen[bytes]:
    """A process that removes the control plane when ours is killed: its standard input ends with us."""
    script = f"cat >/dev/null; exec {sys.executable} -m vmpool.cli.dev down --purge >/dev/null 2>&1"
    root = Path(vmpool.__file__).parent.parent
    environment = {**os.environ, "VMPOOL_DEV_HOME": str(folder), "PYTHONPATH": str(root)}
    return subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, env=environment, start_new_session=True)
