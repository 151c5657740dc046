"""What the API server refuses of queues, policies and letters, and in which words."""

from typing import Any

import pytest

from tests.api import Api
from tests.objects import FULL_SPECS, thing
from vmpool.api import crd
from vmpool.api.health import HealthPolicySpec

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("crds_installed")]

KINDS = {kind.plural: kind.name for kind in crd.KINDS}
DURATION = "such as 90s, 15m or 2h"
LIMITS = ("pendingQueueMax", "readyQueueMax", "dlqMaxWarning", "stuckVMMaxWarning", "failuresInARowMax")
AGES = ("maxPendingAge", "maxReadyAge", "maxCompletedAge", "maxOrphanedAge")
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    # The kind, what is written, the field that the refusal names, and words of it.
    *(("purgepolicies", {age: "0s"}, f"spec.{age}", f"a duration between 1s and 8760h, {DURATION}") for age in AGES),
    *(("purgepolicies", {age: "-1h"}, f"spec.{age}", f"a duration between 1s and 8760h, {DURATION}") for age in AGES),
    ("purgepolicies", {"maxPendingAge": 7200}, "spec.maxPendingAge", "must be of type string"),
    ("purgepolicies", {"interval": "0s"}, "spec.interval", "a duration between 1s and 168h"),
    ("purgepolicies", {"maxPerCycle": 0}, "spec.maxPerCycle", "greater than or equal to 1"),
    ("purgepolicies", {"dryRun": "yes"}, "spec.dryRun", "must be of type boolean"),
    ("purgepolicies", {"pauses": [{"name": "A b"}]}, "spec.pauses[0].name", "must be lower-case letters"),
    ("purgepolicies", {"pauses": [{"name": "a"}, {"name": "a"}]}, "spec.pauses[1]", "Duplicate value"),
    ("purgepolicies", {"pauses": [{"name": "a", "until": "soon"}]}, "spec.pauses[0].until", "of type date-time"),
    *(("healthpolicies", {"thresholds": {one: 0}}, f"spec.thresholds.{one}", "equal to 1") for one in LIMITS),
    *(("healthpolicies", {"thresholds": {one: -5}}, f"spec.thresholds.{one}", "equal to 1") for one in LIMITS),
    (
        "healthpolicies",
        {"thresholds": {"dlqMaxWarning": 1001}},
        "spec.thresholds",
        "dlqMaxWarning must be at most dlqMaxCritical",
    ),
    (
        "healthpolicies",
        {"thresholds": {"stuckVMMaxWarning": 8, "stuckVMMaxCritical": 7}},
        "spec.thresholds",
        "stuckVMMaxWarning must be at most stuckVMMaxCritical",
    ),
    (
        "healthpolicies",
        {"thresholds": {"stuckVMAgeThreshold": "-2h"}},
        "spec.thresholds.stuckVMAgeThreshold",
        DURATION,
    ),
    ("healthpolicies", {"interval": "0s"}, "spec.interval", "a duration between 1s and 24h"),
    (
        "healthpolicies",
        {"hysteresis": {"clearPercent": 91}},
        "spec.hysteresis.clearPercent",
        "less than or equal to 90",
    ),
    ("healthpolicies", {"onUnhealthy": ["explode"]}, "spec.onUnhealthy[0]", 'supported values: "pausePurge"'),
    ("healthpolicies", {"onUnhealthy": ["pausePurge"] * 2}, "spec.onUnhealthy[1]", "Duplicate value"),
    ("deadletterqueues", {"ttl": "0s"}, "spec.ttl", f"a duration between 1s and 87600h, {DURATION}"),
    ("deadletterqueues", {"ttl": "-24h"}, "spec.ttl", DURATION),
    ("deadletterqueues", {"maxEntries": 0}, "spec.maxEntries", "greater than or equal to 1"),
    ("deadletterqueues", {"maxEntries": 100_001}, "spec.maxEntries", "less than or equal to 100000"),
    ("deadletterqueues", {"poison": {"failures": -1}}, "spec.poison.failures", "greater than or equal to 0"),
    ("deadletterqueues", {"archive": {}}, "spec.archive", "archive must name either a folder or s3"),
    (
        "deadletterqueues",
        {"archive": {"folder": "/a", "s3": {"bucket": "abc"}}},
        "spec.archive",
        "archive must name either a folder or s3",
    ),
    ("deadletterqueues", {"archive": {"folder": "a/b"}}, "spec.archive.folder", "must be an absolute path"),
    ("deadletterqueues", {"archive": {"s3": {"bucket": "B"}}}, "spec.archive.s3.bucket", "3 to 63 lower-case"),
    (
        "deadletterqueues",
        {"archive": {"s3": {"bucket": "abc", "endpoint": "ftp://x"}}},
        "spec.archive.s3.endpoint",
        "must be the URL of an S3-compatible service",
    ),
    ("deadletters", {"action": "retry"}, "spec.action", 'supported values: "redrive", "discard"'),
    ("deadletters", {"queueFrom": "limbo"}, "spec.queueFrom", 'supported values: "pending", "clone"'),
    ("deadletters", {"fingerprint": "XYZ"}, "spec.fingerprint", "must be lower-case hexadecimal digits"),
    ("vmpools", {"deadLetterQueue": "No Such"}, "spec.deadLetterQueue", "must be lower-case letters"),
]


