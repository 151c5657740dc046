"""On-demand requests: VMs that need not be ready yet. Each is one VMClaim, named after the request's id.

The VMClaim holds everything, so that any gateway can answer: what was asked for stands in an annotation (``notes``),
what came of it in the status that the operator writes.
"""

import asyncio
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from random import Random
from typing import Any

from vmpool.api import keys
from vmpool.api.claim import MAX_CLAIMED, MAX_REQUESTS
from vmpool.api.meta import format_duration
from vmpool.engine import binding
from vmpool.engine.world import BY_CLAIM
from vmpool.gateway import audit, notes
from vmpool.gateway.answers import Answer, Json, Refusal, forbidden, not_found, not_implemented
from vmpool.gateway.auth.caller import Caller, stamped
from vmpool.gateway.bodies import read_object
from vmpool.gateway.bounds import MAX_INTEGER
from vmpool.gateway.context import Call, Gateway
from vmpool.gateway.names import meant
from vmpool.gateway.notes import Note
from vmpool.gateway.requested import shown, whole
from vmpool.gateway.routes import REFUSED, Parameter, Route, Schema
from vmpool.gateway.schemas import TEXT, TEXTS, record, refused, table
from vmpool.kube.errors import AlreadyExists, Conflict, Forbidden, Invalid, KubeError, NotFound, OutcomeUnknown
from vmpool.kube.kinds import VMCLAIMS
from vmpool.plan import names
from vmpool.plan.lifecycle import ClaimPhase
from vmpool.plan.snapshot import VM, PoolFacts, VMClaim
from vmpool.settings import Settings
from vmpool.telemetry import logs

log = logs.get(__name__)

REQUEST_ID = "request_id"
DENIED = "denied request"
"""In the message of every admission policy's 403, and of none of RBAC's."""
DELETED = "The request has been deleted"
DELETED_ALREADY = "the request has already been deleted"
NO_SLASH = re.compile(r"[^/]*[^./][^/]*")
"""An id that a path can hold: no slash, and not only dots."""

_DRAW = Random()  # noqa: S311 - spreads load, guards nothing

Shares = list[tuple[PoolFacts, int]]
"""How many VMs each pool shall give."""


# --- POST ---------------------------------------------------------------------------------------------------------


def missing(settings: Settings) -> str:
    """Return why there are no on-demand requests here; empty when there are."""
    watched, own = settings.watch_namespace, settings.namespace
    why_not = f"no on-demand requests: their VMClaims are made in namespace {own} (namespace), where nobody looks"
    return "" if watched in ("", own) else f"{why_not}: only {watched} is served (watch_namespace)"


def _must_be_there(call: Call) -> None:
    """Raise ``Refusal`` 501 where nobody would see the VMClaim of a request."""
    if why_not := missing(call.gateway.settings):
        raise not_implemented(why_not)


async def create(call: Call) -> Answer:
    """POST ondemandvm: 201 with the request's id. 501, 401, 400, 404, 403, 409, in this order."""
    caller = await _asks(call)
    body = await read_object(call)
    given = body.pop(REQUEST_ID, None)
    return await _create(call, caller, body, given)


async def create_by_path(call: Call) -> Answer:
    """POST ondemandvm/a+a+b: the same with the names in the path, each as often as VMs of it are wanted."""
    caller = await _asks(call)
    wanted: dict[str, Any] = {}
    for name in call.path["names"].split("+"):
        wanted[name] = wanted.get(name, 0) + 1
    return await _create(call, caller, wanted, None)


async def _asks(call: Call) -> Caller:
    """Return who asks, under the name that stands in the VMClaim: the engine asks again whether that one may claim."""
    _must_be_there(call)
    known = await call.caller()
    return Caller(stamped(known.identity), known.token_id)


