"""Thousands of stories on a virtual clock: no seed breaks a promise, and each tells the same every time."""

import os

import pytest

from tests.simulation.__main__ import play
from tests.simulation.run import simulate
from tests.simulation.story import DEEDS, story_of

SEEDS = int(os.environ.get("VMPOOL_TEST_SEEDS", "2000"))
PIECES = 8
"""Into so many tests the seeds are cut, so that several workers can share them."""


@pytest.mark.parametrize("piece", range(PIECES))
def test_no_seed_breaks_a_promise(piece: int) -> None:
    first, after = piece * SEEDS // PIECES, (piece + 1) * SEEDS // PIECES

    failed = play(first, after - first)

    assert not failed, f"{failed[:5]}; see: python -m tests.simulation --trace {failed[0][0]}"


@pytest.mark.parametrize(
    ("seed", "what"),
    [
        (20871, "a machine lands late, between the last listing and the removal of its object"),
        (24660, "a finalizer is taken off late, when another leader has written a machine down meanwhile"),
        (28790, "a redrive and its pool fill the last place at once"),
        (83668, "a redrive that has no answer is done again when its successor has failed and gone"),
        (93139, "another leader makes a machine behind the last listing"),
        (300047, "a second machine of a VM whose own has vanished, in a cloud without tokens"),
    ],
)
def test_what_broke_a_promise_once_does_so_no_more(seed: int, what: str) -> None:
    assert not simulate(seed).problem, what


@pytest.mark.parametrize("seed", [1, 7, 19, 130])
def test_a_seed_tells_the_same_story_each_time(seed: int) -> None:
    first, second = (simulate(seed, trace=True, record=True) for _ in range(2))

    assert first.trace == second.trace
    assert first.calls == second.calls
    assert first.ended_at == second.ended_at


def test_a_trace_changes_nothing() -> None:
    assert simulate(42, trace=True).turns == simulate(42).turns


def test_the_seeds_cover_what_can_happen() -> None:
    stories = [story_of(seed) for seed in range(500)]

    assert {deed for story in stories for _, deed in story.deeds} == {name for name, _ in DEEDS}
    assert {story.leaders for story in stories} == {1, 2}
    assert {story.cloud.tokens for story in stories} == {True, False}
    assert {len(story.pools) for story in stories} == {1, 2}
    for fault in ("refused", "lost", "late", "kills", "cuts", "slow_news"):
        assert len({getattr(story.weather, fault) for story in stories}) > 1, fault
