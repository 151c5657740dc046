"""Who asks."""

from dataclasses import dataclass

from vmpool.api import keys
from vmpool.api.vm import MAX_GROUPS

MAX_GROUP_NAME = 253
"""Characters of a group in a claim."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A user that an auth provider vouches for."""

    login: str
    """As the user wrote it, and as REST answers show it."""
    user: str
    """As access reviews and claims know it: ``vmpool:<login>``, or the user name of Kubernetes."""
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """The identity behind a request, and the token that it came with."""

    identity: Identity
    token_id: str = ""
    """Public id of the token; empty where none was used or needed."""

    @property
    def user(self) -> str:
        """The user of access reviews and claims."""
        return self.identity.user

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of access reviews and claims."""
        return self.identity.groups


KUBERNETES = f"{keys.REST_USER_PREFIX}kubernetes:"
"""Before the names of users and groups of Kubernetes in VMClaims: no login of another provider holds a colon."""


def rest_identity(login: str, groups: tuple[str, ...] = ()) -> Identity:
    """Return the identity of a user whom not Kubernetes but one of our own providers knows."""
    prefixed = tuple(f"{keys.REST_USER_PREFIX}{group}" for group in groups)
    return Identity(login, f"{keys.REST_USER_PREFIX}{login}", (keys.REST_GROUP, *prefixed))


ANONYMOUS = Caller(rest_identity(keys.ANONYMOUS))
"""Everybody, where no auth provider is configured."""


def stamped(identity: Identity) -> Identity:
    """Return the identity in whose name the gateway makes VMClaims for a user.

    Only names that begin with ``vmpool:`` may be written for somebody else (admission policy ``vmpool-claims``), so a
    user of Kubernetes stands there as ``vmpool:kubernetes:<user>``, with as many groups as a VMClaim can hold.
    """
    if identity.user.startswith(keys.REST_USER_PREFIX):
        return identity
    prefixed = (f"{KUBERNETES}{group}" for group in identity.groups)
    groups = (keys.REST_GROUP, *(group for group in prefixed if len(group) <= MAX_GROUP_NAME))
    return Identity(identity.login, f"{KUBERNETES}{identity.user}", groups[:MAX_GROUPS])
