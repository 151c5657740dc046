"""What the provider ``simulated`` makes of a cloud that says no, talks nonsense or is not there."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from tests.clouds import SimCloud, Tenant
from tests.contract.test_simulated import INSTALL, open_provider, request
from tests.waiting import until
from vmpool.api import keys
from vmpool.providers.base import Deletion, MachineState, Session
from vmpool.providers.errors import (
    CredentialsRefused,
    Exhausted,
    InvalidConfig,
    InvalidTemplate,
    MachineNotFound,
    ProviderError,
    Terminal,
    Throttled,
    Unavailable,
)
from vmpool.providers.simulated import SimulatedPlugin, SimulatedProvider

CANARY = "canary-key-5e9f"

Call = Callable[[SimulatedProvider], Awaitable[object]]


async def listing(provider: SimulatedProvider) -> list[str]:
    return [machine.id async for machine in provider.machines()]


CALLS: dict[str, Call] = {
    "identity": lambda provider: provider.identity(),
    "create": lambda provider: provider.ensure(request("t", "vm")),
    "get": lambda provider: provider.get("sim-1"),
    "list": listing,
    "find": lambda provider: provider.find("t"),
    "adopt": lambda provider: provider.adopt("sim-1", {"a": "b"}),
    "delete": lambda provider: provider.delete("sim-1"),
}


@pytest.fixture
async def provider(simcloud: SimCloud, tenant: Tenant) -> AsyncIterator[SimulatedProvider]:
    opened = open_provider(simcloud.url, tenant.key)
    yield opened
    await opened.close()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, None, Terminal),
        (400, "TokenUnsupported", InvalidConfig),
        (401, None, CredentialsRefused),
        (403, None, CredentialsRefused),
        (403, "QuotaExceeded", Exhausted),
        (404, "NotFound", Unavailable),
        (408, None, Unavailable),
        (409, None, Terminal),
        (410, None, Terminal),
        (412, None, MachineNotFound),
        (418, None, Unavailable),
        (422, None, InvalidTemplate),
        (429, None, Throttled),
        (500, None, Unavailable),
        (503, None, Unavailable),
        (504, None, Unavailable),
    ],
)
async def test_every_status_is_typed(
    simcloud: SimCloud, tenant: Tenant, provider: SimulatedProvider, call: str, status: int, code: str | None,
    expected: type[ProviderError],
) -> None:  # fmt: skip
    fields = {"status": status, "retryAfter": 7} | ({"code": code} if code else {})
    simcloud.fault("status", {"tenant": tenant.name}, **fields)
    with pytest.raises(ProviderError) as caught:
        await CALLS[call](provider)
    assert type(caught.value) is expected
    assert str(status) in caught.value.message
    assert caught.value.retry_after == timedelta(seconds=7)
    assert tenant.key not in told(caught.value)


def told(error: BaseException) -> str:
    """All that a log could show of an error, its causes included."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))


async def test_404_of_a_machine(provider: SimulatedProvider) -> None:
    with pytest.raises(MachineNotFound):
        await provider.get("sim-1")
    with pytest.raises(MachineNotFound):
        await provider.adopt("sim-1", {"a": "b"})
    assert await provider.delete("sim-1") is Deletion.GONE


@pytest.mark.parametrize("machine_id", ["..", "", "a/b", "x?y=z", "%2e%2e", "ä"])
async def test_odd_ids_prove_nothing_about_others(provider: SimulatedProvider, machine_id: str) -> None:
    with pytest.raises((MachineNotFound, Unavailable)):
        await provider.get(machine_id)


