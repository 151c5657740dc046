"""Make the CustomResourceDefinitions from the models: ``crds/*.yaml`` is this module's output, checked in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from vmpool.api import keys
from vmpool.api.claim import CLAIM_SPEC_RULES, VMClaimSpec, VMClaimStatus
from vmpool.api.deadletter import DeadLetterSpec, DeadLetterStatus
from vmpool.api.deadletterqueue import QUEUE_SPEC_RULES, DeadLetterQueueSpec, DeadLetterQueueStatus
from vmpool.api.health import HEALTH_SPEC_RULES, HealthPolicySpec, HealthPolicyStatus
from vmpool.api.meta import RULES, Rule
from vmpool.api.pool import POOL_RULES, VMPoolSpec, VMPoolStatus
from vmpool.api.provider import VMProviderSpec, VMProviderStatus
from vmpool.api.purge import PurgePolicySpec, PurgePolicyStatus
from vmpool.api.schema import Schema, structural
from vmpool.api.vm import PooledVMSpec, PooledVMStatus


@dataclass(frozen=True, slots=True)
class Column:
    """One printer column; priority 1 shows with ``-o wide`` only."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0
    description: str = ""

    def wire(self) -> dict[str, Any]:
        """Return it as ``additionalPrinterColumns`` wants it."""
        made: dict[str, Any] = {"name": self.name, "type": self.type, "jsonPath": self.path}
        if self.priority:
            made["priority"] = self.priority
        if self.description:
            made["description"] = self.description
        return made


@dataclass(frozen=True, slots=True)
class Kind:
    """Everything about a kind that is not in its spec and status models."""

    name: str
    plural: str
    short: str
    about: str
    spec: type[BaseModel]
    status: type[BaseModel]
    columns: tuple[Column, ...]
    selectable: tuple[str, ...] = ()
    status_default: tuple[tuple[str, Any], ...] = (("observedGeneration", -1),)
    spec_rules: tuple[Rule, ...] = ()
    scalable: bool = False
    name_max: int | None = None

    @property
    def singular(self) -> str:
        """Lower-case name, as ``kubectl get`` takes it."""
        return self.name.lower()


def _why(kind: str, field: str) -> str:
    return f".status.conditions[?(@.type=='{kind}')].{field}"


