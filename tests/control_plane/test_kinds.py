"""Our kinds on a real API server: accepted, explained, applied, selected and scaled as people expect."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.api import Api, Objects
from tests.objects import FULL_CLAIM, FULL_SPECS, FULL_STATUSES, claim, pool, provider, thing, vm
from tests.planes import Kubectl
from tests.waiting import until
from vmpool.api import crd, keys
from vmpool.plan.crds import definitions

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("crds_installed")]

SAMPLES = Path(__file__).parents[2] / "deploy" / "samples"
DEFINITIONS = {one["metadata"]["name"]: one for one in definitions().values()}
KINDS = {kind.plural: kind.name for kind in crd.KINDS}
GIT = "git"
AUTOSCALING = "/apis/autoscaling/v2"
SCALING_SECONDS = 90
PUBLISHING_SECONDS = 30


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = DEFINITIONS[name]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


# The definitions.


@pytest.mark.parametrize("name", DEFINITIONS)
async def test_the_server_accepts_the_definition_and_complains_of_nothing(api: Api, name: str) -> None:
    body = (await api.call("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")).ok()
    conditions = {one["type"]: one["status"] for one in body["status"]["conditions"]}
    assert conditions["NamesAccepted"] == conditions["Established"] == "True"
    assert "NonStructuralSchema" not in conditions
    assert "KubernetesAPIApprovalPolicyConformant" not in conditions
    assert body["status"]["storedVersions"] == [keys.VERSION]


@pytest.mark.parametrize("name", DEFINITIONS)
async def test_the_server_keeps_the_schema_as_we_wrote_it(api: Api, name: str) -> None:
    body = (await api.call("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")).ok()
    assert body["spec"]["versions"][0]["schema"]["openAPIV3Schema"] == schema(name)


def described(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Path and description of every field."""
    for name, child in node.get("properties", {}).items():
        if "description" in child:
            yield f"{path}.{name}", child["description"]
        yield from described(child, f"{path}.{name}")
        yield from described(child.get("items", {}), f"{path}.{name}[]")


@pytest.mark.parametrize("name", DEFINITIONS)
async def test_the_server_publishes_the_text_of_every_field(api: Api, name: str) -> None:
    kind = DEFINITIONS[name]["spec"]["names"]["kind"]

    async def published() -> dict[str, Any]:
        answer = await api.call("GET", f"/openapi/v3/apis/{keys.API_VERSION}")
        schemas: dict[str, Any] = answer.body.get("components", {}).get("schemas", {})
        return next((one for key, one in schemas.items() if key.endswith(f".{kind}")), {})

    # It is published some time after the kind is served.
    found = await until(published, deadline=PUBLISHING_SECONDS, what="the published schema")
    assert found["description"] == schema(name)["description"]
    ours = dict(described({"properties": {part: schema(name)["properties"][part] for part in ("spec", "status")}}))
    theirs = dict(described({"properties": {part: found["properties"][part] for part in ("spec", "status")}}))
    assert theirs == ours
    assert len(ours) > 20


async def test_kubectl_explains_kinds_and_fields(kubectl: Kubectl) -> None:
    def explained(*words: str) -> str:
        return " ".join(kubectl("explain", *words, check=False).split())

    await until(lambda: explained("vmpools.vmpool.dev"), deadline=PUBLISHING_SECONDS, what="the published schema")
    assert "A pool of ready-to-use virtual machines" in explained("vmpool")
    assert "How long a machine may take from the first try" in explained("vmpool.spec.readiness.timeout")
    assert "Most machines that all pools together may have here." in explained("vmprov.spec.limits")
    assert "ENUM: Pending Ready Claimed Quarantined Completed" in explained("pvm.status.phase")
    assert "tcpSocket <Object> port <integer> -required-" in explained("vmp", "--recursive")


async def test_a_kind_is_spoken_of_by_its_names_and_all_kinds_by_their_category(
    api: Api, kubectl: Kubectl, namespace: str
) -> None:
    (await api.kind("vmpools", namespace).create(pool("web"))).ok()
    (await api.kind("vmproviders", namespace).create(provider("sim"))).ok()
    for name in ("vmpool", "vmpools", "vmp"):
        assert kubectl("get", name, "web", "-n", namespace, "-o", "name") == "vmpool.vmpool.dev/web\n"
    every = kubectl("get", keys.CATEGORY, "-n", namespace, "-o", "name").split()
    assert every == ["vmpool.vmpool.dev/web", "vmprovider.vmpool.dev/sim"]


# Apply.


def sample_objects() -> list[Any]:
    documents = [yaml.safe_load_all(file.read_text()) for file in sorted(SAMPLES.rglob("*.yaml"))]
    ours = [one for file in documents for one in file if one and one.get("apiVersion") == keys.API_VERSION]
    return [pytest.param(one, id=f"{one['kind']}-{one['metadata']['name']}") for one in ours]


