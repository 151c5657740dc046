"""Dead letters of one test: its queue, what it holds, and what was done with a letter."""

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.api import Json, Objects
from tests.control_plane.operator.stage import DEADLINE, Stage
from tests.objects import thing
from tests.waiting import until


class Box:
    """The letters of a stage's pool, and the queue that keeps them."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.queue = f"dlq-{stage.pool}"
        self.letters: Objects = stage.api.kind("deadletters", stage.namespace)
        self.queues: Objects = stage.api.kind("deadletterqueues", stage.namespace)

    async def make(self, **spec: Any) -> None:
        (await self.queues.create(thing("DeadLetterQueue", self.queue, spec))).ok()

    async def pool(self, **spec: Any) -> None:
        """Make provider and pool; the pool names the queue."""
        await self.stage.put_provider()
        await self.stage.put_pool(**{"deadLetterQueue": self.queue, **spec})

    async def all(self, of: str = "") -> list[Json]:
        """The letters under one queue name, or under all, oldest first."""
        items = (await self.letters.list(fieldSelector=f"spec.queue={self.queue}")).ok()["items"]
        mine = [one for one in items if of in ("", one["spec"]["queueFrom"])]
        return sorted(mine, key=lambda one: one["spec"]["failedAt"])

    async def some(self, count: int, of: str = "") -> list[Json]:
        """Wait until there are so many."""

        async def there() -> list[Json] | None:
            found = await self.all(of)
            return found if len(found) == count else None

        what = f"{count} letters {of}"
        if count:
            return list(await until(there, deadline=DEADLINE, what=what) or ())
        await until(lambda: self._none(of), deadline=DEADLINE, what=what)
        return []

    async def _none(self, of: str) -> bool:
        return not await self.all(of)

    async def put(self, name: str, days_ago: float, **spec: Any) -> None:
        """Write a letter by hand, of a VM that is gone."""
        failed = datetime.now(UTC) - timedelta(days=days_ago)
        base = {
            "queue": self.queue,
            "vm": name,
            "vmUid": f"uid-of-{name}",
            "pool": self.stage.pool,
            "poolUid": "uid-of-pool",
            "queueFrom": "clone",
            "errorClass": "InvalidTemplate",
            "errorMessage": f"no image for {name}",
            "failedAt": failed.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "provider": self.stage.provider,
            "step": "create",
            "fingerprint": "abc123",
        }
        (await self.letters.create(thing("DeadLetter", name, {**base, **spec}))).ok()

    async def handled(self, name: str, phase: str) -> Json:
        """Wait until a letter's action was done; return its status."""

        async def done() -> Json | None:
            status = (await self.letters.get(name)).ok()["status"]
            return dict(status) if status["phase"] == phase else None

        return await until(done, deadline=DEADLINE, what=f"{name} is {phase}")

    async def redrive(self, letter: Json | str) -> None:
        name = letter if isinstance(letter, str) else letter["metadata"]["name"]
        (await self.letters.merge(name, {"spec": {"action": "redrive"}})).ok()

    async def unanswered(self, letter: Json) -> None:
        """Put a letter back to where it was when its operator ended between the redrive and the answer."""
        lost = {"phase": "Kept", "observedGeneration": -1, "message": None, "handledAt": None, "successor": None}
        (await self.letters.merge(letter["metadata"]["name"], {"status": lost}, "status")).ok()

    async def status(self) -> Json:
        return dict((await self.queues.get(self.queue)).ok()["status"])

    async def holds(self, **sizes: int) -> Json:
        """Wait until the queue's status has these sizes by queue name; return it."""

        async def there() -> Json | None:
            status = await self.status()
            counted = {one["name"]: one["entries"] for one in status.get("queues", ())}
            right = counted == sizes and status["entries"] == sum(sizes.values())
            return status if right and status["observedGeneration"] > 0 else None

        return await until(there, deadline=DEADLINE, what=f"{self.queue} holds {sizes}")
