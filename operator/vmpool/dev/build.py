"""Build the control plane from Go modules, once per set of dependencies and machine.

Safe to kill at any point: a binary appears under its name only when it is whole, and what the toolchain has
compiled stays in Go's own cache.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmpool.dev.binaries import MODULE, Binaries, cache_folder, cached_folder, find, missing_in
from vmpool.dev.errors import BuildFailed, DevError
from vmpool.dev.files import draft_of, locked
from vmpool.dev.progress import Progress
from vmpool.dev.toolchain import ensure_go

# Four cold builds on one slow core fit in; a second builder waits as long for the first.
BUILD_DEADLINE_SECONDS = 3600.0
POLL_SECONDS = 0.5
LOG_LINES = 20
TERM_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Target:
    """One binary; ``seconds`` is what a cold build took on two cores with the targets before it built."""

    name: str
    package: str
    seconds: int


@dataclass(frozen=True)
class Recipe:
    """Programs that are built from one Go module of ours, whose ``go.mod`` and ``go.sum`` pin all that goes in."""

    what: str
    module: Path
    targets: tuple[Target, ...]
    flags: str

    @property
    def names(self) -> tuple[str, ...]:
        """Of the programs, in the order in which they are built."""
        return tuple(target.name for target in self.targets)


TARGETS = (
    Target("etcd", "go.etcd.io/etcd/server/v3", 45),
    Target("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", 230),
    Target("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", 70),
    Target("kubectl", "k8s.io/kubernetes/cmd/kubectl", 20),
)


def ensure(environ: Mapping[str, str], progress: Progress) -> Binaries:
    """The binaries, built first where they are not at hand.

    Raises BinariesMissing for an incomplete ``KUBEBUILDER_ASSETS``, BuildFailed, and Busy when another
    build holds the lock for longer than any should take.
    """
    found = find(environ)
    if found is not None:
        return found
    version = kubernetes_version((MODULE / "go.mod").read_text())
    recipe = Recipe(f"Kubernetes {version}", MODULE, TARGETS, linker_flags(version))
    folder = cached_folder(environ)
    build_missing(recipe, folder, environ, progress)
    return Binaries(folder)


def build_missing(recipe: Recipe, folder: Path, environ: Mapping[str, str], progress: Progress) -> None:
    """Build those of a recipe's programs that are not in ``folder``.

    Raises BuildFailed, and Busy when another build holds the lock for longer than any should take.
    """
    if not missing_in(folder, recipe.names):
        return
    with locked(
        folder / "build.lock",
        deadline=BUILD_DEADLINE_SECONDS,
        on_wait=lambda: progress.note(f"another process builds {recipe.what}; waiting for it"),
    ):
        _build_missing(recipe, folder, environ, progress)


def print_folders(build: Callable[[], Iterable[Path]], progress: Progress) -> int:
    """Print where what was built lies, a line each, or why it was not; return the process's exit code, 0 or 1."""
    try:
        found = list(build())
    except DevError as error:
        progress.note(f"error: {error}")
        return 1
    sys.stdout.write("".join(f"{folder}\n" for folder in found))
    return 0


def kubernetes_version(go_mod: str) -> str:
    """The version of Kubernetes that a go.mod pins, such as ``v1.36.3``."""
    line = re.search(r"^\s*k8s\.io/kubernetes (v\S+)", go_mod, re.MULTILINE)
    assert line, "our go.mod requires k8s.io/kubernetes"
    return line[1]


def linker_flags(version: str) -> str:
    """Linker flags that make the binaries know their version: clients misjudge a server that says v0.0.0."""
    major, minor, _ = version.removeprefix("v").split(".", 2)
    prefix = "k8s.io/component-base/version"
    return f"-s -w -X {prefix}.gitVersion={version} -X {prefix}.gitMajor={major} -X {prefix}.gitMinor={minor}"


def describe(missing: Sequence[str], name: str, elapsed: float, targets: Sequence[Target] = TARGETS) -> str:
    """One line of progress: which binary, its place among the missing ones, seconds so far, an estimate."""
    place = missing.index(name)
    usual = {target.name: target.seconds for target in targets}
    pace = "usually about" if elapsed <= usual[name] else "longer than the usual"
    line = f"building {name} ({place + 1} of {len(missing)}): {elapsed:.0f} s, {pace} {usual[name]} s"
    rest = sum(usual[later] for later in missing[place + 1 :])
    return f"{line}; then about {_minutes(rest)} for the rest" if rest else line


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _build_missing(recipe: Recipe, folder: Path, environ: Mapping[str, str], progress: Progress) -> None:
    source = folder / "source"
    source.mkdir(parents=True, exist_ok=True)
    for name in ("go.mod", "go.sum"):
        shutil.copyfile(recipe.module / name, source / name)
    for draft in folder.glob(".*.draft"):
        draft.unlink()
    missing = missing_in(folder, recipe.names)
    if not missing:
        return
    go = ensure_go((source / "go.mod").read_text(), cache_folder(environ), environ, progress)
    begin = time.monotonic()
    progress.note(f"building {recipe.what} with {go} into {folder}; this happens once")
    for target in recipe.targets:
        if target.name in missing:
            _build(target, missing, _Job(go, source, folder, environ, recipe), progress)
    progress.note(f"built {', '.join(missing)} in {_minutes(time.monotonic() - begin)}")


@dataclass(frozen=True)
class _Job:
    go: Path
    source: Path
    folder: Path
    environ: Mapping[str, str]
    recipe: Recipe

    def start(self, target: Target, draft: Path, log: Path) -> subprocess.Popen[bytes]:
        # A GOROOT that belongs to the Go on PATH would mislead the one from the wheel; each knows its own.
        inherited = {name: value for name, value in self.environ.items() if name != "GOROOT"}
        own = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-mod=readonly"}
        argv = [str(self.go), "build", "-trimpath", "-ldflags", self.recipe.flags, "-o", str(draft), target.package]
        with log.open("wb") as output:
            return subprocess.Popen(
                argv,
                cwd=self.source,
                env={**inherited, **own},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


def _build(target: Target, missing: Sequence[str], job: _Job, progress: Progress) -> None:
    draft = draft_of(job.folder / target.name)
    log = job.folder / f"{target.name}.build.log"
    begin = time.monotonic()
    targets = job.recipe.targets
    with progress.live(describe(missing, target.name, 0, targets)) as change, job.start(target, draft, log) as process:
        try:
            while process.poll() is None:
                elapsed = time.monotonic() - begin
                if elapsed > BUILD_DEADLINE_SECONDS:
                    raise BuildFailed(f"{target.name} was not built within {BUILD_DEADLINE_SECONDS:g} s; see {log}")
                change(describe(missing, target.name, elapsed, targets))
                _wait(process, POLL_SECONDS)
        finally:
            process.terminate()
            if not _wait(process, TERM_GRACE_SECONDS):
                process.kill()
    if process.returncode != 0:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise BuildFailed(f"building {target.name} failed; the end of {log}:\n{end}")
    draft.replace(job.folder / target.name)
    progress.note(f"built {target.name} in {time.monotonic() - begin:.0f} s")


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
