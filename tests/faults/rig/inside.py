"""Faults inside the cloud: between two sub-steps of making a machine, where no proxy can stand.

The simulated cloud breaks there by a rule. Whether the fault has come, the rule's counter tells; when, and in which
sub-step the cloud was, its ledger does.
"""

import asyncio
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.api import Json
from tests.clouds import SimCloud, Tenant
from tests.crash.site import Site
from tests.faults.gate.client import GatedTrial
from tests.faults.gate.plan import STEP_PREFIX, Fault, Kind, Plan, Point
from tests.faults.gate.trial import Entry
from tests.faults.rig.replica import Replica, state_of
from tests.waiting import until
from vmpool.simcloud.ledger import BROKE_OFF

STEPS = ("disk", "nic", "boot")
GONE = "gone"
AT_IT_SECONDS = 3.0
"""How long the cloud is at a sub-step in which the operator is to be killed."""
FOR_EVER_SECONDS = 86_400.0
LOOK_SECONDS = 0.05
"""Between two looks at the rule's counter: a fault has come at most so long before it is known."""
CLOCK_SECONDS = 0.01
"""How far the gate's and the cloud's readings of one clock may lie apart."""
PATIENCE = {"readiness": {"timeout": "5s"}, "recycle": {"quarantineTTL": "8s"}}
"""Of pools whose machine does not become ready: else users would wait for a quarter of an hour, and people look at it
for four."""


@dataclass(frozen=True)
class Row:
    """A machine of the ledger, or what is left of one that was broken off; Unix seconds, 0: it never came to that."""

    begun: float
    disk: float
    nic: float
    boot: float
    gone: float
    planned: bool = False
    """It was never to become ready: no rule behind that one has seen its create, so it is not counted."""

    def spans(self) -> dict[str, tuple[float, float]]:
        """From when to when the cloud is at each sub-step."""
        ends = (self.begun, self.disk, self.nic, self.boot)
        return {step: (ends[number], ends[number + 1]) for number, step in enumerate(STEPS)}


def rule_of(fault: Fault) -> dict[str, Any]:
    """The cloud's rule that makes a fault come, as far as it is not about whose machine it is."""
    step = fault.trigger.signature.removeprefix(STEP_PREFIX)
    match: dict[str, Any] = {"operation": "create", "step": step}
    often = {"skip": fault.trigger.occurrence - 1, "count": 1}
    if step == GONE:
        return {"action": "neverGone", "match": {"operation": "delete"}, **often}
    action = fault.action
    match action.kind, action.point:
        case Kind.KILL, Point.BEFORE:
            how: dict[str, Any] = {"action": "slow", "seconds": AT_IT_SECONDS}
        case Kind.KILL, _:
            how = {"action": "failAfterCommit"}
        case Kind.ANSWER, Point.BEFORE:
            how = {"action": "status", "status": action.status}
        case Kind.ANSWER, _:
            how = {"action": "failAfterCommit", "status": action.status}
        case Kind.RESET, _:
            how = {"action": "replyLost"}
        case Kind.DELAY, _:
            how = {"action": "slow", "seconds": action.seconds}
        case Kind.NEVER, _ if step == STEPS[-1]:
            how, match = {"action": "neverReady"}, {"operation": "create"}
        case Kind.NEVER, _:
            how = {"action": "slow", "seconds": FOR_EVER_SECONDS}
        case Kind.FAIL, _:
            how = {"action": "failStep"}
        case _:
            raise AssertionError(f"the cloud has no rule for {action.name}")
    if action.retry_after is not None:
        how["retryAfter"] = action.retry_after
    return {**how, "match": match, **often}


