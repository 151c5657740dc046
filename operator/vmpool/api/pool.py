"""VMPool: how many VMs of which kind shall be ready, where, and how carefully."""

import hashlib
from typing import Annotated, Literal

import orjson
from pydantic import Field

from vmpool.api.conditions import Conditions
from vmpool.api.keys import MAX_HOST_PREFIX
from vmpool.api.meta import (
    LABEL,
    SUBDOMAIN,
    Count,
    Fingerprint,
    Generation,
    IntOrPercent,
    Matching,
    OwnerName,
    Rule,
    Shape,
    Size,
    Text,
    Time,
    Word,
    duration,
)

MAX_REPLICAS = 5000
MAX_VMS = 10_000
MAX_PROVIDERS = 8
MAX_PARAMETERS = 64
MAX_RECENT_FAILURES = 10
MAX_DOMAIN = 180
MAX_NAMESPACES = 64
MAX_ALIASES = 16
MAX_REST_NAME = 100
ParameterKey = Annotated[str, Field(max_length=63)]
DIGEST_ALGORITHM = "v1"
REST_NAME = Matching(
    r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?",
    "must be letters, digits, dashes, underscores and dots, and begin and end with a letter or digit",
)
RestName = Annotated[str, Field(min_length=1, max_length=MAX_REST_NAME), REST_NAME]
NAMESPACE_PATTERN = Matching(rf"\*|{LABEL.pattern}", "must be the name of a namespace, or * for all")
NamespacePattern = Annotated[str, Field(min_length=1, max_length=63), NAMESPACE_PATTERN]
PREFIX = Matching(r"[a-z][-a-z0-9]*", "must be lower-case letters, digits and dashes, and begin with a letter")


class Template(Shape):
    """What each machine of the pool looks like.

    No field has a default in the schema: the digest covers only what the user wrote, so that an upgrade that adds
    a field never makes existing VMs stale.
    """

    image: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the image, template or base disk as the provider knows it, for example debian-12."""
    cpus: Annotated[int, Field(ge=1, le=256)] | None = None
    """Virtual processors, 1 to 256. Absent means 1."""
    memory: Size | None = None
    """Memory as a size such as 512Mi or 4Gi. Absent means 1Gi."""
    disk: Size | None = None
    """Size of the root disk such as 20Gi. Absent means as large as the image."""
    parameters: Annotated[dict[ParameterKey, Text], Field(max_length=MAX_PARAMETERS)] | None = None
    """Further settings of the provider, at most 64; which keys there are is said by the provider's documentation."""


class HostName(Shape):
    """How the VMs are called."""

    prefix: Annotated[str, Field(min_length=1, max_length=MAX_HOST_PREFIX), PREFIX] | None = None
    """What every host name begins with; eight random characters follow. Absent means the pool's name and a dash."""
    domain: Annotated[str, Field(min_length=1, max_length=MAX_DOMAIN), SUBDOMAIN] | None = None
    """DNS domain that makes the host name fully qualified. Absent means none."""


class PoolProvider(Shape):
    """One provider that the pool's machines may come from."""

    name: OwnerName
    """Name of a VMProvider in the pool's own namespace."""
    weight: Annotated[int, Field(ge=0, le=1000)] = 1
    """Its share of the machines, relative to the others' weights; 0 means none are made there any more."""


class TCPSocket(Shape):
    """A probe that succeeds when a TCP connection is accepted."""

    port: Annotated[int, Field(ge=1, le=65535)]
    """Port to connect to, on the machine's first address."""


class Readiness(Shape):
    """When a machine counts as ready, and when it stops to."""

    tcp_socket: TCPSocket | None = None
    """Probe that a machine must answer. Absent means that running with an address is enough."""
    timeout: duration("5s", "24h") = "15m"  # type: ignore[valid-type]
    """How long a machine may take from the first try until it is ready, for example 15m."""
    interval: duration("1s", "1h") = "60s"  # type: ignore[valid-type]
    """How often a ready machine is probed again, for example 60s."""
    failure_threshold: Annotated[int, Field(ge=1, le=100)] = 3
    """How many probes in a row must fail before a ready machine is given up."""


class Recycle(Shape):
    """When VMs that nobody took are replaced."""

    ready_ttl: duration("1m", "8760h") | None = Field(default=None, alias="readyTTL")  # type: ignore[valid-type]
    """How long a VM stays ready before it is replaced by a fresh one, for example 24h. Absent means for ever."""
    jitter_percent: Annotated[int, Field(ge=0, le=50)] = 10
    """Shortens each VM's time by up to this share, so that VMs made together do not go together."""
    quarantine_ttl: duration("0s", "720h") = Field(default="4h", alias="quarantineTTL")  # type: ignore[valid-type]
    """How long a failed machine is kept for a human to look at, for example 4h."""


