"""Who the operator of a trial is: an account with the rights that we ship, and no others."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.api import Api
from tests.planes import Kubectl
from tests.users import RBAC, RBAC_API, account
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane

HOME = "vmpool-rig"
"""The namespace of the account itself; trials have others."""
ROLE = "vmpool-operator"
USER = f"system:serviceaccount:{HOME}:{ROLE}"
RBAC_PATH = f"/apis/{RBAC_API}/v1"
REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


@dataclass(frozen=True)
class Account:
    """One account for all trials of a rig. Its token is good for a day, longer than any rig lives."""

    kubeconfig: str
    """For the API server's own address."""
    rules: list[dict[str, Any]]
    """What it may do in the namespace that it lives in, as we ship it."""

    async def admit(self, api: Api, namespace: str) -> None:
        """Give it the Role that we ship in a namespace, and wait until the server knows."""
        role = {"kind": "Role", "rules": self.rules}
        binding = {
            "kind": "RoleBinding",
            "roleRef": {"apiGroup": RBAC_API, "kind": "Role", "name": ROLE},
            "subjects": [{"kind": "ServiceAccount", "name": ROLE, "namespace": HOME}],
        }
        for plural, body in (("roles", role), ("rolebindings", binding)):
            made = {"apiVersion": f"{RBAC_API}/v1", "metadata": {"name": ROLE}, **body}
            (await api.kind(plural, namespace, api=RBAC_PATH).create(made)).ok()
        asked = {"group": "coordination.k8s.io", "resource": "leases", "verb": "update", "name": keys.LEASE_NAME}
        spec = {"user": USER, "resourceAttributes": {**asked, "namespace": namespace}}

        async def known() -> bool:
            review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
            return bool((await api.call("POST", REVIEWS, review)).ok()["status"]["allowed"])

        await until(known, what=f"the operator's rights hold in {namespace}")

    async def dismiss(self, api: Api, namespace: str) -> None:
        """Take that Role away again."""
        for plural in ("rolebindings", "roles"):
            await api.kind(plural, namespace, api=RBAC_PATH).delete(ROLE)


def make_account(kubectl: Kubectl, plane: ControlPlane, folder: Path) -> Account:
    """Make the account with the ClusterRole of ``deploy/rbac/operator.yaml``, exactly as it stands there."""
    kubectl("create", "namespace", HOME)
    kubeconfig = account(kubectl, plane, HOME, ROLE, folder)
    documents = yaml.safe_load_all((RBAC / "operator.yaml").read_text())
    (role,) = [document for document in documents if document["kind"] == "Role"]
    return Account(kubeconfig.read_text(), role["rules"])
