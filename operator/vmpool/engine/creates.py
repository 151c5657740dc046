"""Creates of PooledVMs in flight: they take room before their objects are there."""

from collections import Counter

from vmpool.kube.store import Key


class Creates:
    """Counts them by pool and by provider, for everybody who plans: a pool's own loop, and redrives beside it."""

    def __init__(self) -> None:
        self._by_pool: dict[str, Counter[Key]] = {}
        self._by_provider: Counter[Key] = Counter()

    def begin(self, pool_uid: str, provider: Key) -> None:
        """Count one more, before the first await: the next plan, whoever makes it, sees its room as taken."""
        self._by_pool.setdefault(pool_uid, Counter())[provider] += 1
        self._by_provider[provider] += 1

    def end(self, pool_uid: str, provider: Key) -> None:
        """Count one less: its object is known now, or will not be."""
        self._by_provider[provider] -= 1
        of_pool = self._by_pool[pool_uid]
        of_pool[provider] -= 1
        if not of_pool.total():
            del self._by_pool[pool_uid]

    def of_pool(self, uid: str) -> tuple[str, ...]:
        """Return the provider's name of each create for this pool."""
        return tuple(name for _, name in self._by_pool.get(uid, Counter()).elements())

    def of_provider(self, key: Key) -> int:
        """Return how many machines of this provider are meant, over all pools."""
        return self._by_provider[key]

    def __len__(self) -> int:
        return self._by_provider.total()
