"""The pools' configuration over REST: shown to all, changed by those who have the verb ``update`` on the pool.

A change is written into the VMPool itself, so the operator and everybody else see it. Whoever else writes that field,
a GitOps tool for example, wins in the end.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from vmpool.api import keys
from vmpool.api.conditions import ConditionType, find
from vmpool.api.pool import MAX_REPLICAS, template_digest
from vmpool.gateway import audit, overrides
from vmpool.gateway.answers import Answer, Json, Refusal, bad_request, forbidden, not_found, unavailable
from vmpool.gateway.bodies import read_object
from vmpool.gateway.context import Call, Gateway
from vmpool.gateway.overrides import CLONE_TARGET, POOL_SIZE, POOL_TEMPLATE, Override, Step
from vmpool.gateway.requested import shown
from vmpool.gateway.routes import OK, REFUSED, Parameter, Route, Schema
from vmpool.gateway.schemas import TEXT, TEXTS, record, refused, table
from vmpool.gateway.status import named_pools, size
from vmpool.kube.errors import Conflict, Invalid, KubeError, NotFound
from vmpool.kube.kinds import VMPOOLS
from vmpool.plan.snapshot import PoolFacts

TRIES = 3
"""How often a change is decided anew when somebody else has written the pool in between."""
MAX_IMAGE = 253
DISABLED = "the configuration endpoints are switched off: VMPOOL_GATEWAY_CONFIG_ENDPOINTS"
SHOWN_SETTINGS = (
    "site_name",
    "auth",
    "authorization",
    "config_endpoints",
    "rate_limits",
    "rate_period_seconds",
    "rate_per_address",
    "rate_per_token",
    "rate_creation",
    "rate_deletion",
    "count_max",
    "ondemand_max",
    "ondemand_seconds",
    "allowed_tags",
    "tag_filters",
)
"""Of the gateway's own: what a user may need to know, and nothing that leads to a secret."""


@dataclass(frozen=True, slots=True)
class Change:
    """One of the endpoints that change pools."""

    refused_as: str
    """Under which key the reference lists the names that it refuses."""
    check: Callable[[PoolFacts, Any], str]
    """Say what is wrong with a value for a pool; empty when nothing is."""
    step: Callable[[Json, Any], Step]
    """Return what to write."""
    action: str


# --- reading ------------------------------------------------------------------------------------------------------


async def show_config(call: Call) -> Answer:
    """GET config: what each pool is made of, in the reference's words."""
    pools = [_described(name, pool) for name, pool in named_pools(call.gateway)]
    return Answer({"pool_configuration": pools, "status": {"ok": True}})


async def show_full_config(call: Call) -> Answer:
    """GET full_config: the same in our own words, and the gateway's settings; nothing that is secret, or may be."""
    await call.caller()
    gateway = call.gateway
    settings = {name: getattr(gateway.own, name) for name in SHOWN_SETTINGS}
    pools = [
        {"name": name, "namespace": pool.namespace, "pool": pool.name, "spec": _spec(pool)}
        for name, pool in named_pools(gateway)
    ]
    return Answer({"full_config": {"config": settings, "pools": pools}, "status": {"ok": True}})


def _described(name: str, pool: PoolFacts) -> Json:
    spec = pool.spec
    targets = [one.name for one in spec.providers if one.weight]
    made: Json = {
        "name": name,
        "template": spec.template.image,
        "size": size(pool),
        "max_vms": spec.max_vms,
        "timeout": _minutes(spec.readiness.timeout.total_seconds()),
        "ready_ttl": _minutes(spec.recycle.ready_ttl.total_seconds()) if spec.recycle.ready_ttl else 0,
        "clone_target": ",".join(targets),
        "namespace": pool.namespace,
        "pool": pool.name,
        "template_ready": _template_ready(pool),
    }
    if spec.aliases:
        made["alias"] = list(spec.aliases)
    if spec.host_name.domain:
        made["domain"] = spec.host_name.domain
    return made


def _minutes(seconds: float) -> float | int:
    minutes = round(seconds / 60, 2)
    return int(minutes) if minutes == int(minutes) else minutes


def _template_ready(pool: PoolFacts) -> bool:
    """Whether the operator works with the present template, and nothing says that it cannot be used."""
    stalled = find(pool.status.conditions, ConditionType.STALLED)
    known = pool.status.template_digest == template_digest(pool.spec.template)
    return known and not (stalled is not None and stalled.status == "True")


def _spec(pool: PoolFacts) -> Json:
    spec = pool.spec.wire()
    # Values for the provider may be user data with passwords in it.
    spec["template"].pop("parameters", None)
    return spec


# --- changing -----------------------------------------------------------------------------------------------------


def _size_problem(pool: PoolFacts, value: Any) -> str:
    number = _whole(value)
    most = min(MAX_REPLICAS, pool.spec.max_vms)
    if number is None or not 0 <= number <= most:
        return f"the size must be a number from 0 to {most}, is {shown(value)}"
    return ""


