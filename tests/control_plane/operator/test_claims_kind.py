"""What only a whole cluster can show: turns over namespaces, and a VMClaim kind that is deleted or replaced.

On a control plane of its own: the kind belongs to everybody.
"""

import ssl
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.api import Api, Json
from tests.clouds import SimCloud
from tests.control_plane.operator.claimant import Claimant, bound_order, history
from tests.control_plane.operator.stage import DEADLINE, Stage, condition
from tests.operators import Operator
from tests.planes import CRDS, Kubectl, install_crds, kubectl_of, throwaway_plane
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.binaries import Binaries
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane

KIND = "vmclaims.vmpool.dev"
FILE = CRDS / f"{KIND}.yaml"
HOME, DEV = "ci", "dev"
POLICY_API = "/apis/admissionregistration.k8s.io/v1"
CLAIMER = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: everybody-may-claim}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: alice}]
"""


@pytest.fixture(scope="module")
def own_plane(plane_binaries: Binaries) -> Iterator[ControlPlane]:
    with throwaway_plane(plane_binaries) as made:
        yield made


@pytest.fixture(scope="module")
def own_kubectl(own_plane: ControlPlane) -> Kubectl:
    made = kubectl_of(own_plane)
    install_crds(made)
    for namespace in (HOME, DEV):
        made("create", "namespace", namespace)
    return made


@pytest.fixture(scope="module")
def whole(
    own_plane: ControlPlane, own_kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    """An operator that serves every namespace."""
    made = Operator(
        own_plane.kubeconfig,
        tmp_path_factory.mktemp("operator"),
        VMPOOL_NAMESPACE=HOME,
        VMPOOL_CLAIM_PROOF_SECONDS="0.3",
        VMPOOL_CLAIM_REVIEW_SECONDS="0",
        VMPOOL_CLAIM_POLICY_MARGIN_SECONDS="0",
        VMPOOL_CLAIM_RETRY_SECONDS="0.3",
    )
    made.start()
    yield made
    made.kill()


@pytest.fixture
async def stage(own_plane: ControlPlane, whole: Operator, simcloud: SimCloud) -> AsyncIterator[Stage]:
    trust = ssl.create_default_context(cafile=str(own_plane.ca))
    async with aiohttp.ClientSession(
        own_plane.url,
        connector=aiohttp.TCPConnector(ssl=trust),
        headers={"Authorization": f"Bearer {own_plane.token}"},
        timeout=aiohttp.ClientTimeout(total=30),
    ) as session:
        made = Stage(Api(session), HOME, simcloud)

        async def serves() -> bool:
            # The server asks for patience while a kind is new.
            return keep_running(whole) and (await made.vms.list(fieldSelector="spec.pool=none")).status == 200

        await until(serves, deadline=DEADLINE, what="the API server serves our kinds")
        yield made
    # It may be about to end, because a kind was not served for a moment: the next test gets one that is well.
    whole.kill()


async def kind_uid(stage: Stage) -> str:
    """The uid of the definition that is served; empty when there is none."""
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{KIND}"
    answer = await stage.api.call("GET", path)
    return str(answer.body["metadata"]["uid"]) if answer.status == 200 else ""


async def kept(stage: Stage, vm: str) -> None:
    """Wait until the VM says that its claim is missing; it is its user's all the same."""

    async def said() -> bool:
        return condition(await stage.vm(vm), "ClaimMissing")["status"] == "True"

    await until(said, deadline=DEADLINE, what="the VM says that its VMClaim is missing")
    found = await stage.vm(vm)
    assert found["status"]["phase"] == "Claimed"
    assert "releasedAt" not in found["spec"]["claim"]
    assert found["status"]["machineId"] in stage.alive()


def keep_running(operator: Operator) -> bool:
    """Start an operator again that has ended because a kind was not served, as whoever runs it would."""
    if not operator.running:
        operator.kill()
        operator.start()
    return True


async def asked_again(operator: Operator, sentence: str) -> None:
    """Wait until the engine has asked several times more for a claim that is missing, and has found the same."""

    def asked() -> int:
        keep_running(operator)
        return sum('"claim_missing"' in line and sentence in line for line in operator.lines().splitlines())

    seen = asked()
    await until(lambda: asked() >= seen + 3, deadline=DEADLINE, what=f"asked again, and {sentence}")


@pytest.mark.parametrize("way", ["delete", "replace"])
async def test_no_user_loses_a_vm_when_the_kind_goes(
    stage: Stage, whole: Operator, own_kubectl: Kubectl, way: str
) -> None:
    await stage.filled(1)
    claimant = Claimant(stage)
    name = await claimant.ask(lifetime="2h")
    await claimant.comes_to(name, "Bound")
    (vm,) = (one["name"] for one in (await claimant.status(name))["vms"])
    await stage.in_phase(vm, "Claimed")
    before = await kind_uid(stage)
    if way == "delete":
        own_kubectl("delete", "crd", KIND)
        await kept(stage, vm)
        own_kubectl("apply", "--server-side", "-f", str(FILE))
    else:
        own_kubectl("replace", "--force", "-f", str(FILE))
    own_kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(FILE))
    assert await kind_uid(stage) not in ("", before)
    await asked_again(whole, "was replaced after the VM was handed out")
    await kept(stage, vm)
    # What is bound under the new definition can be proven gone under it again, and only that.
    again = await claimant.ask()

    async def served() -> list[Json]:
        keep_running(whole)
        return list((await claimant.status(again)).get("vms", ()))

    (one,) = await until(served, deadline=DEADLINE, what="a new claim is served")
    other = one["name"]
    (await claimant.claims.delete(again)).ok()

    async def given_back() -> bool:
        return keep_running(whole) and await stage.phase(other) == "Gone"

    await until(given_back, deadline=DEADLINE, what="the VM of a claim that was deleted is destroyed")
    assert await stage.phase(vm) == "Claimed"


