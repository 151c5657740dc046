"""The kinds that vmpool reads and writes, as resources of the API."""

from typing import Final

from vmpool.api import keys
from vmpool.api.crd import (
    CLAIM,
    DEAD_LETTER,
    DEAD_LETTER_QUEUE,
    HEALTH_POLICY,
    POOL,
    PROVIDER,
    PURGE_POLICY,
    VM,
    Kind,
)
from vmpool.kube.resource import Resource


def _ours(kind: Kind) -> Resource:
    return Resource(group=keys.GROUP, version=keys.VERSION, plural=kind.plural, kind=kind.name)


def _cluster_wide(group: str, plural: str, kind: str) -> Resource:
    return Resource(group=group, version="v1", plural=plural, kind=kind, namespaced=False)


VMPOOLS: Final = _ours(POOL)
POOLEDVMS: Final = _ours(VM)
VMPROVIDERS: Final = _ours(PROVIDER)
VMCLAIMS: Final = _ours(CLAIM)
DEAD_LETTER_QUEUES: Final = _ours(DEAD_LETTER_QUEUE)
DEAD_LETTERS: Final = _ours(DEAD_LETTER)
PURGE_POLICIES: Final = _ours(PURGE_POLICY)
HEALTH_POLICIES: Final = _ours(HEALTH_POLICY)
CRDS: Final = _cluster_wide("apiextensions.k8s.io", "customresourcedefinitions", "CustomResourceDefinition")
ADMISSION_POLICIES: Final = _cluster_wide(
    "admissionregistration.k8s.io", "validatingadmissionpolicies", "ValidatingAdmissionPolicy"
)
ADMISSION_POLICY_BINDINGS: Final = _cluster_wide(
    "admissionregistration.k8s.io", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding"
)
ACCESS_REVIEWS: Final = _cluster_wide("authorization.k8s.io", "subjectaccessreviews", "SubjectAccessReview")
TOKEN_REVIEWS: Final = _cluster_wide("authentication.k8s.io", "tokenreviews", "TokenReview")
SECRETS: Final = Resource(group="", version="v1", plural="secrets", kind="Secret")
CONFIGMAPS: Final = Resource(group="", version="v1", plural="configmaps", kind="ConfigMap")
