"""What an auth provider is."""

from typing import Protocol

from vmpool.gateway.auth.caller import Identity


class AuthFailed(Exception):
    """The provider could not be asked: neither right nor wrong. The request is answered 503."""


class AuthProvider(Protocol):
    """Vouches for users. Implementations must take as long for an unknown user as for a wrong password."""

    async def login(self, login: str, password: str) -> Identity | None:
        """Return who that is, or None for a wrong pair. Raises ``AuthFailed``."""

    async def bearer(self, token: str) -> Identity | None:
        """Return who a token of the provider's own (not one of ours) stands for; None when it is none of those.

        Raises ``AuthFailed``.
        """

    def current(self, identity: Identity) -> Identity | None:
        """Return what is known now, without asking anybody, of a user who once logged in; None: known no longer.

        Called for every request with a token of ours, so that a token ends with its user where that can be told.
        """

    async def close(self) -> None:
        """Give back what it holds."""
