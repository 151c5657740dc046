"""A process that has imported everything and forks operators: a start costs a tenth of a cold one.

It holds no loop, no connection and no thread, so that a child begins as a fresh process does. Spoken to by lines of
JSON on its standard input and output.
"""

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
CONFIG_PREFIX = "VMPOOL_"
OPERATOR, GATEWAY = "operator", "gateway"
"""What a child can become."""
PR_SET_PDEATHSIG = 1
"""Of prctl(2): which signal a process gets when its parent ends."""


def _operator() -> None:
    from vmpool.rim.process import run_operator
    from vmpool.settings import Settings

    run_operator(Settings())


def _gateway() -> None:
    from vmpool.gateway.process import run_gateway
    from vmpool.settings import GatewaySettings, Settings

    run_gateway(Settings(), GatewaySettings())


_PROGRAMS = {OPERATOR: _operator, GATEWAY: _gateway}


def _child(asked: dict[str, Any]) -> None:
    """Become what was asked for; never returns."""
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    # However the trials end, no operator outlives them.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with Path(asked["log"]).open("ab") as log, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    for name in [name for name in os.environ if name.startswith(CONFIG_PREFIX)]:
        del os.environ[name]
    os.environ.update(asked["environment"])
    # What ran so far has nothing to give back to a child.
    gc.enable()
    try:
        _PROGRAMS[asked.get("program", OPERATOR)]()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    finally:
        os._exit(1)


def main() -> None:
    """Fork for each line that comes; end with the standard input."""
    import kopf  # noqa: F401
    import kubernetes.aio.client  # noqa: F401

    import vmpool.providers.simulated
    import vmpool.rim.process  # noqa: F401

    gc.collect()
    gc.freeze()
    gc.disable()
    # Children are reaped by the kernel at once: who waits for one looks at /proc.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print(json.dumps({"ready": True}), flush=True)  # noqa: T201 - the protocol
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(asked)
        print(json.dumps({"pid": pid}), flush=True)  # noqa: T201


class Nursery:
    """The parent's side; use it as a context manager."""

    def __enter__(self) -> "Nursery":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.rig.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._answer() == {"ready": True}
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def start(self, log: Path, environment: dict[str, str], program: str = OPERATOR) -> int:
        """Fork an operator, or another program, with these settings; return its process id."""
        assert self._process.stdin is not None
        asked = {"log": str(log), "environment": environment, "program": program}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return int(self._answer()["pid"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery has ended"
        return dict(json.loads(line))


if __name__ == "__main__":
    main()
