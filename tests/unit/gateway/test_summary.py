"""What a gateway remembers of the last days, and the summary made of it."""

from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.objects import Json
from tests.unit.gateway.frames import gateway_of, served
from tests.unit.gateway.things import held, put_pool, step, vm_object
from vmpool.api.meta import format_time
from vmpool.engine.facts import vm_facts
from vmpool.gateway import history, summary
from vmpool.gateway.context import Gateway
from vmpool.gateway.history import DAYS, OTHER, TAG_VALUES, History, Task
from vmpool.gateway.summary import MAX_DAYS, BadDates, days_of, of_section
from vmpool.kube.client import Client
from vmpool.kube.kinds import POOLEDVMS
from vmpool.kube.mirror import Mirror, MirrorSettings, Selection
from vmpool.plan.snapshot import VM

NOW = datetime(2026, 3, 20, 12, tzinfo=UTC)
TODAY = NOW.date()


class Seen:
    """A mirror and its history, at a time that the test chooses."""

    def __init__(self) -> None:
        self.now = NOW
        client: Any = Client.__new__(Client)
        self.vms: Mirror[VM] = Mirror(client, Selection(POOLEDVMS), vm_facts, MirrorSettings())
        self.history = History(self.vms, lambda: self.now)

    def vm(self, name: str, *, of: str = "web", phase: str = "Pending", **more: Any) -> Json:
        raw = vm_object(name, of, phase, **more)
        self.vms.saw(raw)
        return raw

    def machine(self, name: str, began: datetime, clone: float, boot: float | None = None, of: str = "web") -> Json:
        """A VM whose clone took so many seconds, and was Ready after so many since it began."""
        made = began + timedelta(seconds=clone)
        steps = [step("create", began, made)]
        if boot is None:
            return self.vm(name, of=of, status={"steps": steps})
        steps.append(step("boot", made, began + timedelta(seconds=boot)))
        return self.vm(name, of=of, phase="Ready", status={"steps": steps})

    def tagged(self, name: str, bound: datetime = NOW, **tags: str) -> None:
        self.vm(name, phase="Claimed", claim=held(boundAt=format_time(bound), tags=tags))


def numbers(seen: Seen, task: Task, day: date = TODAY, pool: str = "web") -> tuple[int, float, float, float]:
    span = seen.history.spans(task, day)["ci", pool]
    return span.count, span.total, span.least, span.most


def test_clone_and_boot_both_count_from_the_start_of_the_clone() -> None:
    seen = Seen()
    seen.machine("a", NOW, 10.0, 25.0)
    seen.machine("b", NOW, 4.0, 60.0)
    assert numbers(seen, Task.CLONE) == (2, 14.0, 4.0, 10.0)
    assert numbers(seen, Task.BOOT) == (2, 85.0, 25.0, 60.0)


def test_each_counts_once_however_often_it_is_told() -> None:
    seen = Seen()
    seen.machine("a", NOW, 10.0)
    seen.machine("a", NOW, 10.0, 25.0)
    seen.machine("a", NOW, 10.0, 25.0)
    assert numbers(seen, Task.CLONE)[0] == numbers(seen, Task.BOOT)[0] == 1


def test_names_of_tags_take_no_more_room_than_their_values() -> None:
    seen = Seen()
    for number in range(TAG_VALUES + 200):
        seen.tagged(f"vm-{number}", **{f"tag-{number}": "x"})
    tags = seen.history.day(TODAY).tags
    assert len(tags) == TAG_VALUES + 1
    assert tags[OTHER] == {OTHER: 200}
    seen.tagged(f"vm-{TAG_VALUES}", **{"tag-0": "y"})
    assert tags[OTHER] == {OTHER: 199}, "it had been counted there"
    assert tags["tag-0"] == {"x": 1, OTHER: 1}
    for number in range(TAG_VALUES + 200):
        seen.tagged(f"vm-{number}")
    assert tags == {}
    assert seen.history.day(TODAY).values == 0


def test_a_machine_that_was_up_when_it_was_made_has_booted() -> None:
    seen = Seen()
    seen.vm("a", phase="Ready", status={"steps": [step("create", NOW, NOW + timedelta(seconds=3))]})
    assert numbers(seen, Task.BOOT) == (1, 3.0, 3.0, 3.0)


def test_one_that_failed_before_it_was_ready_has_not_booted() -> None:
    seen = Seen()
    seen.vm("a", phase="Completed", status={"steps": [step("create", NOW, NOW)]})
    seen.vm("b", phase="Pending", adopt={"machineId": "m"}, status={"steps": [step("adopt", NOW, NOW)]})
    assert numbers(seen, Task.CLONE)[0] == 1
    assert not seen.history.spans(Task.BOOT, TODAY)


