"""Ask the API server who may claim: SubjectAccessReviews for a verb on a pool, remembered for a while."""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from vmpool.api import keys
from vmpool.kube.client import Client
from vmpool.kube.kinds import ACCESS_REVIEWS, VMPOOLS

_Question = tuple[str, tuple[str, ...], str, str, str]
"""User, groups, namespace and name of the pool, verb."""


@dataclass(frozen=True, slots=True)
class ReviewSettings:
    """Bounds of what is remembered; every default beside its reason."""

    seconds: float = 30.0
    """How long an answer holds: who loses a right keeps it at most so long."""
    entries: int = 10_000
    """Answers kept; above it the one asked for longest ago goes."""


class AccessReviews:
    """One question at a time for the same thing, however many ask; answers are kept for ``settings.seconds``."""

    def __init__(self, client: Client, settings: ReviewSettings | None = None) -> None:
        self._client = client
        self._settings = settings or ReviewSettings()
        self._answers: OrderedDict[_Question, tuple[float, bool]] = OrderedDict()
        self._asking: dict[_Question, asyncio.Task[bool]] = {}

    def known(self, user: str, groups: tuple[str, ...], namespace: str, pool: str) -> bool | None:
        """Return a remembered answer; None when there is none that still holds."""
        question = (user, groups, namespace, pool, keys.VERB_CLAIM)
        return self._known(question)

    def _known(self, question: _Question) -> bool | None:
        found = self._answers.get(question)
        if found is None or time.monotonic() - found[0] > self._settings.seconds:
            return None
        self._answers.move_to_end(question)
        return found[1]

    async def may_claim(self, user: str, groups: tuple[str, ...], namespace: str, pool: str) -> bool:
        """Say whether this user may claim VMs of this pool. Raises ``KubeError`` when nobody can say."""
        return await self.may(user, groups, namespace, pool, keys.VERB_CLAIM)

    def forget(self, user: str, groups: tuple[str, ...], namespace: str, pool: str) -> None:
        """Ask anew next time: what was remembered may be older than the right."""
        self._answers.pop((user, groups, namespace, pool, keys.VERB_CLAIM), None)

    async def may(self, user: str, groups: tuple[str, ...], namespace: str, pool: str, verb: str) -> bool:
        """Say whether this user has a verb on this pool. Raises ``KubeError`` when nobody can say."""
        question = (user, groups, namespace, pool, verb)
        remembered = self._known(question)
        if remembered is not None:
            return remembered
        task = self._asking.get(question)
        if task is None:
            task = asyncio.create_task(self._ask(question), name=f"review/{user}/{namespace}/{pool}")
            self._asking[question] = task
            task.add_done_callback(lambda _: self._asking.pop(question, None))
        # One caller's cancellation is not the others'.
        return await asyncio.shield(task)

    async def _ask(self, question: _Question) -> bool:
        user, groups, namespace, pool, verb = question
        body = {
            "apiVersion": ACCESS_REVIEWS.api_version,
            "kind": ACCESS_REVIEWS.kind,
            "spec": {
                "user": user,
                "groups": list(groups),
                "resourceAttributes": {
                    "group": keys.GROUP,
                    "resource": VMPOOLS.plural,
                    "verb": verb,
                    "namespace": namespace,
                    "name": pool,
                },
            },
        }
        answer = await self._client.create(ACCESS_REVIEWS, None, body)
        allowed = bool(answer["status"].get("allowed"))
        self._answers[question] = (time.monotonic(), allowed)
        self._answers.move_to_end(question)
        while len(self._answers) > self._settings.entries:
            self._answers.popitem(last=False)
        return allowed
