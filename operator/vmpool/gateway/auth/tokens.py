"""The REST tokens: 16 Secrets that every gateway follows by name, and one with the key of their hashes.

A token has a key of its own in its Secret, so gateways never overwrite each other's writes. It is made and deleted by
merge patches of that key alone. That it was used is noted by a JSON Patch that first tests the former value: a merge
patch would bring back a token that was deleted in between.
"""

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn

from vmpool.api import keys
from vmpool.gateway.answers import forbidden, unavailable
from vmpool.gateway.auth import entries
from vmpool.gateway.auth.caller import Identity
from vmpool.gateway.auth.entries import Entry, Shelf, ShelfReader, TokenKeys
from vmpool.gateway.context import TokenFacts
from vmpool.kube.client import Client
from vmpool.kube.errors import AlreadyExists, Conflict, Invalid, KubeError, NotFound, OutcomeUnknown
from vmpool.kube.kinds import SECRETS
from vmpool.kube.mirror import Change, Mirror, MirrorSettings, Selection
from vmpool.kube.resource import Json
from vmpool.settings import GatewaySettings, Settings
from vmpool.telemetry import logs
from vmpool.telemetry.gateway import GatewayMetrics

log = logs.get(__name__)

WRITE_TRIES: Final = 4
"""Of one write that others' writes came before or that was not answered; each is the same when done twice."""
USED_PAUSE_SECONDS: Final = 5.0
"""How long uses are gathered before they are written together."""
USED_WAITING: Final = 10_000
"""Most tokens whose use waits to be written; the use of others is noted when they are used again."""
BATCH: Final = 100
"""Tokens in one patch."""
SWEEP_BATCH: Final = 500
"""Expired tokens of one Secret that one sweep removes."""
EXPIRED_GRACE: Final = timedelta(minutes=1)
"""How long an expired token is kept before the sweep takes it."""


