"""Rules on what an operator says, whatever comes of it: a request may be wrong though this time it did no harm."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from tests.faults.gate.trial import Entry
from tests.faults.oracle.facts import Facts, Terms, Violation
from tests.faults.oracle.machines import was_completed
from tests.faults.rig.history import KINDS
from vmpool.api import keys

Rule = Callable[[Facts, Terms], Iterator[Violation]]

WRITES = frozenset({"create", "update", "patch", "delete"})
OTHER_WRITES: Final[Mapping[str, tuple[frozenset[str], str]]] = {
    "secrets": (frozenset({"patch"}), ""),
    "configmaps": (frozenset({"create"}), keys.IDENTITY_CONFIGMAP),
    "leases": (frozenset({"create", "update", "patch", "delete"}), keys.LEASE_NAME),
    "events": (frozenset({"create", "patch"}), ""),
    "subjectaccessreviews": (frozenset({"create"}), ""),
    "selfsubjectaccessreviews": (frozenset({"create"}), ""),
}
"""What is written besides our own kinds: how, and under which name; empty: any."""
CLUSTER_WIDE = frozenset({"subjectaccessreviews", "selfsubjectaccessreviews"})
"""Questions: they lie in no namespace and nothing is kept of them."""
SECOND = 1.0


def uid_on_delete(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """L1: whoever deletes an object of ours says which one: a namesake that was made since is not meant."""
    for entry in _api_writes(facts):
        if entry.verb == "delete" and entry.plural in KINDS and not _preconditions(entry.body).get("uid"):
            yield _broken("L1", entry, "it is deleted by name alone, without preconditions.uid")


def no_delete_without_completed(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """L2: before the cloud is asked to destroy a machine, Completed was committed, and somebody had been told so.

    ``I4`` looks at what became of machines; this looks at what was asked, also where the request never arrived.
    """
    for entry in facts.provider_deletes:
        if not was_completed(facts, entry.name, entry):
            what = f"machine {entry.name} was to be destroyed, and no PooledVM of it was Completed for sure"
            yield _broken("L2", entry, what)


def version_on_writes(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """L3: a status, and the end of a claim, are written on the version that they were decided on."""
    for entry in _api_writes(facts):
        if entry.plural not in KINDS or entry.verb not in {"patch", "update"} or _may_be_blind(entry):
            continue
        if isinstance(entry.body, list):
            yield from _tested(entry)
            continue
        meta = (entry.body or {}).get("metadata") or {}
        if not meta.get("uid"):
            yield _broken("L3", entry, "metadata.uid is not there: a namesake could be hit")
        if not meta.get("resourceVersion") and (entry.subresource == "status" or _ends_claim(entry.body)):
            yield _broken("L3", entry, "metadata.resourceVersion is not there: it may be written on something newer")


def _tested(entry: Entry) -> Iterator[Violation]:
    """A JSON patch is safe when it tests whom it means, and what it replaces."""
    tests = {one["path"] for one in entry.body if one["op"] == "test"}
    if "/metadata/uid" not in tests:
        yield _broken("L3", entry, "a JSON patch that does not test /metadata/uid")
    for one in entry.body:
        if one["op"] in {"replace", "remove"} and one["path"] not in tests:
            yield _broken("L3", entry, f"it puts something in the place of {one['path']} without a test of it")


def _may_be_blind(entry: Entry) -> bool:
    """Writes that are as right on every version.

    Poison is forgiven by a person's word, whatever else has become of the pool: the status is only cleared of it, and
    the same failure would bring it back.
    """
    return bool(
        entry.plural == "vmpools"
        and entry.subresource == "status"
        and isinstance(entry.body, dict)
        and entry.body.get("status") == {"poison": None}
    )


def _ends_claim(body: Any) -> bool:
    claim = ((body or {}).get("spec") or {}).get("claim") or {}
    return bool(claim.get("releasedAt"))


def only_our_kinds(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """L4: nothing is written but our kinds and a handful of others, and nothing outside the trial's namespace."""
    for entry in _api_writes(facts):
        if entry.plural not in CLUSTER_WIDE and entry.namespace != facts.namespace:
            yield _broken("L4", entry, f"it is written in namespace {entry.namespace or '(none)'}")
        if entry.plural in KINDS:
            continue
        verbs, name = OTHER_WRITES.get(entry.plural, (frozenset[str](), ""))
        if entry.verb not in verbs:
            yield _broken("L4", entry, f"{entry.plural} are not ours to {entry.verb}")
        elif name and _name(entry) != name:
            yield _broken("L4", entry, f"of {entry.plural} only {name} is ours, not {_name(entry)}")
        elif entry.plural == "secrets" and not _only_finalizers(entry.body):
            yield _broken("L4", entry, "of a Secret only the finalizers are ours")


