"""The endpoints of one VM: look, change, release, and the operations that are still to come."""

from collections.abc import Mapping

from vmpool.api import keys
from vmpool.engine import binding
from vmpool.engine.world import BY_NAME
from vmpool.gateway import audit, changes, vmwire
from vmpool.gateway.answers import Answer, forbidden, not_found, not_implemented
from vmpool.gateway.auth.caller import Caller, stamped
from vmpool.gateway.context import Call, Gateway
from vmpool.gateway.requested import object_of, shown, whole
from vmpool.gateway.routes import OK, REFUSED, Parameter, Route, Schema
from vmpool.kube.errors import NotFound
from vmpool.plan.snapshot import VM, ClaimFacts, PoolFacts

MAX_DISK_GB = 2048


async def list_pools(call: Call) -> Answer:
    """Name every pool; aliases are not among them."""
    return Answer(call.gateway.directory.all_shown())


async def show_vm(call: Call) -> Answer:
    """Tell what is known of a VM, from the mirror alone."""
    hostname = vmwire.check_hostname(call.path["name"])
    vm = _find(call.gateway, hostname)
    gateway = call.gateway
    template = gateway.directory.shown(vm.pool_uid, vm.pool)
    return Answer(
        {
            "ok": True,
            # In the spelling of the request: clients look for that.
            vmwire.short(call.path["name"]): vmwire.described(vm, template, _pool(gateway, vm), gateway.now()),
        }
    )


async def change_vm(call: Call) -> Answer:
    """Change lifetime and tags for the VM's owner, in one write."""
    hostname = vmwire.check_hostname(call.path["name"])
    gateway = call.gateway
    _find(gateway, hostname)
    body = await object_of(call)
    vm, claim = await _own(call, hostname)
    if claim.released_at is not None:
        raise _has_ended(vm)
    wanted = changes.wanted_of(body, claim, _pool(gateway, vm), gateway.own)
    if not wanted:
        return Answer({"ok": True})
    try:
        vm = await binding.change(gateway.client, gateway.vms, vm, expires_at=wanted.expires_at, tags=wanted.tags)
    except binding.ClaimGone as error:
        raise _has_ended(vm) from error
    expires_at = wanted.expires_at.isoformat() if wanted.expires_at is not None else ""
    audit.record(call, "change", vm, expires_at=expires_at, tags=sorted(wanted.tags))
    return Answer({"ok": True})


async def release_vm(call: Call) -> Answer:
    """End the claim for the VM's owner; a release that is repeated gets the same answer, as in VMPooler."""
    hostname = vmwire.check_hostname(call.path["name"])
    gateway = call.gateway
    vm, claim = await _own(call, hostname)
    if claim.released_at is not None:
        return Answer({"ok": True})
    try:
        vm = await binding.release(gateway.client, gateway.vms, vm, gateway.now())
    except binding.ClaimGone:
        # Its time was up, or somebody was faster: what was asked for is done.
        return Answer({"ok": True})
    gateway.metrics.releases.labels(vm.namespace, vm.pool).inc()
    audit.record(call, "release", vm)
    return Answer({"ok": True})


async def add_disk(call: Call) -> Answer:
    """Refuse: no provider can do that yet."""
    await call.caller()
    hostname = vmwire.check_hostname(call.path["name"])
    whole(call.path["size"], "Disk size", MAX_DISK_GB)
    vm, _ = await _own(call, hostname)
    raise not_implemented(
        f"disks cannot be added: no provider can do that yet, nor can {vm.provider!r}, where this VM is"
    )


async def take_snapshot(call: Call) -> Answer:
    """Refuse: no provider can do that yet."""
    await call.caller()
    vm, _ = await _own(call, call.path["name"].lower())
    raise not_implemented(f"snapshots cannot be taken: no provider can do that yet, nor can {vm.provider!r}")


async def revert(call: Call) -> Answer:
    """Refuse: there are no snapshots yet."""
    await call.caller()
    vm, _ = await _own(call, call.path["name"].lower())
    raise not_implemented(f"{vm.name} cannot be reverted: no provider can take snapshots yet, so it has none")


def _find(gateway: Gateway, hostname: str, caller: Caller | None = None) -> VM:
    """Return the VM of a host name in lower case, with or without its domain. Raises ``Refusal`` 404.

    Names are drawn at random, so namesakes in two namespaces are rare; then it is the caller's own, then the one with
    this very domain, then the older one.
    """
    entries = gateway.vms.by_index(BY_NAME, vmwire.short(hostname))
    vms = [entry.fact for entry in entries if entry.fact is not None]
    if not vms:
        raise not_found(f"there is no VM {shown(hostname)}")

    def strange(vm: VM) -> tuple[object, ...]:
        mine = caller is not None and vm.claim is not None and _owns(gateway, caller, vm.claim)
        return not mine, vm.host_name.lower() != hostname, vm.created_at, vm.namespace

    return min(vms, key=strange)


async def _own(call: Call, hostname: str) -> tuple[VM, ClaimFacts]:
    """Return a VM that the caller has, or had until it was released, and its claim.

    Raises ``Refusal``: 404 for one that there is not, or that nobody has; 401; 403 for somebody else's.
    """
    gateway = call.gateway
    vm = _find(gateway, hostname, call.known)
    if vm.claim is None:
        vm = await _again(gateway, vm)
    if vm.claim is None:
        raise not_found(f"VM {vm.name} is not checked out")
    caller = await call.caller()
    vm = _find(gateway, hostname, caller)
    if vm.claim is None or not _owns(gateway, caller, vm.claim):
        raise forbidden(f"VM {vm.name} is somebody else's")
    return vm, vm.claim


