"""Rate limits as the reference has them: which requests are counted together, headers, body, and who is not hit."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.api import Api
from tests.control_plane.gateway.scene import Stock
from tests.control_plane.gateway.shapes import mismatch
from tests.control_plane.gateway.stagehand import UNKNOWN_TOKEN, scene_with
from tests.control_plane.gateway.table import ALICE, BOB, PASSWORDS
from tests.control_plane.gateway.users import static_settings
from tests.gateways import MakeGateway
from tests.rest import Rest, RestAnswer, hosts, rest_client

pytestmark = pytest.mark.control_plane

PERIOD = 600
PER_ADDRESS, PER_TOKEN, CREATION, DELETION = 6, 12, 3, 2
LIMITS = {
    "VMPOOL_GATEWAY_RATE_LIMITS": "true",
    "VMPOOL_GATEWAY_RATE_PERIOD_SECONDS": str(PERIOD),
    "VMPOOL_GATEWAY_RATE_PER_ADDRESS": str(PER_ADDRESS),
    "VMPOOL_GATEWAY_RATE_PER_TOKEN": str(PER_TOKEN),
    "VMPOOL_GATEWAY_RATE_CREATION": str(CREATION),
    "VMPOOL_GATEWAY_RATE_DELETION": str(DELETION),
}


@asynccontextmanager
async def limited(make_gateway: MakeGateway, folder: Path, **more: str) -> AsyncIterator[Rest]:
    """A client of a gateway that has limits."""
    made = make_gateway(**{**static_settings(folder), **LIMITS, **more})
    made.start()
    await made.ready()
    async with rest_client(made.url) as rest:
        yield rest


def over(answer: RestAnswer, limit: int) -> None:
    """The reference's refusal of what is too much."""
    wait = int(answer.headers["Retry-After"])
    assert 0 < wait <= PERIOD
    body = {"ok": False, "error": "Rate limit exceeded", "limit": limit, "period": PERIOD, "retry_after": wait}
    assert not (found := mismatch(body, answer.ok(429))), found
    assert answer.headers["X-RateLimit-Limit"] == str(limit)
    assert answer.headers["X-RateLimit-Remaining"] == "0"
    assert int(answer.headers["X-RateLimit-Reset"]) > 0


async def used_up(rest: Rest, method: str, path: str, limit: int, token: str = "") -> None:
    """Exactly so many requests pass, whatever they are answered; the next one does not."""
    for _ in range(limit):
        answer = await rest.call(method, f"/api/v3{path}", token=token)
        assert answer.status != 429, f"fewer than {limit}: {answer.text}"
    over(await rest.call(method, f"/api/v3{path}", token=token), limit)


async def test_requests_without_a_token_are_counted_by_address(
    make_gateway: MakeGateway, namespace: str, tmp_path: Path
) -> None:
    async with limited(make_gateway, tmp_path) as rest:
        await used_up(rest, "GET", "/status", PER_ADDRESS)
        over(await rest.get("/vm"), PER_ADDRESS)
        over(await rest.get("/nowhere"), PER_ADDRESS)
        # What nobody made up is not a way around: only tokens that exist have a count of their own.
        for invented in (UNKNOWN_TOKEN, "x", UNKNOWN_TOKEN[::-1]):
            over(await rest.get("/vm", token=invented), PER_ADDRESS)
        for path in ("/healthz", "/readyz", "/metrics", "/ping"):
            assert (await rest.call("GET", path)).status == 200, f"{path} must not be limited"


async def test_tokens_have_counts_of_their_own(make_gateway: MakeGateway, namespace: str, tmp_path: Path) -> None:
    async with limited(make_gateway, tmp_path) as rest:
        alice, bob = [await rest.new_token(user, PASSWORDS[user]) for user in (ALICE, BOB)]
        await used_up(rest, "GET", "/vm", PER_TOKEN, alice)
        (await rest.get("/vm", token=bob)).ok()
        (await rest.get("/vm")).ok()


async def test_creation_and_deletion_have_limits_of_their_own(
    make_gateway: MakeGateway, api: Api, namespace: str, tmp_path: Path
) -> None:
    more = {"VMPOOL_GATEWAY_RATE_PER_ADDRESS": "500"}
    async with limited(make_gateway, tmp_path, **more) as rest:
        alice, bob = [await rest.new_token(user, PASSWORDS[user]) for user in (ALICE, BOB)]
        scene = await scene_with(api, namespace, rest, web=Stock(ready=CREATION + 2))
        pool = scene.name("web")
        mine = [hosts(await rest.post(f"/vm/{pool}", token=alice))[0] for _ in range(CREATION)]
        over(await rest.post("/vm", {pool: 1}, token=alice), CREATION)
        over(await rest.post("/ondemandvm", {pool: 1}, token=alice), CREATION)
        over(await rest.post(f"/vm/{mine[0]}/snapshot", token=alice), CREATION)
        assert len(await scene.held(pool)) == CREATION
        (await rest.get("/vm", token=alice)).ok()
        assert hosts(await rest.post(f"/vm/{pool}", token=bob))
        for host in mine[:DELETION]:
            (await rest.delete(f"/vm/{host}", token=alice)).ok()
        over(await rest.delete(f"/vm/{mine[DELETION]}", token=alice), DELETION)
        assert len(await scene.held(pool)) == CREATION - DELETION + 1


async def test_wrong_passwords_are_limited(make_gateway: MakeGateway, namespace: str, tmp_path: Path) -> None:
    async with limited(make_gateway, tmp_path) as rest:
        for _ in range(PER_ADDRESS):
            (await rest.get("/token", basic=(ALICE, "guess"))).refused(401)
        over(await rest.get("/token", basic=(ALICE, PASSWORDS[ALICE])), PER_ADDRESS)


async def test_without_limits_nothing_is_counted(make_gateway: MakeGateway, namespace: str, tmp_path: Path) -> None:
    made = make_gateway(**static_settings(tmp_path))
    made.start()
    await made.ready()
    async with rest_client(made.url) as rest:
        for _ in range(150):
            answer = await rest.get("/vm")
            assert answer.ok() == []
            assert not [name for name in answer.headers if name.lower().startswith("x-ratelimit")]
