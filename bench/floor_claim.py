"""The floor of ``claim``: a watch that is told of a VMClaim, and the writes that serve it, with nothing decided."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from vmpool.api.meta import format_time
from vmpool.api.vm import Claim, ClaimRef
from vmpool.kube.kinds import POOLEDVMS, VMCLAIMS
from vmpool.kube.resource import Json

if TYPE_CHECKING:
    from bench.floor import Bare

WATCH = timedelta(minutes=30)
SILENCE = timedelta(minutes=5)
LIFETIME = timedelta(hours=1)
KIND_UID = "bench"
"""Nobody here asks whether a VMClaim is missing, which is all that the uid of its kind is for."""


async def bind(bare: "Bare", options: Mapping[str, Any], go: Callable[[], Awaitable[None]]) -> Mapping[str, float]:
    """Serve ``count`` VMClaims for one VM each: the claim, that it is Bound, and the phase of the VM."""
    vms = iter([item async for page in bare.client.list_pages(POOLEDVMS, bare.namespace) for item in page.items])
    page = await bare.client.list_page(VMCLAIMS, bare.namespace, limit=1)
    events = bare.client.watch(VMCLAIMS, bare.namespace, page.resource_version, WATCH, SILENCE)
    await go()
    begun = 0
    async with asyncio.TaskGroup() as work, aclosing(events):
        async for kind, raw in events:
            if kind == "ADDED":
                work.create_task(_serve(bare, raw["metadata"], next(vms)))
                begun += 1
            if begun == options["count"]:
                break
    return {"cpu_seconds": time.process_time()}


async def _serve(bare: "Bare", wish: Json, vm: Json) -> None:
    now = datetime.now(UTC)
    at, until = format_time(now), now + LIFETIME
    ref = ClaimRef(namespace=wish["namespace"], name=wish["name"], uid=wish["uid"], kind_uid=KIND_UID)
    owner = f"vmclaim:{wish['namespace']}/{wish['name']}"
    claim = Claim(id=wish["uid"], owner=owner, bound_at=now, expires_at=until, ref=ref, slot=0)
    meta = vm["metadata"]
    body = {"metadata": {"uid": meta["uid"]}, "spec": {"claim": claim.wire()}}
    await bare.client.patch_merge(POOLEDVMS, bare.namespace, meta["name"], body)
    given = {
        "slot": 0,
        "uid": meta["uid"],
        "name": meta["name"],
        "namespace": meta["namespace"],
        "pool": vm["spec"]["pool"],
        "hostName": vm["spec"]["hostName"],
        "address": vm["status"]["addresses"][0],
    }
    status = {"phase": "Bound", "boundAt": at, "expiresAt": format_time(until), "vms": [given]}
    await bare.client.patch_merge(VMCLAIMS, bare.namespace, wish["name"], {"status": status}, "status")
    claimed = {"phase": "Claimed", "phaseSince": at}
    await bare.client.patch_merge(POOLEDVMS, bare.namespace, meta["name"], {"status": claimed}, "status")


TASKS = {"bind": bind}
