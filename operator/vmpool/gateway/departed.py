"""On-demand requests that were deleted: remembered for a while, so that whoever still asks is told.

Every gateway sees the deletion in its own mirror. It is kept in memory only: after a restart such a request is unknown.
"""

import time
from collections import OrderedDict

from vmpool.gateway import notes
from vmpool.kube.mirror import Change, Mirror
from vmpool.plan.lifecycle import ClaimPhase
from vmpool.plan.snapshot import VMClaim

UNFINISHED = (ClaimPhase.PENDING, ClaimPhase.BOUND)


class DeletedRequests:
    """Follows the mirror of VMClaims from its making on; make it before that runs."""

    def __init__(self, claims: Mirror[VMClaim], namespace: str, seconds: float, entries: int) -> None:
        self._namespace = namespace
        self._seconds = seconds
        self._entries = entries
        self._deleted: OrderedDict[str, float] = OrderedDict()
        claims.on_change(self._changed)

    def __contains__(self, request_id: str) -> bool:
        """Whether this request was deleted not too long ago."""
        at = self._deleted.get(request_id)
        return at is not None and time.monotonic() - at <= self._seconds

    def remember(self, request_id: str) -> None:
        """Remember that a request was deleted; of too many the one deleted first is forgotten."""
        self._deleted[request_id] = time.monotonic()
        self._deleted.move_to_end(request_id)
        while len(self._deleted) > self._entries:
            self._deleted.popitem(last=False)

    def _changed(self, change: Change[VMClaim]) -> None:
        claim = change.old.fact if change.old is not None and change.new is None else None
        # A request that had ended is removed by the engine when its time is over: then it is simply unknown.
        if claim is None or claim.namespace != self._namespace or claim.phase not in UNFINISHED:
            return
        note = notes.read(claim.ondemand)
        if note is not None and claim.name == notes.claim_name(note.id):
            self.remember(note.id)
