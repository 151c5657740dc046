"""The cloud's API for those who test against it: fault rules, settings, tenants, and the whole truth.

=======================================  ======================================================================
request (with the admin key)             answer
=======================================  ======================================================================
POST /v1/faults                          201 the rule with its id, ``seen`` and ``fired``; the body is a ``Rule``
GET /v1/faults                           ``{faults}``
DELETE /v1/faults, /v1/faults/{id}       204
GET /v1/settings                         the settings
PUT /v1/settings                         the settings, with the given fields replaced
PUT /v1/tenants/{name}                   204; the body is ``{"key": ...}``
GET /v1/ledger                           every machine ever made, parts that leak, high-water marks, owners with
                                         more than one machine, requests by operation; ``?machines=false``
                                         leaves out the machines
POST /v1/ledger/{id}/vanish|fail|revive  204; changes the fate of a machine
=======================================  ======================================================================

Without an admin key none of this is there.
"""

import hmac
from collections.abc import Callable
from typing import Any

from aiohttp import web

from vmpool.simcloud import witness
from vmpool.simcloud.answers import Handler, answer, bearer, body, document, parse
from vmpool.simcloud.faults import Rule, Standing
from vmpool.simcloud.model import Machine, Name, Refused, Shape, State
from vmpool.simcloud.server import Cloud


class PutTenant(Shape):
    """Body of PUT tenants."""

    key: Name


class Admin:
    """Handlers of the admin API."""

    def __init__(self, cloud: Cloud, key: str) -> None:
        self._cloud = cloud
        self._ledger = cloud.ledger
        self._key = key.encode()

    def routes(self) -> list[web.RouteDef]:
        """Return what to add to the application."""
        return [
            web.post("/v1/faults", self._guarded(self.add_fault)),
            web.get("/v1/faults", self._guarded(self.list_faults)),
            web.delete("/v1/faults", self._guarded(self.remove_faults)),
            web.delete(r"/v1/faults/{id:\d{1,9}}", self._guarded(self.remove_faults)),
            web.get("/v1/settings", self._guarded(self.show_settings)),
            web.put("/v1/settings", self._guarded(self.put_settings)),
            web.put("/v1/tenants/{name}", self._guarded(self.put_tenant)),
            web.get("/v1/ledger", self._guarded(self.show_ledger)),
            web.post("/v1/ledger/{id}/{fate:vanish|fail|revive}", self._guarded(self.change_fate)),
        ]

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            if not hmac.compare_digest(bearer(request).encode(), self._key):
                raise Refused(401, "Unauthorized", "this is not the admin key")
            return await handler(request)

        return guarded

    async def add_fault(self, request: web.Request) -> web.StreamResponse:
        """Put a rule behind the others."""
        return answer(_shown(self._cloud.add_rule(await body(request, Rule))), 201)

    async def list_faults(self, _: web.Request) -> web.StreamResponse:
        """Show the rules and what they have seen."""
        return answer({"faults": [_shown(standing) for standing in self._cloud.rules()]})

    async def remove_faults(self, request: web.Request) -> web.StreamResponse:
        """Remove one rule, or all."""
        rule_id = request.match_info.get("id")
        if not self._cloud.remove_rules(int(rule_id) if rule_id else None) and rule_id:
            raise Refused(404, "NotFound", f"there is no fault rule {rule_id}")
        return web.Response(status=204)

    async def show_settings(self, _: web.Request) -> web.StreamResponse:
        """Show how the cloud behaves."""
        return answer(self._ledger.settings.model_dump(mode="json", by_alias=True))

    async def put_settings(self, request: web.Request) -> web.StreamResponse:
        """Change how the cloud behaves from now on."""
        given = await document(request)
        if not isinstance(given, dict):
            raise Refused(422, "InvalidRequest", "settings are an object")
        self._ledger.put_settings(parse(self._ledger.settings.changed, given))
        return await self.show_settings(request)

    async def put_tenant(self, request: web.Request) -> web.StreamResponse:
        """Add a tenant, or give it another key."""
        self._ledger.put_tenant(request.match_info["name"], (await body(request, PutTenant)).key)
        return web.Response(status=204)

    async def show_ledger(self, request: web.Request) -> web.StreamResponse:
        """Show the whole truth, or with ``tenant`` that about one of them."""
        now, tenant = self._ledger.now(), request.query.get("tenant")
        machines = self._ledger.history(tenant)
        alive = sum(machine.state(now) is not State.GONE for machine in machines)
        truth: dict[str, Any] = {
            "id": self._ledger.id,
            "now": now,
            "tenants": self._ledger.tenants(),
            "made": len(machines),
            "alive": alive,
            "highWater": witness.high_water(machines),
            "owners": witness.owners(machines),
            "leaked": witness.leaked(self._ledger.parts(tenant), machines, now),
            "requests": dict(self._cloud.requests),
        }
        if request.query.get("machines") != "false":
            truth["machines"] = [machine.history(now) for machine in machines]
        return answer(truth)

    async def change_fate(self, request: web.Request) -> web.StreamResponse:
        """Let a machine vanish, fail, or be there again."""
        machine = self._ledger.any_machine(request.match_info["id"])
        if machine is None:
            raise Refused(404, "MachineNotFound", "the ledger has no such machine")
        fates: dict[str, Callable[[Machine], None]] = {
            "vanish": self._ledger.vanish,
            "fail": lambda machine: self._ledger.fail(machine, "failed by hand"),
            "revive": self._ledger.revive,
        }
        fates[request.match_info["fate"]](machine)
        return web.Response(status=204)


def _shown(standing: Standing) -> dict[str, Any]:
    rule = standing.rule.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {"id": standing.id, **rule, "seen": standing.seen, "fired": standing.fired}
