"""Every name that vmpool writes on an object or a machine, once."""

from typing import Final

GROUP: Final = "vmpool.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
CATEGORY: Final = "vmpool-all"
"""Not ``vmpool``: kubectl would take ``kubectl delete vmpool --all`` for all our kinds."""

LABEL_POOL: Final = "vmpool.dev/pool"
LABEL_QUEUE: Final = "vmpool.dev/queue"
"""On a DeadLetter: the queue name where the VM was."""
LABEL_DEAD_LETTER_QUEUE: Final = "vmpool.dev/dead-letter-queue"
LABEL_FINGERPRINT: Final = "vmpool.dev/fingerprint"
LABEL_ONDEMAND: Final = "vmpool.dev/ondemand"
"""On a VMClaim that the gateway made for an on-demand request."""

FINALIZER_MACHINE: Final = "vmpool.dev/machine"
"""On a PooledVM, from its creation until the provider says that the machine is gone."""
FINALIZER_DRAIN: Final = "vmpool.dev/drain"
"""On a VMPool, and on a VMProvider while it has machines."""
FINALIZER_IN_USE: Final = "vmpool.dev/in-use"
"""On a Secret named by a VMProvider with machines: without it they could never be deleted."""

ANNOTATION_PURGE_EXEMPT: Final = "vmpool.dev/purge-exempt"
"""On a PooledVM, with the value ``true``: no PurgePolicy removes it."""
ANNOTATION_OVERRIDE: Final = "vmpool.dev/override"
"""On a VMPool: the values that the gateway's config endpoints have replaced, as JSON."""
ANNOTATION_ONDEMAND: Final = "vmpool.dev/ondemand-request"
"""On a VMClaim: the id of the on-demand request as its client wrote it, and the names it asked by, as JSON."""

TAG_INSTALL: Final = "vmpool-install"
TAG_UID: Final = "vmpool-uid"
TAG_POOL: Final = "vmpool-pool"
TAG_CLAIM: Final = "vmpool-claim"
"""Tags on machines; no slash and no dot, so that every provider can store them."""

IDENTITY_CONFIGMAP: Final = "vmpool-identity"
LEASE_NAME: Final = "vmpool-operator"
FIELD_MANAGER: Final = "vmpool-operator"
GATEWAY_FIELD_MANAGER: Final = "vmpool-gateway"

VERB_CLAIM: Final = "claim"
"""The RBAC verb on ``vmpools``: who may have a VM of a pool."""
VERB_STAMP: Final = "stamp"
"""The RBAC verb on ``vmclaims``: who may write a requester that begins with ``vmpool:``. The gateway's account."""
VERB_UPDATE: Final = "update"
"""Kubernetes' own verb, on ``vmpools``: who may change a pool by the gateway's config endpoints."""
REST_USER_PREFIX: Final = "vmpool:"
CLAIM_OWNER_PREFIX: Final = "vmclaim:"
"""And namespace and name: the owner of VMs whose VMClaim has no requester that can be believed."""
REST_GROUP: Final = "vmpool:rest"
ANONYMOUS: Final = "anonymous"
"""Login of those who need none."""
CLAIM_POLICY: Final = "vmpool-claims"
"""Name of the ValidatingAdmissionPolicy and of its binding that make ``spec.requester`` trustworthy."""
TOKEN_SECRET_PREFIX: Final = "vmpool-tokens-"  # noqa: S105 - a name
"""And one hexadecimal digit: the Secrets with the keyed hashes of REST tokens."""
TOKEN_KEY_SECRET: Final = "vmpool-token-key"  # noqa: S105 - a name
"""The Secret with the key of those hashes, present and previous."""

MAX_OWNER_NAME: Final = 52
"""Longest name of a pool or provider: leaves room for what is appended to it in 63 characters."""
MAX_HOST_PREFIX: Final = 48
HOST_SUFFIX_LENGTH: Final = 8
