"""Our finalizer on the Secret that a VMProvider's session was opened with."""

from collections.abc import Awaitable, Callable

from vmpool.api import keys
from vmpool.engine import writes
from vmpool.engine.world import World
from vmpool.kube.errors import NotFound
from vmpool.kube.kinds import SECRETS


class SecretHold:
    """Keeps the finalizer on the Secret in use, and on no other."""

    def __init__(self, world: World, uid: str, namespace: str, recorded: str) -> None:
        self._world = world
        self._uid = uid
        self._namespace = namespace
        self.name = recorded
        """Of the Secret that is ours to let go, as the VMProvider's status records it; empty when there is none."""
        self.kept = False
        """Whether our finalizer was seen on it."""

    async def keep_only(self, wanted: str, *, drop: bool, record: Callable[[], Awaitable[None]]) -> None:
        """Hold the Secret ``wanted`` (empty: none), and with ``drop`` let another one go before.

        One name is recorded, so the old one is let go first: between the two writes nothing is created, for ``kept``
        is false. ``record`` writes ``name`` into the status before the finalizer: after a kill we still know whose it
        is. Raises what the writes raise.
        """
        if self.name not in ("", wanted) and drop:
            await self._let_go()
        if wanted and self.name != wanted:
            self.name = wanted
            # What was seen there before may be the finalizer of another provider, and gone by now.
            self.kept = False
            await record()
        if wanted and not self.kept:
            await self._patch(wanted, keep=True)
            self.kept = True

    async def _let_go(self) -> None:
        """Take our finalizer off, unless another provider still holds the same Secret."""
        providers = (entry.fact for entry in self._world.providers if entry.uid != self._uid)
        others = (one for one in providers if one is not None and one.namespace == self._namespace)
        if not any(one.status.held_secret == self.name for one in others):
            await self._patch(self.name, keep=False)
        self.name, self.kept = "", False

    async def _patch(self, name: str, *, keep: bool) -> None:
        try:
            raw = await self._world.client.get(SECRETS, self._namespace, name)
        except NotFound:
            return
        patch = writes.finalizer_patch(raw, keys.FINALIZER_IN_USE, keep=keep)
        if patch:
            await self._world.client.patch_json(SECRETS, self._namespace, name, patch)
