"""What machines took lately is remembered within bounds, by provider and step."""

from datetime import timedelta

from vmpool.engine.durations import Durations
from vmpool.plan.looks import EARLY, REMEMBERED
from vmpool.plan.snapshot import Step


def test_the_quickest_of_the_last_ones_is_expected() -> None:
    durations = Durations()
    assert durations.expected == {}
    for seconds in (30, 20, 40):
        durations.took("east", Step.BOOT, timedelta(seconds=seconds))
    durations.took("east", Step.DESTROY, timedelta(seconds=3))
    assert durations.expected == {
        ("east", Step.BOOT): timedelta(seconds=20) * EARLY,
        ("east", Step.DESTROY): timedelta(seconds=3) * EARLY,
    }


def test_a_provider_that_has_become_slower_is_believed() -> None:
    durations = Durations()
    durations.took("east", Step.BOOT, timedelta(seconds=1))
    for _ in range(REMEMBERED):
        durations.took("east", Step.BOOT, timedelta(seconds=60))
    assert durations.expected["east", Step.BOOT] == timedelta(seconds=60) * EARLY


def test_another_template_begins_anew() -> None:
    durations = Durations()
    durations.took("east", Step.BOOT, timedelta(seconds=1))
    durations.forget()
    assert durations.expected == {}
