"""What users do: past the gate, with the patience of people. A refusal is tried again, as people do."""

import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from tests.api import Answer, Json
from tests.crash.site import POOL, Site
from tests.objects import thing
from tests.waiting import until

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds: longer than any fault lasts, and its recovery."""
_numbers = itertools.count(1)


def moment(seconds: float) -> str:
    """A time so many seconds from now, as the API writes it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="microseconds").replace("+00:00", "Z")


async def wait(check: Callable[[], Awaitable[T]], what: str) -> T:
    """Wait for something as long as people do."""
    return await until(check, deadline=PATIENCE, what=what)


async def change(site: Site, **spec: Any) -> None:
    """Merge into the pool's spec."""
    (await site.pools.merge(POOL, {"spec": spec})).ok()


async def put(site: Site, plural: str, kind: str, name: str, **spec: Any) -> None:
    """Make an object of ours."""
    (await site.api.kind(plural, site.namespace).create(thing(kind, name, spec))).ok()


async def ready(site: Site) -> list[Json]:
    """The Ready VMs that nobody has."""
    return [vm for vm in await site.objects() if vm["status"]["phase"] == "Ready" and not vm["spec"].get("claim")]


async def has(site: Site, *, unclaimed: int, claimed: int = 0) -> None:
    """Wait until the pool has exactly so many Ready VMs that nobody has, and so many that somebody has."""

    async def there() -> bool:
        vms = await site.objects()
        taken = [vm for vm in vms if vm["status"]["phase"] == "Claimed"]
        free = [vm for vm in vms if vm["status"]["phase"] == "Ready" and not vm["spec"].get("claim")]
        return (len(free), len(taken), len(vms)) == (unclaimed, claimed, unclaimed + claimed)

    await wait(there, f"{unclaimed} VMs are Ready, {claimed} are Claimed, and there are no others")


async def check_out(site: Site, seconds: float = 3600.0) -> tuple[str, str]:
    """Take a Ready VM by the one conditional write that an allocator makes; return its name and the claim's id."""
    identity = f"claim-{next(_numbers)}"
    claim = {"id": identity, "owner": "alice", "boundAt": moment(0), "expiresAt": moment(seconds)}

    async def taken() -> str:
        for vm in await ready(site):
            patch = {"metadata": {"uid": vm["metadata"]["uid"]}, "spec": {"claim": claim}}
            answer: Answer = await site.vms.merge(vm["metadata"]["name"], patch)
            if answer.status == 200:
                return str(vm["metadata"]["name"])
        return ""

    name = await wait(taken, "a VM is checked out")

    async def shown() -> bool:
        vms = await site.objects()
        return not any(vm["metadata"]["name"] == name and not vm["spec"].get("claim") for vm in vms)

    # What is looked at comes by a watch: it must not be older than what was done.
    await wait(shown, "the claim is seen")
    return name, identity


async def release(site: Site, vm: str, identity: str) -> None:
    """Give a VM back."""
    patch = {"spec": {"claim": {"id": identity, "releasedAt": moment(0), "endReason": "Released"}}}
    (await site.vms.merge(vm, patch)).ok()


async def ask(site: Site, count: int = 1) -> str:
    """Make a VMClaim; return its name."""
    name = f"wish-{next(_numbers)}"
    await put(site, "vmclaims", "VMClaim", name, requests=[{"pool": POOL, "count": count}])
    return name


async def bound(site: Site, name: str) -> Json:
    """Wait until a VMClaim is Bound; return its status."""
    claims = site.api.kind("vmclaims", site.namespace)

    async def is_bound() -> Json:
        status = (await claims.get(name)).ok().get("status", {})
        return dict(status) if status.get("phase") == "Bound" else {}

    return await wait(is_bound, f"{name} is Bound")


async def give_up(site: Site, name: str) -> None:
    """Delete a VMClaim, and wait until it is gone."""
    claims = site.api.kind("vmclaims", site.namespace)
    (await claims.delete(name)).ok()

    async def is_gone() -> bool:
        return (await claims.get(name)).status == 404

    await wait(is_gone, f"{name} is gone")


async def drained(site: Site) -> None:
    """Delete the pool and then its provider, and wait until both are gone."""
    await site.drain()
    await gone(site)


async def gone(site: Site) -> None:
    """Wait until a pool that was deleted is gone, then let its provider go too."""
    await wait(site.is_empty, "the pool and its VMs are gone")
    await site.release()
    await wait(site.is_released, "the provider is gone")
