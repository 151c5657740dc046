"""Shapes of the simulated cloud: what is asked for, how it is set up, and where a machine stands at a moment.

Nothing here keeps a timer. A machine is a row of timestamps, written when it was asked for; its state at any moment
follows from them, so a server that was killed continues where the clock is. All times are Unix seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

FOREVER = 253402300799.0
"""The end of the year 9999: stands for "never" in every column of timestamps, so that SQL can compare."""

MAX_TAGS = 64
MAX_PAGE = 1000
FREE_IMAGE_PREFIX = "sim/"
"""Every image whose name begins so exists."""
DEFAULT_IMAGES = ("debian-12", "ubuntu-24.04", "alpine-3.20")

ADDRESSES_PER_LEDGER = 2**24 - 2**16
"""127.1.0.0 to 127.255.255.255, one for each machine ever made; then they repeat."""

Name = Annotated[str, Field(min_length=1, max_length=253)]
Tags = Annotated[dict[Name, Annotated[str, Field(max_length=1024)]], Field(max_length=MAX_TAGS)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]


class Shape(BaseModel):
    """Base of everything that arrives as JSON: camelCase, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )


class Step(StrEnum):
    """The parts of making a machine, in their order."""

    DISK = "disk"
    NIC = "nic"
    BOOT = "boot"


STEPS = tuple(Step)


class State(StrEnum):
    """Where a machine stands."""

    CREATING = "Creating"
    RUNNING = "Running"
    STOPPED = "Stopped"
    FAILED = "Failed"
    DELETING = "Deleting"
    GONE = "Gone"


class TokenMode(StrEnum):
    """Whether creates may carry an idempotency token."""

    TOKEN = "token"  # noqa: S105 - a word, not a secret
    NONE = "none"


class MachineSpec(Shape):
    """Body of a create."""

    name: Name
    image: Name
    cpus: int = Field(ge=1, le=1024)
    memory_mib: int = Field(alias="memoryMiB", ge=1, le=2**24)
    disk_gib: int | None = Field(alias="diskGiB", default=None, ge=1, le=2**20)
    hostname: Name
    parameters: Tags = Field(default_factory=dict)
    tags: Tags = Field(default_factory=dict)
    token: Name | None = None

    def hardware(self) -> bytes:
        """Return as JSON what never changes about the machine: all but name, image, tags and token."""
        return orjson.dumps(
            {
                "cpus": self.cpus,
                "memoryMiB": self.memory_mib,
                "diskGiB": self.disk_gib,
                "hostname": self.hostname,
                "parameters": self.parameters,
            }
        )


class CreateSeconds(Shape):
    """How long each step of a create takes."""

    disk: Seconds = 0.2
    nic: Seconds = 0.1
    boot: Seconds = 1.0

    def of(self, step: Step) -> float:
        """Return the seconds of one step."""
        return (self.disk, self.nic, self.boot)[STEPS.index(step)]


