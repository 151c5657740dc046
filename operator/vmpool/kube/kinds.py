"""The kinds that vmpool reads and writes, as resources of the API."""

from typing import Final

from vmpool.api import keys
from vmpool.api.crd import CLAIM, POOL, PROVIDER, VM, Kind
from vmpool.kube.resource import Resource


def _ours(kind: Kind) -> Resource:
    return Resource(group=keys.GROUP, version=keys.VERSION, plural=kind.plural, kind=kind.name)


VMPOOLS: Final = _ours(POOL)
POOLEDVMS: Final = _ours(VM)
VMPROVIDERS: Final = _ours(PROVIDER)
VMCLAIMS: Final = _ours(CLAIM)
CRDS: Final = Resource(
    group="apiextensions.k8s.io",
    version="v1",
    plural="customresourcedefinitions",
    kind="CustomResourceDefinition",
    namespaced=False,
)
ADMISSION_POLICIES: Final = Resource(
    group="admissionregistration.k8s.io",
    version="v1",
    plural="validatingadmissionpolicies",
    kind="ValidatingAdmissionPolicy",
    namespaced=False,
)
ADMISSION_POLICY_BINDINGS: Final = Resource(
    group="admissionregistration.k8s.io",
    version="v1",
    plural="validatingadmissionpolicybindings",
    kind="ValidatingAdmissionPolicyBinding",
    namespaced=False,
)
ACCESS_REVIEWS: Final = Resource(
    group="authorization.k8s.io",
    version="v1",
    plural="subjectaccessreviews",
    kind="SubjectAccessReview",
    namespaced=False,
)
TOKEN_REVIEWS: Final = Resource(
    group="authentication.k8s.io", version="v1", plural="tokenreviews", kind="TokenReview", namespaced=False
)
SECRETS: Final = Resource(group="", version="v1", plural="secrets", kind="Secret")
CONFIGMAPS: Final = Resource(group="", version="v1", plural="configmaps", kind="ConfigMap")
