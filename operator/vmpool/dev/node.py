"""What makes a machine a Kubernetes node, for the test that runs one: built from Go modules, kept in our cache.

Apart from the control plane, in three modules of their own: who needs no node does not wait for them, and what
containerd and CoreDNS ask of their dependencies does not change what Kubernetes gets. runc and the network plug-ins
are Debian's.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from vmpool.dev.binaries import cache_folder, cache_key, missing_in
from vmpool.dev.build import Recipe, Target, build_missing, kubernetes_version, linker_flags, print_folders
from vmpool.dev.progress import Progress

KUBERNETES_MODULE: Final = Path(__file__).parent / "nodetools" / "kubernetes"
CONTAINERD_MODULE: Final = Path(__file__).parent / "nodetools" / "containerd"
COREDNS_MODULE: Final = Path(__file__).parent / "nodetools" / "coredns"
VERSION: Final = kubernetes_version((KUBERNETES_MODULE / "go.mod").read_text())
KUBERNETES: Final = Recipe(
    f"a node of Kubernetes {VERSION}",
    KUBERNETES_MODULE,
    (
        Target("kubelet", "k8s.io/kubernetes/cmd/kubelet", 110),
        Target("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", 20),
        Target("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", 25),
    ),
    linker_flags(VERSION),
)
CONTAINERD: Final = Recipe(
    "containerd",
    CONTAINERD_MODULE,
    (
        Target("containerd", "github.com/containerd/containerd/v2/cmd/containerd", 210),
        Target("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", 10),
        Target("ctr", "github.com/containerd/containerd/v2/cmd/ctr", 20),
    ),
    "-s -w",
)
COREDNS: Final = Recipe("CoreDNS", COREDNS_MODULE, (Target("coredns", "github.com/coredns/coredns", 240),), "-s -w")
RECIPES: Final = (KUBERNETES, CONTAINERD, COREDNS)
# Of Debian's packages runc and containernetworking-plugins; the latter's programs are on nobody's PATH.
NETWORK_PLUGINS: Final = ("bridge", "host-local", "loopback")
NETWORK_FOLDERS: Final = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))


@dataclass(frozen=True)
class NodeTools:
    """The folders of the programs that we build."""

    kubernetes: Path
    containerd: Path
    coredns: Path

    def program(self, name: str) -> Path:
        """The path of one of the programs. Raises KeyError for any other name."""
        for recipe, folder in zip(RECIPES, (self.kubernetes, self.containerd, self.coredns), strict=True):
            if name in recipe.names:
                return folder / name
        raise KeyError(name)


def tools(environ: Mapping[str, str]) -> NodeTools:
    """Where the programs of this version of vmpool lie once they are built."""
    return NodeTools(*(_folder(recipe, environ) for recipe in RECIPES))


def ensure(environ: Mapping[str, str], progress: Progress) -> NodeTools:
    """The programs, built first where they are not in the cache.

    Raises BuildFailed, and Busy when another build holds the lock for longer than any should take.
    """
    for recipe in RECIPES:
        build_missing(recipe, _folder(recipe, environ), environ, progress)
    return tools(environ)


def network_folder() -> Path | None:
    """Where the system keeps the network plug-ins that a node needs, or None where one of them is missing."""
    return next(
        (
            folder
            for folder in NETWORK_FOLDERS
            if all(shutil.which(name, path=str(folder)) is not None for name in NETWORK_PLUGINS)
        ),
        None,
    )


def _folder(recipe: Recipe, environ: Mapping[str, str]) -> Path:
    pinned = recipe.module.joinpath("go.sum").read_bytes()
    return cache_folder(environ) / "nodetools" / recipe.module.name / cache_key(pinned)


def lacking(environ: Mapping[str, str]) -> list[str]:
    """The programs that would have to be built first."""
    return [name for recipe in RECIPES for name in missing_in(_folder(recipe, environ), recipe.names)]


def main(argv: Sequence[str]) -> int:
    """``python -m vmpool.dev.node``: build what is missing and print the folders; 1 with the reason when it fails.

    With ``--cached`` nothing is built: 1, and what is missing, where that would have to be done.
    """
    progress = Progress(Console(stderr=True))
    if "--cached" in argv:
        if missing := lacking(os.environ):
            progress.note(f"not built yet: {', '.join(missing)}; python -m vmpool.dev.node builds them")
        return 1 if missing else 0
    return print_folders(lambda: astuple(ensure(os.environ, progress)), progress)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
