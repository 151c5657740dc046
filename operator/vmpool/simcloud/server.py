"""The cloud's HTTP API, version 1, as its tenants see it. ``admin`` has the other half.

==============================  ==============================================================================
request                         answer
==============================  ==============================================================================
GET /v1/identity                ``{identity, tokenMode}``; identity is ``<ledger id>/<tenant>``
POST /v1/machines               201 the machine; 200 the one that this ``token`` made before; 409 TokenReused for
                                another body under the same token; 410 TokenSpent when its machine is gone: a
                                token never makes a second machine; 422 for an unknown image;
                                403 QuotaExceeded; ``?dryRun=true`` checks the body and makes nothing (200)
GET /v1/machines/{id}           200 or 404
GET /v1/machines                ``{machines, next}``; ``limit``, ``page`` (a ``next``), ``tag=key=value`` (all hold,
                                the rarest first)
DELETE /v1/machines/{id}        202 while it runs; 200, state Gone, when done at once; 404 when it is gone; 412 without
                                effect when ``ifTag=key=value`` does not hold
PUT /v1/machines/{id}/tags      200 the machine; tags are merged
POST /v1/machines/{id}/power    ``{"power": "on"|"off"}``; 200 the machine
GET /healthz                    200, without a key
==============================  ==============================================================================

Names need not be unique. Without tokens (``tokenMode: none``, or a client that sends none) every create makes a
machine. Times are Unix seconds. Error codes are in ``answers`` and ``model.Refused``.
"""

import asyncio
import base64
import binascii
from collections import Counter
from collections.abc import Callable
from typing import Literal

from aiohttp import web

from vmpool.simcloud import faults
from vmpool.simcloud.answers import answer, bearer, body, json_errors, number, refusal, tag_pairs
from vmpool.simcloud.faults import Action, Occasion, Operation, Rule, Standing
from vmpool.simcloud.ledger import Ledger
from vmpool.simcloud.model import MAX_PAGE, Fate, Machine, MachineSpec, Refused, Shape, State, Tags

DEFAULT_PAGE = 100
MAX_BODY_BYTES = 256 * 1024
MAX_HANG_SECONDS = 3600.0
HANG_POLL_SECONDS = 0.1

Effect = Callable[[Rule | None], web.Response]


class PutTags(Shape):
    """Body of PUT tags."""

    tags: Tags


class PutPower(Shape):
    """Body of POST power."""

    power: Literal["on", "off"]


