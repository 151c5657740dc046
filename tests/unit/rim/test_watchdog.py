"""What the watchdog thinks of what it sees, and what the report says of a process."""

import asyncio
import json
import threading
from collections.abc import Mapping
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.testing import LogCapture

from vmpool.rim.watchdog import (
    END_SECONDS,
    Condemned,
    Facts,
    Limits,
    OutsideFacts,
    Watchdog,
    clock_offset,
    judge,
    judge_from_outside,
    limits_of,
)
from vmpool.settings import GatewaySettings, Settings
from vmpool.telemetry import report
from vmpool.telemetry.metrics import WatchdogMetrics

LIMITS = Limits(look=1.0, margin=20.0, linger=3.0, block=10.0, jump=5.0)
SECONDS = st.floats(0, 1e6, allow_nan=False)
NAMES = st.text(min_size=1, max_size=20)
MIRRORS = st.lists(st.tuples(NAMES, SECONDS, SECONDS), max_size=5).map(tuple)
JUMPS = st.floats(-1e6, 1e6, allow_nan=False)


@st.composite
def healthy(draw: st.DrawFn) -> Facts:
    """Facts in which nothing is beyond its limit."""
    silences = draw(st.lists(SECONDS, max_size=5))
    mirrors = [(draw(NAMES), silence + draw(st.floats(-silence, LIMITS.margin)), silence) for silence in silences]
    unwatched = draw(st.lists(NAMES, max_size=2))
    return Facts(
        unwatched=tuple(unwatched),
        kopf_seconds=draw(st.floats(0, LIMITS.margin)) if unwatched else draw(SECONDS),
        mirrors=tuple((name, min(age, silence + LIMITS.margin), silence) for name, age, silence in mirrors),
        jump=draw(st.floats(-LIMITS.jump, LIMITS.jump)),
    )


@given(healthy())
def test_what_is_within_its_limits_is_left_alone(facts: Facts) -> None:
    assert judge(facts, LIMITS) is None


@given(healthy(), st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=3).map(tuple))
def test_a_task_that_ended_is_named(facts: Facts, ended: tuple[tuple[str, str], ...]) -> None:
    verdict = judge(_with(facts, ended=ended), LIMITS)
    assert verdict is not None
    assert verdict.what == "kopf"
    assert repr(ended[0][0]) in verdict.why


@given(healthy(), NAMES, st.floats(LIMITS.margin, 1e6, exclude_min=True))
def test_a_kind_that_nobody_watches_is_named(facts: Facts, kind: str, seconds: float) -> None:
    verdict = judge(_with(facts, unwatched=(kind,), kopf_seconds=seconds), LIMITS)
    assert verdict is not None
    assert verdict.what == "kopf"
    assert kind in verdict.why


@given(healthy(), SECONDS, st.floats(0.01, 1e6))
def test_the_mirror_that_is_silent_for_too_long_is_named(facts: Facts, silence: float, more: float) -> None:
    silent = ("the silent one", silence + LIMITS.margin + more, silence)
    verdict = judge(_with(facts, mirrors=(*facts.mirrors, silent)), LIMITS)
    assert verdict is not None
    assert verdict.what == "mirror"
    assert "the silent one" in verdict.why
    assert verdict.seconds > verdict.allowed


@given(healthy(), st.floats(LIMITS.jump, 1e6, exclude_min=True), st.booleans())
def test_a_jump_of_the_clock_comes_first(facts: Facts, jump: float, back: bool) -> None:
    verdict = judge(_with(facts, jump=-jump if back else jump, ended=(("a", "b"),)), LIMITS)
    assert verdict is not None
    assert verdict.what == "clock"
    assert ("back" if back else "ahead") in verdict.why


@given(st.floats(0, LIMITS.block), SECONDS, st.floats(0, LIMITS.linger + END_SECONDS))
def test_from_outside_a_loop_that_turns_is_left_alone(beat: float, lease: float, condemned: float) -> None:
    assert judge_from_outside(OutsideFacts(beat, lease, lease_overdue=False, condemned_age=condemned), LIMITS) is None


@given(SECONDS, SECONDS, SECONDS)
def test_an_overdue_lease_ends_the_process_whatever_else(beat: float, lease: float, condemned: float) -> None:
    verdict = judge_from_outside(OutsideFacts(beat, lease, lease_overdue=True, condemned_age=condemned), LIMITS)
    assert verdict is not None
    assert verdict.what == "lease"


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (OutsideFacts(LIMITS.block + 0.1, 1.0, lease_overdue=False), "held up"),
        (OutsideFacts(0.0, 1.0, lease_overdue=False, condemned_age=LIMITS.linger + END_SECONDS + 0.1), "did not end"),
    ],
)
def test_a_loop_that_cannot_end_itself_is_ended(facts: OutsideFacts, word: str) -> None:
    verdict = judge_from_outside(facts, LIMITS)
    assert verdict is not None
    assert verdict.what == "loop"
    assert word in verdict.why


def test_doubt_is_noticed_within_30_seconds_whatever_is_set() -> None:
    longest = Settings(watchdog_seconds=5, watchdog_margin_seconds=20, watchdog_linger_seconds=5, loop_block_seconds=25)
    limits = limits_of(longest)
    assert limits.look + limits.margin + limits.linger <= 30
    assert limits.block + limits.look <= 30
    for name in ("watchdog_seconds", "watchdog_margin_seconds", "watchdog_linger_seconds", "loop_block_seconds"):
        with pytest.raises(ValueError, match=name):
            Settings(**{name: getattr(longest, name) + 0.1})


