"""What a mirror believes, and the rules by which it comes to believe it. Pure: no I/O, no clock.

Three sources speak, each out of step with the others: lists, watch events, and the server's answers to our own
writes, which run ahead of the watch. Two facts order them: resourceVersions grow with every write, and a uid
never comes back. From these follow the rules:

1. Of one uid, the newer resourceVersion wins, whoever says it.
2. ``progress`` is the resourceVersion up to which list and watch have told everything. An answer about an
   unknown uid that is not newer than ``progress`` is about an object that is gone.
3. An object that an own write removed is buried: nothing brings it back. The grave is closed when the watch says
   DELETED or a list that is not older than the object lacks it, because from then on rule 2 holds for answers.
   Against a watch that tells old events once more the uids of the last deletions are kept.
4. Of two uids under one name the newer resourceVersion is the living one.
5. A list does not remove what is newer than the list.

Numeric comparison of resourceVersions is a promise of the API since Kubernetes 1.35, and a fact before.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from vmpool.kube.resource import Json

T = TypeVar("T")
Key = tuple[str, str]
"""Namespace (empty for cluster-wide kinds) and name."""

GONE_KEPT: Final = 10_000
"""Own deletions that the watch may not have confirmed yet, and uids that it has told to be gone: of each so many."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One object; ``fact`` is None when it could not be projected, and ``problem`` says why."""

    uid: str
    key: Key
    resource_version: int
    fact: T | None
    problem: str
    index_keys: tuple[Hashable | None, ...]


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What became of one object: ``old`` is None when added, ``new`` is None when deleted."""

    kind: Literal["added", "modified", "deleted"]
    old: Entry[T] | None
    new: Entry[T] | None

    @property
    def entry(self) -> Entry[T]:
        """The object as last known."""
        entry = self.new or self.old
        assert entry is not None, "a change is about an object"
        return entry


class Store(Generic[T]):
    """Entries by uid, by name and by the caller's indexes; every method that learns returns what changed."""

    def __init__(
        self,
        project: Callable[[Json], T],
        indexes: Mapping[str, Callable[[T], Hashable | None]],
        gone_kept: int = GONE_KEPT,
    ) -> None:
        self._project = project
        self._gone_kept = gone_kept
        self._index_names = {name: place for place, name in enumerate(indexes)}
        self._index_functions = tuple(indexes.values())
        self._indexed: tuple[dict[Hashable, dict[str, Entry[T]]], ...] = tuple({} for _ in indexes)
        self._by_uid: dict[str, Entry[T]] = {}
        self._uid_by_key: dict[Key, str] = {}
        self._graves: dict[str, int] = {}
        self._departed: dict[str, int] = {}
        """At which version an object left the watch's view; newer, it may have come back into a selector's."""
        self.broken: dict[str, str] = {}
        """Why an object has no fact, by uid."""
        self.progress = 0
        """Lists and the watch have told everything up to here."""
        self.highest = 0
        """Newest resourceVersion seen from any source."""
        self.ignored = 0
        """Late news that changed nothing."""
        self.graves_forgotten = 0

    def __len__(self) -> int:
        return len(self._by_uid)

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter(self._by_uid.values())

    @property
    def graves(self) -> int:
        """Own deletions that list and watch have not confirmed."""
        return len(self._graves)

    def by_uid(self, uid: str) -> Entry[T] | None:
        """The object of this uid."""
        return self._by_uid.get(uid)

    def by_key(self, key: Key) -> Entry[T] | None:
        """The object of this name."""
        uid = self._uid_by_key.get(key)
        return None if uid is None else self._by_uid[uid]

    def by_index(self, index: str, value: Hashable) -> tuple[Entry[T], ...]:
        """The objects for which this index gives ``value``; as many steps as there are of them."""
        return tuple(self._indexed[self._index_names[index]].get(value, {}).values())

    def count(self, index: str, value: Hashable) -> int:
        """How many objects ``by_index`` would return; one step."""
        return len(self._indexed[self._index_names[index]].get(value, ()))

    def event(self, kind: str, obj: Json) -> list[Change[T]]:
        """Learn from a watch event; the watch tells every change once, in order."""
        version = version_of(obj)
        self.progress = max(self.progress, version)
        self.highest = max(self.highest, version)
        if kind == "BOOKMARK":
            return []
        if kind != "DELETED":
            return self._learn(obj)
        uid = obj["metadata"]["uid"]
        self._graves.pop(uid, None)
        known = self._by_uid.get(uid)
        if known is None or known.resource_version <= version:
            self._depart(uid, version)
        # Older than what we hold: it only left a selector's view, and our own write has put it back since.
        if known is None or known.resource_version > version:
            self.ignored += 1
            return []
        return [self._remove(known)]

    def saw(self, obj: Json) -> list[Change[T]]:
        """Learn from the server's answer to a write or a quorum read."""
        version = version_of(obj)
        if is_gone(obj):
            return self.saw_deleted(obj["metadata"]["uid"], version)
        self.highest = max(self.highest, version)
        if obj["metadata"]["uid"] not in self._by_uid and version <= self.progress:
            self.ignored += 1
            return []
        return self._learn(obj)

    def saw_deleted(self, uid: str, version: int = 0) -> list[Change[T]]:
        """Learn that the server said this object is gone.

        ``version`` is the last one known to the caller; it matters only for an object never told to us.
        """
        known = self._by_uid.get(uid)
        if known is not None:
            self._bury(uid, max(version, known.resource_version))
            return [self._remove(known)]
        # Not newer than ``progress``: rule 2 keeps it out; the watch is often faster than the answer.
        if version > self.progress:
            self._bury(uid, version)
        return []

    def entry_of(self, obj: Json) -> Entry[T]:
        """The entry that this object makes; the known one when it says nothing new."""
        known = self._by_uid.get(obj["metadata"]["uid"])
        if known is not None and known.resource_version == version_of(obj):
            return known
        return self._entry(obj)

    def replace(self, version: int, listed: Iterable[Entry[T]], *, forget: bool = False) -> list[Change[T]]:
        """Learn from a complete list of ``entry_of`` results, true at ``version``.

        ``forget`` drops everything else that is known, for a server that was restored into the past.
        """
        if forget:
            self._graves.clear()
            self._departed.clear()
            self.highest = 0
        in_list = {entry.uid: entry for entry in listed}
        changes = [
            self._remove(entry)
            for entry in list(self._by_uid.values())
            if entry.uid not in in_list and (forget or entry.resource_version <= version)
        ]
        closed = [uid for uid, last in self._graves.items() if uid not in in_list and last <= version]
        for uid in (*(change.entry.uid for change in changes), *closed):
            self._depart(uid, version)
        self._graves = {uid: last for uid, last in self._graves.items() if uid in in_list or last > version}
        for entry in in_list.values():
            changes += self._put(entry, forced=forget)
        self.progress = version
        self.highest = max(self.highest, version)
        return changes

    def _learn(self, obj: Json) -> list[Change[T]]:
        known = self._by_uid.get(obj["metadata"]["uid"])
        if known is not None and known.resource_version >= version_of(obj):
            self.ignored += 1
            return []
        return self._put(self._entry(obj))

    def _put(self, entry: Entry[T], *, forced: bool = False) -> list[Change[T]]:
        known = self._by_uid.get(entry.uid)
        if known is entry:
            return []
        if entry.uid in self._graves or (known is None and entry.resource_version <= self._departed.get(entry.uid, -1)):
            self.ignored += 1
            return []
        if known is not None and not forced and known.resource_version >= entry.resource_version:
            self.ignored += 1
            return []
        changes: list[Change[T]] = []
        namesake = self.by_key(entry.key)
        if namesake is not None and namesake.uid != entry.uid:
            if not forced and namesake.resource_version > entry.resource_version:
                self.ignored += 1
                return []
            self._bury(namesake.uid, namesake.resource_version)
            changes.append(self._remove(namesake))
        if known is not None:
            self._unindex(known)
        self._by_uid[entry.uid] = entry
        self._uid_by_key[entry.key] = entry.uid
        if entry.problem:
            self.broken[entry.uid] = entry.problem
        for place, value in enumerate(entry.index_keys):
            if value is not None:
                self._indexed[place].setdefault(value, {})[entry.uid] = entry
        changes.append(Change("added" if known is None else "modified", known, entry))
        return changes

    def _remove(self, entry: Entry[T]) -> Change[T]:
        del self._by_uid[entry.uid]
        del self._uid_by_key[entry.key]
        self._unindex(entry)
        return Change("deleted", entry, None)

    def _unindex(self, entry: Entry[T]) -> None:
        self.broken.pop(entry.uid, None)
        for place, value in enumerate(entry.index_keys):
            if value is not None:
                same = self._indexed[place][value]
                del same[entry.uid]
                if not same:
                    del self._indexed[place][value]

    def _depart(self, uid: str, version: int) -> None:
        self._departed[uid] = version
        if len(self._departed) > self._gone_kept:
            del self._departed[next(iter(self._departed))]

    def _bury(self, uid: str, last_version: int) -> None:
        self._graves[uid] = last_version
        if len(self._graves) > self._gone_kept:
            del self._graves[next(iter(self._graves))]
            self.graves_forgotten += 1

    def _entry(self, obj: Json) -> Entry[T]:
        uid, key, version = obj["metadata"]["uid"], key_of(obj), version_of(obj)
        try:
            fact = self._project(obj)
            index_keys = tuple(function(fact) for function in self._index_functions)
            hash(index_keys)
        except Exception as error:  # noqa: BLE001 - one strange object must not blind us to all others
            problem = f"{type(error).__name__}: {error}"
            return Entry(uid, key, version, None, problem, ())
        return Entry(uid, key, version, fact, "", index_keys)


def version_of(obj: Json) -> int:
    """The resourceVersion as a number."""
    return int(obj["metadata"]["resourceVersion"])


def key_of(obj: Json) -> Key:
    """Namespace (empty for cluster-wide kinds) and name."""
    metadata = obj["metadata"]
    return metadata.get("namespace") or "", metadata["name"]


def is_gone(obj: Json) -> bool:
    """True for the answer to a write that removed the last finalizer of an object in deletion.

    Pods and the like linger for a grace period; the answer then names it.
    """
    metadata = obj["metadata"]
    return bool(
        metadata.get("deletionTimestamp")
        and not metadata.get("finalizers")
        and not metadata.get("deletionGracePeriodSeconds")
    )