async def _create(call: Call, caller: Caller, wanted: Mapping[str, Any], given: Any) -> Answer:
    gateway = call.gateway
    counts, request_id = _counts(wanted), _request_id(given)
    pools = {name: await meant(gateway, caller, name) for name in counts}
    if unknown := [name for name in counts if not pools[name]]:
        raise Refusal(404, {"bad_templates": unknown})
    _refuse_too_many(counts, gateway)
    if request_id in gateway.deleted_requests or _find(gateway, request_id) is not None:
        raise _exists(request_id)
    note = Note(request_id, tuple(counts.items()), call.request_id)
    shares = spread({name: pools[name] for name in counts}, counts)
    await _write(gateway, claim_body(gateway, caller, note, shares), note)
    audit.record(call, "ondemand", claim=notes.claim_name(request_id), ondemand_id=request_id, names=dict(counts))
    return Answer({"ok": True, REQUEST_ID: request_id}, 201)


def _counts(wanted: Mapping[str, Any]) -> dict[str, int]:
    if not wanted:
        raise not_found("no pools are named")
    try:
        # However many: that there are too many of them is another refusal, after the names were looked at.
        return {name: whole(count, f"VM count of {shown(name)}", MAX_INTEGER) for name, count in wanted.items()}
    except Refusal as error:
        raise _told(400, str(error.body["error"])) from None


def _request_id(given: Any) -> str:
    if given is None:
        return str(uuid.uuid4())
    good = isinstance(given, str) and 1 <= len(given) <= notes.MAX_ID and given.isprintable()
    if not good or not NO_SLASH.fullmatch(given):
        raise _told(400, f"request_id must be 1 to {notes.MAX_ID} printable characters without a slash")
    return str(given)


def _refuse_too_many(counts: Mapping[str, int], gateway: Gateway) -> None:
    most = gateway.own.ondemand_max
    if any(count > most for count in counts.values()):
        raise _told(403, f"requested amount of instances exceeds the maximum {most}")
    if sum(counts.values()) > MAX_CLAIMED:
        raise _told(403, f"requested amount of instances exceeds the maximum {MAX_CLAIMED} of all pools together")
    if len(counts) > MAX_REQUESTS:
        raise _told(403, f"requested amount of pools exceeds the maximum {MAX_REQUESTS}")


def spread(pools: Mapping[str, Sequence[PoolFacts]], counts: Mapping[str, int], draw: Random = _DRAW) -> list[Shares]:
    """Return which pools shall give what was asked for by each name, drawn by weight, one VM at a time.

    Pools that hand out nothing at present are left out where there are others. A VMClaim has so many requests at
    most; where that is not enough, each name is given by one pool.
    """
    usable = {name: [pool for pool in of if names.hands_out(pool)] or list(of) for name, of in pools.items()}
    made = [_shares(usable[name], [draw.random() for _ in range(count)]) for name, count in counts.items()]
    if sum(map(len, made)) > MAX_REQUESTS:
        made = [[(names.in_turn(usable[name], draw.random())[0], count)] for name, count in counts.items()]
    return made


def _shares(pools: Sequence[PoolFacts], rolls: Sequence[float]) -> Shares:
    by_uid = {pool.uid: pool for pool in pools}
    return [(by_uid[uid], count) for uid, count in names.split(pools, rolls).items()]


def claim_body(gateway: Gateway, caller: Caller, note: Note, shares: Iterable[Shares]) -> Json:
    """Return the VMClaim of a request: its slots are in the order of the names."""
    own = gateway.own
    return {
        "apiVersion": VMCLAIMS.api_version,
        "kind": VMCLAIMS.kind,
        "metadata": {
            "name": notes.claim_name(note.id),
            "namespace": gateway.settings.namespace,
            "labels": {keys.LABEL_ONDEMAND: "true"},
            "annotations": {keys.ANNOTATION_ONDEMAND: note.text()},
        },
        "spec": {
            "requests": [
                {"pool": pool.name, "namespace": pool.namespace, "count": count}
                for of_name in shares
                for pool, count in of_name
            ],
            "requester": caller.user,
            "requesterGroups": list(caller.groups),
            "deadline": format_duration(timedelta(seconds=own.ondemand_seconds)),
            "ttlAfterFinished": format_duration(timedelta(seconds=own.ondemand_kept_seconds)),
        },
    }