def rows(ledger: Path, tenant: str) -> list[Row]:
    """What the ledger knows of a tenant's machines, its broken-off ones included."""
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as db:
        parts = db.execute("SELECT machine_id, kind, made_at FROM parts WHERE tenant = ?", (tenant,)).fetchall()
        columns = "id, created_at, boot_at, never_ready, fail_at, gone_at, ended_by, delete_at, fail_message"
        machines = db.execute(f"SELECT {columns} FROM machines WHERE tenant = ?", (tenant,)).fetchall()
    made: dict[str, dict[str, float]] = {}
    for machine, kind, at in parts:
        made.setdefault(machine, {})[kind] = at
    found = []
    for name, begun, boot, never, failed, gone, ended_by, asked, message in machines:
        of = made.pop(name, {})
        booted = 0.0 if never or failed <= boot or asked < boot else boot
        ended = gone if ended_by == "deleted" else 0.0
        found.append(
            Row(begun, of.get("disk", 0.0), of.get("nic", 0.0), booted, ended, bool(never) and message != BROKE_OFF)
        )
    broken = (Row(min(of.values()), of.get("disk", 0.0), of.get("nic", 0.0), 0.0, 0.0) for of in made.values())
    return [*found, *broken]


def done(found: list[Row], now: float) -> Iterator[tuple[float, str]]:
    """The sub-steps that are over, each with when it was."""
    for row in found:
        for step in (GONE,) if row.planned else (*STEPS, GONE):
            at = getattr(row, step)
            if 0.0 < at <= now:
                yield at, f"{STEP_PREFIX}{step}"


@dataclass(frozen=True)
class ArmingSite(Site):
    """A site whose cloud breaks from the building on: what the scenario itself breaks there comes first."""

    arm: Callable[[], Awaitable[None]] | None = None
    patient: bool = False
    shown: Callable[[], list[Json]] | None = None
    """The VMs that are there, as a watch of everything tells them: who asks again and again need not have a list."""

    async def objects(self) -> list[Json]:
        """Every PooledVM."""
        return self.shown() if self.shown is not None else await super().objects()

    async def build(self, replicas: int, *, tokens: bool = True, operate: int = 8, **spec: Any) -> None:
        """Make Secret, VMProvider and VMPool."""
        if self.arm is not None:
            await self.arm()
        await super().build(replicas, tokens=tokens, operate=operate, **{**(PATIENCE if self.patient else {}), **spec})