FULL = [
    pytest.param(thing(KINDS[plural], f"full-{plural}", {k: v for k, v in spec.items() if k != "claim"}), id=plural)
    for plural, spec in FULL_SPECS.items()
]


@pytest.mark.parametrize("body", [*FULL, *sample_objects()])
async def test_applying_twice_changes_nothing(api: Api, namespace: str, body: dict[str, Any]) -> None:
    plural = next(plural for plural, kind in KINDS.items() if kind == body["kind"])
    objects = api.kind(plural, namespace)
    body = {**body, "metadata": {**body["metadata"], "namespace": namespace}}
    name = (await objects.apply(body, GIT)).ok()["metadata"]["name"]
    # A status that is only a default is not stored by the create, so the first write of anybody stores it.
    stored = (await objects.merge(name, {"status": {"observedGeneration": 0}}, "status")).ok()
    again = (await objects.apply(body, GIT)).ok()
    assert again == stored
    assert again["metadata"]["generation"] == 1
    assert stored_includes(stored["spec"], body["spec"])


@pytest.mark.parametrize("plural", FULL_STATUSES)
async def test_a_full_status_is_stored_whole_and_applying_it_twice_changes_nothing(
    api: Api, namespace: str, plural: str
) -> None:
    objects = api.kind(plural, namespace)
    body = thing(KINDS[plural], "full", {k: v for k, v in FULL_SPECS[plural].items() if k != "claim"})
    (await objects.create(body)).ok()
    status = {**body, "status": FULL_STATUSES[plural]}
    first = (await objects.apply(status, "operator", "status")).ok()
    assert first["status"] == FULL_STATUSES[plural]
    assert (await objects.apply(status, "operator", "status")).ok() == first


async def test_a_full_claim_is_stored_whole_and_applying_it_twice_changes_nothing(api: Api, namespace: str) -> None:
    objects = api.kind("pooledvms", namespace)
    (await objects.create(vm("web-a"))).ok()
    (await objects.merge("web-a", {"status": {"phase": "Ready"}}, "status")).ok()
    ended = ("releasedAt", "endReason")
    held = vm("web-a", claim={key: value for key, value in FULL_CLAIM.items() if key not in ended})
    (await objects.apply(held, "gateway")).ok()
    full = vm("web-a", claim=FULL_CLAIM)
    first = (await objects.apply(full, "gateway")).ok()
    assert first["spec"]["claim"] == FULL_CLAIM
    assert (await objects.apply(full, "gateway")).ok() == first


def stored_includes(stored: Any, written: Any) -> bool:
    """Whether what was written is stored; the server may have added defaults."""
    if isinstance(written, dict):
        return all(stored_includes(stored[key], value) for key, value in written.items())
    if isinstance(written, list):
        return len(stored) == len(written) and all(map(stored_includes, stored, written))
    return bool(stored == written)


# Defaults.


async def test_a_pool_is_born_with_its_defaults(api: Api, namespace: str) -> None:
    body = (await api.kind("vmpools", namespace).create(pool("web", readiness={}, retry={}, update={}))).ok()
    spec = body["spec"]
    assert spec["readiness"] == {"timeout": "15m", "interval": "60s", "failureThreshold": 3}
    assert spec["retry"] == {"attempts": 5, "backoff": "2s", "maxBackoff": "5m"}
    assert spec["update"] == {"strategy": "Rolling", "maxSurge": "25%", "maxUnavailable": "25%"}
    assert (spec["maxVMs"], spec["deletionPolicy"], spec["paused"]) == (1000, "Drain", False)
    assert spec["providers"] == [{"name": "sim", "weight": 1}]
    assert "replicas" not in spec
    assert body["status"]["observedGeneration"] == -1


async def test_a_section_that_is_not_written_stays_absent(api: Api, namespace: str) -> None:
    spec = (await api.kind("vmpools", namespace).create(pool("web"))).ok()["spec"]
    assert set(spec) == {"template", "providers", "maxVMs", "deletionPolicy", "paused"}
    assert spec["template"] == {"image": "debian-12"}


async def test_a_vm_and_a_provider_are_born_unseen(api: Api, namespace: str) -> None:
    machine = (await api.kind("pooledvms", namespace).create(vm("web-a"))).ok()
    assert machine["status"].items() >= {"phase": "Pending", "observedGeneration": -1}.items()
    place = (await api.kind("vmproviders", namespace).create(provider("sim"))).ok()
    assert place["status"]["observedGeneration"] == -1
    assert "config" not in place["spec"]


async def test_free_settings_of_a_provider_are_kept_as_written(api: Api, namespace: str) -> None:
    config = {"url": "http://127.0.0.1:1", "deep": {"list": [1, "two", {"three": None}], "0.5": 0.5}}
    stored = (await api.kind("vmproviders", namespace).create(provider("sim", config=config))).ok()
    assert stored["spec"]["config"] == config


# Selecting.


