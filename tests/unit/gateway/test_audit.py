"""The audit: one line for one act, with who and what, whatever the log level is, and without secrets."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from aiohttp.test_utils import make_mocked_request

from tests.objects import claim
from tests.objects import vm as vm_object
from tests.unit.gateway.frames import gateway_of
from vmpool.engine.facts import vm_facts
from vmpool.gateway import audit
from vmpool.gateway.auth.caller import Caller, rest_identity
from vmpool.gateway.context import Call
from vmpool.plan.snapshot import VM
from vmpool.telemetry import logs

TOKEN = "t0ken-of-ada"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The tests set up the logs of a process; afterwards they are as they were."""
    root, own = logging.getLogger(), logging.getLogger(audit.LOGGER)
    handlers, level, own_level = list(root.handlers), root.level, own.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    own.setLevel(own_level)
    structlog.reset_defaults()


def bound() -> VM:
    made: dict[str, Any] = vm_object("web-a", claim=claim("claim-1", owner="vmpool:ada"))
    made["metadata"] |= {"uid": "uid-1", "namespace": "ci", "resourceVersion": "7"}
    return vm_facts(made)


async def lines(capsys: pytest.CaptureFixture[str], level: str = "info", **own: Any) -> list[dict[str, Any]]:
    """What stands in the log after one release."""
    logs.configure("json", level)
    gateway, _ = gateway_of(**own)
    await gateway.client.close()
    if gateway.own.audit:
        audit.listen()
    request = make_mocked_request("DELETE", "/api/v3/vm/web-a", headers={"X-AUTH-TOKEN": TOKEN})
    call = Call(gateway, request, "request-1", "192.0.2.7", Caller(rest_identity("ada"), "token-1"))
    audit.record(call, "release", bound(), reason="Released")
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize("level", ["info", "error"])
async def test_a_line_says_who_did_what_to_which(capsys: pytest.CaptureFixture[str], level: str) -> None:
    (line,) = await lines(capsys, level)
    assert {name: line[name] for name in line if name not in ("timestamp", "logger", "level")} == {
        "event": "audit",
        "action": "release",
        "user": "vmpool:ada",
        "login": "ada",
        "token_id": "token-1",
        "address": "192.0.2.7",
        "request_id": "request-1",
        "vm": "web-a",
        "namespace": "ci",
        "pool": "web",
        "claim_id": "claim-1",
        "reason": "Released",
    }
    assert TOKEN not in json.dumps(line)


async def test_without_the_setting_there_is_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert await lines(capsys, audit=False) == []
