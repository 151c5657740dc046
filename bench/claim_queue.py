"""The queue of VMClaims that the benchmark of plans plans for: many that have their VMs, or many that wait for one."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from bench.rig import IMAGE, POOL, PROVIDER
from vmpool.api.meta import format_time
from vmpool.api.pool import template_digest
from vmpool.engine.facts import claim_facts, pool_facts, vm_facts
from vmpool.plan.claims import plan_claims
from vmpool.plan.lifecycle import ClaimPhase, Phase
from vmpool.plan.queue import Bind, QueueSnapshot, SetStatus, Trust
from vmpool.plan.snapshot import VM, PoolFacts, VMClaim

NAMESPACES = 10
READY = 4
"""VMs that can be taken in each namespace: all together more than may be bound at once."""
NOW = datetime(2030, 1, 1, tzinfo=UTC)
EVERYTHING = 1_000_000
"""Room for effects that bounds nothing."""


def bound(count: int) -> QueueSnapshot:
    """Return a queue of ``count`` claims that have their VM each, and nothing to do for any of them."""
    pools = _pools()
    claims, held = [], {}
    for number in range(count):
        claim = claim_facts(_claim(number))
        held[claim.uid] = (_held(pools[claim.namespace, POOL], claim, number),)
        claims.append(claim)
    return _settled(QueueSnapshot(claims=claims, pools=pools, ready={}, held=held, trust=Trust()))


def waiting(count: int) -> QueueSnapshot:
    """Return a queue of ``count`` claims of which each wants a VM, know where they stand, and some can be served."""
    pools = _pools()
    claims = [claim_facts(_claim(number)) for number in range(count)]
    seen = _settled(QueueSnapshot(claims=claims, pools=pools, ready={}, held={}, trust=Trust()))
    return replace(seen, ready={pool.uid: READY for pool in pools.values()})


def counted(seen: QueueSnapshot) -> tuple[Counter[str], int]:
    """Look once at every claim and at the VMs that it has: the least that any plan has to do."""
    phases: Counter[str] = Counter()
    vms = 0
    for claim in seen.claims:
        phases[claim.phase] += 1
        vms += len(seen.held.get(claim.uid, ()))
    return phases, vms


def _settled(seen: QueueSnapshot) -> QueueSnapshot:
    """Return the queue after everything was written that the plan wants to have written."""
    plan = plan_claims(replace(seen, room=EVERYTHING), NOW)
    said = {action.claim.uid: action.status for action in plan.actions if isinstance(action, SetStatus)}
    assert len(said) == len(seen.claims), f"{len(said)} statuses for {len(seen.claims)} claims"
    told = [replace(claim, status=said[claim.uid]) for claim in seen.claims]
    return replace(seen, claims=told)


def checked(seen: QueueSnapshot, phase: ClaimPhase) -> QueueSnapshot:
    """Return a queue in which everything is as it was meant to be; fail for another one, which would flatter."""
    plan = plan_claims(seen, NOW)
    assert {claim.phase for claim in seen.claims} == {phase}, counted(seen)
    binds = [action for action in plan.actions if isinstance(action, Bind)]
    assert len(plan.actions) == len(binds) == (seen.room if phase is ClaimPhase.PENDING else 0), plan.actions[:3]
    return seen


def _pools() -> dict[tuple[str, str], PoolFacts]:
    made = (_pool(f"team-{number}") for number in range(NAMESPACES))
    return {(pool.namespace, pool.name): pool for pool in made}


def _pool(namespace: str) -> PoolFacts:
    meta = {
        "uid": f"5f0c1bd6-4ea5-4a39-8c4e-{namespace}",
        "namespace": namespace,
        "name": POOL,
        "generation": 1,
        "resourceVersion": "1",
    }
    spec = {"template": {"image": IMAGE}, "providers": [{"name": PROVIDER}], "replicas": 100, "maxVMs": 10_000}
    return pool_facts({"metadata": meta, "spec": spec})


def _claim(number: int) -> dict[str, Any]:
    """Return a VMClaim as the API server shows a new one, decoded from bytes."""
    made = format_time(NOW - timedelta(seconds=3600 - number % 3000))
    meta = {
        "uid": f"7a0c1bd6-4ea5-4a39-8c4e-{number:012x}",
        "namespace": f"team-{number % NAMESPACES}",
        "name": f"claim-{number:06x}",
        "resourceVersion": str(1000 + number),
        "generation": 1,
        "creationTimestamp": made,
    }
    raw = {"metadata": meta, "spec": {"requests": [{"pool": POOL, "count": 1}], "priority": number % 3}}
    decoded: dict[str, Any] = orjson.loads(orjson.dumps(raw))
    return decoded


def _held(pool: PoolFacts, claim: VMClaim, number: int) -> VM:
    at = format_time(NOW - timedelta(seconds=300))
    name = f"{pool.name}-{number:06x}"
    taken: Mapping[str, Any] = {
        "id": claim.uid,
        "ref": {"namespace": claim.namespace, "name": claim.name, "uid": claim.uid, "kindUid": "kind"},
        "slot": 0,
        "owner": f"vmclaim:{claim.namespace}/{claim.name}",
        "boundAt": at,
        # As far away as the pool lets it be: otherwise there would be something to do for every claim.
        "expiresAt": format_time(NOW - timedelta(seconds=300) + pool.spec.claims.lifetime),
    }
    raw = {
        "metadata": {
            "uid": f"5f0c1bd6-4ea5-4a39-8c4e-{number + 1:012x}",
            "namespace": pool.namespace,
            "name": name,
            "resourceVersion": str(100_000 + number),
            "generation": 2,
            "creationTimestamp": at,
        },
        "spec": {
            "pool": pool.name,
            "poolUid": pool.uid,
            "provider": PROVIDER,
            "templateDigest": template_digest(pool.spec.template),
            "hostName": name,
            "claim": taken,
        },
        "status": {
            "phase": Phase.CLAIMED,
            "phaseSince": at,
            "readyAt": at,
            "machineId": f"m-{number:08d}",
            "addresses": [f"127.{64 + number // 65536}.{number // 256 % 256}.{number % 256}"],
        },
    }
    return vm_facts(orjson.loads(orjson.dumps(raw)))
