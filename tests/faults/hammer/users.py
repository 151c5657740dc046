"""Who loads: people who check VMs out in every way that there is, keep them for a while, and give them back, or do not.

Each has a seed of its own, so that what one does never depends on how fast the others are.
"""

import asyncio
import itertools
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy

from tests.api import Json, Objects
from tests.faults.hammer.book import Book, Denial, Hold, Mark
from tests.faults.scenarios.users import moment
from tests.objects import thing
from tests.rest import Rest, RestAnswer, hosts, short
from vmpool.api import keys

WEB, FLAKY = "web", "flaky"
"""The pool that works, and the one whose clones fail now and then."""
LIFETIME_SECONDS = 60.0
"""Of what is checked out at a gateway or by a VMClaim: the shortest that the API takes."""
SHORT_SECONDS = 4.0
"""Of what an allocator of our own takes and never gives back."""
KEEPS = 0.08
"""Share of the VMs that are not given back."""
KEYED = 0.4
"""Share of the requests at a gateway that can be repeated."""
CLAIM_DEADLINE_SECONDS = 20.0
LOOK_SECONDS = 0.2
"""How often somebody looks whether they have got what they asked for."""
REQUEST_SECONDS = 20.0
TRIES = 40
"""How often a request that can be repeated is repeated, and how often a VM is given back."""
AGAIN_SECONDS = 0.25


@dataclass
class Office:
    """What all users share."""

    vms: Objects
    claims: Objects
    gateways: Sequence[str]
    """Where the gateways serve, whether or not they do so just now."""
    session: aiohttp.ClientSession
    book: Book
    over: asyncio.Event
    """Set when the load is to end."""
    sent: dict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))
    """Set, by gateway, when a request is on its way there."""

    async def rest(self, seconds: float) -> None:
        """Let time pass, but not beyond the end of the load."""
        if not self.over.is_set():
            waiting = asyncio.create_task(self.over.wait())
            await asyncio.wait({waiting}, timeout=seconds)
            waiting.cancel()


class User:
    """Somebody who goes on until the load is over."""

    def __init__(self, name: str, office: Office, seed: int) -> None:
        self.name = name
        self.office = office
        self.chance = random.Random(f"{seed}/{name}")
        self.numbers = itertools.count(1)

    async def live(self) -> None:
        """Take, keep, give back, and again."""
        while not self.office.over.is_set():
            await self.office.rest(self.chance.uniform(0.2, 1.5))
            # Drawn before anything can go wrong: what somebody wants next never hangs on what they got.
            keeps, pause = self.chance.random() < KEEPS, self.chance.uniform(0.2, 3.0)
            holds = await self.take()
            if not holds:
                continue
            self.office.book.granted(holds)
            await self.office.rest(pause)
            if keeps:
                self.office.book.left += len(holds)
            else:
                await self.give_back(holds)

    async def take(self) -> list[Hold]:
        """Ask for VMs once; empty: there were none to be had, or it is over."""
        raise NotImplementedError

    async def give_back(self, holds: list[Hold]) -> None:
        """Give all of them back, whatever it takes."""
        raise NotImplementedError


class RestUser(User):
    """Speaks to the gateways, to each in turn, with a token of their own."""

    def __init__(self, name: str, office: Office, seed: int, token: str) -> None:
        super().__init__(name, office, seed)
        self._token = token
        self._turns = itertools.count(self.chance.randrange(2))

    async def take(self) -> list[Hold]:
        wish: dict[str, int] = self.chance.choice(
            [{WEB: 1}, {WEB: 1}, {FLAKY: 1}, {FLAKY: 1}, {WEB: 2}, {WEB: 3}, {WEB: 1, FLAKY: 1}]
        )
        key = f"{self.name}-{next(self.numbers)}" if self.chance.random() < KEYED else ""
        way = "several" if sum(wish.values()) > 1 else "rest"
        asked = time.time()
        for _ in range(TRIES if key else 1):
            self.office.book.asked += 1
            answer = await self._ask("POST", "/vm", wish, {"Idempotency-Key": key} if key else {})
            if answer is not None and answer.status == 200:
                until = asked + LIFETIME_SECONDS
                told = time.time()
                names, owner = [short(host) for host in hosts(answer)], f"{keys.REST_USER_PREFIX}{self.name}"
                return [Hold(self.name, vm, way, Mark.OWNER, owner, asked, told, until) for vm in names]
            if answer is None and not key:
                self.office.book.doubts += 1
            if answer is not None or self.office.over.is_set():
                break
            await self.office.rest(AGAIN_SECONDS)
        return []

    async def give_back(self, holds: list[Hold]) -> None:
        for hold in holds:
            hold.given_back = time.time()
            await self._release(hold)

    async def _release(self, hold: Hold) -> None:
        sent = False
        for _ in range(TRIES):
            answer = await self._ask("DELETE", f"/vm/{hold.vm}", None, {})
            if answer is not None and answer.status == 200:
                self.office.book.releases += 1
                return
            if answer is not None and answer.status in {403, 404}:
                # One before it may have been done, and its answer lost.
                if not sent:
                    self.office.book.denied.append(Denial(hold, time.time(), answer.text[:200]))
                return
            sent = sent or answer is None
            await asyncio.sleep(AGAIN_SECONDS)

    async def _ask(self, method: str, path: str, body: Any, headers: dict[str, str]) -> RestAnswer | None:
        """One try at the next gateway; None: its connection broke, and nobody knows what was done."""
        gateways = self.office.gateways
        number = next(self._turns)
        for url in (gateways[number % len(gateways)], gateways[(number + 1) % len(gateways)]):
            given = {} if body is None else {"body": body}
            self.office.sent[url].set()
            try:
                rest = Rest(self.office.session, url)
                answer = await rest.call(method, f"/api/v3{path}", token=self._token, headers=headers, **given)
            except aiohttp.ClientConnectorError:
                self.office.book.refusals["not listening"] += 1
                continue
            except (aiohttp.ClientError, TimeoutError) as error:
                self.office.book.refusals[f"broken: {type(error).__name__}"] += 1
                return None
            if answer.status != 200:
                self.office.book.refusals[f"{answer.status}"] += 1
            return answer
        return _nobody()


