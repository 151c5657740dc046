"""Carry out one action of a plan: the only place where a decision becomes a write or a provider call.

Each function makes at most one effect, and each may be repeated: a kill at any point leaves something that the next
plan sees and goes on from.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from vmpool.api import keys
from vmpool.api.meta import MIB_PER_GIB, format_time, mebibytes
from vmpool.api.pool import Readiness, Retry, Template
from vmpool.api.vm import MAX_ADDRESSES
from vmpool.engine import writes
from vmpool.engine.durations import Durations
from vmpool.engine.lane import LaneClosed, Slots, Urgency
from vmpool.engine.probing import probe
from vmpool.engine.world import ProviderView, World
from vmpool.plan.actions import (
    Complete,
    DestroyMachine,
    EndClaim,
    EnsureMachine,
    Forget,
    Look,
    MarkClaimed,
    MarkReady,
    Probe,
    Quarantine,
    TagMachine,
    VMAction,
)
from vmpool.plan.lifecycle import Phase
from vmpool.plan.looks import look_pause, on_grid
from vmpool.plan.snapshot import NO_OUTLOOK, VM, Failed, Outlook, Step
from vmpool.plan.sweep import NO_READINESS
from vmpool.plan.vm import ENDED_MACHINE_GONE, CallError, after_error, boot_began
from vmpool.providers.base import Deletion, Machine, MachineRequest, MachineState, Provider
from vmpool.providers.errors import CredentialsRefused, Exhausted, MachineNotFound, ProviderError, Throttled
from vmpool.telemetry import logs

log = logs.get(__name__)

T = TypeVar("T")

DEFAULT_MEMORY = "1Gi"
NO_BLAME = (CredentialsRefused, Exhausted, Throttled, LaneClosed)
"""Errors that say nothing about the VM: they cost it no attempt."""
REFUSALS = (CredentialsRefused, Exhausted)
"""Those that somebody has to do something about."""


class Effects:
    """The effects for the VMs of one pool, or of none: then without a template."""

    def __init__(
        self,
        world: World,
        *,
        retry: Retry,
        template: Template | None = None,
        readiness: Readiness = NO_READINESS,
        outlook: Outlook = NO_OUTLOOK,
        durations: Durations | None = None,
        patience: timedelta | None = None,
    ) -> None:
        self.world = world
        self.retry = retry
        self.template = template
        self.readiness = readiness
        self.outlook = outlook
        self.durations = durations
        self.patience = patience
        """How long a provider may refuse a machine before its VM is given up; None: for ever."""
        self.urgency = Urgency.REFILL

    async def run(self, action: VMAction) -> timedelta | None:  # one line an action is the clearest table
        """Carry out an action for a VM that exists. Return None for news, else how long the next look may wait."""
        now = self.world.now()
        match action:
            case EnsureMachine(vm):
                await self._ensure(vm)
            case Look(vm):
                return await self._look(vm)
            case Probe(vm, address, port):
                return await self._probe(vm, address, port)
            case MarkReady(vm, addresses):
                await self._ready(vm, addresses, now)
            case MarkClaimed(vm):
                await writes.write_status(self.world, vm, writes.into_phase(Phase.CLAIMED, now), decided=True)
            case TagMachine(vm):
                await self._tag(vm)
            case EndClaim(vm, reason):
                await writes.end_claim(self.world, vm, reason, now)
            case Quarantine(vm, _, reason, message, expires_at):
                changes = writes.into_phase(Phase.QUARANTINED, now) | writes.because(reason, message)
                changes |= self._unwritten(vm)
                changes["expiresAt"] = format_time(expires_at)
                await writes.write_status(self.world, vm, changes, decided=True)
            case Complete(vm, reason, message):
                await self._complete(vm, reason, message, now)
            case DestroyMachine(vm):
                return await self._destroy(vm)
            case Forget(vm):
                await writes.forget(self.world, vm)
        return None

    async def _complete(self, vm: VM, reason: str, message: str, now: datetime) -> None:
        changes = writes.into_phase(Phase.COMPLETED, now) | writes.because(reason, message) | self._unwritten(vm)
        if vm.claim is not None and vm.claim.end_reason == ENDED_MACHINE_GONE:
            changes["conditions"] = [writes.machine_gone(vm, message, now)]
        await writes.write_status(self.world, vm, changes, decided=True)

    def _unwritten(self, vm: VM) -> dict[str, Any]:
        """Return the id of a machine that was made while the write that records it failed: it must not be lost."""
        made = self.world.sights.of(vm.uid).machine_id
        return {"machineId": made} if made and not vm.machine_id else {}

    def _view(self, vm: VM) -> ProviderView:
        view = self.world.views.get((vm.namespace, vm.provider))
        if view is None:
            raise LaneClosed(f"VMProvider {vm.provider} does not exist")
        return view

    async def _call(
        self, vm: VM, operation: str, slots: Slots, urgency: Urgency, work: Callable[[Provider], Awaitable[T]]
    ) -> T:
        return await self._view(vm).lane.call(operation, slots, urgency, work)

    async def _ensure(self, vm: VM) -> None:
        step = vm.making
        began = self.world.now()
        try:
            machine = await self._call(vm, step, Slots.OPERATE, self.urgency, lambda p: self._obtain(p, vm))
        except ProviderError as error:
            await self._failed_call(vm, step, error)
            return
        now = self.world.now()
        self.world.sights.made(vm.uid, machine, now)
        changes: dict[str, object] = {
            "machineId": machine.id,
            "steps": writes.ledger(vm, writes.done(vm, step, began, now)),
        }
        if machine.addresses:
            changes["addresses"] = list(machine.addresses[:MAX_ADDRESSES])
        without_probe = self.readiness.tcp_socket is None
        if without_probe and machine.state is MachineState.RUNNING and machine.addresses and not vm.adopt:
            changes |= writes.into_phase(Phase.READY, now) | {"readyAt": format_time(now)}
        await writes.write_status(self.world, vm, changes, decided="phase" in changes)

    async def _obtain(self, provider: Provider, vm: VM) -> Machine:
        tags = {
            keys.TAG_INSTALL: self.world.install_id,
            keys.TAG_UID: vm.uid,
            keys.TAG_POOL: vm.pool,
        }
        if vm.adopt:
            return await provider.adopt(vm.adopt, tags)
        assert self.template is not None, "only a pool asks for machines"
        return await provider.ensure(machine_request(vm, self.template, tags))

    async def _look(self, vm: VM) -> timedelta | None:
        asked = self.world.now()
        before = self.world.sights.of(vm.uid)
        try:
            machine = await self._view(vm).glances.look(vm.machine_id)
        except MachineNotFound:
            self._missed(vm)
            return None
        self.world.sights.saw(vm.uid, machine, asked)
        waited = asked - boot_began(vm)
        after = self.world.sights.of(vm.uid)
        if after.state == MachineState.RUNNING != before.state and vm.phase == Phase.PENDING:
            self._took(vm, Step.BOOT, waited)
        unchanged = (before.state, before.addresses, before.misses) == (after.state, after.addresses, 0)
        if not unchanged:
            return None
        due = on_grid(asked + look_pause(waited, self._expected(vm, Step.BOOT)), self.outlook.grid)
        deadline: datetime = boot_began(vm) + self.readiness.timeout
        return max(min(due, deadline) - self.world.now(), timedelta())

    async def _tag(self, vm: VM) -> None:
        """Put the claim on the machine; a failure costs nobody anything, and is tried again."""
        assert vm.claim is not None, "only a claimed VM has a claim to tag with"
        tags = {keys.TAG_CLAIM: vm.claim.id}
        asked = self.world.now()
        self.world.sights.tagging(vm.uid, asked)
        try:
            machine = await self._call(
                vm, "tag", Slots.OPERATE, Urgency.BACKGROUND, lambda p: p.adopt(vm.machine_id, tags)
            )
        except MachineNotFound:
            # Not one of the two proofs: it was not asked for them, and may have met the machine's own destruction.
            self._view(vm).want_listing()
        except ProviderError as error:
            log.info("claim_not_tagged", vm=vm.name, provider=vm.provider, error=str(error))
        else:
            self.world.sights.saw(vm.uid, machine, asked)

    def _took(self, vm: VM, step: Step, span: timedelta) -> None:
        if self.durations is not None:
            self.durations.took(vm.provider, step, span)

    def _expected(self, vm: VM, step: Step) -> timedelta | None:
        return self.outlook.expected.get((vm.provider, step))

    def _missed(self, vm: VM) -> None:
        """Note that it was not found, at the time of the answer: only a listing that begins later proves more."""
        self.world.sights.missed(vm.uid, self.world.now())
        self._view(vm).want_listing()

    async def _probe(self, vm: VM, address: str, port: int) -> timedelta | None:
        ok = await probe(self.world, vm, address, port)
        self.world.sights.probed(vm.uid, ok=ok, now=self.world.now())
        return None if ok else look_pause(self.world.now() - boot_began(vm))

    async def _ready(self, vm: VM, addresses: tuple[str, ...], now: datetime) -> None:
        changes: dict[str, object] = {"addresses": list(addresses)}
        if vm.phase != Phase.READY:
            boot = writes.done(vm, Step.BOOT, vm.step(Step.CREATE).finished_at or vm.created_at, now)
            changes |= writes.into_phase(Phase.READY, now)
            changes |= {"readyAt": format_time(now), "steps": writes.ledger(vm, boot)}
        await writes.write_status(self.world, vm, changes, decided=True)

    async def _destroy(self, vm: VM) -> timedelta | None:
        try:
            if vm.machine_id or vm.adopt:
                return await self._delete(vm, vm.machine_id or vm.adopt)
            await self._find(vm)
        except ProviderError as error:
            await self._failed_call(vm, Step.DESTROY, error)
        return None

    async def _delete(self, vm: VM, machine_id: str) -> timedelta | None:
        async def work(provider: Provider) -> Deletion:
            return await provider.delete(machine_id)

        try:
            how_far = await self._call(vm, "delete", Slots.OPERATE, Urgency.DESTROY, work)
        except MachineNotFound:
            # Not ours any more, if it ever was: nothing to delete, and the listing will prove it.
            how_far = Deletion.GONE
        now = self.world.now()
        asked = self.world.sights.of(vm.uid).deletion_asked_at
        if how_far is Deletion.GONE:
            if asked is not None and not self.world.sights.of(vm.uid).misses:
                self._took(vm, Step.DESTROY, now - asked)
            self._missed(vm)
            return None
        self.world.sights.deleting(vm.uid, now)
        return look_pause(now - (asked or now), self._expected(vm, Step.DESTROY))

    async def _find(self, vm: VM) -> None:
        """Look for a machine whose id was never recorded: the create may have happened without us hearing of it."""
        asked = self.world.now()
        machine = await self._call(vm, "find", Slots.OBSERVE, Urgency.DESTROY, lambda p: p.find(vm.uid))
        if machine is None:
            self._missed(vm)
            return
        self.world.sights.saw(vm.uid, machine, asked)
        await writes.write_status(self.world, vm, {"machineId": machine.id}, decided=False)

    async def _failed_call(self, vm: VM, step: Step, error: ProviderError) -> None:
        """Record a failed try in the ledger, or the verdict that there will be no other."""
        if isinstance(error, LaneClosed):
            return
        what = CallError(
            reason=error.reason,
            message=error.message,
            terminal=error.terminal,
            blames_vm=not isinstance(error, NO_BLAME),
            retry_after=error.retry_after,
            patience=self.patience if isinstance(error, REFUSALS) else None,
        )
        verdict = after_error(vm, step, what, self.retry, self.world.now())
        if isinstance(verdict, Failed):
            self.world.sights.failed(vm.uid, verdict)
        else:
            await writes.write_status(self.world, vm, {"steps": writes.ledger(vm, verdict)}, decided=False)


def machine_request(vm: VM, template: Template, tags: dict[str, str]) -> MachineRequest:
    """Return what to ask a provider for."""
    return MachineRequest(
        token=vm.uid,
        name=vm.name,
        hostname=vm.host_name or vm.name,
        image=template.image,
        cpus=template.cpus or 1,
        memory_mib=mebibytes(template.memory or DEFAULT_MEMORY),
        disk_gib=-(-mebibytes(template.disk) // MIB_PER_GIB) if template.disk else None,
        parameters=dict(template.parameters or {}),
        tags=tags,
    )
