"""All CustomResourceDefinitions, with the rules that follow from the lifecycle table."""

from collections.abc import Mapping
from typing import Any

from vmpool.api import crd
from vmpool.plan.lifecycle import ClaimPhase, LetterPhase, Phase
from vmpool.plan.rules import letter_rules, pooledvm_rules, vmclaim_rules


def definitions() -> Mapping[str, dict[str, Any]]:
    """Return the definitions by file name, for example ``vmpools.vmpool.dev.yaml``."""
    made = [
        crd.crd(crd.POOL),
        crd.crd(crd.VM, root_rules=pooledvm_rules(), phases=[str(phase) for phase in Phase]),
        crd.crd(crd.PROVIDER),
        crd.crd(crd.CLAIM, root_rules=vmclaim_rules(), phases=[str(phase) for phase in ClaimPhase]),
        crd.crd(crd.DEAD_LETTER_QUEUE),
        crd.crd(crd.DEAD_LETTER, root_rules=letter_rules(), phases=[str(phase) for phase in LetterPhase]),
        crd.crd(crd.PURGE_POLICY),
        crd.crd(crd.HEALTH_POLICY),
    ]
    return {f"{one['metadata']['name']}.yaml": one for one in made}
