"""The base of the image where no registry answers: a small Debian with the same Python, from Debian's own packages."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.node.builder import Layer

SUITE = "trixie"
PACKAGES = ("python3", "python3-venv", "ca-certificates")
TIMEOUT_SECONDS = 900
DROPPED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt", "var/lib/apt/lists")
"""What the slim base has not got either."""
EMPTIED = ("dev", "tmp", "var/log", "root")
VERSION = 1
"""Of what is done here: another number is another base."""


def base(cache: Path, tell: Callable[[str], None]) -> Layer:
    """The base, made on the first call on a machine. Raises AssertionError with debootstrap's last lines."""
    key = hashlib.sha256(repr((VERSION, SUITE, PACKAGES, DROPPED)).encode()).hexdigest()[:16]
    done = cache / f"base-{key}"
    if not done.exists():
        tell(f"image: base of Debian {SUITE} by debootstrap, once, about a minute")
        draft = cache / ".base.draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        _fill(draft)
        _clean(draft)
        draft.rename(done)
    return Layer(key, done)


def _fill(root: Path) -> None:
    # Under --pid a daemon that a package starts ends with the command.
    done = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
            *("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, (
        f"debootstrap ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    )


def _clean(root: Path) -> None:
    for name in EMPTIED:
        shutil.rmtree(root / name)
        (root / name).mkdir()
    (root / "tmp").chmod(0o1777)
    for name in DROPPED:
        shutil.rmtree(root / name, ignore_errors=True)
    for path in root.rglob("__pycache__"):
        shutil.rmtree(path)
    # Names of the machine that made it; the empty file is what the machine's own is laid over for a step.
    for name in ("etc/hostname", "etc/resolv.conf", "etc/machine-id"):
        (root / name).unlink(missing_ok=True)
        (root / name).touch()
    # As in the base from the registry, where Python is built from source below usr/local.
    for name in ("python", "python3"):
        (root / "usr" / "local" / "bin" / name).symlink_to("/usr/bin/python3")
