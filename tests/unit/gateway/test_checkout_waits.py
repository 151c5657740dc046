"""What a checkout waits for and how that ends; what is kept for a repetition; what is left when the process ends."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.unit.gateway.frames import gateway_of, served
from tests.unit.gateway.test_checkout_picking import LOST, FarSide, ask, stock, wishes
from tests.unit.gateway.things import fact, held, put_claim, put_pool, put_vm, stored
from tests.waiting import until
from vmpool.gateway import checkout, claims_waiting
from vmpool.gateway.auth.caller import ANONYMOUS, Caller
from vmpool.gateway.claims_waiting import PAUSE_SECONDS
from vmpool.gateway.context import Call, Gateway
from vmpool.gateway.picking import Attempt, NotGot, Wish
from vmpool.gateway.vmwire import short
from vmpool.kube.errors import OutcomeUnknown
from vmpool.plan.demand import demand
from vmpool.plan.snapshot import VM, PoolFacts

WISH = {"metadata": {"name": "wish", "namespace": "ci"}, "spec": {"requests": [{"pool": "web", "count": 1}]}}
TURNS = 50
"""Turns of the event loop in which everything that can go on has gone on."""


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made, _ = gateway_of(checkout_wait_seconds=5.0)
    put_pool(made, "web")
    put_pool(made, "db")
    yield made
    await made.client.close()


@pytest.fixture
def far(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> FarSide:
    made = FarSide(gateway)
    made.held_back.set()
    monkeypatch.setattr(gateway.client, "patch_merge", made.patch_merge)
    monkeypatch.setattr(gateway.client, "get", made.get)
    return made


async def let_go_on() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


def attempt(gateway: Gateway, wanted: Sequence[Wish]) -> Attempt:
    call = Call(gateway, None, "request", "127.0.0.1")  # type: ignore[arg-type]
    return Attempt(gateway, wanted, checkout._claims(call, ANONYMOUS, list(wanted), ""))


# --- requests with a key ------------------------------------------------------------------------------------------


def listed(gateway: Gateway, far: FarSide) -> Callable[..., AsyncIterator[Any]]:
    """Lists what has been claimed on the far side by the id of the claim."""

    async def pages(*_: Any, field_selector: str) -> AsyncIterator[Any]:
        claim_id = field_selector.removeprefix("spec.claim.id=")
        claims: Iterable[tuple[str, Mapping[str, Any]]] = far.objects.items()
        yield SimpleNamespace(items=[_raw(gateway, name, c) for name, c in claims if c["id"] == claim_id])

    return pages


def _raw(gateway: Gateway, name: str, claim: Mapping[str, Any]) -> Any:
    vm = fact(gateway, name)
    spec = {"pool": vm.pool, "poolUid": vm.pool_uid, "provider": "sim", "hostName": vm.host_name, "claim": claim}
    return stored({"metadata": {"name": name}, "spec": spec, "status": {"phase": "Ready"}}, vm.uid)


@pytest.mark.parametrize("trouble", [LOST, OutcomeUnknown("cut off")])
async def test_what_a_repetition_can_find_is_never_given_back(
    gateway: Gateway, far: FarSide, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    monkeypatch.setattr(gateway.client, "list_pages", listed(gateway, far))
    stock(gateway, web=1, db=1)
    put_vm(gateway, "spare", "db", phase="Pending")

    def fail_once(name: str) -> None:
        if name == "db-0":
            gateway.vms.saw_deleted("uid-db-0")
            raise trouble

    far.before = fail_once
    async with served(*checkout.ROUTES, gateway=gateway) as client:

        async def post() -> tuple[int, Any]:
            answer = await client.post("/api/v3/vm", json={"web": 1, "db": 1}, headers={"Idempotency-Key": "one"})
            return answer.status, await answer.json()

        status, body = await post()
        assert status == 503
        assert "the same Idempotency-Key" in body["error"]
        assert "none is handed out" not in body["error"]
        put_vm(gateway, "spare", "db", hostName="spare.example.com")
        status, body = await post()
        assert (status, short(body["web"]["hostname"]), short(body["db"]["hostname"])) == (200, "web-0", "spare")
        await gateway.followups.settle(5.0)
    assert far.released == []


# --- waiting for others -------------------------------------------------------------------------------------------


async def test_two_that_wait_do_not_wake_each_other(gateway: Gateway, far: FarSide) -> None:
    stock(gateway, web=2)
    far.held_back.clear()
    holder = asyncio.create_task(attempt(gateway, wishes(gateway, web=1)).run())
    await until(lambda: len(far.claims) == 1)
    tries, reserve = 0, gateway.picker.reserve

    def counted(wanted: Sequence[Wish]) -> list[VM]:
        nonlocal tries
        tries += 1
        return reserve(wanted)

    gateway.picker.reserve = counted  # type: ignore[method-assign]
    waiting = [asyncio.create_task(attempt(gateway, wishes(gateway, web=2)).run()) for _ in range(2)]
    await let_go_on()
    assert tries == 2
    far.held_back.set()
    assert len(await holder) == 1
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, NotGot)
    assert gateway.picker._reserved == {}


async def test_who_is_told_no_waits_no_longer_for_a_turn_to_write(gateway: Gateway, far: FarSide) -> None:
    gateway.own = gateway.own.model_copy(update={"checkout_wait_seconds": 0.1})
    gateway.picker.slots = asyncio.Semaphore(1)
    stock(gateway, web=3, db=2)
    far.held_back.clear()
    answers = await asyncio.gather(ask(gateway, "/web"), ask(gateway, "/web+web"), ask(gateway, "/db+db"))
    assert [status for status, _ in answers] == [503, 503, 503]
    # What is being written is not cut; all else is over though the API server still says nothing.
    await until(lambda: len(gateway.followups._tasks) == 1)
    assert len(far.claims) == 1
    assert sum(gateway.picker._reserved.values()) == 1
    far.held_back.set()
    await until(lambda: far.released == far.claims)
    assert len(far.claims) == 1
    async with gateway.picker.slots:
        assert gateway.picker.slots.locked()


async def test_who_is_told_no_waits_no_longer_for_others_vms(gateway: Gateway, far: FarSide) -> None:
    gateway.own = gateway.own.model_copy(update={"checkout_wait_seconds": 0.1})
    stock(gateway, web=1)
    far.held_back.clear()
    assert [status for status, _ in await asyncio.gather(ask(gateway, "/web"), ask(gateway, "/web"))] == [503, 503]
    await until(lambda: len(gateway.followups._tasks) == 1)
    far.held_back.set()
    await until(lambda: far.released == ["web-0"])


async def test_finding_out_who_may_claim_is_part_of_the_time(gateway: Gateway, far: FarSide) -> None:
    gateway.own = gateway.own.model_copy(update={"checkout_wait_seconds": 0.1})
    stock(gateway, web=1)
    asked = []

    async def mute(caller: Caller, pool: PoolFacts) -> bool:
        asked.append(pool.name)
        await asyncio.Event().wait()
        return True

    gateway.gatekeeper.may_claim = mute  # type: ignore[method-assign]
    async with asyncio.timeout(5.0):
        status, body = await ask(gateway, "/web")
    assert (status, asked, far.claims) == (503, ["web"], [])
    assert body["error"].startswith("the API server did not say within 0.1 s who may claim")


# --- VMClaims that wait -------------------------------------------------------------------------------------------


@pytest.fixture
def counts(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times of the counts, by a clock that stands; moved by setting ``gateway.picker._waiting._clock``."""
    times: list[float] = []

    def counted(*arguments: Any) -> Any:
        times.append(gateway.picker._waiting._clock())
        return demand(*arguments)

    monkeypatch.setattr(claims_waiting, "demand", counted)
    gateway.picker._waiting._clock = lambda: 0.0
    return times


