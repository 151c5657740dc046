"""What wakes what. Only ``on.event``: level-based, no annotation on anybody's object, no finalizer of kopf's own.

Daemons, timers and create/update/delete handlers are left out on purpose: after a kill in the middle of a drain kopf
does not start a daemon again and drops its finalizer at once; ``on.delete`` annotates every live object and writes at
each retry.
"""

from collections.abc import Callable, Mapping
from typing import Any

import kopf

from vmpool.api import keys
from vmpool.api.crd import DEAD_LETTER_QUEUE, HEALTH_POLICY, POOL, PROVIDER, PURGE_POLICY
from vmpool.kube.client import Client
from vmpool.kube.connection import connection

WATCHED = (POOL, PROVIDER, DEAD_LETTER_QUEUE, PURGE_POLICY, HEALTH_POLICY)
"""The kinds that kopf watches for us."""
ERROR_DELAYS = (1, 2, 3, 5, 8, 13, 30)
"""Seconds between kopf's own tries after an error; its default grows to ten minutes."""

NETWORK_PAUSES = (1, 1, 2, 3, 5, 5)
"""Seconds between kopf's tries of one request, then its watch ends: by its default after 54 s, and doubt has 30."""


def frame_settings() -> kopf.OperatorSettings:
    """Return kopf's settings for this operator: it posts nothing, peers with nobody and scans for nothing."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.queueing.error_delays = ERROR_DELAYS
    settings.networking.error_backoffs = NETWORK_PAUSES
    return settings


def register(registry: kopf.OperatorRegistry, wake: Callable[[str], None], client: Client) -> None:
    """Attach the handlers to the caller's registry, never to kopf's global one. ``wake`` takes an object's uid.

    VMClaims wake their queue through the mirror alone: kopf ends the process as soon as a kind is not served, and a
    definition that is replaced is no reason for that.
    """

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        ours = await connection(client)
        return kopf.ConnectionInfo(
            server=ours.server,
            ca_path=ours.ca_path,
            insecure=ours.insecure,
            scheme=ours.scheme,
            token=ours.token,
            certificate_path=ours.certificate_path,
            private_key_path=ours.private_key_path,
        )

    async def seen(meta: Mapping[str, Any], **_: Any) -> None:
        wake(meta["uid"])

    for kind in WATCHED:
        kopf.on.event(keys.GROUP, keys.VERSION, kind.plural, id=f"wake-{kind.singular}", registry=registry)(seen)