def _nobody() -> RestAnswer:
    """What somebody makes of gateways that do not listen: certainly nothing was done."""
    return RestAnswer(503, CIMultiDictProxy(CIMultiDict()), b'{"ok": false}')


class ClaimUser(User):
    """Makes VMClaims."""

    def __init__(self, name: str, office: Office, seed: int) -> None:
        super().__init__(name, office, seed)
        self._names: dict[str, str] = {}
        """Of the VMClaims that are held, by uid."""

    async def take(self) -> list[Hold]:
        count = self.chance.choice([1, 1, 2, 3])
        pool = self.chance.choice([WEB, WEB, WEB, FLAKY])
        name = f"{self.name}-{next(self.numbers)}"
        spec = {
            "requests": [{"pool": pool, "count": count}],
            "lifetime": f"{LIFETIME_SECONDS:g}s",
            "deadline": f"{CLAIM_DEADLINE_SECONDS:g}s",
            "ttlAfterFinished": "1s",
        }
        asked = time.time()
        self.office.book.asked += 1
        made = (await self.office.claims.create(thing("VMClaim", name, spec))).ok()
        status = await self._bound(name)
        if not status:
            await self.office.claims.delete(name)
            return []
        uid, told = str(made["metadata"]["uid"]), time.time()
        self._names[uid] = name
        until = asked + LIFETIME_SECONDS
        return [Hold(self.name, vm["name"], "claim", Mark.REF, uid, asked, told, until) for vm in status["vms"]]

    async def _bound(self, name: str) -> Json:
        """Wait for a VMClaim; empty: it failed, or the load is over."""
        end = time.time() + CLAIM_DEADLINE_SECONDS
        while time.time() < end and not self.office.over.is_set():
            await self.office.rest(LOOK_SECONDS)
            answer = await self.office.claims.get(name)
            status: Json = answer.body.get("status", {}) if answer.status == 200 else {"phase": "Gone"}
            if status.get("phase") == "Bound":
                return status
            if status.get("phase") not in {None, "", "Pending"}:
                return {}
        return {}

    async def give_back(self, holds: list[Hold]) -> None:
        now = time.time()
        for hold in holds:
            hold.given_back = now
        # Its name is never used again; if its time was up it is gone by itself.
        answer = await self.office.claims.delete(self._names.pop(holds[0].value))
        self.office.book.releases += len(holds) * (answer.status == 200)


class DirectUser(User):
    """Takes a VM by the one conditional write that an allocator makes, past every process of ours, for a short time."""

    async def take(self) -> list[Hold]:
        pick, identity = self.chance.random(), f"{self.name}-{next(self.numbers)}"
        listed = await self.office.vms.list(fieldSelector="status.phase=Ready")
        ready = [vm for vm in listed.ok()["items"] if not vm["spec"].get("claim")]
        if not ready:
            return []
        vm = ready[int(pick * len(ready))]
        asked = time.time()
        self.office.book.asked += 1
        claim = {"id": identity, "owner": self.name, "boundAt": moment(0), "expiresAt": moment(SHORT_SECONDS)}
        patch = {"metadata": {"uid": vm["metadata"]["uid"]}, "spec": {"claim": claim}}
        answer = await self.office.vms.merge(vm["metadata"]["name"], patch)
        if answer.status != 200:
            return []
        name, until = vm["metadata"]["name"], asked + SHORT_SECONDS
        return [Hold(self.name, name, "direct", Mark.ID, identity, asked, time.time(), until)]

    async def give_back(self, holds: list[Hold]) -> None:
        for hold in holds:
            hold.given_back = time.time()
            over = {"id": hold.value, "releasedAt": moment(0), "endReason": "Released"}
            # Refused when its time was up: then it is over already.
            answer = await self.office.vms.merge(hold.vm, {"spec": {"claim": over}})
            self.office.book.releases += answer.status == 200
