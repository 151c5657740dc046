"""Durations, sizes, percentages, times and the base of all shapes."""

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from vmpool.api.meta import (
    DURATION,
    LABEL,
    RULES,
    SUBDOMAIN,
    IntOrPercent,
    ObjectName,
    OwnerName,
    Shape,
    Size,
    Time,
    duration,
    format_duration,
    format_time,
    mebibytes,
    parse_duration,
    resolve,
)
from vmpool.api.pool import POOL_RULES, Readiness, VMPoolSpec


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90s", timedelta(seconds=90)),
        ("1h30m", timedelta(hours=1, minutes=30)),
        ("1m30s", timedelta(seconds=90)),
        ("500ms", timedelta(milliseconds=500)),
        ("1.5h", timedelta(minutes=90)),
        ("0s", timedelta()),
        ("8760h", timedelta(days=365)),
    ],
)
def test_a_duration_is_read_as_go_writes_it(text: str, value: timedelta) -> None:
    assert parse_duration(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "10", "0", "s", "PT1H", "1 day", "1d", "2w", "-5s", "+5s", "5m!3s", "1h ", "1h\n", "1.h", ".5h", "1µs", "٣s"],
)
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="such as 90s, 15m or 2h") as refused:
        parse_duration(text)
    assert repr(text) in str(refused.value)


def test_a_duration_beyond_all_bounds_is_refused_like_any_other() -> None:
    for text in ("9" * 30 + "h", "9" * 400 + "h"):
        with pytest.raises(ValueError, match="must be a duration"):
            parse_duration(text)


def test_what_is_no_text_passes_through() -> None:
    assert parse_duration(timedelta(hours=1)) == timedelta(hours=1)
    assert parse_duration(None) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (timedelta(), "0s"),
        (timedelta(hours=2), "2h"),
        (timedelta(days=2, minutes=5), "48h5m"),
        (timedelta(seconds=90), "1m30s"),
        (timedelta(milliseconds=1500), "1s500ms"),
        (timedelta(microseconds=1), "0.001ms"),
        (timedelta(seconds=-90), "-1m30s"),
    ],
)
def test_a_duration_is_written_as_go_reads_it(value: timedelta, text: str) -> None:
    assert format_duration(value) == text


@given(st.timedeltas(timedelta(), timedelta(days=365)))
def test_a_duration_comes_back_as_it_went_out(value: timedelta) -> None:
    text = format_duration(value)
    assert parse_duration(text) == value
    assert DURATION.matches(text)
    assert len(text) <= 32


def test_a_duration_out_of_bounds_is_refused_with_its_range() -> None:
    kind = TypeAdapter(duration("5s", "24h"))
    assert kind.validate_python("5s") == timedelta(seconds=5)
    assert kind.validate_python("24h") == timedelta(hours=24)
    for wrong in ("4s", "24h1s", "PT1H", "10", timedelta(days=2)):
        with pytest.raises(ValidationError, match="must be a duration between 5s and 24h"):
            kind.validate_python(wrong)


def test_the_sentence_of_the_server_is_that_of_the_model() -> None:
    (rule,) = TypeAdapter(duration("5s", "24h")).json_schema()[RULES]
    assert rule["message"] == "must be a duration between 5s and 24h, such as 90s, 15m or 2h"
    with pytest.raises(ValidationError, match=re.escape(rule["message"])):
        TypeAdapter(duration("5s", "24h")).validate_python("1s")


def test_a_duration_is_text_on_the_wire() -> None:
    assert Readiness().wire() == {"timeout": "15m", "interval": "1m", "failureThreshold": 3}


@pytest.mark.parametrize(("text", "mib"), [("512Mi", 512), ("1Gi", 1024), ("9999999Gi", 9999999 * 1024)])
def test_a_size_is_read_in_mebibytes(text: str, mib: int) -> None:
    assert TypeAdapter(Size).validate_python(text) == text
    assert mebibytes(text) == mib