class Cloud:
    """The ledger, its fault rules, and what every request goes through."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.requests: Counter[str] = Counter()
        """Requests by operation, since this process started."""
        self._rules = {standing.id: standing for standing in ledger.rules()}

    def rules(self) -> list[Standing]:
        """Return the rules in force, in their order."""
        return list(self._rules.values())

    def add_rule(self, rule: Rule) -> Standing:
        """Put a rule behind the others."""
        standing = self.ledger.add_rule(rule)
        self._rules[standing.id] = standing
        return standing

    def remove_rules(self, rule_id: int | None = None) -> int:
        """Remove one rule, or all; return how many there were."""
        for gone in [rule_id] if rule_id is not None else list(self._rules):
            self._rules.pop(gone, None)
        return self.ledger.remove_rules(rule_id)

    def tenant(self, request: web.Request) -> str:
        """Return whose request this is. Raises Refused (401)."""
        tenant = self.ledger.tenant_of(bearer(request))
        if tenant is None:
            raise Refused(401, "Unauthorized", "the API key is unknown")
        return tenant

    async def serve(self, request: web.Request, occasion: Occasion, effect: Effect) -> web.StreamResponse:
        """Answer with ``effect``, unless a rule has other plans for this request."""
        self.requests[occasion.operation.value] += 1
        fired = self._draw(occasion)
        if fired is None:
            return effect(None)
        rule = fired.rule
        if rule.refuses:
            return _injected(fired)
        if rule.when == "before":
            await _pause(request, rule)
        response = effect(rule)
        if rule.when == "after":
            await _pause(request, rule)
        if rule.fails_after:
            return _injected(fired)
        if rule.action is Action.REPLY_LOST:
            _cut(request)
        return response

    def _draw(self, occasion: Occasion) -> Standing | None:
        if not self._rules:
            return None
        draw = faults.draw(self.rules(), occasion)
        if draw.changed:
            self.ledger.count_rules(draw.changed)
            self._rules.update((standing.id, standing) for standing in draw.changed)
        return draw.fired


class Machines:
    """Handlers of the tenants' API."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._ledger = cloud.ledger

    def routes(self) -> list[web.RouteDef]:
        """Return what to add to the application."""
        return [
            web.get("/v1/identity", self.identity),
            web.post("/v1/machines", self.create),
            web.get("/v1/machines", self.page),
            web.get("/v1/machines/{id}", self.get),
            web.get("/v1/machines/{id}/console", self.console),
            web.delete("/v1/machines/{id}", self.delete),
            web.put("/v1/machines/{id}/tags", self.put_tags),
            web.post("/v1/machines/{id}/power", self.power),
        ]

    async def identity(self, request: web.Request) -> web.StreamResponse:
        """Tell the tenant where it is."""
        tenant = self._cloud.tenant(request)
        document = {
            "identity": f"{self._ledger.id}/{tenant}",
            "tokenMode": self._ledger.settings.token_mode,
        }
        return await self._cloud.serve(request, Occasion(Operation.IDENTITY, tenant), lambda _: answer(document))

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Make a machine."""
        tenant = self._cloud.tenant(request)
        spec = await body(request, MachineSpec)
        settings = self._ledger.settings
        if not settings.has_image(spec.image):
            known = ", ".join(settings.images)
            raise Refused(422, "UnknownImage", f"image {spec.image!r} is unknown here; known are {known}, sim/*")
        if request.query.get("dryRun") == "true":
            return answer({"valid": True})

        def effect(rule: Rule | None) -> web.Response:
            machine, made = self._ledger.create(tenant, spec, rule.fate() if rule else Fate())
            if machine is None:
                return answer({})
            return _shown(machine, 201 if made else 200)

        occasion = Occasion(Operation.CREATE, tenant, spec.name, spec.image, spec.tags)
        return await self._cloud.serve(request, occasion, effect)

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Show one machine."""
        return await self._on_machine(request, Operation.GET, _shown)

    async def console(self, request: web.Request) -> web.StreamResponse:
        """Show what a machine has printed."""
        return await self._on_machine(
            request, Operation.CONSOLE, lambda machine: answer({"console": machine.console(self._ledger.now())})
        )

    async def put_tags(self, request: web.Request) -> web.StreamResponse:
        """Merge tags into a machine's."""
        self._cloud.tenant(request)
        tags = (await body(request, PutTags)).tags
        return await self._on_machine(
            request, Operation.TAGS, lambda machine: _shown(self._ledger.put_tags(machine, tags))
        )

    async def power(self, request: web.Request) -> web.StreamResponse:
        """Switch a machine on or off."""
        self._cloud.tenant(request)
        on = (await body(request, PutPower)).power == "on"
        return await self._on_machine(
            request, Operation.POWER, lambda machine: _shown(self._ledger.power(machine, on=on))
        )

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """Start or follow a deletion."""
        tenant = self._cloud.tenant(request)
        machine_id = request.match_info["id"]
        needed = tag_pairs(request, "ifTag")

        def effect(rule: Rule | None) -> web.Response:
            machine = self._existing(tenant, machine_id)
            if not set(needed) <= machine.tag_map().items():
                raise Refused(412, "PreconditionFailed", f"machine {machine_id} does not have that tag")
            never_ends = rule is not None and rule.action is Action.NEVER_GONE
            now = self._ledger.delete(machine, never_ends=never_ends)
            shown = now.document(self._ledger.now())
            return answer(shown, 200 if shown["state"] is State.GONE else 202)

        return await self._cloud.serve(request, self._occasion(Operation.DELETE, tenant, machine_id), effect)

    async def page(self, request: web.Request) -> web.StreamResponse:
        """List machines, a page of them."""
        tenant = self._cloud.tenant(request)
        tags = tag_pairs(request, "tag")
        limit = number(request, "limit", DEFAULT_PAGE, MAX_PAGE)
        after = _page_number(request.query.get("page"))

        def effect(rule: Rule | None) -> web.Response:
            action = rule.action if rule else None
            if action is Action.EMPTY_LIST:
                return answer({"machines": [], "next": None})
            lag = rule.seconds if rule and action is Action.LIST_LAG else 0.0
            found = self._ledger.page(tenant, tags, after, limit + 1, lag)
            more = len(found) > limit and action is not Action.PARTIAL_LIST
            shown = found[:limit]
            now = self._ledger.now()
            return answer(
                {
                    "machines": [machine.document(now) for machine in shown],
                    "next": _page_name(shown[-1].seq) if more else None,
                }
            )

        occasion = Occasion(Operation.LIST, tenant, tags=dict(tags))
        return await self._cloud.serve(request, occasion, effect)

    async def _on_machine(
        self, request: web.Request, operation: Operation, act: Callable[[Machine], web.Response]
    ) -> web.StreamResponse:
        """Answer a request about one machine with ``act``; 404 when it is not there."""
        tenant = self._cloud.tenant(request)
        machine_id = request.match_info["id"]

        def effect(rule: Rule | None) -> web.Response:
            if rule is not None and rule.action is Action.VANISH:
                self._ledger.vanish(self._existing(tenant, machine_id), rule.seconds)
            return act(self._existing(tenant, machine_id))

        return await self._cloud.serve(request, self._occasion(operation, tenant, machine_id), effect)

    def _occasion(self, operation: Operation, tenant: str, machine_id: str) -> Occasion:
        machine = self._ledger.get(tenant, machine_id)
        if machine is None:
            return Occasion(operation, tenant)
        return Occasion(operation, tenant, machine.name, machine.image, machine.tag_map())

    def _existing(self, tenant: str, machine_id: str) -> Machine:
        machine = self._ledger.get(tenant, machine_id)
        if machine is None:
            raise Refused(404, "MachineNotFound", f"machine {machine_id:.80} does not exist")
        return machine


