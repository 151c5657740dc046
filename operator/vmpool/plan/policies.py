"""The facts of dead letters and of the kinds that a pool may name: queue, purge policy, health policy."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeVar

from vmpool.api.deadletterqueue import DeadLetterQueueSpec, DeadLetterQueueStatus
from vmpool.api.health import HealthPolicySpec, HealthPolicyStatus
from vmpool.api.purge import PurgePolicySpec, PurgePolicyStatus
from vmpool.plan.lifecycle import LetterPhase

SpecT = TypeVar("SpecT")
StatusT = TypeVar("StatusT")


class Queue(StrEnum):
    """The queue names under which letters are kept: where the VM was when it failed."""

    PENDING = "pending"
    CLONE = "clone"
    READY = "ready"
    RUNNING = "running"
    TASKS = "tasks"


@dataclass(frozen=True, slots=True)
class PolicyObject(Generic[SpecT, StatusT]):
    """One object that pools of its namespace may name, as the mirror shows it."""

    uid: str
    namespace: str
    name: str
    generation: int
    resource_version: str
    spec: SpecT
    status: StatusT


QueueObject = PolicyObject[DeadLetterQueueSpec, DeadLetterQueueStatus]
PurgeObject = PolicyObject[PurgePolicySpec, PurgePolicyStatus]
HealthObject = PolicyObject[HealthPolicySpec, HealthPolicyStatus]


@dataclass(frozen=True, slots=True)
class Letter:
    """One DeadLetter as the mirror shows it: what decides about it, without its diagnostics."""

    uid: str
    namespace: str
    name: str
    resource_version: str
    queue: str
    """Name of its DeadLetterQueue."""
    queue_from: str
    """A word of ``Queue``."""
    vm: str
    vm_uid: str
    pool: str
    pool_uid: str
    provider: str
    failed_at: datetime
    fingerprint: str
    error_class: str
    error_message: str
    request_id: str = ""
    retry_count: int = 0
    action: str = ""
    """redrive, discard, or empty."""
    phase: str = LetterPhase.KEPT
    deleting: bool = False
    attempt: int = 1
    """Which attempt of the VM failed."""
    generation: int = 0
    observed_generation: int = -1
    """The generation whose action was done last."""

    @property
    def waits(self) -> bool:
        """Whether somebody has asked to try it again, for the first time or anew, and nobody has yet."""
        return self.action == "redrive" and self.generation > self.observed_generation
