"""What a benchmark found: pairs of ours and the floor, their medians, the promises they are held against."""

import json
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

Figures = Mapping[str, float]
"""One run's numbers by name; the unit is the name's last word."""


@dataclass(frozen=True)
class Pair:
    """Ours and the floor, run one after the other under the same conditions."""

    ours: Figures
    floor: Figures

    def document(self) -> dict[str, dict[str, float]]:
        """Return what is written of it."""
        return {"ours": _rounded(self.ours), "floor": _rounded(self.floor)}


@dataclass(frozen=True)
class Promise:
    """A bound that a figure must keep; ``of`` says what is held: a metric, or the ratio of a metric to its floor."""

    metric: str
    bound: float
    at_least: bool = False
    ratio: bool = False

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}{' of the floor' if self.ratio else ''}"


@dataclass
class Result:
    """Everything that is kept of one benchmark."""

    name: str
    pairs: Sequence[Pair]
    promises: Sequence[Promise] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    """What a reader must know to read a metric, by metric."""
    whole: Pair | None = None
    """What is of all pairs together and no median of theirs, as a percentile of all samples is."""
    metrics: dict[str, float] = field(init=False)
    floor: dict[str, float] = field(init=False)
    ratio: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = _medians([pair.ours for pair in self.pairs])
        self.floor = _medians([pair.floor for pair in self.pairs])
        # Of each pair first: what disturbs the machine disturbs both halves of a pair.
        both = [name for name in self.metrics if self.floor.get(name)]
        self.ratio = {
            name: statistics.median(p.ours[name] / p.floor[name] for p in self.pairs if p.floor.get(name))
            for name in both
        }
        if self.whole is not None:
            self.metrics |= self.whole.ours
            self.floor |= self.whole.floor
            bare = {name: value for name, value in self.whole.floor.items() if value and name in self.whole.ours}
            self.ratio |= {name: self.whole.ours[name] / value for name, value in bare.items()}

    def value(self, promise: Promise) -> float:
        """Return the figure that a promise is about."""
        return (self.ratio if promise.ratio else self.metrics)[promise.metric]

    def kept(self, promise: Promise) -> bool:
        """Say whether a promise is kept."""
        value = self.value(promise)
        return value >= promise.bound if promise.at_least else value <= promise.bound

    def broken(self) -> list[Promise]:
        """Return the promises that are not kept."""
        return [promise for promise in self.promises if not self.kept(promise)]

    def document(self) -> dict[str, object]:
        """Return what is written to ``bench/results``."""
        return {
            "name": self.name,
            "commit": commit(),
            "metrics": _rounded(self.metrics),
            "floor": _rounded(self.floor),
            "ratio": _rounded(self.ratio),
            "pairs": [pair.document() for pair in self.pairs],
            **({"whole": self.whole.document()} if self.whole is not None else {}),
            "promises": {
                f"{promise.metric}{' ratio' if promise.ratio else ''} {promise}": {
                    "value": _round(self.value(promise)),
                    "kept": self.kept(promise),
                }
                for promise in self.promises
            },
        }

    def write(self, folder: Path = RESULTS) -> Path:
        """Write the document and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(self.document(), indent=2) + "\n")
        return path


def _medians(runs: Sequence[Figures]) -> dict[str, float]:
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: statistics.median(run[name] for run in runs if name in run) for name in names}


def _rounded(figures: Figures) -> dict[str, float]:
    return {name: _round(value) for name, value in figures.items()}


def _round(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def commit() -> str:
    """Return the commit that was measured; ``+`` behind it when files differ from it."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    # Results are written by the run itself: they do not make what was measured another program.
    changed = git("status", "--porcelain", "--", "..", ":(exclude)results")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if changed else "")