def test_the_clocks_are_read_at_one_moment() -> None:
    readings = [clock_offset() for _ in range(100)]
    assert max(readings) - min(readings) < 0.1


def _with(facts: Facts, **changes: Any) -> Facts:
    seen = {name: getattr(facts, name) for name in Facts.__dataclass_fields__}
    return Facts(**(seen | changes))


# --- the watchdog itself ------------------------------------------------------------------------------------------


def watchdog(**limits: float) -> Watchdog:
    quick = {"look": 0.01, "margin": 0.1, "linger": 0.0, "block": 10.0, "jump": 5.0}
    return Watchdog(Limits(**(quick | limits)), WatchdogMetrics(CollectorRegistry()))


async def test_a_task_that_ends_ends_the_wait() -> None:
    async def fails() -> None:
        raise ValueError("no more")

    dog = watchdog()
    reports: list[str] = []
    dog.report = lambda: reports.append("written")
    dog.follow([asyncio.create_task(fails(), name="watcher for things.v1.example@here")], ["things"])
    dog.start()
    with pytest.raises(Condemned, match=r"watcher for things.*ValueError: no more"):
        await asyncio.wait_for(dog.wait(), 5)
    assert dog.trouble().startswith("kopf: ")
    assert reports == ["written"], "one report for one verdict"
    assert dog.metrics.verdicts.labels("kopf")._value.get() == 1


async def test_a_watcher_that_comes_later_is_followed_too() -> None:
    dog = watchdog(margin=60.0)
    dog.follow([], ["things"])
    late = asyncio.create_task(asyncio.Event().wait(), name="watcher for things.v1.example@here")
    assert dog.facts(dog.beat_at).unwatched == ()
    late.cancel()
    dog.start()
    with pytest.raises(Condemned, match="cancelled"):
        await asyncio.wait_for(dog.wait(), 5)


async def test_a_kind_without_a_watcher_ends_the_wait() -> None:
    dog = watchdog()
    dog.follow([], ["things"])
    dog.start()
    with pytest.raises(Condemned, match="kopf does not watch things"):
        await asyncio.wait_for(dog.wait(), 5)


async def test_what_ends_at_a_stop_is_no_reason() -> None:
    dog = watchdog()
    dog.at_ease = True
    dog.follow([], ["things"])
    dog.start()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(dog.wait(), 0.3)
    assert not dog.trouble()


async def test_a_report_that_fails_is_no_obstacle() -> None:
    dog = watchdog()
    dog.report = lambda: 1 // 0  # type: ignore[assignment,return-value]
    dog.condemn(judge(Facts(jump=60.0), LIMITS))
    with pytest.raises(Condemned, match=r"60\.0 s ahead"):
        await dog.wait()
    dog.condemn(judge(Facts(ended=(("a", "b"),)), LIMITS))
    assert dog.trouble().startswith("clock"), "the first reason stays"


# --- the report ---------------------------------------------------------------------------------------------------


async def test_equal_stacks_are_shown_once_and_followed_to_where_they_wait() -> None:
    async def inner() -> None:
        await asyncio.Event().wait()

    async def outer() -> None:
        await inner()

    many = [asyncio.create_task(outer(), name=f"pool/{number}") for number in range(1000)]
    await asyncio.sleep(0)
    shown = report.tasks(asyncio.get_running_loop())()
    (group,) = [one for one in shown["stacks"] if one["count"] == 1000]
    places = [line.rsplit(" ", 1)[1] for line in group["stack"][:3]]
    assert places == ["outer", "inner", "wait"]
    assert len(group["names"]) == report.NAMES_MOST
    assert shown["sorts"]["pool"] == 1000
    assert len(json.dumps(shown)) < 20_000
    for task in many:
        task.cancel()
    await asyncio.gather(*many, return_exceptions=True)


def test_settings_show_what_differs_and_no_secret() -> None:
    assert report.settings(Settings())() == {}
    own = GatewaySettings(tls_key="/keys/one", count_max=7, site_name="x" * 100)
    assert report.settings(own)() == {"tls_key": "(set)", "count_max": 7, "site_name": "x" * 100}


def test_a_section_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def changes() -> Mapping[str, Any]:
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("dictionary changed size during iteration")
        return {"fine": True}

    def broken() -> Mapping[str, Any]:
        raise KeyError("gone")

    said = LogCapture()
    monkeypatch.setattr(report, "log", structlog.wrap_logger(None, processors=[said]))
    report.write({"broken": broken, "changes": changes, "process": report.process}, "test")
    assert [one.get("section") for one in said.entries] == ["broken", "changes", "process", None]
    assert said.entries[0]["content"] == {"error": "KeyError: 'gone'"}
    assert said.entries[1]["content"] == {"fine": True}
    assert said.entries[2]["content"]["memory"]["resident_bytes"] > 0


def test_every_thread_is_shown() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="sleeper", daemon=True)
    thread.start()
    shown = report.threads()
    done.set()
    thread.join()
    stack = next(stack for name, stack in shown["stacks"].items() if name.startswith("sleeper"))
    assert stack[-1].endswith("wait")
