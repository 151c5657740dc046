"""The first minute, as a newcomer has it: one command, every sample pool Ready, a checkout, nothing left behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vmpool.dev import libvirtd
from vmpool.dev.binaries import Binaries
from vmpool.dev.processes import PROC

pytestmark = pytest.mark.e2e

DEMO_SECONDS = 420


def test_the_demo_fills_every_sample_pool_checks_one_out_and_leaves_nothing(
    plane_binaries: Binaries, tmp_path: Path
) -> None:
    home = tmp_path / "dev"
    done = subprocess.run(
        [sys.executable, "-m", "vmpool", "demo", "--once"],
        env={**os.environ, "VMPOOL_DEV_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=DEMO_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "every pool is Ready" in said
    assert re.search(r"is yours for a day; that took [0-9.]+ ms", said)
    if libvirtd.missing() is None and os.geteuid() == 0:
        assert "libvirt.yaml" in said, "real machines are part of the demo where they can be"
    assert _left_running(home) == []
    assert not (libvirtd.IMAGES / "vmpool-demo").exists()


def _left_running(home: Path) -> list[str]:
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                if str(home).encode() in entry.joinpath("environ").read_bytes() and int(entry.name) != os.getpid():
                    found.append(entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found