def test_a_day_ends_at_midnight_utc_and_counts_what_ended_in_it() -> None:
    seen = Seen()
    midnight = datetime(2026, 3, 20, tzinfo=UTC)
    seen.machine("a", midnight - timedelta(seconds=5), 5.0)
    seen.machine("b", midnight - timedelta(seconds=5), 4.9)
    assert numbers(seen, Task.CLONE)[0] == numbers(seen, Task.CLONE, TODAY - timedelta(days=1))[0] == 1


def test_only_so_many_days_are_kept() -> None:
    seen = Seen()
    oldest = NOW - timedelta(days=DAYS - 1)
    seen.machine("too-old", oldest - timedelta(days=1), 1.0, 2.0)
    seen.machine("old", oldest, 1.0, 2.0)
    assert set(seen.history._days) == {oldest.date()}
    seen.now += timedelta(days=1)
    seen.machine("new", seen.now, 1.0, 2.0, of="db")
    assert set(seen.history._days) == {seen.now.date()}
    assert seen.history.last_boot(("ci", "web")) is None
    assert seen.history.last_boot(("ci", "db")) == seen.now + timedelta(seconds=2)


def test_the_last_boot_is_the_latest() -> None:
    seen = Seen()
    seen.machine("a", NOW, 1.0, 20.0)
    seen.machine("b", NOW, 1.0, 10.0)
    assert seen.history.last_boot(("ci", "web")) == NOW + timedelta(seconds=20)


def test_a_tag_counts_by_its_present_value_on_the_day_of_the_checkout() -> None:
    seen = Seen()
    yesterday = NOW - timedelta(days=1)
    seen.tagged("a", yesterday, job="one", user="alice")
    seen.tagged("b", yesterday, job="one")
    seen.tagged("a", yesterday, job="two")
    assert seen.history.day(yesterday.date()).tags == {"job": {"one": 1, "two": 1}}
    assert not seen.history.day(TODAY).tags


def test_values_beyond_the_bound_are_counted_together() -> None:
    seen = Seen()
    for number in range(TAG_VALUES + 5):
        seen.tagged(f"vm{number}", job=f"job-{number}")
    values = seen.history.day(TODAY).tags["job"]
    assert len(values) == TAG_VALUES + 1
    assert values[OTHER] == 5
    for number in range(TAG_VALUES + 5):
        seen.tagged(f"vm{number}")
    assert not seen.history.day(TODAY).tags
    assert seen.history.day(TODAY).values == 0


def test_what_was_tagged_before_its_day_began_here_is_not_taken_off() -> None:
    seen = Seen()
    tomorrow = NOW + timedelta(days=1)
    seen.tagged("a", tomorrow, job="one")
    seen.now = tomorrow
    seen.tagged("a", tomorrow, job="two")
    assert seen.history.day(tomorrow.date()).tags == {"job": {"two": 1}}


TAGS = st.dictionaries(st.sampled_from(["job", "user"]), st.sampled_from(["one", "two", OTHER]), max_size=2)


@given(st.lists(st.tuples(st.sampled_from("abc"), TAGS), max_size=30), st.integers(0, 8))
def test_tags_are_those_that_a_gateway_started_now_would_count(changes: list[tuple[str, Any]], bound: int) -> None:
    before, history.TAG_VALUES = history.TAG_VALUES, bound
    try:
        seen, now = Seen(), {}
        for name, tags in changes:
            seen.tagged(name, **tags)
            now[name] = tags
        fresh = Seen()
        for name, tags in now.items():
            fresh.tagged(name, **tags)
        # Which tags have names of their own depends on the order when room ends; how many are counted does not.
        kept, counted = seen.history.day(TODAY), fresh.history.day(TODAY)
        assert sum(found.total() for found in kept.tags.values()) == sum(map(len, now.values()))
        assert sum(found.total() for found in counted.tags.values()) == sum(map(len, now.values()))
        assert kept.values == sum(map(len, kept.tags.values()))
        # Two tags with three values each: all of them can be told apart.
        if bound >= 6:
            assert seen.history.day(TODAY).tags == fresh.history.day(TODAY).tags
        assert all(count > 0 for found in seen.history.day(TODAY).tags.values() for count in found.values())
    finally:
        history.TAG_VALUES = before


# --- the summary --------------------------------------------------------------------------------------------------


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made, _ = gateway_of()
    yield made
    await made.client.close()


def show(gateway: Gateway, seen: Seen) -> None:
    """Let a gateway know what was seen."""
    gateway.history = seen.history
    put_pool(gateway, "web", restName="debian")


def span(average: float, least: float, most: float, total: float) -> Json:
    return {"average": average, "min": least, "max": most, "total": total}


