"""Medians, ratios and promises: what is made of the pairs that a benchmark has run."""

import json
from pathlib import Path

import pytest

from bench.figures import Pair, Promise, Result

QUIET = Pair({"seconds": 10.0, "rate": 50.0}, {"seconds": 8.0, "rate": 100.0})
DISTURBED = Pair({"seconds": 40.0, "rate": 12.0}, {"seconds": 32.0, "rate": 24.0})
LUCKY = Pair({"seconds": 9.0, "rate": 60.0}, {"seconds": 9.0, "rate": 80.0})


def test_a_figure_is_the_median_of_all_pairs() -> None:
    result = Result("fill", [DISTURBED, QUIET, LUCKY])
    assert result.metrics == {"seconds": 10.0, "rate": 50.0}
    assert result.floor == {"seconds": 9.0, "rate": 80.0}


def test_a_ratio_is_taken_within_each_pair_so_that_what_disturbs_both_halves_does_not_count() -> None:
    disturbed_throughout = Result("fill", [QUIET, DISTURBED])
    assert disturbed_throughout.ratio == {"seconds": 1.25, "rate": 0.5}
    # Not the ratio of the medians, 10 / 9: it would compare ours of one pair with the floor of another.
    assert Result("fill", [DISTURBED, QUIET, LUCKY]).ratio["seconds"] == 1.25


def test_what_has_no_floor_or_a_floor_of_nothing_has_no_ratio() -> None:
    result = Result("idle", [Pair({"writes": 2.0, "cpu": 1.0, "probes": 3.0}, {"writes": 0.0, "cpu": 0.5})])
    assert result.ratio == {"cpu": 2.0}


def test_what_is_of_all_pairs_together_stands_beside_the_medians_and_is_held_against_promises() -> None:
    whole = Pair({"p99": 60.0, "samples": 4.0}, {"p99": 20.0, "other": 1.0})
    result = Result("checkout", [QUIET, LUCKY], [Promise("p99", 2.9, ratio=True)], whole=whole)
    assert result.metrics == {"seconds": 9.5, "rate": 55.0, "p99": 60.0, "samples": 4.0}
    assert result.ratio == {"seconds": 1.125, "rate": 0.625, "p99": 3.0}
    assert result.broken() == list(result.promises)
    assert result.document()["whole"] == {"ours": whole.ours, "floor": whole.floor}


def test_a_figure_that_one_pair_lacks_is_of_the_others() -> None:
    result = Result("memory", [Pair({"rss": 1.0, "uss": 5.0}, {}), Pair({"rss": 3.0}, {})])
    assert result.metrics == {"rss": 2.0, "uss": 5.0}


@pytest.mark.parametrize(
    ("promise", "kept"),
    [
        pytest.param(Promise("seconds", 10.0), True, id="at most, and just so"),
        pytest.param(Promise("seconds", 9.9), False, id="at most, and above"),
        pytest.param(Promise("rate", 50.0, at_least=True), True, id="at least, and just so"),
        pytest.param(Promise("rate", 51.0, at_least=True), False, id="at least, and below"),
        pytest.param(Promise("rate", 0.5, at_least=True, ratio=True), True, id="of the floor"),
        pytest.param(Promise("rate", 0.6, at_least=True, ratio=True), False, id="too little of the floor"),
        pytest.param(Promise("seconds", 1.2, ratio=True), False, id="too much of the floor"),
    ],
)
def test_a_promise_is_kept_or_broken(promise: Promise, kept: bool) -> None:
    result = Result("fill", [QUIET], [promise])
    assert result.kept(promise) is kept
    assert result.broken() == ([] if kept else [promise])


def test_a_promise_about_a_figure_that_was_not_measured_is_an_error_and_not_kept() -> None:
    with pytest.raises(KeyError):
        Result("fill", [QUIET], [Promise("second", 10.0)]).broken()


def test_what_is_kept_is_all_that_a_reader_needs(tmp_path: Path) -> None:
    promises = [Promise("seconds", 9.0), Promise("rate", 0.5, at_least=True, ratio=True)]
    path = Result("fill", [Pair({"seconds": 12.34567, "rate": 50.0}, {"rate": 100.0})], promises).write(
        tmp_path / "new"
    )
    assert path == tmp_path / "new" / "fill.json"
    kept = json.loads(path.read_text())
    assert kept.pop("commit")
    assert kept == {
        "name": "fill",
        "metrics": {"seconds": 12.35, "rate": 50.0},
        "floor": {"rate": 100.0},
        "ratio": {"rate": 0.5},
        "pairs": [{"ours": {"seconds": 12.35, "rate": 50.0}, "floor": {"rate": 100.0}}],
        "promises": {
            "seconds <= 9": {"value": 12.35, "kept": False},
            "rate ratio >= 0.5 of the floor": {"value": 0.5, "kept": True},
        },
    }
