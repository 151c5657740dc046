"""What the answers of vulnerability services are worth."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from vmpool.dev import audit
from vmpool.dev.audit import CLEAN, UNTRIED, WEAK, Answer, read, verdict

WEAKNESS = {"id": "CVE-2026-1", "fix_versions": ["1.1"], "aliases": [], "description": "bad"}
DOWN = "Traceback\nrequests.exceptions.ConnectionError: nobody is there\n"


def output(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": list(packages), "fixes": []})


GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "1.0", "vulns": [WEAKNESS]}
SKIPPED = {"name": "odd", "skip_reason": "Dependency not found on PyPI and could not be audited: odd (2.0)"}


def test_every_package_known_and_none_weak_is_clean() -> None:
    answer = read("osv", output(GOOD), "")
    assert answer.whole
    assert verdict([answer]) == (CLEAN, ["clean: 1 packages, asked osv"])


def test_a_weakness_fails_whatever_the_others_say() -> None:
    down, bad, good = read("osv", "", DOWN), read("pypi", output(BAD, SKIPPED), ""), read("osv", output(GOOD), "")
    for answers in ([bad], [down, bad], [bad, good], [good, bad]):
        assert verdict(answers) == (WEAK, ["KNOWN WEAKNESS: bad 1.0: CVE-2026-1, fixed in 1.1"])


def test_success_that_knew_nothing_of_a_package_is_not_called_clean() -> None:
    for printed in (output(SKIPPED), output(GOOD, SKIPPED), output()):
        code, lines = verdict([read("pypi", printed, "")])
        assert code == CLEAN
        assert lines[0].startswith("NOT AUDITED")
        assert not any("clean: " in line for line in lines)


def test_no_answer_says_why_and_fails_nothing() -> None:
    answer = read("osv", "", DOWN)
    assert answer.trouble == "requests.exceptions.ConnectionError: nobody is there"
    code, lines = verdict([answer, Answer("pypi", trouble="no answer within 300 s")])
    assert code == CLEAN
    assert lines[0].startswith("NOT AUDITED")
    assert "osv is not reachable from here" in lines[1]
    assert "no answer within 300 s" in lines[2]


@pytest.mark.parametrize(
    ("said", "code", "told"),
    [
        ({"osv": output(GOOD)}, CLEAN, "clean: 1 packages, asked osv"),
        ({"pypi": output(GOOD)}, CLEAN, "clean: 1 packages, asked pypi"),
        ({"osv": output(SKIPPED), "pypi": output(BAD)}, WEAK, "KNOWN WEAKNESS: bad 1.0"),
        ({}, CLEAN, "NOT AUDITED"),
    ],
)
def test_the_next_service_is_asked_where_one_cannot_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    said: dict[str, str], code: int, told: str,
) -> None:  # fmt: skip
    """The program in the place of pip-audit is one: what it is called with is what pip-audit takes."""
    program = tmp_path / "pip-audit"
    program.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"said = {said!r}\n"
        "assert {'--require-hashes', '--disable-pip', '--format=json'} < set(sys.argv), sys.argv\n"
        "service = sys.argv[-1].removeprefix('--vulnerability-service=')\n"
        "sys.exit('nobody is there') if service not in said else print(said[service])\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv(audit.VARIABLE, str(program))
    file = tmp_path / "runtime.txt"
    assert audit.main([str(file)]) == UNTRIED
    file.write_text("good==1.0\n")
    assert audit.main([str(file)]) == code
    assert f"{file}: {told}" in capsys.readouterr().err


def test_without_the_program_it_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(audit.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert audit.main(["requirements/runtime.txt"]) == UNTRIED
    assert "make audit sets it up" in capsys.readouterr().err
