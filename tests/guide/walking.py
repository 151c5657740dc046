"""kubectl on one test's own objects, what tests of a module share, and a look at the operator's log."""

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.api import Json
from tests.clouds import Tenant
from tests.control_plane.operator.stage import Stage
from tests.operators import Operator
from tests.planes import Kubectl

Shelf = dict[str, tuple[str, str, Tenant]]
"""Pool, provider and tenant that one test of a module has made and others look at, by a word."""


@dataclass(frozen=True)
class Walker:
    """kubectl in the namespace of a stage."""

    kubectl: Kubectl
    stage: Stage

    def get(self, *what: str) -> Json:
        """``kubectl get ... -o json``."""
        return dict(json.loads(self.kubectl("get", *what, "-n", self.stage.namespace, "-o", "json")))

    def names(self, *what: str) -> list[str]:
        """``kubectl get ... -o name``, without the kind."""
        found = self.kubectl("get", *what, "-n", self.stage.namespace, "-o", "name")
        return [line.rsplit("/", 1)[1] for line in found.split()]

    def path(self, what: str, jsonpath: str) -> str:
        """``kubectl get ... -o jsonpath=``."""
        return self.kubectl("get", what, "-n", self.stage.namespace, "-o", f"jsonpath={jsonpath}")

    def shown(self, kind: str, name: str) -> dict[str, str]:
        """What ``kubectl get`` prints about one object, by column."""
        head, row = self.kubectl("get", kind, name, "-n", self.stage.namespace).splitlines()
        starts = [(found.group(), found.start()) for found in re.finditer(r"\S+", head)]
        ends = [at for _, at in starts[1:]] + [len(row)]
        return {word: row[at:end].strip() for (word, at), end in zip(starts, ends, strict=True)}

    def patch(self, what: str, **spec: object) -> None:
        """``kubectl patch --type merge`` of the spec."""
        body = json.dumps({"spec": spec})
        self.kubectl("patch", *what.split("/"), "-n", self.stage.namespace, "--type=merge", "-p", body)

    def apply(self, *documents: Json) -> None:
        """``kubectl apply`` from standard input."""
        body = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})
        self.kubectl("apply", "-n", self.stage.namespace, "-f", "-", input=body)


async def once(shelf: Shelf, word: str, stage: Stage, make: Callable[[], Awaitable[None]]) -> None:
    """Make something on this stage, or give the stage the names of where it was made before."""
    if word in shelf:
        stage.pool, stage.provider, stage.tenant = shelf[word]
        return
    await make()
    shelf[word] = (stage.pool, stage.provider, stage.tenant)


def log_of(operator: Operator) -> list[Json]:
    """Every line that the operator has logged, as JSON."""
    return [json.loads(line) for line in operator.lines().splitlines() if line.startswith("{")]
