"""Objects of our kinds for tests: the smallest that the server takes, and ones with every field set."""

from typing import Any

from vmpool.api import keys

Json = dict[str, Any]

LONG_AGO = "2026-01-01T00:00:00.000000Z"
LATER = "2026-01-02T00:00:00.000000Z"


def thing(kind: str, name: str, spec: Json) -> Json:
    """An object of one of our kinds."""
    return {"apiVersion": keys.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def pool(name: str = "web", **spec: Any) -> Json:
    """A VMPool with what is required, and ``spec`` on top."""
    return thing("VMPool", name, {"template": {"image": "debian-12"}, "providers": [{"name": "sim"}], **spec})


def vm(name: str = "web-a", **spec: Any) -> Json:
    """A PooledVM with what is required, and ``spec`` on top."""
    return thing("PooledVM", name, {"pool": "web", "poolUid": "uid-of-web", "provider": "sim", **spec})


def provider(name: str = "sim", **spec: Any) -> Json:
    """A VMProvider with what is required, and ``spec`` on top."""
    return thing("VMProvider", name, {"type": "simulated", **spec})


def vm_claim(name: str = "build-7", **spec: Any) -> Json:
    """A VMClaim with what is required, and ``spec`` on top."""
    return thing("VMClaim", name, {"requests": [{"pool": "web"}], **spec})


def claim(identity: str = "one", **fields: Any) -> Json:
    """A claim with what is required, and ``fields`` on top."""
    return {"id": identity, "owner": "alice", "boundAt": LONG_AGO, "expiresAt": LATER, **fields}


FULL_CLAIM = claim(
    ref={"namespace": "ci", "name": "build-7", "uid": "uid-of-claim", "kindUid": "uid-of-kind"},
    slot=0,
    groups=["developers"],
    tokenId="token-1",
    requestId="request-1",
    tags={"job": "build-7"},
    releasedAt=LATER,
    endReason="Released",
)
CONDITION = {
    "type": "Ready",
    "status": "True",
    "reason": "Filled",
    "message": "3 of 3 ready",
    "lastTransitionTime": LONG_AGO,
    "observedGeneration": 1,
}
FULL_SPECS: dict[str, Json] = {
    "vmpools": {
        "replicas": 3,
        "maxVMs": 30,
        "template": {
            "image": "debian-12",
            "cpus": 4,
            "memory": "4Gi",
            "disk": "20Gi",
            "parameters": {"network": "lab"},
        },
        "hostName": {"prefix": "web-", "domain": "lab.example.com"},
        "providers": [{"name": "sim", "weight": 3}, {"name": "other", "weight": 0}],
        "readiness": {"tcpSocket": {"port": 22}, "timeout": "15m", "interval": "1m30s", "failureThreshold": 2},
        "recycle": {"readyTTL": "24h", "jitterPercent": 20, "quarantineTTL": "0s"},
        "limits": {"pending": 5, "creates": 4, "deletes": 3, "quarantined": 1},
        "retry": {"attempts": 3, "backoff": "500ms", "maxBackoff": "1m"},
        "update": {"strategy": "OnClaim", "maxSurge": 1, "maxUnavailable": "50%"},
        "claims": {
            "lifetime": "2h",
            "maxLifetime": "48h",
            "allowedNamespaces": ["ci", "*"],
            "weight": 3,
        },
        "restName": "Web_1.large",
        "aliases": ["web-large"],
        "deadLetterQueue": "failures",
        "purgePolicy": "stale",
        "healthPolicy": "fleet",
        "resetBefore": LONG_AGO,
        "deletionPolicy": "Force",
        "paused": True,
    },
    "pooledvms": {
        "pool": "web",
        "poolUid": "uid-of-web",
        "provider": "sim",
        "templateDigest": "v1:0123456789abcdef0123456789abcdef",
        "hostName": "web-a.lab.example.com",
        "requestId": "request-1",
        "retryCount": 2,
        "adopt": {"machineId": "machine-1"},
        "claim": FULL_CLAIM,
    },
    "vmclaims": {
        "requests": [{"pool": "web", "count": 2}, {"alias": "web-large", "namespace": "lab", "count": 1}],
        "requester": "alice",
        "requesterGroups": ["developers"],
        "lifetime": "2h",
        "priority": 5,
        "deadline": "10m",
        "ttlAfterFinished": "30m",
        "tags": {"job": "build-7"},
    },
    "vmproviders": {
        "type": "simulated",
        "config": {"url": "http://127.0.0.1:1", "deep": {"list": [1, "two", None]}},
        "secretRef": {"name": "sim-credentials"},
        "limits": {"machines": 100, "operate": 4, "observe": 2},
        "timeouts": {"operate": "1m", "observe": "10s"},
        "circuitBreaker": {"failures": 3, "pause": "10s"},
        "observe": {"interval": "10s"},
        "paused": True,
    },
    "deadletterqueues": {
        "ttl": "24h",
        "maxEntries": 100,
        "archive": {
            "s3": {
                "endpoint": "http://127.0.0.1:9000",
                "bucket": "failures",
                "prefix": "vmpool/",
                "region": "eu-central-1",
                "secretRef": {"name": "bucket-credentials"},
            }
        },
        "poison": {"failures": 5},
    },
    "deadletters": {
        "queue": "failures",
        "vm": "web-a",
        "vmUid": "uid-of-vm",
        "pool": "web",
        "poolUid": "uid-of-web",
        "queueFrom": "pending",
        "errorClass": "PendingTimeout",
        "errorMessage": "was not ready within 15m",
        "failedAt": LONG_AGO,
        "retryCount": 3,
        "requestId": "request-1",
        "poolAlias": "web-large",
        "provider": "sim",
        "step": "boot",
        "templateDigest": "v1:0123456789abcdef0123456789abcdef",
        "machineId": "machine-1",
        "attempt": 2,
        "attempts": [{"at": LONG_AGO, "reason": "PendingTimeout", "message": "was not ready within 15m"}],
        "fingerprint": "0123456789ab",
        "diagnostics": {
            "console": "login:",
            "machine": "machine-1: Running",
            "probe": "not answered",
            "task": "task-7",
            "missing": "nothing",
        },
        "action": "redrive",
    },
    "purgepolicies": {
        "maxPendingAge": "1h",
        "maxReadyAge": "12h",
        "maxCompletedAge": "30m",
        "maxOrphanedAge": "6h",
        "interval": "10m",
        "dryRun": True,
        "maxPerCycle": 7,
        "pauses": [{"name": "datacenter-move", "reason": "racks are moved", "until": LATER}],
    },
    "healthpolicies": {
        "interval": "1m",
        "thresholds": {
            "pendingQueueMax": 10,
            "readyQueueMax": 20,
            "dlqMaxWarning": 30,
            "dlqMaxCritical": 40,
            "stuckVMAgeThreshold": "1h",
            "stuckVMMaxWarning": 5,
            "stuckVMMaxCritical": 6,
            "emptyPoolMaxAge": "5m",
            "failuresInARowMax": 3,
        },
        "hysteresis": {"clearPercent": 20, "clearChecks": 3},
        "onUnhealthy": ["pausePurge", "pauseCreates"],
    },
}
FULL_STATUSES: dict[str, Json] = {
    "vmpools": {
        "observedGeneration": 1,
        "conditions": [CONDITION],
        "desiredReplicas": 3,
        "replicas": 3,
        "readyReplicas": 2,
        "pendingReplicas": 1,
        "claimedReplicas": 4,
        "waitingReplicas": 2,
        "quarantinedReplicas": 1,
        "drainingReplicas": 1,
        "staleReplicas": 1,
        "selector": "vmpool.dev/pool=web",
        "templateDigest": "v1:0123456789abcdef0123456789abcdef",
        "creation": {"window": 4, "failures": 1, "notBefore": LATER},
        "recentFailures": [
            {
                "vm": "web-b",
                "provider": "sim",
                "step": "boot",
                "errorClass": "PendingTimeout",
                "message": "was not ready within 15m",
                "failedAt": LONG_AGO,
                "requestId": "request-1",
                "retryCount": 1,
                "fingerprint": "0123456789ab",
                "attempt": 2,
            }
        ],
        "poison": {"fingerprint": "0123456789ab", "failures": 3, "since": LONG_AGO, "message": "no such image"},
    },
    "pooledvms": {
        "phase": "Ready",
        "observedGeneration": 1,
        "conditions": [CONDITION],
        "machineId": "machine-1",
        "addresses": ["192.0.2.1", "2001:db8::1"],
        "phaseSince": LONG_AGO,
        "readyAt": LONG_AGO,
        "expiresAt": LATER,
        "reason": "Redriven",
        "message": "was tried again",
        "steps": [
            {
                "name": "create",
                "startedAt": LONG_AGO,
                "finishedAt": LATER,
                "retries": 1,
                "failedAt": LONG_AGO,
                "nextAt": LATER,
                "reason": "ProviderThrottled",
                "message": "too many requests",
            }
        ],
        "attempt": 2,
    },
    "vmclaims": {
        "phase": "Bound",
        "observedGeneration": 1,
        "conditions": [CONDITION],
        "reason": "Bound",
        "message": "it has its VM",
        "position": "11-100",
        "boundAt": LONG_AGO,
        "expiresAt": LATER,
        "lifetime": "2h",
        "finishedAt": LATER,
        "vms": [
            {
                "slot": 0,
                "uid": "uid-of-vm",
                "name": "web-a",
                "namespace": "ci",
                "pool": "web",
                "hostName": "web-a.lab.example.com",
                "address": "192.0.2.1",
                "endReason": "Released",
            }
        ],
    },
    "vmproviders": {
        "observedGeneration": 1,
        "conditions": [CONDITION],
        "identity": "simcloud-1",
        "heldSecret": "sim-credentials",
        "circuit": "HalfOpen",
        "machines": 7,
        "lastError": "ProviderUnavailable",
        "openUntil": LATER,
    },
    "deadletterqueues": {
        "observedGeneration": 1,
        "conditions": [CONDITION],
        "entries": 3,
        "oldestSince": LONG_AGO,
        "queues": [{"name": "pending", "entries": 3, "oldestSince": LONG_AGO}],
        "fingerprints": [
            {
                "fingerprint": "0123456789ab",
                "entries": 3,
                "errorClass": "PendingTimeout",
                "errorMessage": "was not ready within 15m",
            }
        ],
    },
    "deadletters": {
        "phase": "Redriven",
        "observedGeneration": 1,
        "conditions": [CONDITION],
        "message": "web-b goes on with its request",
        "handledAt": LATER,
        "successor": "web-b",
    },
    "purgepolicies": {
        "observedGeneration": 1,
        "conditions": [CONDITION],
        "pools": 2,
        "lastCycle": {
            "startedAt": LONG_AGO,
            "finishedAt": LATER,
            "dryRun": True,
            "found": 1,
            "purged": 0,
            "deferred": 0,
            "kept": 1,
            "vms": [{"vm": "web-a", "pool": "web", "state": "pending", "ageSeconds": 3650, "maxSeconds": 600}],
        },
    },
    "healthpolicies": {
        "observedGeneration": 1,
        "conditions": [CONDITION],
        "health": "degraded",
        "since": LONG_AGO,
        "message": "101 dead letters, more than 100",
        "pools": 2,
        "notHealthy": [{"namespace": "ci", "pool": "web", "health": "degraded", "message": "101 dead letters"}],
    },
}