async def healthz(_: web.Request) -> web.StreamResponse:
    """Say that the process serves."""
    return answer({"status": "ok"})


def make_app(routes: list[web.RouteDef]) -> web.Application:
    """Return the application."""
    app = web.Application(middlewares=[json_errors], client_max_size=MAX_BODY_BYTES)
    app.add_routes([web.get("/healthz", healthz), *routes])
    return app


def _shown(machine: Machine, status: int = 200) -> web.Response:
    return answer(machine.document(Ledger.now()), status)


def _injected(fired: Standing) -> web.Response:
    rule = fired.rule
    message = f"injected by fault rule {fired.id}"
    return refusal(Refused(rule.answer_status, rule.answer_code, message, rule.retry_after))


async def _pause(request: web.Request, rule: Rule) -> None:
    if rule.action is Action.SLOW and rule.match.step is None:
        await asyncio.sleep(rule.seconds)
    elif rule.action is Action.HANG:
        await _hang(request)


async def _hang(request: web.Request) -> None:
    """Stay silent until the client has had enough."""
    end = asyncio.get_running_loop().time() + MAX_HANG_SECONDS
    while request.transport is not None and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110
        # aiohttp has no event for a client that hangs up, only a transport that is no longer there
        await asyncio.sleep(HANG_POLL_SECONDS)
    raise Refused(504, "Hung", "nobody waits for this answer")


def _cut(request: web.Request) -> None:
    """Close the connection in the middle: the client sees a reset instead of the answer."""
    if request.transport is not None:
        request.transport.abort()


def _page_name(seq: int) -> str:
    return base64.urlsafe_b64encode(f"after:{seq}".encode()).decode()


def _page_number(page: str | None) -> int:
    if page is None:
        return 0
    try:
        word, _, seq = base64.urlsafe_b64decode(page).decode().partition(":")
        if word == "after":
            return int(seq)
    except (binascii.Error, ValueError):
        pass
    raise Refused(400, "InvalidQuery", "page is not one that this cloud gave out")
