"""What a provider's loop asks before it trusts a far side: credentials from a Secret, whole listings."""

import asyncio
import base64
import hashlib
from collections.abc import Mapping
from datetime import timedelta

import orjson

from vmpool.api import keys
from vmpool.engine.facts import ProviderObject
from vmpool.engine.lane import Lane, Slots, Urgency
from vmpool.kube.client import Client
from vmpool.kube.errors import Forbidden, NotFound
from vmpool.kube.kinds import SECRETS
from vmpool.kube.resource import Json
from vmpool.providers.base import Machine, Provider
from vmpool.providers.errors import InvalidConfig

PAGES_OF_PATIENCE = 20
"""A whole listing may take as long as this many pages that each use their time-out up."""

REARM_SHARE = 0.05
"""By this share of it the patience with a page may be cut short."""


class SecretForbidden(InvalidConfig):
    """We may not read the Secret that ``spec.secretRef`` names."""

    reason = "SecretForbidden"


class SecretNotFound(InvalidConfig):
    """``spec.secretRef`` names a Secret that is not there."""

    reason = "SecretNotFound"


async def read_secret(client: Client, obj: ProviderObject) -> tuple[Mapping[str, str], bool]:
    """Return the decoded data of the provider's Secret, and whether our finalizer is on it.

    Raises SecretNotFound and SecretForbidden. Without ``spec.secretRef``: nothing, and not held.
    """
    if obj.spec.secret_ref is None:
        return {}, False
    name = obj.spec.secret_ref.name
    try:
        raw = await client.get(SECRETS, obj.namespace, name)
    except NotFound as error:
        raise SecretNotFound(f"Secret {name} (spec.secretRef) does not exist in namespace {obj.namespace}") from error
    except Forbidden as error:
        raise SecretForbidden(f"Secret {name} (spec.secretRef) may not be read: {error.message}") from error
    return decoded(raw), keys.FINALIZER_IN_USE in raw["metadata"].get("finalizers", ())


def decoded(secret: Json) -> Mapping[str, str]:
    """Return the data of a Secret."""
    data = secret.get("data") or {}
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()}


def fingerprint(obj: ProviderObject, secret: Mapping[str, str]) -> str:
    """Tell whether a session was opened with these settings, without keeping the credentials."""
    raw = orjson.dumps([obj.spec.type, obj.spec.config, dict(secret)], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(raw).hexdigest()


async def listing(lane: Lane, page: timedelta, operation: str = "list") -> list[Machine]:
    """Return every machine of ours, through the lane; ``page`` is the patience with one page. Raises as the lane."""
    return await lane.call(
        operation, Slots.OBSERVE, Urgency.REFILL, lambda p: collect(p, page), limit=page * PAGES_OF_PATIENCE
    )


async def collect(provider: Provider, patience: timedelta) -> list[Machine]:
    """Read a whole listing; it counts only when it ended normally. ``patience`` is for each page."""
    machines: list[Machine] = []
    loop, seconds = asyncio.get_running_loop(), patience.total_seconds()
    async with asyncio.timeout(seconds) as guard:
        armed = loop.time()
        async for machine in provider.machines():
            machines.append(machine)
            # Machines of one page come without a wait: setting the guard anew for each costs more than reading it.
            if loop.time() - armed > seconds * REARM_SHARE:
                armed = loop.time()
                guard.reschedule(armed + seconds)
    return machines
