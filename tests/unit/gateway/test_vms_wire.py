"""What is told of a VM in every phase, and which changes are allowed."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.unit.gateway.frames import gateway_of, served
from tests.unit.gateway.things import held, put_pool, put_vm, vm_object
from tests.unit.plan.worlds import pool as some_pool
from tests.unit.plan.worlds import spec
from tests.unit.plan.worlds import vm as some_vm
from vmpool.api.meta import format_time
from vmpool.gateway import vms
from vmpool.gateway.answers import Refusal
from vmpool.gateway.changes import MAX_TAG_KEY, MAX_TAG_VALUE, wanted_of
from vmpool.gateway.context import Gateway
from vmpool.gateway.vmwire import check_hostname, described, hours, short, state
from vmpool.plan.lifecycle import Phase
from vmpool.plan.snapshot import VM, ClaimFacts
from vmpool.settings import GatewaySettings

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
OWN = GatewaySettings()
POOL = some_pool(spec(claims={"lifetime": "24h", "maxLifetime": "48h"}))
CLAIM = ClaimFacts("one", "alice", NOW + timedelta(hours=22), bound_at=NOW - timedelta(hours=2), tags={"job": "7"})
V = "/api/v3/vm"


def a_vm(phase: str = Phase.READY, claim: ClaimFacts | None = None, **more: Any) -> VM:
    return some_vm("web-a", phase, claim=claim, host_name="web-a.lab.example.com", addresses=("192.0.2.1",), **more)


def told(vm: VM) -> dict[str, Any]:
    return described(vm, "web", POOL, NOW)


ALWAYS = {"template": "web", "ip": "192.0.2.1", "fqdn": "web-a.lab.example.com", "host": "east"}


@pytest.mark.parametrize(("phase", "word"), [(Phase.READY, "ready"), (Phase.PENDING, "pending")])
def test_a_vm_that_nobody_has_shows_the_lifetime_that_a_claim_would_get(phase: str, word: str) -> None:
    assert told(a_vm(phase)) == {**ALWAYS, "lifetime": 24, "state": word}


@pytest.mark.parametrize("phase", [Phase.READY, Phase.CLAIMED])
def test_a_vm_runs_from_the_write_of_its_claim_on(phase: str) -> None:
    assert told(a_vm(phase, CLAIM)) == {
        **ALWAYS,
        "lifetime": 24,
        "running": 2.0,
        "remaining": 22.0,
        "start_time": "2030-01-01T10:00:00+00:00",
        "end_time": "2030-01-02T10:00:00+00:00",
        "state": "running",
        "tags": {"job": "7"},
    }


@pytest.mark.parametrize("phase", [Phase.READY, Phase.CLAIMED, Phase.COMPLETED])
def test_a_vm_that_was_released_shows_how_long_it_ran(phase: str) -> None:
    ended = replace(CLAIM, released_at=NOW - timedelta(minutes=30), tags={})
    assert told(a_vm(phase, ended)) == {**ALWAYS, "lifetime": 24, "running": 1.5, "state": "destroyed"}


def test_nothing_is_ever_negative() -> None:
    late = replace(CLAIM, expires_at=NOW - timedelta(hours=1))
    assert told(a_vm(Phase.CLAIMED, late))["remaining"] == 0
    early = replace(CLAIM, bound_at=NOW + timedelta(seconds=30))
    assert told(a_vm(Phase.CLAIMED, early))["running"] == 0


@pytest.mark.parametrize(
    ("vm", "word"),
    [
        (a_vm(Phase.QUARANTINED), "destroyed"),
        (a_vm(Phase.COMPLETED), "destroyed"),
        (a_vm("Hibernated"), "destroyed"),
        (a_vm(Phase.READY, deleting=True), "destroyed"),
        (a_vm(Phase.CLAIMED, CLAIM, deleting=True), "running"),
        (a_vm(Phase.COMPLETED, CLAIM), "destroyed"),
    ],
)
def test_every_other_phase_has_a_word_of_the_references(vm: VM, word: str) -> None:
    assert state(vm) == word


def test_a_vm_of_a_pool_that_is_gone_has_no_lifetime() -> None:
    assert described(a_vm(), "web", None, NOW) == {**ALWAYS, "state": "ready"}
    assert described(some_vm("x", Phase.PENDING), "web", None, NOW)["fqdn"] == "x"


def test_hours_are_whole_where_they_can_be() -> None:
    assert [hours(timedelta(hours=h)) for h in (1, 24, 0.5, 1 / 3)] == [1, 24, 0.5, 0.33]
    assert isinstance(hours(timedelta(hours=2)), int)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "Hostname is required"),
        ("a." * 127, "Hostname too long"),
        ("a_b", "Invalid hostname format"),
        ("-a", "Invalid hostname format"),
        ("a\n", "Invalid hostname format"),
        ("a..b", "Invalid hostname format"),
        ("é", "Invalid hostname format"),
        ("a" * 64, "Invalid hostname format"),
    ],
)
def test_bad_host_names_are_refused(name: str, words: str) -> None:
    with pytest.raises(Refusal) as caught:
        check_hostname(name)
    assert caught.value.status == 400
    assert str(caught.value.body["error"]).startswith(words)


def test_host_names_are_looked_for_in_lower_case() -> None:
    assert check_hostname("Web-A.Lab.Example.Com") == "web-a.lab.example.com"
    assert short("web-a.lab.example.com") == short("web-a") == "web-a"


# --- changes ------------------------------------------------------------------------------------------------------


def failures(body: dict[str, Any], claim: ClaimFacts = CLAIM, own: GatewaySettings = OWN) -> list[str]:
    with pytest.raises(Refusal) as caught:
        wanted_of(body, claim, POOL, own)
    assert caught.value.status == 400
    return list(caught.value.body["failure"])


def tags(given: dict[str, Any], claim: ClaimFacts = CLAIM, **own: Any) -> dict[str, str | None]:
    return dict(wanted_of({"tags": given}, claim, POOL, GatewaySettings(**own)).tags)


@pytest.mark.parametrize("value", [3, "3", "0003"])
def test_a_lifetime_counts_from_the_checkout(value: Any) -> None:
    assert wanted_of({"lifetime": value}, CLAIM, POOL, OWN).expires_at == NOW + timedelta(hours=1)


@pytest.mark.parametrize("value", [0, -1, "x", "", "0", "1.5", 1.5, True, None, [], {}, "٣", " 3"])
def test_a_lifetime_is_a_positive_number_of_hours(value: Any) -> None:
    (cause,) = failures({"lifetime": value})
    assert cause.startswith("Lifetime must be a positive integer (got ")


@pytest.mark.parametrize("value", [49, "49", 10**12, "9" * 5000])
def test_a_lifetime_is_bounded_by_the_pool(value: Any) -> None:
    (cause,) = failures({"lifetime": value})
    assert cause.endswith("that exceeds the configured maximum of 48.")
    assert wanted_of({"lifetime": 48}, CLAIM, POOL, OWN).expires_at == NOW + timedelta(hours=46)


def test_without_a_pool_there_is_no_bound_to_hold_a_lifetime_to() -> None:
    with pytest.raises(Refusal) as caught:
        wanted_of({"lifetime": 1}, CLAIM, None, OWN)
    assert "pool is gone" in caught.value.body["failure"][0]
    assert wanted_of({"tags": {"a": "b"}}, CLAIM, None, OWN).tags == {"a": "b"}


def test_all_mistakes_are_told_at_once() -> None:
    found = failures({"lifetime": 0, "tags": {"a b": 1}, "colour": "red"})
    assert [cause.split(":")[0] for cause in found] == [
        "Lifetime must be a positive integer (got 0)",
        "Invalid tag key format",
        "Tag value must be text",
        "Unknown argument red.",
    ]


@pytest.mark.parametrize(
    ("given_tags", "words"),
    [
        ("x", "You provided tags (x) as something other than a hash."),
        (["x"], 'You provided tags (["x"]) as something other than a hash.'),
        ({"": "x"}, "Tag key is required"),
        ({"k" * (MAX_TAG_KEY + 1): "x"}, "Tag key too long"),
        ({"a/b": "x"}, "Invalid tag key format"),
        ({"a": "v" * (MAX_TAG_VALUE + 1)}, "Tag value too long"),
        ({"a": "\x00"}, "Tag value contains invalid characters"),
        ({"a": 7}, "Tag value must be text"),
    ],
)
def test_tags_are_text_within_bounds(given_tags: Any, words: str) -> None:
    (cause,) = failures({"tags": given_tags})
    assert cause.startswith(words)


def test_a_tag_is_set_removed_or_left_as_it_is() -> None:
    assert tags({"a": "b", "job": None, "gone": None, "empty": ""}) == {"a": "b", "job": None}
    assert tags({"job": "7"}) == {}
    assert tags({"job": ""}) == {}
    assert not wanted_of({"tags": {"job": "7"}}, CLAIM, POOL, OWN)


def test_a_vm_has_at_most_32_tags() -> None:
    many = {f"t{number}": "x" for number in range(31)}
    assert len(tags(many)) == 31
    assert failures({"tags": {**many, "one-more": "x"}}) == ["A VM has at most 32 tags; with these it would have 33."]
    assert tags({**many, "one-more": "x", "job": None})["job"] is None


def test_only_allowed_tags_can_be_set() -> None:
    assert tags({"job": "8"}, allowed_tags="job, team") == {"job": "8"}
    (cause,) = failures({"tags": {"job": "8", "x": "y"}}, own=GatewaySettings(allowed_tags="job,team"))
    assert cause.startswith("You provided unsuppored tags (")
    assert "job, team" in cause


def test_a_filter_keeps_what_its_groups_match() -> None:
    filters = {"url": r"(.*//)[^/]*/(\w+)", "none": "x"}
    assert tags({"url": "https://ci.example.com/job/7"}, tag_filters=filters) == {"url": "https://job"}
    assert tags({"url": "nothing like it", "job": None}, tag_filters=filters) == {"url": "nothing like it", "job": None}
    assert tags({"none": "axb"}, tag_filters=filters) == {}


def test_a_filter_that_is_no_regular_expression_is_refused_at_the_start() -> None:
    with pytest.raises(ValidationError, match="the filter of tag url is no regular expression"):
        GatewaySettings(tag_filters={"url": "("})


@given(st.dictionaries(st.text(max_size=70), st.none() | st.integers() | st.text(max_size=300), max_size=40))
def test_any_tags_are_taken_or_refused(given_tags: dict[str, Any]) -> None:
    try:
        wanted = wanted_of({"tags": given_tags}, CLAIM, POOL, OWN)
    except Refusal as refusal:
        if refusal.status != 400:
            raise
        return
    left = {**CLAIM.tags, **wanted.tags}
    assert sum(value is not None for value in left.values()) <= 32
    assert all(len(key) <= 63 and len(value or "") <= 255 for key, value in wanted.tags.items())


# --- endpoints that need no API server ----------------------------------------------------------------------------


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made, _ = gateway_of()
    put_pool(made, "web", restName="debian")
    now = datetime.now(UTC)
    mine = held(boundAt=format_time(now), expiresAt=format_time(now + timedelta(hours=24)))
    put_vm(made, "web-free", hostName="web-free.one.example.com")
    put_vm(made, "web-mine", hostName="web-mine.one.example.com", claim=mine)
    put_vm(made, "web-theirs", claim=held("vmpool:bob"))
    yield made
    await made.client.close()


async def ask(gateway: Gateway, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    async with served(*vms.ROUTES, gateway=gateway) as client:
        answer = await client.request(method, V + path, json=body)
        return answer.status, await answer.json()


async def test_pools_are_listed_by_the_names_they_have_in_rest(gateway: Gateway) -> None:
    put_pool(gateway, "db", aliases=["any"])
    assert await ask(gateway, "GET", "") == (200, ["db", "debian"])


async def test_a_vm_is_shown_by_any_spelling_of_its_name(gateway: Gateway) -> None:
    for name in ("web-free", "WEB-Free", "web-free.one.example.com", "web-free.elsewhere"):
        status, body = await ask(gateway, "GET", f"/{name}")
        assert (status, body["ok"]) == (200, True)
        shown = body[name.split(".", 1)[0]]
        assert (shown["template"], shown["state"], shown["fqdn"]) == ("debian", "ready", "web-free.one.example.com")


async def test_of_namesakes_the_one_with_the_domain_is_shown(gateway: Gateway) -> None:
    twin = vm_object("web-free", namespace="other", hostName="web-free.two.example.com")
    twin["metadata"]["uid"] = "uid-of-the-twin"
    gateway.vms.saw(twin)
    assert len(gateway.vms) == 4
    status, body = await ask(gateway, "GET", "/web-free.two.example.com")
    assert (status, body["web-free"]["fqdn"]) == (200, "web-free.two.example.com")


@pytest.mark.parametrize(
    ("method", "body"), [("PUT", {"lifetime": 1}), ("PUT", {"tags": {"a": "b"}}), ("DELETE", None)]
)
async def test_a_strangers_vm_is_left_alone(gateway: Gateway, method: str, body: Any) -> None:
    status, refusal = await ask(gateway, method, "/web-theirs", body)
    assert (status, refusal["error"]) == (403, "VM web-theirs is somebody else's")


@pytest.mark.parametrize("path", ["/disk/8", "/snapshot", "/snapshot/abc"])
async def test_operations_are_refused_with_the_reason_after_all_checks(gateway: Gateway, path: str) -> None:
    assert (await ask(gateway, "POST", f"/nowhere{path}"))[0] == 404
    assert (await ask(gateway, "POST", f"/web-theirs{path}"))[0] == 403
    status, body = await ask(gateway, "POST", f"/web-mine{path}")
    assert status == 501
    assert "provider" in body["error"]


async def test_a_change_that_changes_nothing_writes_nothing(gateway: Gateway) -> None:
    # There is no API server behind this gateway: a write would be a 503.
    assert await ask(gateway, "PUT", "/web-mine", {}) == (200, {"ok": True})
    assert await ask(gateway, "PUT", "/web-mine", {"tags": {"gone": None}}) == (200, {"ok": True})
