"""A part of vmpool as a process of its own, for the tests: started, killed and started again at will."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

STOP_SECONDS = 20


class Program:
    """``vmpool <command>``; its log is a file."""

    command: ClassVar[str]
    base: ClassVar[dict[str, str]] = {}
    """Settings that every one of these has; those that are given come on top."""

    def __init__(self, kubeconfig: Path, log: Path, **settings: str) -> None:
        self.log = log
        self._environment = {**os.environ, **self.base, "VMPOOL_KUBECONFIG": str(kubeconfig), **settings}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; returns at once."""
        assert not self.running, "it runs already"
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vmpool", self.command], env=self._environment, stdout=out, stderr=out
            )

    def kill(self) -> None:
        """End it with SIGKILL, at once and without any clean-up."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to stop and return its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(number)
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the {self.command} did not end after {number.name}; log: {self.log}") from None

    def lines(self) -> str:
        """Everything it has logged so far, in all its lives; not the beginning of a line that is being written."""
        written = self.log.read_text() if self.log.exists() else ""
        return written[: written.rfind("\n") + 1]
