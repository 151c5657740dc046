"""What the image's build does beside installing, and its health check: no root needed."""

import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import certificates
from vmpool.dev import image

ROOT = Path(__file__).parents[2]

SOURCES = {
    "vmpool/lease.py": "from kubernetes.aio.client import V1Lease, LeaseApi\n",
    "kubernetes/client/__init__.py": "__all__ = ['V1Lease', 'V1Pod']\n",
    "kubernetes/client/models/v1_lease.py": "class V1Lease:\n    fields = {'spec': 'V1LeaseSpec'}\n",
    "kubernetes/client/models/v1_lease_spec.py": "class V1LeaseSpec:\n    pass\n",
    "kubernetes/client/models/v1_pod.py": "class V1Pod:\n    fields = {'lease': 'V1Lease'}\n",
    "kubernetes/client/models/__init__.py": "__all__ = ['V1Lease', 'V1LeaseSpec', 'V1Pod']\n",
    "kubernetes/client/api/lease_api.py": "class LeaseApi:\n    returns = 'list[V1Status]'\n",
    "kubernetes/client/models/v1_status.py": "class V1Status:\n    pass\n",
    "kubernetes/client/models/__pycache__/v1_pod.cpython-313.pyc": "",
    "kubernetes-1.dist-info/RECORD": (
        "kubernetes/client/models/v1_pod.py,sha256=x,1\nkubernetes/client/models/v1_lease.py,sha256=y,1\n"
    ),
}


def test_only_what_nobody_names_is_left_out(tmp_path: Path) -> None:
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert image.trim(tmp_path) == 1
    gone = {name for name in SOURCES if not (tmp_path / name).exists()}
    assert gone == {"kubernetes/client/models/v1_pod.py", "kubernetes/client/models/__pycache__/v1_pod.cpython-313.pyc"}
    record = (tmp_path / "kubernetes-1.dist-info" / "RECORD").read_text()
    assert "v1_lease.py" in record
    assert "v1_pod.py" not in record


def test_the_installed_client_is_cut_to_a_handful(tmp_path: Path) -> None:
    import kopf
    import kubernetes

    for package in (ROOT / "operator" / "vmpool", Path(kopf.__file__).parent, Path(kubernetes.__file__).parent):
        (tmp_path / package.name).symlink_to(package)
    gone = {path.name for path in image.unused(tmp_path)}
    assert len(gone) > 500
    assert not gone & {"v1_lease.py", "v1_lease_spec.py", "v1_object_meta.py", "coordination_v1_api.py"}


STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.41-12
Description: GNU C Library
 Status: of a line that goes on

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""
LIBRARY = "Metadata-Version: 2.4\nName: {name}\nVersion: 1.2\n{licence}\n"


def test_the_bill_of_materials_names_each_part_once_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name, licence in (
        ("vmpool", "License-Expression: Apache-2.0"),
        ("Some_Library", "Classifier: License :: OSI Approved :: MIT License"),
        ("plain", ""),
    ):
        folder = tmp_path / f"{name}-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(LIBRARY.format(name=name, licence=licence))
    bill = image.bill_of_materials(tmp_path, STATUS)
    assert bill == image.bill_of_materials(tmp_path, STATUS)
    ours = bill["metadata"]["component"]
    assert (ours["type"], ours["name"], ours["licenses"]) == ("application", "vmpool", [{"expression": "Apache-2.0"}])
    parts = {part["name"]: part for part in bill["components"]}
    assert set(parts) == {"Python", "libc6", "plain", "some-library"}
    assert parts["libc6"]["purl"] == "pkg:deb/debian/libc6@2.41-12?arch=amd64"
    assert parts["some-library"]["purl"] == "pkg:pypi/some-library@1.2"
    assert parts["some-library"]["licenses"] == [{"license": {"name": "MIT License"}}]


@contextmanager
def served(status: int, folder: Path | None = None) -> Iterator[str]:
    """A server on a free port that answers with a status, over TLS where ``folder`` has a certificate."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        if folder is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(folder / certificates.CERTIFICATE, folder / certificates.KEY)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield str(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def nobody() -> str:
    """A port on which nobody listens."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return str(server.server_address[1])


@pytest.mark.parametrize("status", [200, 503])
def test_the_health_check_believes_who_answers(nobody: str, status: int) -> None:
    with served(status) as port:
        assert image.answers({"VMPOOL_HTTP_PORT": port, "VMPOOL_GATEWAY_PORT": nobody}) is (status == 200)
        assert image.answers({"VMPOOL_HTTP_PORT": nobody, "VMPOOL_GATEWAY_PORT": port}) is (status == 200)


def test_the_health_check_takes_any_certificate(nobody: str, tmp_path: Path) -> None:
    certificates.issue(tmp_path, 1)
    with served(200, tmp_path) as port:
        assert image.answers({"VMPOOL_HTTP_PORT": nobody, "VMPOOL_GATEWAY_PORT": port})


VMPOOL = ["/opt/vmpool/bin/python", "/opt/vmpool/bin/vmpool"]


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        pytest.param([], ["8080", "4567"], id="nobody knows"),
        pytest.param([*VMPOOL, "operator", ""], ["8080", "4567"], id="operator"),
        pytest.param([*VMPOOL, "operator", "--http-port", "9000", ""], ["9000", "4567"], id="its option"),
        pytest.param([*VMPOOL, "gateway", "--port=9001", ""], ["8080", "9001"], id="the gateway's option"),
        pytest.param([*VMPOOL, "simcloud", "--host=0.0.0.0", "--port=18080", ""], ["18080"], id="simcloud"),
        pytest.param(["/sbin/docker-init", "--", "vmpool", "simcloud", "--port", "1", ""], ["1"], id="under an init"),
        pytest.param([*VMPOOL, "simcloud", "--port=1", "--port=2", ""], ["2"], id="the last one counts"),
        pytest.param([*VMPOOL, "simcloud", ""], [], id="a port that nobody can know"),
        pytest.param([*VMPOOL, "simcloud", "--port-file=/nonexistent", ""], [], id="not there yet"),
        pytest.param([*VMPOOL, "operator", "--context", "simcloud", ""], ["8080", "4567"], id="only a name"),
        pytest.param(["sleep", "infinity", ""], ["8080", "4567"], id="another program"),
    ],
)
def test_the_health_check_asks_where_the_program_was_told_to_listen(command: list[str], wanted: list[str]) -> None:
    assert image.ports({}, command) == wanted


def test_the_health_check_asks_the_simulated_cloud(nobody: str, tmp_path: Path) -> None:
    file = tmp_path / "port"
    with served(200) as port, served(503) as other:
        environ = {"VMPOOL_HTTP_PORT": other, "VMPOOL_GATEWAY_PORT": nobody}
        assert image.answers(environ, [*VMPOOL, "simcloud", f"--port={port}"])
        assert not image.answers(environ, [*VMPOOL, "simcloud", "--port", nobody])
        file.write_text(f"{port}\n")
        assert image.answers(environ, [*VMPOOL, "simcloud", "--port=0", "--port-file", str(file)])


def test_nobody_is_not_well(nobody: str) -> None:
    assert not image.answers({"VMPOOL_HTTP_PORT": nobody, "VMPOOL_GATEWAY_PORT": nobody})
