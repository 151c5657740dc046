"""What the Dockerfile does beside installing: leave out code that nobody uses, list what is in, ask whether it runs.

Stands on the standard library alone, and runs under the image's own Python.

The client library has a module for each kind of the Kubernetes API, twice, 110 MB in all; of these we use a handful.
They are loaded by name when somebody asks, so a module that nobody names is never missed.
"""

import json
import os
import platform
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPException
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Final

CLIENTS: Final = ("kubernetes/client", "kubernetes/aio/client")
"""Packages whose folders ``api`` and ``models`` are generated, a class to a module."""
USERS: Final = ("vmpool/**/*.py", "kopf/**/*.py", "kubernetes/aio/leaderelection/resourcelock/leaselock.py")
"""Sources that ask for such classes: ours, and those that work for us."""
CLASS: Final = re.compile(r"^class (\w+)", re.MULTILINE)
WORD: Final = re.compile(r"\b[A-Z]\w+")
DPKG_STATUS: Final = Path("/var/lib/dpkg/status")
ANSWER_SECONDS: Final = 4.0
PORTS: Final = (("--http-port", "VMPOOL_HTTP_PORT", "8080"), ("--port", "VMPOOL_GATEWAY_PORT", "4567"))
"""Where the operator and the gateway answer: option, variable, and the port when neither says otherwise."""
COMMAND: Final = Path("/proc/1/cmdline")
"""What the container was told to run; an engine's own init repeats it behind its name."""


def unused(site: Path) -> list[Path]:
    """The generated modules below ``site`` that neither our code nor anything it asks for names, sorted.

    A class is asked for when its name occurs in a user's source, or in the source of a class that is asked for: the
    client finds the classes of nested fields by their names at run time.
    """
    asked = {word for user in USERS for path in site.glob(user) for word in WORD.findall(path.read_text())}
    found: list[Path] = []
    for client in CLIENTS:
        texts = {path: path.read_text() for path in _generated(site / client)}
        defines = {name: path for path, text in texts.items() for name in CLASS.findall(text)}
        kept: set[Path] = set()
        waiting = set(asked) & defines.keys()
        while waiting:
            path = defines[waiting.pop()]
            if path not in kept:
                kept.add(path)
                waiting |= set(WORD.findall(texts[path])) & defines.keys()
        found += texts.keys() - kept
    return sorted(found)


def trim(site: Path) -> int:
    """Remove the unused modules, their byte code and their lines in the distributions' lists; return how many."""
    gone = unused(site)
    for path in gone:
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()
        path.unlink()
    names = {path.relative_to(site).as_posix() for path in gone}
    for record in site.glob("kubernetes-*.dist-info/RECORD"):
        lines = record.read_text().splitlines(keepends=True)
        record.write_text("".join(line for line in lines if line.split(",")[0] not in names))
    return len(gone)


def bill_of_materials(site: Path, dpkg_status: str) -> dict[str, Any]:
    """What is in the image, in the form of CycloneDX 1.6: our program, its libraries, Python, the base's packages.

    Without a time and a random number: the same content gives the same bytes.
    """
    ours: dict[str, Any] = {}
    parts = [_python()]
    for found in distributions(path=[str(site)]):
        part = _library(found)
        if part["name"] == "vmpool":
            ours = {**part, "type": "application"}
        else:
            parts.append(part)
    parts += _packages(dpkg_status)
    parts.sort(key=lambda part: part["bom-ref"])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": ours},
        "components": parts,
    }


def ports(environ: Mapping[str, str], command: Sequence[str]) -> list[str]:
    """Where the program of this container may answer, by the words that it was started with and its environment.

    The simulated cloud has no variable for its port, and no usual one: only its options say it.
    """
    if _part_of(command) == "simcloud":
        found = _option(command, "--port")
        if found in ("", "0"):
            file = Path(_option(command, "--port-file") or os.devnull)
            found = file.read_text().strip() if file.exists() else ""
        return [found] if found else []
    return [_option(command, option) or environ.get(variable) or usual for option, variable, usual in PORTS]


def answers(environ: Mapping[str, str], command: Sequence[str] = ()) -> bool:
    """Whether the operator, the gateway or the simulated cloud of this container says that it is well.

    The first one that listens decides; plain HTTP is tried, then TLS, whose certificate names other hosts than this.
    """
    import ssl

    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    for port in ports(environ, command):
        for scheme in ("http", "https"):
            url = f"{scheme}://127.0.0.1:{port}/healthz"
            try:
                with urllib.request.urlopen(url, timeout=ANSWER_SECONDS, context=trust) as answer:  # noqa: S310 - ours
                    return bool(answer.status == 200)
            except urllib.error.HTTPError:
                return False
            except (OSError, HTTPException):
                continue
    return False


def _part_of(command: Sequence[str]) -> str:
    """The word behind ``vmpool``: before it may stand an init, an interpreter and a path."""
    for place, word in enumerate(command[:-1]):
        if Path(word).name == "vmpool":
            return command[place + 1]
    return ""


def _option(command: Sequence[str], name: str) -> str:
    """The value of an option, which stands behind ``=`` or is the next word; the last one counts."""
    found = ""
    for place, word in enumerate(command):
        if word.startswith(f"{name}="):
            found = word.removeprefix(f"{name}=")
        elif word == name:
            found = "".join(command[place + 1 : place + 2])
    return found


def _generated(client: Path) -> list[Path]:
    return [path for part in ("api", "models") for path in (client / part).glob("*.py") if path.stem != "__init__"]


def _python() -> dict[str, Any]:
    return _part("Python", platform.python_version(), f"pkg:generic/python@{platform.python_version()}")


def _library(found: Distribution) -> dict[str, Any]:
    name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
    part = _part(name, found.version, f"pkg:pypi/{name}@{found.version}")
    licences = found.metadata.get_all("License-Expression") or []
    if licences:
        return {**part, "licenses": [{"expression": licences[0]}]}
    named = [line.rsplit(" :: ", 1)[1] for line in found.metadata.get_all("Classifier") or [] if " :: " in line]
    named = [name for name in named if name.endswith("License")]
    return {**part, "licenses": [{"license": {"name": name}} for name in named]} if named else part


def _packages(dpkg_status: str) -> Iterable[dict[str, Any]]:
    for paragraph in dpkg_status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"[A-Z]\S*: ", line))
        if "installed" in fields.get("Status", "").split():
            name, version, kind = fields["Package"], fields["Version"], fields["Architecture"]
            yield _part(name, version, f"pkg:deb/debian/{name}@{version}?arch={kind}")


def _part(name: str, version: str, purl: str) -> dict[str, Any]:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def main(argv: list[str]) -> int:
    """``python -m vmpool.dev.image trim SITE | bom SITE FILE | alive``; 1 when the container does not answer."""
    what, *rest = argv
    if what == "trim":
        sys.stdout.write(f"left out {trim(Path(rest[0]))} modules\n")
    elif what == "bom":
        status = DPKG_STATUS.read_text() if DPKG_STATUS.exists() else ""
        text = json.dumps(bill_of_materials(Path(rest[0]), status), indent=1, sort_keys=True)
        Path(rest[1]).write_text(f"{text}\n")
    elif what == "alive":
        command = COMMAND.read_text().split("\0") if COMMAND.exists() else []
        return 0 if answers(os.environ, command) else 1
    else:
        raise SystemExit(f"unknown: {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
