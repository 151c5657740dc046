"""``python -m tests.simulation``: play many seeds, show one's trace, remember how far the cumulative run is."""

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

from tests.simulation.run import Outcome, simulate

REMEMBERED: Final = Path(__file__).with_name("seeds.json")
BATCH: Final = 100
"""Seeds between two garbage collections and two lines of progress."""
SHOWN: Final = 10
"""Most failing seeds that are listed."""


def play(first: int, count: int) -> list[tuple[int, str]]:
    """Play some seeds in a row; return those that broke a promise, with what they broke."""
    # What a story leaves behind in circles is collected once, at the end of the batch.
    gc.disable()
    try:
        return [(seed, problem) for seed in range(first, first + count) if (problem := simulate(seed).problem)]
    finally:
        gc.enable()
        gc.collect()


def play_many(first: int, count: int, jobs: int) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    """Yield, in order, how many more seeds were played and which of them failed."""
    starts = range(first, first + count, BATCH)
    sizes = [min(BATCH, first + count - start) for start in starts]
    if jobs == 1:
        for start, size in zip(starts, sizes, strict=True):
            yield size, play(start, size)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from zip(sizes, pool.map(play, starts, sizes), strict=True)


def show(outcome: Outcome) -> None:
    """Print a story as it went."""
    say("\n".join(outcome.trace))
    say(f"seed {outcome.seed}: {outcome.problem or 'every promise held'}")


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def remembered() -> int:
    """Return how many seeds, from 0 on, have been played without a violation so far."""
    return int(json.loads(REMEMBERED.read_text())["played"]) if REMEMBERED.exists() else 0


def main() -> int:
    """Play what the command line asks for; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many to play")
    parser.add_argument("--start", type=int, help="the first one; without it the cumulative run goes on")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--remember", action="store_true", help=f"write how far the run has come to {REMEMBERED.name}")
    parser.add_argument("--trace", type=int, metavar="SEED", help="play one seed and print its story")
    args = parser.parse_args()
    if args.trace is not None:
        outcome = simulate(args.trace, trace=True)
        show(outcome)
        return bool(outcome.problem)
    first = remembered() if args.start is None else args.start
    failed: list[tuple[int, str]] = []
    done, began = 0, time.monotonic()
    for count, bad in play_many(first, args.seeds, args.jobs):
        done += count
        failed += bad
        for seed, problem in bad:
            say(f"seed {seed}: {problem}")
        if args.remember and not failed and first <= remembered() < first + done:
            REMEMBERED.write_text(json.dumps({"played": first + done}) + "\n")
        pace = done / max(time.monotonic() - began, 1e-9) * 60
        say(f"{done} of {args.seeds} seeds, {len(failed)} violations, {pace:.0f} a minute")
    if failed:
        say(f"replay one with: python -m tests.simulation --trace {failed[0][0]}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
