"""Reservations and attempts: all or none, losers replaced, nothing written for nobody.

The far side is a client whose writes end as the test says: lost answers and races in an order of the test's choice
cannot be had from a real server; ``tests/control_plane/gateway/test_checkout.py`` has the same on one.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.unit.gateway.frames import gateway_of, served
from tests.unit.gateway.things import fact, held, put_claim, put_pool, put_vm, stored
from tests.waiting import until
from vmpool.api import keys
from vmpool.api.vm import Claim
from vmpool.gateway import checkout
from vmpool.gateway.context import Gateway
from vmpool.gateway.followups import GIVEN_BACK
from vmpool.gateway.picking import Attempt, Lack, NotGot, Wish, wishes_of
from vmpool.gateway.vmwire import short
from vmpool.kube.errors import Forbidden, Invalid, OutcomeUnknown, Unreachable
from vmpool.plan.rules import CLAIM_TAKEN
from vmpool.plan.snapshot import VM, PoolFacts

V = "/api/v3/vm"
LOST = Invalid("taken", details={"causes": [{"field": "spec.claim", "message": CLAIM_TAKEN}]})


@dataclass
class FarSide:
    """Takes the writes of a gateway's client."""

    gateway: Gateway
    objects: dict[str, Any] = field(default_factory=dict)
    refusals: list[Exception] = field(default_factory=list)
    """Of the next writes, in order; what comes after succeeds."""
    held_back: asyncio.Event = field(default_factory=asyncio.Event)
    """Writes wait for it."""
    before: Callable[[str], None] = lambda _: None
    """Called with the name of the VM before each write is decided on."""
    claims: list[str] = field(default_factory=list)
    """Names of the VMs that a claim was asked for, in order."""
    released: list[str] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)

    async def patch_merge(self, _: Any, namespace: str, name: str, body: Mapping[str, Any]) -> Any:
        claim = body["spec"]["claim"]
        if "releasedAt" in claim:
            self.released.append(name)
            self.reasons.add(claim["endReason"])
        else:
            self.claims.append(name)
            await self.held_back.wait()
            self.before(name)
            if self.refusals:
                raise self.refusals.pop(0)
        self.objects.setdefault(name, {}).update(claim)
        spec = {"pool": fact(self.gateway, name).pool, "poolUid": fact(self.gateway, name).pool_uid, "provider": "sim"}
        raw = {"metadata": {"name": name}, "spec": {**spec, "claim": self.objects[name]}, "status": {"phase": "Ready"}}
        return stored(raw, f"uid-{name}", namespace)

    async def get(self, _: Any, namespace: str, name: str) -> Any:
        raise Unreachable("nobody answers")


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made, _ = gateway_of(checkout_wait_seconds=5.0)
    put_pool(made, "web", aliases=["any"])
    put_pool(made, "db", aliases=["any"])
    yield made
    await made.client.close()


