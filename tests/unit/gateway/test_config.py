"""Changes of pools over REST: what is written, how it is taken back, and what is refused before anything is written."""

import copy
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.objects import Json
from tests.unit.gateway.frames import gateway_of, served
from tests.unit.gateway.things import put_pool
from vmpool.api import keys
from vmpool.gateway import config
from vmpool.gateway.context import Gateway
from vmpool.gateway.overrides import (
    CLONE_TARGET,
    POOL_SIZE,
    POOL_TEMPLATE,
    Override,
    change,
    only_target,
    reset,
    restore,
)

NOW = datetime(2026, 3, 20, 12, tzinfo=UTC)


def pool_object(**spec: Any) -> Json:
    base = {"replicas": 3, "template": {"image": "one"}, "providers": [{"name": "a"}, {"name": "b", "weight": 0}]}
    return {"metadata": {"name": "web", "uid": "u", "resourceVersion": "1"}, "spec": {**base, **spec}}


def merged(into: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7386), as the server does it."""
    if not isinstance(patch, dict):
        return patch
    made = dict(into) if isinstance(into, dict) else {}
    for name, value in patch.items():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = merged(made.get(name), value)
    return made


def apply(raw: Json, patch: Json | None) -> Json:
    if patch is None:
        return raw
    assert patch["metadata"]["resourceVersion"] == raw["metadata"]["resourceVersion"]
    assert patch["metadata"]["uid"] == raw["metadata"]["uid"]
    made: Json = merged(raw, patch)
    made["metadata"]["resourceVersion"] = str(int(raw["metadata"]["resourceVersion"]) + 1)
    return made


def note(raw: Json) -> Any:
    text = raw["metadata"].get("annotations", {}).get(keys.ANNOTATION_OVERRIDE)
    return None if text is None else json.loads(text)


OVERRIDES = {POOL_SIZE: st.integers(0, 4), POOL_TEMPLATE: st.sampled_from(["one", "two", "x/y"])}
STEPS = st.lists(
    st.one_of(*(st.tuples(st.just(override), values) for override, values in OVERRIDES.items())), max_size=12
)


@given(STEPS, st.booleans())
def test_taking_back_leads_to_what_was_there_before(steps: list[tuple[Override, Any]], unset: bool) -> None:
    first = pool_object()
    if unset:
        del first["spec"]["replicas"]
    raw = copy.deepcopy(first)
    for override, value in steps:
        step = change(raw, override, value)
        assert (step.patch is None) == (override.read(raw["spec"]) == value)
        assert step.original == override.read(first["spec"])
        raw = apply(raw, step.patch)
        assert override.read(raw["spec"]) == value
    for override in OVERRIDES:
        step = restore(raw, override)
        assert (step.present, step.original) == (override.read(raw["spec"]), override.read(first["spec"]))
        raw = apply(raw, step.patch)
    assert raw["spec"] == first["spec"]
    assert note(raw) is None


def test_a_value_that_others_wrote_since_stays() -> None:
    raw = apply(pool_object(), change(pool_object(), POOL_SIZE, 5).patch)
    raw["spec"]["replicas"] = 9
    step = restore(raw, POOL_SIZE)
    assert step.patch is None
    assert (step.present, step.original) == (9, 9)
    raw = apply(raw, change(raw, POOL_SIZE, 6).patch)
    assert restore(raw, POOL_SIZE).original == 9


def test_going_back_by_hand_leaves_no_note() -> None:
    raw = apply(pool_object(), change(pool_object(), POOL_SIZE, 5).patch)
    assert note(raw) == {"poolsize": {"was": 3, "set": 5}}
    raw = apply(raw, change(raw, POOL_SIZE, 3).patch)
    assert note(raw) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"poolsize": 5}', '{"poolsize": {"was": 1}}', "[" * 100_000])
def test_a_note_that_makes_no_sense_was_never_there(text: str) -> None:
    raw = pool_object()
    raw["metadata"]["annotations"] = {keys.ANNOTATION_OVERRIDE: text}
    assert restore(raw, POOL_SIZE).patch is None
    assert note(apply(raw, change(raw, POOL_SIZE, 5).patch)) == {"poolsize": {"was": 3, "set": 5}}


def test_the_only_target_gets_all_weight_and_keeps_its_own() -> None:
    raw = pool_object(providers=[{"name": "a", "weight": 7}, {"name": "b", "weight": 0}, {"name": "c"}])
    assert only_target(raw, "a") == [
        {"name": "a", "weight": 7},
        {"name": "b", "weight": 0},
        {"name": "c", "weight": 0},
    ]
    assert [one["weight"] for one in only_target(raw, "b")] == [0, 1, 0]


def test_a_target_that_is_the_only_one_already_changes_nothing() -> None:
    raw = pool_object()
    assert change(raw, CLONE_TARGET, only_target(raw, "a")).patch is None


@pytest.mark.parametrize(
    ("now", "before"),
    [(NOW, "2026-03-20T12:00:00"), (NOW.replace(microsecond=1), "2026-03-20T12:00:01")],
)
def test_a_reset_takes_everything_made_in_this_second(now: datetime, before: str) -> None:
    assert reset(pool_object(), now)["spec"]["resetBefore"].startswith(before)


# --- refused before anything is written: there is no server behind these -------------------------------------------


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made, _ = gateway_of(config_endpoints=True, authorization="open")
    put_pool(made, "web", replicas=3, maxVMs=30, aliases=["debian"], providers=[{"name": "a"}, {"name": "b"}])
    yield made
    await made.client.close()


async def post(gateway: Gateway, path: str, body: Any) -> tuple[int, Json]:
    async with served(*config.ROUTES, gateway=gateway) as client:
        answer = await client.post(f"/api/v3/{path}", json=body)
        return answer.status, await answer.json()


@pytest.mark.parametrize(
    "size", [-1, 31, "31", 5001, 1.0, "1.0", True, None, "", " 1", "x", "\u0663", "9" * 5000, [], {}]
)
async def test_sizes_that_a_pool_cannot_have(gateway: Gateway, size: Any) -> None:
    status, body = await post(gateway, "config/poolsize", {"web": size})
    assert (status, body["not_configured"]) == (400, ["web"])
    assert "a number from 0 to 30" in body["error"]
    assert len(body["error"]) < 300


@pytest.mark.parametrize("image", ["", "/x", "x/", "/", 5, None, "a\nb", "x" * 254])
async def test_templates_that_no_pool_can_have(gateway: Gateway, image: Any) -> None:
    status, body = await post(gateway, "config/pooltemplate", {"web": image})
    assert (status, body["bad_templates"]) == (400, ["web"])


@pytest.mark.parametrize("target", ["c", "", None, 1, ["a"], {}])
async def test_targets_that_are_no_providers_of_the_pool(gateway: Gateway, target: Any) -> None:
    status, body = await post(gateway, "config/clonetarget", {"web": target})
    assert (status, body["bad_templates"]) == (400, ["web"])
    assert "must be one of a, b" in body["error"]


async def test_an_alias_is_no_pool_to_change(gateway: Gateway) -> None:
    status, body = await post(gateway, "poolreset", {"debian": 1, "nowhere": 1})
    assert (status, body["bad_pools"]) == (400, ["debian", "nowhere"])
    assert "is an alias" in body["error"]


async def test_a_pool_that_is_going_cannot_be_changed(gateway: Gateway) -> None:
    put_pool(gateway, "old")
    raw = put_pool(gateway, "old")
    raw["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "1000000"}
    gateway.pools.saw(raw)
    assert (await post(gateway, "config/poolsize", {"old": 1}))[0] == 400


async def test_without_an_answer_about_the_right_nothing_is_changed() -> None:
    gateway, _ = gateway_of(config_endpoints=True)
    put_pool(gateway, "web")
    status, body = await post(gateway, "config/poolsize", {"web": 1})
    assert status == 503
    assert "who may change the pool" in body["error"]


async def test_nothing_to_change_is_no_change(gateway: Gateway) -> None:
    assert await post(gateway, "config/poolsize", {}) == (200, {"ok": True})


async def test_what_is_shown_holds_nothing_that_may_be_secret() -> None:
    gateway, _ = gateway_of(
        ldap_bind_dn="cn=finder", ldap_bind_password_file="/secret/file", users_file="/secret/users"
    )
    put_pool(gateway, "web", template={"image": "one", "parameters": {"userData": "password: hunter2"}})
    async with served(*config.ROUTES, gateway=gateway) as client:
        for path in ("full_config", "config"):
            answer = await client.get(f"/api/v3/{path}")
            text = await answer.text()
            assert answer.status == 200
            for secret in ("hunter2", "/secret", "cn=finder"):
                assert secret not in text
