"""``python -m tests.faults.hammer --minutes 30 --seed 0 [--report FILE]``; 1 when a promise was broken."""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.faults.hammer.run import hammered, keep
from tests.planes import install_crds, kubectl_of, throwaway_plane
from vmpool.dev import build
from vmpool.dev.progress import Progress

ROOT = Path(__file__).parents[3]
REPORT = ROOT / "bench" / "faults" / "hammer.json"


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.hammer", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="of killing")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--report", type=Path, default=REPORT, help="where the figures go")
    parser.add_argument("--keep", type=Path, help="folder for logs, history and ledger when a promise was broken")
    given = parser.parse_args()
    binaries = build.ensure(os.environ, Progress(Console(stderr=True)))
    with throwaway_plane(binaries) as plane, tempfile.TemporaryDirectory(prefix="vmpool-hammer-") as folder:
        kubectl = kubectl_of(plane)
        install_crds(kubectl)
        outcome = asyncio.run(hammered(plane, kubectl, Path(folder), given.minutes * 60, given.seed, _tell))
    given.report.parent.mkdir(parents=True, exist_ok=True)
    given.report.write_text(json.dumps(outcome.report, indent=1) + "\n")
    _tell(json.dumps(outcome.report, indent=1))
    if outcome.violations and given.keep is not None:
        keep(outcome, given.keep)
    return 1 if outcome.violations else 0


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)  # noqa: T201 - progress on the command line


if __name__ == "__main__":
    sys.exit(main())