class Tokens:
    """The token book of one gateway. ``run`` must be running for it to know anything."""

    def __init__(self, client: Client, settings: Settings, own: GatewaySettings, metrics: GatewayMetrics) -> None:
        self._client = client
        self._namespace = settings.namespace
        self._max_skew_seconds = settings.max_clock_skew_seconds
        self._own = own
        self._metrics = metrics
        bounds = MirrorSettings()

        def one(name: str) -> Selection:
            # List and watch of a single name need a right to this name only.
            return Selection(SECRETS, self._namespace, field_selector=f"metadata.name={name}")

        names = [f"{keys.TOKEN_SECRET_PREFIX}{digit}" for digit in entries.DIGITS]
        self._shelves = {name: Mirror(client, one(name), ShelfReader(), bounds) for name in names}
        self._key: Mirror[TokenKeys] = Mirror(client, one(keys.TOKEN_KEY_SECRET), entries.read_keys, bounds)
        self._mirrors: tuple[Mirror[Any], ...] = (self._key, *self._shelves.values())
        for shelf in self._shelves.values():
            shelf.on_change(self._learn)
        self._known: dict[str, Entry] = {}
        self._digest_by_id: dict[str, str] = {}
        self._by_user: dict[str, dict[str, Entry]] = {}
        self._making: Counter[str] = Counter()
        self._used: dict[str, datetime] = {}
        self._used_wake = asyncio.Event()

    # --- reading ---------------------------------------------------------------------------------

    def look(self, token: str) -> TokenFacts | None:
        """Return the token that this text is, expired or not.

        One that another provider vouched for is none: its user may be somebody else here, of the same name.
        """
        if not entries.looks_like_token(token):
            return None
        held = self._keys()
        for key in (held.current, held.previous):
            found = self._known.get(entries.digest_of(key, token)) if key else None
            if found is not None and self._ours(found.facts):
                return found.facts
        return None

    def find(self, token: str) -> TokenFacts | None:
        """Return the token that this text is, unless it has expired."""
        found = self.look(token)
        return None if found is None or expired(found, datetime.now(UTC)) else found

    def of(self, identity: Identity) -> list[TokenFacts]:
        """Return a user's tokens that have not expired, oldest first."""
        now = datetime.now(UTC)
        every = (entry.facts for entry in self._by_user.get(identity.user, {}).values())
        own = (facts for facts in every if self._ours(facts) and not expired(facts, now))
        return sorted(own, key=lambda facts: (facts.created, facts.id))

    def healthy(self) -> str:
        """Return why what is known here should not be trusted now; empty when all is well."""
        for mirror in self._mirrors:
            if not mirror.synced.is_set():
                return "the tokens have not been read yet"
            if mirror.age() > mirror.settings.silence.total_seconds():
                return f"the tokens ({mirror.selection.field_selector}) were last heard of {mirror.age():.0f} s ago"
            if mirror.regressed:
                return "the API server went back in time: revoked tokens may be back"
        for problem in self._key.broken.values():
            return f"Secret {self._namespace}/{keys.TOKEN_KEY_SECRET}: {problem}"
        return ""

    # --- writing ---------------------------------------------------------------------------------

    async def create(self, identity: Identity) -> str:
        """Make a token and return its text, which is kept nowhere.

        Raises ``Refusal`` 403 at the user's limit and 503 when tokens cannot be kept, and ``KubeError``.
        """
        problem = self.healthy()
        if problem:
            raise unavailable(problem, self._own.retry_after_seconds)
        limit = self._own.tokens_per_user
        if len(self.of(identity)) + self._making[identity.user] >= limit:
            raise forbidden(f"you have {limit} tokens, which is the most that a user may have; delete one first")
        self._making[identity.user] += 1
        try:
            return await self._create(identity)
        finally:
            self._making[identity.user] -= 1
            self._making += Counter()  # drops zeros

    async def _create(self, identity: Identity) -> str:
        key = await self._current_key()
        now = datetime.now(UTC).replace(microsecond=0)
        expires = now + timedelta(days=self._own.token_days) if self._own.token_days else None
        id_ = secrets.token_hex(entries.ID_BYTES)
        raw = entries.encode(TokenFacts(id_, identity, now, None, expires, self._own.auth))
        if len(raw) > entries.MAX_ENTRY:
            raise forbidden(f"you are in too many groups ({len(identity.groups)}) for a token")
        token = entries.new_token()
        digest = entries.digest_of(key, token)
        try:
            await self._write(digest, raw)
        except Invalid:
            log.exception("tokens_full", secret=entries.secret_of(digest))
            raise unavailable(
                f"Secret {entries.secret_of(digest)} takes no further tokens", self._own.retry_after_seconds
            ) from None
        return token

    async def delete(self, token: TokenFacts) -> None:
        """Forget a token; one that is unknown is gone already. Raises ``KubeError``."""
        digest = self._digest_by_id.get(token.id)
        if digest is not None:
            await self._write(digest, None)

    def used(self, token: TokenFacts) -> None:
        """Note that a token was used: written soon, at most every ``token_used_seconds``."""
        now = datetime.now(UTC).replace(microsecond=0)
        if token.last_used is not None and (now - token.last_used).total_seconds() < self._own.token_used_seconds:
            return
        digest = self._digest_by_id.get(token.id)
        if digest is None or len(self._used) >= USED_WAITING:
            return
        self._used.setdefault(digest, now)
        self._used_wake.set()

    async def write_used(self) -> None:
        """Write down which tokens were used. What cannot be written now is noted at the next use."""
        used, self._used = self._used, {}
        self._used_wake.clear()
        by_secret: dict[str, list[str]] = {}
        for digest in used:
            by_secret.setdefault(entries.secret_of(digest), []).append(digest)
        for name, digests in by_secret.items():
            for start in range(0, len(digests), BATCH):
                await self._note(name, digests[start : start + BATCH], used)

    async def sweep(self) -> int:
        """Remove expired tokens and return how many. Raises ``KubeError``."""
        skew = self._client.clock_skew
        if skew is not None and abs(skew.total_seconds()) > self._max_skew_seconds:
            return 0
        limit = datetime.now(UTC) - EXPIRED_GRACE
        removed = 0
        for name, mirror in self._shelves.items():
            shelf = next((entry.fact for entry in mirror), None) or Shelf({}, {})
            old = [digest for digest, entry in shelf.entries.items() if expired(entry.facts, limit)][:SWEEP_BATCH]
            if old:
                patch = {"data": dict.fromkeys(old)}
                mirror.saw(await self._client.patch_merge(SECRETS, self._namespace, name, patch))
                removed += len(old)
        return removed

    # --- following -------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Follow the Secrets and look after the tokens until cancelled. Raises what ``Mirror.run`` does."""
        async with asyncio.TaskGroup() as group:
            for mirror in self._mirrors:
                group.create_task(mirror.run(), name=f"tokens/{mirror.selection.field_selector}")
            group.create_task(self._write_used_forever(), name="tokens/used")
            group.create_task(self._sweep_forever(), name="tokens/sweep")
        raise AssertionError("unreachable: following has no end")

    async def _write_used_forever(self) -> NoReturn:
        while True:
            await self._used_wake.wait()
            await asyncio.sleep(USED_PAUSE_SECONDS)
            await self.write_used()

    async def _sweep_forever(self) -> NoReturn:
        while True:
            # Several gateways that start together shall not sweep together.
            await asyncio.sleep(self._own.token_sweep_seconds * (0.5 + random.random()))  # noqa: S311
            try:
                removed = await self.sweep()
            except KubeError as error:
                log.info("tokens_not_swept", error=str(error))
                continue
            if removed:
                log.info("tokens_swept", removed=removed)

    def _ours(self, facts: TokenFacts) -> bool:
        return facts.provider == self._own.auth

    def _learn(self, change: Change[Shelf]) -> None:
        old = change.old.fact if change.old is not None else None
        new = change.new.fact if change.new is not None else None
        before, after = old.entries if old else {}, new.entries if new else {}
        for digest in before.keys() - after.keys():
            self._forget(self._known.pop(digest))
        for digest, entry in after.items():
            if before.get(digest) is not entry:
                if digest in self._known:
                    self._forget(self._known[digest])
                self._known[digest] = entry
                self._digest_by_id[entry.facts.id] = digest
                self._by_user.setdefault(entry.facts.identity.user, {})[digest] = entry
        self._metrics.tokens.set(len(self._known))
        known_broken = old.broken if old else {}
        for digest, problem in (new.broken if new else {}).items():
            if known_broken.get(digest) != problem:
                log.error("token_unreadable", secret=change.entry.key[1], key=digest, error=problem)

    def _forget(self, entry: Entry) -> None:
        if self._digest_by_id.get(entry.facts.id) == entry.digest:
            del self._digest_by_id[entry.facts.id]
        own = self._by_user[entry.facts.identity.user]
        del own[entry.digest]
        if not own:
            del self._by_user[entry.facts.identity.user]

    # --- the API server --------------------------------------------------------------------------

    def _keys(self) -> TokenKeys:
        entry = self._key.by_name(self._namespace, keys.TOKEN_KEY_SECRET)
        return entry.fact if entry is not None and entry.fact is not None else TokenKeys()

    async def _current_key(self) -> bytes:
        """Return the key for new tokens; made on first use, by whichever gateway comes first."""
        obj: Json | None
        for _ in range(WRITE_TRIES):
            held = self._keys().current
            if held:
                return held
            try:
                obj = await self._client.get(SECRETS, self._namespace, keys.TOKEN_KEY_SECRET)
                if not (obj.get("data") or {}).get("current"):
                    version = obj["metadata"]["resourceVersion"]
                    patch = {"metadata": {"resourceVersion": version}, "data": {"current": entries.new_key()}}
                    obj = await self._client.patch_merge(SECRETS, self._namespace, keys.TOKEN_KEY_SECRET, patch)
            except NotFound:
                obj = await self._made(keys.TOKEN_KEY_SECRET, {"current": entries.new_key()})
            except (Conflict, OutcomeUnknown):
                continue
            if obj is not None:
                self._key.saw(obj)
        raise unavailable(
            f"Secret {self._namespace}/{keys.TOKEN_KEY_SECRET} has no usable data.current",
            self._own.retry_after_seconds,
        )

    async def _made(self, name: str, data: dict[str, str | None]) -> Json | None:
        """Return the Secret as made; None when it must be looked at again."""
        body: Json = {
            "apiVersion": SECRETS.api_version,
            "kind": SECRETS.kind,
            "metadata": {"name": name, "namespace": self._namespace},
            "type": "Opaque",
            "data": data,
        }
        try:
            return await self._client.create(SECRETS, self._namespace, body)
        except (AlreadyExists, OutcomeUnknown):
            return None

    async def _write(self, digest: str, raw: str | None) -> None:
        """Set or, with None, remove one token."""
        name = entries.secret_of(digest)
        patch = {"data": {digest: raw}}
        for tried in range(1, WRITE_TRIES + 1):
            try:
                obj = await self._client.patch_merge(SECRETS, self._namespace, name, patch)
            except NotFound:
                if raw is None:
                    return
                made = await self._made(name, {digest: raw})
                if made is None:
                    continue
                obj = made
            except OutcomeUnknown:
                if tried == WRITE_TRIES:
                    raise
                continue
            self._shelves[name].saw(obj)
            return
        raise OutcomeUnknown(f"Secret {self._namespace}/{name} could not be written in {WRITE_TRIES} tries")

    async def _note(self, name: str, digests: Sequence[str], used: dict[str, datetime]) -> None:
        known = [self._known[digest] for digest in digests if digest in self._known]
        patch: list[dict[str, Any]] = []
        for entry in known:
            path = f"/data/{entry.digest}"
            raw = entries.encode(replace(entry.facts, last_used=used[entry.digest]))
            patch += [{"op": "test", "path": path, "value": entry.raw}, {"op": "replace", "path": path, "value": raw}]
        if not patch:
            return
        try:
            self._shelves[name].saw(await self._client.patch_json(SECRETS, self._namespace, name, patch))
        except Invalid:
            # One was deleted, or noted by another gateway: the others are written alone.
            for entry in known if len(known) > 1 else ():
                await self._note(name, [entry.digest], used)
        except KubeError as error:
            log.info("token_use_not_noted", secret=name, tokens=len(known), error=str(error))


def expired(token: TokenFacts, now: datetime) -> bool:
    """Say whether a token is no longer valid."""
    return token.expires is not None and token.expires <= now
