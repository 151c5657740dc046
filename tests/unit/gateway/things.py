"""Objects as the API server would tell them, for mirrors that know only what a test lays over them."""

import itertools
from datetime import datetime
from typing import Any

from tests.objects import Json, claim, pool, thing, vm
from vmpool.api.meta import format_time
from vmpool.gateway.context import Gateway
from vmpool.plan.snapshot import VM

_VERSIONS = itertools.count(1)


def stored(body: Json, uid: str, namespace: str = "ci", **metadata: Any) -> Json:
    """An object as the server has it, newer than all before."""
    made = {"uid": uid, "namespace": namespace, "resourceVersion": str(next(_VERSIONS)), "generation": 1, **metadata}
    return {**body, "metadata": {**body["metadata"], **made}}


def put_pool(gateway: Gateway, name: str, namespace: str = "ci", created: str = "", **spec: Any) -> Json:
    """Let the gateway see a pool, whose uid is ``<namespace>/<name>``."""
    more = {"creationTimestamp": created} if created else {}
    raw = stored(pool(name, **spec), f"{namespace}/{name}", namespace, **more)
    gateway.pools.saw(raw)
    return raw


def vm_object(
    name: str, of: str = "web", phase: str = "Ready", namespace: str = "ci", status: Json | None = None, **spec: Any
) -> Json:
    """A PooledVM of a pool in a phase."""
    body = vm(name, **{"pool": of, "poolUid": f"{namespace}/{of}", **spec})
    body["status"] = {"phase": phase, **(status or {})}
    return stored(body, f"uid-{name}", namespace)


def put_vm(gateway: Gateway, name: str, of: str = "web", phase: str = "Ready", **more: Any) -> None:
    """Let the gateway see a PooledVM."""
    gateway.vms.saw(vm_object(name, of, phase, **more))


def put_claim(gateway: Gateway, body: Json, status: Json | None = None, **metadata: Any) -> Json:
    """Let the gateway see a VMClaim as it made it itself; its uid is its name."""
    raw = stored({**body, "status": status or {}}, body["metadata"]["name"], body["metadata"]["namespace"], **metadata)
    gateway.claims.saw(raw)
    return raw


def held(by: str = "vmpool:anonymous", **fields: Any) -> Json:
    """A claim on a VM."""
    return claim(**{"owner": by, **fields})


def step(name: str, began: datetime, ended: datetime | None) -> Json:
    """An entry of a step ledger."""
    made = {"name": name, "startedAt": format_time(began)}
    return made if ended is None else {**made, "finishedAt": format_time(ended)}


def fact(gateway: Gateway, name: str) -> VM:
    """A PooledVM as the gateway sees it."""
    entry = gateway.vms.by_uid(f"uid-{name}")
    assert entry is not None
    assert entry.fact is not None
    return entry.fact


__all__ = ["fact", "held", "put_claim", "put_pool", "put_vm", "step", "stored", "thing", "vm_object"]