async def _write(gateway: Gateway, body: Json, note: Note) -> None:
    namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
    try:
        gateway.claims.saw(await gateway.client.create(VMCLAIMS, namespace, body))
    except AlreadyExists:
        raise _exists(note.id) from None
    except OutcomeUnknown as unknown:
        try:
            await gateway.claims.quorum_get(namespace, name)
        except NotFound:
            raise unknown from None
        found = _find(gateway, note.id)
        if found is None or found[1].call != note.call:
            raise _exists(note.id) from None
    except (Invalid, Forbidden) as error:
        if isinstance(error, Forbidden) and DENIED not in error.message:
            raise
        # Of a body that we made: somebody's admission policy. Its words may not be meant for the client.
        log.warning("ondemand_not_admitted", claim=name, error=str(error))
        raise _told(403, "the API server does not admit a VMClaim for this request") from None


def _exists(request_id: str) -> Refusal:
    return _told(409, f"request_id '{request_id}' has already been created", request_id=request_id)


def _told(status: int, message: str, **more: str) -> Refusal:
    return Refusal(status, {"message": message, **more})


# --- GET ----------------------------------------------------------------------------------------------------------


async def show(call: Call) -> Answer:
    """GET ondemandvm/{id}: 202 while it waits, 200 when it has its VMs or never will, 404 for an unknown id."""
    _must_be_there(call)
    gateway, request_id = call.gateway, call.path["request_id"]
    found = _find(gateway, request_id)
    if found is None:
        if request_id in gateway.deleted_requests:
            return _deleted(request_id)
        raise _unknown(request_id)
    claim, note = found
    if claim.deleting:
        return _deleted(request_id)
    return outcome(claim, note, _bound_slots(gateway, claim), gateway.own.ondemand_seconds)


def outcome(claim: VMClaim, note: Note, bound: frozenset[int], seconds: float) -> Answer:
    """Return what became of a request; ``bound`` are the slots that have their VMs, ``seconds`` is the time to wait.

    A request that was filled once stays so, whatever becomes of its VMs.
    """
    body: Json = {"ok": True, REQUEST_ID: note.id, "ready": False}
    hosts = {vm.slot: vm.host_name for vm in claim.status.vms}
    if claim.status.bound_at is not None or claim.phase == ClaimPhase.BOUND or len(hosts) >= note.count:
        filled = {name: {"hostname": [hosts[slot] for slot in of if slot in hosts]} for name, of in _slots(note)}
        return Answer(body | {"ready": True} | filled)
    if claim.phase == ClaimPhase.PENDING:
        counted = {
            name: {"ready": str(len(bound.intersection(of))), "pending": str(len(set(of) - bound))}
            for name, of in _slots(note)
        }
        return Answer(body | counted, 202)
    minutes = f"{seconds / 60:g}"
    failed = f"The request failed to provision instances within the configured ondemand_request_ttl '{minutes}'"
    reason = claim.status.message or claim.status.reason
    return Answer(body | {"message": f"{failed}: {reason}" if reason else failed})


def _slots(note: Note) -> Iterable[tuple[str, range]]:
    begin = 0
    for name, count in note.names:
        yield name, range(begin, begin + count)
        begin += count


def _bound(gateway: Gateway, claim: VMClaim) -> list[VM]:
    """Return the VMs that this VMClaim has now."""
    vms = (entry.fact for entry in gateway.vms.by_index(BY_CLAIM, claim.uid))
    return [vm for vm in vms if vm is not None and vm.claimed]


def _bound_slots(gateway: Gateway, claim: VMClaim) -> frozenset[int]:
    slots = {vm.claim.slot for vm in _bound(gateway, claim) if vm.claim is not None}
    return frozenset(slots | {vm.slot for vm in claim.status.vms})


def _find(gateway: Gateway, request_id: str) -> tuple[VMClaim, Note] | None:
    entry = gateway.claims.by_name(gateway.settings.namespace, notes.claim_name(request_id))
    if entry is None or entry.fact is None:
        return None
    note = notes.read(entry.fact.ondemand)
    return (entry.fact, note) if note is not None and note.id == request_id else None


def _deleted(request_id: str) -> Answer:
    return Answer({"ok": True, REQUEST_ID: request_id, "ready": False, "message": DELETED})