@pytest.mark.parametrize(("plural", "changes", "field", "words"), REFUSED)
async def test_bad_input_is_refused_by_field_and_with_what_is_allowed(
    api: Api, shared_namespace: str, plural: str, changes: dict[str, Any], field: str, words: str
) -> None:
    spec = dict(FULL_SPECS[plural]) if plural in ("deadletters", "vmpools") else {}
    answer = await api.kind(plural, shared_namespace).create(thing(KINDS[plural], "bad", {**spec, **changes}))
    assert answer.status == 422
    assert field in answer.fields
    assert words in answer.message


@pytest.mark.parametrize("field", ["vm", "errorMessage", "failedAt", "queueFrom", "fingerprint", "vmUid"])
async def test_what_a_letter_tells_never_changes(api: Api, namespace: str, field: str) -> None:
    letters = api.kind("deadletters", namespace)
    (await letters.create(thing("DeadLetter", "a", FULL_SPECS["deadletters"]))).ok()
    other = {"queueFrom": "clone", "failedAt": "2026-02-01T00:00:00Z", "fingerprint": "ffff"}.get(field, "other")
    answer = await letters.merge("a", {"spec": {field: other}})
    assert answer.status == 422
    assert "only its action may be changed" in answer.message
    (await letters.merge("a", {"spec": {"action": "discard"}})).ok()


async def test_a_limit_at_its_neighbour_is_allowed(api: Api, namespace: str) -> None:
    limits = {"dlqMaxWarning": 7, "dlqMaxCritical": 7, "stuckVMMaxWarning": 3, "stuckVMMaxCritical": 3}
    (await api.kind("healthpolicies", namespace).create(thing("HealthPolicy", "a", {"thresholds": limits}))).ok()


async def test_the_defaults_are_those_of_the_guide(api: Api, namespace: str) -> None:
    purge = (await api.kind("purgepolicies", namespace).create(thing("PurgePolicy", "a", {}))).ok()["spec"]
    ages = (purge[age] for age in AGES)
    assert (*ages, purge["interval"], purge["dryRun"]) == ("2h", "24h", "1h", "24h", "1h", False)
    body = thing("HealthPolicy", "a", {"thresholds": {}})
    health = (await api.kind("healthpolicies", namespace).create(body)).ok()["spec"]
    assert health["interval"] == "5m"
    guide = {
        "pendingQueueMax": 100,
        "readyQueueMax": 500,
        "dlqMaxWarning": 100,
        "dlqMaxCritical": 1000,
        "stuckVMAgeThreshold": "2h",
        "stuckVMMaxWarning": 10,
        "stuckVMMaxCritical": 50,
    }
    assert {name: health["thresholds"].get(name) for name in guide} == guide
    absent = HealthPolicySpec().thresholds.wire()
    assert {name: absent[name] for name in guide} == guide, "a policy without thresholds has the same"
    queue = (await api.kind("deadletterqueues", namespace).create(thing("DeadLetterQueue", "a", {}))).ok()["spec"]
    assert (queue["ttl"], queue["maxEntries"]) == ("168h", 10_000)
