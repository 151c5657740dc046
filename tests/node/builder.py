"""Carries a Dockerfile out without a container engine: a layer of files for each step, by overlays and chroot.

As an engine does, it keeps each layer under a hash of all that went in, so that only what changed is done again. Root
and Linux are needed. Steps that run may use the network, with this machine's settings of pip, which do not stay.
"""

import fnmatch
import hashlib
import json
import os
import shlex
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.node.dockerfile import Stage, Step

RUN_TIMEOUT_SECONDS = 900
LAYERS_KEPT = 24
"""So many layers stay in the cache, the latest used; one of ours is at most 110 MB."""
INHERITED = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Of the machine only devices, names and certificates, each over a file of the base that it hides for the while.
ENTER = """
set -eu
mount -t overlay overlay -o "lowerdir=$LOWERS,upperdir=$UPPER,workdir=$WORK" "$ROOT"
mount --rbind /dev "$ROOT/dev"
mount -t proc proc "$ROOT/proc"
mount --bind /etc/resolv.conf "$ROOT/etc/resolv.conf"
mount --bind "$CERTIFICATES" "$ROOT/etc/ssl/certs/ca-certificates.crt"
exec chroot "$ROOT" /usr/bin/env -i PATH="$INNER_PATH" HOME=/root "$@"
"""
TAKE = """
set -eu
mount -t overlay overlay -o "lowerdir=$LOWERS,upperdir=$UPPER,workdir=$WORK" "$ROOT"
exec cp -a --no-target-directory "$ROOT$1" "$2"
"""


@dataclass(frozen=True)
class Layer:
    """Files of one step, and the hash of all that led to them."""

    key: str
    files: Path


@dataclass
class _State:
    """Where a stage has come to."""

    layers: list[Layer]
    folder: str = "/"
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def lowers(self) -> str:
        """As overlayfs wants them: the last one first."""
        return ":".join(str(layer.files) for layer in reversed(self.layers))


class Builder:
    """Builds stages of one context over one base."""

    def __init__(self, context: Path, base: Layer, cache: Path, tell: Callable[[str], None]) -> None:
        self._context = context
        self._base = base
        self._cache = cache
        self._tell = tell
        self._done: dict[str, _State] = {}

    def build(self, stages: list[Stage]) -> list[Layer]:
        """The layers of the last stage, the base first. Raises AssertionError with the output of a step that fails."""
        self._cache.mkdir(parents=True, exist_ok=True)
        state = _State([self._base])
        for stage in stages:
            state = _State([self._base])
            for step in stage.steps:
                self._apply(step, state)
            if stage.name:
                self._done[stage.name] = state
        self._forget()
        return state.layers

    def _apply(self, step: Step, state: _State) -> None:
        if step.word == "ENV":
            state.environment |= dict(item.split("=", 1) for item in shlex.split(step.text))
        elif step.word == "WORKDIR":
            state.folder = step.text
            self._add(state, step, "", lambda draft: _below(draft, step.text).mkdir(parents=True))
        elif step.word == "COPY":
            self._copy(step, state)
        elif step.word == "RUN":
            self._add(state, step, "", lambda draft: self._run(step, state, draft))

    def _add(self, state: _State, step: Step, content: str, make: Callable[[Path], None]) -> None:
        told = [state.layers[-1].key, step.word, step.text, state.folder, state.environment, content]
        key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
        files = self._cache / key
        if not files.exists():
            self._tell(f"image: {step.word} {step.text[:70]}")
            draft = self._cache / f".{key}.draft"
            shutil.rmtree(draft, ignore_errors=True)
            (draft / "files").mkdir(parents=True)
            make(draft)
            (draft / "files").rename(files)
            shutil.rmtree(draft)
        # The time of its last use: those used longest ago are forgotten.
        os.utime(files)
        state.layers.append(Layer(key, files))

    def _copy(self, step: Step, state: _State) -> None:
        *sources, target = shlex.split(step.text)
        target = os.path.join(state.folder, target)
        if sources[0].startswith("--from="):
            other, (source,) = self._done[sources[0].removeprefix("--from=")], sources[1:]

            def take(draft: Path) -> None:
                into = _below(draft, target)
                into.parent.mkdir(parents=True)
                _inside(TAKE, [source, str(into)], other.lowers, draft / "taken", {})

            self._add(state, step, other.layers[-1].key, take)
            return
        found = sorted(path for source in sources for path in self._taken(source))
        digest = hashlib.sha256()
        for path in found:
            digest.update(f"{path.relative_to(self._context)} {path.stat().st_mode:o}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())

        def put(draft: Path) -> None:
            for path in found:
                inner = path.relative_to(self._context)
                # A folder's content is copied, not the folder: `COPY operator operator`.
                name = Path(*inner.parts[1:]) if (self._context / sources[0]).is_dir() else inner
                into = _below(draft, target) / name
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, into)

        self._add(state, step, digest.hexdigest(), put)

    def _taken(self, source: str) -> Iterator[Path]:
        rules = (self._context / ".dockerignore").read_text().split()
        start = self._context / source
        for path in start.rglob("*") if start.is_dir() else [start]:
            if path.is_file() and not ignored(path.relative_to(self._context), rules):
                yield path

    def _run(self, step: Step, state: _State, draft: Path) -> None:
        own = [f"{name}={value}" for name, value in {**_network(), **state.environment}.items()]
        command = [*own, "/bin/sh", "-c", f"cd {shlex.quote(state.folder)} && {step.text}"]
        path = state.environment.get("PATH", PATH)
        _inside(ENTER, command, state.lowers, draft, {"INNER_PATH": path, "CERTIFICATES": _certificates()})

    def _forget(self) -> None:
        for old in sorted(self._cache.iterdir(), key=lambda path: path.stat().st_mtime)[:-LAYERS_KEPT]:
            shutil.rmtree(old)


def ignored(path: Path, rules: list[str]) -> bool:
    """Whether the rules of a .dockerignore leave a file out: the last rule that matches it or a parent decides."""
    names = ["/".join(path.parts[: end + 1]) for end in range(len(path.parts))]
    out = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        # `**/` stands for any number of folders, none included; a plain pattern does not cross a slash.
        deep = pattern.removeprefix("**/")
        if any(
            fnmatch.fnmatch(name.rsplit("/", 1)[-1], deep)
            if deep != pattern
            else name.count("/") == pattern.count("/") and fnmatch.fnmatch(name, pattern)
            for name in names
        ):
            out = not rule.startswith("!")
    return out


def _inside(script: str, arguments: list[str], lowers: str, draft: Path, environment: Mapping[str, str]) -> None:
    """Run a script in a mount namespace of its own, with the files of ``draft`` as the layer that is written."""
    folders = {"UPPER": draft / "files", "WORK": draft / "work", "ROOT": draft / "root"}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    told = {name: str(folder) for name, folder in folders.items()} | {"LOWERS": lowers, "PATH": PATH, **environment}
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", script, "sh", *arguments],
        env=told,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=RUN_TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, f"{' '.join(arguments)[-500:]} ended with {done.returncode}:\n{done.stdout[-4000:]}"


def _below(draft: Path, path: str) -> Path:
    return draft / "files" / path.lstrip("/")


def _network() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name in INHERITED or name.startswith("PIP_")}


def _certificates() -> str:
    found = ssl.get_default_verify_paths()
    path = os.environ.get("PIP_CERT") or found.cafile or found.openssl_cafile
    return os.path.realpath(path)