@dataclass
class Inside:
    """What a plan wants to happen inside the cloud, and what became of it; does nothing where it wants nothing."""

    plan: Plan
    cloud: SimCloud
    tenant: Tenant
    gated: GatedTrial
    replica: Replica | None = None
    """Whom to kill; there before anything is armed."""
    came_at: float | None = None
    """When it came, in Unix seconds."""
    _found: list[Row] = field(default_factory=list)
    """What the ledger said then."""
    _killed_in: bool = False
    _rule: int | None = None
    _task: asyncio.Task[None] | None = None

    @property
    def _fault(self) -> Fault | None:
        return self.plan.in_cloud

    @property
    def needs_patience(self) -> bool:
        """Whether a machine of it may never become ready, and be quarantined."""
        return self._fault is not None

    async def before(self) -> None:
        """Called before the scenario: the gate and the cloud count the same calls from here on."""
        if self._fault is not None and self._fault.needs_call:
            await self._arm()

    async def build(self) -> None:
        """Called when the scenario has broken what it wants to break."""
        if self._fault is not None and not self._fault.needs_call:
            await self._arm()

    async def _arm(self) -> None:
        if self._task is None:
            if not self._is_second:
                self._put()
            self._task = asyncio.create_task(self._follow(), name="fault inside the cloud")

    @property
    def _is_second(self) -> bool:
        return len(self.plan.faults) > 1 and not self.plan.together

    def _put(self) -> None:
        assert self._fault is not None
        rule = rule_of(self._fault)
        match = {**rule.pop("match"), "tenant": self.tenant.name}
        self._rule = self.cloud.fault(rule.pop("action"), match, **rule)

    async def _follow(self) -> None:
        """Until it has come; ended by ``close``."""
        fault = self._fault
        assert fault is not None
        if self._is_second:
            while not (await self.gated.state())["met"]:  # noqa: ASYNC110 - another process, which tells when asked
                await asyncio.sleep(LOOK_SECONDS)
            self._put()
        while not await asyncio.to_thread(self._fired):  # noqa: ASYNC110 - the same
            await asyncio.sleep(LOOK_SECONDS)
        fired_at = time.time()
        # At once: a create that is asked for again takes over what is left of one that broke off.
        self._found = await asyncio.to_thread(self._rows)
        if fault.action.kind == Kind.KILL and not fault.needs_call:
            await self._kill(fault.trigger.signature.removeprefix(STEP_PREFIX))
        else:
            self.came_at = fired_at

    def _fired(self) -> bool:
        return any(rule["id"] == self._rule and rule["fired"] for rule in self.cloud.faults())

    def _rows(self) -> list[Row]:
        return rows(self.cloud.ledger_file, self.tenant.name)

    async def _kill(self, step: str) -> None:
        """SIGKILL while the cloud is at the sub-step; where a create found its machine made, it never is."""
        spans = [row.spans()[step] for row in self._found]
        held = [(begin, end) for begin, end in spans if AT_IT_SECONDS - CLOCK_SECONDS <= end - begin < FOR_EVER_SECONDS]
        if not held:
            return
        begin, end = held[-1]
        await asyncio.sleep(max(begin + CLOCK_SECONDS - time.time(), 0))
        assert self.replica is not None
        pid = self.replica.pid
        self.replica.send(signal.SIGKILL)
        await until(partial(_is_gone, pid), what="the replica is gone")
        self.came_at = time.time()
        self._killed_in = begin < self.came_at < end

    async def close(self) -> None:
        """Stop looking, and take the rule away. Raises what went wrong with it."""
        if self._task is not None:
            self._task.cancel()
            (came_to,) = await asyncio.gather(self._task, return_exceptions=True)
            if isinstance(came_to, Exception):
                raise came_to
        if self._rule is not None:
            self.cloud.call("DELETE", f"/v1/faults/{self._rule}")

    # --- what became of it --------------------------------------------------------------------------------------

    def met(self, trace: list[dict[str, Any]], began_at: float) -> bool:
        """Whether it came; ``trace`` is the gate's, whose seconds begin at ``began_at``."""
        fault = self._fault
        if fault is None:
            return True
        if fault.action.kind != Kind.KILL:
            return self.came_at is not None
        if not fault.needs_call:
            return self._killed_in
        # Both have counted to the same call: what the cloud made of it lies between its coming in and its answer.
        kills = [entry for entry in trace if entry["fault"] == fault.action.name]
        made = [row.begun - began_at for row in self._found]
        return self.came_at is not None and any(
            entry["asked"] - CLOCK_SECONDS <= at <= entry["at"] + CLOCK_SECONDS for entry in kills for at in made
        )

    def entries(self, began_at: float) -> list[dict[str, Any]]:
        """The trace's line of it; a kill that the gate has done stands there already."""
        fault = self._fault
        if fault is None or self.came_at is None or fault.needs_call:
            return []
        at = self.came_at - began_at
        entry = Entry(
            at=at,
            replica="a",
            far="cloud",
            signature=fault.trigger.signature,
            occurrence=fault.trigger.occurrence,
            verb="step",
            plural="",
            subresource="",
            name="",
            status=0,
            changed=False,
            fault=fault.action.name,
            asked=at,
        )
        return [asdict(entry)]

    def events(self, began_at: float) -> list[tuple[float, str, str, int]]:
        """The sub-steps that are over, as events of the cloud."""
        seen: dict[str, int] = {}
        told = []
        for at, signature in sorted(done(self._rows(), time.time())):
            seen[signature] = seen.get(signature, 0) + 1
            told.append((at - began_at, "cloud", signature, seen[signature]))
        return told


def _is_gone(pid: int) -> bool:
    return state_of(pid) in {"", "Z", "X"}
