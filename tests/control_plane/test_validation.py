"""What the API server refuses of what people write, and in which words: each names the field and what it may be."""

from typing import Any

import pytest

from tests.api import Api
from tests.objects import CONDITION, pool, provider, vm
from tests.planes import Kubectl

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("crds_installed")]

DURATION = "such as 90s, 15m or 2h"
SIZE = "must be a size from 1Mi to 9999999Gi, such as 512Mi or 4Gi"
AMOUNT = "must be a number from 0 to 10000 or a percentage from 0% to 100%"
LABEL = "must be lower-case letters, digits and dashes"


def template(**fields: Any) -> dict[str, Any]:
    return {"template": {"image": "debian-12", **fields}}


def providers(*names: str, **fields: Any) -> dict[str, Any]:
    return {"providers": [{"name": name, **fields} for name in names]}


POOLS = [
    # What is written, the field that the refusal names, and words of it.
    ({"replicas": -1}, "spec.replicas", "greater than or equal to 0"),
    ({"replicas": 5001}, "spec.replicas", "less than or equal to 5000"),
    ({"replicas": "x"}, "spec.replicas", "must be of type integer"),
    ({"replicas": 1.5}, "spec.replicas", "must be of type integer"),
    ({"replicas": 6, "maxVMs": 5}, "spec.replicas", "replicas must be at most maxVMs"),
    ({"replicas": 1001}, "spec.replicas", "replicas must be at most maxVMs"),
    ({"maxVMs": 0}, "spec.maxVMs", "greater than or equal to 1"),
    ({"maxVMs": 10001}, "spec.maxVMs", "less than or equal to 10000"),
    ({"template": None}, "spec.template", "Required value"),
    ({"template": {}}, "spec.template.image", "Required value"),
    (template(image=""), "spec.template.image", "at least 1 chars long"),
    (template(image="x" * 254), "spec.template.image", "may not be more than 253 bytes"),
    (template(cpus=0), "spec.template.cpus", "greater than or equal to 1"),
    (template(cpus=257), "spec.template.cpus", "less than or equal to 256"),
    (template(memory="1G"), "spec.template.memory", SIZE),
    (template(memory="0Mi"), "spec.template.memory", SIZE),
    (template(memory=4096), "spec.template.memory", "must be of type string"),
    (template(disk="20 Gi"), "spec.template.disk", SIZE),
    (template(parameters={"k" * 64: "v"}), "spec.template.parameters", "keys must be at most 63 characters long"),
    (template(parameters={"k": "v" * 1025}), "spec.template.parameters.k", "may not be more than 1024 bytes"),
    (template(parameters={f"k{n}": "v" for n in range(65)}), "spec.template.parameters", "must have at most 64 items"),
    ({"hostName": {"prefix": "Web-"}}, "spec.hostName.prefix", f"{LABEL}, and begin with a letter"),
    ({"hostName": {"prefix": "1-"}}, "spec.hostName.prefix", "and begin with a letter"),
    ({"hostName": {"prefix": "a" * 49}}, "spec.hostName.prefix", "may not be more than 48 bytes"),
    ({"hostName": {"domain": "lab..example"}}, "spec.hostName.domain", "joined by dots"),
    ({"providers": None}, "spec.providers", "Required value"),
    (providers(), "spec.providers", "at least 1 items"),
    (providers(*"abcdefghi"), "spec.providers", "must have at most 8 items"),
    (providers("a", "a"), "spec.providers[1]", 'Duplicate value: {"name":"a"}'),
    (providers("A"), "spec.providers[0].name", f"{LABEL}, with no dash at either end"),
    (providers("a", weight=-1), "spec.providers[0].weight", "greater than or equal to 0"),
    (providers("a", weight=1001), "spec.providers[0].weight", "less than or equal to 1000"),
    ({"readiness": {"timeout": "10"}}, "spec.readiness.timeout", f"a duration between 5s and 24h, {DURATION}"),
    ({"readiness": {"timeout": "PT1H"}}, "spec.readiness.timeout", f"a duration between 5s and 24h, {DURATION}"),
    ({"readiness": {"timeout": "1 day"}}, "spec.readiness.timeout", f"a duration between 5s and 24h, {DURATION}"),
    ({"readiness": {"timeout": "1s"}}, "spec.readiness.timeout", "a duration between 5s and 24h"),
    ({"readiness": {"timeout": "24h1s"}}, "spec.readiness.timeout", "a duration between 5s and 24h"),
    ({"readiness": {"timeout": "9" * 30 + "h"}}, "spec.readiness.timeout", "a duration between 5s and 24h"),
    ({"readiness": {"timeout": 900}}, "spec.readiness.timeout", "must be of type string"),
    ({"readiness": {"interval": "0s"}}, "spec.readiness.interval", "a duration between 1s and 1h"),
    ({"readiness": {"failureThreshold": 0}}, "spec.readiness.failureThreshold", "greater than or equal to 1"),
    ({"readiness": {"tcpSocket": {"port": 0}}}, "spec.readiness.tcpSocket.port", "greater than or equal to 1"),
    ({"readiness": {"tcpSocket": {"port": 65536}}}, "spec.readiness.tcpSocket.port", "less than or equal to 65535"),
    ({"readiness": {"tcpSocket": {"port": "ssh"}}}, "spec.readiness.tcpSocket.port", "must be of type integer"),
    ({"readiness": {"tcpSocket": {}}}, "spec.readiness.tcpSocket.port", "Required value"),
    ({"recycle": {"readyTTL": "30s"}}, "spec.recycle.readyTTL", "a duration between 1m and 8760h"),
    ({"recycle": {"jitterPercent": 51}}, "spec.recycle.jitterPercent", "less than or equal to 50"),
    ({"recycle": {"quarantineTTL": "721h"}}, "spec.recycle.quarantineTTL", "a duration between 0s and 720h"),
    ({"limits": {"pending": 0}}, "spec.limits.pending", "greater than or equal to 1"),
    ({"limits": {"creates": 1001}}, "spec.limits.creates", "less than or equal to 1000"),
    ({"limits": {"deletes": 0}}, "spec.limits.deletes", "greater than or equal to 1"),
    ({"limits": {"quarantined": 101}}, "spec.limits.quarantined", "less than or equal to 100"),
    ({"retry": {"attempts": 0}}, "spec.retry.attempts", "greater than or equal to 1"),
    ({"retry": {"backoff": "99ms"}}, "spec.retry.backoff", "a duration between 100ms and 10m"),
    ({"retry": {"maxBackoff": "2h"}}, "spec.retry.maxBackoff", "a duration between 1s and 1h"),
    ({"update": {"strategy": "rolling"}}, "spec.update.strategy", 'supported values: "Rolling", "OnClaim"'),
    ({"update": {"maxSurge": "101%"}}, "spec.update.maxSurge", AMOUNT),
    ({"update": {"maxSurge": -1}}, "spec.update.maxSurge", AMOUNT),
    ({"update": {"maxSurge": 10001}}, "spec.update.maxSurge", AMOUNT),
    ({"update": {"maxSurge": "five"}}, "spec.update.maxSurge", AMOUNT),
    ({"update": {"maxUnavailable": "1.5%"}}, "spec.update.maxUnavailable", AMOUNT),
    ({"update": {"maxSurge": 0, "maxUnavailable": 0}}, "spec.update", "must not both be 0"),
    ({"update": {"maxSurge": "0%", "maxUnavailable": 0}}, "spec.update", "must not both be 0"),
    ({"deletionPolicy": "Orphan"}, "spec.deletionPolicy", 'supported values: "Drain", "Force"'),
    ({"paused": "yes"}, "spec.paused", "must be of type boolean"),
]
PROVIDERS = [
    ({"type": None}, "spec.type", "Required value"),
    ({"type": "Libvirt"}, "spec.type", LABEL),
    ({"config": "url"}, "spec.config", "must be of type object"),
    ({"secretRef": {}}, "spec.secretRef.name", "Required value"),
    ({"secretRef": {"name": "My_Secret"}}, "spec.secretRef.name", "joined by dots"),
    ({"limits": {"machines": 10001}}, "spec.limits.machines", "less than or equal to 10000"),
    ({"limits": {"operate": 0}}, "spec.limits.operate", "greater than or equal to 1"),
    ({"limits": {"observe": 1001}}, "spec.limits.observe", "less than or equal to 1000"),
    ({"timeouts": {"operate": "2h"}}, "spec.timeouts.operate", "a duration between 1s and 1h"),
    ({"timeouts": {"observe": "11m"}}, "spec.timeouts.observe", "a duration between 1s and 10m"),
    ({"circuitBreaker": {"failures": 0}}, "spec.circuitBreaker.failures", "greater than or equal to 1"),
    ({"circuitBreaker": {"pause": "soon"}}, "spec.circuitBreaker.pause", "a duration between 1s and 1h"),
    ({"observe": {"interval": "500ms"}}, "spec.observe.interval", "a duration between 1s and 1h"),
]
VMS = [
    ({"pool": None}, "spec.pool", "Required value"),
    ({"poolUid": None}, "spec.poolUid", "Required value"),
    ({"provider": None}, "spec.provider", "Required value"),
    ({"pool": "Web"}, "spec.pool", LABEL),
    ({"provider": "a" * 53}, "spec.provider", "may not be more than 52 bytes"),
    ({"retryCount": -1}, "spec.retryCount", "greater than or equal to 0"),
    ({"adopt": {}}, "spec.adopt.machineId", "Required value"),
]


