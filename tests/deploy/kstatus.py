"""What kstatus makes of an object of a kind that it does not know: the rules of Flux, ``flux wait`` and many others.

Each rule names the function of ``sigs.k8s.io/cli-utils``, package ``pkg/kstatus/status``, that has it. The rules for
kinds of Kubernetes itself (``GetLegacyConditionsFn`` in ``core.go``) are left out: none of ours is among them.
"""

from enum import StrEnum
from typing import Any


class KStatus(StrEnum):
    """``status.go``: the values of ``Status``; Unknown and NotFound come from looking, never from an object."""

    IN_PROGRESS = "InProgress"
    FAILED = "Failed"
    CURRENT = "Current"
    TERMINATING = "Terminating"


def compute(found: dict[str, Any]) -> KStatus:
    """``status.go: Compute``: the generic properties, then the kind's own rules, then Ready, else Current."""
    generic = _generic(found)
    if generic is not None:
        return generic
    ready = _ready(found)
    return ready if ready is not None else KStatus.CURRENT


def _generic(found: dict[str, Any]) -> KStatus | None:
    """``generic.go: checkGenericProperties``: deletion, generation, then the first of two conditions."""
    if found["metadata"].get("deletionTimestamp"):
        return KStatus.TERMINATING
    if not _observed(found):
        return KStatus.IN_PROGRESS
    for one in _conditions(found):
        if one["type"] == "Reconciling" and one["status"] == "True":
            return KStatus.IN_PROGRESS
        if one["type"] == "Stalled" and one["status"] == "True":
            return KStatus.FAILED
    return None


def _observed(found: dict[str, Any]) -> bool:
    """``generic.go: checkGeneration``: an object without either number counts as seen."""
    generation = found["metadata"].get("generation")
    observed = found.get("status", {}).get("observedGeneration")
    return generation is None or observed is None or generation == observed


def _ready(found: dict[str, Any]) -> KStatus | None:
    """``status.go: checkReadyCondition``: True is Current; False and Unknown are InProgress."""
    for one in _conditions(found):
        if one["type"] == "Ready":
            return KStatus.CURRENT if one["status"] == "True" else KStatus.IN_PROGRESS
    return None


def _conditions(found: dict[str, Any]) -> list[dict[str, Any]]:
    return list(found.get("status", {}).get("conditions", ()))
