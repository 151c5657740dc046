"""Trials on the command line.

``python -m tests.faults learn`` finds the places where something can go wrong and writes them down; ``all`` runs what
the state file lacks of these; ``sample`` learns for itself and runs a part, stratified; ``replay FILE`` plays a kept
violation again; ``report`` writes the report of the state.
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

from tests.faults.gate.plan import Plan
from tests.faults.rig.open import rig
from tests.faults.scenarios import SCENARIOS
from tests.faults.trials.catalogue import Place
from tests.faults.trials.choose import Places, double, joined, pair_of, paired, singles, stratified
from tests.faults.trials.found import kept_plans
from tests.faults.trials.report import write_report
from tests.faults.trials.run import TRIES, Runner, violations
from tests.faults.trials.state import State

ROOT = Path(__file__).parents[2]
STATE = ROOT / "bench" / "faults" / "trials.jsonl"
REPORT = ROOT / "bench" / "faults" / "report.json"
KEPT = ROOT / "bench" / "faults" / "violations"
PLACES = ROOT / "bench" / "faults" / "places.json"
DOUBLES = 1000
"""Double faults in all."""


def main() -> int:
    """Read the command line and run; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("what", choices=["sample", "all", "replay", "report", "learn"])
    parser.add_argument("file", nargs="?", type=Path, help="of a violation, for replay")
    parser.add_argument("--minutes", type=float, default=15.0, help="begin no trial after so many")
    parser.add_argument("--jobs", type=int, default=4, help="trials at a time")
    parser.add_argument("--scenario", action="append", choices=sorted(SCENARIOS), help="only these")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--tries", type=int, default=TRIES, help="of a trial whose fault does not come")
    parser.add_argument("--count", type=int, default=10_000, help="trials at most")
    parser.add_argument("--together", action="store_true", help="all: two pairs a trial, where neither hides the other")
    parser.add_argument("--fresh", action="store_true", help="learn: forget the places that were known")
    parser.add_argument("--state", type=Path, default=STATE, help="what has been run")
    given = parser.parse_args()
    if given.what == "report":
        write_report(State(given.state), _places_of_file(), REPORT)
        return 0
    return asyncio.run(_replay(given) if given.what == "replay" else _run(given))


async def _run(given: argparse.Namespace) -> int:
    names = given.scenario or sorted(SCENARIOS)
    async with rig() as made:
        runner = Runner(made, State(given.state), KEPT, given.jobs, _tell, given.tries)
        until = time.monotonic() + given.minutes * 60
        # One set of places for all runs, or what is covered would never be all of it.
        known = _places_of_file() if given.what != "sample" else {}
        places: Places = {name: [Place(*one) for one in known[name]] for name in names if name in known}
        if given.what == "learn" or not places:
            places = await runner.learn(names)
        if given.what == "learn":
            fresh = {name: [astuple(one) for one in those] for name, those in places.items()}
            _write_places(known | fresh if given.fresh else _joined(known, fresh))
            return 0
        plans = _plans(given, places, runner.state)
        _tell(f"{len(plans)} trials to run")
        try:
            await runner.run(plans[: given.count], until)
        finally:
            runner.state.save()
        _tell(f"{runner.ran} trials, {runner.violated} violations")
        return 1 if runner.violated else 0


def _plans(given: argparse.Namespace, places: Places, state: State) -> list[Plan]:
    every = list(itertools.chain.from_iterable(singles(name, those) for name, those in places.items()))
    if given.what == "sample":
        return [*kept_plans(), *stratified(every, given.count, given.seed)]
    done, doubled = state.done(), state.doubles()
    left = [plan for plan in every if pair_of(plan) not in done]
    again = state.violated()
    of_pair = {pair_of(plan): plan for plan in every}
    broken = [one.pairs for one in state.broken_together()]
    first = [joined(*(of_pair[pair] for pair in pairs)) for pairs in broken if all(pair in of_pair for pair in pairs)]
    first += [plan for plan in left if pair_of(plan) in again]
    rest = [plan for plan in left if pair_of(plan) not in again]
    if given.together:
        rest = paired(rest, 0)
    # One of each place before a second of any, so that a run that is cut short has seen all of it.
    return (
        first
        + (rest if given.together else stratified(rest, len(rest), 0))
        + [double(seed, places) for seed in range(DOUBLES) if seed not in doubled]
    )


async def _replay(given: argparse.Namespace) -> int:
    plan = Plan.model_validate(json.loads(given.file.read_text())["plan"])
    async with rig() as made:
        evidence = await made.trial(SCENARIOS[plan.scenario], plan)
    broken = violations(evidence)
    _tell(f"{'met' if evidence.met else 'the fault did not come'}; {evidence.seconds:.1f} s, {evidence.lives} lives")
    for one in broken:
        _tell(one)
    return 1 if broken else 0


def _places_of_file() -> dict[str, list[tuple[str, str, int]]]:
    return {name: [tuple(one) for one in those] for name, those in json.loads(PLACES.read_text()).items()}


def _joined(
    known: Mapping[str, Sequence[tuple[str, str, int]]], fresh: Mapping[str, Sequence[tuple[str, str, int]]]
) -> dict[str, list[tuple[str, str, int]]]:
    """Add what was found now to what was found before: what differs from run to run is a place all the same."""
    joined = {}
    for name in sorted({*known, *fresh}):
        counts: dict[tuple[str, str], int] = {}
        for sort, signature, occurrences in (*known.get(name, ()), *fresh.get(name, ())):
            counts[sort, signature] = min(occurrences, counts.get((sort, signature), occurrences))
        joined[name] = sorted((*place, occurrences) for place, occurrences in counts.items())
    return joined


def _write_places(places: Mapping[str, Sequence[tuple[object, ...]]]) -> None:
    """One line for each place, so that changes can be read."""
    scenarios = [
        f" {json.dumps(name)}: [\n" + ",\n".join(f"  {json.dumps(one)}" for one in those) + "\n ]"
        for name, those in sorted(places.items())
    ]
    PLACES.write_text("{\n" + ",\n".join(scenarios) + "\n}\n")


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)  # noqa: T201 - progress on the command line


if __name__ == "__main__":
    sys.exit(main())
