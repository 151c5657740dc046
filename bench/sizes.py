"""``fill_sizes``: how the time to fill a pool grows with its size, at a cloud whose machines run at once."""

from bench import fill
from bench.figures import Result
from bench.rig import Rig

SIZES = (50, 100, 250, 500, 1_000, 2_000)
PAIRS = 3
"""Enough for a curve; more would take longer than all other benchmarks together."""


async def run(rig: Rig, pairs: int) -> Result:
    """Fill pools of every size; at most ``PAIRS`` pairs."""
    variants = [fill.Variant(str(size), count=size) for size in SIZES]
    filled = await fill.run(rig, min(pairs, PAIRS), among=variants)
    return Result("fill_sizes", filled.pairs)
