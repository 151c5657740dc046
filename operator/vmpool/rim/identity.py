"""The install id: which machines are ours. Random, made once by a write that the server can refuse, never changed."""

import secrets

from vmpool.api import keys
from vmpool.kube.client import Client
from vmpool.kube.errors import AlreadyExists, NotFound, OutcomeUnknown
from vmpool.kube.kinds import CONFIGMAPS

FIELD = "installId"
TRIES = 5
"""How often an unanswered create is looked after."""


async def install_id(client: Client, namespace: str, wanted: str) -> str:
    """Return the id in ConfigMap ``vmpool-identity``, made on the first start from ``wanted`` or at random.

    Raises RuntimeError when ``wanted`` contradicts the ConfigMap: two ids would disown every machine.
    """
    for _ in range(TRIES):
        try:
            found = await client.get(CONFIGMAPS, namespace, keys.IDENTITY_CONFIGMAP)
        except NotFound:
            body = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": keys.IDENTITY_CONFIGMAP, "namespace": namespace},
                "data": {FIELD: wanted or secrets.token_hex(8)},
            }
            try:
                found = await client.create(CONFIGMAPS, namespace, body)
            except (AlreadyExists, OutcomeUnknown):
                continue
        known: str = (found.get("data") or {}).get(FIELD, "")
        if not known:
            raise RuntimeError(f"ConfigMap {namespace}/{keys.IDENTITY_CONFIGMAP} has no data.{FIELD}")
        if wanted and wanted != known:
            raise RuntimeError(
                f"install_id {wanted!r} contradicts {known!r} in ConfigMap {namespace}/{keys.IDENTITY_CONFIGMAP}"
            )
        return known
    raise RuntimeError(f"ConfigMap {namespace}/{keys.IDENTITY_CONFIGMAP} could neither be read nor made")
