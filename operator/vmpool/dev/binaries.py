"""Where etcd, kube-apiserver, kube-controller-manager and kubectl come from.

First ``KUBEBUILDER_ASSETS``, then our cache, else they are built into the cache (see ``build``).
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmpool.dev.errors import BinariesMissing
from vmpool.dev.state import user_folder

ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
MODULE = Path(__file__).parent / "controlplane"
KEY_DIGITS = 16
REQUIRED = ("etcd", "kube-apiserver", "kubectl")
OPTIONAL = "kube-controller-manager"
NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")


@dataclass(frozen=True)
class Binaries:
    """A folder with everything that a control plane needs."""

    folder: Path

    @property
    def etcd(self) -> Path:
        """The store."""
        return self.folder / "etcd"

    @property
    def kube_apiserver(self) -> Path:
        """The API server."""
        return self.folder / "kube-apiserver"

    @property
    def kubectl(self) -> Path:
        """The command-line client."""
        return self.folder / "kubectl"

    @property
    def kube_controller_manager(self) -> Path | None:
        """The controllers, or None where a folder of assets comes without them."""
        path = self.folder / OPTIONAL
        return path if _runs(path) else None

    @property
    def warning(self) -> str | None:
        """What the user misses with these binaries, in one sentence."""
        if self.kube_controller_manager is not None:
            return None
        return (
            f"{self.folder} has no kube-controller-manager: namespaces will not finish their deletion, "
            "owned objects stay when their owner goes, and HorizontalPodAutoscalers do nothing"
        )


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Our folder in the user's cache."""
    return user_folder(environ, "XDG_CACHE_HOME", ".cache") / "vmpool"


def cache_key(go_sum: bytes) -> str:
    """Names a set of binaries: other dependencies, other key."""
    return hashlib.sha256(go_sum).hexdigest()[:KEY_DIGITS]


def cached_folder(environ: Mapping[str, str]) -> Path:
    """Where the binaries of this version of vmpool lie once they are built."""
    return cache_folder(environ) / "controlplane" / cache_key(MODULE.joinpath("go.sum").read_bytes())


def find(environ: Mapping[str, str]) -> Binaries | None:
    """The binaries that are at hand, or None if they have to be built.

    Raises BinariesMissing when ``KUBEBUILDER_ASSETS`` names a folder that lacks one we cannot do without.
    """
    if assets := environ.get(ASSETS_VARIABLE):
        folder = Path(assets).expanduser().absolute()
        if missing := missing_in(folder, REQUIRED):
            raise BinariesMissing(f"{ASSETS_VARIABLE}={assets} lacks {', '.join(missing)}; unset it to build our own")
        return Binaries(folder)
    folder = cached_folder(environ)
    return None if missing_in(folder, NAMES) else Binaries(folder)


def missing_in(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Those of ``names`` that are not programs in ``folder``."""
    return [name for name in names if not _runs(folder / name)]


def _runs(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
