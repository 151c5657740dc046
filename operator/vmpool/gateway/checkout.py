"""Handing out VMs: ``POST /vm`` and ``POST /vm/a+a+b``. One write a VM, and no read, before the answer."""

import asyncio
import hashlib
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

from vmpool.api.claim import MAX_CLAIMED
from vmpool.api.vm import MAX_GROUPS, Claim
from vmpool.engine.facts import vm_facts
from vmpool.gateway import audit, requested
from vmpool.gateway.answers import Answer, Json, Refusal, bad_request, forbidden, not_found, unavailable
from vmpool.gateway.auth.caller import Caller
from vmpool.gateway.context import Call, Gateway
from vmpool.gateway.names import meant
from vmpool.gateway.picking import Attempt, Lack, NotGot, Wish, wishes_of
from vmpool.gateway.requested import Wanted
from vmpool.gateway.routes import REFUSED, Parameter, Route, Schema
from vmpool.kube.errors import OutcomeUnknown
from vmpool.kube.kinds import POOLEDVMS
from vmpool.plan.snapshot import VM, PoolFacts

MAX_OWNER = MAX_GROUP_NAME = 253
"""Characters of a user's and a group's name that a claim can hold."""
IDEMPOTENCY_KEY = "Idempotency-Key"

_WHY: Mapping[Lack, str] = {
    Lack.EMPTY: "has no VM ready",
    Lack.WAITING: "has VMs ready only for VMClaims that wait there",
    Lack.CLOSED: "is paused or being deleted, and hands out nothing",
    Lack.LOST: "has VMs, but other requests were faster each time",
}
_OUTCOMES: Mapping[Lack, str] = {
    Lack.EMPTY: "empty",
    Lack.WAITING: "waiting",
    Lack.CLOSED: "refused",
    Lack.LOST: "error",
}


async def checkout_by_body(call: Call) -> Answer:
    """Hand out what ``{"pool": count}`` asks for."""
    return await _checkout(call, requested.of_body(await requested.object_of(call), call.gateway.own))


async def checkout_by_path(call: Call) -> Answer:
    """Hand out what ``pool+pool`` asks for."""
    return await _checkout(call, requested.of_path(call.path["name"], call.gateway.own))


async def _checkout(call: Call, wanted: Wanted) -> Answer:
    key = requested.key_of(call.request.headers.get(IDEMPOTENCY_KEY))
    if key and sum(wanted.values()) > MAX_CLAIMED:
        raise bad_request(f"VM count must be at most {MAX_CLAIMED} over all pools of a request with {IDEMPOTENCY_KEY}")
    if not wanted:
        raise not_found("the request names no pool")
    own = call.gateway.own
    end = asyncio.get_running_loop().time() + own.checkout_wait_seconds
    try:
        async with asyncio.timeout_at(end):
            caller, pools = await _looked_up(call, wanted)
    except TimeoutError:
        raise unavailable(
            f"the API server did not say within {own.checkout_wait_seconds:g} s who may claim; nothing was checked out",
            own.retry_after_seconds,
        ) from None
    wishes = list(wishes_of(wanted, pools))
    vms = await _allocate(call, caller, wishes, claim_id(caller, key, wanted) if key else "", end)
    body: Json = {"ok": True}
    for name, count in wanted.items():
        names = [vms[wish.slot].host_name or vms[wish.slot].name for wish in wishes if wish.name == name]
        body[name] = {"hostname": names if count > 1 else names[0]}
    return Answer(body)


async def _looked_up(call: Call, wanted: Wanted) -> tuple[Caller, dict[str, tuple[PoolFacts, ...]]]:
    """Return who asks, and what each name means to them. Raises ``Refusal``."""
    caller = await call.caller()
    if len(caller.user) > MAX_OWNER:
        raise forbidden(f"a user name of more than {MAX_OWNER} characters cannot own a VM")
    pools: dict[str, tuple[PoolFacts, ...]] = {}
    for name in wanted:
        pools[name] = await meant(call.gateway, caller, name)
        if not pools[name]:
            raise requested.unknown_name(name)
    return caller, pools


def claim_id(caller: Caller, key: str, wanted: Wanted) -> str:
    """Return the id of the claims of a request that may be repeated.

    The same for the same user, key and wish; with another wish, the same key is another request.
    """
    text = json.dumps([caller.user, key, list(wanted.items())])
    return hashlib.sha256(text.encode()).hexdigest()


async def _allocate(call: Call, caller: Caller, wishes: list[Wish], keyed: str, end: float) -> Mapping[int, VM]:
    gateway = call.gateway
    attempt = Attempt(
        gateway,
        wishes,
        _claims(call, caller, wishes, keyed),
        _earlier(gateway, caller, keyed) if keyed else None,
    )
    try:
        vms = await _within_time(gateway, attempt, keyed, end)
    except BaseException as error:
        _count(gateway, wishes, _outcome(error))
        refusal = _refusal(gateway, error, wishes, keyed)
        if refusal is None:
            raise
        raise refusal from error
    for wish in wishes:
        vm = vms[wish.slot]
        gateway.metrics.checkouts.labels(vm.namespace, vm.pool, "ok").inc()
        audit.record(call, "checkout", vm, requested=wish.name)
    return vms