POOL = Kind(
    name="VMPool",
    plural="vmpools",
    short="vmp",
    about="A pool of ready-to-use virtual machines: how many, of which kind, and from where.",
    spec=VMPoolSpec,
    status=VMPoolStatus,
    columns=(
        Column("Desired", ".status.desiredReplicas", "integer"),
        Column("Ready", ".status.readyReplicas", "integer"),
        Column("Pending", ".status.pendingReplicas", "integer"),
        Column("Claimed", ".status.claimedReplicas", "integer"),
        Column("Status", _why("Ready", "reason")),
        Column("Stalled", _why("Stalled", "status")),
        Column("Age", ".metadata.creationTimestamp", "date"),
        Column("Quarantined", ".status.quarantinedReplicas", "integer", 1),
        Column("Draining", ".status.drainingReplicas", "integer", 1),
        Column("Stale", ".status.staleReplicas", "integer", 1),
        Column("Paused", ".spec.paused", "boolean", 1),
        Column("Message", _why("Ready", "message"), priority=1),
    ),
    spec_rules=POOL_RULES,
    scalable=True,
    name_max=keys.MAX_OWNER_NAME,
)
VM = Kind(
    name="PooledVM",
    plural="pooledvms",
    short="pvm",
    about="One virtual machine of a pool, from the intent to make it until it is gone. Written by the operator.",
    spec=PooledVMSpec,
    status=PooledVMStatus,
    columns=(
        Column("Phase", ".status.phase"),
        Column("Address", ".status.addresses[0]"),
        Column("Owner", ".spec.claim.owner"),
        Column("Reason", ".status.reason"),
        Column("Age", ".metadata.creationTimestamp", "date"),
        Column("Pool", ".spec.pool", priority=1),
        Column("Provider", ".spec.provider", priority=1),
        Column("Machine", ".status.machineId", priority=1),
        Column("Expires", ".spec.claim.expiresAt", priority=1),
        Column("Message", ".status.message", priority=1),
    ),
    selectable=(".status.phase", ".spec.pool", ".spec.provider", ".spec.claim.id"),
    status_default=(("phase", "Pending"), ("observedGeneration", -1)),
)
PROVIDER = Kind(
    name="VMProvider",
    plural="vmproviders",
    short="vmprov",
    about="A place that makes machines: which plug-in, how to reach it and how carefully to treat it.",
    spec=VMProviderSpec,
    status=VMProviderStatus,
    columns=(
        Column("Type", ".spec.type"),
        Column("Machines", ".status.machines", "integer"),
        Column("Circuit", ".status.circuit"),
        Column("Status", _why("Ready", "reason")),
        Column("Stalled", _why("Stalled", "status")),
        Column("Age", ".metadata.creationTimestamp", "date"),
        Column("Identity", ".status.identity", priority=1),
        Column("Message", _why("Ready", "message"), priority=1),
    ),
    name_max=keys.MAX_OWNER_NAME,
)
CLAIM = Kind(
    name="VMClaim",
    plural="vmclaims",
    short="vmc",
    about="A wish for virtual machines out of pools: waits until they are there, and ends when its time is up.",
    spec=VMClaimSpec,
    status=VMClaimStatus,
    columns=(
        Column("Phase", ".status.phase"),
        Column("VM", ".status.vms[0].hostName"),
        Column("Address", ".status.vms[0].address"),
        Column("Position", ".status.position"),
        Column("Reason", ".status.reason"),
        Column("Age", ".metadata.creationTimestamp", "date"),
        Column("Expires", ".status.expiresAt", priority=1),
        Column("Requester", ".spec.requester", priority=1),
        Column("Priority", ".spec.priority", "integer", 1),
        Column("Message", ".status.message", priority=1),
    ),
    selectable=(".status.phase", ".spec.requester"),
    status_default=(("phase", "Pending"), ("observedGeneration", -1)),
    spec_rules=CLAIM_SPEC_RULES,
)
DEAD_LETTER_QUEUE = Kind(
    name="DeadLetterQueue",
    plural="deadletterqueues",
    short="dlq",
    about="Keeps the failures of the pools that name it: for how long, how many, and where they go in the end.",
    spec=DeadLetterQueueSpec,
    status=DeadLetterQueueStatus,
    columns=(
        Column("Entries", ".status.entries", "integer"),
        Column("Oldest", ".status.oldestSince", "date"),
        Column("Cause", ".status.fingerprints[0].errorClass"),
        Column("Times", ".status.fingerprints[0].entries", "integer"),
        Column("Status", _why("Ready", "reason")),
        Column("Age", ".metadata.creationTimestamp", "date"),
        Column("Message", ".status.fingerprints[0].errorMessage", priority=1),
    ),
    spec_rules=QUEUE_SPEC_RULES,
    name_max=keys.MAX_OWNER_NAME,
)
DEAD_LETTER = Kind(
    name="DeadLetter",
    plural="deadletters",
    short="dl",
    about="One failure of a VM, with everything that was known when it happened. Written by the operator.",
    spec=DeadLetterSpec,
    status=DeadLetterStatus,
    columns=(
        Column("Queue", ".spec.queueFrom"),
        Column("Cause", ".spec.errorClass"),
        Column("Retries", ".spec.retryCount", "integer"),
        Column("Status", ".status.phase"),
        Column("Failed", ".spec.failedAt", "date"),
        Column("Pool", ".spec.pool", priority=1),
        Column("Request", ".spec.requestId", priority=1),
        Column("Provider", ".spec.provider", priority=1),
        Column("Fingerprint", ".spec.fingerprint", priority=1),
        Column("Message", ".spec.errorMessage", priority=1),
    ),
    selectable=(".spec.queue", ".spec.pool", ".spec.queueFrom", ".spec.requestId", ".spec.fingerprint"),
    status_default=(("phase", "Kept"), ("observedGeneration", -1)),
)
PURGE_POLICY = Kind(
    name="PurgePolicy",
    plural="purgepolicies",
    short="purge",
    about="How old the VMs of the pools that name it may become in each state before they are removed.",
    spec=PurgePolicySpec,
    status=PurgePolicyStatus,
    columns=(
        Column("Dry-Run", ".spec.dryRun", "boolean"),
        Column("Interval", ".spec.interval"),
        Column("Pools", ".status.pools", "integer"),
        Column("Found", ".status.lastCycle.found", "integer"),
        Column("Purged", ".status.lastCycle.purged", "integer"),
        Column("Status", _why("Ready", "reason")),
        Column("Last", ".status.lastCycle.finishedAt", "date"),
        Column("Age", ".metadata.creationTimestamp", "date"),
        Column("Message", _why("Ready", "message"), priority=1),
    ),
    name_max=keys.MAX_OWNER_NAME,
)
HEALTH_POLICY = Kind(
    name="HealthPolicy",
    plural="healthpolicies",
    short="health",
    about="Which numbers make the pools that name it degraded or unhealthy.",
    spec=HealthPolicySpec,
    status=HealthPolicyStatus,
    columns=(
        Column("Health", ".status.health"),
        Column("Since", ".status.since", "date"),
        Column("Pools", ".status.pools", "integer"),
        Column("Interval", ".spec.interval"),
        Column("Age", ".metadata.creationTimestamp", "date"),
        Column("Message", ".status.message", priority=1),
    ),
    spec_rules=HEALTH_SPEC_RULES,
    name_max=keys.MAX_OWNER_NAME,
)
KINDS = (POOL, VM, PROVIDER, CLAIM, DEAD_LETTER_QUEUE, DEAD_LETTER, PURGE_POLICY, HEALTH_POLICY)


