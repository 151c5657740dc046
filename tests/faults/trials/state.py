"""What has been run: a file of lines, one for each trial, sorted, so that it can be merged and read."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path


class Outcome(StrEnum):
    """What a trial has shown."""

    HELD = "held"
    """Every promise held."""
    VIOLATED = "violated"
    OTHER = "other"
    """The fault did not come: it shows nothing."""


@dataclass(frozen=True, slots=True, order=True)
class Trialled:
    """One trial that was run."""

    scenario: str
    signature: str
    fault: str
    occurrence: int
    outcome: Outcome
    second: str = ""
    """What went wrong next, for a double fault: its signature and its action."""
    seed: int = 0
    together: bool = False
    """Both faults were armed from the beginning: each stands for its pair."""
    note: str = ""
    """The first violation, or why the fault did not come."""

    @property
    def pair(self) -> tuple[str, str, str]:
        """What is counted: a fault at a place of a scenario."""
        return (self.scenario, self.signature, self.fault)

    @property
    def pairs(self) -> tuple[tuple[str, str, str], ...]:
        """Of which pairs the trial shows something: none, if its second fault waited for the first."""
        if not self.second:
            return (self.pair,)
        if not self.together:
            return ()
        signature, fault = self.second.rsplit(" ", 1)
        return (self.pair, (self.scenario, signature, fault))


class State:
    """The file. A trial of the same pair replaces an earlier one, a double fault one of the same seed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._all: dict[tuple[object, ...], Trialled] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            self.add(_read(line), save=False)

    def __iter__(self) -> Iterator[Trialled]:
        return iter(sorted(self._all.values()))

    def add(self, one: Trialled, *, save: bool = True) -> None:
        """Note a trial, at once on disk: a line at the end of the file, the last one of a pair counts."""
        self._all[(*one.pair, one.second, one.seed if one.second else 0)] = one
        if save:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(_line(one))

    def save(self) -> None:
        """Write the file whole and in order; a death in between leaves the old one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        fresh.write_text("".join(_line(one) for one in self))
        fresh.replace(self._path)

    def done(self) -> set[tuple[str, str, str]]:
        """The pairs that held; what was violated is run again, as is what did not come."""
        return {pair for one in self if one.outcome is Outcome.HELD for pair in one.pairs}

    def violated(self) -> set[tuple[str, str, str]]:
        """The pairs that broke a promise when they were run last."""
        return {pair for one in self if one.outcome is Outcome.VIOLATED for pair in one.pairs}

    def doubles(self) -> set[int]:
        """The seeds of the double faults that held, of which the second one waited for the first."""
        return {one.seed for one in self if one.second and not one.together and one.outcome is Outcome.HELD}

    def broken_together(self) -> list[Trialled]:
        """The trials of two pairs that broke a promise when they were run last."""
        return [one for one in self if one.together and one.outcome is Outcome.VIOLATED]


def _line(one: Trialled) -> str:
    return json.dumps({key: value for key, value in asdict(one).items() if value not in ("", 0, False)}) + "\n"


def _read(line: str) -> Trialled:
    found = json.loads(line)
    return Trialled(**{"occurrence": 0, **found, "outcome": Outcome(found["outcome"])})
