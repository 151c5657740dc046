"""``vmpool dlq`` against a real API server."""

import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.api import Api
from tests.commands import Run, command
from tests.objects import FULL_SPECS, thing
from vmpool.dev.plane import ControlPlane

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("crds_installed")]

LETTERS: dict[str, dict[str, Any]] = {
    "web-a-clone-1": {"queueFrom": "clone", "errorClass": "InvalidTemplate", "fingerprint": "aaaaaaaaaaaa"},
    "web-b-clone-1": {"queueFrom": "clone", "errorClass": "InvalidTemplate", "fingerprint": "aaaaaaaaaaaa"},
    "db-c-ready-1": {"queueFrom": "ready", "pool": "db", "fingerprint": "bbbbbbbbbbbb", "requestId": "req-abc123"},
}


@pytest.fixture
async def letters(api: Api, namespace: str) -> str:
    """Three letters of two causes and two pools."""
    for number, (name, changes) in enumerate(LETTERS.items()):
        spec = {
            **FULL_SPECS["deadletters"],
            "queue": "failures",
            "failedAt": f"2026-01-0{number + 1}T00:00:00.000000Z",
            **changes,
        }
        del spec["action"]
        (await api.kind("deadletters", namespace).create(thing("DeadLetter", name, spec))).ok()
    return namespace


@pytest.fixture
def run(plane: ControlPlane, namespace: str) -> Run:
    return command(plane, before=("dlq",), after=("-n", namespace))


async def actions(api: Api, namespace: str) -> dict[str, str | None]:
    found = (await api.kind("deadletters", namespace).list()).ok()["items"]
    return {one["metadata"]["name"]: one["spec"].get("action") for one in found}


def test_the_list_is_newest_first_and_narrows(run: Run, letters: str) -> None:
    assert run("list", "-o", "name").stdout.split() == ["db-c-ready-1", "web-b-clone-1", "web-a-clone-1"]
    assert run("list", "-o", "name", "--request", "req-abc123").stdout.split() == ["db-c-ready-1"]
    assert run("list", "-o", "name", "--from", "clone", "--pool", "web").stdout.split() == [
        "web-b-clone-1",
        "web-a-clone-1",
    ]
    table = run("list").stdout
    assert "InvalidTemplate" in table
    assert "was not ready within 15m" in table
    assert run("list", "--pool", "none").stdout == "no dead letters\n"


def test_failures_that_are_alike_are_one_line_with_their_number(run: Run, letters: str) -> None:
    head, first, second = run("list", "--group").stdout.splitlines()
    assert head.split() == ["TIMES", "FINGERPRINT", "QUEUE", "CAUSE", "MESSAGE"]
    assert first.split()[:2] == ["2", "aaaaaaaaaaaa"]
    assert second.split()[:2] == ["1", "bbbbbbbbbbbb"]


def test_a_letter_is_shown_whole(run: Run, letters: str) -> None:
    told = run("show", "db-c-ready-1").stdout
    for part in ("PendingTimeout", "req-abc123", "machine-1", "login:", "task-7", "bbbbbbbbbbbb", "2026-01-03"):
        assert part in told
    refused = run("show", "nothing", code=1)
    assert f"there is no DeadLetter nothing in namespace {letters}" in refused.stderr


async def test_actions_are_asked_for_by_name_and_by_what_letters_have_in_common(
    run: Run, api: Api, letters: str
) -> None:
    unserved = "note: there is no DeadLetterQueue failures: nothing is done for its letters until there is\n"
    assert run("redrive", "--fingerprint", "aaaaaaaaaaaa").stdout == f"redrive asked for 2 letters\n{unserved}"
    (await api.kind("deadletterqueues", letters).create(thing("DeadLetterQueue", "failures", {}))).ok()
    assert run("discard", "db-c-ready-1").stdout == "discard asked for 1 letter\n"
    assert await actions(api, letters) == {
        "web-a-clone-1": "redrive",
        "web-b-clone-1": "redrive",
        "db-c-ready-1": "discard",
    }


async def test_a_letter_that_was_answered_is_asked_for_anew(run: Run, api: Api, letters: str) -> None:
    kind = api.kind("deadletters", letters)

    async def generation() -> int:
        return int((await kind.get("web-a-clone-1")).ok()["metadata"]["generation"])

    run("redrive", "web-a-clone-1")
    asked = await generation()
    run("redrive", "web-a-clone-1")
    assert await generation() == asked, "it waits already"
    answer = {"status": {"phase": "NotNeeded", "observedGeneration": asked}}
    (await kind.merge("web-a-clone-1", answer, "status")).ok()
    run("redrive", "web-a-clone-1")
    assert await generation() > asked
    assert (await actions(api, letters))["web-a-clone-1"] == "redrive"


async def test_what_nobody_chose_is_never_acted_on(run: Run, api: Api, letters: str) -> None:
    assert "one of the two" in run("discard", code=2).stdout
    assert "one of the two" in run("discard", "web-a-clone-1", "--pool", "web", code=2).stdout
    assert "no letter" in run("discard", "--pool", "none", code=1).stderr
    assert "there is no DeadLetter nothing" in run("redrive", "nothing", code=1).stderr
    assert set((await actions(api, letters)).values()) == {None}


def test_a_copy_holds_every_letter_whole(run: Run, letters: str, tmp_path: Path) -> None:
    run("archive", str(tmp_path / "copy.jsonl.gz"))
    lines = gzip.decompress((tmp_path / "copy.jsonl.gz").read_bytes()).splitlines()
    assert {orjson.loads(line)["metadata"]["name"] for line in lines} == set(LETTERS)
    assert len(run("archive", "-").stdout.splitlines()) == 3
    assert "No such file" in run("archive", str(tmp_path / "none" / "copy.jsonl"), code=1).stdout
