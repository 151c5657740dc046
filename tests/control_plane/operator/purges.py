"""A purge policy of one test, and what the operator said about it."""

import json
from collections.abc import Callable
from typing import Any

from tests.api import Json
from tests.control_plane.operator.stage import DEADLINE, Stage
from tests.objects import thing
from tests.operators import Operator
from tests.waiting import until

NEVER = "8000h"
CALM = {f"max{state}Age": NEVER for state in ("Pending", "Ready", "Completed", "Orphaned")} | {"interval": "1s"}
"""A policy that removes nothing; tests shorten the one age that they are about."""


SOON = {
    "VMPOOL_PURGE_LOOK_SECONDS": "0.3",
    "VMPOOL_PURGE_CYCLE_SECONDS": "5",
    "VMPOOL_STRAGGLER_GRACE_SECONDS": "1",
    "VMPOOL_STRAGGLER_TTL_SECONDS": "3600",
}
"""Settings of an operator that looks again soon after a policy's pools change."""


class Purge:
    """The test's policy, and what the operator said about it."""

    def __init__(self, stage: Stage, served: Operator) -> None:
        self.stage = stage
        self.served = served
        self.name = f"tidy-{stage.pool.removeprefix('web-')}"
        self.policies = stage.api.kind("purgepolicies", stage.namespace)

    async def put(self, **spec: Any) -> None:
        """Make the policy, or change its spec."""
        if (await self.policies.get(self.name)).status == 404:
            (await self.policies.create(thing("PurgePolicy", self.name, CALM | spec))).ok()
        else:
            (await self.policies.merge(self.name, {"spec": spec})).ok()

    async def status(self) -> Json:
        return dict((await self.policies.get(self.name)).ok().get("status", {}))

    async def says(self, kind: str, status: str, reason: str) -> str:
        return await self.stage.says(self.policies, self.name, kind, status, reason)

    async def cycle(self, wanted: Callable[[Json], bool], what: str) -> Json:
        """Wait for a recorded cycle like this, and return it."""

        async def found() -> Json | None:
            last = (await self.status()).get("lastCycle")
            return last if last is not None and wanted(last) else None

        return await until(found, deadline=DEADLINE, what=what)

    def lines(self) -> list[Json]:
        """The operator's log lines about this policy."""
        written = [json.loads(line) for line in self.served.lines().splitlines() if line.startswith("{")]
        return [line for line in written if line.get("policy") == f"{self.stage.namespace}/{self.name}"]

    def said(self, part: str) -> list[Json]:
        return [line for line in self.lines() if part in line["event"]]

    def cycles(self) -> int:
        """How many cycles have ended."""
        return len(self.said("[*] [purge] Completed purge cycle in "))

    async def more_cycles(self, count: int = 3) -> None:
        """Wait until so many more cycles have ended."""
        before = self.cycles()
        await until(lambda: self.cycles() >= before + count, deadline=DEADLINE, what=f"{count} more cycles")