async def test_a_kind_that_is_going_deletes_claims_and_no_user_loses_a_vm(
    stage: Stage, whole: Operator, own_kubectl: Kubectl
) -> None:
    """A claim with somebody else's finalizer stays visible as being deleted, for as long as the kind waits for it."""
    await stage.filled(1)
    claimant = Claimant(stage)
    name = await claimant.ask(lifetime="2h")
    await claimant.comes_to(name, "Bound")
    (vm,) = (one["name"] for one in (await claimant.status(name))["vms"])
    await stage.in_phase(vm, "Claimed")
    (await claimant.claims.merge(name, {"metadata": {"finalizers": ["example.com/keep"]}})).ok()
    own_kubectl("delete", "crd", KIND, "--wait=false")

    async def deleting() -> bool:
        return "deletionTimestamp" in (await claimant.claims.get(name)).ok()["metadata"]

    def doubted() -> bool:
        keep_running(whole)
        return sum('"claim_deletion_not_proven"' in line for line in whole.lines().splitlines()) >= 3

    try:
        await until(deleting, deadline=DEADLINE, what="the claim is being deleted with its kind")
        await until(doubted, deadline=DEADLINE, what="the engine has found several times that this proves nothing")
        found = await stage.vm(vm)
        assert found["status"]["phase"] == "Claimed"
        assert "releasedAt" not in found["spec"]["claim"]
    finally:
        (await claimant.claims.merge(name, {"metadata": {"finalizers": None}})).ok()
        own_kubectl("wait", "--for=delete", "--timeout=60s", f"crd/{KIND}")
        own_kubectl("apply", "--server-side", "-f", str(FILE))
        own_kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(FILE))
    await kept(stage, vm)


async def test_namespaces_take_turns(stage: Stage, whole: Operator, own_kubectl: Kubectl) -> None:
    """Six claims of one namespace wait, then one of another is made: it is served first, or after one of them."""
    own_kubectl("apply", "-f", "-", input=CLAIMER)
    await trusted(stage)
    await stage.put_provider()
    await stage.put_pool(replicas=0, maxVMs=20, paused=True, claims={"allowedNamespaces": [DEV]})
    request = [{"pool": stage.pool, "namespace": HOME}]
    many, single = Claimant(stage), Claimant(stage, DEV)
    since = await stage.version()
    wish = {"requests": request, "requester": "alice"}
    crowd = [await many.ask(**wish) for _ in range(6)]
    for one in crowd:
        await many.waits(one, "PoolPaused")
    lonely = await single.ask(**wish)
    await single.waits(lonely, "PoolPaused")
    stage.fault("slow", "create", seconds=0.3)
    await stage.change(paused=False, limits={"pending": 1})
    await many.bound(*crowd)
    (vm,) = await single.vms((await single.comes_to(lonely, "Bound")) and lonely)
    assert vm["spec"]["claim"]["owner"] == "alice"
    order = bound_order(history(own_kubectl, f"/apis/{keys.API_VERSION}/vmclaims", since))
    assert order.index(lonely) <= 1, order


async def trusted(stage: Stage) -> None:
    """Install the smallest policy of that name, and wait until claims are made after it."""
    matches = {
        "resourceRules": [
            {"apiGroups": [keys.GROUP], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["vmclaims"]}
        ]
    }
    bodies = {
        "validatingadmissionpolicies": {
            "kind": "ValidatingAdmissionPolicy",
            "spec": {"failurePolicy": "Fail", "matchConstraints": matches, "validations": [{"expression": "true"}]},
        },
        "validatingadmissionpolicybindings": {
            "kind": "ValidatingAdmissionPolicyBinding",
            "spec": {"policyName": keys.CLAIM_POLICY, "validationActions": ["Deny"]},
        },
    }
    made = ""
    for plural, body in bodies.items():
        whole = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": keys.CLAIM_POLICY}, **body}
        answer = (await stage.api.call("POST", f"{POLICY_API}/{plural}", whole)).ok()
        made = str(answer["metadata"]["creationTimestamp"])

    async def later() -> bool:
        probe = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "probe-"}}
        answer = await stage.api.call("POST", f"/api/v1/namespaces/{HOME}/configmaps", probe)
        return str(answer.ok()["metadata"]["creationTimestamp"]) > made

    await until(later, deadline=DEADLINE, what="a second has passed on the server's clock")
