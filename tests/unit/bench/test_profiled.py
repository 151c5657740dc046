"""Profiles that are kept: short enough to read, without waiting, and without paths of the machine they were made on."""

import asyncio
import sys
import tracemalloc
from pathlib import Path

import pyinstrument

from bench import profiled


async def worked_and_waited() -> None:
    somebody = asyncio.Event()
    asyncio.get_running_loop().call_later(0.02, somebody.set)
    await somebody.wait()
    assert sum(range(3_000_000)) > 0


def test_a_report_has_the_work_and_leaves_out_the_waiting() -> None:
    profiler = pyinstrument.Profiler(0.0005, async_mode="disabled")
    profiler.start()
    asyncio.run(worked_and_waited())
    text = profiled.report(profiler.stop())
    assert "worked_and_waited" in text
    assert "selectors.py" not in text
    assert str(profiled.ROOT) not in text
    assert sys.prefix not in text


def test_a_report_is_cut_where_it_gets_long_and_says_so() -> None:
    made = profiled.ConsoleRenderer.__name__
    lines = profiled.cut([f"{made} {number}" for number in range(profiled.LINES + 3)]).splitlines()
    assert len(lines) == profiled.LINES + 1
    assert lines[-1] == "... 3 lines of smaller shares are left out"


def test_a_path_is_told_as_python_finds_it() -> None:
    folder = next(one for one in sys.path if one and Path(one).is_dir())
    assert profiled.short(f"{folder}/package/module.py") == "package/module.py"
    assert profiled.short("/somewhere/lib/python3/asyncio/tasks.py") == "python3/asyncio/tasks.py"
    assert profiled.short("<frozen abc>") == "<frozen abc>"


def test_allocations_are_told_by_file_and_by_line() -> None:
    tracemalloc.start()
    try:
        held = [bytearray(10_000) for _ in range(100)]
        text = profiled.allocations(tracemalloc.take_snapshot())
    finally:
        tracemalloc.stop()
    assert len(held) == 100
    assert "tests/unit/bench/test_profiled.py:" in text
    assert str(profiled.ROOT) not in text
