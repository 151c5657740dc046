"""A small world that obeys plans as the engine, the API server and a provider would, faults included.

The stored truth (``vms``, ``machines``) is kept apart from what the operator remembers (``sights``), and effects may
take rounds to land, so a plan is always made from what the operator could really know.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random
from typing import Any

from tests.unit.plan.worlds import ADDRESS, NOW
from vmpool.api.pool import Creation
from vmpool.plan import actions, backoff
from vmpool.plan.lifecycle import SUCCESSORS, Phase
from vmpool.plan.pool import Plan, plan_pool
from vmpool.plan.probes import probes_due
from vmpool.plan.snapshot import NOTHING_SEEN, PLANNED, VM, ClaimFacts, Failed, PoolSnapshot, ProviderFacts, Sight, Step
from vmpool.plan.vm import CallError, after_error

TICK = timedelta(seconds=1)
LISTING = timedelta(seconds=30)
"""How often everything is listed, wanted or not."""
LEASE = timedelta(minutes=5)


@dataclass(frozen=True)
class Script:
    """What goes wrong, and how often: shares from 0 to 1, and counts of rounds."""

    boot_fails: float = 0.0
    call_fails: float = 0.0
    reply_lost: float = 0.0
    machine_lost: float = 0.0
    probe_fails: float = 0.0
    claimed: float = 0.0
    released: float = 0.0
    restarts: float = 0.0
    outages: float = 0.0
    """How often a provider goes down or comes back; without any, all are up."""
    slow: int = 0
    """An effect lands up to this many rounds later; until then its VM is busy."""
    boots: int = 2
    """Looks until a machine runs."""
    destroys: int = 1
    """Delete calls until a machine is gone."""


CALM = Script()
STORMY = Script(0.3, 0.2, 0.1, 0.03, 0.1, 0.1, 0.2, 0.05, 0.05, slow=2, destroys=3)
CALLS = (actions.EnsureMachine, actions.Look, actions.Probe, actions.DestroyMachine)
"""What needs the provider, or its network, to be there."""


@dataclass
class Machine:
    id: str
    token: str
    provider: str
    breaks: bool
    looks: int = 0
    deletes: int = 0
    state: str = "Creating"


@dataclass
class Flight:
    """An effect that has begun and not landed."""

    action: actions.Action
    rounds: int


class Refused(Exception):
    """The API server refused a write."""


class World:
    """One pool, its objects, its machines and what the operator remembers of them."""

    def __init__(self, seen: PoolSnapshot, random: Random, script: Script = CALM) -> None:
        self.pool, self.digest = seen.pool, seen.digest
        self.random, self.script, self.now = random, script, NOW
        self.began = NOW
        self.vms = {vm.uid: vm for vm in seen.vms}
        self.providers = dict(seen.providers)
        self.creation, self.owed = seen.creation, list(seen.owed)
        self.sights: dict[str, Sight] = {}
        self.flights: list[Flight] = []
        self.made = 0
        self.down: set[str] = set()
        self.machines = {}
        for vm in seen.vms:
            if vm.machine_id or self.chance(0.2):
                self.machines[vm.machine_id or f"m-{vm.name}"] = self._old_machine(vm)

    def _old_machine(self, vm: VM) -> Machine:
        state = "Creating" if vm.phase == Phase.PENDING else "Running"
        breaks = vm.phase == Phase.QUARANTINED or self.chance(self.script.boot_fails)
        return Machine(vm.machine_id or f"m-{vm.name}", vm.uid, vm.provider, breaks, state=state)

    def chance(self, share: float) -> bool:
        return share > 0 and self.random.random() < share

    # --- what the planner is shown -------------------------------------------------------------------------------

    def snapshot(self) -> PoolSnapshot:
        creating = tuple(f.action.provider for f in self.flights if isinstance(f.action, actions.CreateVM))
        taken = [vm.provider for vm in self.vms.values()] + list(creating)
        return PoolSnapshot(
            pool=self.pool,
            digest=self.digest,
            vms=tuple(self.vms.values()),
            providers={name: self._shown(one, taken.count(name)) for name, one in self.providers.items()},
            sights=dict(self.sights),
            busy=frozenset(f.action.vm.uid for f in self.flights if not isinstance(f.action, actions.CreateVM)),
            creating=creating,
            creation=self.creation,
            owed=tuple(self.owed),
        )

    def _shown(self, home: ProviderFacts, taken: int) -> ProviderFacts:
        up = home.name not in self.down
        return replace(home, reachable=up, usable=home.usable and up, room=max(0, home.room - taken))

    def round(self) -> Plan:
        """Plan once and carry it out."""
        plan = plan_pool(self.snapshot(), self.now)
        self.obey(plan)
        return plan

    def count(self, phase: str) -> int:
        """How many unclaimed VMs are stored in this phase."""
        return sum(vm.phase == phase and vm.claim is None for vm in self.vms.values())

    # --- what happens --------------------------------------------------------------------------------------------

    def obey(self, plan: Plan) -> None:
        """Begin the plan's effects, let others act, land what is due, list, and let time pass."""
        for action in plan.actions:
            if isinstance(action, actions.CreateVM) and action.request_id:
                self.owed.remove((action.request_id, action.retry_count - 1))
            self.flights.append(Flight(action, self.random.randint(0, self.script.slow)))
        self._others_act()
        listings = {name: self._list(name) for name in self.providers if self._lists(name, plan)}
        landing = [flight for flight in self.flights if flight.rounds == 0]
        self.flights = [Flight(flight.action, flight.rounds - 1) for flight in self.flights if flight.rounds > 0]
        for flight in landing:
            with suppress(Refused):
                self._land(flight.action)
        for name, tokens in listings.items():
            self._apply_listing(name, tokens)
        self._probe_ready()
        if self.chance(self.script.restarts):
            self.restart()
        busy = plan.actions or self.flights or plan.wants_listing
        later = min(plan.wake_at or self.now + LISTING, self.now + LISTING)
        self.now = self.now + TICK if busy else max(later, self.now + TICK)

    def restart(self) -> None:
        """Everything in memory is lost, and with it what had not landed."""
        self.flights, self.sights, self.began = [], {}, self.now

    def _others_act(self) -> None:
        for vm in list(self.vms.values()):
            if vm.phase == Phase.READY and vm.claim is None and self.chance(self.script.claimed):
                self._store(vm, claim=ClaimFacts(f"claim-{self.now}", "bob", self.now + LEASE))
            elif vm.claimed and vm.claim is not None and self.chance(self.script.released):
                self._store(vm, claim=replace(vm.claim, released_at=self.now))
        toggled = {name for name in self.providers if self.chance(self.script.outages)}
        self.down = (self.down ^ toggled) if self.script.outages else set()
        for machine in list(self.machines.values()):
            if self.chance(self.script.machine_lost):
                del self.machines[machine.id]

    def _lists(self, provider: str, plan: Plan) -> bool:
        last = self.providers[provider].listed_at
        due = provider in plan.wants_listing or last is None or self.now - last >= LISTING
        return due and provider not in self.down

    def _list(self, provider: str) -> set[str]:
        return {machine.token for machine in self.machines.values() if machine.provider == provider}

    def _apply_listing(self, provider: str, tokens: set[str]) -> None:
        """``now`` is still when the listing began: what was missed in this very round is not proven by it."""
        self.providers[provider] = replace(self.providers[provider], listed_at=self.now)
        for vm in self.vms.values():
            if vm.provider == provider and vm.created_at < self.now:
                sight = self.sights.get(vm.uid, NOTHING_SEEN)
                found = vm.uid in tokens
                changed = {"misses": 0, "missed_at": None, "unlisted": False} if found else {"unlisted": True}
                self.sights[vm.uid] = replace(sight, **changed)

    # --- one effect each -----------------------------------------------------------------------------------------

    def _land(self, action: actions.Action) -> None:  # noqa: C901, PLR0912  # one case an action is the clearest table
        if isinstance(action, actions.CreateVM):
            self._create(action)
            return
        vm = action.vm
        if vm.uid not in self.vms or (isinstance(action, CALLS) and vm.provider in self.down):
            return
        match action:
            case actions.EnsureMachine():
                self._ensure(vm)
            case actions.Look():
                self._look(vm)
            case actions.Probe():
                self._probe(vm)
            case actions.MarkReady(addresses=addresses):
                self._decided(vm, Phase.READY, addresses=addresses)
                if vm.phase == Phase.PENDING:
                    self.creation = backoff.after_success(self.creation, self.pool.spec.limits.pending)
            case actions.MarkClaimed():
                self._decided(vm, Phase.CLAIMED)
            case actions.TagMachine():
                assert vm.claim is not None
                self.sights[vm.uid] = replace(self.sights[vm.uid], claim_tag=vm.claim.id)
            case actions.EndClaim():
                assert vm.claim is not None
                self._decided(vm, vm.phase, claim=replace(vm.claim, released_at=self.now))
            case actions.Quarantine(reason=reason, expires_at=expires):
                self._decided(vm, Phase.QUARANTINED, reason=reason, expires_at=expires)
                self._failed(vm)
            case actions.Complete(reason=reason):
                self._decided(vm, Phase.COMPLETED, reason=reason)
                if reason not in PLANNED:
                    self._failed(vm)
            case actions.DestroyMachine():
                self._destroy(vm)
            case actions.Forget():
                assert vm.uid not in {machine.token for machine in self.machines.values()}, "a machine has leaked"
                del self.vms[vm.uid]
                self.sights.pop(vm.uid, None)

    def _create(self, action: actions.CreateVM) -> None:
        self.made += 1
        name = f"new-{self.made}"
        self.vms[f"uid-{name}"] = VM(
            uid=f"uid-{name}",
            namespace=self.pool.namespace,
            name=name,
            resource_version="1",
            created_at=self.now,
            pool=self.pool.name,
            pool_uid=self.pool.uid,
            provider=action.provider,
            digest=self.digest,
            request_id=action.request_id or f"req-{name}",
            retry_count=action.retry_count,
        )

    def _ensure(self, vm: VM) -> None:
        step = Step.ADOPT if vm.adopt else Step.CREATE
        if self.chance(self.script.call_fails):
            return self._failed_call(vm, step)
        machine = self._machine(vm) or Machine(f"m-{vm.name}", vm.uid, vm.provider, self.chance(self.script.boot_fails))
        self.machines[machine.id] = machine
        if self.chance(self.script.reply_lost):
            return self._failed_call(vm, step)
        self._store(self.vms[vm.uid], machine_id=machine.id)
        return self._saw(vm, machine)

    def _look(self, vm: VM) -> None:
        machine = self.machines.get(vm.machine_id)
        if machine is None:
            return self._missed(vm)
        machine.looks += 1
        if machine.state == "Creating" and machine.looks >= self.script.boots:
            machine.state = "Failed" if machine.breaks else "Running"
        return self._saw(vm, machine)

    def _probe(self, vm: VM) -> None:
        sight = self.sights.get(vm.uid, NOTHING_SEEN)
        ok = vm.machine_id in self.machines and not self.chance(self.script.probe_fails)
        failures = 0 if ok else sight.probe_failures + 1
        self.sights[vm.uid] = replace(sight, probed_at=self.now, probe_ok=ok, probe_failures=failures)

    def _probe_ready(self) -> None:
        spec, up = self.pool.spec, self.providers.keys() - self.down
        if spec.readiness.tcp_socket is not None and not spec.paused and not self.pool.deleting:
            for vm in probes_due(self.vms.values(), self.sights, up, spec.readiness, self.now, self.began):
                self._probe(vm)

    def _destroy(self, vm: VM) -> None:
        machine = self._machine(vm)
        if self.chance(self.script.call_fails):
            return self._failed_call(vm, Step.DESTROY)
        if machine is None:
            return self._missed(vm)
        if not vm.machine_id:
            self._store(self.vms[vm.uid], machine_id=machine.id)
        machine.state, machine.deletes = "Deleting", machine.deletes + 1
        if machine.deletes >= self.script.destroys:
            del self.machines[machine.id]
        return self._saw(vm, machine)

    def _machine(self, vm: VM) -> Machine | None:
        """By id where it is known, else by token."""
        if vm.machine_id:
            return self.machines.get(vm.machine_id)
        return next((machine for machine in self.machines.values() if machine.token == vm.uid), None)

    def _saw(self, vm: VM, machine: Machine) -> None:
        addresses = ADDRESS if machine.state == "Running" else ()
        sight = replace(self.sights.get(vm.uid, NOTHING_SEEN), looked_at=self.now, state=machine.state)
        self.sights[vm.uid] = replace(sight, addresses=addresses, misses=0, missed_at=None, unlisted=False)

    def _missed(self, vm: VM) -> None:
        sight = self.sights.get(vm.uid, NOTHING_SEEN)
        self.sights[vm.uid] = replace(sight, misses=sight.misses + 1, missed_at=self.now)

    def _failed_call(self, vm: VM, step: Step) -> None:
        now = self.vms[vm.uid]
        verdict = after_error(now, step, CallError("ProviderRetryable", "try later"), self.pool.spec.retry, self.now)
        if isinstance(verdict, Failed):
            self.sights[vm.uid] = replace(self.sights.get(vm.uid, NOTHING_SEEN), failure=verdict)
        else:
            self._store(now, steps=(verdict,))

    def _failed(self, vm: VM) -> None:
        retry = self.pool.spec.retry
        self.creation = backoff.after_failure(
            self.creation, self.now, base=retry.backoff, longest=retry.max_backoff, seed=self.pool.uid
        )
        self.owed.append((vm.request_id, vm.retry_count))

    # --- the API server ------------------------------------------------------------------------------------------

    def _decided(self, decided_on: VM, phase: str, **changes: Any) -> None:
        """A write on the very version that was decided on."""
        vm = self.vms[decided_on.uid]
        if vm.resource_version != decided_on.resource_version:
            raise Refused
        if phase != vm.phase:
            changes |= {"phase": phase, "phase_since": self.now}
        self._store(vm, **changes)

    def _store(self, vm: VM, **changes: Any) -> None:
        """Store a change, or refuse it as the root rules of PooledVM do."""
        after = replace(vm, resource_version=str(int(vm.resource_version) + 1), **changes)
        known = vm.phase in set(Phase)
        if after.phase != vm.phase and known and after.phase not in SUCCESSORS[Phase(vm.phase)]:
            raise AssertionError(f"{vm.phase} -> {after.phase} is not in the table")
        if vm.claim is None and after.claim is not None and vm.phase != Phase.READY:
            raise Refused
        if after.claimed and after.phase not in (vm.phase, Phase.CLAIMED):
            raise AssertionError("the planner asked for the end of a claimed VM that it was shown as claimed")
        self.vms[vm.uid] = after


def quiet(plan: Plan) -> bool:
    """Whether nothing is left to do but to go on probing."""
    return not plan.wants_listing and all(isinstance(action, actions.Probe) for action in plan.actions)


def settle(world: World, rounds: int = 1500) -> None:
    """Go on until nothing has changed over several listings; fails when that never comes."""
    calm_since = world.now
    for _ in range(rounds):
        before = dict(world.vms)
        plan = world.round()
        if not quiet(plan) or world.vms != before or _waits_for_time(world):
            calm_since = world.now
        elif world.now - calm_since > 3 * LISTING:
            return
    raise AssertionError(f"not settled after {rounds} rounds: {[type(a).__name__ for a in plan.actions]}")


def _waits_for_time(world: World) -> bool:
    """Claims and quarantines end by time, pauses after failures too."""
    waiting: Creation | None = world.creation
    held = any(vm.phase in (Phase.QUARANTINED, Phase.CLAIMED, Phase.COMPLETED) for vm in world.vms.values())
    return (
        held or any(vm.claim for vm in world.vms.values()) or (waiting is not None and world.now < waiting.not_before)
    )
