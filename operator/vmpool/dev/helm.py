"""Helm and kubeconform for the tests of the chart: built from Go modules like the control plane, kept in our cache.

Apart from the control plane, in a module of their own: who needs no chart does not wait for them.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from vmpool.dev.binaries import cache_folder, cache_key
from vmpool.dev.build import Recipe, Target, build_missing, print_folders
from vmpool.dev.progress import Progress

CHART_TOOLS_MODULE: Final = Path(__file__).parent / "charttools"
RECIPE: Final = Recipe(
    "Helm",
    CHART_TOOLS_MODULE,
    (
        Target("helm", "helm.sh/helm/v4/cmd/helm", 225),
        Target("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform", 15),
    ),
    "-s -w",
)


@dataclass(frozen=True)
class ChartTools:
    """A folder with both programs."""

    folder: Path

    @property
    def helm(self) -> Path:
        """Installs charts."""
        return self.folder / "helm"

    @property
    def kubeconform(self) -> Path:
        """Holds manifests against schemas."""
        return self.folder / "kubeconform"


def tools_folder(environ: Mapping[str, str]) -> Path:
    """Where the programs of this version of vmpool lie once they are built."""
    return cache_folder(environ) / "charttools" / cache_key(CHART_TOOLS_MODULE.joinpath("go.sum").read_bytes())


def ensure(environ: Mapping[str, str], progress: Progress) -> ChartTools:
    """The programs, built first where they are not in the cache.

    Raises BuildFailed, and Busy when another build holds the lock for longer than any should take.
    """
    folder = tools_folder(environ)
    build_missing(RECIPE, folder, environ, progress)
    return ChartTools(folder)


def main() -> int:
    """``python -m vmpool.dev.helm``: build what is missing and print the folder; 1 with the reason when it fails."""
    progress = Progress(Console(stderr=True))
    return print_folders(lambda: [ensure(os.environ, progress).folder], progress)


if __name__ == "__main__":
    sys.exit(main())
