"""What a plan can ask for: one effect each. The union is closed: the executor is checked against it."""

from dataclasses import dataclass
from datetime import datetime

from vmpool.plan.snapshot import VM


@dataclass(frozen=True, slots=True)
class CreateVM:
    """Write a new PooledVM: the intent to make a machine."""

    provider: str
    request_id: str = ""
    """Continues the work of a failed VM; empty begins anew."""
    retry_count: int = 0


@dataclass(frozen=True, slots=True)
class EnsureMachine:
    """Ask the provider for the VM's machine and record what it says."""

    vm: VM


@dataclass(frozen=True, slots=True)
class Look:
    """Ask the provider how the VM's machine is."""

    vm: VM


@dataclass(frozen=True, slots=True)
class Probe:
    """Connect to the VM's machine."""

    vm: VM
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class MarkReady:
    """Write the phase Ready."""

    vm: VM
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MarkClaimed:
    """Write the phase Claimed behind a claim that is there already."""

    vm: VM


@dataclass(frozen=True, slots=True)
class TagMachine:
    """Put the claim's id on the machine itself: the second witness, should the objects ever be lost."""

    vm: VM


@dataclass(frozen=True, slots=True)
class EndClaim:
    """Write ``releasedAt`` with the reason, on the very version of the object that was decided on."""

    vm: VM
    reason: str


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Keep a failed machine for a human until ``expires_at``."""

    vm: VM
    step: str
    reason: str
    message: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Complete:
    """Write the phase Completed: the point of no return. ``step`` names what failed; empty when nothing did."""

    vm: VM
    reason: str
    message: str
    step: str = ""


@dataclass(frozen=True, slots=True)
class DestroyMachine:
    """Ask the provider to delete the machine, or look for one when no id is known."""

    vm: VM


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove the object: its machine is proven gone."""

    vm: VM


Action = (
    CreateVM
    | EnsureMachine
    | Look
    | Probe
    | MarkReady
    | MarkClaimed
    | TagMachine
    | EndClaim
    | Quarantine
    | Complete
    | DestroyMachine
    | Forget
)
"""Everything that a pool's plan can ask for."""

VMAction = (
    EnsureMachine
    | Look
    | Probe
    | MarkReady
    | MarkClaimed
    | TagMachine
    | EndClaim
    | Quarantine
    | Complete
    | DestroyMachine
    | Forget
)
"""What can be asked for one VM that exists."""
