"""The levels among the metrics: fresh also where another process's endpoint shows them."""

import asyncio
from typing import Any

from tests.unit.gateway.frames import gateway_of
from tests.unit.gateway.things import put_pool
from tests.waiting import until
from vmpool.gateway import process
from vmpool.settings import Settings


async def test_levels_are_measured_without_a_request() -> None:
    gateway, _ = gateway_of()
    put_pool(gateway, "web")
    put_pool(gateway, "db")
    gateway.pools.synced.set()
    # Of all that runs in the background only what asks nobody.
    works: list[Any] = [*process._background(gateway, Settings())]
    (measure,) = [work for work in works if work.__qualname__ == process._measure.__qualname__]
    for work in works:
        if work is not measure:
            work.close()
    registry = gateway.metrics.registry

    def level(pool: str) -> float | None:
        return registry.get_sample_value("vmpool_gateway_ready", {"namespace": "ci", "pool": pool})

    assert level("web") is None
    task = asyncio.create_task(measure)
    try:
        await until(lambda: level("web") == level("db") == 0.0, what="the levels")
        assert registry.get_sample_value("vmpool_gateway_watch_age_seconds", {"kind": "vmpools"}) is not None
        assert registry.get_sample_value("vmpool_gateway_watch_age_seconds", {"kind": "pooledvms"}) is None
    finally:
        task.cancel()
        await gateway.client.close()
