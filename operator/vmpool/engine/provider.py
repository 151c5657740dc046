"""The loop of one VMProvider: open and verify the far side, list its machines, hold what must not be deleted."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

from vmpool.api import keys
from vmpool.api.conditions import ConditionType, find
from vmpool.api.provider import Circuit, VMProviderStatus
from vmpool.engine import farside, writes
from vmpool.engine.facts import ProviderObject
from vmpool.engine.glances import Glances
from vmpool.engine.lane import Lane, LaneClosed, Slots, Urgency
from vmpool.engine.loop import Done, Loop
from vmpool.engine.redaction import Redaction
from vmpool.engine.secrethold import SecretHold
from vmpool.engine.stragglers import Stragglers
from vmpool.engine.world import BY_PROVIDER, World
from vmpool.kube.errors import Conflict, Refused
from vmpool.kube.events import ObjectRef
from vmpool.kube.kinds import VMPROVIDERS
from vmpool.plan.provider import (
    ProviderSnapshot,
    Verdict,
    identity_verdict,
    must_hold,
    provider_status,
)
from vmpool.plan.snapshot import ProviderFacts
from vmpool.providers import registry
from vmpool.providers.base import HasConsole, Machine, Provider
from vmpool.providers.errors import CredentialsRefused, InvalidConfig, ProviderError
from vmpool.telemetry import logs

log = logs.get(__name__)


class ProviderLoop(Loop):
    """Everything about one far side that is not a single VM."""

    kind = "VMProvider"

    def __init__(self, world: World, obj: ProviderObject) -> None:
        super().__init__(world.settings, world.metrics)
        self.world = world
        self.uid = obj.uid
        self.obj = obj
        self.key = (obj.namespace, obj.name)
        self.lane = Lane(obj.namespace, obj.name, obj.spec, world.metrics)
        self.verdict = Verdict()
        self.glances = Glances(
            self.lane,
            lambda: world.vms.count(BY_PROVIDER, self.key),
            lambda: self.obj.spec.timeouts.observe,
            lambda how: world.metrics.looks.labels(*self.key, how).inc(),
        )
        self.stragglers = Stragglers(world, self)
        self._session: Provider | None = None
        self._opened_with = ""
        self._verified_generation = -1
        self._identity = ""
        self.secret = SecretHold(world, obj.uid, obj.namespace, obj.status.held_secret or "")
        self._listed_at: datetime | None = None
        self._list_wanted = False
        self._list_asked_at: datetime | None = None
        self._verified_at: datetime | None = None
        self._identified = False
        """Whether the far side has answered who it is the last time that it was asked."""
        self._preparing = "its identity and finalizers are being written"
        self._trouble = False
        self._status_at: datetime | None = None
        self._counts_wait = False
        self._looked = False
        self._told: ProviderFacts | None = None
        self.lane.on_trouble = self._note_trouble
        self.lane.on_switch = self.tell_again

    def __str__(self) -> str:
        return "/".join(self.key)

    # --- what others see -------------------------------------------------------------------------

    def facts(self) -> ProviderFacts:
        """Return what a planner needs to know now. A changed spec is not trusted before it is verified."""
        obj = self.world.provider(self.uid) or self.obj
        reachable = self.verdict.verified and self.lane.open and self._verified_generation == obj.generation
        taken = self.world.taken(self.key)
        held = obj.held and (obj.spec.secret_ref is None or self.secret.kept)
        recorded = obj.status.identity == self._identity and bool(self._identity)
        reason, message = self.verdict.reason, self.verdict.message
        if reachable and not (held and recorded):
            reason, message = "Preparing", self._preparing
        elif not self.lane.open and self.verdict.verified:
            reason, message = "CircuitOpen", f"left alone after failures in a row ({self.lane.breaker.last_error})"
        if obj.spec.paused:
            reason, message = "ProviderPaused", "spec.paused is true"
        if obj.deleting:
            reason, message = "ProviderDeleting", "it is being deleted"
        return ProviderFacts(
            name=obj.name,
            usable=reachable and held and recorded and not obj.deleting and not obj.spec.paused,
            reachable=reachable and not obj.spec.paused,
            reason=reason,
            message=message,
            stalled=self.verdict.stalled,
            settling=not self._looked,
            deleting=obj.deleting,
            room=max(0, obj.spec.limits.machines - taken),
            listed_at=self._listed_at if reachable else None,
        )

    def want_listing(self) -> None:
        """Ask for a complete listing soon."""
        if not self._list_wanted:
            self._list_wanted = True
            self.wake()

    async def console(self, machine_id: str, limit: timedelta) -> tuple[str, str]:
        """Return the end of a machine's console, or an empty text and why there is none. Never raises."""
        session = self.lane.session
        if not isinstance(session, HasConsole):
            return "", "its provider shows no console"
        try:
            async with asyncio.timeout(limit.total_seconds()):
                text = await self.lane.call(
                    "console", Slots.OBSERVE, Urgency.BACKGROUND, lambda _: session.console(machine_id), judged=False
                )
        except TimeoutError:
            return "", f"the console was not read within {limit.total_seconds():g} s"
        except ProviderError as error:
            return "", f"the console could not be read: {error.message}"
        return self.lane.redaction.text(text), ""

    # --- one round -------------------------------------------------------------------------------

    async def round(self, now: datetime) -> datetime | None:
        """Verify, hold, list, tell; the pools hear what changed however the round ends."""
        beaten = False
        try:
            return await self._round(now)
        except Conflict:
            # Somebody wrote at the same time, another provider on a shared Secret perhaps: the look is not over.
            beaten = True
            raise
        finally:
            self._looked = self._looked or not beaten
            self._tell()

    async def _round(self, now: datetime) -> datetime | None:
        obj = self.world.provider(self.uid)
        if obj is None:
            raise Done
        self.obj = obj
        self.lane.configure(obj.spec)
        if self._verify_due(obj, now):
            self._verified_at, self._trouble = now, False
            await self._verify(obj)
        if obj.spec.paused or not self.verdict.verified:
            due = now + timedelta(seconds=self.settings.stalled_pause_seconds)
        else:
            due = await self._list_if_due(obj, now)
        self._counts_wait = False
        await self._settle(now)
        if self._counts_wait:
            due = min(due, now + timedelta(seconds=self.settings.machines_pause_seconds))
        if self.lane.breaker.open_until is not None and self.lane.breaker.state is not Circuit.CLOSED:
            due = min(due, max(self.lane.breaker.open_until, now + timedelta(milliseconds=100)))
        return due

    def _tell(self) -> None:
        """Wake the pools if they may decide differently than when they were told last."""
        told, self._told = self._told, _verdict(self.facts())
        if told == self._told:
            return
        if told is None or (told.usable, told.reason) != (self._told.usable, self._told.reason):
            log.info("provider_verdict", provider=str(self), reason=self._told.reason, why=self._told.message)
        self._wake_pools()

    def tell_again(self) -> None:
        """For a while it was something else than what is told: who looked then must look again."""
        self._told = None
        self.wake()

    async def closed(self) -> None:
        """Close the session; whoever still waits in the lane is told that it is closed."""
        self.glances.stop()
        await self._close_session()
        if self.world.views.get(self.key) is self:
            del self.world.views[self.key]
        self._wake_pools()

    async def _close_session(self) -> None:
        session, self._session, self.lane.session = self._session, None, None
        self._told = None
        if session is not None:
            await session.close()

    def _note_trouble(self) -> None:
        """A call failed in a way that speaks of the provider: ask it who it is, and whether it knows us, soon."""
        self._trouble = True
        self.wake()

    def _verify_due(self, obj: ProviderObject, now: datetime) -> bool:
        if self._verified_at is None or self._verified_generation != obj.generation:
            return True
        if self._list_wanted and self.verdict.verified and now >= self._listing_due(obj, now):
            # What is missing from a listing proves something only at the far side that has our machines.
            return True
        waited = now - self._verified_at
        if self._trouble or not self.verdict.verified or self.lane.breaker.state is not Circuit.CLOSED:
            return waited >= timedelta(seconds=self.settings.listing_pause_seconds)
        return bool(waited >= obj.spec.observe.interval)

    async def _verify(self, obj: ProviderObject) -> None:
        """Open a session when config or credentials changed, and ask the far side who it is."""
        self._identified = False
        try:
            secret, self.secret.kept = await farside.read_secret(self.world.client, obj)
            fingerprint = farside.fingerprint(obj, secret)
            self.lane.redaction = Redaction(secret.values())
            if fingerprint != self._opened_with or self._session is None:
                await self._close_session()
                self.verdict = Verdict()
                self._listed_at = None
                with self.lane.redaction.guard():
                    made = registry.open_provider(obj.spec.type, obj.spec.config, secret, self.world.install_id)
                self._session, self._opened_with = made, fingerprint
            await self._identify(obj)
        except (InvalidConfig, CredentialsRefused) as error:
            await self._refuse(obj, Verdict(error.reason, error.message, stalled=True))
        except LaneClosed:
            pass
        except ProviderError as error:
            # One failure is not yet an outage: that is for the circuit to say. A session that never answered is new.
            if not self.verdict.verified:
                self.verdict = Verdict(error.reason, error.message)
            self._verified_generation = obj.generation

    async def _refuse(self, obj: ProviderObject, verdict: Verdict) -> None:
        await self._close_session()
        self._opened_with = ""
        self.verdict = verdict
        self._verified_generation = obj.generation

    async def _identify(self, obj: ProviderObject) -> None:
        session = self._session
        assert session is not None
        # The lane gets the session only for this question: nothing else may be asked of an unverified far side.
        if self.lane.session is None:
            identity = await self._ask_identity_first(session)
        else:
            identity = await self.lane.call("identity", Slots.OBSERVE, Urgency.REFILL, lambda p: p.identity())
        vms = self.world.taken(self.key)
        verdict = identity_verdict(obj.status.identity, identity, vms)
        self.verdict = verdict
        self._identity, self._identified = identity, True
        self._verified_generation = obj.generation
        self.lane.session = session if verdict.verified else None

    async def _ask_identity_first(self, session: Provider) -> str:
        asking = Lane(*self.key, self.obj.spec, self.metrics)
        asking.breaker, asking.session, asking.redaction = self.lane.breaker, session, self.lane.redaction
        try:
            return await asking.call("identity", Slots.OBSERVE, Urgency.REFILL, lambda p: p.identity())
        finally:
            self.lane.breaker = asking.breaker

    async def _list_if_due(self, obj: ProviderObject, now: datetime) -> datetime:
        interval = obj.spec.observe.interval
        pause = timedelta(seconds=self.settings.listing_pause_seconds)
        due = self._listing_due(obj, now)
        if now < due:
            return due
        if not self._identified:
            # It did not say who it is when it was asked just now: what it lists proves nothing.
            return now + pause
        waited_for, self._list_wanted = self._list_wanted, False
        self._list_asked_at = now
        try:
            began = self.world.now()
            machines = await farside.listing(self.lane, obj.spec.timeouts.observe)
        except ProviderError as error:
            log.warning("listing_failed", provider=str(self), reason=error.reason, error=error.message)
            self._list_wanted = True
            return now + max(pause, error.retry_after or timedelta())
        except BaseException:
            self._list_wanted = True
            raise
        if self._listed(machines, began) or waited_for:
            self._wake_pools()
        await self.stragglers.look(machines, began)
        return now + (pause if self._list_wanted else interval)

    def _listing_due(self, obj: ProviderObject, now: datetime) -> datetime:
        if self._list_asked_at is None:
            return now
        interval: timedelta = obj.spec.observe.interval
        soon = min(interval, timedelta(seconds=self.settings.listing_pause_seconds))
        return self._list_asked_at + (soon if self._list_wanted else interval)

    def _listed(self, machines: list[Machine], began: datetime) -> bool:
        self._listed_at = began
        by_id = {machine.id: machine for machine in machines}
        by_token = {machine.token: machine for machine in machines if machine.token}
        self.metrics.machines.labels(*self.key).set(len(machines))
        return self.world.sights.listed(self.world.vms_of_provider(self.key), by_id, by_token, began)

    def _wake_pools(self) -> None:
        for uid in {vm.pool_uid for vm in self.world.vms_of_provider(self.key)}:
            self.world.wake_pool(uid)
        for pool in self.world.pools_naming(self.key):
            self.world.wake_pool(pool.uid)

    # --- holding and telling ---------------------------------------------------------------------

    def _snapshot(self) -> ProviderSnapshot:
        obj = self.obj
        return ProviderSnapshot(
            generation=obj.generation,
            deleting=obj.deleting,
            paused=obj.spec.paused,
            vms=self.world.taken(self.key),
            referenced=any(not pool.deleting for pool in self.world.pools_naming(self.key)),
            verdict=self.verdict,
            breaker=self.lane.breaker.at(self.world.now()),
            identity=self._identity,
            before=obj.status,
            held_secret=self.secret.name,
        )

    async def _settle(self, now: datetime) -> None:
        """Finalizers first, then the status: creates begin only when both are written."""
        hold = must_hold(self._snapshot())
        try:
            await self._hold_secret(hold=hold)
        except Conflict:
            raise
        except Refused as error:
            # No creates without it, and the pools say why; what is there already goes on.
            self._preparing = f"its Secret cannot be held: {error.message}"
            log.warning("secret_not_held", provider=str(self), error=str(error))
        await self._write(provider_status(self._snapshot(), now), now)
        if hold != self.obj.held and (hold or not self.secret.name):
            await self._hold_self(hold=hold)

    async def _hold_secret(self, *, hold: bool) -> None:
        """Keep our finalizer on the Secret in use, and on no other."""
        ref = self.obj.spec.secret_ref
        wanted = ref.name if hold and ref is not None and self.verdict.verified else ""
        drop = bool(wanted) or not hold or ref is None
        await self.secret.keep_only(wanted, drop=drop, record=self._record)

    async def _record(self) -> None:
        await self._write(provider_status(self._snapshot(), self.world.now()))

    async def _hold_self(self, *, hold: bool) -> None:
        raw = await self.world.client.get(VMPROVIDERS, *self.key)
        if raw["metadata"]["uid"] != self.uid:
            return
        patch = writes.finalizer_patch(raw, keys.FINALIZER_DRAIN, keep=hold)
        if patch:
            raw = await self.world.client.patch_json(VMPROVIDERS, *self.key, patch)
        self.world.providers.saw(raw)
        self.obj = self.world.provider(self.uid) or self.obj

    async def _write(self, status: VMProviderStatus, now: datetime | None = None) -> None:
        """Write what differs; with ``now``, a mere change of the machine count waits for its turn."""
        changes = writes.status_changes(self.obj.status, status)
        if not changes:
            return
        pause = timedelta(seconds=self.settings.machines_pause_seconds)
        if now is not None and changes.keys() == {"machines"} and self._status_at and now < self._status_at + pause:
            self._counts_wait = True
            return
        body = {"metadata": {"uid": self.uid, "resourceVersion": self.obj.resource_version}, "status": changes}
        try:
            written = await self.world.client.patch_merge(VMPROVIDERS, *self.key, body, "status")
        except Conflict:
            await self.world.providers.quorum_get(*self.key)
            raise
        self._status_at = now or self._status_at
        self.world.providers.saw(written)
        before, self.obj = self.obj.status, self.world.provider(self.uid) or self.obj
        self._announce(before, status)

    def _announce(self, before: VMProviderStatus, after: VMProviderStatus) -> None:
        old, new = find(before.conditions, ConditionType.STALLED), find(after.conditions, ConditionType.STALLED)
        if new is not None and (old is None or old.reason != new.reason):
            ref = ObjectRef.of(VMPROVIDERS, *self.key, self.uid)
            self.world.events.emit(ref, "Warning", new.reason, new.message)


def _verdict(facts: ProviderFacts) -> ProviderFacts:
    """Return what pools decide on.

    How much room is left matters only where there was none, and what a listing told has woken whom it concerns.
    """
    return replace(facts, room=bool(facts.room), listed_at=None)
