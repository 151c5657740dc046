"""``plan``: one plan of a pool, the status that follows from it, and one plan of the queue of VMClaims.

Each in a process that holds nothing else.

Run as ``python -m bench.plan ours|floor`` by ``run``.
"""

import gc
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import orjson

from bench import claim_queue
from bench.claim_queue import NOW
from bench.figures import Figures, Pair, Promise, Result
from bench.processes import child_figures
from bench.rig import IMAGE, POOL, PROVIDER, Rig
from vmpool.api import keys
from vmpool.api.meta import format_time
from vmpool.api.pool import template_digest
from vmpool.engine.facts import pool_facts, vm_facts
from vmpool.engine.sights import Sights
from vmpool.plan.claims import plan_claims
from vmpool.plan.lifecycle import ClaimPhase, Phase
from vmpool.plan.pool import plan_pool
from vmpool.plan.queue import QueueSnapshot
from vmpool.plan.snapshot import VM, PoolFacts, PoolSnapshot, ProviderFacts, Reason, Step
from vmpool.plan.status import pool_status
from vmpool.providers.base import Machine, MachineState

COUNTS = (1_000, 5_000, 10_000)
PLANS = 40
"""Plans of each size in a process; their median is the process's figure."""
QUEUE_PLANS = 7
"""The same of the queue, which takes longer."""
PROVIDERS = 8
"""As many as a pool may name."""
PENDING_OF_1000 = 30
COMPLETED_OF_1000 = 5
PROBE_SECONDS = 60.0
MILLISECONDS = 1000.0


async def run(rig: Rig, pairs: int) -> Result:
    """Plan for pools of several sizes; every half of a pair is a process of its own."""
    runs = []
    for number in range(pairs):
        rig.say(f"pair {number + 1}")
        # Fresh processes, because the garbage collector walks over all that its process holds.
        runs.append(Pair(await child_figures("bench.plan", "ours"), await child_figures("bench.plan", "floor")))
    return Result("plan", runs, [Promise(f"plan_ms_{COUNTS[-1]}", 50.0)])


def measured(task: str) -> Figures:
    """Return the milliseconds of ``ours`` or of the ``floor`` for every size."""
    figures: dict[str, float] = {}
    for count in COUNTS:
        seen = snapshot(count)
        if task == "floor":
            figures[f"plan_ms_{count}"] = _median_ms(partial(counted, seen))
            figures |= {name: _median_ms(partial(claim_queue.counted, queue)) for name, queue in _queues(count)}
            continue
        figures[f"plan_ms_{count}"] = _median_ms(partial(plan_pool, seen, NOW))
        plan = plan_pool(seen, NOW)
        # A benchmark of a world in which nothing happens would flatter: somebody is looked at, and somebody destroyed.
        assert {"Look", "DestroyMachine"} <= {type(action).__name__ for action in plan.actions}, plan.counts
        assert plan.counts.ready > count * 0.9, plan.counts
        figures[f"status_ms_{count}"] = _median_ms(partial(pool_status, seen, plan, failures=(), stalled=None, now=NOW))
        for name, queue in _queues(count):
            figures[name] = _median_ms(partial(plan_claims, queue, NOW), QUEUE_PLANS)
    return figures


def _queues(count: int) -> Iterator[tuple[str, QueueSnapshot]]:
    """Yield queues by the names of their figures; one at a time, because each holds thousands of objects."""
    yield f"bound_claims_ms_{count}", claim_queue.checked(claim_queue.bound(count), ClaimPhase.BOUND)
    yield f"waiting_claims_ms_{count}", claim_queue.checked(claim_queue.waiting(count), ClaimPhase.PENDING)


def counted(seen: PoolSnapshot) -> tuple[Counter[str], int]:
    """Look once at every VM and at what was seen of it: the least that any plan has to do."""
    phases: Counter[str] = Counter()
    looked_at = 0
    for vm in seen.vms:
        phases[vm.phase] += 1
        looked_at += seen.sight(vm).looked_at is not None
    return phases, looked_at


def _median_ms(work: Callable[[], Any], times: int = PLANS) -> float:
    work()
    gc.collect()
    spent = []
    for _ in range(times):
        began = time.thread_time()
        work()
        spent.append(time.thread_time() - began)
    return statistics.median(spent) * MILLISECONDS


# --- a world to plan for ---------------------------------------------------------------------------------------------