@pytest.fixture
def far(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> FarSide:
    made = FarSide(gateway)
    made.held_back.set()
    monkeypatch.setattr(gateway.client, "patch_merge", made.patch_merge)
    monkeypatch.setattr(gateway.client, "get", made.get)
    return made


def stock(gateway: Gateway, **counts: int) -> None:
    for pool, count in counts.items():
        for number in range(count):
            put_vm(gateway, f"{pool}-{number}", pool, hostName=f"{pool}-{number}.example.com")


def pool_of(gateway: Gateway, name: str) -> PoolFacts:
    entry = gateway.pools.by_uid(f"ci/{name}")
    assert entry is not None
    assert entry.fact is not None
    return entry.fact


def wishes(gateway: Gateway, **counts: int) -> list[Wish]:
    return list(wishes_of(counts, {name: (pool_of(gateway, name),) for name in counts}))


async def ask(gateway: Gateway, path: str) -> tuple[int, Any]:
    async with served(*checkout.ROUTES, gateway=gateway) as client:
        answer = await client.post(V + path)
        return answer.status, await answer.json()


def outcomes(gateway: Gateway, pool: str) -> dict[str, float]:
    samples = gateway.metrics.checkouts.collect()[0].samples
    return {
        sample.labels["outcome"]: sample.value
        for sample in samples
        if sample.name.endswith("_total") and sample.labels["pool"] == pool
    }


async def test_everything_is_reserved_or_nothing(gateway: Gateway) -> None:
    stock(gateway, web=2, db=1)
    with pytest.raises(NotGot) as caught:
        gateway.picker.reserve(wishes(gateway, web=2, db=2))
    assert (caught.value.wish.name, caught.value.lack) == ("db", Lack.EMPTY)
    assert [gateway.ready.count(f"ci/{pool}") for pool in ("web", "db")] == [2, 1]
    taken = gateway.picker.reserve(wishes(gateway, web=2, db=1))
    assert len({vm.uid for vm in taken}) == 3
    assert gateway.ready.count("ci/web") == 0


async def test_a_checkout_is_one_write_a_vm(gateway: Gateway, far: FarSide) -> None:
    stock(gateway, web=3, db=1)
    status, body = await ask(gateway, "/web+db+web")
    assert status == 200
    hosts = [*body["web"]["hostname"], body["db"]["hostname"]]
    assert sorted(far.claims) == sorted(short(host) for host in hosts)
    assert len(far.claims) == 3
    assert outcomes(gateway, "web") == {"ok": 2}


async def test_a_vm_that_another_allocator_got_is_replaced(gateway: Gateway, far: FarSide) -> None:
    stock(gateway, web=3)
    far.refusals = [LOST]
    # The watch tells who got it before the next one is tried.
    far.before = lambda name: put_vm(gateway, name, claim=held()) if far.refusals else None
    status, body = await ask(gateway, "/web")
    assert status == 200
    assert len(far.claims) == 2
    assert short(body["web"]["hostname"]) == far.claims[1]
    assert far.released == []


async def test_losses_have_a_bound(far: FarSide, gateway: Gateway) -> None:
    gateway.own = gateway.own.model_copy(update={"checkout_losses": 2})
    stock(gateway, web=5)
    far.refusals = [LOST] * 5
    far.before = lambda name: gateway.vms.saw_deleted(f"uid-{name}")
    status, body = await ask(gateway, "/web")
    assert (status, len(far.claims)) == (503, 2)
    assert "other requests were faster" in body["error"]


async def test_when_a_part_is_not_to_be_had_the_rest_is_given_back(gateway: Gateway, far: FarSide) -> None:
    stock(gateway, web=2, db=1)
    # The last VM of db is lost, and there is no other.
    far.before = lambda name: _lose(gateway, far, name, "db")
    status, body = await ask(gateway, "/web+web+db")
    assert status == 503
    assert body["error"] == "db has no VM ready. 3 VMs were asked for, and none is handed out."
    await until(lambda: len(far.released) == 2)
    assert set(far.released) == {"web-0", "web-1"}
    assert far.reasons == {GIVEN_BACK}
    assert gateway.metrics.partial._value.get() == 1  # type: ignore[attr-defined]
    assert outcomes(gateway, "db") == {"empty": 1}


def _lose(gateway: Gateway, far: FarSide, name: str, pool: str) -> None:
    if name.startswith(pool):
        gateway.vms.saw_deleted(f"uid-{name}")
        far.refusals = [LOST]


async def test_nothing_is_said_to_be_empty_while_a_request_in_flight_may_give_back(
    gateway: Gateway, far: FarSide
) -> None:
    stock(gateway, web=1)
    far.held_back.clear()
    far.refusals = [Forbidden("not now", status=403)]
    first = asyncio.create_task(ask(gateway, "/web"))
    await until(lambda: far.claims == ["web-0"])
    second = asyncio.create_task(ask(gateway, "/web"))
    await until(lambda: gateway.picker._turn is not None)
    assert not second.done()
    far.held_back.set()
    assert (await first)[0] == 503
    assert (await second)[0] == 200


async def test_empty_is_said_once_the_last_one_is_gone(gateway: Gateway, far: FarSide) -> None:
    stock(gateway, web=1)
    far.held_back.clear()
    first = asyncio.create_task(ask(gateway, "/web"))
    await until(lambda: far.claims == ["web-0"])
    second = asyncio.create_task(ask(gateway, "/web"))
    await until(lambda: gateway.picker._turn is not None)
    far.held_back.set()
    assert (await first)[0] == 200
    status, body = await second
    assert (status, body["error"]) == (503, "web has no VM ready.")


async def test_a_write_that_comes_too_late_for_its_client_is_given_back(gateway: Gateway, far: FarSide) -> None:
    gateway.own = gateway.own.model_copy(update={"checkout_wait_seconds": 0.1})
    stock(gateway, web=1)
    far.held_back.clear()
    status, body = await ask(gateway, "/web")
    assert status == 503
    assert "did not answer within 0.1 s" in body["error"]
    assert far.released == []
    far.held_back.set()
    await until(lambda: far.released == ["web-0"])
    assert outcomes(gateway, "web") == {"unknown": 1}


async def test_what_has_not_begun_when_the_client_goes_is_never_begun(gateway: Gateway, far: FarSide) -> None:
    gateway.own = gateway.own.model_copy(update={"checkout_wait_seconds": 0.1})
    gateway.picker.slots = asyncio.Semaphore(1)
    stock(gateway, web=2)
    far.held_back.clear()
    assert [status for status, _ in await asyncio.gather(ask(gateway, "/web"), ask(gateway, "/web"))] == [503, 503]
    far.held_back.set()
    await until(lambda: len(far.released) == 1)
    await until(lambda: gateway.ready.count("ci/web") == 1)
    assert len(far.claims) == 1


async def test_a_claim_without_an_answer_is_given_back_when_it_shows(gateway: Gateway, far: FarSide) -> None:
    stock(gateway, web=1)
    far.refusals = [OutcomeUnknown("cut off")]
    status, body = await ask(gateway, "/web")
    assert status == 503
    assert "did not say whether" in body["error"]
    assert far.released == []
    (doubted,) = gateway.followups._doubts
    put_vm(gateway, "web-0", claim=held(id="somebody-elses"))
    assert far.released == []
    put_vm(gateway, "web-0", claim=held(id=doubted))
    await until(lambda: far.released == ["web-0"])
    assert not gateway.followups._doubts


async def test_a_release_is_tried_until_it_is_done(gateway: Gateway, far: FarSide) -> None:
    put_vm(gateway, "web-0", claim=held())
    tries = 0
    write = far.patch_merge

    async def flaky(*arguments: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Unreachable("down")
        return await write(*arguments)

    gateway.client.patch_merge = flaky  # type: ignore[method-assign]
    gateway.followups.give_back(fact(gateway, "web-0"))
    await until(lambda: far.released == ["web-0"])
    assert tries == 2


async def test_vms_that_waiting_claims_lack_are_left_to_them(gateway: Gateway, far: FarSide) -> None:
    stock(gateway, web=2)
    wish = {"metadata": {"name": "wish", "namespace": "ci"}, "spec": {"requests": [{"pool": "web", "count": 1}]}}
    put_claim(gateway, wish, {"phase": "Pending", "position": "1"})
    assert (await ask(gateway, "/web"))[0] == 200
    status, body = await ask(gateway, "/web")
    assert (status, body["error"]) == (503, "web has VMs ready only for VMClaims that wait there.")
    put_claim(gateway, wish, {"phase": "Failed"})

    async def served_again() -> bool:
        return (await ask(gateway, "/web"))[0] == 200

    await until(served_again, what="the claim that has ended is no longer counted")


async def test_a_claim_that_the_engine_has_not_judged_holds_up_nobody(gateway: Gateway, far: FarSide) -> None:
    stock(gateway, web=1)
    wish = {"metadata": {"name": "wish", "namespace": "ci"}, "spec": {"requests": [{"pool": "web", "count": 1}]}}
    put_claim(gateway, wish)
    assert (await ask(gateway, "/web"))[0] == 200


async def test_a_paused_pool_is_known_and_hands_out_nothing(gateway: Gateway, far: FarSide) -> None:
    put_pool(gateway, "web", paused=True)
    stock(gateway, web=1)
    status, body = await ask(gateway, "/web")
    assert (status, body["error"]) == (503, "web is paused or being deleted, and hands out nothing.")
    assert far.claims == []


async def test_an_alias_falls_through_to_a_pool_that_has_vms(gateway: Gateway, far: FarSide) -> None:
    stock(gateway, db=4)
    status, body = await ask(gateway, "/any+any+any+any")
    assert status == 200
    assert len(body["any"]["hostname"]) == 4


async def test_weights_choose_among_pools_that_have_vms(gateway: Gateway, far: FarSide) -> None:
    put_pool(gateway, "web", aliases=["any"], claims={"weight": 0})
    put_pool(gateway, "db", aliases=["any"], claims={"weight": 1})
    stock(gateway, web=3, db=3)
    for _ in range(3):
        assert (await ask(gateway, "/any"))[0] == 200
    assert sorted(far.claims) == ["db-0", "db-1", "db-2"]
    assert (await ask(gateway, "/any"))[1]["any"]["hostname"].startswith("web-")


async def test_every_reservation_is_settled(gateway: Gateway, far: FarSide) -> None:
    stock(gateway, web=4)
    far.refusals = [LOST, Forbidden("no", status=403), OutcomeUnknown("?")]
    for _ in range(4):
        await ask(gateway, "/web")
    assert gateway.picker._reserved == {}


async def test_errors_of_the_api_server_are_the_frames_to_tell(gateway: Gateway, far: FarSide) -> None:
    stock(gateway, web=2)
    far.refusals = [Unreachable("no route")]
    status, body = await ask(gateway, "/web+web")
    assert status == 503
    assert "cannot be reached" in body["error"]
    assert "no route" not in body["error"]
    await until(lambda: far.released or len(far.claims) == 1)


async def test_an_attempt_tells_the_most_telling_error(gateway: Gateway, far: FarSide) -> None:
    stock(gateway, web=3)
    far.refusals = [Forbidden("no", status=403), OutcomeUnknown("?"), Forbidden("no", status=403)]
    far.held_back.clear()
    wanted = wishes(gateway, web=3)
    attempt = asyncio.create_task(
        Attempt(gateway, wanted, checkout._claims(_call(gateway), _caller(), wanted, "")).run()
    )
    await until(lambda: len(far.claims) == 3)
    far.held_back.set()
    with pytest.raises(OutcomeUnknown):
        await attempt
    assert gateway.picker._reserved == {}


async def test_an_error_of_our_own_leaves_nothing_reserved(gateway: Gateway, far: FarSide) -> None:
    stock(gateway, web=2)

    def broken(wish: Wish, vm: VM) -> Claim:
        raise ValueError(f"no claim on {vm.name} for {wish.name}")

    with pytest.raises(ValueError, match="no claim on"):
        await Attempt(gateway, wishes(gateway, web=2), broken).run()
    assert gateway.picker._reserved == {}
    assert gateway.ready.count("ci/web") == 2


def _call(gateway: Gateway) -> Any:
    from vmpool.gateway.context import Call

    return Call(gateway, None, "request", "127.0.0.1")  # type: ignore[arg-type]


def _caller() -> Any:
    from vmpool.gateway.auth.caller import ANONYMOUS

    return ANONYMOUS


async def test_user_names_that_no_claim_can_hold_are_refused(gateway: Gateway, far: FarSide) -> None:
    from vmpool.gateway.auth.caller import ANONYMOUS, Caller

    stock(gateway, web=2)
    long = Caller(replace(ANONYMOUS.identity, user="u" * 254))
    many = Caller(replace(ANONYMOUS.identity, groups=("g" * 254, *(f"group-{n}" for n in range(100)))))
    for caller, status in ((long, 403), (many, 200)):

        async def known(_: Any, caller: Caller = caller) -> Caller:
            return caller

        gateway.gatekeeper.caller = known  # type: ignore[method-assign]
        assert (await ask(gateway, "/web"))[0] == status


def test_claims_of_equal_requests_have_equal_ids() -> None:
    caller = _caller()
    one = checkout.claim_id(caller, "key", {"web": 1, "db": 2})
    assert one == checkout.claim_id(caller, "key", {"web": 1, "db": 2})
    assert len(one) == 64
    others = [
        checkout.claim_id(caller, "key2", {"web": 1, "db": 2}),
        checkout.claim_id(caller, "key", {"db": 2, "web": 1}),
        checkout.claim_id(caller, "key", {"web": 2, "db": 2}),
    ]
    assert len({one, *others}) == 4
    assert keys.REST_USER_PREFIX in caller.user
