"""Turn raw objects of the API server into facts; parsing ends here."""

from dataclasses import dataclass
from datetime import UTC, datetime
from sys import intern
from typing import Any, TypeVar

from pydantic import BaseModel

from vmpool.api import keys
from vmpool.api.claim import VMClaimSpec, VMClaimStatus
from vmpool.api.conditions import ConditionType
from vmpool.api.deadletterqueue import DeadLetterQueueSpec, DeadLetterQueueStatus
from vmpool.api.health import HealthPolicySpec, HealthPolicyStatus
from vmpool.api.pool import VMPoolSpec, VMPoolStatus
from vmpool.api.provider import VMProviderSpec, VMProviderStatus
from vmpool.api.purge import PurgePolicySpec, PurgePolicyStatus
from vmpool.plan.lifecycle import LetterPhase, Phase
from vmpool.plan.policies import HealthObject, Letter, PolicyObject, PurgeObject, QueueObject
from vmpool.plan.snapshot import VM, ClaimFacts, ClaimRefFacts, PoolFacts, StepFacts, VMClaim

SpecT = TypeVar("SpecT", bound=BaseModel)
StatusT = TypeVar("StatusT", bound=BaseModel)

EPOCH = datetime.fromtimestamp(0, UTC)


def moment(text: str | None) -> datetime | None:
    """Read a Kubernetes time; None stays None."""
    return datetime.fromisoformat(text) if text else None


def vm_facts(raw: dict[str, Any]) -> VM:
    """Return the facts of a PooledVM."""
    meta, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    claim = spec.get("claim")
    return VM(
        uid=meta["uid"],
        # What thousands of VMs have in common is kept once.
        namespace=intern(meta["namespace"]),
        name=meta["name"],
        resource_version=meta["resourceVersion"],
        created_at=moment(meta.get("creationTimestamp")) or EPOCH,
        pool=intern(spec["pool"]),
        pool_uid=intern(spec["poolUid"]),
        provider=intern(spec["provider"]),
        phase=intern(status.get("phase") or Phase.PENDING.value),
        generation=meta.get("generation", 0),
        deleting="deletionTimestamp" in meta,
        held=keys.FINALIZER_MACHINE in meta.get("finalizers", ()),
        digest=intern(spec.get("templateDigest", "")),
        host_name=spec.get("hostName", ""),
        request_id=spec.get("requestId", ""),
        retry_count=spec.get("retryCount", 0),
        adopt=(spec.get("adopt") or {}).get("machineId", ""),
        claim=_claim(claim) if claim else None,
        phase_since=moment(status.get("phaseSince")),
        expires_at=moment(status.get("expiresAt")),
        machine_id=status.get("machineId", ""),
        addresses=tuple(status.get("addresses", ())),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        steps=tuple(_step(step) for step in status.get("steps", ())),
        attempt=status.get("attempt", 1),
        purge_exempt=(meta.get("annotations") or {}).get(keys.ANNOTATION_PURGE_EXEMPT) == "true",
        claim_missing=any(one["type"] == ConditionType.CLAIM_MISSING for one in status.get("conditions", ())),
    )


def _claim(raw: dict[str, Any]) -> ClaimFacts:
    return ClaimFacts(
        id=raw["id"],
        owner=raw["owner"],
        expires_at=datetime.fromisoformat(raw["expiresAt"]),
        released_at=moment(raw.get("releasedAt")),
        end_reason=raw.get("endReason", ""),
        bound_at=moment(raw.get("boundAt")),
        token_id=raw.get("tokenId", ""),
        ref=_ref(raw["ref"]) if raw.get("ref") else None,
        slot=raw.get("slot", 0),
        tags=dict(raw.get("tags") or {}),
    )


def _ref(raw: dict[str, Any]) -> ClaimRefFacts:
    return ClaimRefFacts(
        namespace=intern(raw["namespace"]), name=raw["name"], uid=raw["uid"], kind_uid=intern(raw["kindUid"])
    )


def _step(raw: dict[str, Any]) -> StepFacts:
    return StepFacts(
        name=intern(raw["name"]),
        started_at=moment(raw.get("startedAt")),
        finished_at=moment(raw.get("finishedAt")),
        retries=raw.get("retries", 0),
        next_at=moment(raw.get("nextAt")),
        reason=raw.get("reason", ""),
        message=raw.get("message", ""),
        failed_at=moment(raw.get("failedAt")),
    )


