"""What a process can know of another one by its name: that it is dead, or nothing."""

import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.kube.identity import certainly_dead, new_identity

NAME = "from vmpool.kube.identity import new_identity; print(new_identity(), flush=True)"
names = st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=40)


def someone(then: str = "") -> "tuple[subprocess.Popen[str], str]":
    """Another process on this machine, and its name."""
    process = subprocess.Popen([sys.executable, "-c", f"{NAME}{then}"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_whoever_has_ended_on_this_machine_is_dead() -> None:
    process, name = someone()
    with process:
        process.wait()
    assert certainly_dead(name, new_identity())


@pytest.mark.parametrize("stopped", [False, True])
def test_whoever_runs_is_not_dead_nor_is_one_that_is_only_stopped(*, stopped: bool) -> None:
    process, name = someone("; import time; time.sleep(600)")
    with process:
        if stopped:
            os.kill(process.pid, signal.SIGSTOP)
        dead_already = certainly_dead(name, new_identity())
        process.kill()
    assert not dead_already
    assert certainly_dead(name, new_identity())


def test_of_our_own_pod_whoever_was_before_us_is_dead_and_of_another_pod_nothing_is_known() -> None:
    before, mine = new_identity("uid-1"), new_identity("uid-1")
    assert certainly_dead(before, mine)
    assert not certainly_dead(new_identity("uid-2"), mine)
    assert not certainly_dead(new_identity(), mine)
    assert not certainly_dead(mine, mine)


def test_a_namesake_by_its_number_is_another_process() -> None:
    mine = new_identity()
    host, place, pid, started, chance = mine.rsplit("_", 4)
    assert certainly_dead("_".join((host, place, pid, str(int(started) - 1), chance)), mine)
    assert not certainly_dead("_".join((host, place, pid, started, "other")), mine)


@given(names)
def test_a_name_that_is_not_one_of_ours_tells_nothing(other: str) -> None:
    assert not certainly_dead(other, new_identity())


@given(st.lists(names, min_size=5, max_size=5))
def test_another_place_tells_nothing_whatever_else_it_says(parts: list[str]) -> None:
    mine = new_identity()
    if "_".join(parts).rsplit("_", 4)[1] != mine.rsplit("_", 4)[1]:
        assert not certainly_dead("_".join(parts), mine)
