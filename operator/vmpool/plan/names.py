"""Which pools a name of the REST API means.

A pool has one name of its own there: ``spec.restName``, or else the object's name. ``<namespace>_<name>`` always works
as well and is never ambiguous, because no namespace has an underscore in its name. Further names are its aliases.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vmpool.plan.snapshot import PoolFacts

RESERVED = frozenset({"ok", "request_id", "ready", "message"})
"""Words of the answers themselves: a pool that is called so is known by its qualified name alone."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """The pools that have one name; empty when there is none."""

    own: tuple[PoolFacts, ...] = ()
    """Those that are called so, oldest first, ones being deleted last: the first that the caller may claim from."""
    aliased: tuple[PoolFacts, ...] = ()
    """Those that have it as an alias, oldest first: every one that the caller may claim from."""

    @property
    def pools(self) -> tuple[PoolFacts, ...]:
        """All of them, each once."""
        return (*self.own, *(pool for pool in self.aliased if all(pool.uid != other.uid for other in self.own)))


UNKNOWN = Meaning()


def rest_name(pool: PoolFacts) -> str:
    """Return what the pool is called in the REST API by its own choice; another pool may be called the same."""
    return pool.spec.rest_name or pool.name


def qualified_name(pool: PoolFacts) -> str:
    """Return the name that no other pool can have."""
    return f"{pool.namespace}_{pool.name}"


def directory(pools: Iterable[PoolFacts]) -> dict[str, Meaning]:
    """Return what every known name means."""
    by_age = sorted(pools, key=_age)
    own: dict[str, list[PoolFacts]] = {}
    aliased: dict[str, list[PoolFacts]] = {}
    for pool in by_age:
        own.setdefault(rest_name(pool), []).append(pool)
        for alias in pool.spec.aliases:
            aliased.setdefault(alias, []).append(pool)
    made = {
        name: Meaning(tuple(sorted(own.get(name, ()), key=_deleting)), tuple(aliased.get(name, ())))
        for name in {**own, **aliased}
        if name not in RESERVED
    }
    # Last, because nobody's choice of a name or an alias may hide it.
    return made | {qualified_name(pool): Meaning((pool,)) for pool in by_age}


def candidates(pools: Iterable[PoolFacts], name: str) -> list[PoolFacts]:
    """Return every pool that a name may mean; empty for an unknown name."""
    return list(directory(pools).get(name, UNKNOWN).pools)


def shown_names(pools: Iterable[PoolFacts]) -> dict[str, str]:
    """Return the name under which each pool is shown, by uid: its own, or the qualified one where that is taken.

    Taken is a name that an older pool is called by, or that is the qualified one of another pool.
    """
    known = list(pools)
    meanings = directory(known)
    shown = {}
    for pool in known:
        own = rest_name(pool)
        oldest = min(meanings.get(own, UNKNOWN).own, key=_age, default=None)
        shown[pool.uid] = own if oldest is not None and oldest.uid == pool.uid else qualified_name(pool)
    return shown


def hands_out(pool: PoolFacts) -> bool:
    """Say whether the pool gives VMs to anybody at present; it is known by its names in any case."""
    return not pool.deleting and not pool.spec.paused


def in_turn(pools: Sequence[PoolFacts], roll: float) -> list[PoolFacts]:
    """Return the order in which to try the pools for one VM; ``roll`` in [0, 1) chooses the first.

    By ``claims.weight`` when every one of them has it, else all are equal. The others follow as they are, for when
    the first has nothing.
    """
    if len(pools) < 2:
        return list(pools)
    weights = [pool.spec.claims.weight for pool in pools]
    shares = [weight for weight in weights if weight is not None]
    if len(shares) < len(pools) or not sum(shares):
        shares = [1] * len(pools)
    first = _pick(shares, roll)
    return [pools[first], *pools[:first], *pools[first + 1 :]]


def split(pools: Sequence[PoolFacts], rolls: Sequence[float]) -> Mapping[str, int]:
    """Return how many VMs each pool shall give, by uid, when every VM is drawn on its own and none falls through."""
    counts: dict[str, int] = {}
    for roll in rolls:
        uid = in_turn(pools, roll)[0].uid
        counts[uid] = counts.get(uid, 0) + 1
    return counts


def _pick(shares: Sequence[int], roll: float) -> int:
    left = roll * sum(shares)
    for place, share in enumerate(shares):
        left -= share
        if left < 0:
            return place
    # Rounding can leave nothing below zero: the last one that has a share.
    return max(place for place, share in enumerate(shares) if share)


def _age(pool: PoolFacts) -> tuple[object, ...]:
    return pool.created_at, pool.namespace, pool.name


def _deleting(pool: PoolFacts) -> bool:
    return pool.deleting
