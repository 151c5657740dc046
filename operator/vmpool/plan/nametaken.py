"""Whether a pool chose a name for REST that an older pool is called by already."""

from collections.abc import Iterable

from vmpool.plan.names import rest_name
from vmpool.plan.snapshot import PoolFacts


def name_taken(pool: PoolFacts, pools: Iterable[PoolFacts]) -> str:
    """Return the older pool that has this one's ``restName``, as ``namespace/name``; empty when there is none.

    A name that nobody chose, the object's own, is no mistake of anybody: it goes to the older pool without a word.
    """
    wanted = pool.spec.rest_name
    if wanted is None:
        return ""
    older = [
        other for other in pools if other.uid != pool.uid and rest_name(other) == wanted and _age(other) < _age(pool)
    ]
    first = min(older, key=_age, default=None)
    return f"{first.namespace}/{first.name}" if first is not None else ""


def _age(pool: PoolFacts) -> tuple[object, ...]:
    return pool.created_at, pool.namespace, pool.name
