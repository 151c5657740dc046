"""Every environment renders, is of its kinds' shapes, and is applied to a real API server: twice without a change."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.chart.helm import Object, of, one
from tests.chart.matrix import FOREIGN
from tests.chart.schemas import LOCATION, write_schemas
from tests.chart.test_admitted import bare
from tests.chart.test_render import pods
from tests.deploy.conftest import DEPLOY
from tests.planes import Kubectl
from vmpool.dev.helm import ChartTools

pytestmark = pytest.mark.control_plane

ENVIRONMENTS = sorted(each.name for each in (DEPLOY / "environments").iterdir())
PARTS = sorted(each.name for each in (DEPLOY / "common").iterdir())
OURS = "vmpool.dev/v1alpha1"
CHECK_SECONDS = 60
ESTABLISHED = ("wait", "--for=condition=Established", "--timeout=60s", "crd")
GENERATION = "jsonpath={.metadata.generation}"
GIT = ("--server-side", "--field-manager=gitops", "--validate=strict")


class Overlays:
    """The environments as kustomize makes them."""

    def __init__(self, kustomize: Callable[[Path], str]) -> None:
        self._kustomize = kustomize

    def text(self, name: str, part: str = "") -> str:
        """An environment, or one of its two folders."""
        return self._kustomize(DEPLOY / "environments" / name / part)

    def objects(self, name: str, part: str = "") -> list[Object]:
        """The same as objects."""
        return [each for each in yaml.load_all(self.text(name, part), Loader=yaml.CSafeLoader) if each]


@pytest.fixture(scope="session")
def overlays(kustomize: Callable[[Path], str]) -> Overlays:
    return Overlays(kustomize)


def names(objects: list[Object], kind: str) -> list[str]:
    return sorted(each["metadata"]["name"] for each in of(objects, kind))


# --- how it is laid out


def test_there_are_the_environments_that_people_have() -> None:
    assert {"development", "staging", "production"} <= set(ENVIRONMENTS)


def test_every_common_part_is_used_or_is_for_newer_servers() -> None:
    used = set()
    for file in (DEPLOY / "environments").rglob("kustomization.yaml"):
        for component in yaml.safe_load(file.read_text()).get("components", ()):
            folder = (file.parent / component).resolve()
            assert folder.is_relative_to(DEPLOY / "common"), f"{file} takes {component} from elsewhere"
            used.add(folder.name)
    assert set(PARTS) - used == {"requester"}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_is_its_two_folders_and_nothing_else(overlays: Overlays, name: str) -> None:
    whole, parts = overlays.objects(name), [*overlays.objects(name, "operator"), *overlays.objects(name, "machines")]
    assert sorted(map(yaml.safe_dump, whole)) == sorted(map(yaml.safe_dump, parts))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_machines_are_apart_from_the_operator(overlays: Overlays, name: str) -> None:
    """Whoever may change pools needs no rights on the operator; and one is removed before the other."""
    machines = overlays.objects(name, "machines")
    assert {each["metadata"].get("namespace", "machines") for each in machines} == {"machines"}
    assert {each["apiVersion"] for each in machines} <= {OURS, "v1"}
    assert not [each for each in overlays.objects(name, "operator") if each["apiVersion"] == OURS]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_what_is_common_reaches_every_pool_and_provider(overlays: Overlays, name: str) -> None:
    machines = overlays.objects(name, "machines")
    for pool in of(machines, "VMPool"):
        named = {key: pool["spec"][key] for key in ("deadLetterQueue", "purgePolicy", "healthPolicy")}
        assert [named["deadLetterQueue"]] == names(machines, "DeadLetterQueue")
        assert [named["purgePolicy"]] == names(machines, "PurgePolicy")
        assert [named["healthPolicy"]] == names(machines, "HealthPolicy")
        assert {each["name"] for each in pool["spec"]["providers"]} <= set(names(machines, "VMProvider"))
    for provider in of(machines, "VMProvider"):
        assert provider["spec"]["circuitBreaker"] == {"failures": 5, "pause": "30s"}


def test_an_environment_has_the_last_word(overlays: Overlays) -> None:
    dry = {name: one(overlays.objects(name), "PurgePolicy", "stale")["spec"]["dryRun"] for name in ENVIRONMENTS}
    assert dry == {"development": True, "staging": True, "production": False}
    kept = one(overlays.objects("development"), "DeadLetterQueue", "failures")["spec"]
    assert kept == {"ttl": "48h", "maxEntries": 10000}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_only_the_simulated_clouds_key_is_in_git(overlays: Overlays, name: str) -> None:
    secrets = of(overlays.objects(name), "Secret")
    assert [each["stringData"] for each in secrets] == [{"apiKey": "demo-key"}] * len(secrets)
    assert name != "production" or not secrets


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_operator_is_the_charts_but_for_what_the_environment_says(overlays: Overlays, name: str) -> None:
    made = overlays.objects(name, "operator")
    for deployment in of(made, "Deployment"):
        image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
        assert image.startswith("registry.example.com/ci/vmpool:")
    counts = {each["metadata"]["name"]: each["spec"]["replicas"] for each in of(made, "Deployment")}
    operator = {"development": 1}.get(name, 2)
    assert counts["vmpool-operator"] == operator
    assert ("vmpool-simcloud" in counts) is (name != "production")
    assert bool(of(made, "NetworkPolicy")) is (name == "production")
    assert bool(of(made, "ServiceMonitor")) is (name == "production")


def test_production_lets_the_operator_reach_its_providers(overlays: Overlays) -> None:
    rules = one(overlays.objects("production"), "NetworkPolicy", "vmpool-operator")["spec"]["egress"]
    assert {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]} in rules


# --- what the server says


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_it_conforms_strictly(
    overlays: Overlays, chart_tools: ChartTools, schemas: Path, name: str
) -> None:  # fmt: skip
    said = conform(chart_tools, schemas, overlays.text(name))
    assert said == ""


def test_a_typo_would_not(overlays: Overlays, chart_tools: ChartTools, schemas: Path) -> None:
    spoiled = overlays.text("production").replace("maxReadyAge:", "maxReadyAgo:")
    assert "maxReadyAgo" in conform(chart_tools, schemas, spoiled)


@pytest.fixture(scope="module")
def schemas(git_kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every kind of the server's, and of ours."""
    folder = tmp_path_factory.mktemp("schemas")
    write_schemas(git_kubectl, folder)
    return folder


