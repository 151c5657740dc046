"""Failures of one pool: remembered, made known, and written down before their VM leaves its phase or its claim ends."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from vmpool.api.pool import MAX_RECENT_FAILURES, Creation, Failure, Poisoned
from vmpool.engine.world import World
from vmpool.plan import backoff
from vmpool.plan.actions import Action, Complete, EndClaim, Quarantine
from vmpool.plan.letters import fingerprint, poisoned_by
from vmpool.plan.snapshot import VM, PoolFacts, Reason, Step
from vmpool.plan.vm import ENDED_MACHINE_GONE
from vmpool.providers.errors import CredentialsRefused, Exhausted

OWED_FOR = timedelta(hours=1)
"""How long a failed place waits for its successor before a fresh request id is used instead."""
SLOWS_CREATION = (Step.CREATE, Step.BOOT)
BLAMELESS = frozenset({Reason.PURGED_PENDING, CredentialsRefused.reason, Exhausted.reason})
"""What says nothing of the template, nor of the next VM: its provider was out of reach, full, or did not let us."""
POISONS = (Step.CREATE, Step.BOOT, Step.ADOPT)
"""Steps on the way to Ready: what fails there again and again will fail with the next VM too."""


class Failures:
    """The pool's recent failures, its slow start, and the request ids that are owed a successor."""

    def __init__(self, pool: PoolFacts) -> None:
        self.recent: tuple[Failure, ...] = pool.status.recent_failures
        self.creation: Creation | None = pool.status.creation
        self.poison: Poisoned | None = pool.status.poison
        self._digest = pool.status.template_digest
        self._owed: dict[str, tuple[int, datetime]] = {}

    def template_is(self, digest: str) -> bool:
        """Say whether the template is another one: it begins with a clean slate, whatever the old one failed with."""
        if digest == self._digest:
            return False
        self._digest = digest
        self.creation = None
        self.poison = None
        return True

    def add(
        self, world: World, pool: PoolFacts, failure: Failure, *, digest: str | None = None, owed: bool = True
    ) -> bool:
        """Remember a failure and make it known; False when it was known already. ``owed``: its place is empty now.

        ``digest`` is that of the VM's template: what an older one failed with says nothing of the present one.
        """
        if self.remembers(failure):
            return False
        self.recent = (failure, *self.recent)[:MAX_RECENT_FAILURES]
        if owed:
            self._owed[failure.request_id] = (failure.retry_count, failure.failed_at)
        while len(self._owed) > MAX_RECENT_FAILURES:
            del self._owed[next(iter(self._owed))]
        tells = failure.error_class not in BLAMELESS and digest in (None, "", self._digest)
        if failure.step in SLOWS_CREATION and tells:
            retry = pool.spec.retry
            self.creation = backoff.after_failure(
                self.creation, failure.failed_at, base=retry.backoff, longest=retry.max_backoff, seed=pool.uid
            )
        if failure.step in POISONS and tells:
            self.poison = poisoned_by(self.poison, failure.fingerprint, failure.message, failure.failed_at)
        world.metrics.failures.labels(pool.namespace, pool.name, failure.step, failure.error_class).inc()
        return True

    def refused(self, pool: PoolFacts, now: datetime) -> None:
        """The API server refused a PooledVM: create more slowly, as after a failed VM."""
        retry = pool.spec.retry
        self.creation = backoff.after_failure(
            self.creation, now, base=retry.backoff, longest=retry.max_backoff, seed=pool.uid
        )

    def learn(self, written: Sequence[Failure]) -> None:
        """Take in what another process has written: two that lead for a while must not rub out each other's."""
        new = [failure for failure in written if not self.remembers(failure)]
        if new:
            newest_first = sorted((*self.recent, *new), key=lambda failure: failure.failed_at, reverse=True)
            self.recent = tuple(newest_first[:MAX_RECENT_FAILURES])

    def remembers(self, failure: Failure) -> bool:
        """Whether it is among the recent ones; newer ones may have pushed it out."""
        return any(known.is_of(failure) for known in self.recent)

    def succeeded(self, pool: PoolFacts) -> None:
        """A VM became Ready: create faster again."""
        full = min(pool.spec.limits.pending, max(1, pool.status.desired_replicas))
        self.creation = backoff.after_success(self.creation, full)
        self.poison = None

    def forgive(self) -> None:
        """Somebody redrives a failure: creates may begin again, from one at a time."""
        self.poison = None

    def paid(self, request_id: str) -> None:
        """A successor is there."""
        self._owed.pop(request_id, None)

    def owed(self, vms: Sequence[VM], now: datetime) -> tuple[tuple[str, int], ...]:
        """Return the request ids without a successor, oldest first."""
        if not self._owed:
            return ()
        newest: dict[str, int] = {}
        for vm in vms:
            newest[vm.request_id] = max(vm.retry_count, newest.get(vm.request_id, -1))
        for request_id, (retries, at) in list(self._owed.items()):
            if newest.get(request_id, -1) > retries or now - at > OWED_FOR:
                del self._owed[request_id]
        return tuple((request_id, retries) for request_id, (retries, _) in self._owed.items())


def failure_in(action: Action, now: datetime) -> Failure | None:
    """Return the record of the failure that an action is the answer to; None when there was none."""
    match action:
        case Quarantine(vm, step, reason, message):
            return failure_of(vm, step, reason, message, now)
        case Complete(vm, reason, message, step) if step:
            return failure_of(vm, step, reason, message, now)
        case EndClaim(vm, reason) if reason == ENDED_MACHINE_GONE:
            return failure_of(vm, Step.PROBE, reason, f"machine {vm.machine_id} is gone while it was claimed", now)
    return None


def failure_of(vm: VM, step: str, reason: str, message: str, now: datetime) -> Failure:
    """Return the record of a VM that is given up."""
    return Failure(
        vm=vm.name,
        provider=vm.provider,
        step=step,
        error_class=reason,
        message=message[:1024],
        failed_at=now,
        request_id=vm.request_id,
        retry_count=vm.retry_count,
        fingerprint=fingerprint(vm, step, reason, message),
        attempt=vm.attempt,
    )
