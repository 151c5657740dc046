"""One way to speak to a node, whoever has made it."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

KUBECTL_TIMEOUT_SECONDS = 180
HELM_TIMEOUT_SECONDS = 300

Object = dict[str, Any]


@dataclass(frozen=True)
class Cluster:
    """Calls kubectl and helm as administrator; their command lines go to where the API server can be reached."""

    kubectl_argv: tuple[str, ...]
    helm_argv: tuple[str, ...]
    kubeconfig: Path
    home: Path

    def kubectl(self, *args: str, given: str | None = None, check: bool = True) -> str:
        """Run kubectl and return its output; fails the test unless ``check`` is False."""
        return self._run([*self.kubectl_argv, *args], given, KUBECTL_TIMEOUT_SECONDS, check)

    def refusal(self, *args: str, given: str) -> str:
        """Why the server refuses what kubectl is told to do; fails the test when it does it."""
        done = self._call([*self.kubectl_argv, *args], given, KUBECTL_TIMEOUT_SECONDS)
        assert done.returncode != 0, f"done: {' '.join(args)}"
        return done.stderr

    def helm(self, *args: str, values: Object | None = None) -> str:
        """Run helm; ``values`` go in as a file. Fails the test when it fails."""
        told = [] if values is None else ["--values=-"]
        given = None if values is None else yaml.safe_dump(values)
        return self._run([*self.helm_argv, *args, *told], given, HELM_TIMEOUT_SECONDS, check=True)

    def get(self, *args: str) -> Object:
        """What kubectl shows of an object or a list; empty when it is not there."""
        return dict(json.loads(self.kubectl("get", *args, "--output=json", "--ignore-not-found") or "{}"))

    def items(self, *args: str) -> list[Object]:
        """The objects of a list."""
        return list(self.get(*args).get("items", []))

    def apply(self, *objects: Object) -> None:
        """Apply objects, server-side."""
        text = yaml.safe_dump_all(objects)
        self.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", given=text)

    def _run(self, argv: list[str], given: str | None, seconds: float, check: bool) -> str:
        done = self._call(argv, given, seconds)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _call(self, argv: list[str], given: str | None, seconds: float) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
        own = {f"HELM_{kind}_HOME": str(self.home / "helm" / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        told = {"KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.home / "kubectl"), "KUBERC": "off"}
        return subprocess.run(
            argv,
            env={**kept, **own, **told},
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