def named(rows: list[tuple[dict[str, Any], str, str]]) -> list[Any]:
    return [pytest.param(*row, id=f"{row[1]}={str(row[0])[:60]}") for row in rows]


async def expect_refusal(api: Api, namespace: str, plural: str, body: dict[str, Any], field: str, words: str) -> None:
    objects = api.kind(plural, namespace)
    answer = await objects.create(body)
    assert answer.status == 422, f"{answer.status}: {answer.body}"
    assert field in answer.fields
    assert f"{field}: " in answer.message
    assert words in answer.message
    assert (await objects.get(body["metadata"]["name"])).status == 404


@pytest.mark.parametrize(("spec", "field", "words"), named(POOLS))
async def test_a_wrong_pool_is_refused(
    api: Api, shared_namespace: str, spec: dict[str, Any], field: str, words: str
) -> None:
    await expect_refusal(api, shared_namespace, "vmpools", pool("wrong", **spec), field, words)


@pytest.mark.parametrize(("spec", "field", "words"), named(PROVIDERS))
async def test_a_wrong_provider_is_refused(
    api: Api, shared_namespace: str, spec: dict[str, Any], field: str, words: str
) -> None:
    await expect_refusal(api, shared_namespace, "vmproviders", provider("wrong", **spec), field, words)


