"""All CustomResourceDefinitions, with the rules that follow from the lifecycle table."""

from collections.abc import Mapping
from typing import Any

from vmpool.api import crd
from vmpool.plan.lifecycle import ClaimPhase, Phase
from vmpool.plan.rules import pooledvm_rules, vmclaim_rules


def definitions() -> Mapping[str, dict[str, Any]]:
    """Return the definitions by file name, for example ``vmpools.vmpool.dev.yaml``."""
    made = [
        crd.crd(crd.POOL),
        crd.crd(crd.VM, root_rules=pooledvm_rules(), phases=[str(phase) for phase in Phase]),
        crd.crd(crd.PROVIDER),
        crd.crd(crd.CLAIM, root_rules=vmclaim_rules(), phases=[str(phase) for phase in ClaimPhase]),
    ]
    return {f"{one['metadata']['name']}.yaml": one for one in made}