async def test_vms_are_selected_by_phase_pool_provider_and_claim(api: Api, namespace: str) -> None:
    vms = api.kind("pooledvms", namespace)
    (await vms.create(vm("a"))).ok()
    (await vms.create(vm("b", provider="other"))).ok()
    (await vms.create(vm("c", pool="db"))).ok()
    (await vms.merge("b", {"status": {"phase": "Ready"}}, "status")).ok()
    (await vms.merge("c", {"status": {"phase": "Ready"}}, "status")).ok()
    (await vms.merge("c", {"spec": {"claim": claim("claim-1")}})).ok()

    assert await vms.names("status.phase=Ready") == {"b", "c"}
    assert await vms.names("status.phase!=Ready") == {"a"}
    assert await vms.names("spec.pool=web") == {"a", "b"}
    assert await vms.names("spec.provider=sim") == {"a", "c"}
    assert await vms.names("spec.claim.id=claim-1") == {"c"}
    assert await vms.names("spec.claim.id=,status.phase=Ready") == {"b"}
    assert (await vms.list(fieldSelector="status.machineId=x")).status == 400


# Scaling.


async def test_the_scale_is_read_and_written_by_its_subresource(api: Api, namespace: str) -> None:
    pools = api.kind("vmpools", namespace)
    (await pools.create(pool("web", replicas=1))).ok()
    selector = f"{keys.LABEL_POOL}=web"
    (await pools.merge("web", {"status": {"replicas": 1, "selector": selector}}, "status")).ok()
    scale = (await pools.get("web", "scale")).ok()
    assert scale["spec"] == {"replicas": 1}
    assert scale["status"] == {"replicas": 1, "selector": selector}
    scale["spec"]["replicas"] = 5
    (await pools.put(scale, "scale")).ok()
    assert (await pools.get("web")).ok()["spec"]["replicas"] == 5
    assert (await pools.merge("web", {"spec": {"replicas": 5001}}, "scale")).status == 422


async def test_kubectl_scales_a_pool_and_git_is_told_of_it(api: Api, kubectl: Kubectl, namespace: str) -> None:
    pools = api.kind("vmpools", namespace)
    (await pools.apply(pool("web", replicas=1), GIT)).ok()
    kubectl("scale", "vmpool/web", "--replicas=3", "-n", namespace)
    assert (await pools.get("web")).ok()["spec"]["replicas"] == 3
    fight = await pools.apply(pool("web", replicas=1), GIT)
    assert fight.status == 409
    assert ".spec.replicas" in fight.fields


async def test_dropping_replicas_hands_the_size_over(api: Api, namespace: str) -> None:
    """No default steps in: absent means that the pool holds its size."""
    pools = api.kind("vmpools", namespace)
    assert (await pools.apply(pool("web", replicas=3), GIT)).ok()["spec"]["replicas"] == 3
    assert "replicas" not in (await pools.apply(pool("web"), GIT)).ok()["spec"]


def autoscaler(pool_name: str, at_least: int) -> dict[str, Any]:
    target = {"apiVersion": keys.API_VERSION, "kind": "VMPool", "name": pool_name}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": pool_name},
        "spec": {"scaleTargetRef": target, "minReplicas": at_least, "maxReplicas": 4},
    }


@pytest.fixture
async def counted_pools(api: Api, namespace: str) -> Objects:
    """A pool called web with one VM, and what the operator would say of it."""
    pools = api.kind("vmpools", namespace)
    (await pools.create(pool("web", replicas=1))).ok()
    status = {"desiredReplicas": 1, "replicas": 1, "selector": f"{keys.LABEL_POOL}=web"}
    (await pools.merge("web", {"status": status}, "status")).ok()
    return pools


async def test_an_autoscaler_scales_a_pool(api: Api, namespace: str, counted_pools: Objects) -> None:
    autoscalers = api.kind("horizontalpodautoscalers", namespace, api=AUTOSCALING)
    (await autoscalers.create(autoscaler("web", at_least=2))).ok()

    async def scaled() -> bool:
        return bool((await counted_pools.get("web")).ok()["spec"]["replicas"] == 2)

    await until(scaled, deadline=SCALING_SECONDS, what="the autoscaler's write")


async def test_an_autoscaler_understands_the_selector(api: Api, namespace: str, counted_pools: Objects) -> None:
    """Without a selector it would say InvalidSelector; there is no metrics server here for it to go on with."""
    autoscalers = api.kind("horizontalpodautoscalers", namespace, api=AUTOSCALING)
    (await autoscalers.create(autoscaler("web", at_least=1))).ok()

    async def reason() -> str:
        conditions = (await autoscalers.get("web")).ok().get("status", {}).get("conditions", [])
        return next((str(one["reason"]) for one in conditions if one["type"] == "ScalingActive"), "")

    assert await until(reason, deadline=SCALING_SECONDS, what="a condition") == "FailedGetResourceMetric"