def _unknown(request_id: str) -> Refusal:
    return _told(404, f"no request found for request_id '{request_id}'")


# --- DELETE -------------------------------------------------------------------------------------------------------


async def delete(call: Call) -> Answer:
    """DELETE ondemandvm/{id}: its VMs are given back. 401, 404, 403 for another's request, in this order.

    The VMClaim goes first, so that nothing more is bound to it. Its VMs are released next; those that this gateway
    does not see, or cannot release now, the operator finds by the VMClaim that they miss.
    """
    caller = await _asks(call)
    gateway, request_id = call.gateway, call.path["request_id"]
    found = _find(gateway, request_id)
    if found is None or found[0].deleting:
        if found is None and request_id not in gateway.deleted_requests:
            raise _unknown(request_id)
        return Answer({"ok": True, "message": DELETED_ALREADY})
    claim, _ = found
    if claim.spec.requester != caller.user:
        raise forbidden("only the user who made a request can delete it")
    await _remove(gateway, claim)
    gateway.deleted_requests.remember(request_id)
    audit.record(call, "ondemand-delete", claim=claim.name, ondemand_id=request_id)
    await asyncio.gather(*(_release(call, vm) for vm in _bound(gateway, claim)))
    return Answer({"ok": True})


async def _release(call: Call, vm: VM) -> None:
    gateway = call.gateway
    try:
        await binding.release(gateway.client, gateway.vms, vm, gateway.now())
    except binding.ClaimGone:
        return
    except KubeError as error:
        log.warning("ondemand_release_left_to_the_operator", vm=vm.name, namespace=vm.namespace, error=str(error))
        return
    gateway.metrics.releases.labels(vm.namespace, vm.pool).inc()
    audit.record(call, "release", vm)


async def _remove(gateway: Gateway, claim: VMClaim) -> None:
    try:
        left = await gateway.client.delete(VMCLAIMS, claim.namespace, claim.name, uid=claim.uid)
    except (NotFound, Conflict):
        # Somebody else was faster; another claim of this name is another request.
        left = None
    if left is None:
        gateway.claims.saw_deleted(claim.uid, claim.resource_version)
    else:
        gateway.claims.saw(left)


_ID = Parameter("request_id", "path", "The id that the request was made with, or got.")
_MESSAGE: Schema = refused(message=TEXT)
_READY = record({"hostname": TEXTS})
_CREATED = {
    201: record({"ok": {"const": True}, REQUEST_ID: TEXT}),
    400: _MESSAGE,
    403: _MESSAGE,
    404: {"anyOf": [refused(bad_templates=TEXTS), REFUSED]},
    409: refused(message=TEXT, request_id=TEXT),
    501: REFUSED,
}


def _shown(about: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {"ok": {"const": True}, REQUEST_ID: TEXT, "ready": {"type": "boolean"}, "message": TEXT},
        "required": ["ok", REQUEST_ID, "ready"],
        "additionalProperties": about,
    }


ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/api/v3/ondemandvm",
        create,
        "Ask for VMs that need not be ready yet.",
        _CREATED,
        body=table({"type": ["integer", "string"]}),
        auth="token",
        limit="creation",
    ),
    Route(
        "POST",
        "/api/v3/ondemandvm/{names}",
        create_by_path,
        "The same, with the names in the path.",
        _CREATED,
        parameters=(Parameter("names", "path", "Names of pools, joined by +, each as often as VMs are wanted."),),
        auth="token",
        limit="creation",
    ),
    Route(
        "GET",
        "/api/v3/ondemandvm/{request_id}",
        show,
        "What became of an on-demand request.",
        {200: _shown(_READY), 202: _shown(record({"ready": TEXT, "pending": TEXT})), 404: _MESSAGE, 501: REFUSED},
        parameters=(_ID,),
    ),
    Route(
        "DELETE",
        "/api/v3/ondemandvm/{request_id}",
        delete,
        "Give back all VMs of an on-demand request.",
        {200: record({"ok": {"const": True}}, message=TEXT), 403: REFUSED, 404: _MESSAGE, 501: REFUSED},
        parameters=(_ID,),
        auth="token",
        limit="deletion",
    ),
)