def pool_facts(raw: dict[str, Any]) -> PoolFacts:
    """Return the facts of a VMPool.

    Raises pydantic.ValidationError for an object that this release cannot read.
    """
    meta = raw["metadata"]
    return PoolFacts(
        uid=meta["uid"],
        namespace=meta["namespace"],
        name=meta["name"],
        generation=meta.get("generation", 0),
        spec=VMPoolSpec.model_validate(raw["spec"]),
        status=VMPoolStatus.model_validate(raw.get("status") or {}),
        resource_version=meta["resourceVersion"],
        deleting="deletionTimestamp" in meta,
        held=keys.FINALIZER_DRAIN in meta.get("finalizers", ()),
        created_at=moment(meta.get("creationTimestamp")) or EPOCH,
    )


def claim_facts(raw: dict[str, Any]) -> VMClaim:
    """Return the facts of a VMClaim.

    Raises pydantic.ValidationError for an object that this release cannot read.
    """
    meta = raw["metadata"]
    return VMClaim(
        uid=meta["uid"],
        namespace=intern(meta["namespace"]),
        name=meta["name"],
        resource_version=meta["resourceVersion"],
        generation=meta.get("generation", 0),
        created_at=moment(meta.get("creationTimestamp")) or EPOCH,
        deleting="deletionTimestamp" in meta,
        spec=VMClaimSpec.model_validate(raw["spec"]),
        status=VMClaimStatus.model_validate(raw.get("status") or {}),
        ondemand=(meta.get("annotations") or {}).get(keys.ANNOTATION_ONDEMAND, ""),
    )


@dataclass(frozen=True, slots=True)
class ProviderObject:
    """One VMProvider as the mirror shows it."""

    uid: str
    namespace: str
    name: str
    generation: int
    resource_version: str
    deleting: bool
    held: bool
    """Whether our finalizer is on it."""
    spec: VMProviderSpec
    status: VMProviderStatus


def provider_object(raw: dict[str, Any]) -> ProviderObject:
    """Return the facts of a VMProvider.

    Raises pydantic.ValidationError for an object that this release cannot read.
    """
    meta = raw["metadata"]
    return ProviderObject(
        uid=meta["uid"],
        namespace=meta["namespace"],
        name=meta["name"],
        generation=meta.get("generation", 0),
        resource_version=meta["resourceVersion"],
        deleting="deletionTimestamp" in meta,
        held=keys.FINALIZER_DRAIN in meta.get("finalizers", ()),
        spec=VMProviderSpec.model_validate(raw["spec"]),
        status=VMProviderStatus.model_validate(raw.get("status") or {}),
    )


def letter_facts(raw: dict[str, Any]) -> Letter:
    """Return the facts of a DeadLetter."""
    meta, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    return Letter(
        uid=meta["uid"],
        namespace=intern(meta["namespace"]),
        name=meta["name"],
        resource_version=meta["resourceVersion"],
        queue=intern(spec["queue"]),
        queue_from=intern(spec["queueFrom"]),
        vm=spec["vm"],
        vm_uid=spec["vmUid"],
        pool=intern(spec["pool"]),
        pool_uid=intern(spec["poolUid"]),
        provider=intern(spec["provider"]),
        failed_at=datetime.fromisoformat(spec["failedAt"]),
        fingerprint=intern(spec["fingerprint"]),
        error_class=intern(spec["errorClass"]),
        error_message=intern(spec["errorMessage"]),
        request_id=spec.get("requestId", ""),
        retry_count=spec.get("retryCount", 0),
        action=spec.get("action", ""),
        phase=intern(status.get("phase") or LetterPhase.KEPT.value),
        deleting="deletionTimestamp" in meta,
        attempt=spec.get("attempt", 1),
        generation=meta.get("generation", 0),
        observed_generation=status.get("observedGeneration", -1),
    )


def queue_object(raw: dict[str, Any]) -> QueueObject:
    """Return the facts of a DeadLetterQueue."""
    return _policy(raw, DeadLetterQueueSpec, DeadLetterQueueStatus)


def purge_object(raw: dict[str, Any]) -> PurgeObject:
    """Return the facts of a PurgePolicy."""
    return _policy(raw, PurgePolicySpec, PurgePolicyStatus)


def health_object(raw: dict[str, Any]) -> HealthObject:
    """Return the facts of a HealthPolicy."""
    return _policy(raw, HealthPolicySpec, HealthPolicyStatus)


def _policy(raw: dict[str, Any], spec: type[SpecT], status: type[StatusT]) -> PolicyObject[SpecT, StatusT]:
    """Raises pydantic.ValidationError for an object that this release cannot read."""
    meta = raw["metadata"]
    return PolicyObject(
        uid=meta["uid"],
        namespace=intern(meta["namespace"]),
        name=intern(meta["name"]),
        generation=meta.get("generation", 0),
        resource_version=meta["resourceVersion"],
        spec=spec.model_validate(raw["spec"]),
        status=status.model_validate(raw.get("status") or {}),
    )
