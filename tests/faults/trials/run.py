"""Run many trials, several at a time, and note what each has shown."""

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.faults.gate.plan import Plan
from tests.faults.oracle.judge import judge
from tests.faults.rig.trial import Evidence, Rig
from tests.faults.scenarios import SCENARIOS
from tests.faults.trials.catalogue import Place, places
from tests.faults.trials.choose import is_single, pair_of, parted
from tests.faults.trials.state import Outcome, State, Trialled

TRIES = 3
"""How often a trial is run whose fault does not come."""
CLEAN_RUNS = 2
NOTE = 300
"""Characters of a note."""


@dataclass(frozen=True)
class Shown:
    """What a trial has shown."""

    outcome: Outcome
    violations: list[str]
    evidence: Evidence


@dataclass
class Runner:
    """Trials on one rig."""

    rig: Rig
    state: State
    kept: Path
    """Where violations are kept, a file each."""
    jobs: int
    tell: Callable[[str], None]
    tries: int = TRIES
    ran: int = 0
    violated: int = 0
    _began: float = field(default_factory=time.monotonic)

    async def learn(self, scenarios: Iterable[str]) -> dict[str, list[Place]]:
        """Run scenarios without a fault, twice each, and return the places that both runs have.

        Raises AssertionError when a promise is broken without any fault.
        """
        found: dict[str, list[Place]] = {}

        async def one(name: str) -> None:
            runs = [await self.rig.trial(SCENARIOS[name], Plan(scenario=name)) for _ in range(CLEAN_RUNS)]
            for evidence in runs:
                broken = violations(evidence)
                if broken:
                    self._keep(Plan(scenario=name), evidence, broken)
                assert not broken, f"{name} without a fault: {broken}"
            found[name], some = places([{"trace": run.trace, "events": run.events} for run in runs])
            self.tell(f"{name}: {len(found[name])} places, {len(some)} not in every run")

        await self._each(one, scenarios)
        return dict(sorted(found.items()))

    async def run(self, plans: Iterable[Plan], until: float) -> None:
        """Run plans until all are done or the time (monotonic) has come."""

        async def one(plan: Plan) -> None:
            if time.monotonic() >= until:
                return
            shown = await self.trial(plan)
            held = shown.outcome is Outcome.HELD
            if plan.together and not held:
                # Each by itself: it shows which of the two it was, or whose fault comes without the other one.
                for single in parted(plan):
                    self.note(single, await self.trial(single))
            if not plan.together or shown.outcome is not Outcome.OTHER:
                self.note(plan, shown)

        await self._each(one, plans)

    async def trial(self, plan: Plan) -> Shown:
        """Run one plan; again while its fault does not come, if it has only one."""
        for _ in range(1 if plan.together else self.tries):
            shown = self._shown(plan, await self.rig.trial(SCENARIOS[plan.scenario], plan))
            if shown.outcome is not Outcome.OTHER:
                break
        return shown

    def _shown(self, plan: Plan, evidence: Evidence) -> Shown:
        broken = violations(evidence)
        if broken:
            self._keep(plan, evidence, broken)
            return Shown(Outcome.VIOLATED, broken, evidence)
        return Shown(Outcome.HELD if evidence.met else Outcome.OTHER, [], evidence)

    def note(self, plan: Plan, shown: Shown) -> None:
        """Put a result into the state and tell of it."""
        first, last = plan.faults[0], plan.faults[-1]
        one = Trialled(
            scenario=plan.scenario,
            signature=first.trigger.signature,
            fault=first.action.name,
            occurrence=first.trigger.occurrence,
            outcome=shown.outcome,
            note="; ".join(shown.violations)[:NOTE],
        )
        if is_single(plan):
            scenario, signature, fault = pair_of(plan)
            one = replace(one, scenario=scenario, signature=signature, fault=fault)
        else:
            second = f"{last.trigger.signature} {last.action.name}"
            one = replace(one, second=second, seed=plan.seed, together=plan.together)
        self.state.add(one)
        self.ran += 1
        self.violated += shown.outcome is Outcome.VIOLATED
        rate = self.ran / (time.monotonic() - self._began)
        seconds = f"{shown.evidence.seconds:.1f} s, {shown.evidence.lives} lives"
        what = f"{one.scenario} | {one.signature} | {one.fault}{' + ' + one.second if one.second else ''}"
        self.tell(f"{self.ran} ({rate:.2f}/s) {shown.outcome.value:8} {what} ({seconds}) {one.note}")

    def _keep(self, plan: Plan, evidence: Evidence, broken: list[str]) -> None:
        """Write everything that is known of a violation into a file that can be played again."""
        self.kept.mkdir(parents=True, exist_ok=True)
        number = len(list(self.kept.glob("*.json"))) + 1
        story = {
            "plan": plan.model_dump(mode="json", by_alias=True),
            "violations": broken,
            "failure": evidence.failure,
            "trace": evidence.trace,
            "events": evidence.events,
            "machines": evidence.machines,
            "history": [[one.plural, one.event, one.object] for one in evidence.history],
            "log": evidence.log.splitlines()[-2000:],
        }
        (self.kept / f"{plan.scenario}-{number}.json").write_text(json.dumps(story, default=str, indent=1))

    async def _each(self, work: Callable[..., object], things: Iterable[object]) -> None:
        """Do something for each, so many at a time, in order of their coming."""
        waiting = iter(things)

        async def worker() -> None:
            for thing in waiting:
                await work(thing)  # type: ignore[misc]

        async with asyncio.TaskGroup() as group:
            for _ in range(self.jobs):
                group.create_task(worker())


def violations(evidence: Evidence) -> list[str]:
    """What was broken, in words; also that the scenario did not come to its end."""
    found = [f"{one.code} {one.subject}: {one.what}" for one in judge(evidence)]
    return [*([f"end: {evidence.failure}"] if evidence.failure else []), *found]
