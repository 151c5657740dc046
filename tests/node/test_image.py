"""The image: what the Dockerfile makes, of what size, and that it runs as it is meant to."""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.node import oci
from tests.node.conftest import Image

pytestmark = pytest.mark.node

SIZE_BYTES = 200 * 10**6
OWN_BYTES = 75 * 10**6
"""What we add to the base; the base's own size is its maker's, and another where a registry answers."""
USER = 65532
OTHER_USER = 1000650000
"""As clusters choose that give each namespace numbers of its own."""
COMMAND_SECONDS = 60
FOREIGN = ("pytest", "hypothesis", "mypy", "ruff", "pip", "setuptools", "cryptography", "cffi", "libvirt")
SERVER = """
import http.server, subprocess, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(sys.argv[2]))
        self.end_headers()
if port := int(sys.argv[1]):
    server = http.server.HTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
sys.exit(subprocess.run(sys.argv[3:]).returncode)
"""
"""Answers on a port with a status while a command runs, and ends as that does."""
CLOUD = """
import os, signal, subprocess, sys, time
split = sys.argv.index("--")
if os.fork():
    os.execvp(sys.argv[1], sys.argv[1:split])
for _ in range(int(sys.argv[-1])):
    if healthy := subprocess.run(sys.argv[split + 1 : -1]).returncode == 0:
        break
    time.sleep(1)
print("healthy" if healthy else "never healthy", flush=True)
os.kill(1, signal.SIGTERM)
"""
"""Becomes one command, as process 1 of a container, beside which another one is run until it ends well."""
COMPILERS = ("gcc", "cc", "c++", "g++", "clang", "tcc", "ld", "as", "make", "go", "rustc")


