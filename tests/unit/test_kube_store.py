"""The rules by which a mirror learns, against a model of the server in which everything may come late."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmpool.kube.store import Change, Store, is_gone

NAMES = "abc"


def obj(uid: str, name: str, version: int, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"uid": uid, "name": name, "namespace": "n", "resourceVersion": str(version)} | metadata}


def project(document: dict[str, Any]) -> int:
    return int(document["metadata"]["resourceVersion"])


def new_store(**bounds: int) -> Store[int]:
    return Store(project, {"parity": lambda version: version % 2}, **bounds)


class World:
    """A server, a watch that lags, lists that take their time, and answers to own writes in any order.

    Each step takes a number that decides its details.
    """

    def __init__(self) -> None:
        self.store = new_store()
        self.version = 10
        self.alive: dict[str, dict[str, Any]] = {}
        """By name: what the server has."""
        self.log: list[tuple[int, str, dict[str, Any]]] = []
        """Every event the server ever had, by version."""
        self.answers: list[tuple[str, dict[str, Any]]] = []
        """To own writes, on their way."""
        self.delivered: dict[str, int] = {}
        """By uid: the newest version that an answer has told."""
        self.watching_from: int | None = None
        self.listing: tuple[int, list[dict[str, Any]]] | None = None
        self.shown: dict[str, int] = {}
        """What the changes told so far add up to."""
        self.ended: set[str] = set()
        """Uids that were reported deleted."""

    def write(self, kind: str, name: str, uid: str) -> dict[str, Any]:
        self.version += 1
        document = obj(uid, name, self.version)
        if kind == "DELETED":
            del self.alive[name]
        else:
            self.alive[name] = document
        self.log.append((self.version, kind, document))
        return document

    def others_write(self, number: int) -> None:
        self._upsert(NAMES[number % 3])

    def others_delete(self, number: int) -> None:
        if known := self.alive.get(NAMES[number % 3]):
            self.write("DELETED", known["metadata"]["name"], known["metadata"]["uid"])

    def own_write(self, number: int) -> None:
        self.answers.append(("saw", self._upsert(NAMES[number % 3])))
        if number > 2:
            self.answer_arrives(-1)

    def own_delete(self, number: int) -> None:
        last = self.alive.get(NAMES[number % 3])
        # Who deletes has seen the object, or would not know its uid.
        if last is None or self.store.by_uid(last["metadata"]["uid"]) is None:
            return
        uid, name = last["metadata"]["uid"], last["metadata"]["name"]
        self.write("DELETED", name, uid)
        by_finalizer = obj(uid, name, self.version, deletionTimestamp="now")
        self.answers.append(("saw", by_finalizer) if number % 2 else ("deleted", last))
        if number > 2:
            self.answer_arrives(-1)

    def answer_arrives(self, number: int) -> None:
        if not self.answers:
            return
        kind, document = self.answers.pop(number % len(self.answers))
        uid, version = document["metadata"]["uid"], project(document)
        if kind == "deleted":
            self.learn(self.store.saw_deleted(uid))
        else:
            self.learn(self.store.saw(document))
        if kind == "deleted" or is_gone(document):
            assert self.store.by_uid(uid) is None
            self.ended.add(uid)
        else:
            self.delivered[uid] = max(version, self.delivered.get(uid, 0))

    def list_begins(self, _: int = 0) -> None:
        self.watching_from = None
        self.listing = (self.version, list(self.alive.values()))

    def list_ends(self, _: int = 0) -> None:
        if self.listing is None:
            return
        version, documents = self.listing
        self.listing = None
        self.learn(self.store.replace(version, [self.store.entry_of(document) for document in documents]))
        self.watching_from = version

    def watch_tells(self, number: int) -> None:
        if self.watching_from is None:
            return
        late = [event for event in self.log if event[0] > self.watching_from]
        for version, kind, document in late[: number + 1]:
            self.watching_from = version
            self.learn(self.store.event(kind, document))
        if len(late) <= number:
            self.watching_from = self.version
            self.learn(self.store.event("BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}}))

    def watch_repeats(self, number: int) -> None:
        """A server, or something on the way, tells what it has told already."""
        if self.watching_from is None:
            return
        told = [event for event in self.log if event[0] <= self.watching_from]
        for _, kind, document in told[-number - 1 :]:
            self.learn(self.store.event(kind, document))

    def learn(self, changes: list[Change[int]]) -> None:
        for change in changes:
            uid, entry = change.entry.uid, change.new
            assert (change.old.resource_version if change.old else None) == self.shown.get(uid)
            if entry is None:
                del self.shown[uid]
                self.ended.add(uid)
                continue
            assert uid not in self.ended, "resurrected"
            assert entry.resource_version > self.shown.get(uid, 0), "went backwards"
            self.shown[uid] = entry.resource_version

    def check(self) -> None:
        assert {entry.uid: entry.resource_version for entry in self.store} == self.shown, "untold change"
        by_parity = [self.store.by_index("parity", parity) for parity in (0, 1)]
        assert {entry.uid for entries in by_parity for entry in entries} == set(self.shown)
        for entry in self.store:
            assert self.store.by_key(entry.key) is entry is self.store.by_uid(entry.uid)
            assert entry in by_parity[entry.resource_version % 2]
        alive = {document["metadata"]["uid"] for document in self.alive.values()}
        for uid in alive & self.delivered.keys():
            assert self.shown.get(uid, 0) >= self.delivered[uid], "an answer was rolled back"

    def settle(self) -> None:
        while self.answers:
            self.answer_arrives(0)
        if self.watching_from is None:
            self.list_begins()
            self.list_ends()
        self.watch_tells(len(self.log))

    def _upsert(self, name: str) -> dict[str, Any]:
        known = self.alive.get(name)
        if known is None:
            return self.write("ADDED", name, f"uid-{self.version}")
        return self.write("MODIFIED", name, known["metadata"]["uid"])


STEPS = (
    World.others_write,
    World.others_delete,
    World.own_write,
    World.own_delete,
    World.answer_arrives,
    World.list_begins,
    World.list_ends,
    World.watch_tells,
    World.watch_repeats,
)


@settings(max_examples=600, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5)), min_size=10, max_size=60))
def test_whatever_comes_late_the_picture_never_lies(steps: list[tuple[Callable[[World, int], None], int]]) -> None:
    world = World()
    for step, number in steps:
        step(world, number)
        world.check()
    world.settle()
    world.check()
    assert world.shown == {document["metadata"]["uid"]: project(document) for document in world.alive.values()}
    assert world.store.graves == 0


def test_of_two_uids_under_one_name_the_newer_lives() -> None:
    store = new_store()
    store.replace(10, [store.entry_of(obj("old", "a", 5))])
    changes = store.saw(obj("new", "a", 20))
    assert [(change.kind, change.entry.uid) for change in changes] == [("deleted", "old"), ("added", "new")]
    assert store.event("MODIFIED", obj("old", "a", 12)) == []
    assert store.event("DELETED", obj("old", "a", 15)) == []
    assert [entry.uid for entry in store] == ["new"]
    assert store.graves == 0


def test_a_list_older_than_a_buried_object_does_not_close_its_grave() -> None:
    store = new_store()
    store.replace(10, [])
    store.saw(obj("u", "a", 20))
    store.saw_deleted("u")
    store.replace(15, [])
    assert store.event("ADDED", obj("u", "a", 20)) == []
    assert store.graves == 1
    store.replace(25, [])
    assert store.graves == 0


def test_what_was_gone_is_not_brought_back_by_an_old_event() -> None:
    store = new_store()
    store.replace(10, [store.entry_of(obj("u", "a", 5)), store.entry_of(obj("v", "b", 6))])
    store.event("DELETED", obj("u", "a", 20))
    store.replace(30, [])
    assert store.event("MODIFIED", obj("u", "a", 5)) == []
    assert store.event("ADDED", obj("v", "b", 6)) == []
    assert len(store) == 0


def test_what_comes_back_into_a_selector_is_shown_again() -> None:
    store = new_store()
    store.replace(10, [store.entry_of(obj("u", "a", 5))])
    store.event("DELETED", obj("u", "a", 20))
    assert [change.kind for change in store.event("ADDED", obj("u", "a", 21))] == ["added"]


def test_the_departed_are_bounded() -> None:
    store = new_store(gone_kept=1)
    store.replace(10, [store.entry_of(obj("u", "a", 5)), store.entry_of(obj("v", "b", 6))])
    store.event("DELETED", obj("u", "a", 11))
    store.event("DELETED", obj("v", "b", 12))
    assert store.event("MODIFIED", obj("v", "b", 6)) == []
    assert [change.kind for change in store.event("MODIFIED", obj("u", "a", 5))] == ["added"]


def test_what_left_a_selector_and_was_put_back_by_us_stays() -> None:
    store = new_store()
    store.replace(10, [store.entry_of(obj("u", "a", 5))])
    store.saw(obj("u", "a", 20))
    assert store.event("DELETED", obj("u", "a", 15)) == []
    assert store.by_uid("u") is not None


def test_a_list_that_says_nothing_new_makes_no_new_facts() -> None:
    store = new_store()
    store.replace(10, [store.entry_of(obj("u", "a", 5))])
    known = store.by_uid("u")
    assert store.replace(30, [store.entry_of(obj("u", "a", 5))]) == []
    assert store.by_uid("u") is known


def test_a_restored_server_is_believed_in_everything() -> None:
    store = new_store()
    listed = [obj("kept", "a", 80), obj("lost", "b", 85), obj("buried", "c", 86)]
    store.replace(90, [store.entry_of(document) for document in listed])
    store.saw_deleted("buried")
    changes = store.replace(
        50, [store.entry_of(obj("kept", "a", 40)), store.entry_of(obj("buried", "c", 30))], forget=True
    )
    assert {(change.kind, change.entry.uid) for change in changes} == {
        ("deleted", "lost"),
        ("modified", "kept"),
        ("added", "buried"),
    }
    assert (store.progress, store.highest, store.graves) == (50, 50, 0)


def test_graves_are_bounded() -> None:
    store = new_store(gone_kept=3)
    for number in range(5):
        store.saw_deleted(f"uid-{number}", version=100)
    assert (store.graves, store.graves_forgotten) == (3, 2)


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        pytest.param(lambda _: {"no": "hash"}, "TypeError", id="value without a hash"),
        pytest.param(lambda _: 1 // 0, "ZeroDivisionError", id="index that raises"),
    ],
)
def test_an_index_that_fails_breaks_the_entry_only(index: Any, problem: str) -> None:
    store: Store[int] = Store(project, {"odd": index})
    (change,) = store.saw(obj("u", "a", 5))
    assert change.entry.fact is None
    assert problem in store.broken["u"]
    store.saw_deleted("u")
    assert store.broken == {}


def test_an_object_that_lingers_for_its_grace_is_not_gone() -> None:
    assert is_gone(obj("u", "a", 5, deletionTimestamp="now"))
    assert is_gone(obj("u", "a", 5, deletionTimestamp="now", deletionGracePeriodSeconds=0))
    assert not is_gone(obj("u", "a", 5, deletionTimestamp="now", deletionGracePeriodSeconds=30))
    assert not is_gone(obj("u", "a", 5, deletionTimestamp="now", finalizers=["x/y"]))
