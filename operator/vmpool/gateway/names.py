"""The names of the REST API as a gateway knows them now, and what one means to one caller."""

import asyncio
from collections.abc import Sequence
from typing import Final

from vmpool.gateway.auth.caller import Caller
from vmpool.gateway.context import Gateway
from vmpool.kube.mirror import Change, Mirror
from vmpool.plan import names
from vmpool.plan.names import Meaning
from vmpool.plan.snapshot import PoolFacts

REVIEWS_AT_ONCE: Final = 8
"""Most pools of one name about which the API server is asked at the same time."""


class Directory:
    """Names of pools, made anew only when a pool was added, removed or called otherwise."""

    def __init__(self, pools: Mirror[PoolFacts]) -> None:
        self._pools = pools
        self._meanings: dict[str, Meaning] | None = None
        self._shown: dict[str, str] = {}
        pools.on_change(self._changed)

    def meaning(self, name: str) -> Meaning:
        """Return what a name means, with the pools as they are now."""
        found = self._known().get(name)
        if found is None:
            return names.UNKNOWN
        return Meaning(self._fresh(found.own), self._fresh(found.aliased))

    def shown(self, pool_uid: str, otherwise: str) -> str:
        """Return the name under which a pool is shown; ``otherwise`` when there is no such pool any more."""
        self._known()
        return self._shown.get(pool_uid, otherwise)

    def all_shown(self) -> list[str]:
        """Return the names of all pools that are not being deleted, each pool once, in alphabetical order."""
        self._known()
        facts = ((name, self._pools.by_uid(uid)) for uid, name in self._shown.items())
        return sorted(
            name for name, entry in facts if entry is not None and entry.fact is not None and not entry.fact.deleting
        )

    def _known(self) -> dict[str, Meaning]:
        if self._meanings is None:
            pools = [entry.fact for entry in self._pools if entry.fact is not None]
            self._meanings = names.directory(pools)
            self._shown = names.shown_names(pools)
        return self._meanings

    def _fresh(self, pools: tuple[PoolFacts, ...]) -> tuple[PoolFacts, ...]:
        entries = (self._pools.by_uid(pool.uid) for pool in pools)
        return tuple(entry.fact for entry in entries if entry is not None and entry.fact is not None)

    def _changed(self, change: Change[PoolFacts]) -> None:
        before = change.old.fact if change.old is not None else None
        after = change.new.fact if change.new is not None else None
        if _called(before) != _called(after):
            self._meanings = None


async def meant(gateway: Gateway, caller: Caller, name: str) -> tuple[PoolFacts, ...]:
    """Return the pools that a name means to this caller: those that may be claimed from. Empty: none.

    A name that only others may use is like one that nobody knows: whoever tries names learns nothing from the answer.
    Raises ``Refusal`` 503 when nobody can say who may claim.
    """
    meaning = gateway.directory.meaning(name)
    # The name is the oldest one's, and stays so while that one is paused or empty.
    own = await _claimable(gateway, caller, meaning.own, 1)
    aliased = [pool for pool in meaning.aliased if all(pool.uid != other.uid for other in own)]
    return (*own, *await _claimable(gateway, caller, aliased, len(aliased)))


async def _claimable(gateway: Gateway, caller: Caller, pools: Sequence[PoolFacts], most: int) -> list[PoolFacts]:
    """Return the first ``most`` pools that may be claimed from. Raises ``Refusal`` 503 if one before them is unsure."""
    found: list[PoolFacts] = []
    for start in range(0, len(pools), REVIEWS_AT_ONCE):
        some = pools[start : start + REVIEWS_AT_ONCE]
        questions = [gateway.gatekeeper.may_claim(caller, pool) for pool in some]
        answers = await asyncio.gather(*questions, return_exceptions=True) if len(some) > 1 else [await questions[0]]
        for pool, answer in zip(some, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            if answer:
                found.append(pool)
            if len(found) == most:
                return found
    return found


def _called(pool: PoolFacts | None) -> tuple[object, ...] | None:
    if pool is None:
        return None
    return pool.namespace, pool.name, pool.spec.rest_name, pool.spec.aliases, pool.deleting
