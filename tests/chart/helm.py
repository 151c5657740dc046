"""Helm as the tests call it: the real program, with a home of its own."""

import json
import os
import subprocess
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "vmpool"
TIMEOUT_SECONDS = 180
KUBE_VERSION = "1.36.3"

Object = dict[str, Any]


@dataclass(frozen=True)
class Helm:
    """Calls one Helm, for one cluster or for none."""

    binary: Path
    home: Path
    kubeconfig: Path | None = None

    def run(self, *args: str, values: Object | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``helm *args``; ``values`` go in as a file. Fails the test unless ``check`` is False."""
        given = ["--values=-"] if values is not None else []
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
        own = {f"HELM_{kind}_HOME": str(self.home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run(
            [self.binary, *args, *given],
            # Without a cluster there must be none by chance.
            env={**kept, **own, "KUBECONFIG": str(self.kubeconfig or os.devnull)},
            input=None if values is None else yaml.safe_dump(values),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"helm {' '.join(args)} ended with {done.returncode}:\n{done.stderr}")
        return done

    def template(self, values: Object | None = None, *args: str, release: str = "vmpool") -> list[Object]:
        """Return the objects of a release in namespace ``vmpool``, as a cluster that knows our policies gets them."""
        return deepcopy(_template(self, json.dumps(values or {}), release, args))

    def refusal(self, values: Object) -> str:
        """Return why these values are refused; fails the test when they are not."""
        done = self.run("template", "vmpool", str(CHART), values=values, check=False)
        assert done.returncode != 0, f"{values} was taken"
        return done.stderr


@cache
def _template(helm: Helm, values: str, release: str, args: tuple[str, ...]) -> list[Object]:
    told = ("--namespace=vmpool", f"--kube-version={KUBE_VERSION}", *args)
    done = helm.run("template", release, str(CHART), *told, values=json.loads(values))
    return [each for each in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if each]


def of(objects: list[Object], kind: str) -> list[Object]:
    """Return the objects of a kind."""
    return [each for each in objects if each["kind"] == kind]


def one(objects: list[Object], kind: str, name: str) -> Object:
    """Return the object of this kind and name; fails the test unless there is exactly one."""
    found = [each for each in of(objects, kind) if each["metadata"]["name"] == name]
    assert len(found) == 1, f"{kind} {name}: {len(found)} of {[each['metadata']['name'] for each in of(objects, kind)]}"
    return found[0]


def environment(pod: Object) -> dict[str, str]:
    """Return the variables with a written value of a pod's first container, as the container sees them."""
    return {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"] if "value" in each}
