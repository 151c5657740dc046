"""DeadLetterQueue: how long failures are kept, how many of them, and where they go in the end."""

from typing import Annotated

from pydantic import Field

from vmpool.api.conditions import Conditions
from vmpool.api.meta import (
    Count,
    Fingerprint,
    Generation,
    Matching,
    ObjectName,
    Rule,
    Shape,
    Text,
    Time,
    Word,
    duration,
)

MAX_ENTRIES = 100_000
MAX_FINGERPRINTS = 10
MAX_QUEUES = 8
BUCKET = Matching(
    r"[a-z0-9][-a-z0-9.]{1,61}[a-z0-9]", "must be the name of an S3 bucket: 3 to 63 lower-case characters"
)
FOLDER = Matching(r"/[^\x00]*", "must be an absolute path")
ENDPOINT = Matching(r"https?://[^/\s]+(/[^\s]*)?", "must be the URL of an S3-compatible service")


class BucketSecret(Shape):
    """The Secret with the bucket's credentials."""

    name: ObjectName
    """Name of a Secret in the queue's own namespace, with the keys accessKeyId and secretAccessKey."""


class Bucket(Shape):
    """An S3-compatible bucket."""

    endpoint: Annotated[str, Field(min_length=1, max_length=253), ENDPOINT] | None = None
    """URL of the service. Absent means the one of AWS for the region."""
    bucket: Annotated[str, Field(min_length=3, max_length=63), BUCKET]
    """Name of the bucket; it must exist."""
    prefix: Annotated[str, Field(max_length=253)] = ""
    """What every key begins with, for example vmpool/."""
    region: Annotated[str, Field(min_length=1, max_length=63)] = "us-east-1"
    """Region of the bucket."""
    secret_ref: BucketSecret | None = None
    """Credentials. Absent means those of the operator's own environment."""


class Archive(Shape):
    """Where letters go before they are removed for their age or for want of room: JSON lines, compressed, by day."""

    folder: Annotated[str, Field(min_length=1, max_length=253), FOLDER] | None = None
    """Absolute path of a folder that the operator can write to."""
    s3: Bucket | None = None
    """A bucket."""


class Poison(Shape):
    """When a failure that comes again and again stops a pool."""

    failures: Annotated[int, Field(ge=0, le=1000)] = 10
    """So many failures in a row with the same fingerprint stop the pool's creates; 0 never does."""


class DeadLetterQueueSpec(Shape):
    """How failures are kept."""

    ttl: duration("1s", "87600h") = "168h"  # type: ignore[valid-type]
    """How long each letter is kept, counted from its failure, for example 168h."""
    max_entries: Annotated[int, Field(ge=1, le=MAX_ENTRIES)] = 10_000
    """How many letters each queue name (pending, clone, ready, running, tasks) may hold; above it the oldest go."""
    archive: Archive | None = None
    """Where letters go before their end. Absent means nowhere: then they are gone."""
    poison: Poison = Poison()
    """When a failure that comes again and again stops a pool."""


class QueueSize(Shape):
    """How many letters one queue name holds."""

    name: Word
    """pending, clone, ready, running or tasks."""
    entries: Count
    """How many letters there are."""
    oldest_since: Time | None = None
    """When the oldest of them failed."""


class FrequentFailure(Shape):
    """One fingerprint and how often it is there."""

    fingerprint: Fingerprint
    """Stands for failures that are alike but for names, numbers and addresses."""
    entries: Count
    """How many letters have it."""
    error_class: Word
    """Their class."""
    error_message: Text
    """The message of the newest of them."""


class DeadLetterQueueStatus(Shape):
    """What the queue holds."""

    observed_generation: Generation = -1
    """The metadata.generation that this status speaks of; -1 before the first look."""
    conditions: Conditions = ()
    """Ready; with an archive also Archiving."""
    entries: Count = 0
    """How many letters there are under all queue names."""
    oldest_since: Time | None = None
    """When the oldest of them failed."""
    queues: Annotated[
        tuple[QueueSize, ...],
        Field(
            max_length=MAX_QUEUES,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = ()
    """The same by queue name."""
    fingerprints: Annotated[
        tuple[FrequentFailure, ...],
        Field(max_length=MAX_FINGERPRINTS, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """The ten most frequent causes, the most frequent first."""


QUEUE_SPEC_RULES = (
    Rule(
        rule="!has(self.archive) || has(self.archive.folder) != has(self.archive.s3)",
        message="archive must name either a folder or s3",
        field_path=".archive",
    ),
)
"""Rules on DeadLetterQueue's spec node."""
