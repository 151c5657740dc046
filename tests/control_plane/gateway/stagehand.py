"""Brings a gateway into the state that a contract row needs, sends the row's request and judges the answer."""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.api import Api, Json
from tests.control_plane.gateway.scene import DEADLINE, DOMAIN, Scene, Stock, is_held, sees
from tests.control_plane.gateway.shapes import ANYTHING, NO_BODY, Text, fill, filled, mismatch
from tests.control_plane.gateway.table import ALICE, PASSWORDS, WRONG, Before, Held, Patch, Row
from tests.objects import claim, thing
from tests.rest import NOTHING, Rest, RestAnswer, hosts, short
from tests.waiting import until
from vmpool.api import keys

UNKNOWN_TOKEN = "thistokenisnobodysandneverwas0123"


class Names(dict[str, str]):
    """What stands for ``<name>``; a plain word that nobody has set is a name of the scene's own."""

    def __init__(self, scene: Scene) -> None:
        today = datetime.now(UTC).date()
        super().__init__(
            ns=scene.namespace,
            tag=scene.tag,
            id=f"request-{scene.tag}",
            today=today.isoformat(),
            yesterday=(today - timedelta(days=1)).isoformat(),
            tomorrow=(today + timedelta(days=1)).isoformat(),
        )
        self._scene = scene

    def __missing__(self, key: str) -> str:
        if "." in key or "-" in key:
            raise KeyError(key)
        return self._scene.name(key)


