"""The ``vmpool`` command as people type it, beside a real API server."""

import os
import subprocess
import sys
from typing import Protocol

from vmpool.dev.plane import ControlPlane

COMMAND_SECONDS = 60


class Run(Protocol):
    """Calls the command; fails unless it ends with ``code``."""

    def __call__(self, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]: ...


def command(plane: ControlPlane, before: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> Run:
    """Return what calls ``vmpool`` as the plane's administrator, with words before and after those of each call."""

    def run(*args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "vmpool", *before, *args, *after],
            env={**os.environ, "KUBECONFIG": str(plane.kubeconfig), "COLUMNS": "200", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run
