"""What only a human can cure: it is said within seconds, costs no machine, and is over by itself once it is fixed."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.control_plane.operator.stage import Stage, condition, machine_ids, names
from tests.objects import pool
from tests.operators import Operator

pytestmark = pytest.mark.control_plane

WRONG_KEY = "no-such-key"


async def test_a_pool_waits_for_a_provider_that_does_not_exist_yet(stage: Stage) -> None:
    await stage.put_pool(replicas=2)
    message = await stage.pool_says("Ready", "False", "ProviderNotFound")
    assert f"VMProvider {stage.provider} does not exist in namespace {stage.namespace}" in message
    assert not await stage.vms_of()
    await stage.put_provider()
    await stage.full(2)


async def change_provider(stage: Stage, **spec: Any) -> None:
    (await stage.providers.merge(stage.provider, {"spec": spec})).ok()


async def unknown_type(stage: Stage) -> None:
    await change_provider(stage, type="clouds-of-mars")


async def unknown_field(stage: Stage) -> None:
    await change_provider(stage, config={"enpoint": "http://127.0.0.1:1"})


async def wrong_type(stage: Stage) -> None:
    await change_provider(stage, config={"pageSize": "many"})


async def no_secret(stage: Stage) -> None:
    await change_provider(stage, secretRef={"name": f"{stage.provider}-lost"})


async def empty_secret(stage: Stage) -> None:
    await stage.secrets.merge(stage.provider, {"data": {"apiKey": None, "other": "eA=="}})


async def wrong_key(stage: Stage) -> None:
    await stage.put_secret(stage.provider, apiKey=WRONG_KEY)


async def mend(stage: Stage) -> None:
    """Undo each of the above."""
    await stage.put_secret(stage.provider, apiKey=stage.tenant.key)
    config = {"enpoint": None, "pageSize": None}
    await change_provider(stage, type="simulated", config=config, secretRef={"name": stage.provider})


TROUBLES = [
    pytest.param(unknown_type, "UnknownType", ("spec.type", "clouds-of-mars", "simulated"), id="unknown type"),
    pytest.param(unknown_field, "InvalidConfig", ("enpoint",), id="unknown field"),
    pytest.param(wrong_type, "InvalidConfig", ("pageSize", "many"), id="wrong type of a field"),
    pytest.param(no_secret, "SecretNotFound", ("-lost", "spec.secretRef"), id="no Secret"),
    pytest.param(empty_secret, "InvalidConfig", ("apiKey",), id="Secret without the key"),
    pytest.param(wrong_key, "CredentialsRefused", ("401",), id="wrong key"),
]


@pytest.mark.parametrize(("spoil", "reason", "words"), TROUBLES)
async def test_a_filled_pool_keeps_everything_while_its_provider_is_refused(
    stage: Stage, served: Operator, spoil: Callable[[Stage], Awaitable[None]], reason: str, words: tuple[str, ...]
) -> None:
    before = await stage.filled(3)
    await spoil(stage)
    message = await stage.provider_says("Stalled", "True", reason)
    assert all(word in message for word in words), message
    assert await stage.provider_says("Ready", "False", reason) == message
    victim = before[0]["metadata"]["name"]
    (await stage.vms.delete(victim)).ok()
    await stage.change(replicas=4)
    assert message in await stage.pool_says("Stalled", "True", reason)
    assert message in await stage.pool_says("Ready", "False", reason)
    assert [event["message"] for event in await stage.events(stage.provider) if event["reason"] == reason] == [message]
    assert WRONG_KEY not in served.lines()
    assert stage.alive() == machine_ids(before)
    assert names(before) <= names(await stage.vms_of())
    assert len(stage.history()) == 3

    await mend(stage)
    after = await stage.full(4)
    assert names(before[1:]) <= names(after)
    assert victim not in names(after)
    assert not (await stage.status()).get("recentFailures")
    found = (await stage.providers.get(stage.provider)).ok()
    assert {one["type"] for one in found["status"]["conditions"]} == {"Ready"}


async def test_a_provider_that_never_worked_recovers_too(stage: Stage) -> None:
    await stage.put_provider(config={"endpoint": "ftp://example"})
    await stage.put_pool(replicas=1)
    message = await stage.provider_says("Stalled", "True", "InvalidConfig")
    assert "spec.config field endpoint" in message
    assert "'ftp://example'" in message
    await stage.pool_says("Stalled", "True", "InvalidConfig")
    secret = (await stage.secrets.get(stage.provider)).ok()
    assert not secret["metadata"].get("finalizers"), "nothing is held for a provider that was never used"
    await change_provider(stage, config={"endpoint": stage.cloud.url})
    await stage.full(1)


async def test_a_pool_with_one_good_provider_is_not_stalled(stage: Stage) -> None:
    await stage.put_provider()
    bad = f"{stage.provider}-bad"
    await stage.put_provider(bad, type="clouds-of-mars")
    await stage.put_pool(replicas=4, providers=[{"name": bad, "weight": 100}, {"name": stage.provider}])
    await stage.full(4)
    assert condition({"status": await stage.status()}, "Stalled")["status"] == ""


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        pytest.param({"replicas": -1}, "spec.replicas", "greater than or equal to 0", id="below its bound"),
        pytest.param({"replicas": "three"}, "spec.replicas", "must be of type integer", id="wrong type"),
        pytest.param({"deletionPolicy": "Keep"}, "spec.deletionPolicy", '"Drain", "Force"', id="no such choice"),
    ],
)
async def test_the_server_refuses_nonsense_with_field_and_allowed_values(
    stage: Stage, spec: dict[str, Any], field: str, words: str
) -> None:
    answer = await stage.pools.create(pool(stage.pool, **spec))
    assert answer.status == 422
    assert field in answer.message
    assert words in answer.message


async def test_a_misspelt_field_is_refused_by_name(stage: Stage) -> None:
    answer = await stage.pools.create(pool(stage.pool, replica=3))
    assert answer.status == 400
    assert 'unknown field "spec.replica"' in answer.message
