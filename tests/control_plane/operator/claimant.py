"""Somebody who asks for VMs by VMClaims, and what the tests of the queue see of it."""

import json
import secrets
from typing import Any

from tests.api import Json
from tests.control_plane.operator.stage import DEADLINE, Stage
from tests.objects import thing
from tests.planes import Kubectl
from tests.waiting import until


class Claimant:
    """Makes VMClaims in a stage's namespace, or another one, and waits for what becomes of them."""

    def __init__(self, stage: Stage, namespace: str = "") -> None:
        self.stage = stage
        self.namespace = namespace or stage.namespace
        self.claims = stage.api.kind("vmclaims", self.namespace)
        self._tag = secrets.token_hex(3)
        self._count = 0

    async def ask(self, count: int = 1, *, name: str = "", pool: str = "", **spec: Any) -> str:
        """Make a claim for VMs of the stage's pool; ``requests`` in ``spec`` replaces that. Return its name."""
        self._count += 1
        name = name or f"c{self._count}-{self._tag}"
        base = {"requests": [{"pool": pool or self.stage.pool, "count": count}]}
        (await self.claims.create(thing("VMClaim", name, {**base, **spec}))).ok()
        return name

    async def change(self, name: str, **spec: Any) -> None:
        """Merge into a claim's spec."""
        (await self.claims.merge(name, {"spec": spec})).ok()

    async def status(self, name: str) -> Json:
        """The status of a claim."""
        return dict((await self.claims.get(name)).ok()["status"])

    async def comes_to(self, name: str, phase: str, reason: str = "") -> Json:
        """Wait until a claim is in a phase, for a reason if one is given; return its status."""

        async def there() -> Json | None:
            status = await self.status(name)
            return status if status["phase"] == phase and reason in ("", status.get("reason")) else None

        return await until(there, deadline=DEADLINE, what=f"{name} is {phase} {reason}")

    async def waits(self, name: str, reason: str = "", place: str = "") -> Json:
        """Wait until it is written that a claim waits, for this reason and in this place; return its status."""

        async def there() -> Json | None:
            status = await self.status(name)
            right = reason in ("", status.get("reason")) and place in ("", status.get("position"))
            return status if status["phase"] == "Pending" and status.get("position") and right else None

        return await until(there, deadline=DEADLINE, what=f"{name} waits {reason} {place}")

    async def vms(self, name: str) -> list[Json]:
        """The PooledVMs that a claim's status names, by slot."""
        slots = sorted((await self.status(name)).get("vms", ()), key=lambda one: one["slot"])
        return [await self.stage.vm(one["name"]) for one in slots]

    async def bound(self, *names: str) -> list[Json]:
        """Wait until claims are Bound; return what their statuses say of their VMs."""
        return [one for name in names for one in (await self.comes_to(name, "Bound"))["vms"]]


def history(kubectl: Kubectl, path: str, since: str) -> list[Json]:
    """Every version of every object below a path since a resourceVersion, as the server's watch tells it."""
    lines = kubectl("get", "--raw", f"{path}?watch=1&resourceVersion={since}&timeoutSeconds=1")
    return [json.loads(line)["object"] for line in lines.splitlines()]


def version(made: Json) -> int:
    """The resourceVersion of an object as a number."""
    return int(made["metadata"]["resourceVersion"])


def bound_order(claims: list[Json]) -> list[str]:
    """Names of claims in the order in which they were Bound, from every version of each."""
    names: list[str] = []
    for made in sorted(claims, key=version):
        name = made["metadata"]["name"]
        if made["status"]["phase"] == "Bound" and name not in names:
            names.append(name)
    return names