async def test_a_quota_is_exhausted(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud()
    tenant = cloud.tenant()
    cloud.settings(maxMachines={tenant.name: 0})
    provider = open_provider(cloud.url, tenant.key)
    with pytest.raises(Exhausted, match="0 of at most 0"):
        await provider.ensure(request("t", "vm"))
    await provider.close()


async def test_tokens_where_there_are_none(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud()
    cloud.settings(tokenMode="none")
    tenant = cloud.tenant()
    with_tokens = open_provider(cloud.url, tenant.key)
    with pytest.raises(InvalidConfig, match="token"):
        await with_tokens.ensure(request("t", "vm"))
    await with_tokens.close()
    without = open_provider(cloud.url, tenant.key, token_mode="None")
    assert (await without.ensure(request("t", "vm"))).token == "t"
    await without.close()


async def test_a_spent_token_is_terminal(simcloud: SimCloud, tenant: Tenant, provider: SimulatedProvider) -> None:
    machine = await provider.ensure(request("t", "vm"))
    simcloud.fate(machine.id, "vanish")
    with pytest.raises(Terminal, match="TokenSpent"):
        await provider.ensure(request("t", "vm"))


async def test_check_names_the_image_and_makes_nothing(
    simcloud: SimCloud, tenant: Tenant, provider: SimulatedProvider
) -> None:
    await provider.check(request("t", "vm"))
    with pytest.raises(InvalidTemplate, match="no-such-image"):
        await provider.check(request("t", "vm", image="no-such-image"))
    assert simcloud.listed(tenant) == []


async def test_states_are_passed_on(simcloud: SimCloud, tenant: Tenant, provider: SimulatedProvider) -> None:
    machine = await provider.ensure(request("t", "vm"))

    async def state() -> MachineState:
        return (await provider.get(machine.id)).state

    assert machine.state is MachineState.CREATING
    assert machine.addresses == ()

    async def running() -> bool:
        return await state() is MachineState.RUNNING

    await until(running, what="the boot")
    assert (await provider.get(machine.id)).addresses[0].startswith("127.")
    simcloud.call("POST", f"/v1/machines/{machine.id}/power", {"power": "off"}, key=tenant.key)
    assert await state() is MachineState.STOPPED
    simcloud.fate(machine.id, "fail")
    assert await state() is MachineState.FAILED
    assert (await provider.get(machine.id)).message == "failed by hand"
    simcloud.fault("neverGone", {"operation": "delete", "tenant": tenant.name}, count=1)
    assert await provider.delete(machine.id) is Deletion.STARTED
    assert await state() is MachineState.DELETING


async def test_an_outage_and_a_hang_are_unavailable(simcloud: SimCloud, tenant: Tenant) -> None:
    simcloud.fault("hang", {"tenant": tenant.name})
    impatient = open_provider(simcloud.url, tenant.key, timeoutSeconds=0.2)
    for call in CALLS.values():
        with pytest.raises(Unavailable, match=r"no answer within 0\.2 s"):
            await call(impatient)
    await impatient.close()


async def test_another_installs_machine_is_foreign(
    simcloud: SimCloud, tenant: Tenant, provider: SimulatedProvider
) -> None:
    machine = await provider.ensure(request("t", "vm"))
    other = open_provider(simcloud.url, tenant.key, install_id="install-2")
    with pytest.raises(MachineNotFound):
        await other.get(machine.id)
    with pytest.raises(MachineNotFound):
        await other.delete(machine.id)
    assert await other.find("t") is None
    assert [seen.id async for seen in other.machines()] == []
    await other.close()
    assert (await provider.get(machine.id)).state is not MachineState.DELETING


# --- without tokens -----------------------------------------------------------------------------------------------


async def test_of_two_machines_the_oldest_stays(simcloud: SimCloud, tenant: Tenant) -> None:
    tags = {keys.TAG_INSTALL: INSTALL, keys.TAG_UID: "t"}
    oldest, *younger = [simcloud.made(tenant, tags=tags) for _ in range(3)]
    provider = open_provider(simcloud.url, tenant.key, token_mode="None")
    found = await provider.find("t")
    assert found is not None
    assert found.id == oldest
    assert len(simcloud.listed(tenant)) == 3, "find only looks"
    assert (await provider.ensure(request("t", "vm"))).id == oldest
    assert {simcloud.state(tenant, machine_id) for machine_id in younger} <= {"Deleting", "Gone"}
    assert simcloud.state(tenant, oldest) not in {"Deleting", "Gone"}
    await provider.close()


async def test_a_lost_reply_is_looked_up_at_once(simcloud: SimCloud, tenant: Tenant) -> None:
    simcloud.fault("replyLost", {"operation": "create", "tenant": tenant.name}, count=1)
    provider = open_provider(simcloud.url, tenant.key, token_mode="None")
    machine = await provider.ensure(request("t", "vm"))
    assert simcloud.listed(tenant) == [machine.id]
    await provider.close()


async def test_list_lag_does_not_lose_the_machine_just_made(simcloud: SimCloud, tenant: Tenant) -> None:
    simcloud.fault("listLag", {"operation": "list", "tenant": tenant.name}, seconds=3600)
    provider = open_provider(simcloud.url, tenant.key, token_mode="None")
    machine = await provider.ensure(request("t", "vm"))
    assert (await provider.get(machine.id)).token == "t"
    await provider.close()


# --- answers that no simcloud gives -------------------------------------------------------------------------------


@asynccontextmanager
async def stub(seen: list[str] | None = None, /, **answer: Any) -> AsyncIterator[SimulatedProvider]:
    """A provider whose far side gives the same answer to everything; the queries go into ``seen``."""

    async def handle(asked: web.Request) -> web.Response:
        if seen is not None:
            seen.append(asked.query_string)
        return web.Response(**answer)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    provider = open_provider(f"http://127.0.0.1:{runner.addresses[0][1]}", CANARY)
    try:
        yield provider
    finally:
        await provider.close()
        await runner.cleanup()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "answer",
    [
        {"text": "not json"},
        {"text": ""},
        {"status": 204},
        {"text": "[]"},
        {"text": "{}"},
        {"text": '{"machines": 1}'},
        {"text": '{"machines": [], "next": 1}'},
        {"text": '{"machines": [{"id": "x"}], "identity": "", "next": null}'},
        {"text": '{"id":"x","name":"x","state":"Odd","tags":{},"addresses":[],"message":""}'},
        {"status": 404, "text": "no such page"},
        {"status": 302, "headers": {"Location": "/"}},
        {"body": b"\xff\xfe"},
    ],
    ids=lambda answer: str(answer)[:40],
)
async def test_nonsense_is_unavailable(call: str, answer: dict[str, Any]) -> None:
    async with stub(**answer) as provider:
        with pytest.raises(Unavailable) as caught:
            await CALLS[call](provider)
    assert CANARY not in told(caught.value)


async def test_a_listing_in_circles_ends() -> None:
    seen: list[str] = []
    async with stub(seen, text='{"machines": [], "next": "again"}') as provider:
        with pytest.raises(Unavailable, match="does not end"):
            await listing(provider)
    assert len(seen) == 2


@pytest.mark.parametrize("pause", ["soon", "-1", "²", "Wed, 21 Oct 2026 07:28:00 GMT"])
async def test_an_odd_pause_is_no_pause(pause: str) -> None:
    async with stub(status=429, headers={"Retry-After": pause}) as provider:
        with pytest.raises(Throttled) as caught:
            await provider.identity()
    assert caught.value.retry_after is None


async def test_a_key_that_the_cloud_repeats_is_not_told() -> None:
    text = f'{{"error": {{"code": "{CANARY}", "message": "key {CANARY} {"x" * 1000}"}}}}'
    async with stub(status=401, text=text) as provider:
        with pytest.raises(CredentialsRefused) as caught:
            await provider.identity()
        assert CANARY not in told(caught.value)
        assert "***" in caught.value.message
        assert len(caught.value.message) < 500
        assert CANARY not in repr(provider)


# --- configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [{}, {"apiKey": ""}, {"apiKey": " \n"}, {"apiKey": "a\nb"}, {"apiKey": "ä"}])
def test_a_secret_without_usable_key_is_refused(secret: dict[str, str]) -> None:
    config = SimulatedPlugin.Config(endpoint="http://127.0.0.1:1")
    with pytest.raises(InvalidConfig, match="apiKey"):
        SimulatedPlugin().open(Session(config, secret, INSTALL))


async def test_a_key_may_end_in_a_newline(simcloud: SimCloud, tenant: Tenant) -> None:
    provider = open_provider(simcloud.url, f"{tenant.key}\n")
    assert (await provider.identity()).endswith(tenant.name)
    await provider.close()


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"endpoint": "ftp://host"},
        {"endpoint": "http://user:pass@host"},
        {"endpoint": "http://host?x=y"},
        {"endpoint": "http://host", "pageSize": 0},
        {"endpoint": "http://host", "pageSize": 1001},
        {"endpoint": "http://host", "tokenMode": "Maybe"},
        {"endpoint": "http://host", "unknown": 1},
    ],
)
def test_wrong_config_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SimulatedPlugin.Config.model_validate(config)


def test_every_config_field_is_described_in_camel_case() -> None:
    properties = SimulatedPlugin.Config.model_json_schema(by_alias=True)["properties"]
    assert set(properties) == {"endpoint", "tokenMode", "pageSize", "timeoutSeconds", "connections"}
    assert all(field.get("description") for field in properties.values())


async def test_many_calls_share_few_connections(simcloud: SimCloud, tenant: Tenant) -> None:
    provider = open_provider(simcloud.url, tenant.key, connections=2)
    identities = await asyncio.gather(*(provider.identity() for _ in range(50)))
    assert len(set(identities)) == 1
    await provider.close()
