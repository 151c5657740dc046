"""What trials have found: plans that broke a promise once, each with its cause and the test that keeps it."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from tests.faults.gate.plan import Plan

FILE = Path(__file__).parents[1] / "found.json"


class Finding(BaseModel):
    """One violation that was found and is fixed at its cause."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shown: str
    """What was broken, as a user would say it."""
    cause: str
    kept: str
    """The test that fails when the cause comes back: a file, or a test's id."""
    plan: Plan | None = None
    """Plays it again; None: found by another way than a trial."""


def findings() -> list[Finding]:
    """Return all of them, in the order in which they were found."""
    return TypeAdapter(list[Finding]).validate_json(FILE.read_text())


def kept_plans() -> list[Plan]:
    """Return the plans that broke a promise once: they come first in every sample."""
    return [finding.plan for finding in findings() if finding.plan is not None]
