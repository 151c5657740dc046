"""The protocol between the engine and a provider.

The contract in one paragraph: ``ensure`` with the same token never makes a second machine, even after a lost
reply; ``machines`` is complete or raises; ``delete`` is repeated until it says ``GONE``; a machine without our
install tag is never touched; every failure is a typed error of ``errors``. The suite in ``conformance`` holds
every plug-in to it.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from vmpool.api import keys


class MachineState(StrEnum):
    """What the provider says of a machine."""

    CREATING = "Creating"
    RUNNING = "Running"
    STOPPED = "Stopped"
    FAILED = "Failed"
    DELETING = "Deleting"


class Deletion(StrEnum):
    """How far a deletion is."""

    STARTED = "Started"
    GONE = "Gone"
    """The provider itself says that no machine with this id is left, disks and leases included."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine as the provider shows it now."""

    id: str
    """The provider's own id; at most 253 characters, never reused."""
    name: str
    state: MachineState
    tags: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    """IP addresses, best one first; empty until the machine has one."""
    message: str = ""
    """Why it failed, in the provider's words."""

    @property
    def token(self) -> str:
        """The PooledVM uid that this machine was made for, or the empty string."""
        return self.tags.get(keys.TAG_UID, "")


@dataclass(frozen=True, slots=True)
class MachineRequest:
    """What to make. The same token always comes with the same request."""

    token: str
    """The PooledVM's uid: makes ``ensure`` repeatable."""
    name: str
    """Short host name: a DNS label, unique in its install."""
    hostname: str
    """Name the guest should believe in: the short name or an FQDN."""
    image: str
    cpus: int
    memory_mib: int
    disk_gib: int | None
    """Size of the root disk; None: as large as the image."""
    parameters: Mapping[str, str]
    """``VMPool.spec.template.parameters``: plug-in specific, checked by ``check``."""
    tags: Mapping[str, str]
    """``vmpool-install``, ``vmpool-uid``, ``vmpool-pool``; put on the machine in the same step that makes it."""


class Provider(Protocol):
    """One far side: a session with one account at one place.

    Every method may raise any of ``errors``; a time-out of the caller cancels it. Methods are safe to call
    concurrently. None of them retries by itself: backoff is the engine's.
    """

    async def identity(self) -> str:
        """Return the stable name of the far side (account and place): at most 253 characters.

        Two sessions have the same identity exactly when they see the same machines.
        """

    async def check(self, want: MachineRequest) -> None:
        """Raise ``InvalidTemplate`` when this request can never work. Makes nothing; may be a no-op."""

    async def ensure(self, want: MachineRequest) -> Machine:
        """Make the machine, or return the one already made for this token.

        Returns as soon as the machine has an id, in whatever state; does not wait for it to boot.
        """

    async def get(self, machine_id: str) -> Machine:
        """Return one machine of ours.

        Raises MachineNotFound when the id is unknown, or belongs to a machine without our install tag.
        """

    async def find(self, token: str) -> Machine | None:
        """Return the machine made for this token, or None when none is seen (which proves nothing alone)."""

    def machines(self) -> AsyncIterator[Machine]:
        """Yield every machine with our install tag, in pages that the plug-in bounds.

        Complete or an error: a listing that ends normally has missed nothing that existed when it began,
        save what the provider's own eventual consistency hides.
        """

    async def adopt(self, machine_id: str, tags: Mapping[str, str]) -> Machine:
        """Put our tags on an existing machine (replacing those of the same name) and return it.

        Raises MachineNotFound for an unknown id. The one method that may touch a machine without our install tag.
        """

    async def delete(self, machine_id: str) -> Deletion:
        """Start or follow the deletion of a machine of ours and of all that was made with it.

        Safe to repeat; an unknown id is ``GONE``. A machine without our install tag is left alone:
        MachineNotFound.
        """

    async def close(self) -> None:
        """Give back sockets and threads. No other call follows."""


@runtime_checkable
class HasConsole(Protocol):
    """A provider that can show what a machine has printed."""

    async def console(self, machine_id: str) -> str:
        """Return the end of a machine's console, at most 4 KiB, without control characters.

        Raises MachineNotFound when the id is unknown.
        """


@dataclass(frozen=True, slots=True)
class Session:
    """What a plug-in needs to open a far side."""

    config: BaseModel
    """An instance of the plug-in's ``Config``."""
    secret: Mapping[str, str]
    """The decoded data of ``VMProvider.spec.secretRef``; empty without one."""
    install_id: str
    """Only machines whose ``vmpool-install`` tag has this value are ours."""


class Plugin(Protocol):
    """An entry point of the group ``vmpool.providers``; its name is ``VMProvider.spec.type``."""

    name: str
    Config: type[BaseModel]
    """Validates ``VMProvider.spec.config``: camelCase fields, unknown ones refused, every field described."""

    def open(self, session: Session) -> Provider:
        """Return a provider for these settings; opens no connection yet.

        Raises InvalidConfig when the Secret lacks a key or a value makes no sense.
        """


def config_error(kind: str, errors: list[Any]) -> str:
    """One sentence from pydantic's error list: the field, the value and what is allowed."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"]) or "(root)"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{kind} field {where}: {first['msg']}, got {first.get('input')!r:.100}{more}"
