"""The root rules of our kinds as predicates: what the API server refuses, whoever asks.

The texts and paths come from the generated rules themselves; each predicate stands beside its expression's letter,
and a test holds that there are as many predicates as rules.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from vmpool.api.meta import Rule
from vmpool.kube.resource import Json
from vmpool.plan.lifecycle import SUCCESSORS, Phase
from vmpool.plan.rules import LETTER_FIELDS, LETTER_PARTS, letter_rules, pooledvm_rules, vmclaim_rules

Holds = Callable[[Json, Json], bool]
"""Whether a rule holds for the object before and after."""


def _claim(obj: Json) -> Json | None:
    found: Json | None = obj["spec"].get("claim")
    return found


def _phase(obj: Json) -> str:
    return str(obj["status"]["phase"])


def _same_phase(old: Json, new: Json) -> bool:
    return _phase(old) == _phase(new)


def _claim_stays(old: Json, new: Json) -> bool:
    before, after = _claim(old), _claim(new)
    return before is None or (
        after is not None and all(before.get(one) == after.get(one) for one in ("id", "owner", "boundAt"))
    )


def _claimed_when_ready(old: Json, new: Json) -> bool:
    after = _claim(new)
    return after is None or _claim(old) is not None or (_phase(new) == Phase.READY and "releasedAt" not in after)


def _claimed_goes_on(old: Json, new: Json) -> bool:
    claim = _claim(new)
    if _same_phase(old, new) or claim is None or _phase(new) == Phase.CLAIMED:
        return True
    return _phase(new) == Phase.COMPLETED and "releasedAt" in claim


def _legal_successor(old: Json, new: Json) -> bool:
    before = _phase(old)
    known = {phase.value: {one.value for one in after} for phase, after in SUCCESSORS.items()}
    return _same_phase(old, new) or before not in known or _phase(new) in known[before]


def _claimed_has_claim(old: Json, new: Json) -> bool:
    return _same_phase(old, new) or _phase(new) != Phase.CLAIMED or _claim(new) is not None


def _ended_is_frozen(old: Json, new: Json) -> bool:
    before = _claim(old)
    if before is None or ("releasedAt" not in before and _phase(old) != Phase.COMPLETED):
        return True
    return _claim(new) == before


def _belongs(old: Json, new: Json) -> bool:
    return all(old["spec"][one] == new["spec"][one] for one in ("pool", "poolUid", "provider"))


def _machine_once(old: Json, new: Json) -> bool:
    before = old["status"].get("machineId")
    return before is None or new["status"].get("machineId") == before


PREDICATES: Final[Mapping[str, tuple[Holds, ...]]] = {
    "pooledvms": (
        lambda _old, _new: True,  # (a) is judged at birth alone
        _claim_stays,
        _claimed_when_ready,
        _claimed_goes_on,
        _legal_successor,
        _claimed_has_claim,
        _ended_is_frozen,
        _belongs,
        _machine_once,
    ),
    "vmclaims": (
        lambda old, new: all(
            (old["spec"].get(one) or empty) == (new["spec"].get(one) or empty)
            for one, empty in (("requester", ""), ("requests", []), ("requesterGroups", []))
        ),
        lambda old, new: (
            {(one["slot"], one["uid"]) for one in old["status"].get("vms", ())}
            <= {(one["slot"], one["uid"]) for one in new["status"].get("vms", ())}
        ),
    ),
    "deadletters": (
        lambda old, new: all(old["spec"].get(one) == new["spec"].get(one) for one in (*LETTER_FIELDS, *LETTER_PARTS)),
    ),
}


def _told(of: Iterable[Rule]) -> list[tuple[str, str]]:
    # The server names a field without the leading dot of the rule's path.
    return [(rule.message, (rule.field_path or "").removeprefix(".")) for rule in of]


RULES: Final = {
    "pooledvms": _told(pooledvm_rules()),
    "vmclaims": _told(vmclaim_rules()),
    "deadletters": _told(letter_rules()),
}


def broken(plural: str, old: Json | None, new: Json) -> list[tuple[str, str]]:
    """Return message and path of each rule that the server would refuse this write for."""
    if plural not in PREDICATES:
        return []
    said = RULES[plural]
    if old is None:
        return [said[0]] if plural == "pooledvms" and _claim(new) is not None else []
    return [told for told, holds in zip(said, PREDICATES[plural], strict=True) if not holds(old, new)]
