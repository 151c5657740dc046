"""One run from the first process to its verdict."""

import asyncio
import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from tests.faults.gate.plan import Plan
from tests.faults.hammer.book import Book, Hold
from tests.faults.hammer.judge import Logs, counted, judge, processes, secrets_kept
from tests.faults.hammer.killer import Killer
from tests.faults.hammer.rest import at_rest, give_all_back, missing
from tests.faults.hammer.stage import Stage, stage
from tests.faults.hammer.upkeep import Upkeep
from tests.faults.hammer.users import REQUEST_SECONDS, ClaimUser, DirectUser, Office, RestUser, User
from tests.faults.oracle.facts import Violation, claim_of
from tests.faults.rig.history import Version
from tests.faults.rig.trial import Evidence
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.dev.plane import ControlPlane
from vmpool.plan.vm import ENDED_MACHINE_GONE

REST_USERS, CLAIM_USERS, DIRECT_USERS = 8, 2, 1
PATIENCE_SECONDS = 180.0
"""How long it is waited for rest, though less is promised: to know how long it took."""
FILL_SECONDS = 120.0
WIND_DOWN_SECONDS = 60.0
"""How long users may take to give back what they have when the load ends."""
PROGRESS_SECONDS = 30.0
MOST_TOLD = 100
"""Violations that a report names."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    report: dict[str, Any]
    violations: list[Violation]
    evidence: Evidence
    holds: list[Hold]
    logs: list[Logs]


class Run:
    """Two operators and two gateways under load and under the hammer."""

    def __init__(self, made: Stage, office: Office, seconds: float, seed: int, tell: Callable[[str], None]) -> None:
        self._stage = made
        self._office = office
        self._seconds = seconds
        self._seed = seed
        self._tell = tell
        self._killer = Killer(office, made.processes, seed)
        self._upkeep = Upkeep(office, made.cloud, made.kind("vmpools"), made.kind("deadletters"), seed)
        self._began = time.monotonic()
        self._overdue: list[str] = []

    async def hammer(self, tokens: dict[str, str]) -> tuple[float, str]:
        """Load and kill for so long, then let everything come to rest.

        Returns how many seconds after the last kill it had, and what was missing if it never did.
        """
        await until(
            partial(at_rest, self._stage), deadline=FILL_SECONDS, what="the pools are full before the first kill"
        )
        self._upkeep.break_clones()
        self._office.book.opens(time.time())
        users: list[User] = [RestUser(name, self._office, self._seed, token) for name, token in tokens.items()]
        users += [ClaimUser(f"claimer-{number}", self._office, self._seed) for number in range(CLAIM_USERS)]
        users += [DirectUser(f"direct-{number}", self._office, self._seed) for number in range(DIRECT_USERS)]
        load = [asyncio.create_task(one.live(), name=one.name) for one in users]
        load.append(asyncio.create_task(self._upkeep.live(), name="upkeep"))
        load.append(asyncio.create_task(self._tell_now_and_then(), name="progress"))
        killing = asyncio.create_task(self._killer.live(self._seconds), name="killer")
        # Whoever of the load fails ends the run: what is left of it would prove less than it seems to.
        await asyncio.wait({killing, *load}, return_when=asyncio.FIRST_COMPLETED)
        self._office.over.set()
        async with asyncio.timeout(WIND_DOWN_SECONDS):
            await asyncio.gather(killing, *load)
        self._office.book.closes(time.time())
        self._upkeep.mend_clones()
        self._overdue = await give_all_back(self._stage, self._office.book)
        failure = ""
        with suppress(AssertionError):
            await until(partial(at_rest, self._stage), deadline=PATIENCE_SECONDS, what="everything is as wanted")
        if lacks := await missing(self._stage):
            failure = f"{PATIENCE_SECONDS:g} s after the load: {lacks}"
        return time.time() - self._killer.last, failure

    async def _tell_now_and_then(self) -> None:
        while not self._office.over.is_set():
            await self._office.rest(PROGRESS_SECONDS)
            self._tell(self.progress())

    def progress(self) -> str:
        """One line on how far it is."""
        book, counts = self._office.book, self._stage.witness.counts
        lives = " ".join(f"{one.name}:{one.lives}" for one in self._stage.processes)
        return (
            f"{time.monotonic() - self._began:.0f} s: {self._killer.strikes} kills, {book.checkouts} checkouts, "
            f"{book.releases} releases, {sum(book.refusals.values())} refusals, "
            f"{counts.get('deadletters', 0)} letters, {counts.get('pooledvms', 0)} VMs, lives {lives}"
        )

    async def outcome(self, converged_after: float, failure: str) -> Outcome:
        """Stop everything and judge."""
        for one in self._stage.processes:
            await one.stop()
        ended = time.time() - self._stage.began_at
        trace = await self._stage.pulse.last()
        history = await self._stage.witness.of(self._stage.namespace)
        ledger = await asyncio.to_thread(self._stage.cloud.ledger)
        evidence = Evidence(
            plan=Plan(),
            history=history,
            machines=_of_tenants(ledger["machines"], self._stage),
            leaked=_of_tenants(ledger["leaked"], self._stage),
            trace=list(trace),
            events=[],
            failure=failure,
            seconds=ended,
            converged_after=converged_after,
            lives=sum(one.lives for one in self._stage.processes),
            met=True,
            log="",
            install_id="",
            began_at=self._stage.began_at,
            ended=ended,
            looked=time.time() - self._stage.began_at,
        )
        logs = [Logs(one.name, one.log.read_text(errors="replace"), one.ends) for one in self._stage.processes]
        book, witness = self._office.book, self._stage.witness
        violations = judge(evidence, book.holds, book.denied)
        violations += processes(logs)
        violations += secrets_kept(logs, witness.secrets, witness.spilled)
        violations += [Violation("I7", "a claim", one) for one in self._overdue]
        return Outcome(self._figures(evidence, violations), violations, evidence, book.holds, logs)

    def _figures(self, evidence: Evidence, violations: list[Violation]) -> dict[str, Any]:
        book, counts = self._office.book, self._stage.witness.counts
        ways = Counter(hold.way for hold in book.holds)
        kept = self._stage.processes
        return {
            "minutes": round(self._seconds / 60, 2),
            "seed": self._seed,
            "strikes": self._killer.strikes,
            "kills": {one.name: one.kills for one in kept},
            "ended_by_themselves": {one.name: one.ends for one in kept},
            "lives": evidence.lives,
            "checkouts": book.checkouts,
            "vms_checked_out": dict(sorted(ways.items())),
            "releases": book.releases,
            "left_to_expire": book.left,
            "expiries": _ended_by(evidence.history, "Expired"),
            "machines_gone": _ended_by(evidence.history, ENDED_MACHINE_GONE),
            "letters": counts.get("deadletters", 0),
            "vms": counts.get("pooledvms", 0),
            "machines": len(evidence.machines),
            "upkeep": dict(sorted(self._upkeep.done.items())),
            "requests": book.asked,
            "refusals": dict(sorted(book.refusals.items())),
            "doubts": book.doubts,
            "longest_seconds_without_a_checkout": round(book.drought, 1),
            "seconds_to_converge": round(evidence.converged_after, 1),
            "versions": len(evidence.history),
            "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            **counted(violations),
            "violations": [str(one) for one in violations[:MOST_TOLD]],
        }


def _of_tenants(rows: list[dict[str, Any]], made: Stage) -> list[dict[str, Any]]:
    names = {tenant.name for tenant in made.tenants.values()}
    return [row for row in rows if row["tenant"] in names]


def _ended_by(history: Sequence[Version], reason: str) -> int:
    """How many claims ended for a reason."""
    claims = ((one.uid, claim_of(one.object)) for one in history if one.plural == "pooledvms")
    return len({uid for uid, claim in claims if claim.get("endReason") == reason})


async def hammered(
    plane: ControlPlane, kubectl: Kubectl, folder: Path, seconds: float, seed: int, tell: Callable[[str], None]
) -> Outcome:
    """Set up, hammer for so long, and judge."""
    names = [f"user-{number}" for number in range(REST_USERS)]
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    async with stage(plane, kubectl, folder, names) as made, aiohttp.ClientSession(timeout=timeout) as session:
        tokens = await made.tokens(session, names)
        made.witness.secrets += [token.encode() for token in tokens.values()]
        office = Office(
            vms=made.kind("pooledvms"),
            claims=made.kind("vmclaims"),
            gateways=made.gateways,
            session=session,
            book=Book(),
            over=asyncio.Event(),
        )
        run = Run(made, office, seconds, seed, tell)
        return await run.outcome(*await run.hammer(tokens))


def keep(outcome: Outcome, folder: Path) -> None:
    """Write down what the verdict rests on, for somebody who looks for a cause."""
    folder.mkdir(parents=True, exist_ok=True)
    evidence = outcome.evidence
    rows = ({"plural": one.plural, "event": one.event, "object": one.object} for one in evidence.history)
    (folder / "history.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    (folder / "machines.json").write_bytes(orjson.dumps(evidence.machines))
    (folder / "trace.json").write_bytes(orjson.dumps(evidence.trace))
    (folder / "holds.json").write_bytes(orjson.dumps([asdict(one) for one in outcome.holds]))
    (folder / "report.json").write_text(json.dumps(outcome.report, indent=1) + "\n")
    (folder / "violations.txt").write_text("".join(f"{one}\n" for one in outcome.violations))
    for one in outcome.logs:
        (folder / f"{one.name}.log").write_text(one.text)
