"""Whether ``spec.requester`` of VMClaims can be believed: only where the admission policy that checks it exists."""

import time
from datetime import timedelta

from vmpool.api import keys
from vmpool.engine.facts import moment
from vmpool.kube.client import Client
from vmpool.kube.errors import Forbidden, KindNotFound, KubeError, NotFound
from vmpool.kube.kinds import ADMISSION_POLICIES, ADMISSION_POLICY_BINDINGS
from vmpool.kube.resource import Json
from vmpool.plan.queue import Trust
from vmpool.telemetry import logs

log = logs.get(__name__)

DENY = "Deny"
FAIL = "Fail"
NARROWING = ("matchResources", "paramRef")
"""What makes a binding judge less than every VMClaim, or by somebody's parameters."""


class TrustFinder:
    """Looks for the policy and its binding, and believes what it saw for ``seconds``."""

    def __init__(self, client: Client, *, namespaced: bool, seconds: float, margin: timedelta) -> None:
        self._client = client
        self._namespaced = namespaced
        self._seconds = seconds
        self._margin = margin
        self._seen: Trust | None = None
        self._looked_at = float("-inf")

    async def now(self) -> Trust | None:
        """Return what holds now; None when nobody could ever say.

        A namespaced install trusts nobody: such policies belong to the whole cluster. While the server gives no clear
        answer, the last one holds.
        """
        if self._namespaced:
            return Trust()
        if time.monotonic() - self._looked_at <= self._seconds:
            return self._seen
        try:
            found = await self._look()
        except (Forbidden, NotFound, KindNotFound) as error:
            log.debug("requesters_not_trusted", why=str(error))
            found = Trust()
        except KubeError as error:
            log.warning("trust_unknown", error=str(error))
            return self._seen
        if found != self._seen:
            log.info("requesters_trusted" if found.since is not None else "requesters_not_trusted", since=found.since)
        self._seen, self._looked_at = found, time.monotonic()
        return found

    async def _look(self) -> Trust:
        policy = await self._client.get(ADMISSION_POLICIES, None, keys.CLAIM_POLICY)
        binding = await self._client.get(ADMISSION_POLICY_BINDINGS, None, keys.CLAIM_POLICY)
        return trust_in(policy, binding, self._margin)


def trust_in(policy: Json, binding: Json, margin: timedelta) -> Trust:
    """Return the trust that a policy and its binding deserve: what was made before them nobody has checked.

    ``margin`` is how long API servers may take until they enforce a new binding.
    """
    spec = binding.get("spec") or {}
    enforced = (
        spec.get("policyName") == keys.CLAIM_POLICY
        and DENY in spec.get("validationActions", ())
        and not any(spec.get(narrowing) for narrowing in NARROWING)
        # The server's own default when it is absent.
        and (policy.get("spec") or {}).get("failurePolicy", FAIL) == FAIL
    )
    going = any("deletionTimestamp" in one["metadata"] for one in (policy, binding))
    made = [moment(one["metadata"].get("creationTimestamp")) for one in (policy, binding)]
    since = max((at for at in made if at is not None), default=None)
    return Trust(since + margin) if since is not None and enforced and not going else Trust()