@pytest.mark.parametrize("text", ["", "1G", "0Mi", "01Gi", "1.5Gi", "Gi", "1gi", "1Ti", "12345678Mi", "1Gi\n", "-1Gi"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Size).validate_python(text)


def test_the_sentence_about_a_size_has_examples() -> None:
    with pytest.raises(ValidationError, match="such as 512Mi or 4Gi, is '1G'"):
        TypeAdapter(Size).validate_python("1G")


@pytest.mark.parametrize("value", [0, 1, 10_000, "0%", "25%", "100%"])
def test_a_number_or_percentage_is_taken(value: Any) -> None:
    assert TypeAdapter(IntOrPercent).validate_python(value) == value


@pytest.mark.parametrize("value", [-1, 10_001, "101%", "-1%", "007%", "%", "1.5%", "5", "٣%", "5%\n", True, 1.5, None])
def test_what_is_neither_is_refused_with_both_ranges(value: Any) -> None:
    with pytest.raises(ValidationError, match="a number from 0 to 10000 or a percentage from 0% to 100%"):
        TypeAdapter(IntOrPercent).validate_python(value)


@pytest.mark.parametrize(
    ("amount", "whole", "up", "down"),
    [
        (3, 10, 3, 3),
        ("25%", 10, 3, 2),
        ("25%", 4, 1, 1),
        ("1%", 1, 1, 0),
        ("0%", 10, 0, 0),
        ("100%", 7, 7, 7),
        ("50%", 0, 0, 0),
    ],
)
def test_a_percentage_rounds_as_a_deployment_does(amount: int | str, whole: int, up: int, down: int) -> None:
    assert resolve(amount, whole, round_up=True) == up
    assert resolve(amount, whole, round_up=False) == down


@given(st.integers(0, 100), st.integers(0, 10_000))
def test_a_percentage_is_between_its_roundings_and_never_more_than_the_whole(percent: int, whole: int) -> None:
    up, down = (resolve(f"{percent}%", whole, round_up=way) for way in (True, False))
    assert 0 <= down <= percent * whole / 100 <= up <= whole
    assert up - down <= 1


@pytest.mark.parametrize("name", ["a", "0", "web-1", "a" * 52])
def test_a_good_name_is_taken(name: str) -> None:
    assert TypeAdapter(OwnerName).validate_python(name) == name
    assert TypeAdapter(ObjectName).validate_python(f"{name}.lab") == f"{name}.lab"


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a" * 53, "a.b", "a\n"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(OwnerName).validate_python(name)


@pytest.mark.parametrize("pattern", [LABEL, SUBDOMAIN, DURATION])
def test_a_pattern_speaks_of_the_whole_text_on_the_server_too(pattern: Any) -> None:
    assert pattern.rule() == f"self.matches(r'^({pattern.pattern})$')"
    assert "'" not in pattern.pattern


def test_a_time_is_written_in_utc_with_microseconds() -> None:
    moment = datetime(2026, 5, 1, 12, 0, 0, 42, tzinfo=timezone(timedelta(hours=2)))
    assert format_time(moment) == "2026-05-01T10:00:00.000042Z"
    assert TypeAdapter(Time).validate_python(format_time(moment)) == moment.astimezone(UTC)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        TypeAdapter(Time).validate_python("2026-05-01T10:00:00")


class Sample(Shape):
    """A shape."""

    some_name: int = 1
    """A field."""
    other: str | None = None
    """Another."""


def test_a_shape_is_camel_case_on_the_wire_and_leaves_out_what_is_absent() -> None:
    assert Sample(some_name=2).wire() == {"someName": 2}
    assert Sample.model_validate({"someName": 2}) == Sample(some_name=2)


def test_a_shape_ignores_what_a_newer_release_wrote() -> None:
    assert Sample.model_validate({"someName": 2, "fromTheFuture": {"deep": 1}}) == Sample(some_name=2)


def test_a_shape_never_changes() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Sample().some_name = 3  # type: ignore[misc]


def test_the_smallest_pool_has_all_defaults() -> None:
    spec = VMPoolSpec.model_validate({"template": {"image": "debian-12"}, "providers": [{"name": "sim"}]})
    assert spec.replicas is None
    assert spec.max_vms == 1000
    assert spec.readiness.timeout == timedelta(minutes=15)
    assert spec.update.max_surge == "25%"
    assert [rule.field_path for rule in POOL_RULES] == [".replicas", ".update", ".claims"]
