"""What every handler shares, and what it gets for one request."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import web

from vmpool.engine.ready import ReadyIndex
from vmpool.engine.reviews import AccessReviews
from vmpool.engine.world import VM_INDEXES
from vmpool.gateway.auth.caller import Caller, Identity
from vmpool.gateway.departed import DeletedRequests
from vmpool.gateway.history import History
from vmpool.gateway.tally import Tally
from vmpool.kube.client import Client
from vmpool.kube.mirror import Mirror
from vmpool.plan.snapshot import VM, PoolFacts, VMClaim
from vmpool.settings import GatewaySettings, Settings
from vmpool.telemetry.gateway import GatewayMetrics

if TYPE_CHECKING:
    from vmpool.gateway.followups import FollowUps
    from vmpool.gateway.names import Directory
    from vmpool.gateway.picking import Picker


BY_TOKEN = "token"  # noqa: S105 - a name
GATEWAY_VM_INDEXES: Mapping[str, Callable[[VM], Hashable | None]] = {
    **VM_INDEXES,
    BY_TOKEN: lambda vm: (vm.claim.token_id or None) if vm.claim is not None else None,
}
"""Indexes of a gateway's mirror of PooledVMs: the engine's, and by the id of the token that a checkout came with."""


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """One REST token, without the token."""

    id: str
    identity: Identity
    created: datetime
    last_used: datetime | None = None
    expires: datetime | None = None
    provider: str = ""
    """The auth provider (setting ``auth``) that vouched for the user; empty: unknown, so none that is asked now."""


class TokenBook(Protocol):
    """The tokens of this gateway's auth provider; reading asks nobody."""

    def find(self, token: str) -> TokenFacts | None:
        """Return the token that this text is, unless it has expired."""

    def of(self, identity: Identity) -> list[TokenFacts]:
        """Return a user's tokens, oldest first."""

    async def create(self, identity: Identity) -> str:
        """Make a token and return its text, which is kept nowhere. Raises ``Refusal`` 403 at the user's limit."""

    async def delete(self, token: TokenFacts) -> None:
        """Forget a token. Raises ``KubeError``."""


class Gatekeeper(Protocol):
    """Finds out who asks, and whether they may. In ``auth.gatekeeper``."""

    @property
    def configured(self) -> bool:
        """Whether there are users at all; without, nothing needs a token and the token endpoints answer 404."""

    @property
    def tokens(self) -> TokenBook | None:
        """The tokens, where there are users."""

    def valid(self, token: str) -> TokenFacts | None:
        """Return the token of ours that this text is, with its user as known now, asking nobody.

        None when it is none, has expired, or its user is known no longer.
        """

    async def caller(self, headers: Mapping[str, str]) -> Caller:
        """Return who asks, by token. Raises ``Refusal`` 401, or 503 when that cannot be known now."""

    async def login(self, headers: Mapping[str, str]) -> Identity:
        """Return who asks, by user and password (Basic). Raises ``Refusal`` 401, 404 unconfigured, 503."""

    async def may_claim(self, caller: Caller, pool: PoolFacts) -> bool:
        """Say whether this caller may have VMs of this pool. Raises ``Refusal`` 503 when nobody can say."""

    async def run(self) -> None:
        """Follow tokens and whatever else changes. Ends only by cancellation or because of doubt, then it raises."""

    def healthy(self) -> str:
        """Return why it cannot be relied on now; empty when all is well."""

    async def close(self) -> None:
        """Give back what it holds."""


@dataclass
class Gateway:
    """The shared facts and tools of one gateway. One per process."""

    client: Client
    settings: Settings
    own: GatewaySettings
    metrics: GatewayMetrics
    pools: Mirror[PoolFacts]
    vms: Mirror[VM]
    """With ``GATEWAY_VM_INDEXES``."""
    claims: Mirror[VMClaim]
    ready: ReadyIndex
    reviews: AccessReviews
    gatekeeper: Gatekeeper
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    tally: Tally = field(init=False)
    history: History = field(init=False)
    deleted_requests: DeletedRequests = field(init=False)

    def __post_init__(self) -> None:
        """Begin to follow the mirrors; they must not run yet."""
        own = self.own
        self.tally = Tally(self.vms)
        self.history = History(self.vms, self.now)
        self.deleted_requests = DeletedRequests(
            self.claims, self.settings.namespace, own.ondemand_kept_seconds, own.ondemand_deleted_entries
        )

    @cached_property
    def directory(self) -> "Directory":
        """The names of the pools."""
        from vmpool.gateway.names import Directory

        return Directory(self.pools)

    @cached_property
    def picker(self) -> "Picker":
        """The reservations of the requests in flight."""
        from vmpool.gateway.claims_waiting import Waiting
        from vmpool.gateway.picking import Picker

        waiting = Waiting(self.claims, self.pools, self.vms)
        return Picker(self.ready, waiting, self.vms, self.own.checkouts_in_flight)

    @cached_property
    def followups(self) -> "FollowUps":
        """The claims that nobody was told of."""
        from vmpool.gateway.followups import FollowUps

        return FollowUps(self.client, self.vms)

    def now(self) -> datetime:
        """Return the present time."""
        return datetime.now(UTC)

    def all_pools(self) -> list[PoolFacts]:
        """Return every pool that can be read, oldest first as far as names tell."""
        facts = [entry.fact for entry in self.pools if entry.fact is not None]
        return sorted(facts, key=lambda pool: (pool.namespace, pool.name))


GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway", Gateway)


@dataclass(slots=True)
class Call:
    """One request as handlers see it."""

    gateway: Gateway
    request: web.Request
    request_id: str
    """Ours, or the client's X-Request-ID; stands in logs, in the claim and in the answer's header."""
    address: str
    """Of the client; behind trusted proxies, of the client behind them."""
    known: Caller | None = None
    """Who asks, once that was found out; for the audit."""

    @property
    def path(self) -> Mapping[str, str]:
        """The variable parts of the path."""
        return self.request.match_info

    @property
    def query(self) -> Mapping[str, str]:
        """The query; of a repeated name the first."""
        return self.request.query

    async def caller(self) -> Caller:
        """Return who asks, by token. Raises ``Refusal`` 401 where a token is needed and missing or wrong."""
        if self.known is None:
            self.known = await self.gateway.gatekeeper.caller(self.request.headers)
        return self.known

    async def login(self) -> Identity:
        """Return who asks, by user and password. Raises ``Refusal`` 401, or 404 where no auth is configured."""
        identity = await self.gateway.gatekeeper.login(self.request.headers)
        self.known = Caller(identity)
        return identity

    async def json(self) -> Any:
        """Return the decoded body within the bounds. Raises ``Refusal`` 400; an empty body is None."""
        from vmpool.gateway.bounds import read_json

        return await read_json(self.request, self.gateway.own)