def refused(gateway: Gateway) -> None:
    with pytest.raises(NotGot):
        gateway.picker.reserve(wishes(gateway, web=1))


async def test_refusals_do_not_count_more_often_than_the_brake_allows(gateway: Gateway, counts: list[float]) -> None:
    stock(gateway, web=1)
    put_claim(gateway, WISH, {"phase": "Pending", "position": "1"})
    for _ in range(3):
        put_pool(gateway, "db")
        refused(gateway)
    assert counts == [0.0]
    gateway.picker._waiting._clock = lambda: PAUSE_SECONDS
    refused(gateway)
    assert counts == [0.0, PAUSE_SECONDS]


@pytest.mark.parametrize(("claim_uid", "news"), [("wish", True), ("whole", False)])
async def test_only_vms_of_claims_that_wait_are_news(
    gateway: Gateway, counts: list[float], claim_uid: str, news: bool
) -> None:
    stock(gateway, web=1)
    put_claim(gateway, WISH, {"phase": "Pending", "position": "1"})
    refused(gateway)
    ref = {"namespace": "ci", "name": claim_uid, "uid": claim_uid, "kindUid": "kind"}
    put_vm(gateway, "theirs", claim=held(id=claim_uid, ref=ref, slot=0))
    gateway.picker._waiting._clock = lambda: PAUSE_SECONDS
    if news:
        assert len(gateway.picker.reserve(wishes(gateway, web=1))) == 1
    else:
        refused(gateway)
    assert len(counts) == 1 + news


# --- the end of the process ---------------------------------------------------------------------------------------


async def test_what_follows_from_a_write_on_its_way_is_waited_for(gateway: Gateway, far: FarSide) -> None:
    stock(gateway, web=1)
    far.held_back.clear()
    gate = asyncio.Event()
    write = far.patch_merge

    async def slow(kind: Any, namespace: str, name: str, body: Mapping[str, Any]) -> Any:
        if "releasedAt" in body["spec"]["claim"]:
            await gate.wait()
        return await write(kind, namespace, name, body)

    gateway.client.patch_merge = slow  # type: ignore[method-assign]
    work = attempt(gateway, wishes(gateway, web=1))
    gateway.followups.start(work.run(), "checkout")
    await until(lambda: far.claims == ["web-0"])
    work.abandon()
    settled = asyncio.create_task(gateway.followups.settle(30.0))
    far.held_back.set()
    await let_go_on()
    assert not settled.done()
    gate.set()
    with capture_logs() as logged:
        await settled
    assert far.released == ["web-0"]
    assert [line for line in logged if line["event"] == "checkout_forgotten"] == []


async def test_what_is_left_undone_is_logged(gateway: Gateway, far: FarSide) -> None:
    async def mute(*_: Any) -> Any:
        await asyncio.Event().wait()

    gateway.client.patch_merge = mute  # type: ignore[method-assign]
    put_vm(gateway, "web-0", claim=held(id="given-back"))
    gateway.followups.give_back(fact(gateway, "web-0"))
    gateway.followups.doubt("doubted")
    with capture_logs() as logged:
        await gateway.followups.settle(0.05)
    forgotten = [line for line in logged if line["event"] == "checkout_forgotten"]
    assert [line["claim_id"] for line in forgotten] == ["doubted", "given-back"]
    assert forgotten[1]["vm"] == "web-0"
    for task in gateway.followups._tasks:
        task.cancel()
