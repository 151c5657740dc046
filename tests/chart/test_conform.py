"""kubeconform finds every object of the chart, and every sample, to be of its kind's shape: strictly."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.chart.helm import Helm, Object
from tests.chart.matrix import FOREIGN, MATRIX
from tests.chart.schemas import LOCATION, write_schemas
from tests.planes import Kubectl
from vmpool.dev.helm import ChartTools

pytestmark = pytest.mark.control_plane

SAMPLES = Path(__file__).parents[2] / "deploy" / "samples"
ROWS = [pytest.param(values, id=name) for name, values in MATRIX.items()]
CHECK_SECONDS = 60


class Conform:
    """kubeconform with the schemas of a real API server, and no others."""

    def __init__(self, binary: Path, schemas: Path) -> None:
        self._binary = binary
        self._schemas = schemas

    def problems(self, text: str) -> str:
        """Return what is wrong with some manifests; empty when nothing is."""
        argv = [self._binary, "-strict", f"-skip={','.join(FOREIGN)}", f"-schema-location={self._schemas}/{LOCATION}"]
        done = subprocess.run(
            list(map(str, argv)), input=text, capture_output=True, text=True, check=False, timeout=CHECK_SECONDS
        )
        said: str = done.stdout + done.stderr
        assert (done.returncode == 0) is not bool(said), done
        return said


@pytest.fixture(scope="session")
def conform(chart_tools: ChartTools, chart_kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Conform:
    """kubeconform that knows what the server serves."""
    folder = tmp_path_factory.mktemp("schemas")
    write_schemas(chart_kubectl, folder)
    return Conform(chart_tools.kubeconform, folder)


@pytest.mark.parametrize("values", ROWS)
def test_the_chart_conforms(helm: Helm, conform: Conform, values: Object) -> None:
    assert conform.problems(yaml.safe_dump_all(helm.template(values))) == ""


@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_sample_conforms(conform: Conform, sample: Path) -> None:
    assert conform.problems(sample.read_text()) == ""


@pytest.mark.parametrize(
    ("kind", "path", "said"),
    [
        pytest.param("Deployment", "spec.replica", "replica", id="a field of a Deployment"),
        pytest.param("Deployment", "spec.template.spec.container", "container", id="a deep one"),
        pytest.param("ServiceAccount", "automount", "automount", id="at the top"),
        pytest.param("Madeup", "", "could not find schema for Madeup", id="a kind"),
    ],
)
def test_it_would_find_a_typo(helm: Helm, conform: Conform, kind: str, path: str, said: str) -> None:
    base: Object = {"apiVersion": "example.com/v1", "kind": "Madeup", "metadata": {"name": "x"}}
    found = next((each for each in helm.template() if each["kind"] == kind), base)
    if path:
        *folders, last = path.split(".")
        place: Object = found
        for folder in folders:
            place = place[folder]
        place[last] = 1
    assert said in conform.problems(yaml.safe_dump(found))


def test_it_would_find_a_typo_in_a_sample(conform: Conform) -> None:
    text = (SAMPLES / "simulated.yaml").read_text()
    assert "replicaz" in conform.problems(text.replace("replicas:", "replicaz:", 1))
