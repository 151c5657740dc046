"""The names of the REST API as a gateway knows them now, and what one means to one caller."""

from vmpool.gateway.auth.caller import Caller
from vmpool.gateway.context import Gateway
from vmpool.kube.mirror import Change, Mirror
from vmpool.plan import names
from vmpool.plan.names import Meaning
from vmpool.plan.snapshot import PoolFacts


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
    found: list[PoolFacts] = []
    for pool in meaning.own:
        if await gateway.gatekeeper.may_claim(caller, pool):
            found.append(pool)
            # The name is the oldest one's, and stays so while that one is paused or empty.
            break
    for pool in meaning.aliased:
        if all(pool.uid != other.uid for other in found) and await gateway.gatekeeper.may_claim(caller, pool):
            found.append(pool)
    return tuple(found)


def _called(pool: PoolFacts | None) -> tuple[object, ...] | None:
    if pool is None:
        return None
    return pool.namespace, pool.name, pool.spec.rest_name, pool.spec.aliases, pool.deleting
