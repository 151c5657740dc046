"""Changes and releases of VMs on a real API server: one write each, by the owner alone, at any gateway."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.api import Api
from tests.control_plane.gateway.scene import Scene, Stock, sees
from tests.control_plane.gateway.table import ALICE, BOB, PASSWORDS
from tests.control_plane.gateway.test_checkout import asked, claim_of, requests_of
from tests.control_plane.gateway.users import NO_REVIEWS, static_settings
from tests.gateways import MakeGateway
from tests.objects import claim
from tests.rest import Rest, hosts, rest_client, short

pytestmark = pytest.mark.control_plane


@pytest.fixture
def scene(api: Api, namespace: str) -> Scene:
    return Scene(api, namespace)


@pytest.fixture
async def two(make_gateway: MakeGateway) -> AsyncIterator[tuple[Rest, Rest]]:
    """Clients of two gateways that serve everybody."""
    gateways = [make_gateway(**NO_REVIEWS) for _ in range(2)]
    for gateway in gateways:
        gateway.start()
    async with AsyncExitStack() as stack:
        clients = []
        for gateway in gateways:
            await gateway.ready()
            clients.append(await stack.enter_async_context(rest_client(gateway.url)))
        yield clients[0], clients[1]


async def test_a_change_of_both_is_one_write_and_a_release_is_one(scene: Scene, two: tuple[Rest, Rest]) -> None:
    rest, _ = two
    pool = await scene.pool("web", Stock(ready=1))
    await sees(rest, {pool: 1})
    (host,) = hosts(await rest.post(f"/vm/{pool}"))
    before = await requests_of(rest)
    (await rest.put(f"/vm/{host}", {"lifetime": "3", "tags": {"job": "7", "team": "ci"}})).ok()
    assert await asked(rest, before) == {("PATCH", "pooledvms"): 1}
    held = claim_of(await scene.vm(short(host)))
    assert held["tags"] == {"job": "7", "team": "ci"}
    assert datetime.fromisoformat(held["expiresAt"]) - datetime.fromisoformat(held["boundAt"]) == timedelta(hours=3)
    (await rest.put(f"/vm/{host}", {"tags": {"job": None}})).ok()
    assert claim_of(await scene.vm(short(host)))["tags"] == {"team": "ci"}
    before = await requests_of(rest)
    (await rest.delete(f"/vm/{host}")).ok()
    (await rest.delete(f"/vm/{host}")).ok()
    assert await asked(rest, before) == {("PATCH", "pooledvms"): 1}
    ended = claim_of(await scene.vm(short(host)))
    assert ended["endReason"] == "Released"
    assert "releasedAt" in ended
    assert "its claim has ended" in (await rest.put(f"/vm/{host}", {"lifetime": 4})).refused(404)


async def test_another_gateway_knows_a_vm_that_was_handed_out_just_now(scene: Scene, two: tuple[Rest, Rest]) -> None:
    one, other = two
    pool = await scene.pool("web", Stock(ready=12))
    for rest in two:
        await sees(rest, {pool: 12})
    for number in range(12):
        (host,) = hosts(await one.post(f"/vm/{pool}"))
        if number % 2:
            (await other.put(f"/vm/{host}", {"tags": {"number": str(number)}})).ok()
            assert claim_of(await scene.vm(short(host)))["tags"] == {"number": str(number)}
        else:
            (await other.delete(f"/vm/{host}")).ok()
            assert "releasedAt" in claim_of(await scene.vm(short(host)))


async def test_what_another_has_released_is_released(scene: Scene, two: tuple[Rest, Rest]) -> None:
    one, other = two
    pool = await scene.pool("web", Stock(ready=6))
    await sees(one, {pool: 6})
    for _ in range(6):
        (host,) = hosts(await one.post(f"/vm/{pool}"))
        (await one.delete(f"/vm/{host}")).ok()
        (await other.delete(f"/vm/{host}")).ok()


async def test_a_ready_vm_is_nobodys_to_change_or_to_release(scene: Scene, two: tuple[Rest, Rest]) -> None:
    rest, _ = two
    pool = await scene.pool("web", Stock(ready=1, pending=1))
    await sees(rest, {pool: 1})
    for vm in await scene.of(pool):
        name = vm["metadata"]["name"]
        assert "not checked out" in (await rest.delete(f"/vm/{name}")).refused(404)
        assert "not checked out" in (await rest.put(f"/vm/{name}", {"lifetime": 1})).refused(404)
        assert "claim" not in (await scene.vm(name))["spec"]
    assert hosts(await rest.post(f"/vm/{pool}"))


async def test_a_stranger_neither_changes_nor_releases(scene: Scene, make_gateway: MakeGateway, tmp_path: Path) -> None:
    gateway = make_gateway(**static_settings(tmp_path))
    gateway.start()
    await gateway.ready()
    pool = await scene.pool("web", Stock(ready=2))
    async with rest_client(gateway.url) as rest:
        await sees(rest, {pool: 2})
        alice, bob = [await rest.new_token(user, PASSWORDS[user]) for user in (ALICE, BOB)]
        (host,) = hosts(await rest.post(f"/vm/{pool}", token=alice))
        # One that a VMClaim of a user of Kubernetes has.
        (free,) = [vm["metadata"]["name"] for vm in await scene.of(pool) if "claim" not in vm["spec"]]
        (await scene.vms.merge(free, {"spec": {"claim": claim("a-claim", owner=ALICE)}})).ok()
        before = {name: claim_of(await scene.vm(name)) for name in (short(host), free)}
        for name, token in ((short(host), bob), (free, alice), (free, bob)):
            assert "somebody else's" in (await rest.delete(f"/vm/{name}", token=token)).refused(403)
            for change in ({"lifetime": 1}, {"tags": {"a": "b"}}):
                assert "somebody else's" in (await rest.put(f"/vm/{name}", change, token=token)).refused(403)
            for path in ("disk/8", "snapshot", "snapshot/x"):
                assert "somebody else's" in (await rest.post(f"/vm/{name}/{path}", token=token)).refused(403)
        assert {name: claim_of(await scene.vm(name)) for name in before} == before
        held = before[short(host)]
        assert held["owner"] == f"vmpool:{ALICE}"
        assert held["tokenId"]
        assert alice not in str(await scene.vm(short(host)))
        assert alice not in gateway.lines()
        # With a new token of the same user it is still theirs.
        again = await rest.new_token(ALICE, PASSWORDS[ALICE])
        (await rest.delete(f"/vm/{host}", token=again)).ok()
