"""Writing dead letters: what they say, what the server's refusals mean, and the rate.

The API server is a stand-in here: only its answers matter. Letters on the real one are tested with the operator.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from vmpool.api.pool import Failure, VMPoolSpec, VMPoolStatus
from vmpool.engine import letters, pace
from vmpool.engine.letters import Letters, letter
from vmpool.engine.sights import Sights
from vmpool.engine.world import Refusal
from vmpool.kube.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    KubeError,
    NamespaceTerminating,
    NotFound,
    OutcomeUnknown,
    Unreachable,
)
from vmpool.plan.letters import letter_name
from vmpool.plan.lifecycle import Phase
from vmpool.plan.policies import Queue
from vmpool.plan.snapshot import VM, ClaimFacts, PoolFacts, StepFacts
from vmpool.settings import Settings
from vmpool.telemetry.metrics import Metrics

NOW = datetime(2030, 1, 1, tzinfo=UTC)
FAILED_AT = "2030-01-01T00:00:00.000000Z"
SPEC = {
    "template": {"image": "debian-12"},
    "providers": [{"name": "east"}],
    "aliases": ["deb", "linux"],
    "deadLetterQueue": "failures",
}
POOL = PoolFacts("pool-uid", "ci", "debian", 1, VMPoolSpec.model_validate(SPEC), VMPoolStatus())
RETRIED = StepFacts("create", started_at=NOW, retries=2, next_at=NOW, reason="Throttled", message="too many requests")
MACHINE = VM(
    "vm-uid", "ci", "debian-a", "1", NOW, "debian", "pool-uid", "east", request_id="req-1", retry_count=3,
    digest="v1:x", machine_id="m-1", steps=(RETRIED,),
)  # fmt: skip
QUEUE = {"namespace": "ci", "dead_letter_queue": "failures", "queue": "pending"}
FAILURE = Failure(
    vm="debian-a", provider="east", step="boot", error_class="PendingTimeout", message="not ready", failed_at=NOW
)


class Box:
    """Letters into a stand-in that answers each create with what the test says."""

    def __init__(self, *answers: Callable[[], Any], **settings: Any) -> None:
        self.answers = list(answers)
        self.bodies: list[dict[str, Any]] = []
        self.console = ("login:", "")
        self.there = MACHINE.uid
        """The uid of the VM that the letter which is there already is of."""
        self.now: VM | None = MACHINE
        """The VM as it is when its letter's turn has come."""
        self.metrics = Metrics()
        world: Any = SimpleNamespace(
            settings=Settings(**settings),
            metrics=self.metrics,
            client=SimpleNamespace(create=self._create),
            letters=SimpleNamespace(saw=lambda _: None, quorum_get=self._get),
            vm=lambda _: self.now,
            sights=Sights(),
            views={("ci", "east"): SimpleNamespace(console=self._console)},
        )
        self.letters = Letters(world)

    async def _create(self, _: Any, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        assert namespace == "ci"
        self.bodies.append(body)
        return self.answers.pop(0)() if self.answers else body

    async def _get(self, namespace: str, _: str) -> dict[str, Any]:
        assert namespace == "ci"
        return {"spec": {"vmUid": self.there}}

    async def _console(self, machine_id: str, _: timedelta) -> tuple[str, str]:
        assert machine_id == "m-1"
        return self.console

    def lost(self) -> float:
        value = self.metrics.registry.get_sample_value("vmpool_failure_records_refused_total")
        return value or 0.0


def fail(error: Exception) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


async def test_a_letter_has_the_fields_of_the_guide_and_what_was_found_out() -> None:
    box = Box()
    assert await box.letters.write(POOL, MACHINE, FAILURE) is True
    (body,) = box.bodies
    assert body["metadata"]["name"] == "debian-a-pending-1"
    spec = body["spec"]
    guide = (
        "vm",
        "pool",
        "queueFrom",
        "errorClass",
        "errorMessage",
        "failedAt",
        "retryCount",
        "requestId",
        "poolAlias",
    )
    told = ["debian-a", "debian", "pending", "PendingTimeout", "not ready", FAILED_AT, 3, "req-1", "deb"]
    assert [spec[field] for field in guide] == told
    assert [one["reason"] for one in spec["attempts"]] == ["Throttled", "PendingTimeout"]
    assert spec["diagnostics"]["console"] == "login:"
    assert spec["diagnostics"]["machine"] == "machine m-1"
    labels = body["metadata"]["labels"]
    assert labels["vmpool.dev/queue"] == "pending"
    assert labels["vmpool.dev/fingerprint"] == spec["fingerprint"]


@pytest.mark.parametrize(
    ("vm", "step", "queue"),
    [
        (MACHINE, "create", "clone"),
        (MACHINE, "adopt", "clone"),
        (MACHINE, "boot", "pending"),
        (replace(MACHINE, phase=Phase.READY), "probe", "ready"),
        (replace(MACHINE, phase=Phase.COMPLETED), "destroy", "tasks"),
    ],
)
def test_the_queue_is_where_the_vm_was(vm: VM, step: str, queue: str) -> None:
    failure = FAILURE.model_copy(update={"step": step})
    body = letter(POOL, vm, failure, letters.Diagnostics())
    assert body["spec"]["queueFrom"] == queue
    assert body["metadata"]["name"] == f"debian-a-{queue}-1"


async def test_a_letter_that_is_there_already_is_the_same_one() -> None:
    box = Box(fail(AlreadyExists("there", status=409)))
    assert await box.letters.write(POOL, MACHINE, FAILURE) is False
    assert box.lost() == 0
    assert box.metrics.registry.get_sample_value("vmpool_dead_letters_written_total", QUEUE) is None


async def test_a_letter_of_an_earlier_vm_of_the_same_name_is_another_one() -> None:
    """Seed 83668: the successor of a redrive was made twice, under one name, and the second failure had no letter."""
    box = Box(fail(AlreadyExists("there", status=409)))
    box.there = "uid-of-the-first"
    assert await box.letters.write(POOL, MACHINE, FAILURE) is True
    names = {body["metadata"]["name"] for body in box.bodies}
    assert names == {letter_name(MACHINE, Queue.PENDING, apart=True)}, "the body is one, renamed"
    box = Box(*[fail(AlreadyExists("there", status=409))] * letters.UNKNOWN_TRIES)
    box.there = "uid-of-the-first"
    with pytest.raises(KubeError):
        await box.letters.write(POOL, MACHINE, FAILURE)


async def test_a_create_without_an_answer_is_sent_again() -> None:
    box = Box(fail(OutcomeUnknown("cut")), fail(AlreadyExists("there", status=409)))
    assert await box.letters.write(POOL, MACHINE, FAILURE) is True, "it is the one without an answer"
    assert len(box.bodies) == 2
    box = Box(*[fail(OutcomeUnknown("cut"))] * letters.UNKNOWN_TRIES)
    with pytest.raises(KubeError, match="no answer"):
        await box.letters.write(POOL, MACHINE, FAILURE)


@pytest.mark.parametrize(
    "error",
    [
        NamespaceTerminating("the namespace is being deleted", status=403),
        NotFound("no such kind", status=404),
        KubeError("not allowed", status=405),
        KubeError("too large", status=413),
        Invalid("bad field", status=422),
    ],
)
async def test_a_refusal_for_good_is_logged_whole_and_counted_and_the_work_goes_on(
    error: KubeError, capsys: pytest.CaptureFixture[str]
) -> None:
    box = Box(fail(error))
    refusal = await box.letters.write(POOL, MACHINE, FAILURE)
    assert isinstance(refusal, Refusal)
    assert error.message in refusal.message
    assert box.lost() == 1
    printed = capsys.readouterr().out
    assert "dead_letter_refused" in printed
    assert "PendingTimeout" in printed
    assert "req-1" in printed


@pytest.mark.parametrize("error", [Unreachable("down"), Forbidden("a quota", status=403), KubeError("?", status=500)])
async def test_what_may_pass_is_raised_so_that_nothing_ends_yet(error: KubeError) -> None:
    box = Box(fail(error))
    with pytest.raises(type(error)):
        await box.letters.write(POOL, MACHINE, FAILURE)
    assert box.lost() == 0


async def test_a_thousand_failures_at_once_are_written_at_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    box, pauses = Box(letters_per_second=100.0), []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(pace.asyncio, "sleep", noted)
    await asyncio.gather(*(box.letters.write(POOL, MACHINE, FAILURE) for _ in range(200)))
    assert len(box.bodies) == 200
    assert max(pauses) == pytest.approx(199 / 100, rel=0.2)


async def test_a_long_console_is_cut_to_its_end_and_what_is_missing_is_said() -> None:
    box = Box()
    box.console = ("x" * 10_000 + "panic", "")
    await box.letters.write(POOL, MACHINE, FAILURE)
    text = box.bodies[0]["spec"]["diagnostics"]["console"]
    assert text.endswith("panic")
    assert len(text) <= 4096
    box.console = ("", "its provider shows no console")
    await box.letters.write(POOL, MACHINE, FAILURE)
    assert box.bodies[1]["spec"]["diagnostics"]["missing"] == "its provider shows no console"


@pytest.mark.parametrize(
    "now",
    [
        None,
        replace(MACHINE, phase=Phase.READY),
        replace(MACHINE, attempt=2),
        replace(MACHINE, claim=ClaimFacts("one", "alice", NOW + timedelta(hours=1))),
    ],
    ids=["gone", "ready", "redriven", "claimed"],
)
async def test_a_vm_that_moved_on_while_its_letter_waited_has_none(now: VM | None) -> None:
    box = Box()
    box.now = now
    with pytest.raises(Conflict):
        await box.letters.write(POOL, MACHINE, FAILURE)
    assert box.bodies == []


async def test_a_pool_whose_letters_are_refused_for_now_uses_up_nobodys_rate() -> None:
    box = Box(fail(Forbidden("a quota", status=403)), error_pause_seconds=60.0)
    for _ in range(50):
        with pytest.raises(KubeError, match="a quota"):
            await box.letters.write(POOL, MACHINE, FAILURE)
    assert len(box.bodies) == 1
    other = replace(POOL, uid="other-uid")
    assert await box.letters.write(other, MACHINE, FAILURE) is True


async def test_consoles_of_a_crowd_are_left_out_and_never_waited_for() -> None:
    box, gate = Box(diagnostics_in_flight=2), asyncio.Event()

    async def slow(_: str, __: timedelta) -> tuple[str, str]:
        await gate.wait()
        return "login:", ""

    box.letters._world.views["ci", "east"].console = slow  # type: ignore[method-assign]
    writes = [asyncio.create_task(box.letters.write(POOL, MACHINE, FAILURE)) for _ in range(5)]
    done, waiting = await asyncio.wait(writes, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 3:
        more, waiting = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert more, "those without a console do not wait for those with one"
        done |= more
    assert len(waiting) == 2
    gate.set()
    await asyncio.gather(*writes)
    missing = [body["spec"]["diagnostics"].get("missing", "") for body in box.bodies]
    assert sum("too many" in one for one in missing) == 3
