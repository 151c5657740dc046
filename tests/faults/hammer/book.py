"""What users were told, and when they let go of it: written down as it happens, judged when all is over."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

GATEWAY_WAYS = frozenset({"rest", "several"})


class Mark(StrEnum):
    """By what a claim on a PooledVM is known to be a certain user's."""

    OWNER = "owner"
    ID = "id"
    REF = "ref"
    """The uid of the VMClaim that it was made for."""


@dataclass
class Hold:
    """One VM that one user was told to have; times are Unix seconds."""

    user: str
    vm: str
    way: str
    """How it was got: rest, several, claim or direct."""
    mark: Mark
    value: str
    """What the mark is."""
    asked: float
    told: float
    until: float
    """Not before this moment may anybody take it back."""
    given_back: float | None = None
    """When its user first asked to give it back; None: never."""


@dataclass(frozen=True)
class Denial:
    """An answer by which a VM is not its user's, or not there at all, though they were told to have it."""

    hold: Hold
    at: float
    """When it was answered, in Unix seconds."""
    answer: str


@dataclass
class Book:
    """All that users were told."""

    holds: list[Hold] = field(default_factory=list)
    checkouts: int = 0
    """Requests for VMs that were granted, of one VM or several."""
    asked: int = 0
    """Tries in all."""
    releases: int = 0
    left: int = 0
    """VMs that their users let expire."""
    doubts: int = 0
    """Requests whose connection broke and which nobody repeats: a VM may be theirs."""
    refusals: Counter[str] = field(default_factory=Counter)
    """Requests to the gateways that were not granted, by status or by what became of the connection."""
    denied: list[Denial] = field(default_factory=list)
    drought: float = 0.0
    """The longest time in which no checkout succeeded at a gateway, in seconds."""
    _served: float | None = None
    """When a checkout last succeeded there; None: nobody asks."""

    def opens(self, now: float) -> None:
        """From this moment on users ask."""
        self._served = now

    def closes(self, now: float) -> None:
        """Nobody asks any more."""
        self._serve(now)
        self._served = None

    def granted(self, holds: list[Hold]) -> None:
        """A request was answered with these VMs, which are one or several."""
        self.checkouts += 1
        self.holds += holds
        if holds[0].way in GATEWAY_WAYS:
            self._serve(holds[0].told)

    def _serve(self, now: float) -> None:
        if self._served is not None:
            self.drought = max(self.drought, now - self._served)
            self._served = now

    def held(self) -> list[Hold]:
        """What has not been given back."""
        return [hold for hold in self.holds if hold.given_back is None]
