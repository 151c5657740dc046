"""What a provider can say when it does not do what was asked.

::

    ProviderError             (abstract) has a reason, may be terminal, may name a pause
    ├── Retryable             the same request may work later
    │   ├── Unavailable       cannot be reached, 5xx, time-out; the outcome of a write is unknown
    │   ├── Throttled         429 and kin; ``retry_after`` says when
    │   └── Exhausted         quota or capacity: other requests may still work
    ├── CredentialsRefused    401, 403: nobody can work here until an admin acts; the provider is stalled
    ├── Terminal              the same request can never work
    │   ├── InvalidTemplate   what the pool asked for does not exist or makes no sense
    │   └── InvalidConfig     the VMProvider's config or Secret is wrong
    └── MachineNotFound       the id is unknown there: *not* a proof that the machine is gone
"""

from datetime import timedelta
from typing import ClassVar


class ProviderError(Exception):
    """A provider said no. ``reason`` becomes a condition reason and a metric label.

    The message is shown to users (status, events, logs), so it never holds credentials.
    """

    reason: ClassVar[str] = "ProviderError"
    terminal: ClassVar[bool] = False
    """True: the same request can never work, do not retry it."""
    counts_against_circuit: ClassVar[bool] = False
    """True: speaks of the provider's health, not of this one request."""

    def __init__(self, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class Retryable(ProviderError):
    """The same request may work later."""

    reason = "ProviderRetryable"


class Unavailable(Retryable):
    """Not reached, broken or too slow; whether a write happened is unknown, so look it up by tag."""

    reason = "ProviderUnavailable"
    counts_against_circuit = True


class Throttled(Retryable):
    """Too many requests; wait at least ``retry_after``."""

    reason = "ProviderThrottled"


class Exhausted(Retryable):
    """Quota or capacity is used up."""

    reason = "ProviderExhausted"


class CredentialsRefused(ProviderError):
    """The provider knows us no more, or never did. Nothing may be concluded from such an answer."""

    reason = "CredentialsRefused"
    counts_against_circuit = True


class Terminal(ProviderError):
    """The same request can never work."""

    reason = "ProviderTerminal"
    terminal = True


class InvalidTemplate(Terminal):
    """The template names something that does not exist, or a parameter out of bounds."""

    reason = "InvalidTemplate"


class InvalidConfig(Terminal):
    """``VMProvider.spec.config`` or its Secret does not satisfy the plug-in's own model."""

    reason = "InvalidConfig"


class MachineNotFound(ProviderError):
    """No machine with this id (now, here): one of the two proofs that a machine is gone."""

    reason = "MachineNotFound"
