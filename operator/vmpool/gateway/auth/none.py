"""No users at all: everybody is ``vmpool:anonymous``."""

from vmpool.gateway.auth.caller import ANONYMOUS, Identity


class NoUsers:
    """The provider of an open gateway. Nobody logs in, for nobody needs to."""

    async def login(self, login: str, password: str) -> Identity | None:  # noqa: ARG002 - the protocol's arguments
        """Return the one identity that there is, whatever is given."""
        return ANONYMOUS.identity

    async def bearer(self, token: str) -> Identity | None:  # noqa: ARG002 - the protocol's argument
        """Return the one identity that there is, whatever is given."""
        return ANONYMOUS.identity

    def current(self, identity: Identity) -> Identity | None:  # noqa: ARG002 - the protocol's argument
        """Return the one identity that there is, whatever is given."""
        return ANONYMOUS.identity

    async def close(self) -> None:
        """Hold nothing, so give back nothing."""