def crd(kind: Kind, *, root_rules: Sequence[Rule] = (), phases: Sequence[str] = ()) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a kind.

    ``root_rules`` see spec and status together, on every endpoint. ``phases`` is the enum of ``status.phase``.
    """
    version: dict[str, Any] = {
        "name": keys.VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [column.wire() for column in kind.columns],
        "schema": {"openAPIV3Schema": _root(kind, root_rules, phases)},
        "subresources": {"status": {}},
    }
    if kind.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.selectable]
    if kind.scalable:
        version["subresources"]["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{keys.GROUP}"},
        "spec": {
            "group": keys.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": [kind.short],
                "categories": [keys.CATEGORY],
            },
            "versions": [version],
        },
    }


def _root(kind: Kind, root_rules: Sequence[Rule], phases: Sequence[str]) -> Schema:
    spec, status = structural(kind.spec), structural(kind.status)
    spec["description"] = kind.spec.__doc__.strip().splitlines()[0] if kind.spec.__doc__ else ""
    status["description"] = kind.status.__doc__.strip().splitlines()[0] if kind.status.__doc__ else ""
    status["default"] = dict(kind.status_default)
    if phases:
        about = status["properties"]["phase"]["description"]
        enum: Schema = {"description": about, "type": "string", "enum": list(phases), "default": phases[0]}
        status["properties"]["phase"] = enum
        status["required"] = sorted({*status.get("required", ()), "phase"})
    if kind.spec_rules:
        spec[RULES] = [rule.wire() for rule in kind.spec_rules]
    root: Schema = {
        "type": "object",
        "description": kind.about,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of the API: vmpool.dev/v1alpha1."},
            "kind": {"type": "string", "description": f"The kind: {kind.name}."},
            "metadata": _metadata(kind),
            "spec": spec,
            "status": status,
        },
    }
    rules = list(root_rules)
    if kind.name_max:
        rules.append(_name_rule(kind))
    if rules:
        root[RULES] = [rule.wire() for rule in rules]
    return root


def _metadata(kind: Kind) -> Schema:
    if kind.name_max is None:
        return {"type": "object"}
    # Declared only so that the rule can name the field.
    return {"type": "object", "properties": {"name": {"type": "string", "maxLength": 253}}}


def _name_rule(kind: Kind) -> Rule:
    return Rule(
        rule=f"self.metadata.name.size() <= {kind.name_max} && !self.metadata.name.contains('.')",
        message=f"the name of a {kind.name} must be at most {kind.name_max} characters long and hold no dot",
        field_path=".metadata.name",
    )
