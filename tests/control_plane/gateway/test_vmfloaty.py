"""A day with vmfloaty: the requests that the client sends, in its order, and what it reads from the answers."""

from pathlib import Path

import pytest

from tests.api import Api
from tests.control_plane.gateway.scene import DOMAIN, Scene, Stock, sees
from tests.control_plane.gateway.table import ALICE, BOB, PASSWORDS
from tests.control_plane.gateway.users import static_settings
from tests.gateways import MakeGateway
from tests.rest import Rest, rest_client, short

pytestmark = pytest.mark.control_plane

LOGIN = (ALICE, PASSWORDS[ALICE])
TYPED = {"Content-Type": "application/x-www-form-urlencoded"}
"""What the client's HTTP library sends with bodies that it has put together itself."""


class Floaty:
    """The client's side: how it asks, and what it makes of the answer. It prints an error unless ``ok`` is true."""

    def __init__(self, rest: Rest, token: str = "") -> None:
        self._rest = rest
        self.token = token

    async def token_get(self) -> None:
        """``floaty token get``."""
        self.token = (await self._rest.post("/token", basic=LOGIN)).ok()["token"]

    async def get(self, **pools: int) -> dict[str, list[str]]:
        """``floaty get web=2 other``: the path is ``web+web+other``, the body empty."""
        path = "+".join(name for name, count in pools.items() for _ in range(count))
        answer = await self._rest.call("POST", f"/api/v3/vm/{path}", token=self.token, headers=TYPED, raw=b"")
        body = answer.ok()
        assert body["ok"] is True
        # With a key "domain" it would take the server for a version 1, and append it.
        assert "domain" not in body
        assert set(body) == {"ok", *pools}
        found = {}
        for name in pools:
            given = body[name]["hostname"]
            found[name] = given if isinstance(given, list) else [given]
        return found

    async def listed(self) -> set[str]:
        """``floaty list --active``: the short names under the token, each looked up for its full name."""
        told = (await self._rest.get(f"/token/{self.token}")).ok()[self.token]
        assert told["user"] == ALICE
        names = told.get("vms", {}).get("running", [])
        return {(await self.query(name))["fqdn"] for name in names}

    async def refused(self, path: str) -> str:
        """``floaty snapshot`` and others that are not there yet: the reason, which the client prints."""
        answer = await self._rest.post(path, token=self.token)
        assert "ok" in answer.body
        return answer.refused(501)

    async def query(self, host: str) -> dict[str, object]:
        """``floaty query``."""
        body = (await self._rest.get(f"/vm/{host}")).ok()
        assert body["ok"] is True
        found: dict[str, object] = body[short(host)]
        return found


async def test_a_day_with_vmfloaty(make_gateway: MakeGateway, api: Api, namespace: str, tmp_path: Path) -> None:
    made = make_gateway(**static_settings(tmp_path))
    made.start()
    await made.ready()
    scene = Scene(api, namespace)
    web = await scene.pool("web", Stock(ready=3, spec={"aliases": ["debian"]}))
    other = await scene.pool("other", Stock(ready=2))
    async with rest_client(made.url) as rest:
        await sees(rest, {web: 3, other: 2})
        floaty = Floaty(rest)

        # floaty list: every pool, and those that match a word.
        assert (await rest.get("/vm")).ok() == sorted([other, web])
        # floaty get without a token, before floaty token get.
        assert (await rest.post(f"/vm/{web}")).refused(401) is not None
        await floaty.token_get()
        assert await floaty.listed() == set()
        # floaty get web=2 other
        got = await floaty.get(**{web: 2, other: 1})
        hosts = {host for given in got.values() for host in given}
        assert len(hosts) == 3
        assert all(host.endswith(f".{DOMAIN}") for host in hosts)
        assert await floaty.listed() == hosts
        # floaty modify --lifetime 12 --tags, then query
        first, second = got[web]
        change = {"lifetime": 12, "tags": {"project": "x"}}
        assert (await rest.put(f"/vm/{short(first)}", change, token=floaty.token)).ok() == {"ok": True}
        told = await floaty.query(first)
        assert (told["lifetime"], told["tags"], told["template"], told["state"]) == (
            12,
            {"project": "x"},
            web,
            "running",
        )
        # floaty modify --disk, snapshot, revert: a reason, and no success
        assert all(
            [await floaty.refused(f"/vm/{short(first)}/{what}") for what in ("disk/8", "snapshot", "snapshot/a")]
        )
        # floaty status, floaty summary
        status = (await rest.get("/status")).ok()
        assert status["status"]["ok"] is True
        assert status["status"]["message"] == "Battle station fully armed and operational."
        assert status["capacity"] == {"current": 2, "total": 5, "percent": 40.0}
        assert status["queue"]["running"] == 3
        assert status["pools"][web]["alias"] == ["debian"]
        assert (await rest.get("/summary")).ok()["daily"]
        # floaty get of an alias, and of more than there are
        assert set(await floaty.get(debian=1)) == {"debian"}
        empty = await rest.post(f"/vm/{web}+{other}", token=floaty.token)
        assert empty.refused(503)
        assert len(await floaty.listed()) == 4
        # Somebody else's token changes nothing.
        bob = await rest.new_token(BOB, PASSWORDS[BOB])
        assert (await rest.delete(f"/vm/{short(first)}", token=bob)).refused(403)
        # floaty delete one, then floaty delete --all -f
        assert (await rest.delete(f"/vm/{short(second)}", token=floaty.token)).ok() == {"ok": True}
        assert second not in await floaty.listed()
        for host in await floaty.listed():
            assert (await rest.delete(f"/vm/{short(host)}", token=floaty.token)).ok() == {"ok": True}
        assert await floaty.listed() == set()
        assert not await scene.held(web)
        # floaty get --ondemand: 201, then polled while it is 202
        asked = (await rest.post(f"/ondemandvm/{web}+{web}", token=floaty.token)).ok(201)
        waiting = (await rest.get(f"/ondemandvm/{asked['request_id']}", token=floaty.token)).ok(202)
        assert waiting["ready"] is False
        assert waiting[web] == {"ready": "0", "pending": "2"}
        # floaty token status, floaty token delete
        assert (await rest.get(f"/token/{floaty.token}")).ok()["ok"] is True
        assert (await rest.delete(f"/token/{floaty.token}", basic=LOGIN)).ok() == {"ok": True}
        (await rest.get(f"/token/{floaty.token}")).refused(404)
        (await rest.post(f"/vm/{other}", token=floaty.token)).refused(401)
