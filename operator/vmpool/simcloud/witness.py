"""What the history of the ledger proves: how many machines there were at once, and which were one too many.

Computed from the timestamps of all machines ever made, so it holds over any number of restarts.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from vmpool.simcloud.model import Machine, Part

OWNER_TAG = "vmpool-uid"
POOL_TAG = "vmpool-pool"
"""Tags that the operator under test puts on machines: whom a machine is for, and its pool."""

Span = tuple[float, float]


def most_at_once(spans: Iterable[Span]) -> int:
    """Return the largest number of spans that hold at one moment; one that ends as another begins is over."""
    edges: list[tuple[float, int]] = []
    for begin, end in spans:
        if begin < end:
            edges += [(begin, 1), (end, -1)]
    highest = alive = 0
    for _, change in sorted(edges):
        alive += change
        highest = max(highest, alive)
    return highest


def high_water(machines: Sequence[Machine]) -> dict[str, Any]:
    """Return for each tenant the most machines alive at once, in all and by pool."""
    spans: dict[str, list[Span]] = defaultdict(list)
    pools: dict[str, dict[str, list[Span]]] = defaultdict(lambda: defaultdict(list))
    for machine in machines:
        span = (machine.created_at, machine.gone_at)
        spans[machine.tenant].append(span)
        pools[machine.tenant][machine.tag_map().get(POOL_TAG, "")].append(span)
    return {
        tenant: {
            "machines": most_at_once(mine),
            "pools": {pool: most_at_once(those) for pool, those in pools[tenant].items() if pool},
        }
        for tenant, mine in spans.items()
    }


def owners(machines: Sequence[Machine]) -> dict[str, list[str]]:
    """Return the owners that ever had more than one machine, and those that had two at the same moment."""
    spans: dict[str, list[Span]] = defaultdict(list)
    for machine in machines:
        if owner := machine.tag_map().get(OWNER_TAG):
            spans[owner].append((machine.created_at, machine.gone_at))
    several = {owner: those for owner, those in spans.items() if len(those) > 1}
    return {
        "severalEver": sorted(several),
        "severalAtOnce": sorted(owner for owner, those in several.items() if most_at_once(those) > 1),
    }


def leaked(parts: Iterable[Part], machines: Sequence[Machine], now: float) -> list[dict[str, Any]]:
    """Return the disks and nics that are there although their machine is not."""
    alive = {machine.id for machine in machines if now < machine.gone_at}
    return [
        {"kind": part.kind, "machine": part.machine_id, "tenant": part.tenant, "madeAt": part.made_at}
        for part in parts
        if part.exists(now) and part.machine_id not in alive
    ]
