"""What becomes of a watch's lines under each fault."""

from collections.abc import Sequence

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.gate.calls import Occurrences
from tests.faults.gate.plan import WATCH_KINDS, Action, Fault, Kind, Plan, Progress, Trigger
from tests.faults.gate.watching import Out, Stream, event_signature

SECONDS = 5.0


def event(uid: str, kind: str = "MODIFIED", phase: str = "Ready", number: int = 1) -> bytes:
    made = {"metadata": {"uid": uid, "resourceVersion": str(number)}, "status": {"phase": phase}}
    return orjson.dumps({"type": kind, "object": made}) + b"\n"


BOOKMARK = orjson.dumps({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}) + b"\n"


def stream(kind: Kind | None, signature: str = "event pooledvms MODIFIED Ready") -> Stream:
    status = 500 if kind is Kind.ERROR else None
    action = Action(kind=kind, seconds=SECONDS, status=status) if kind is not None else None
    faults = (Fault(trigger=Trigger(signature=signature), action=action),) if action is not None else ()
    return Stream("a", "pooledvms", Progress(Plan(faults=faults)), Occurrences())


def through(of: Stream, lines: Sequence[bytes], now: float = 0.0) -> list[Out]:
    return [out for line in lines for out in of.line(line, now)]


def data(outs: list[Out]) -> bytes:
    return b"".join(out.data for out in outs)


A, B, A_AGAIN = event("a"), event("b"), event("a", number=2)


def test_without_a_fault_every_line_passes_as_it_is() -> None:
    assert data(through(stream(None), [A, BOOKMARK, B])) == A + BOOKMARK + B


def test_dropped_twice_and_replayed() -> None:
    assert data(through(stream(Kind.DROP), [A, B])) == B
    assert data(through(stream(Kind.TWICE), [A, B])) == A + A + B
    assert data(through(stream(Kind.REPLAY, "event pooledvms MODIFIED Gone"), [A, B])) == A + B
    late = event("c", phase="Gone")
    assert data(through(stream(Kind.REPLAY, "event pooledvms MODIFIED Gone"), [A, B, late])) == A + B + late + A + B


def test_a_held_event_comes_in_its_time_or_never() -> None:
    held = stream(Kind.HOLD)
    assert data(through(held, [A, B])) == B
    assert held.next_due == SECONDS
    assert data(list(held.due(SECONDS))) == A
    overtaken = stream(Kind.HOLD)
    assert data(through(overtaken, [A, A_AGAIN])) == A_AGAIN
    assert overtaken.next_due is None


def test_frozen_events_wait_while_bookmarks_pass() -> None:
    frozen = stream(Kind.FREEZE_EVENTS)
    assert data(through(frozen, [A, BOOKMARK, B])) == BOOKMARK
    assert data(list(frozen.due(SECONDS - 1))) == b""
    assert data(list(frozen.due(SECONDS))) == A + B
    assert data(through(frozen, [A_AGAIN])) == A_AGAIN


def test_frozen_whole_is_a_pause_before_the_event() -> None:
    (first, second) = through(stream(Kind.FREEZE), [A, B])
    assert (first.pause, second.pause) == (SECONDS, 0.0)


def test_an_error_ends_the_stream_and_a_cut_breaks_it() -> None:
    (error,) = through(stream(Kind.ERROR), [A])
    told = orjson.loads(error.data)
    assert (told["type"], told["object"]["code"], error.end) == ("ERROR", 500, True)
    (cut,) = through(stream(Kind.CUT), [A])
    assert A.startswith(cut.data)
    assert not cut.data.endswith(b"\n")
    assert cut.reset


@pytest.mark.parametrize(
    ("found", "signature"),
    [
        ({"status": {"phase": "Pending"}}, "event pooledvms ADDED Pending"),
        ({"metadata": {"deletionTimestamp": "t"}, "status": {"phase": "Completed"}},
         "event pooledvms ADDED Completed deleting"),
        ({"spec": {"claim": {"id": "c"}}}, "event pooledvms ADDED claimed"),
        ({"spec": {"claim": {"releasedAt": "t"}}}, "event pooledvms ADDED released"),
        ({}, "event pooledvms ADDED"),
    ],
)  # fmt: skip
def test_an_event_is_called_by_what_it_shows(found: dict[str, object], signature: str) -> None:
    assert event_signature("pooledvms", {"type": "ADDED", "object": found}) == signature


@given(
    st.sampled_from(sorted(WATCH_KINDS - {Kind.ERROR, Kind.CUT})),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), max_size=12),
)
def test_in_the_end_every_object_is_as_the_server_has_it_unless_its_event_was_lost(
    kind: Kind, drawn: list[tuple[str, int]]
) -> None:
    of = stream(kind)
    lines = [event(uid, number=number) for number, (uid, _) in enumerate(drawn, 1)]
    outs = through(of, lines) + list(of.due(SECONDS))
    last: dict[str, int] = {}
    for line in data(outs).splitlines():
        meta = orjson.loads(line)["object"]["metadata"]
        last[meta["uid"]] = max(last.get(meta["uid"], 0), int(meta["resourceVersion"]))
    wanted = {uid: number for number, (uid, _) in enumerate(drawn, 1)}
    if kind is Kind.DROP and drawn and [uid for uid, _ in drawn].count(drawn[0][0]) == 1:
        wanted.pop(drawn[0][0])
    assert last == wanted
