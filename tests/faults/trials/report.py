"""What all trials together have shown, for programs and for people."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.faults.trials.catalogue import FAULTS
from tests.faults.trials.found import Finding, findings
from tests.faults.trials.state import Outcome, State, Trialled

Places = Mapping[str, Sequence[tuple[str, str, int]]]


def report(state: State, places: Places) -> dict[str, Any]:
    """Count pairs that there are and that were covered, single and double trials, and violations."""
    pairs = {
        (scenario, signature, action.name)
        for scenario, those in places.items()
        for sort, signature, _ in those
        for action in FAULTS[sort]
    }
    trials = list(state)
    single = [one for one in trials if not one.second]
    met = [one for one in trials if one.outcome is not Outcome.OTHER]
    covered = {pair for one in met for pair in one.pairs} & pairs
    alone = {one.pair for one in met if not one.second} & pairs
    violated = [one for one in trials if one.outcome is Outcome.VIOLATED]
    return {
        "pairs": len(pairs),
        "covered": len(covered),
        "alone": len(alone),
        "single": len(single),
        "double": len(trials) - len(single),
        "together": sum(one.together for one in trials),
        "other": sum(one.outcome is Outcome.OTHER for one in trials),
        "signatures": len({signature for those in places.values() for _, signature, _ in those}),
        "violations": len(violated),
        "found": [finding.model_dump(exclude={"plan"}) for finding in findings()],
        "scenarios": {
            name: {
                "pairs": sum(pair[0] == name for pair in pairs),
                "covered": sum(pair[0] == name for pair in covered),
            }
            for name in places
        },
        "faults": dict(sorted(Counter(fault for one in trials for _, _, fault in one.pairs).items())),
        "violated": [_line(one) for one in violated],
    }


def _line(one: Trialled) -> str:
    second = f" + {one.second}" if one.second else ""
    return f"{one.scenario} | {one.signature} | {one.fault}{second}: {one.note}"


def write_report(state: State, places: Places, path: Path) -> None:
    """Write the report as JSON, and as a page beside it."""
    made = report(state, places)
    path.write_text(json.dumps(made, indent=1) + "\n")
    rows = "".join(f"| {name} | {those['pairs']} | {those['covered']} |\n" for name, those in made["scenarios"].items())
    faults = "".join(f"| {name} | {count} |\n" for name, count in made["faults"].items())
    violated = "".join(f"* {line}\n" for line in made["violated"]) or "None.\n"
    found = "".join(_row(finding) for finding in findings())
    path.with_suffix(".md").write_text(
        "# Fault trials\n\n"
        "Made by `python -m tests.faults report`. A pair is a fault at a signature of a scenario, which is what a\n"
        "request or an event does, without names and times. What each fault is: `tests/faults/gate/plan.py`; how a\n"
        "trial is judged: `docs/decisions/0010-fault-trials.md`.\n\n"
        f"**{made['covered']} of {made['pairs']} pairs** over {made['signatures']} signatures, {made['alone']} of them "
        f"in a\ntrial of their own; {made['single']} trials with one fault, {made['double']} with two, of which "
        f"{made['together']} had both armed from\nthe beginning; {made['other']} in which a fault did not come. "
        f"**{made['violations']} violations.**\n\n"
        f"| Scenario | Pairs | Covered |\n|---|---|---|\n{rows}\n"
        f"| Fault | Trials |\n|---|---|\n{faults}\n"
        f"## Violations\n\n{violated}\n"
        "## Found on the way, and mended\n\n"
        "Those with a plan are in `tests/faults/found.json` and are played first in every `make faults`.\n\n"
        f"| What was broken | Why, and what was done | Kept as |\n|---|---|---|\n{found}"
    )


def _row(finding: Finding) -> str:
    kept = ", ".join(f"`{one.strip()}`" for one in finding.kept.split(","))
    return f"| {finding.shown} | {finding.cause} | {kept} |\n"