def conform(tools: ChartTools, schemas: Path, text: str) -> str:
    argv = [tools.kubeconform, "-strict", f"-skip={','.join(FOREIGN)}", f"-schema-location={schemas}/{LOCATION}"]
    done = subprocess.run(
        list(map(str, argv)), input=text, capture_output=True, text=True, check=False, timeout=CHECK_SECONDS
    )
    return str(done.stdout + done.stderr)


def known(objects: list[Object]) -> str:
    """What a server without the Prometheus operator takes."""
    return yaml.safe_dump_all([each for each in objects if each["kind"] not in FOREIGN])


def versions(kubectl: Kubectl, objects: list[Object]) -> dict[str, str]:
    """The resourceVersion of each object."""
    text = kubectl("get", "-f", "-", "-o", "json", input=known(objects))
    return {
        f"{each['kind']}/{each['metadata'].get('namespace', '')}/{each['metadata']['name']}": each["metadata"][
            "resourceVersion"
        ]
        for each in json.loads(text)["items"]
        # The server itself writes their statuses.
        if each["kind"] not in {"ValidatingAdmissionPolicy", "Namespace"}
    }


def ours(objects: list[Object]) -> list[tuple[str, ...]]:
    """How kubectl finds the objects of our kinds."""
    own = [each for each in objects if each["apiVersion"] == OURS]
    return [(f"{each['kind'].lower()}.vmpool.dev", each["metadata"]["name"], "-n", "machines") for each in own]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_it_is_applied_in_its_order_and_a_second_time_changes_nothing(
    overlays: Overlays, git_kubectl: Kubectl, name: str
) -> None:
    operator, machines = overlays.objects(name, "operator"), overlays.objects(name, "machines")
    flags = (*GIT, "--force-conflicts")
    git_kubectl("apply", *flags, "-f", "-", input=known(operator))
    git_kubectl(*ESTABLISHED, *names(operator, "CustomResourceDefinition"))
    git_kubectl("apply", *flags, "-f", "-", input=known(machines))
    generations = {each: git_kubectl("get", *each, "-o", GENERATION) for each in ours(machines)}

    everything = overlays.objects(name)
    # Without force: nobody else has touched what Git owns. A status that is a default is not stored by the write that
    # makes an object; the first one that follows, here this one, stores it.
    git_kubectl("apply", *GIT, "-f", "-", input=known(everything))
    before = versions(git_kubectl, everything)
    assert len(before) > 30
    git_kubectl("apply", *GIT, "-f", "-", input=known(everything))
    assert versions(git_kubectl, everything) == before
    assert {each: git_kubectl("get", *each, "-o", GENERATION) for each in ours(machines)} == generations
    assert git_kubectl("diff", *GIT[:2], "-f", "-", input=known(everything)) == ""


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_pod_is_admitted_under_the_restricted_profile(
    overlays: Overlays, git_kubectl: Kubectl, name: str
) -> None:
    made = overlays.objects(name, "operator")
    namespace = one(made, "Namespace", "vmpool")
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    first = [namespace, *of(made, "ServiceAccount")]
    git_kubectl("apply", *GIT, "--force-conflicts", "-f", "-", input=yaml.safe_dump_all(first))
    templates = [bare(each, pod) for each, pod in pods(made).items()]
    text = yaml.safe_dump_all(templates)
    flags = (*GIT, "--dry-run=server", "--output=name", "-n", "vmpool")
    assert set(git_kubectl("apply", *flags, "-f", "-", input=text).split()) == {f"pod/{each}" for each in pods(made)}


def test_a_person_who_scales_what_git_leaves_open_keeps_it(overlays: Overlays, git_kubectl: Kubectl) -> None:
    operator, machines = overlays.objects("production", "operator"), overlays.objects("production", "machines")
    git_kubectl("apply", *GIT, "--force-conflicts", "-f", "-", input=known(operator))
    git_kubectl(*ESTABLISHED, *names(operator, "CustomResourceDefinition"))
    git = ("apply", *GIT, "-f", "-")
    git_kubectl(*git, "--force-conflicts", input=known(machines))
    git_kubectl("scale", "vmpool", "ubuntu-24", "-n", "machines", "--replicas=7")
    git_kubectl(*git, input=known(machines))
    assert git_kubectl("get", "vmpool", "ubuntu-24", "-n", "machines", "-o", "jsonpath={.spec.replicas}") == "7"
    # What Git does own is a conflict that says so.
    git_kubectl("scale", "vmpool", "debian-12", "-n", "machines", "--replicas=7")
    assert not git_kubectl(*git, input=known(machines), check=False).count("vmpool.vmpool.dev/debian-12")
    assert git_kubectl("get", "vmpool", "debian-12", "-n", "machines", "-o", "jsonpath={.spec.replicas}") == "7"
    git_kubectl(*git, "--force-conflicts", input=known(machines))
    assert git_kubectl("get", "vmpool", "debian-12", "-n", "machines", "-o", "jsonpath={.spec.replicas}") == "50"
