"""Who asks, and may they: what the gateway's handlers know of auth.

A request comes with a token of ours or, where Kubernetes vouches for users, with one of Kubernetes; a login comes with
user and password. What a client is told is the same for every way to be wrong.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from vmpool.engine.reviews import AccessReviews
from vmpool.gateway.answers import not_found, unauthorized, unavailable
from vmpool.gateway.auth.base import AuthFailed, AuthProvider
from vmpool.gateway.auth.basic import basic, bearer
from vmpool.gateway.auth.caller import ANONYMOUS, KUBERNETES, Caller, Identity
from vmpool.gateway.auth.kubernetes import KubernetesUsers
from vmpool.gateway.auth.ldap import LdapSettings, LdapUsers
from vmpool.gateway.auth.none import NoUsers
from vmpool.gateway.auth.static import StaticUsers
from vmpool.gateway.auth.tokens import Tokens, expired
from vmpool.gateway.context import TokenFacts
from vmpool.kube.client import Client
from vmpool.kube.errors import KubeError
from vmpool.plan.snapshot import PoolFacts
from vmpool.settings import GatewaySettings, Settings
from vmpool.telemetry import logs
from vmpool.telemetry.gateway import GatewayMetrics

log = logs.get(__name__)

TOKEN_HEADER: Final = "X-AUTH-TOKEN"  # noqa: S105 - a name
"""That of VMPooler's clients."""


class AuthGatekeeper:
    """The gatekeeper of one gateway; ``run`` must be running for tokens to be known."""

    def __init__(
        self,
        provider: AuthProvider,
        tokens: Tokens | None,
        own: GatewaySettings,
        metrics: GatewayMetrics,
        reviews: AccessReviews,
    ) -> None:
        self.configured = tokens is not None
        self.tokens = tokens
        self._provider = provider
        self._own = own
        self._metrics = metrics
        self._reviews = reviews
        self._logins = 0

    async def run(self) -> None:
        """Follow the tokens until cancelled; without tokens, only wait. Raises what ``Mirror.run`` does."""
        if self.tokens is None:
            await asyncio.Event().wait()
        else:
            await self.tokens.run()

    def healthy(self) -> str:
        """Return why callers cannot be known for sure now; empty when all is well."""
        return self.tokens.healthy() if self.tokens is not None else ""

    async def close(self) -> None:
        """Give back what the provider holds."""
        await self._provider.close()

    def valid(self, token: str) -> TokenFacts | None:
        """Return the token of ours that this text is, with its user as the provider knows it now, asking nobody.

        None when it is none, has expired, or its user is known no longer.
        """
        found = self.tokens.find(token) if self.tokens is not None else None
        return self._of_now(found) if found is not None else None

    async def caller(self, headers: Mapping[str, str]) -> Caller:
        """Return who asks, by token. Raises ``Refusal`` 401, or 503 when that cannot be known now."""
        if self.tokens is None:
            return ANONYMOUS
        token = headers.get(TOKEN_HEADER, "") or self._bearer(headers)
        if not token:
            raise unauthorized()
        found = self.tokens.look(token)
        if found is not None:
            if expired(found, datetime.now(UTC)):
                self._count("token", "expired")
                raise unauthorized()
            now = self._of_now(found)
            if now is None:
                self._count("token", "wrong")
                raise unauthorized()
            self.tokens.used(found)
            self._count("token", "ok")
            return Caller(now.identity, now.id)
        identity = await self._asked("bearer", self._provider.bearer(token))
        if identity is not None:
            self._count("bearer", "ok")
            return Caller(identity)
        problem = self.tokens.healthy()
        if problem:
            # It may well be a token; we only do not know it yet.
            self._count("token", "error")
            raise unavailable(problem, self._own.retry_after_seconds)
        self._count("token", "wrong")
        raise unauthorized()

    async def login(self, headers: Mapping[str, str]) -> Identity:
        """Return who asks, by user and password (Basic). Raises ``Refusal`` 401, 404 unconfigured, 503."""
        if self.tokens is None:
            raise not_found()
        pair = basic(headers.get("Authorization", ""))
        if pair is None:
            raise unauthorized()
        if self._logins >= self._own.logins_waiting:
            self._count("password", "error")
            raise unavailable("too many logins at once", self._own.retry_after_seconds)
        self._logins += 1
        try:
            identity = await self._asked("password", self._provider.login(*pair))
        finally:
            self._logins -= 1
        if identity is not None and identity.user.startswith(KUBERNETES):
            # A directory may read other characters as a colon: none of its users is one of Kubernetes.
            identity = None
        self._count("password", "ok" if identity is not None else "wrong")
        if identity is None:
            raise unauthorized()
        return identity

    async def may_claim(self, caller: Caller, pool: PoolFacts) -> bool:
        """Say whether this caller may have VMs of this pool. Raises ``Refusal`` 503 when nobody can say."""
        if self._own.authorization == "open":
            return True
        question = (caller.user, caller.groups, pool.namespace, pool.name)
        known = self._reviews.known(*question)
        if known is not None:
            return known
        try:
            allowed = await self._reviews.may_claim(*question)
        except KubeError as error:
            self._metrics.reviews.labels("error").inc()
            raise unavailable(
                f"the API server cannot say who may claim from pool {pool.name}: {error.reason}",
                self._own.retry_after_seconds,
            ) from error
        self._metrics.reviews.labels("allowed" if allowed else "denied").inc()
        return allowed

    def _of_now(self, token: TokenFacts) -> TokenFacts | None:
        identity = self._provider.current(token.identity)
        return replace(token, identity=identity) if identity is not None else None

    def _bearer(self, headers: Mapping[str, str]) -> str:
        return bearer(headers.get("Authorization", "")) if self._own.auth == "kubernetes" else ""

    async def _asked(self, how: str, question: Awaitable[Identity | None]) -> Identity | None:
        """Return the provider's answer. Raises ``Refusal`` 503 when it has none."""
        try:
            return await question
        except AuthFailed as error:
            self._count(how, "error")
            log.warning("auth_failed", provider=self._own.auth, how=how, error=str(error))
            # The details are for who runs the gateway: they name files and hosts.
            raise unavailable(
                f"the auth provider ({self._own.auth}) cannot be asked now", self._own.retry_after_seconds
            ) from error

    def _count(self, how: str, result: str) -> None:
        self._metrics.logins.labels(how, result).inc()


def build(
    client: Client, settings: Settings, own: GatewaySettings, metrics: GatewayMetrics, reviews: AccessReviews
) -> AuthGatekeeper:
    """Return the gatekeeper that the settings describe. Raises ValueError that names the setting which is wrong."""
    if own.auth == "none":
        return AuthGatekeeper(NoUsers(), None, own, metrics, reviews)
    provider = _provider(client, own)
    return AuthGatekeeper(provider, Tokens(client, settings, own, metrics), own, metrics, reviews)


def _provider(client: Client, own: GatewaySettings) -> AuthProvider:
    if own.auth == "static":
        if not own.users_file:
            raise ValueError("users_file is missing: auth static needs the file with the users")
        return StaticUsers(own.users_file, own.logins_at_once)
    if own.auth == "kubernetes":
        return KubernetesUsers(client, own.review_seconds, own.review_entries)
    if not own.ldap_url:
        raise ValueError("ldap_url is missing: auth ldap needs ldap://host[:port] or ldaps://host[:port]")
    return LdapUsers(LdapSettings.of(own), own.logins_at_once)