class Settings(Shape):
    """How this cloud behaves; kept in the ledger, so a restart changes nothing."""

    create_seconds: CreateSeconds = CreateSeconds()
    delete_seconds: Seconds = 0.2
    build_slots: int | None = Field(default=None, ge=1, le=100_000)
    """Machines a tenant can have in the making at once; later ones queue. None: no limit."""
    token_mode: TokenMode = TokenMode.TOKEN
    max_machines: dict[Name, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Quota by tenant; a tenant that is not named has none."""
    images: tuple[Name, ...] = DEFAULT_IMAGES

    def changed(self, given: Mapping[str, Any]) -> "Settings":
        """Return these settings with the given fields (camelCase) replaced; ``createSeconds`` by its members.

        Raises pydantic.ValidationError.
        """
        merged = {**self.model_dump(by_alias=True), **given}
        if isinstance(steps := given.get("createSeconds"), Mapping):
            merged["createSeconds"] = {**self.create_seconds.model_dump(), **steps}
        return Settings.model_validate(merged)

    def has_image(self, image: str) -> bool:
        """Whether machines can be made from this image."""
        return image in self.images or image.startswith(FREE_IMAGE_PREFIX)


class Refused(Exception):
    """The request is answered with an error; nothing of it was done."""

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Fate:
    """What a fault rule has in store for a new machine."""

    never_ready: bool = False
    slow_step: Step | None = None
    slow_seconds: float = 0.0
    fail_step: Step | None = None
    """The machine becomes Failed at the end of this step."""
    die_after: float | None = None
    """Seconds from the end of the boot to Failed."""
    vanish_after: float | None = None
    """Seconds from the end of the boot to not being there."""
    steps_done: int | None = None
    """The create breaks off after so many steps and no machine comes of it. None: it does not."""


@dataclass(frozen=True, slots=True)
class Build:
    """The timestamps of one create."""

    disk_at: float
    nic_at: float
    boot_at: float
    fail_at: float
    gone_at: float

    def part_at(self, step: Step) -> float:
        """When the part of this step exists; FOREVER when its step fails or comes after the failure."""
        at = self.disk_at if step is Step.DISK else self.nic_at
        return at if at < self.fail_at else FOREVER


def plan_build(start: float, seconds: CreateSeconds, fate: Fate) -> Build:
    """Return when each step of a create that starts at ``start`` ends."""
    ends: dict[Step, float] = {}
    at = start
    for step in STEPS:
        at += seconds.of(step) + (fate.slow_seconds if step is fate.slow_step else 0.0)
        ends[step] = at
    fail_at = FOREVER
    if fate.fail_step is not None:
        fail_at = ends[fate.fail_step]
    elif fate.die_after is not None:
        fail_at = at + fate.die_after
    gone_at = FOREVER if fate.vanish_after is None else at + fate.vanish_after
    return Build(ends[Step.DISK], ends[Step.NIC], at, fail_at, gone_at)


@dataclass(frozen=True, slots=True)
class Machine:
    """One row of the ledger, in the order of its columns."""

    seq: int
    id: str
    tenant: str
    token: str | None
    name: str
    image: str
    hardware: str
    tags: str
    powered: int
    created_at: float
    boot_at: float
    never_ready: int
    fail_at: float
    fail_message: str
    delete_at: float
    """When its deletion was first asked for."""
    gone_at: float
    ended_by: str

    def state(self, now: float) -> State:
        """Return where it stands at ``now``."""
        if now >= self.gone_at:
            return State.GONE
        if now >= self.delete_at:
            return State.DELETING
        if now >= self.fail_at:
            return State.FAILED
        if self.never_ready or now < self.boot_at:
            return State.CREATING
        return State.RUNNING if self.powered else State.STOPPED

    def tag_map(self) -> dict[str, str]:
        """Return its tags."""
        tags: dict[str, str] = orjson.loads(self.tags)
        return tags

    @property
    def address(self) -> str:
        """Its own loopback address."""
        number = 2**16 + self.seq % ADDRESSES_PER_LEDGER
        return f"127.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"

    def document(self, now: float) -> dict[str, Any]:
        """Return what its tenant sees of it."""
        state = self.state(now)
        booted = not self.never_ready and self.boot_at <= min(now, self.gone_at)
        return {
            "id": self.id,
            "name": self.name,
            "image": self.image,
            "state": state,
            "ready": state is State.RUNNING,
            "message": self.fail_message if state is State.FAILED else "",
            "addresses": [self.address] if booted else [],
            "hardware": orjson.Fragment(self.hardware),
            "tags": orjson.Fragment(self.tags),
            "createdAt": self.created_at,
        }

    def console(self, now: float) -> str:
        """Return what it has printed by ``now``, a line for each thing that has happened to it."""
        happened = [
            (self.created_at, f"firmware: {self.name} starts from image {self.image}"),
            (self.boot_at, "network: no answer to any request, will try for ever" if self.never_ready else ""),
            (self.boot_at, "" if self.never_ready else f"network: {self.address} is up\n{self.name} login:"),
            (self.fail_at, f"kernel: panic: {self.fail_message}"),
            (self.delete_at, "power: going down"),
        ]
        said = [(at, line) for at, line in happened if line and at <= min(now, self.gone_at)]
        ended = min(self.fail_at, self.delete_at)
        return "".join(f"{line}\n" for at, line in sorted(said) if at <= ended)

    def history(self, now: float) -> dict[str, Any]:
        """Return all that the ledger knows of it; times that never come are null."""
        return {
            **self.document(now),
            "tenant": self.tenant,
            "token": self.token,
            "bootAt": None if self.never_ready else self.boot_at,
            "failAt": time_or_none(self.fail_at),
            "deleteAt": time_or_none(self.delete_at),
            "goneAt": time_or_none(self.gone_at),
            "endedBy": self.ended_by if now >= self.gone_at else "",
        }


@dataclass(frozen=True, slots=True)
class Part:
    """A disk or a nic of a machine, or of one that never came to be."""

    machine_id: str
    kind: str
    tenant: str
    made_at: float
    gone_at: float

    def exists(self, now: float) -> bool:
        """Whether it is there at ``now``."""
        return self.made_at <= now < self.gone_at


def time_or_none(at: float) -> float | None:
    """Return the time, or None for one that never comes."""
    return None if at >= FOREVER else at
