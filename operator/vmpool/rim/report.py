"""What the operator's report says beyond what every process says: its loops, lanes, mirrors, queues and its lease."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vmpool.engine.engine import Engine
from vmpool.engine.world import World
from vmpool.kube.lease import Lease
from vmpool.rim.watchdog import Watchdog
from vmpool.settings import Settings
from vmpool.telemetry import report
from vmpool.telemetry.report import ITEMS_MOST, Section


def sections(
    settings: Settings, loop: asyncio.AbstractEventLoop, watchdog: Watchdog, engine: Engine | None
) -> Mapping[str, Section]:
    """Return the sections that this operator can show now; those of the engine only once it leads."""
    made: dict[str, Section] = {
        "process": report.process,
        "settings": report.settings(settings),
        "watchdog": lambda: _watchdog(watchdog),
        "lease": lambda: _lease(watchdog.lease),
        "tasks": report.tasks(loop),
        "threads": report.threads,
    }
    if engine is not None:
        world = engine.world
        made |= {
            "loops": lambda: _loops(engine),
            "lanes": lambda: _lanes(world),
            "mirrors": lambda: {str(one.selection): one.levels() for one in world.mirrors},
            "queues": lambda: _queues(world),
        }
    return made


def _watchdog(watchdog: Watchdog) -> Mapping[str, Any]:
    return {
        "verdict": watchdog.trouble(),
        "longest_lag_seconds": _seconds(watchdog.longest_lag),
        "kopf": watchdog.followed[:ITEMS_MOST],
    }


def _lease(lease: Lease | None) -> Mapping[str, Any]:
    if lease is None:
        return {"held": False}
    return {
        "identity": lease.identity,
        "held": lease.held,
        "renewed_seconds_ago": _seconds(lease.age),
        "left_seconds": _seconds(lease.left),
    }


def _loops(engine: Engine) -> Mapping[str, Any]:
    loops = engine.loops
    failing = sorted((one for one in loops if one.errors_in_a_row), key=lambda one: -one.errors_in_a_row)
    kinds: dict[str, dict[str, Any]] = {}
    for kind, count in Counter(one.kind for one in loops).items():
        idle = [one.idle_seconds for one in loops if one.kind == kind and one.idle_seconds is not None]
        kinds[kind] = {"count": count, "longest_since_round_began": _seconds(max(idle, default=0.0))}
    return {
        "ready": engine.ready.is_set(),
        "unhealthy": engine.healthy(),
        "kinds": kinds,
        "failing": {f"{one.kind}/{one}": one.errors_in_a_row for one in failing[:ITEMS_MOST]},
        "failing_left_out": max(0, len(failing) - ITEMS_MOST),
    }


def _lanes(world: World) -> Mapping[str, Any]:
    views = list(world.views.items())
    return {
        "count": len(views),
        "lanes": {
            f"{namespace}/{name}": {
                "circuit": view.lane.breaker.state.value,
                "last_error": view.lane.breaker.last_error,
                "verified": view.lane.session is not None,
                **{
                    slots.value: {"running": running, "waiting": waiting, "slots": size}
                    for slots, (running, waiting, size) in view.lane.levels.items()
                },
            }
            for (namespace, name), view in views[:ITEMS_MOST]
        },
    }


def _queues(world: World) -> Mapping[str, Any]:
    pools = [entry.fact for entry in list(world.pools) if entry.fact is not None]
    waiting = {f"{pool.namespace}/{pool.name}": world.waiting(pool.uid) for pool in pools}
    longest = sorted(((count, name) for name, count in waiting.items() if count), reverse=True)
    skew = world.client.clock_skew
    return {
        "claims": len(world.claims),
        "vms_lacking_for_claims": {name: count for count, name in longest[:ITEMS_MOST]},
        "letters": len(world.letters),
        "purges_wanted": len(world.purges),
        "creates_in_flight": len(world.creates),
        "clock_skew_seconds": None if skew is None else _seconds(-skew.total_seconds()),
    }


def _seconds(value: float) -> float | None:
    """Return seconds as JSON can say them: there is no infinity in it."""
    return None if value in (float("inf"), float("-inf")) else round(value, 3)