class Stagehand:
    """One row on one gateway. ``tokens`` has the users' tokens; it is empty where there are no users."""

    def __init__(self, rest: Rest, scene: Scene, tokens: Mapping[str, str]) -> None:
        self.rest = rest
        self.scene = scene
        self.tokens = tokens
        self.names = Names(scene)
        self.names.update({f"token-{user}": token for user, token in tokens.items()})

    async def prepare(self, row: Row) -> None:
        """Make pools and VMs, check VMs out, send what comes before."""
        for key, stock in row.pools.items():
            spec = filled(dict(stock.spec), self.names)
            await self.scene.pool(key, Stock(stock.ready, stock.pending, stock.completed, spec))
        if row.pools:
            await self._shown(row.pools)
        for key, held in row.vms.items():
            await self._hold(key, held)
        for key in row.pools:
            await self._name_free_ones(key)
        for step in row.before:
            if isinstance(step, Patch):
                await self._patch(step)
            else:
                await self._do(step)

    async def send(self, row: Row) -> RestAnswer:
        """Send the row's request."""
        return await self._call(row.method, row.path, row.body, row.who, row.basic, raw=row.raw, headers=row.sent)

    async def judge(self, row: Row, answer: RestAnswer) -> None:
        """Fail unless the answer is the row's, and as many VMs are held as it says."""
        assert answer.status == row.status, f"{answer.status} instead of {row.status}: {answer.content[:600]!r}"
        for name, wanted in row.headers.items():
            value = answer.headers.get(name)
            assert value is not None, f"no header {name} in {dict(answer.headers)}"
            assert value == wanted or re.fullmatch(wanted, value), f"{name}: {value!r} is not {wanted!r}"
        self._judge_body(row, answer)
        for key, count in row.taken.items():
            held = [vm["metadata"]["name"] for vm in await self.scene.held(self.scene.name(key))]
            assert len(held) == count, f"somebody has {held} of {key}, expected {count}"

    def _judge_body(self, row: Row, answer: RestAnswer) -> None:
        shape = filled(row.shape, self.names)
        if answer.status >= 400:
            answer.hides_internals()
        if shape is NO_BODY:
            assert answer.content == b""
        elif isinstance(shape, Text):
            assert answer.text.strip() == shape.words
        elif shape is not ANYTHING:
            found = mismatch(shape, answer.body)
            assert not found, f"{found}\n{answer.text[:1500]}"
            assert answer.headers["Content-Type"].split(";")[0] == "application/json"
            assert answer.text.strip() == json.dumps(answer.body, indent=2, ensure_ascii=False), "not indented"

    # --- state --------------------------------------------------------------------------------------------------

    async def _shown(self, pools: Mapping[str, Stock]) -> None:
        """Wait until the gateway sees the pools with all their VMs, those that are not ready too."""

        async def shown() -> bool:
            told = (await self.rest.get("/status?view=pools")).ok()["pools"]
            return all(self._complete(told, key, stock) for key, stock in pools.items())

        await until(shown, deadline=DEADLINE, what="the gateway sees the row's pools")

    def _complete(self, told: Json, key: str, stock: Stock) -> bool:
        name = fill(str(stock.spec.get("restName", "")), self.names) or self.scene.name(key)
        return name in told and (told[name]["ready"], told[name]["pending"]) == (stock.ready, stock.pending)

    async def _hold(self, key: str, held: Held) -> None:
        token = self.tokens.get(held.by, "")
        (host,) = hosts(await self.rest.post(f"/vm/{self.names[held.pool]}", token=token))
        name = short(host)
        assert host == f"{name}.{DOMAIN}"
        self.names.update({key: name, f"{key}.upper": name.upper()})
        if held.released:
            (await self.rest.delete(f"/vm/{name}", token=token)).ok()
        if held.phase:
            await self.scene.phase(name, held.phase)

    async def _name_free_ones(self, key: str) -> None:
        vms = await self.scene.of(self.scene.name(key))
        ready = [vm for vm in vms if vm["status"]["phase"] == "Ready" and not vm["spec"].get("claim")]
        for number, vm in enumerate(ready):
            self.names[f"{key}.{number}"] = vm["metadata"]["name"]
        for vm in vms:
            if vm["status"]["phase"] == "Pending":
                self.names[f"{key}.pending"] = vm["metadata"]["name"]

    async def _do(self, step: Before) -> None:
        answer = await self._call(step.method, step.path, step.body, step.who, step.basic)
        assert answer.status < 300, f"{step.method} {step.path} before the row: {answer.status} {answer.content!r}"
        for key, name in step.keep.items():
            self.names[name] = str(answer.body[key])

    async def _call(self, method: str, path: str, body: Any, who: str, basic: str, **more: Any) -> RestAnswer:
        token = "" if basic else self._token(who)
        login = (ALICE if basic == WRONG else basic, PASSWORDS.get(basic, "wrong password")) if basic else None
        sent = body if body is NOTHING else filled(body, self.names)
        return await self.rest.call(method, fill(path, self.names), sent, token=token, basic=login, **more)

    def _token(self, who: str) -> str:
        if who == WRONG:
            return UNKNOWN_TOKEN
        # The name of a token that was made before the row, or a user's.
        return self.names[who] if who and who in self.names else self.tokens.get(who, "")

    # --- what the operator would do -----------------------------------------------------------------------------

    async def _patch(self, step: Patch) -> None:
        found = await self._request(fill(step.request_id, self.names))
        status = dict(step.status)
        if step.bind:
            status["vms"] = await self._bind(found, self.scene.name(step.bind))
        name = found["metadata"]["name"]
        (await self.scene.claims.merge(name, {"status": status}, "status")).ok()
        await self._heard(found)

    async def _request(self, request_id: str) -> Json:
        """The VMClaim behind an on-demand request."""
        items = (await self.scene.claims.list(labelSelector=keys.LABEL_ONDEMAND)).ok()["items"]
        (found,) = [
            one
            for one in items
            if json.loads(one["metadata"]["annotations"][keys.ANNOTATION_ONDEMAND])["id"] == request_id
        ]
        return dict(found)

    async def _bind(self, found: Json, pool: str) -> list[Json]:
        """Give the pool's free VMs to a VMClaim; return what its status says of them."""
        vms = []
        free = [vm for vm in await self.scene.of(pool) if not is_held(vm) and vm["status"]["phase"] == "Ready"]
        for slot, vm in enumerate(free):
            meta = found["metadata"]
            ref = {"namespace": self.scene.namespace, "name": meta["name"], "uid": meta["uid"], "kindUid": "kind-uid"}
            owner = found["spec"]["requester"]
            held = claim(meta["uid"], owner=owner, ref=ref, slot=slot, boundAt=moment(0), expiresAt=moment(3600))
            (await self.scene.vms.merge(vm["metadata"]["name"], {"spec": {"claim": held}})).ok()
            name = vm["metadata"]["name"]
            of = {"slot": slot, "uid": vm["metadata"]["uid"], "name": name, "namespace": self.scene.namespace}
            vms.append({**of, "pool": pool, "hostName": f"{name}.{DOMAIN}", "address": "192.0.2.1"})

        async def seen() -> bool:
            told = (await self.rest.get("/status?view=pools")).ok()["pools"][pool]
            return bool(told["running"] == len(vms))

        await until(seen, deadline=DEADLINE, what="the gateway sees the bound VMs")
        return vms

    async def _heard(self, found: Json) -> None:
        """Wait until the gateway's watch of VMClaims is past everything written so far: it shows a later one."""
        told = json.loads(found["metadata"]["annotations"][keys.ANNOTATION_ONDEMAND])
        later = f"later-{datetime.now(UTC).timestamp()}"
        body = thing("VMClaim", f"od-{hashlib.sha256(later.encode()).hexdigest()[:40]}", found["spec"])
        body["metadata"] |= {
            "labels": found["metadata"]["labels"],
            "annotations": {keys.ANNOTATION_ONDEMAND: json.dumps({**told, "id": later})},
        }
        (await self.scene.claims.create(body)).ok()

        async def shown() -> bool:
            return (await self.rest.get(f"/ondemandvm/{later}")).status != 404

        await until(shown, deadline=DEADLINE, what="the gateway sees a later VMClaim")


def moment(seconds: float) -> str:
    """A time so many seconds from now, as the API writes it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="microseconds").replace("+00:00", "Z")


async def scene_with(api: Api, namespace: str, rest: Rest, **stocks: Stock) -> Scene:
    """A scene whose pools the gateway sees."""
    scene = Scene(api, namespace)
    for key, stock in stocks.items():
        await scene.pool(key, stock)
    await sees(rest, {scene.name(key): stock.ready for key, stock in stocks.items()})
    return scene