class Limits(Shape):
    """Bounds on what the pool does at once."""

    pending: Annotated[int, Field(ge=1, le=1000)] = 100
    """How many VMs may be on their way to Ready at once, failed ones that still exist included."""
    creates: Annotated[int, Field(ge=1, le=1000)] = 100
    """How many VMs one round may begin."""
    deletes: Annotated[int, Field(ge=1, le=1000)] = 100
    """How many VMs one round may give up."""
    quarantined: Annotated[int, Field(ge=0, le=100)] = 2
    """How many failed machines are kept for a human; the oldest goes first. 0 keeps none."""


class Retry(Shape):
    """How failed provider calls are tried again."""

    attempts: Annotated[int, Field(ge=1, le=100)] = 5
    """How often a step is tried before its VM is given up."""
    backoff: duration("100ms", "10m") = "2s"  # type: ignore[valid-type]
    """Pause after the first failure; it doubles each time, for example 2s."""
    max_backoff: duration("1s", "1h") = "5m"  # type: ignore[valid-type]
    """Longest pause, for example 5m."""


class Update(Shape):
    """How VMs follow a changed template."""

    strategy: Literal["Rolling", "OnClaim"] = "Rolling"
    """Rolling replaces unclaimed VMs step by step; OnClaim leaves them until they go for another reason."""
    max_surge: IntOrPercent = "25%"
    """How many VMs more than replicas there may be while replacing: a number or a percentage, rounded up."""
    max_unavailable: IntOrPercent = "25%"
    """How many ready VMs less than replicas there may be while replacing: a number or a percentage, rounded down."""


class Claims(Shape):
    """Who may have VMs of this pool, and for how long."""

    lifetime: duration("1m", "8760h") = "24h"  # type: ignore[valid-type]
    """How long a VM may be kept when its claim does not say, for example 12h."""
    max_lifetime: duration("1m", "8760h") = "168h"  # type: ignore[valid-type]
    """The longest lifetime a claim may have, extensions included, for example 168h."""
    allowed_namespaces: Annotated[tuple[NamespacePattern, ...], Field(max_length=MAX_NAMESPACES)] = ()
    """Further namespaces whose VMClaims may ask for VMs here, at most 64; * is all. Its own always may."""
    weight: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Its share of the VMs asked for by an alias that several pools have; counts when all of them have a weight."""


class VMPoolSpec(Shape):
    """What the pool shall be."""

    replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] | None = None
    """How many ready VMs are wanted, 0 to 5000. Absent holds the present size, so that an autoscaler can own it."""
    max_vms: Annotated[int, Field(ge=1, le=MAX_VMS)] = Field(default=1000, alias="maxVMs")
    """Upper bound on all VMs of the pool: ready, pending, claimed, quarantined and draining together."""
    template: Template
    """What each machine looks like. A change replaces unclaimed VMs as update says."""
    host_name: HostName = HostName()
    """How the VMs are called."""
    providers: Annotated[
        tuple[PoolProvider, ...],
        Field(
            min_length=1,
            max_length=MAX_PROVIDERS,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ]
    """Where the machines come from: one to eight VMProviders of this namespace, with weights."""
    readiness: Readiness = Readiness()
    """When a machine counts as ready."""
    recycle: Recycle = Recycle()
    """When VMs that nobody took are replaced."""
    limits: Limits = Limits()
    """Bounds on what the pool does at once."""
    retry: Retry = Retry()
    """How failed provider calls are tried again."""
    update: Update = Update()
    """How VMs follow a changed template."""
    claims: Claims = Claims()
    """Who may have VMs of this pool, and for how long."""
    rest_name: RestName | None = None
    """Name of the pool in the REST API. Absent means the object's name; <namespace>_<name> always works as well."""
    aliases: Annotated[
        tuple[RestName, ...], Field(max_length=MAX_ALIASES, json_schema_extra={"x-kubernetes-list-type": "set"})
    ] = ()
    """Further names; several pools may share one, and a claim of that name is served by any of them. At most 16."""
    dead_letter_queue: OwnerName | None = None
    """Name of a DeadLetterQueue of this namespace that keeps the pool's failures. Absent means none does."""
    purge_policy: OwnerName | None = None
    """Name of a PurgePolicy of this namespace. Absent means nothing is removed for its age."""
    health_policy: OwnerName | None = None
    """Name of a HealthPolicy of this namespace. Absent means health is not judged."""
    reset_before: Time | None = None
    """Unclaimed VMs that were made before this time are replaced at once; each new time is another reset."""
    deletion_policy: Literal["Drain", "Force"] = "Drain"
    """What deleting the pool does with claimed VMs: Drain waits until their claims end, Force ends the claims."""
    paused: bool = False
    """True: the operator creates, replaces and deletes nothing for this pool until it is false again."""


