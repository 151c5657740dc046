"""The kinds that vmpool reads and writes, as resources of the API."""

from typing import Final

from vmpool.api import keys
from vmpool.api.crd import POOL, PROVIDER, VM, Kind
from vmpool.kube.resource import Resource


def _ours(kind: Kind) -> Resource:
    return Resource(group=keys.GROUP, version=keys.VERSION, plural=kind.plural, kind=kind.name)


VMPOOLS: Final = _ours(POOL)
POOLEDVMS: Final = _ours(VM)
VMPROVIDERS: Final = _ours(PROVIDER)
SECRETS: Final = Resource(group="", version="v1", plural="secrets", kind="Secret")
CONFIGMAPS: Final = Resource(group="", version="v1", plural="configmaps", kind="ConfigMap")
