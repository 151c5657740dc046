"""The two proofs that a VMClaim is gone: the server's own word about the object, and that its kind is still the same.

While a CustomResourceDefinition is deleted or replaced its objects vanish with a proper NotFound first. So what was
bound under one definition is ended only while that one is served; anything else leaves the VM to its owner until the
claim expires.
"""

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from vmpool.api.claim import ClaimedVM
from vmpool.kube.client import Client
from vmpool.kube.errors import Forbidden, KubeError, NotFound
from vmpool.kube.kinds import CRDS, POOLEDVMS, VMCLAIMS
from vmpool.kube.mirror import Mirror
from vmpool.kube.resource import Json
from vmpool.plan.snapshot import VM, ClaimRefFacts, VMClaim
from vmpool.telemetry import logs

log = logs.get(__name__)

DEFINITION = f"{VMCLAIMS.plural}.{VMCLAIMS.group}"
NOT_OURS_TO_READ: Final = "not-readable"
"""In the place of the definition's uid, and like none: what was bound under it is never proven gone."""


class KindUnreadable(Exception):
    """The definition of VMClaim cannot be read, or is going: nothing may be bound that nobody could end by proof."""


class Presence(StrEnum):
    """What is known of a VMClaim that the mirror lacks."""

    THERE = "There"
    GONE = "Gone"
    UNPROVEN = "Unproven"


@dataclass(frozen=True, slots=True)
class Finding:
    """What the server said, and in a sentence why that proves nothing."""

    presence: Presence
    why: str = ""


async def vm_is_gone(client: Client, vms: Mirror[VM], one: ClaimedVM) -> bool:
    """Ask the server whether it has no object of this VM any more; what it has instead goes into the mirror.

    Raises what ``Client.get`` raises but ``NotFound``.
    """
    try:
        found = await client.get(POOLEDVMS, one.namespace, one.name)
    except NotFound as error:
        if error.name != one.name:
            raise
        vms.saw_deleted(one.uid)
        return True
    if vms.selection.namespace in (None, one.namespace):
        vms.saw(found)
    return bool(found["metadata"]["uid"] != one.uid)


class Absence:
    """Asks the server; one per process."""

    def __init__(self, client: Client, claims: Mirror[VMClaim], seconds: float, *, namespaced: bool = False) -> None:
        self._client = client
        self._claims = claims
        self._seconds = seconds
        self._namespaced = namespaced
        self._known: tuple[str, float, int] | None = None

    async def kind_uid(self) -> str:
        """Return the uid of the definition that is served now.

        Remembered for ``seconds``, and no longer than the mirror goes on without listing anew: a definition that is
        replaced breaks its watch. An install of one namespace may have no right on definitions, for no Role can hold
        it: then it is ``NOT_OURS_TO_READ``, and the claim runs until it expires. Raises ``KindUnreadable``.
        """
        lists = self._claims.stats.lists
        if self._known is not None:
            uid, read_at, at_lists = self._known
            if at_lists == lists and time.monotonic() - read_at <= self._seconds:
                return uid
        self._known = None
        try:
            found = await self._uid()
        except KubeError as error:
            raise KindUnreadable(f"CustomResourceDefinition {DEFINITION} cannot be read: {error}") from error
        self._known = (found, time.monotonic(), lists)
        return found

    async def _uid(self) -> str:
        try:
            definition = await self._definition()
        except Forbidden as error:
            if not self._namespaced:
                raise
            log.info("claims_run_until_they_expire", why=str(error))
            return NOT_OURS_TO_READ
        if _is_going(definition):
            raise KindUnreadable(f"CustomResourceDefinition {DEFINITION} is being deleted")
        return str(definition["metadata"]["uid"])

    async def find(self, ref: ClaimRefFacts) -> Finding:
        """Say whether a VMClaim is gone: first the object is asked for, and only then the definition."""
        try:
            found = await self._client.get(VMCLAIMS, ref.namespace, ref.name)
        except NotFound as error:
            if error.name != ref.name:
                return Finding(Presence.UNPROVEN, f"the API server says that another object is not there: {error}")
        except KubeError as error:
            return Finding(Presence.UNPROVEN, f"VMClaim {ref.namespace}/{ref.name} cannot be read: {error}")
        else:
            if found["metadata"]["uid"] == ref.uid:
                if self._claims.selection.namespace in (None, ref.namespace):
                    self._claims.saw(found)
                return Finding(Presence.THERE)
        doubt = await self.doubt(ref.kind_uid)
        return Finding(Presence.UNPROVEN, doubt) if doubt else Finding(Presence.GONE)

    async def doubt(self, kind_uid: str) -> str:
        """Return why a VMClaim may be gone, or going, without its owner's will; empty when its kind is served as ever.

        Asks the server itself, so only what was seen of the claim before counts.
        """
        try:
            definition = await self._definition()
        except KubeError as error:
            return f"CustomResourceDefinition {DEFINITION} cannot be read: {error}"
        if _is_going(definition):
            return f"CustomResourceDefinition {DEFINITION} is being deleted"
        if definition["metadata"]["uid"] != kind_uid:
            return f"CustomResourceDefinition {DEFINITION} was replaced after the VM was handed out"
        return ""

    async def _definition(self) -> Json:
        return await self._client.get(CRDS, None, DEFINITION)


def _is_going(definition: Json) -> bool:
    return "deletionTimestamp" in definition["metadata"]
