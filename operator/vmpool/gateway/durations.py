"""Durations as VMPooler writes them in its status and its summary."""

from collections.abc import Iterable, Mapping

from vmpool.gateway.answers import Json
from vmpool.gateway.history import Span
from vmpool.gateway.routes import Schema
from vmpool.gateway.schemas import COUNT, NUMBER, record, table


def together(spans: Iterable[Span]) -> Span:
    """Return all of some durations as one."""
    whole = Span()
    for span in spans:
        whole.add(span)
    return whole


def numbers(span: Span) -> Json:
    """Return what is told of durations: seconds, the average to a tenth."""
    return {
        "average": round(span.average, 1),
        "min": round(span.least, 2),
        "max": round(span.most, 2),
        "total": round(span.total, 2),
    }


def of_day(spans: Iterable[Span]) -> Json:
    """Return the durations of one day over all pools."""
    whole = together(spans)
    return {"duration": numbers(whole), "count": {"total": whole.count}}


def by_pool(spans: Mapping[str, Span]) -> Json:
    """Return durations over all pools and of each."""
    made = of_day(spans.values())
    made["duration"]["pool"] = {pool: numbers(span) for pool, span in spans.items()}
    made["count"]["pool"] = {pool: {"total": span.count} for pool, span in spans.items()}
    return made


_NUMBERS = {"average": NUMBER, "min": NUMBER, "max": NUMBER, "total": NUMBER}
OF_DAY: Schema = record({"duration": record(_NUMBERS), "count": record({"total": COUNT})})
BY_POOL: Schema = record(
    {},
    duration=record({**_NUMBERS, "pool": table(record(_NUMBERS))}),
    count=record({"total": COUNT, "pool": table(record({"total": COUNT}))}),
)
"""One of the two is left out when only the other was asked for."""