def _name(entry: Entry) -> str:
    body = entry.body if isinstance(entry.body, dict) else {}
    return entry.name or str((body.get("metadata") or {}).get("name") or "")


def _only_finalizers(body: Any) -> bool:
    paths = [one["path"] for one in body if one["op"] != "test"] if isinstance(body, list) else []
    return bool(paths) and all(path.split("/")[1:3] == ["metadata", "finalizers"] for path in paths)


def request_rate(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """L5: in no second does a replica ask more than ``requests_per_second``."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    for entry in facts.trace:
        times[entry.replica].append(entry.asked)
    for replica, moments in times.items():
        moments.sort()
        most, since = max((bisect_right(moments, at + SECOND) - index, at) for index, at in enumerate(moments))
        if most > terms.requests_per_second:
            what = f"{most} requests in one second, at most {terms.requests_per_second} may be"
            yield Violation("L5", f"replica {replica}", what, since)


def quiet_at_the_end(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """L6: when all is as wanted nothing is written, not even what changes nothing; neither here nor at the cloud."""
    if not facts.converged:
        return
    since = facts.evidence.looked - terms.quiet_seconds
    for entry in facts.trace:
        wrote = entry.verb in WRITES and entry.plural not in {"leases", "events", *CLUSTER_WIDE}
        if (entry.signature in LATE and entry.changed) or _tries_again(facts, entry):
            continue
        if wrote and entry.asked > since:
            yield _broken("L6", entry, "it is written although everything is as wanted")


def _tries_again(facts: Facts, entry: Entry) -> bool:
    """Whether the same was asked before and the answer was broken: a client's second try comes when it comes."""
    same = (entry.far, entry.signature, entry.name)
    return any(other.fault and (other.far, other.signature, other.name) == same for other in facts.trace)


def writes_that_change(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """L7: what would change nothing is not written. Again after a failure it may be: nobody knew."""
    for entry in _api_writes(facts):
        done = 200 <= entry.status < 300 and not entry.changed and not entry.fault
        if not done or entry.plural not in KINDS or entry.verb != "patch" or _may_be_blind(entry):
            continue
        if not _troubled_before(facts, entry):
            yield _broken("L7", entry, f"it changed nothing of {entry.name}")


def _troubled_before(facts: Facts, entry: Entry) -> bool:
    """Whether something was broken before: then the writer may not have known what is there."""
    return any(other.fault and other.asked <= entry.asked for other in facts.trace) or facts.stale


def _api_writes(facts: Facts) -> Iterator[Entry]:
    return (entry for entry in facts.trace if entry.far == "api" and entry.verb in WRITES)


def _preconditions(body: Any) -> Mapping[str, Any]:
    return (body.get("preconditions") or {}) if isinstance(body, dict) else {}


def _broken(code: str, entry: Entry, what: str) -> Violation:
    return Violation(code, f"{entry.signature} {entry.name}".strip(), what, entry.asked)


LATE: Final = frozenset({"patch vmproviders/status status.machines"})
"""What tells of the cloud a round later, and rightly so."""

RULES: Final[Mapping[str, Rule]] = {
    "L1": uid_on_delete,
    "L2": no_delete_without_completed,
    "L3": version_on_writes,
    "L4": only_our_kinds,
    "L5": request_rate,
    "L6": quiet_at_the_end,
    "L7": writes_that_change,
}
"""By the code that their violations carry."""
