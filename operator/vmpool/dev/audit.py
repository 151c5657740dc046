"""Ask whether a pinned package has a known weakness: ``python -m vmpool.dev.audit requirements/*.txt``.

``pip-audit`` asks; what its answers are worth is judged here, for it ends with success also when its service knew none
of the packages. Exit codes: 0 clean, or nobody could be asked; 1 a known weakness; 2 it could not be tried.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SERVICES: Final = ("osv", "pypi")
"""Asked in this order; the next one only where one cannot tell of every package."""
SECONDS: Final = 300.0
"""How long one service may take for one file."""
VARIABLE: Final = "VMPOOL_PIP_AUDIT"
CLEAN, WEAK, UNTRIED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Answer:
    """What one service said of one file of requirements."""

    service: str
    known: frozenset[str] = frozenset()
    """Packages that it has looked at."""
    unknown: frozenset[str] = frozenset()
    """Packages that it could not tell anything about."""
    weaknesses: tuple[str, ...] = ()
    trouble: str = ""
    """Why there is no answer at all."""

    @property
    def whole(self) -> bool:
        """Whether it has told of every package."""
        return bool(self.known) and not self.unknown and not self.trouble


def read(service: str, output: str, trouble: str) -> Answer:
    """Return what ``pip-audit`` has printed as JSON; ``trouble`` is its standard error, for when that is nothing."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (json.JSONDecodeError, KeyError, TypeError):
        lines = [line.strip() for line in trouble.splitlines() if line.strip()]
        return Answer(service, trouble=lines[-1][:300] if lines else "it has said nothing")
    return Answer(
        service,
        known=frozenset(_label(one) for one in packages if "vulns" in one),
        unknown=frozenset(_label(one) for one in packages if "vulns" not in one),
        weaknesses=tuple(_weakness(one, found) for one in packages for found in one.get("vulns", ())),
    )


def verdict(answers: Sequence[Answer]) -> tuple[int, list[str]]:
    """Return the exit code and the lines that say why, for all answers about one file."""
    found = sorted({weakness for answer in answers for weakness in answer.weaknesses})
    if found:
        return WEAK, [f"KNOWN WEAKNESS: {one}" for one in found]
    whole = next((answer for answer in answers if answer.whole), None)
    if whole is not None:
        return CLEAN, [f"clean: {len(whole.known)} packages, asked {whole.service}"]
    looked_at = frozenset[str]().union(*(answer.known for answer in answers))
    lines = [f"NOT AUDITED: no service could tell of every package; {len(looked_at)} are known to be clean"]
    for one in answers:
        why = one.trouble or f"it knows nothing of {len(one.unknown)} packages"
        lines.append(f"  {one.service} is not reachable from here, or of no use: {why}")
    return CLEAN, lines


def main(files: Sequence[str]) -> int:
    """Audit the files, say what was found, and return the exit code."""
    program = os.environ.get(VARIABLE) or shutil.which("pip-audit")
    if not files or program is None:
        _say("no pip-audit here: make audit sets it up" if files else "name files of requirements")
        return UNTRIED
    codes = []
    for file in files:
        if not Path(file).is_file():
            _say(f"{file}: there is no such file")
            return UNTRIED
        code, lines = verdict(_asked(program, Path(file)))
        codes.append(code)
        for line in lines:
            _say(f"{file}: {line}")
    return max(codes)


def _asked(program: str, file: Path) -> list[Answer]:
    answers: list[Answer] = []
    for service in SERVICES:
        answers.append(_ask(program, service, file))
        if answers[-1].whole:
            break
    return answers


def _ask(program: str, service: str, file: Path) -> Answer:
    # Without pip: the files are pinned with all that they need, and nothing has to be resolved or fetched.
    argv = [program, f"--requirement={file}", "--require-hashes", "--disable-pip", "--format=json"]
    argv += ["--progress-spinner=off", f"--vulnerability-service={service}"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return Answer(service, trouble=f"no answer within {SECONDS:g} s")
    return read(service, done.stdout, done.stderr)


def _label(package: dict[str, Any]) -> str:
    return f"{package['name']} {package.get('version', '')}".strip()


def _weakness(package: dict[str, Any], found: dict[str, Any]) -> str:
    fixed = ", ".join(found.get("fix_versions") or ()) or "no version yet"
    return f"{_label(package)}: {found['id']}, fixed in {fixed}"


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
