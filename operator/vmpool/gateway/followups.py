"""Claims that their clients were told they have not got: ended in the background, as soon as they show.

A client that was answered 503 asks again. What its first request got all the same would be nobody's until its lifetime
ends; so it is given up at once. Such a VM is destroyed, because a claimed VM is never ready again.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from vmpool.engine import binding
from vmpool.engine.world import BY_CLAIM
from vmpool.kube.client import Client
from vmpool.kube.errors import KubeError
from vmpool.kube.mirror import Change, Mirror
from vmpool.plan.snapshot import VM
from vmpool.telemetry import logs

log = logs.get(__name__)

T = TypeVar("T")

GIVEN_BACK: Final = "CheckoutFailed"
"""``endReason`` of a claim whose client was told that there is none."""
FOLLOW_SECONDS: Final = 120.0
"""How long a lost write is looked out for, and a release tried: the API server ends each request after 60 s."""
DOUBTS: Final = 10_000
"""Lost writes that are looked out for at once; above it the oldest is left to the end of its lifetime."""
PAUSE_SECONDS: Final = 0.2
"""After the first release that failed; doubles each time."""
PAUSE_LONGEST_SECONDS: Final = 10.0


class FollowUps:
    """The background work of one gateway; it ends by itself, and with the process at the latest."""

    def __init__(self, client: Client, vms: Mirror[VM]) -> None:
        self._client = client
        self._vms = vms
        self._doubts: OrderedDict[str, float] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._releases: dict[asyncio.Task[Any], VM] = {}
        vms.on_change(self._changed)

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run something that outlives its request; what it raises is for whoever still waits for it."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def settle(self, seconds: float) -> None:
        """Wait for what is going on and for what follows from it, at most so long; log what is left undone.

        For the end of the process: lost writes that have not shown are nobody's from then on.
        """
        end = time.monotonic() + seconds
        while self._tasks and (left := end - time.monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=left)
        self._forget_what_cannot_show()
        for claim_id in self._doubts:
            log.error("checkout_forgotten", claim_id=claim_id)
        for vm in self._releases.values():
            assert vm.claim is not None
            log.error("checkout_forgotten", vm=vm.name, namespace=vm.namespace, claim_id=vm.claim.id)

    def give_back(self, vm: VM) -> None:
        """End the claim on a VM, however often that has to be tried."""
        # Without a claim the mirror knows already that the object is gone.
        if vm.claim is not None:
            task = self.start(self._release(vm), f"give-back/{vm.name}")
            self._releases[task] = vm
            task.add_done_callback(self._releases.pop)

    def doubt(self, claim_id: str) -> None:
        """Give the VM back should the write of this claim show after all. Only for ids that no other request has."""
        self._forget_what_cannot_show()
        self._doubts[claim_id] = time.monotonic()
        if len(self._doubts) > DOUBTS:
            forgotten, _ = self._doubts.popitem(last=False)
            log.error("checkout_forgotten", claim_id=forgotten)
        for entry in self._vms.by_index(BY_CLAIM, claim_id):
            if entry.fact is not None:
                self._found(entry.fact)

    def _forget_what_cannot_show(self) -> None:
        now = time.monotonic()
        while self._doubts and now - next(iter(self._doubts.values())) > FOLLOW_SECONDS:
            self._doubts.popitem(last=False)

    def _changed(self, change: Change[VM]) -> None:
        fact = change.new.fact if change.new is not None else None
        if self._doubts and fact is not None and fact.claim is not None and fact.claim.id in self._doubts:
            self._found(fact)

    def _found(self, vm: VM) -> None:
        assert vm.claim is not None
        self._doubts.pop(vm.claim.id, None)
        log.warning("checkout_found", vm=vm.name, namespace=vm.namespace, claim_id=vm.claim.id)
        self.give_back(vm)

    async def _release(self, vm: VM) -> None:
        assert vm.claim is not None
        end, pause = time.monotonic() + FOLLOW_SECONDS, PAUSE_SECONDS
        while True:
            try:
                await binding.release(self._client, self._vms, vm, datetime.now(UTC), GIVEN_BACK)
            except binding.ClaimGone:
                return
            except KubeError as error:
                if time.monotonic() + pause > end:
                    log.error(
                        "checkout_kept", vm=vm.name, namespace=vm.namespace, claim_id=vm.claim.id, error=str(error)
                    )
                    return
            else:
                log.warning("checkout_given_back", vm=vm.name, namespace=vm.namespace, claim_id=vm.claim.id)
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_LONGEST_SECONDS)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Looked at here: nobody may be waiting for it any more.
            task.exception()