class Failure(Shape):
    """One VM that was given up, and why."""

    vm: Annotated[str, Field(max_length=63)]
    """Name of the PooledVM."""
    provider: Annotated[str, Field(max_length=63)]
    """Name of the VMProvider."""
    step: Word
    """The step that failed: create, boot, probe or adopt."""
    error_class: Word
    """Class of the failure in one CamelCase word."""
    message: Text
    """The failure in one sentence."""
    failed_at: Time
    """When it was given up."""
    request_id: Annotated[str, Field(max_length=64)] = ""
    """Ties together all tries to fill one place in the pool."""
    retry_count: Count = 0
    """How many VMs with this request id had failed before."""
    fingerprint: Annotated[str, Field(max_length=16)] = ""
    """The same for failures that are alike but for names, numbers and addresses."""
    attempt: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Which attempt of the VM it was; counts up when a quarantined VM is redriven."""

    def is_of(self, other: "Failure") -> bool:
        """Whether both records tell of the same event: a VM fails a step once in each attempt."""
        return (self.vm, self.step, self.attempt) == (other.vm, other.step, other.attempt)


class Creation(Shape):
    """How fast the pool may create after failures."""

    window: Annotated[int, Field(ge=1, le=MAX_VMS)]
    """How many VMs may be on their way at once; doubles on success, falls to 1 on failure."""
    failures: Count
    """Failures since the last success."""
    not_before: Time
    """Nothing is created before this time."""


class Poisoned(Shape):
    """A failure that has come again and again since the last VM that became ready."""

    fingerprint: Fingerprint
    """Stands for failures that are alike but for names, numbers and addresses."""
    failures: Count
    """How often it came in a row."""
    since: Time
    """When it came first."""
    message: Text
    """The newest of them."""


class VMPoolStatus(Shape):
    """What was seen of the pool."""

    observed_generation: Generation = -1
    """The metadata.generation that this status speaks of; -1 before the first look."""
    conditions: Conditions = ()
    """Ready, Reconciling and Stalled; Poisoned and PolicyMissing when it is so; with a HealthPolicy its three."""
    desired_replicas: Count = 0
    """How many ready VMs are wanted now: spec.replicas, or what it was when it was last set."""
    replicas: Count = 0
    """Unclaimed VMs that are ready or on their way."""
    ready_replicas: Count = 0
    """VMs that can be handed out now."""
    pending_replicas: Count = 0
    """VMs on their way to ready."""
    claimed_replicas: Count = 0
    """VMs that somebody has."""
    waiting_replicas: Count = 0
    """VMs that waiting claims ask for on top of desiredReplicas."""
    quarantined_replicas: Count = 0
    """Failed machines that are kept for a human."""
    draining_replicas: Count = 0
    """VMs whose machines are being destroyed."""
    stale_replicas: Count = 0
    """Unclaimed VMs that are to be replaced: made from an older template, or ready for too long."""
    selector: Annotated[str, Field(max_length=128)] = ""
    """Label selector of the pool's VMs, for the scale subresource."""
    template_digest: Annotated[str, Field(max_length=80)] = ""
    """Digest of the present template."""
    creation: Creation | None = None
    """How fast the pool may create after failures; absent while nothing failed."""
    poison: Poisoned | None = None
    """The failure that comes again and again, with a DeadLetterQueue; absent after a success or a new template."""
    recent_failures: Annotated[
        tuple[Failure, ...],
        Field(max_length=MAX_RECENT_FAILURES, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """The last ten VMs that were given up, newest first."""


POOL_RULES = (
    Rule(
        rule="!has(self.replicas) || self.replicas <= self.maxVMs",
        message="replicas must be at most maxVMs",
        field_path=".replicas",
    ),
    Rule(
        rule="!has(self.update) || string(self.update.maxSurge) != '0' && string(self.update.maxSurge) != '0%'"
        " || string(self.update.maxUnavailable) != '0' && string(self.update.maxUnavailable) != '0%'",
        message="maxSurge and maxUnavailable must not both be 0",
        field_path=".update",
    ),
    Rule(
        rule="!has(self.claims) || duration(self.claims.lifetime) <= duration(self.claims.maxLifetime)",
        message="claims.lifetime must be at most claims.maxLifetime",
        field_path=".claims",
    ),
)
"""Rules on VMPool's spec node."""


def template_digest(template: Template) -> str:
    """Return the digest of what the user wrote, as ``<algorithm>:<32 hex digits>``.

    Canonical: sorted keys, no defaults, absent and empty are the same.
    """
    written = {key: value for key, value in template.wire().items() if value not in (None, {}, [])}
    raw = orjson.dumps(written, option=orjson.OPT_SORT_KEYS)
    return f"{DIGEST_ALGORITHM}:{hashlib.sha256(raw).hexdigest()[:32]}"