@pytest.fixture(scope="session")
def root(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The image's files, as a container sees them: read-only."""
    place = tmp_path_factory.mktemp("root")
    lowers = ":".join(str(layer.files) for layer in reversed(image.layers))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={lowers}", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@contextmanager
def started(image: Image, root: Path, command: list[str], user: int = USER) -> Iterator[subprocess.Popen[str]]:
    """Run a command as a container would: this user, the image's variables alone, nothing to write but /tmp."""
    variables = oci.settings(image.stages[-1])["Env"]
    mounts = 'mount -t tmpfs tmpfs "$1/tmp"; mount -t proc proc "$1/proc"; mount --rbind /dev "$1/dev"'
    script = f'ip link set lo up; {mounts}; shift; exec "$@"'
    process = subprocess.Popen(
        [
            *(
                "unshare",
                "--mount",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "/bin/sh",
                "-ec",
                script,
                "sh",
                str(root),
            ),
            *(
                "chroot",
                f"--userspec={user}:{user}",
                "--groups=",
                str(root),
                "/usr/bin/env",
                "-i",
                *variables,
                *command,
            ),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def output(image: Image, root: Path, command: list[str], user: int = USER) -> str:
    """What a command says; fails unless it ends with 0."""
    with started(image, root, command, user) as process:
        said, _ = process.communicate(timeout=COMMAND_SECONDS)
        assert process.returncode == 0, said
        return said


def installed(root: Path) -> dict[str, Path]:
    """Names and folders of what is installed beside our program."""
    (site,) = (root / "opt" / "vmpool" / "lib").glob("python3.*/site-packages")
    return {path.name.split("-")[0].replace("_", "-").lower(): path for path in site.glob("*.dist-info")}


def test_it_is_small_enough(image: Image) -> None:
    sizes = [tar.stat().st_size for tar in image.tars]
    assert sum(sizes) <= SIZE_BYTES, sizes
    assert sum(sizes[1:]) <= OWN_BYTES, sizes


def test_it_runs_as_nobody_of_importance_and_says_what_it_is(image: Image) -> None:
    last = image.stages[-1]
    assert last.last("USER") == f"{USER}:{USER}"
    assert last.listed("ENTRYPOINT") == ["vmpool"]
    labels = last.pairs("LABEL")
    for name in ("title", "description", "licenses", "version", "revision"):
        assert labels[f"org.opencontainers.image.{name}"]


def test_the_base_is_one_exact_version(image: Image) -> None:
    for stage in image.stages:
        name, _, tag = stage.base.partition(":")
        assert name == "python"
        assert len(tag.split("-")[0].split(".")) == 3, f"{tag} is another image tomorrow"


def test_nothing_is_in_it_that_it_does_not_need(image: Image, root: Path) -> None:
    assert "vmpool" in installed(root)
    assert not installed(root).keys() & set(FOREIGN)
    found = [name for place in ("usr/bin", "usr/local/bin", "opt/vmpool/bin") for name in os.listdir(root / place)]
    assert not set(found) & set(COMPILERS)
    # Of the sources only those that run: no tests, no requirements, no build's folder.
    assert not (root / "src").exists()
    ours = image.layers[1:]
    written = [path for layer in ours for path in layer.files.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in written if path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH)]


def test_byte_code_is_there_for_all_that_is_there(root: Path) -> None:
    site = installed(root)["vmpool"].parent
    sources = [path for name in ("vmpool", "kopf", "kubernetes") for path in (site / name).rglob("*.py")]
    assert len(sources) > 300
    assert not [path for path in sources if not list(path.parent.glob(f"__pycache__/{path.stem}.*.pyc"))]


def test_the_bill_of_materials_is_complete(root: Path) -> None:
    bill = json.loads((root / "opt" / "vmpool" / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "vmpool"
    named = {part["name"] for part in bill["components"]}
    assert named >= installed(root).keys() - {"vmpool"}
    status = (root / "var" / "lib" / "dpkg" / "status").read_text()
    assert named >= {line.removeprefix("Package: ") for line in status.splitlines() if line.startswith("Package: ")}
    assert "Python" in named
    references = [part["bom-ref"] for part in bill["components"]]
    assert len(references) == len(set(references))


@pytest.mark.parametrize("user", [USER, OTHER_USER])
@pytest.mark.parametrize("part", ["operator", "gateway", "simcloud"])
def test_each_part_starts_under_any_number_and_writes_nothing(image: Image, root: Path, part: str, user: int) -> None:
    said = output(image, root, ["vmpool", part, "--help"], user)
    assert "Usage" in said
    # What the operator's framework asks for before anything else.
    assert output(image, root, ["python", "-c", "import getpass; print(getpass.getuser())"], user) == "vmpool\n"


def test_what_operator_and_gateway_import_is_there(image: Image, root: Path) -> None:
    loaded = "import vmpool.rim.process, vmpool.gateway.process, sys; print(len(sys.modules))"
    assert int(output(image, root, ["python", "-c", loaded])) > 500
    # Found by their names only when the lease is written.
    late = (
        "from kubernetes.aio import client as c; c.CoordinationV1Api; c.V1LeaseSpec; c.V1ManagedFieldsEntry; c.V1Status"
    )
    output(image, root, ["python", "-c", late])


def test_the_health_check_sees_who_listens(image: Image, root: Path) -> None:
    check = image.stages[-1].last("HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    for port, status, healthy in ((8080, 200, True), (4567, 200, True), (8080, 503, False), (0, 0, False)):
        with started(image, root, ["python", "-c", SERVER, str(port), str(status), *command]) as process:
            said, _ = process.communicate(timeout=COMMAND_SECONDS)
        assert (process.returncode == 0) is healthy, f"{port} {status}: {said}"
    for port, tries, healthy in (("--port=18080", 30, "healthy"), ("--port=0", 2, "never healthy")):
        cloud = ["vmpool", "simcloud", port, "--ledger=/tmp/cloud.sqlite"]
        said = output(image, root, ["python", "-c", CLOUD, *cloud, "--", *command, str(tries)])
        assert said.splitlines()[-1] == healthy, said


def test_operator_and_gateway_listen_where_a_container_is_reached(image: Image, root: Path) -> None:
    told = "from vmpool.settings import GatewaySettings, Settings; print(Settings().http_host, GatewaySettings().host)"
    assert output(image, root, ["python", "-c", told]) == "0.0.0.0 0.0.0.0\n"
