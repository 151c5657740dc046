"""A health policy of one test: what it says of its pool, on objects and in the log."""

import json
import re
from typing import Any

from tests.api import Json, Objects
from tests.control_plane.operator.stage import DEADLINE, Stage, condition
from tests.objects import LONG_AGO, thing
from tests.operators import Operator
from tests.waiting import until

TYPES = ("Healthy", "Degraded", "Unhealthy")
LINE = re.compile(
    r"\[\*\] \[health\] Status: (HEALTHY|DEGRADED|UNHEALTHY) "
    r"\| Queues: P=(\d+) R=(\d+) C=(\d+) \| DLQ=(\d+) \| Stuck=(\d+) \| Orphaned=(\d+)"
)
LETTER = {
    "queue": "kept-elsewhere",
    "vm": "web-a",
    "vmUid": "uid-of-web-a",
    "errorClass": "InvalidTemplate",
    "errorMessage": "template does not exist",
    "failedAt": LONG_AGO,
    "step": "create",
    "fingerprint": "0123456789abcdef",
}


def policies(stage: Stage) -> Objects:
    return stage.api.kind("healthpolicies", stage.namespace)


async def put_policy(stage: Stage, *, every: str = "1s", **spec: Any) -> None:
    """Make a HealthPolicy with the pool's name; ``spec`` gives thresholds, or other fields of the spec."""
    fields = {"hysteresis", "onUnhealthy"}
    own = {key: value for key, value in spec.items() if key in fields}
    limits = {key: value for key, value in spec.items() if key not in fields}
    body = thing("HealthPolicy", stage.pool, {"interval": every, "thresholds": limits, **own})
    (await policies(stage).create(body)).ok()


async def judged(stage: Stage, replicas: int, **spec: Any) -> None:
    """A provider and a pool that names the policy."""
    await stage.put_provider()
    await stage.put_pool(replicas=replicas, healthPolicy=stage.pool, **spec)


async def verdict(stage: Stage, health: str) -> Json:
    """Wait until policy and pool say this and nothing else, for their present specs; return the policy's status."""
    seen: Json = {}

    async def said() -> bool:
        policy = (await policies(stage).get(stage.pool)).ok()
        pool = (await stage.pools.get(stage.pool)).ok()
        seen.clear()
        seen.update(policy.get("status", {}))
        for one in (policy, pool):
            fresh = [condition(one, kind) for kind in TYPES]
            true = [kind for kind, found in zip(TYPES, fresh, strict=True) if found["status"] == "True"]
            if true != [health.capitalize()]:
                return False
            assert {found["status"] for found in fresh} == {"True", "False"}
            if {found["observedGeneration"] for found in fresh} != {one["metadata"]["generation"]}:
                return False
        return bool(policy["status"]["health"] == health)

    await until(said, deadline=DEADLINE, what=f"policy and pool are {health}")
    return seen


async def write_letters(stage: Stage, numbers: range, queue_from: str = "clone") -> None:
    """Dead letters of the pool, as if its VMs had failed."""
    pool = (await stage.pools.get(stage.pool)).ok()
    letters = stage.api.kind("deadletters", stage.namespace)
    about = {"pool": stage.pool, "poolUid": pool["metadata"]["uid"], "provider": stage.provider}
    for number in numbers:
        body = thing("DeadLetter", f"{stage.pool}-{number}", {**LETTER, **about, "queueFrom": queue_from})
        (await letters.create(body)).ok()


async def remove_letters(stage: Stage, numbers: range) -> None:
    letters = stage.api.kind("deadletters", stage.namespace)
    for number in numbers:
        (await letters.delete(f"{stage.pool}-{number}")).ok()


def checks(stage: Stage, operator: Operator) -> list[re.Match[str]]:
    """The log lines of the policy's checks, oldest first."""
    found = []
    for text in operator.lines().splitlines():
        line = json.loads(text) if text.startswith("{") else {}
        if line.get("policy") == f"{stage.namespace}/{stage.pool}" and "[health]" in line["event"]:
            match = LINE.fullmatch(line["event"])
            assert match is not None, line["event"]
            assert line["level"] == "info"
            found.append(match)
    return found


async def checked(stage: Stage, operator: Operator, count: int) -> None:
    """Wait for so many more checks."""
    wanted = len(checks(stage, operator)) + count
    await until(lambda: len(checks(stage, operator)) >= wanted, deadline=DEADLINE, what=f"{count} more checks")


async def logged(stage: Stage, operator: Operator, level: str) -> re.Match[str]:
    """Wait for a check that says this; a pool that is new to its policy is judged before the next check is due."""
    await until(lambda: checks(stage, operator)[-1][1] == level, deadline=DEADLINE, what=f"a check says {level}")
    return checks(stage, operator)[-1]
