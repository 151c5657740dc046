"""Users of Kubernetes: a token is whatever the API server's TokenReview says that it is.

An answer is believed for ``review_seconds``, kept by the token's hash and never by the token. Who logs in by user and
password gives a Kubernetes token as the password; the user before it must be the token's own.
"""

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from typing import Any, Final, Generic, TypeVar

from vmpool.api import keys
from vmpool.gateway.auth.base import AuthFailed
from vmpool.gateway.auth.caller import Identity
from vmpool.kube.client import Client
from vmpool.kube.errors import KubeError
from vmpool.kube.kinds import TOKEN_REVIEWS
from vmpool.telemetry import logs

log = logs.get(__name__)

T = TypeVar("T")

MAX_TOKEN: Final = 16_384
"""Characters of a Kubernetes token; the API server takes no longer headers either."""
MAX_USER: Final = 253
"""Characters of a user name: longer ones cannot own a VM."""
REVIEWS_AT_ONCE: Final = 64
"""Tokens in review at once; above it a request is answered 503 instead of waiting."""
WRONG_SECONDS: Final = 5.0
"""Longest time for which "no such token" is believed: short, for a user may be made just after the first try."""
SERVICE_ACCOUNT: Final = "system:serviceaccount:"
RESERVED: Final = (keys.REST_USER_PREFIX, keys.CLAIM_OWNER_PREFIX)
"""Beginnings of owners that are no users of Kubernetes; a cluster that has such users keeps them out of here."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")


class KubernetesUsers:
    """Asks the API server who a token is; one question for the same token at a time, however many ask."""

    def __init__(self, client: Client, seconds: float, entries: int) -> None:
        self._client = client
        self._right: _Remembered[Identity] = _Remembered(seconds, entries)
        # Apart from the right ones, so that a flood of made-up tokens drives none of those out.
        self._wrong: _Remembered[bool] = _Remembered(min(seconds, WRONG_SECONDS), entries)
        self._asking: dict[bytes, asyncio.Task[Identity | None]] = {}

    async def login(self, login: str, password: str) -> Identity | None:
        """Return whom the token in ``password`` stands for, if ``login`` is that user.

        Names of Kubernetes have colons, which Basic auth ends the user at; tokens have none. So both are put together
        again and cut at the last colon. A service account may leave out ``system:serviceaccount:``.
        """
        user, _, token = f"{login}:{password}".rpartition(":")
        identity = await self.bearer(token)
        if identity is None or user not in (identity.user, identity.user.removeprefix(SERVICE_ACCOUNT)):
            return None
        return identity

    async def bearer(self, token: str) -> Identity | None:
        """Return whom this Kubernetes token stands for. Raises ``AuthFailed`` when the API server cannot say."""
        if len(token) > MAX_TOKEN or not _TOKEN.fullmatch(token):
            return None
        hashed = hashlib.sha256(token.encode()).digest()
        known = self._right.get(hashed)
        if known is not None or self._wrong.get(hashed):
            return known
        task = self._asking.get(hashed)
        if task is None:
            if len(self._asking) >= REVIEWS_AT_ONCE:
                raise AuthFailed("too many tokens are being reviewed at once")
            task = asyncio.create_task(self._ask(hashed, token), name="token-review")
            self._asking[hashed] = task
            task.add_done_callback(lambda done: self._asked(hashed, done))
        # One caller's cancellation is not the others'.
        return await asyncio.shield(task)

    def current(self, identity: Identity) -> Identity | None:
        """Return the identity unchanged, unless one of our own providers once made it."""
        return None if identity.user.startswith(RESERVED) else identity

    async def close(self) -> None:
        """End the questions that are being asked."""
        for task in list(self._asking.values()):
            task.cancel()

    def _asked(self, hashed: bytes, task: "asyncio.Task[Identity | None]") -> None:
        self._asking.pop(hashed, None)
        if not task.cancelled():
            # Looked at here, because every caller may have gone.
            task.exception()

    async def _ask(self, hashed: bytes, token: str) -> Identity | None:
        body = {
            "apiVersion": TOKEN_REVIEWS.api_version,
            "kind": TOKEN_REVIEWS.kind,
            "spec": {"token": token},
        }
        try:
            answer = await self._client.create(TOKEN_REVIEWS, None, body)
        except KubeError as error:
            # Not chained: what it says goes into logs, and a proxy's error page could repeat the request.
            raise AuthFailed(f"the API server cannot review tokens now: {error.reason}") from None
        identity = _identity(answer.get("status") or {})
        if identity is None:
            self._wrong.put(hashed, True)
        else:
            self._right.put(hashed, identity)
        return identity


class _Remembered(Generic[T]):
    """Answers by the hash of a token, the oldest forgotten first."""

    def __init__(self, seconds: float, entries: int) -> None:
        self._seconds = seconds
        self._entries = entries
        self._answers: OrderedDict[bytes, tuple[float, T]] = OrderedDict()

    def get(self, hashed: bytes) -> T | None:
        """Return the answer that still holds; None when there is none."""
        found = self._answers.get(hashed)
        if found is None or time.monotonic() - found[0] > self._seconds:
            return None
        return found[1]

    def put(self, hashed: bytes, answer: T) -> None:
        """Remember an answer from now on."""
        self._answers[hashed] = (time.monotonic(), answer)
        self._answers.move_to_end(hashed)
        while len(self._answers) > self._entries:
            self._answers.popitem(last=False)


def _identity(status: dict[str, Any]) -> Identity | None:
    """Return the identity in a TokenReview's status."""
    user = status.get("user") or {}
    name = user.get("username") or ""
    if not status.get("authenticated") or not name:
        return None
    if name.startswith(RESERVED) or len(name) > MAX_USER:
        log.warning("kubernetes_user_refused", user=name[:MAX_USER], cause="a name that cannot own a VM")
        return None
    return Identity(name, name, tuple(user.get("groups") or ()))
