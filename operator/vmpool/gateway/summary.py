"""What happened lately: GET summary, for the days that this gateway knows of (``history``)."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta

from vmpool.gateway import durations
from vmpool.gateway.answers import Answer, Json, not_found
from vmpool.gateway.context import Call, Gateway
from vmpool.gateway.history import DAYS, PoolKey, Span, Task
from vmpool.gateway.routes import REFUSED, Parameter, Route, Schema
from vmpool.gateway.schemas import COUNT, TEXT, record, table

MAX_DAYS = 366
"""Most days in one answer; most of them are empty, because only ``history.DAYS`` are kept."""
TAG = "tag"
TOTAL = "total"

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class BadDates(Exception):
    """The sentence that says what is wrong with the days asked for."""


async def show_summary(call: Call) -> Answer:
    """GET summary: durations and tags over some days and of each. 400 in plain text for bad dates."""
    try:
        days = days_of(call.query, call.gateway.now().date())
    except BadDates as error:
        return Answer(None, 400, text=str(error))
    return Answer(summary(call.gateway, days))


async def show_section(call: Call) -> Answer:
    """GET summary/{section}[/{key}]: one part of it, or of that part only one key."""
    try:
        days = days_of(call.query, call.gateway.now().date())
    except BadDates as error:
        return Answer(None, 400, text=str(error))
    section, key = call.path["section"], call.path.get("key") or None
    if section != TAG and section not in list(Task):
        raise not_found(f"no section {section!r}: there are {', '.join(Task)} and {TAG}")
    return Answer(of_section(call.gateway, days, section, key))


def days_of(query: Mapping[str, str], today: date) -> list[date]:
    """Return the days from ``from`` to ``to``, each of which is today by default. Raises ``BadDates``."""
    first, last = (_day(query.get(name) or today.isoformat()) for name in ("from", "to"))
    if last < first:
        raise BadDates("Date range is invalid, 'to' cannot come before 'from'.")
    if first > today:
        raise BadDates("Date range is invalid, 'from' must be in the past.")
    count = (last - first).days + 1
    if count > MAX_DAYS:
        raise BadDates(f"Date range is invalid, {count} days are more than {MAX_DAYS}.")
    return [first + timedelta(days=number) for number in range(count)]


def summary(gateway: Gateway, days: Sequence[date]) -> Json:
    """Return the whole summary of some days."""
    sections = {section: of_section(gateway, days, section, None) for section in (*Task, TAG)}
    daily = [
        {"date": parts[0]["date"], **{section: part[section] for section, part in zip(sections, parts, strict=True)}}
        for parts in zip(*(sections[section]["daily"] for section in sections), strict=True)
    ]
    return {**{section: made[section] for section, made in sections.items()}, "daily": daily}


def of_section(gateway: Gateway, days: Sequence[date], section: str, key: str | None) -> Json:
    """Return one part of the summary: over all days, and of each. ``key`` leaves one of its keys, or one tag."""
    if section == TAG:
        daily = [(day, _tags(gateway, day, key)) for day in days]
        whole: Json = {}
        for _, tags in daily:
            for tag, values in tags.items():
                whole[tag] = dict(Counter(whole.get(tag, {})) + Counter(values))
    else:
        task = Task(section)
        spans = [(day, _spans(gateway, task, day)) for day in days]
        daily = [(day, _only(durations.by_pool(of_day), key)) for day, of_day in spans]
        whole = _only(durations.by_pool(_merged(of_day for _, of_day in spans)), key)
    return {section: whole, "daily": [{"date": day.isoformat(), section: made} for day, made in daily]}


def _day(text: str) -> date:
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise BadDates(f"Invalid date format '{text}', must match YYYY-MM-DD.")


def _only(made: Json, key: str | None) -> Json:
    return made if key is None else {name: value for name, value in made.items() if name == key}


def _spans(gateway: Gateway, task: Task, day: date) -> dict[str, Span]:
    return {_name(gateway, pool): span for pool, span in gateway.history.spans(task, day).items()}


def _merged(days: Iterable[Mapping[str, Span]]) -> dict[str, Span]:
    merged: dict[str, Span] = {}
    for spans in days:
        for pool, span in spans.items():
            merged.setdefault(pool, Span()).add(span)
    return merged


def _tags(gateway: Gateway, day: date, only: str | None) -> Json:
    tags = gateway.history.day(day).tags
    return {
        # VMPooler's own field among the values; a value of that name is hidden by it there as well.
        tag: {**values, TOTAL: values.total()}
        for tag, values in sorted(tags.items())
        if only is None or tag == only
    }


def _name(gateway: Gateway, key: PoolKey) -> str:
    """Return what a pool is called; one that is gone by the name that was its own for sure."""
    namespace, name = key
    otherwise = f"{namespace}_{name}"
    entry = gateway.pools.by_name(namespace, name)
    return otherwise if entry is None else gateway.directory.shown(entry.uid, otherwise)


DATES = (
    Parameter("from", "query", f"First day, YYYY-MM-DD in UTC. Absent: today. The last {DAYS} days are kept at most."),
    Parameter("to", "query", "Last day. Absent: today."),
)
TAGS: Schema = table(table(COUNT))
DATE: Schema = {"type": "string", "format": "date"}


_SECTION: Schema = record(
    {
        "daily": {
            "type": "array",
            "items": record({"date": DATE}, boot=durations.BY_POOL, clone=durations.BY_POOL, tag=TAGS),
        }
    },
    boot=durations.BY_POOL,
    clone=durations.BY_POOL,
    tag=TAGS,
)
_SECTION_ANSWERS = {200: _SECTION, 400: TEXT, 404: REFUSED}
_WHICH = Parameter("section", "path", "boot, clone or tag.")

ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/api/v3/summary",
        show_summary,
        "How long clones and boots took, and which tags were set, over some days and of each.",
        {
            200: record(
                {
                    "boot": durations.BY_POOL,
                    "clone": durations.BY_POOL,
                    "tag": TAGS,
                    "daily": {
                        "type": "array",
                        "items": record(
                            {"date": DATE, "boot": durations.BY_POOL, "clone": durations.BY_POOL, "tag": TAGS}
                        ),
                    },
                }
            ),
            400: TEXT,
        },
        parameters=DATES,
        plain=frozenset({400}),
    ),
    Route(
        "GET",
        "/api/v3/summary/{section}",
        show_section,
        "One part of the summary.",
        _SECTION_ANSWERS,
        parameters=(_WHICH, *DATES),
        plain=frozenset({400}),
    ),
    Route(
        "GET",
        "/api/v3/summary/{section}/{key}",
        show_section,
        "One key of one part of the summary.",
        _SECTION_ANSWERS,
        parameters=(_WHICH, Parameter("key", "path", "duration or count; of the part tag, the name of a tag."), *DATES),
        plain=frozenset({400}),
    ),
)