def snapshot(count: int) -> PoolSnapshot:
    """Return a pool of ``count`` VMs as a round at ``NOW`` sees it.

    Most are Ready and probed, a few are on their way or being destroyed, and something is due for some of them.
    """
    pool = _pool(count)
    vms = tuple(vm_facts(raw) for raw in documents(count))
    listed = NOW - timedelta(seconds=9)
    providers = {
        name: ProviderFacts(name, True, True, "Reachable", "it answers", room=100, listed_at=listed)
        for name in _provider_names()
    }
    return PoolSnapshot(pool, template_digest(pool.spec.template), vms, providers, sights(vms))


def documents(count: int) -> Iterator[dict[str, Any]]:
    """Yield PooledVMs as they come from the API server: decoded from bytes, so that nothing in them is shared."""
    pool = _pool(count)
    return (orjson.loads(orjson.dumps(_document(pool, number))) for number in range(count))


def sights(vms: Iterable[VM]) -> Sights:
    """Return what was seen of the machines of all VMs, as the engine keeps it."""
    kept = Sights()
    for number, vm in enumerate(vms):
        state = {Phase.READY: MachineState.RUNNING, Phase.PENDING: MachineState.CREATING}.get(
            Phase(vm.phase), MachineState.DELETING
        )
        looked_at = NOW - timedelta(seconds=number % 7)
        kept.saw(vm.uid, Machine(vm.machine_id, vm.name, state, addresses=vm.addresses), looked_at)
        if vm.phase == Phase.READY:
            kept.probed(vm.uid, ok=True, now=NOW - timedelta(seconds=PROBE_SECONDS * (number % 997) / 997))
    return kept


def _provider_names() -> list[str]:
    return [f"{PROVIDER}-{number}" for number in range(PROVIDERS)]


def _pool(count: int) -> PoolFacts:
    spec = {
        "template": {"image": IMAGE},
        "providers": [{"name": name} for name in _provider_names()],
        "readiness": {"tcpSocket": {"port": 22}, "interval": f"{PROBE_SECONDS:g}s"},
    }
    meta = {
        "uid": "5f0c1bd6-4ea5-4a39-8c4e-000000000000",
        "namespace": "bench",
        "name": POOL,
        "generation": 1,
        "resourceVersion": "1",
        "finalizers": [keys.FINALIZER_DRAIN],
    }
    pool = pool_facts({"metadata": meta, "spec": spec})
    # A pool may want 5,000. Past that bound, so that all of its 10,000 VMs are of the kind that is dearest to plan for.
    return replace(pool, spec=pool.spec.model_copy(update={"replicas": count, "max_vms": count + count // 10}))


def _document(pool: PoolFacts, number: int) -> dict[str, Any]:
    """Return a PooledVM as the API server would show it."""
    place = number % 1000
    pending, completed = place < PENDING_OF_1000, place >= 1000 - COMPLETED_OF_1000
    phase = Phase.PENDING if pending else Phase.COMPLETED if completed else Phase.READY
    made = format_time(NOW - timedelta(seconds=10 if pending else 3600 + number % 600))
    created = {"name": Step.CREATE, "startedAt": made, "finishedAt": made}
    booted = {"name": Step.BOOT, "startedAt": made, "finishedAt": made}
    name = f"{pool.name}-{number:06x}"
    status: dict[str, Any] = {
        "phase": phase,
        "phaseSince": made,
        "machineId": f"m-{number:08x}",
        "steps": [created] if pending else [created, booted],
    }
    if not pending:
        status |= {"readyAt": made, "addresses": [f"127.{64 + number // 65536}.{number // 256 % 256}.{number % 256}"]}
    if completed:
        status |= {"reason": Reason.SURPLUS, "message": "the pool wants fewer"}
    return {
        "metadata": {
            "uid": f"5f0c1bd6-4ea5-4a39-8c4e-{number + 1:012x}",
            "namespace": pool.namespace,
            "name": name,
            "resourceVersion": str(1000 + number),
            "generation": 1,
            "creationTimestamp": made,
            "finalizers": [keys.FINALIZER_MACHINE],
        },
        "spec": {
            "pool": pool.name,
            "poolUid": pool.uid,
            "provider": _provider_names()[number % PROVIDERS],
            "templateDigest": template_digest(pool.spec.template),
            "hostName": name,
            "requestId": f"req-{number:010x}",
        },
        "status": status,
    }


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1])))