async def _again(gateway: Gateway, vm: VM) -> VM:
    """Ask the API server before a VM is said to be nobody's: another gateway may have handed it out just now."""
    try:
        await gateway.vms.quorum_get(vm.namespace, vm.name)
    except NotFound as error:
        raise not_found(f"there is no VM {shown(vm.name)}") from error
    entry = gateway.vms.by_name(vm.namespace, vm.name)
    return entry.fact if entry is not None and entry.fact is not None else vm


def _owns(gateway: Gateway, caller: Caller, claim: ClaimFacts) -> bool:
    """Say whether a claim is this caller's: made by a checkout, or for an on-demand request."""
    stands_for = stamped(caller.identity).user
    if claim.owner in (caller.user, stands_for):
        return True
    if claim.ref is None or not claim.owner.startswith(keys.CLAIM_OWNER_PREFIX):
        return False
    # Without the admission policy the engine believes no requester; of the gateway's own claims the gateway may.
    entry = gateway.claims.by_uid(claim.ref.uid)
    wish = entry.fact if entry is not None else None
    ours = wish is not None and bool(wish.ondemand) and wish.namespace == gateway.settings.namespace
    return ours and wish is not None and wish.spec.requester == stands_for


def _has_ended(vm: VM) -> Exception:
    return not_found(f"VM {vm.name} is not yours any more: its claim has ended")


def _pool(gateway: Gateway, vm: VM) -> PoolFacts | None:
    entry = gateway.pools.by_uid(vm.pool_uid)
    return entry.fact if entry is not None else None


_NUMBER: Schema = {"type": "number"}
_TEXT: Schema = {"type": "string"}
_VM: Schema = {
    "type": "object",
    "properties": {
        "template": _TEXT,
        "lifetime": _NUMBER,
        "running": _NUMBER,
        "remaining": _NUMBER,
        "start_time": {"type": "string", "format": "date-time"},
        "end_time": {"type": "string", "format": "date-time"},
        "state": {"enum": [vmwire.PENDING, vmwire.READY, vmwire.RUNNING, vmwire.DESTROYED]},
        "tags": {"type": "object", "additionalProperties": _TEXT},
        "ip": _TEXT,
        "fqdn": _TEXT,
        "host": _TEXT,
    },
    "required": ["template", "state", "ip", "fqdn", "host"],
}
_FAILURE: Schema = {
    "type": "object",
    "properties": {
        "ok": {"const": False},
        "error": _TEXT,
        "failure": {"type": "array", "items": _TEXT},
    },
    "required": ["ok"],
}
_NAME = Parameter("name", "path", "Host name, short or with its domain.", required=True)
_OWNERS: Mapping[int, Schema] = {400: REFUSED, 401: REFUSED, 403: REFUSED, 404: REFUSED, 503: REFUSED}
_NOT_YET: Mapping[int, Schema] = {**_OWNERS, 501: REFUSED}

ROUTES: tuple[Route, ...] = (
    Route("GET", "/api/v3/vm", list_pools, "The names of all pools", {200: {"type": "array", "items": _TEXT}}),
    Route(
        "GET",
        "/api/v3/vm/{name}",
        show_vm,
        "One VM: state, times, tags, address",
        {
            200: {
                "type": "object",
                "properties": {"ok": {"const": True}},
                "required": ["ok"],
                "additionalProperties": _VM,
            },
            400: REFUSED,
            404: REFUSED,
        },
        parameters=(_NAME,),
    ),
    Route(
        "PUT",
        "/api/v3/vm/{name}",
        change_vm,
        "Change lifetime (hours since the checkout) and tags of a VM of yours",
        {200: OK, **_OWNERS, 400: _FAILURE},
        body={
            "type": "object",
            "properties": {
                "lifetime": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[0-9]+$"}]},
                "tags": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
            },
            "additionalProperties": False,
        },
        parameters=(_NAME,),
        auth="token",
    ),
    Route(
        "DELETE",
        "/api/v3/vm/{name}",
        release_vm,
        "Release a VM of yours: it is destroyed",
        {200: OK, **_OWNERS},
        parameters=(_NAME,),
        auth="token",
        limit="deletion",
    ),
    Route(
        "POST",
        "/api/v3/vm/{name}/disk/{size}",
        add_disk,
        "Add a disk; not possible yet",
        _NOT_YET,
        parameters=(_NAME, Parameter("size", "path", "Gigabytes, 1 to 2048.", required=True)),
        auth="token",
        limit="creation",
    ),
    Route(
        "POST",
        "/api/v3/vm/{name}/snapshot",
        take_snapshot,
        "Take a snapshot; not possible yet",
        _NOT_YET,
        parameters=(_NAME,),
        auth="token",
        limit="creation",
    ),
    Route(
        "POST",
        "/api/v3/vm/{name}/snapshot/{snapshot}",
        revert,
        "Revert to a snapshot; not possible yet",
        _NOT_YET,
        parameters=(_NAME, Parameter("snapshot", "path", "Id of the snapshot.", required=True)),
        auth="token",
        limit="creation",
    ),
)
