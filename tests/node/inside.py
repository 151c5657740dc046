"""Runs within one `unshare`, as its first process: control plane, containerd, kubelet, kube-proxy, CoreDNS.

It is told a folder by its argument. It says on standard output what it does, "ready" at last, and ends when its
standard input does; the kernel then ends everything else and takes mounts, networks and rules away.
"""

import json
import os
import secrets
import select
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.node import configs
from tests.node.configs import ADDRESS, API_PORT, BRIDGE, NODE, Files, Programs

DEADLINE_SECONDS = 120.0
POLL_SECONDS = 0.1
LOG_LINES = 15
BRIDGE_RULES = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


class Failed(Exception):
    """Something did not come up; the message says what, and the end of its log."""


class Node:
    """Everything that runs here."""

    def __init__(self, files: Files, programs: Programs, images: list[Path]) -> None:
        self._files = files
        self._programs = programs
        self._images = images
        self._tokens = {who: secrets.token_hex(16) for who in configs.USERS}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Bring everything up. Raises Failed."""
        _hide()
        _network()
        files, programs = self._files, self._programs
        configs.write_all(files, programs, self._tokens)
        (files / "accounts.key").write_bytes(_key())
        self._spawn("etcd", configs.etcd(files, programs))
        self._spawn("kube-apiserver", configs.api_server(files, programs))
        self._spawn("containerd", configs.containerd(files, programs))
        self._until("containerd answers", lambda: self._ctr("version"))
        for image in self._images:
            self._until(f"{image.name} is imported", partial(self._ctr, "images", "import", str(image)))
        self._until("the API server is ready", lambda: self._get("/readyz") == b"ok")
        self._spawn("kube-controller-manager", configs.controller_manager(files, programs))
        self._spawn("kube-scheduler", configs.scheduler(files, programs))
        self._spawn("kube-proxy", configs.proxy(files, programs))
        self._spawn("coredns", configs.coredns(files, programs))
        self._spawn("kubelet", configs.kubelet(files, programs))
        self._until("the node is Ready", self._node_ready)
        self._until("names are answered", _names_answered)
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._until("the namespace default has its account", lambda: self._get(account))

    def stay(self) -> None:
        """Return when standard input ends. Raises Failed when a program ends before."""
        while True:
            if select.select([sys.stdin], [], [], 1.0)[0] and not sys.stdin.readline():
                return
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise Failed(self._ended(name))
            # The first process of its namespace inherits the others' children, such as containerd's shims.
            known = {process.pid for process in self._running.values()}
            for path in Path("/proc").glob("[0-9]*/stat"):
                _reap(path, known)

    def _spawn(self, name: str, argv: list[str]) -> None:
        # Shims are found on PATH.
        path = f"{self._programs.containerd}:{os.environ['PATH']}"
        with (self._files / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "PATH": path}
            )

    def _until(self, what: str, condition: Callable[[], object]) -> None:
        begin = time.monotonic()
        while not condition():
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise Failed(self._ended(name))
            if time.monotonic() - begin > DEADLINE_SECONDS:
                ends = "\n".join(self._end_of(name) for name in self._running)
                raise Failed(f"not within {DEADLINE_SECONDS:g} s: {what}\n{ends}")
            time.sleep(POLL_SECONDS)
        _say(f"{what} ({time.monotonic() - begin:.1f} s)")

    def _ended(self, name: str) -> str:
        return f"{name} has ended with {self._running[name].returncode}\n{self._end_of(name)}"

    def _end_of(self, name: str) -> str:
        lines = (self._files / f"{name}.log").read_text(errors="replace").splitlines()
        return f"the end of {name}.log:\n" + "\n".join(lines[-LOG_LINES:])

    def _ctr(self, *args: str) -> bool:
        ctr = [str(self._programs.containerd / "ctr"), "--address", str(self._files.socket), "--namespace", "k8s.io"]
        done = subprocess.run([*ctr, *args], capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS)
        if done.returncode != 0 and args[0] == "images":
            raise Failed(f"ctr {' '.join(args)}: {done.stderr}")
        return done.returncode == 0

    def _get(self, path: str) -> bytes | None:
        request = urllib.request.Request(
            f"https://{ADDRESS}:{API_PORT}{path}", headers={"Authorization": f"Bearer {self._tokens['admin']}"}
        )
        try:
            trust = ssl.create_default_context(cafile=str(self._files.authority))
            with urllib.request.urlopen(request, timeout=5, context=trust) as answer:
                return bytes(answer.read())
        except (OSError, ValueError):
            return None

    def _node_ready(self) -> bool:
        found = json.loads(self._get(f"/api/v1/nodes/{NODE}") or b"{}")
        conditions = found.get("status", {}).get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _hide() -> None:
    """Give the folders that are written wherever the rest lies a content of their own."""
    for target in ("/run", "/var/log"):
        _run("mount", "-t", "tmpfs", "tmpfs", target)
    for number, target in enumerate(("/var/lib", "/usr/libexec")):
        upper, work = Path(f"/run/over-{number}"), Path(f"/run/work-{number}")
        upper.mkdir()
        work.mkdir()
        _run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={target},upperdir={upper},workdir={work}", target)


def _network() -> None:
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", BRIDGE, "type", "bridge")
    _run("ip", "address", "add", f"{ADDRESS}/24", "dev", BRIDGE)
    _run("ip", "link", "set", BRIDGE, "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    # Pods of one bridge reach each other through a Service only if the bridge asks the rules.
    if BRIDGE_RULES.exists():
        BRIDGE_RULES.write_text("1")


def _names_answered() -> bool:
    try:
        with urllib.request.urlopen("http://127.0.0.1:8181/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _key() -> bytes:
    """What service accounts' tokens are signed with."""
    plain = serialization.NoEncryption()
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)


def _reap(path: Path, known: set[int]) -> None:
    pid = int(path.parent.name)
    try:
        if pid not in known and path.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            os.waitpid(pid, os.WNOHANG)
    except (OSError, ChildProcessError):
        return


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS)
    if done.returncode != 0:
        raise Failed(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Return 0 when it was told to end, 1 when something failed, after a line that says what."""
    folder = Path(sys.argv[1])
    told = json.loads((folder / "told.json").read_text())
    programs = Programs(**{name: Path(path) for name, path in told["programs"].items()})
    node = Node(Files(folder, told["cgroup"]), programs, [Path(path) for path in told["images"]])
    try:
        if shutil.which("runc") is None:
            raise Failed("runc is missing")
        node.start()
        _say("ready")
        node.stay()
    except Failed as error:
        _say(f"failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
