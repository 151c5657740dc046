"""The root rules of PooledVM: what the API server itself refuses, whoever asks.

They stand at the schema's root because a rule on the ``spec`` or ``status`` node is passed by setting that node to
null, and they see both on either endpoint. No release may tighten one: the server would then refuse every write on
old objects, the removal of our finalizer included.
"""

from vmpool.api.meta import Rule
from vmpool.plan.lifecycle import SUCCESSORS, Phase

_REASON = "FieldValueForbidden"
_SAME = "self.status.phase == oldSelf.status.phase"
_CLAIM, _PHASE = ".spec.claim", ".status.phase"


def successors_map() -> str:
    """Return the table of legal successors as a CEL map."""
    quoted = {phase: ",".join(f"'{after}'" for after in SUCCESSORS[phase]) for phase in Phase}
    return "{" + ",".join(f"'{phase}':[{after}]" for phase, after in quoted.items()) + "}"


def _rule(rule: str, message: str, path: str, *, at_birth: bool = False) -> Rule:
    return Rule(rule=rule, message=message, field_path=path, reason=_REASON, optional_old_self=at_birth)


CLAIM_TAKEN = "a VM is claimed once: its claim never goes, and its id, owner and boundAt never change"
CLAIM_ENDED = "a claim that has ended never changes"
CLAIM_NOT_READY = "only a Ready VM can be claimed, and not with a claim that has already ended"


def vmclaim_rules() -> tuple[Rule, ...]:
    """Return the root rules of VMClaim: what was asked for, and by whom, is fixed; a slot is filled once."""
    return (
        _rule(
            "self.spec.requester == oldSelf.spec.requester && self.spec.requests == oldSelf.spec.requests"
            " && (has(self.spec.requesterGroups) ? self.spec.requesterGroups : [])"
            " == (has(oldSelf.spec.requesterGroups) ? oldSelf.spec.requesterGroups : [])",
            "requests, requester and requesterGroups never change: make another claim",
            ".spec",
        ),
        _rule(
            "!has(oldSelf.status.vms) || (has(self.status.vms) && oldSelf.status.vms.all(o,"
            " self.status.vms.exists(n, n.slot == o.slot && n.uid == o.uid)))",
            "a slot is filled once: its VM never changes",
            ".status.vms",
        ),
    )


LETTER_FIELDS = (
    *("queue", "vm", "vmUid", "pool", "poolUid", "queueFrom", "errorClass", "errorMessage", "failedAt", "retryCount"),
    *("requestId", "poolAlias", "provider", "step", "templateDigest", "machineId", "attempt", "fingerprint"),
)
"""Fields of a DeadLetter that are always there: the server fills in those that have a default."""
LETTER_PARTS = ("attempts", "diagnostics")
"""Those that may be absent."""


def letter_rules() -> tuple[Rule, ...]:
    """Return the root rules of DeadLetter: what happened is fixed, only the action is for people."""
    same = " && ".join(
        [
            *(f"self.spec.{field} == oldSelf.spec.{field}" for field in LETTER_FIELDS),
            *(
                f"has(self.spec.{part}) == has(oldSelf.spec.{part})"
                f" && (!has(self.spec.{part}) || self.spec.{part} == oldSelf.spec.{part})"
                for part in LETTER_PARTS
            ),
        ]
    )
    return (_rule(same, "a dead letter tells what has happened: only its action may be changed", ".spec"),)


def pooledvm_rules() -> tuple[Rule, ...]:
    """Return the rules (a) to (i) of the design, in that order."""
    table = successors_map()
    return (
        _rule("oldSelf.hasValue() || !has(self.spec.claim)", "a VM is not born claimed", _CLAIM, at_birth=True),
        _rule(
            "!has(oldSelf.spec.claim) || (has(self.spec.claim) && self.spec.claim.id == oldSelf.spec.claim.id"
            " && self.spec.claim.owner == oldSelf.spec.claim.owner"
            " && self.spec.claim.boundAt == oldSelf.spec.claim.boundAt)",
            CLAIM_TAKEN,
            _CLAIM,
        ),
        _rule(
            "!has(self.spec.claim) || has(oldSelf.spec.claim) || (self.status.phase == 'Ready'"
            " && !has(self.spec.claim.releasedAt))",
            CLAIM_NOT_READY,
            _CLAIM,
        ),
        _rule(
            f"{_SAME} || !has(self.spec.claim) || self.status.phase == 'Claimed'"
            " || (self.status.phase == 'Completed' && has(self.spec.claim.releasedAt))",
            "a claimed VM becomes Claimed, or Completed once its claim has ended",
            _PHASE,
        ),
        _rule(
            f"{_SAME} || !(oldSelf.status.phase in {table}) || self.status.phase in {table}[oldSelf.status.phase]",
            "the phase may not go there from here; the order is Pending, Ready, Claimed, Completed",
            _PHASE,
        ),
        _rule(
            f"{_SAME} || self.status.phase != 'Claimed' || has(self.spec.claim)",
            "Claimed needs a claim",
            _PHASE,
        ),
        _rule(
            "!has(oldSelf.spec.claim) || (!has(oldSelf.spec.claim.releasedAt)"
            " && oldSelf.status.phase != 'Completed')"
            " || (has(self.spec.claim) && self.spec.claim == oldSelf.spec.claim)",
            CLAIM_ENDED,
            _CLAIM,
        ),
        _rule(
            "self.spec.pool == oldSelf.spec.pool && self.spec.poolUid == oldSelf.spec.poolUid"
            " && self.spec.provider == oldSelf.spec.provider",
            "pool, poolUid and provider never change",
            ".spec",
        ),
        _rule(
            "!has(oldSelf.status.machineId)"
            " || (has(self.status.machineId) && self.status.machineId == oldSelf.status.machineId)",
            "machineId is written once",
            ".status",
        ),
    )
