"""What the hammer writes down, and when it holds that everything is as wanted."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.hammer.book import Book, Hold, Mark
from tests.faults.hammer.rest import lacking


def hold(way: str, told: float) -> Hold:
    return Hold("alice", f"vm-{told}", way, Mark.OWNER, "alice", told, told, told + 60)


@given(st.lists(st.floats(0, 100), max_size=8))
def test_the_drought_is_the_longest_time_between_two_checkouts(moments: list[float]) -> None:
    book = Book()
    book.opens(0)
    for moment in sorted(moments):
        book.granted([hold("rest", moment)])
    book.closes(100)
    edges = [0.0, *sorted(moments), 100.0]
    assert book.drought == max(after - before for before, after in pairwise(edges))
    assert book.checkouts == len(book.holds) == len(moments)


def test_what_is_not_got_at_a_gateway_ends_no_drought() -> None:
    book = Book()
    book.opens(0)
    book.granted([hold("claim", 5), hold("claim", 5)])
    book.closes(10)
    assert (book.drought, book.checkouts, len(book.holds)) == (10, 1, 2)


def test_what_was_given_back_is_not_held() -> None:
    book = Book()
    book.granted([hold("rest", 1), hold("rest", 2)])
    book.holds[0].given_back = 3
    assert book.held() == book.holds[1:]


def pool(**status: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "True"}]
    return {
        "metadata": {"uid": "u", "generation": 2},
        "spec": {"replicas": 1},
        "status": {"readyReplicas": 1, "observedGeneration": 2, "conditions": conditions, **status},
    }


def vm(phase: str = "Ready", **spec: Any) -> dict[str, Any]:
    return {"spec": {"poolUid": "u", **spec}, "status": {"phase": phase}}


def test_a_full_pool_lacks_nothing() -> None:
    assert lacking(pool(), [vm(), vm("Pending", poolUid="another")]) == ""


@pytest.mark.parametrize(
    ("status", "vms"),
    [
        ({}, []),
        ({}, [vm("Pending")]),
        ({}, [vm(claim={"id": "c"})]),
        ({}, [vm(), vm("Completed")]),
        ({}, [vm(), vm()]),
        ({"readyReplicas": 0}, [vm()]),
        ({"observedGeneration": 1}, [vm()]),
        ({"conditions": []}, [vm()]),
    ],
)
def test_a_pool_that_is_not_as_wanted_lacks_something(status: dict[str, Any], vms: list[dict[str, Any]]) -> None:
    assert lacking(pool(**status), vms)
