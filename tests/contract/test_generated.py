"""The generated files are what the code makes."""

from pathlib import Path

import pytest

from vmpool.cli import generate
from vmpool.plan.crds import definitions

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", generate.outputs())
def test_the_generated_file_is_current(path: str) -> None:
    found = (ROOT / path).read_text(encoding="utf-8")
    assert found == generate.outputs()[path], f"{path} is stale; type: make generate"


def test_nothing_is_left_of_a_kind_that_is_gone() -> None:
    assert generate.stale(ROOT) == []


def test_generating_brings_everything_up_to_date_and_says_what_was_not(tmp_path: Path) -> None:
    assert generate.write(tmp_path) == sorted(generate.outputs())
    assert generate.write(tmp_path) == []

    (tmp_path / "crds/olds.vmpool.dev.yaml").write_text("of a kind that is gone")
    (tmp_path / "crds/kustomization.yaml").write_text("not ours to touch")
    (tmp_path / "docs/reference/kinds.md").write_text("edited by hand")
    assert generate.stale(tmp_path) == ["crds/olds.vmpool.dev.yaml", "docs/reference/kinds.md"]
    assert generate.write(tmp_path) == ["crds/olds.vmpool.dev.yaml", "docs/reference/kinds.md"]
    assert generate.stale(tmp_path) == []
    assert {file.name for file in (tmp_path / "crds").iterdir()} == {*definitions(), "kustomization.yaml"}


def test_the_pages_say_what_the_server_holds_a_reader_to() -> None:
    kinds = generate.outputs()["docs/reference/kinds.md"]
    assert "| `readiness.timeout` | string | a duration between 5s and 24h" in kinds
    assert "| `template.image` | string | 1 to 253 characters | required |" in kinds
    assert "| `update.strategy` | string | `Rolling`, `OnClaim` | `Rolling` |" in kinds
    life = generate.outputs()["docs/reference/lifecycle.md"]
    assert "    Quarantined --> Pending: redriven" in life
    assert "| Claimed needs a claim | `status.phase` |" in life