async def _within_time(gateway: Gateway, attempt: Attempt, keyed: str, end: float) -> Mapping[int, VM]:
    """Work on a request until ``end`` of the loop's clock. Raises TimeoutError, and what ``Attempt.run`` raises."""
    loop = asyncio.get_running_loop()
    going = gateway.picker.keyed
    while keyed in going:
        # The same request, repeated while it is worked on: this one then finds what that one has got.
        if not (await asyncio.wait({going[keyed]}, timeout=max(0.0, end - loop.time())))[0]:
            raise TimeoutError
    task = gateway.followups.start(attempt.run(), "checkout")
    if keyed:
        going[keyed] = task
        task.add_done_callback(lambda _: going.pop(keyed, None))
    try:
        done, _ = await asyncio.wait({task}, timeout=max(0.0, end - loop.time()))
    except asyncio.CancelledError:
        attempt.abandon()
        raise
    if not done:
        attempt.abandon()
        raise TimeoutError
    return task.result()


def _claims(call: Call, caller: Caller, wishes: list[Wish], keyed: str) -> Callable[[Wish, VM], Claim]:
    gateway = call.gateway
    groups = tuple(group for group in caller.groups if len(group) <= MAX_GROUP_NAME)[:MAX_GROUPS]
    lifetimes = {pool.uid: pool.spec.claims.lifetime for wish in wishes for pool in wish.pools}

    def claim(wish: Wish, vm: VM) -> Claim:
        now = gateway.now()
        lifetime: timedelta = lifetimes[vm.pool_uid]
        return Claim(
            id=keyed or str(uuid.uuid4()),
            owner=caller.user,
            bound_at=now,
            expires_at=now + lifetime,
            slot=wish.slot if keyed else None,
            groups=groups or None,
            token_id=caller.token_id or None,
            request_id=call.request_id,
        )

    return claim


def _earlier(gateway: Gateway, caller: Caller, keyed: str) -> Callable[[], Awaitable[Mapping[int, VM]]]:
    async def find() -> Mapping[int, VM]:
        """Ask the API server what an equal request has got before. Raises ``Refusal`` 409 if some of it has ended."""
        found: dict[int, VM] = {}
        pages = gateway.client.list_pages(
            POOLEDVMS, gateway.settings.watch_namespace or None, field_selector=f"spec.claim.id={keyed}"
        )
        async for page in pages:
            for raw in page.items:
                gateway.vms.saw(raw)
                vm = vm_facts(raw)
                claim = vm.claim
                if claim is None or claim.owner != caller.user:
                    continue
                if claim.released_at is not None:
                    raise Refusal(
                        409,
                        {
                            "error": f"VM {vm.name} of this {IDEMPOTENCY_KEY} has ended already"
                            f" ({claim.end_reason or 'Released'}); use another key for new VMs"
                        },
                    )
                found[claim.slot] = min(found.get(claim.slot, vm), vm, key=_first)
        return found

    return find


def _first(vm: VM) -> tuple[object, ...]:
    """Of two VMs in one slot every gateway answers the same; the other one shows in GET /token and expires."""
    assert vm.claim is not None
    return vm.claim.bound_at or vm.claim.expires_at, vm.name


def _refusal(gateway: Gateway, error: BaseException, wishes: list[Wish], keyed: str) -> Refusal | None:
    """Return how an error is told; None leaves it to the frame."""
    later = gateway.own.retry_after_seconds
    kept = (
        f"repeat the request with the same {IDEMPOTENCY_KEY}" if keyed else "what was checked out all the same is ended"
    )
    if isinstance(error, NotGot):
        rest = f"what was got is kept for a request with the same {IDEMPOTENCY_KEY}" if keyed else "none is handed out"
        several = f" {len(wishes)} VMs were asked for, and {rest}." if len(wishes) > 1 else ""
        return unavailable(f"{error.wish.name} {_WHY[error.lack]}.{several}", later)
    if isinstance(error, OutcomeUnknown):
        return unavailable(f"the API server did not say whether the VM was checked out; {kept}", later)
    if isinstance(error, TimeoutError):
        waited = gateway.own.checkout_wait_seconds
        return unavailable(f"the API server did not answer within {waited:g} s; {kept}", later)
    return None


def _outcome(error: BaseException) -> str:
    if isinstance(error, NotGot):
        return _OUTCOMES[error.lack]
    if isinstance(error, (OutcomeUnknown, TimeoutError)):
        return "unknown"
    return "refused" if isinstance(error, Refusal) else "error"


def _count(gateway: Gateway, wishes: list[Wish], outcome: str) -> None:
    for wish in wishes:
        pool = wish.pools[0]
        gateway.metrics.checkouts.labels(pool.namespace, pool.name, outcome).inc()


_HOSTS: Schema = {
    "type": "object",
    "properties": {"hostname": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}},
    "required": ["hostname"],
}
_ANSWERS: Mapping[int, Schema] = {
    200: {
        "type": "object",
        "properties": {"ok": {"const": True}},
        "required": ["ok"],
        "additionalProperties": _HOSTS,
    },
    400: REFUSED,
    401: REFUSED,
    403: REFUSED,
    404: REFUSED,
    409: REFUSED,
    503: REFUSED,
}
_KEY = Parameter(
    IDEMPOTENCY_KEY,
    "header",
    "Makes the checkout repeatable: the same user, key and wish get the same VMs while those exist.",
    {"type": "string", "minLength": 1, "maxLength": requested.MAX_KEY},
)

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/api/v3/vm",
        checkout_by_body,
        "Check VMs out: how many, by pool or alias",
        _ANSWERS,
        body={
            "type": "object",
            "additionalProperties": {
                "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[0-9]+$"}]
            },
        },
        parameters=(_KEY,),
        auth="token",
        limit="creation",
    ),
    Route(
        "POST",
        "/api/v3/vm/{name}",
        checkout_by_path,
        "Check VMs out: pools or aliases joined by +",
        _ANSWERS,
        parameters=(
            Parameter("name", "path", "pools or aliases joined by +, for example web+web+db", required=True),
            _KEY,
        ),
        auth="token",
        limit="creation",
    ),
)