async def test_durations_over_days_and_of_each(gateway: Gateway) -> None:
    seen = Seen()
    show(gateway, seen)
    seen.machine("a", NOW - timedelta(days=1), 10.0)
    seen.machine("b", NOW, 1.0)
    seen.machine("c", NOW, 4.0)
    seen.machine("d", NOW, 6.0, of="gone")
    made = of_section(gateway, [TODAY - timedelta(days=1), TODAY], "clone", None)
    assert made["clone"]["duration"] == {
        **span(5.2, 1.0, 10.0, 21.0),
        "pool": {"debian": span(5.0, 1.0, 10.0, 15.0), "ci_gone": span(6.0, 6.0, 6.0, 6.0)},
    }
    assert made["clone"]["count"] == {"total": 4, "pool": {"debian": {"total": 3}, "ci_gone": {"total": 1}}}
    assert [day["date"] for day in made["daily"]] == ["2026-03-19", "2026-03-20"]
    assert made["daily"][0]["clone"] == {
        "duration": {**span(10.0, 10.0, 10.0, 10.0), "pool": {"debian": span(10.0, 10.0, 10.0, 10.0)}},
        "count": {"total": 1, "pool": {"debian": {"total": 1}}},
    }


async def test_a_key_leaves_the_rest_out(gateway: Gateway) -> None:
    seen = Seen()
    show(gateway, seen)
    seen.machine("a", NOW, 10.0, 20.0)
    seen.tagged("b", job="one", user="alice")
    assert of_section(gateway, [TODAY], "boot", "count") == {
        "boot": {"count": {"total": 1, "pool": {"debian": {"total": 1}}}},
        "daily": [{"date": "2026-03-20", "boot": {"count": {"total": 1, "pool": {"debian": {"total": 1}}}}}],
    }
    assert of_section(gateway, [TODAY], "tag", "job")["tag"] == {"job": {"one": 1, "total": 1}}


async def test_tags_of_several_days_are_added(gateway: Gateway) -> None:
    seen = Seen()
    show(gateway, seen)
    seen.tagged("a", NOW - timedelta(days=1), job="one")
    seen.tagged("b", job="one")
    seen.tagged("c", job="two")
    made = of_section(gateway, [TODAY - timedelta(days=1), TODAY], "tag", None)
    assert made["tag"] == {"job": {"one": 2, "two": 1, "total": 3}}


async def test_the_summary_has_every_section_of_every_day(gateway: Gateway) -> None:
    async with served(*summary.ROUTES, gateway=gateway) as client:
        today = gateway.now().date()
        answer = await client.get(f"/api/v3/summary?from={today - timedelta(days=2)}&to={today}")
        made = await answer.json()
    assert set(made) == {"boot", "clone", "tag", "daily"}
    assert [set(day) for day in made["daily"]] == [{"date", "boot", "clone", "tag"}] * 3


@pytest.mark.parametrize(
    ("query", "words"),
    [
        pytest.param({"from": "20260320"}, "Invalid date format '20260320', must match YYYY-MM-DD.", id="no dashes"),
        pytest.param({"to": "2026-02-31"}, "Invalid date format '2026-02-31', must match YYYY-MM-DD.", id="no day"),
        pytest.param({"from": "\u0662026-03-20"}, "must match YYYY-MM-DD", id="digits of another script"),
        pytest.param({"from": "2026-03-20\n"}, "must match YYYY-MM-DD", id="line break"),
        pytest.param({"to": "2026-03-19"}, "'to' cannot come before 'from'", id="backwards"),
        pytest.param({"from": "2026-03-21", "to": "2026-03-22"}, "'from' must be in the past", id="future"),
        pytest.param({"from": "2020-01-01"}, f"more than {MAX_DAYS}", id="years"),
    ],
)
def test_bad_dates_are_told(query: dict[str, str], words: str) -> None:
    with pytest.raises(BadDates, match=words.replace("(", r"\(")):
        days_of(query, TODAY)


@given(st.text(max_size=12), st.text(max_size=12))
def test_no_text_breaks_the_dates(first: str, last: str) -> None:
    with suppress(BadDates):
        assert days_of({"from": first, "to": last}, TODAY)


@given(st.integers(0, MAX_DAYS - 1), st.integers(0, 30))
def test_days_are_whole_and_in_order(back: int, ahead: int) -> None:
    first, last = TODAY - timedelta(days=back), TODAY + timedelta(days=min(ahead, MAX_DAYS - 1 - back))
    days = days_of({"from": first.isoformat(), "to": last.isoformat()}, TODAY)
    assert days == sorted(set(days))
    assert (days[0], days[-1], len(days)) == (first, last, (last - first).days + 1)
