"""Every name that vmpool writes on an object or a machine, once."""

from typing import Final

GROUP: Final = "vmpool.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
CATEGORY: Final = "vmpool-all"
"""Not ``vmpool``: kubectl would take ``kubectl delete vmpool --all`` for all our kinds."""

LABEL_POOL: Final = "vmpool.dev/pool"

FINALIZER_MACHINE: Final = "vmpool.dev/machine"
"""On a PooledVM, from its creation until the provider says that the machine is gone."""
FINALIZER_DRAIN: Final = "vmpool.dev/drain"
"""On a VMPool, and on a VMProvider while it has machines."""
FINALIZER_IN_USE: Final = "vmpool.dev/in-use"
"""On a Secret named by a VMProvider with machines: without it they could never be deleted."""

ANNOTATION_PURGE_EXEMPT: Final = "vmpool.dev/purge-exempt"
ANNOTATION_OVERRIDE: Final = "vmpool.dev/override"

TAG_INSTALL: Final = "vmpool-install"
TAG_UID: Final = "vmpool-uid"
TAG_POOL: Final = "vmpool-pool"
TAG_CLAIM: Final = "vmpool-claim"
"""Tags on machines; no slash and no dot, so that every provider can store them."""

IDENTITY_CONFIGMAP: Final = "vmpool-identity"
LEASE_NAME: Final = "vmpool-operator"
FIELD_MANAGER: Final = "vmpool-operator"

MAX_OWNER_NAME: Final = 52
"""Longest name of a pool or provider: leaves room for what is appended to it in 63 characters."""
MAX_HOST_PREFIX: Final = 48
HOST_SUFFIX_LENGTH: Final = 8
