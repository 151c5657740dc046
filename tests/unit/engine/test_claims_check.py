"""What is read from the server before a claim is given up: a pool that is there but cannot be read gives no proof."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.plan.queues import a_claim
from tests.unit.plan.worlds import NOW
from vmpool.engine.claimeffects import ClaimEffects
from vmpool.engine.facts import pool_facts
from vmpool.kube.errors import NotFound
from vmpool.kube.kinds import VMPOOLS
from vmpool.kube.mirror import Mirror, MirrorSettings, Selection
from vmpool.plan.queue import Asker, Check, Note


def wire(name: str, **spec: Any) -> dict[str, Any]:
    meta = {"uid": f"uid-{name}", "namespace": "ci", "name": name, "generation": 1, "resourceVersion": "7"}
    return {"metadata": meta, "spec": {"template": {"image": "a"}, "providers": [{"name": "east"}], **spec}}


class Pools:
    """An API server that has these pools, and no more of a server than reading them."""

    def __init__(self, *pools: dict[str, Any]) -> None:
        self.pools = pools

    async def get(self, _: Any, namespace: str, name: str) -> dict[str, Any]:
        for pool in self.pools:
            if pool["metadata"]["name"] == name:
                return pool
        raise NotFound(f"{namespace}/{name} is not there")

    async def list_pages(self, *_: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(items=list(self.pools))


async def after_check(request: dict[str, Any], *pools: dict[str, Any]) -> Note:
    server: Any = Pools(*pools)
    world: Any = SimpleNamespace(
        client=server,
        pools=Mirror(server, Selection(VMPOOLS), pool_facts, MirrorSettings()),
        settings=SimpleNamespace(watch_namespace="", claim_retry_seconds=3),
        now=lambda: NOW,
    )
    unused: Any = None
    claim, note = a_claim(requests=[request]), Note()
    effects = ClaimEffects(world, unused, unused, unused, {claim.uid: note})
    await effects.run(Check(claim, Asker()))
    return note


GOOD, BROKEN = wire("web", aliases=["any"]), wire("web", aliases=["any"], maxVMs="many")


@pytest.mark.parametrize("request_", [{"pool": "web"}, {"alias": "any"}])
async def test_a_pool_that_cannot_be_read_is_trouble_and_no_proof(request_: dict[str, Any]) -> None:
    note = await after_check(request_, BROKEN)
    assert note.trouble is not None
    assert (note.checked, note.trouble.reason) == (False, "PoolUnreadable")
    assert note.retry_at is not None
    assert note.retry_at > NOW


@pytest.mark.parametrize("request_", [{"pool": "web"}, {"pool": "nope"}, {"alias": "any"}, {"alias": "nope"}])
async def test_what_can_be_read_or_is_not_there_is_proof(request_: dict[str, Any]) -> None:
    note = await after_check(request_, GOOD)
    assert (note.checked, note.trouble) == (True, None)


@pytest.mark.parametrize("spec", [{"aliases": 3}, {"aliases": ["other"], "maxVMs": "many"}])
async def test_what_is_wrong_with_another_pool_matters_to_nobody_else(spec: dict[str, Any]) -> None:
    other = {**wire("other"), "spec": spec}
    assert (await after_check({"alias": "any"}, GOOD, other)).checked
