"""Who owns ``replicas``: an autoscaler, a person, or nobody any more."""

import json

import pytest

from tests.control_plane.operator.stage import IMAGE, QUICK_RETRY, Stage, names
from tests.objects import thing
from tests.operators import Operator
from tests.planes import Kubectl
from vmpool.api import keys

pytestmark = pytest.mark.control_plane


async def test_an_autoscaler_drives_the_scale_subresource(stage: Stage, kubectl: Kubectl) -> None:
    await stage.filled(1)
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": stage.pool, "namespace": stage.namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": keys.API_VERSION, "kind": "VMPool", "name": stage.pool},
            "minReplicas": 2,
            "maxReplicas": 5,
            "metrics": [
                {
                    "type": "External",
                    "external": {"metric": {"name": "queue"}, "target": {"type": "Value", "value": "1"}},
                }
            ],
        },
    }
    kubectl("apply", "-f", "-", input=json.dumps(scaler))
    await stage.full(2)
    scale = json.loads(kubectl("get", "--raw", f"{stage.pools.path}/{stage.pool}/scale"))
    assert scale["spec"]["replicas"] == 2
    assert scale["status"] == {"replicas": 2, "selector": f"{keys.LABEL_POOL}={stage.pool}"}
    kubectl("delete", "hpa", stage.pool, "-n", stage.namespace)


async def test_replicas_taken_out_of_the_manifest_hold_the_size(stage: Stage, served: Operator) -> None:
    await stage.put_provider()
    spec = {"template": {"image": IMAGE}, "providers": [{"name": stage.provider}], "retry": QUICK_RETRY}
    (await stage.pools.apply(thing("VMPool", stage.pool, {**spec, "replicas": 3}), "gitops")).ok()
    before = await stage.full(3)
    (await stage.pools.apply(thing("VMPool", stage.pool, spec), "gitops")).ok()
    assert "replicas" not in (await stage.pools.get(stage.pool)).ok()["spec"]
    await stage.pool_says("Ready", "True", "Filled")
    await stage.looked(served)
    assert names(await stage.full(3)) == names(before)
    (await stage.vms.delete(before[0]["metadata"]["name"])).ok()
    await stage.in_phase(before[0]["metadata"]["name"], "Gone")
    await stage.full(3)
    (await stage.pools.merge(stage.pool, {"spec": {"replicas": 4}}, "scale")).ok()
    await stage.full(4)


async def test_a_new_pool_without_replicas_is_empty_and_says_so(stage: Stage, served: Operator) -> None:
    await stage.put_provider()
    await stage.put_pool()
    assert "spec.replicas is not set" in await stage.pool_says("Ready", "True", "ReplicasUnset")
    await stage.looked(served)
    assert not stage.history()
    (await stage.pools.merge(stage.pool, {"spec": {"replicas": 1}}, "scale")).ok()
    await stage.full(1)
    await stage.pool_says("Ready", "True", "Filled")