def _template_problem(_: PoolFacts, value: Any) -> str:
    good = isinstance(value, str) and 1 <= len(value) <= MAX_IMAGE and value.isprintable()
    if not good or value[0] == "/" or value[-1] == "/":
        return f"a template is 1 to {MAX_IMAGE} characters with no slash at either end, is {shown(value)}"
    return ""


def _target_problem(pool: PoolFacts, value: Any) -> str:
    known = [one.name for one in pool.spec.providers]
    return "" if value in known else f"the clone target must be one of {', '.join(known)}, is {shown(value)}"


def _whole(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    # Bounded, because Python refuses to read thousands of digits.
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10 else None


SIZE = Change(
    "not_configured", _size_problem, lambda raw, value: overrides.change(raw, POOL_SIZE, _whole(value)), "poolsize"
)
TEMPLATE = Change(
    "bad_templates", _template_problem, lambda raw, value: overrides.change(raw, POOL_TEMPLATE, value), "pooltemplate"
)
TARGET = Change(
    "bad_templates",
    _target_problem,
    lambda raw, value: overrides.change(raw, CLONE_TARGET, overrides.only_target(raw, value)),
    "clonetarget",
)


def _changing(change: Change) -> Callable[[Call], Awaitable[Answer]]:
    """Return the handler of a POST: 405, 401, 400 bad JSON, 404 null, 400 bad names or values, 403, in this order."""

    async def handle(call: Call) -> Answer:
        await _enter(call)
        wanted = _object(await call.json())
        pools = await _pools(call, wanted, change.check, change.refused_as)
        changed = False
        for name, pool in pools.items():
            decide = partial(_decided, change, wanted[name])
            step = await _write(call.gateway, pool, decide, change, name)
            if step.patch is not None:
                audit.record(call, change.action, pool=pool, before=step.present, after=wanted[name])
            changed = changed or step.patch is not None
        return Answer({"ok": True}, 201 if changed else 200)

    return handle


def _decided(change: Change, value: Any, raw: Json) -> Step:
    return change.step(raw, value)


def _restoring(override: Override, key: str) -> Callable[[Call], Awaitable[Answer]]:
    """Return the handler of a DELETE: 405, 401, 404, 403, in this order."""

    async def handle(call: Call) -> Answer:
        await _enter(call)
        name = call.path["pool"]
        pool = await _may_change(call, name, _own(call.gateway, name))
        if pool is None:
            raise not_found(f"there is no pool {shown(name)}")
        step = await _write(call.gateway, pool, lambda raw: overrides.restore(raw, override), None, name)
        if step.patch is not None:
            audit.record(call, f"{override.name}-reset", pool=pool, before=step.present, after=step.original)
        answer = {
            "ok": True,
            f"{key}_before_reset": _told(step.present, pool),
            f"{key}_before_overrides": _told(step.original, pool),
        }
        return Answer(answer, 200 if step.patch is None else 201)

    return handle


async def reset_pools(call: Call) -> Answer:
    """POST poolreset: all VMs that nobody has are made anew. 405, 401, 400, 404 null, 400 bad pools, 403."""
    await _enter(call)
    pools = await _pools(call, await read_object(call), lambda _, __: "", "bad_pools")
    for name, pool in pools.items():
        await _write(
            call.gateway, pool, lambda raw: Step(overrides.reset(raw, call.gateway.now()), None, None), None, name
        )
        audit.record(call, "poolreset", pool=pool)
    return Answer({"ok": True}, 201)


async def _enter(call: Call) -> None:
    if not call.gateway.own.config_endpoints:
        raise Refusal(405, {"error": DISABLED})
    await call.caller()


def _object(body: Any) -> Mapping[str, Any]:
    if body is None:
        raise not_found("no pools are named")
    if not isinstance(body, dict):
        raise bad_request("Request body must be a JSON object")
    return body


async def _pools(
    call: Call, wanted: Mapping[str, Any], check: Callable[[PoolFacts, Any], str], refused_as: str
) -> dict[str, PoolFacts]:
    """Return the pool of each name, all of which the caller may change. Raises ``Refusal`` 400, 403, 503."""
    candidates = {name: _own(call.gateway, name) for name in wanted}
    problems = {
        name: check(pools[0], wanted[name]) if pools else _no_pool(call.gateway, name)
        for name, pools in candidates.items()
    }
    wrong = {name: problem for name, problem in problems.items() if problem}
    if wrong:
        causes = "; ".join(f"{shown(name)}: {problem}" for name, problem in wrong.items())
        raise bad_request(causes, **{refused_as: list(wrong)})
    found: dict[str, PoolFacts] = {}
    for name, pools in candidates.items():
        pool = await _may_change(call, name, pools)
        assert pool is not None, "every name without a pool was refused"
        if problem := check(pool, wanted[name]):
            raise bad_request(f"{shown(name)}: {problem}", **{refused_as: [name]})
        found[name] = pool
    return found


def _own(gateway: Gateway, name: str) -> list[PoolFacts]:
    return [pool for pool in gateway.directory.meaning(name).own if not pool.deleting]


def _no_pool(gateway: Gateway, name: str) -> str:
    if gateway.directory.meaning(name).aliased:
        return "is an alias; name the pool itself"
    return "there is no such pool"


async def _may_change(call: Call, name: str, pools: list[PoolFacts]) -> PoolFacts | None:
    """Return the first of them that the caller may change, None of none. Raises ``Refusal`` 403, 503."""
    caller = await call.caller()
    gateway = call.gateway
    for pool in pools:
        if gateway.own.authorization == "open":
            return pool
        try:
            allowed = await gateway.reviews.may(caller.user, caller.groups, pool.namespace, pool.name, keys.VERB_UPDATE)
        except KubeError as error:
            raise unavailable(
                "the API server does not say who may change the pool", gateway.own.retry_after_seconds
            ) from error
        if allowed:
            return pool
    if pools:
        raise forbidden(f"changing pool {shown(name)} takes the verb {keys.VERB_UPDATE} on its vmpool")
    return None


async def _write(
    gateway: Gateway, pool: PoolFacts, step_from: Callable[[Json], Step], change: Change | None, name: str
) -> Step:
    """Decide on the pool as the server has it, and write. Raises ``Refusal``, and ``KubeError`` for trouble."""
    for _ in range(TRIES):
        try:
            raw = await gateway.pools.quorum_get(pool.namespace, pool.name)
            if raw["metadata"]["uid"] != pool.uid:
                break
            step = step_from(raw)
            if step.patch is not None:
                gateway.pools.saw(await gateway.client.patch_merge(VMPOOLS, pool.namespace, pool.name, step.patch))
            return step
        except Conflict:
            continue
        except NotFound:
            break
        except Invalid as error:
            causes = "; ".join(cause.message for cause in error.causes) or "the API server refuses it"
            raise bad_request(f"{shown(name)}: {causes}", **({change.refused_as: [name]} if change else {})) from None
    else:
        raise unavailable(f"pool {shown(name)} is being changed by others", gateway.own.retry_after_seconds)
    raise not_found(f"pool {shown(name)} is gone")


def _told(value: Any, pool: PoolFacts) -> Any:
    # A pool whose size is left to others has none of its own.
    return size(pool) if value is None else value


_STATUS = record({"ok": {"const": True}})
_POOL = Parameter("pool", "path", "Name of a pool; no alias.")
_OBJECT: Schema = {"type": "object"}
CONFIG = record({"pool_configuration": {"type": "array", "items": _OBJECT}, "status": _STATUS})
FULL_CONFIG = record({"full_config": _OBJECT, "status": _STATUS})


def _post(path: str, change: Change, about: str, value: Schema) -> Route:
    listed = {"anyOf": [refused(**{change.refused_as: TEXTS}), REFUSED]}
    answers = {200: OK, 201: OK, 400: listed, 403: REFUSED, 404: REFUSED, 405: REFUSED}
    return Route("POST", path, _changing(change), about, answers, body=table(value), auth="token")


def _delete(path: str, override: Override, key: str, about: str, value: Schema) -> Route:
    done = record({"ok": {"const": True}, f"{key}_before_reset": value, f"{key}_before_overrides": value})
    answers = {200: done, 201: done, 400: REFUSED, 403: REFUSED, 404: REFUSED, 405: REFUSED}
    return Route("DELETE", path, _restoring(override, key), about, answers, parameters=(_POOL,), auth="token")


_NUMBER: Schema = {"type": ["integer", "string"]}
ROUTES: tuple[Route, ...] = (
    Route("GET", "/api/v3/config", show_config, "What the pools are made of.", {200: CONFIG}),
    Route(
        "GET",
        "/api/v3/full_config",
        show_full_config,
        "The pools as they are written, and the gateway's settings; without secrets.",
        {200: FULL_CONFIG},
        auth="token",
    ),
    _post("/api/v3/config/poolsize", SIZE, "Change how many ready VMs pools have.", _NUMBER),
    _delete(
        "/api/v3/config/poolsize/{pool}", POOL_SIZE, "pool_size", "Take back changes of a size.", {"type": "integer"}
    ),
    _post("/api/v3/config/pooltemplate", TEMPLATE, "Change what the VMs of pools are made from.", TEXT),
    _delete("/api/v3/config/pooltemplate/{pool}", POOL_TEMPLATE, "template", "Take back changes of a template.", TEXT),
    _post("/api/v3/config/clonetarget", TARGET, "Change which provider of pools gets new machines.", TEXT),
    Route(
        "POST",
        "/api/v3/poolreset",
        reset_pools,
        "Make all VMs of pools anew that nobody has.",
        {
            201: OK,
            400: {"anyOf": [refused(bad_pools=TEXTS), refused(message=TEXT), REFUSED]},
            403: REFUSED,
            404: REFUSED,
            405: REFUSED,
        },
        body=table({}),
        auth="token",
    ),
)