@pytest.mark.parametrize(("spec", "field", "words"), named(VMS))
async def test_a_wrong_vm_is_refused(
    api: Api, shared_namespace: str, spec: dict[str, Any], field: str, words: str
) -> None:
    await expect_refusal(api, shared_namespace, "pooledvms", vm("wrong", **spec), field, words)


@pytest.mark.parametrize("name", ["a" * 53, "web.lab"])
@pytest.mark.parametrize(("plural", "make"), [("vmpools", pool), ("vmproviders", provider)])
async def test_a_name_that_leaves_no_room_is_refused(
    api: Api, shared_namespace: str, plural: str, make: Any, name: str
) -> None:
    words = "at most 52 characters long and hold no dot"
    await expect_refusal(api, shared_namespace, plural, make(name), "metadata.name", words)


@pytest.mark.parametrize("name", ["a" * 52, "1-web"])
@pytest.mark.parametrize(("plural", "make"), [("vmpools", pool), ("vmproviders", provider)])
async def test_a_name_up_to_the_bound_is_taken(
    api: Api, shared_namespace: str, plural: str, make: Any, name: str
) -> None:
    (await api.kind(plural, shared_namespace).create(make(name))).ok()


@pytest.mark.parametrize("kind", ["VMPool", "PooledVM", "VMProvider"])
async def test_an_object_without_a_spec_is_refused(api: Api, shared_namespace: str, kind: str) -> None:
    body = {"apiVersion": "vmpool.dev/v1alpha1", "kind": kind, "metadata": {"name": "empty"}}
    answer = await api.kind(f"{kind.lower()}s", shared_namespace).create(body)
    assert answer.status == 422
    assert "spec" in answer.fields


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"replica": 3}, "spec.replica"),
        (template(cpu=2), "spec.template.cpu"),
        ({"readiness": {"timeOut": "5m"}}, "spec.readiness.timeOut"),
        ({"providers": [{"name": "sim", "wieght": 1}]}, "spec.providers[0].wieght"),
    ],
)
async def test_a_typing_error_is_refused_by_name(
    api: Api, kubectl: Kubectl, shared_namespace: str, spec: dict[str, Any], path: str
) -> None:
    pools = api.kind("vmpools", shared_namespace)
    created = await pools.create(pool("typo", **spec))
    assert created.status == 400
    assert f'unknown field "{path}"' in created.message
    applied = await pools.apply(pool("typo", **spec), "git")
    assert not 200 <= applied.status < 300
    assert path.rpartition(".")[2] in applied.message
    assert (await pools.get("typo")).status == 404


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"circuit": "Ajar"}, "status.circuit", 'supported values: "Closed", "Open", "HalfOpen"'),
        ({"machines": -1}, "status.machines", "greater than or equal to 0"),
        ({"conditions": [{"type": "Ready"}]}, "status.conditions[0].reason", "Required value"),
        ({"conditions": [CONDITION, CONDITION]}, "status.conditions[1]", "Duplicate value"),
        (
            {"conditions": [{**CONDITION, "status": "Maybe"}]},
            "status.conditions[0].status",
            'supported values: "True", "False", "Unknown"',
        ),
        ({"openUntil": "tomorrow"}, "status.openUntil", "must be of type date-time"),
    ],
)
async def test_a_wrong_status_is_refused(
    api: Api, namespace: str, change: dict[str, Any], field: str, words: str
) -> None:
    providers = api.kind("vmproviders", namespace)
    before = (await providers.create(provider("sim"))).ok()
    answer = await providers.merge("sim", {"status": change}, "status")
    assert answer.status == 422
    assert field in answer.fields
    assert words in answer.message
    assert (await providers.get("sim")).ok() == before
