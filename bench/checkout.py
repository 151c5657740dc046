"""``checkout``: a VM over the REST API, from a gateway in a process of its own; the floor is the bare write."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from tests.waiting import until

from bench.asking import stock_needed
from bench.figures import Figures, Pair, Promise, Result
from bench.load import Waits, percentile
from bench.processes import Clients, Gateway
from bench.rig import POOL, READS, WRITES, Field, Rig, since
from bench.stock import shelf, stocked
from vmpool.gateway.auth.passwords import hash_password
from vmpool.kube.kinds import POOLEDVMS

COUNT = 1_000
"""Checkouts of each variant in each half of a pair: 5,000 samples in five pairs."""
PROMISED_COUNT = 3_000
"""Of the variant with a promise: in three seconds the API server's own garbage decides which half is quicker."""
WATCHED = 200
"""Checkouts beside an operator, whose writes are counted."""
CLIENTS = 16
OPEN_SHARE = 0.5
"""Of the rate that ours reached with ``CLIENTS``: so many come a second when arrivals wait for nobody."""
PERCENTILES = (50, 95, 99)
TAIL = 99
"""The percentile that is of all samples of all pairs."""
VMS = ("pooledvms",)
ASKED = ("pooledvms", "vmpools", "vmclaims", "vmproviders", "secrets")
"""What a checkout could want to read."""
REVIEWS = ("subjectaccessreviews", "tokenreviews")
"""Questions that the API server counts as writes."""
USER = "bench"
PASSWORD = "correct horse"
MILLISECONDS = 1000.0
SETTLED_SECONDS = 60.0


@dataclass(frozen=True)
class Variant:
    """Who checks out, and how."""

    name: str
    clients: int = CLIENTS
    """That ask at once and again and again; of arrivals, those that warm up."""
    arrivals: bool = False
    """Clients come at random times, and none waits for another."""
    count: int = COUNT
    """Checkouts of each half that are timed."""
    tokens: bool = False
    """Every request carries a token; without, nothing needs one."""


VARIANTS = (
    Variant("1", clients=1),
    Variant("16", count=PROMISED_COUNT),
    Variant("64", clients=64),
    # Behind "16": it tells how many come a second.
    Variant("open", arrivals=True),
    Variant("16_token", tokens=True),
)


@dataclass(frozen=True)
class Half:
    """One half of a pair: what the clients have waited, and who has used what meanwhile."""

    waits: Waits
    checkouts: int
    """All of them, with those that warm up."""
    writes: float
    """On PooledVMs, by the API server's count."""
    plane_cpu_seconds: float
    reads: float = 0.0
    """Of what a checkout could want to know. The floor asks beforehand, and is not counted."""
    gateway_cpu_seconds: float = 0.0
    """0 for the floor, which has none."""


Halves = dict[str, list[Half]]
"""Of all pairs, by variant."""


async def run(rig: Rig, pairs: int) -> Result:
    """Check VMs out by every variant, ours and the floor in turns; which of them is first changes from pair to pair."""
    ours: Halves = defaultdict(list)
    floor: Halves = defaultdict(list)
    runs = [await _pair(rig, number, ours, floor) for number in range(pairs)]
    of_ours = {
        **_tails(ours),
        "writes_per_checkout": _for_each(ours, lambda half: half.writes),
        "writes_per_checkout_in_all": await _beside_an_operator(rig),
        "reads_per_checkout": _for_each(ours, lambda half: half.reads),
        "samples": float(min(sum(len(half.waits.each_ms) for half in halves) for halves in ours.values())),
    }
    of_floor = {**_tails(floor), "writes_per_checkout": _for_each(floor, lambda half: half.writes)}
    promises = [
        Promise(f"checkouts_per_second_{CLIENTS}", 0.7, at_least=True, ratio=True),
        Promise(f"p99_ms_{CLIENTS}", 3.0, ratio=True),
        Promise("writes_per_checkout", 1.0),
        Promise("writes_per_checkout_in_all", 2.0),
        Promise("reads_per_checkout", 0.0),
    ]
    return Result("checkout", runs, promises, NOTES, Pair(of_ours, of_floor))


async def _pair(rig: Rig, number: int, ours: Halves, floor: Halves) -> Pair:
    of_ours: dict[str, float] = {}
    of_floor: dict[str, float] = {}
    for variant in VARIANTS:
        load: dict[str, Any] = {"clients": variant.clients, "count": variant.count, "seed": number}
        if variant.arrivals:
            load["rate"] = OPEN_SHARE * of_ours[f"checkouts_per_second_{CLIENTS}"]
        before = await _floor(rig, load) if number % 2 else None
        mine = await _ours(rig, variant, load)
        bare = before or await _floor(rig, load)
        of_ours |= _figures(variant, mine)
        of_floor |= _figures(variant, bare)
        ours[variant.name].append(mine)
        floor[variant.name].append(bare)
        rig.say(f"pair {number + 1}: {variant.name}: {_line(mine.waits)}; floor {_line(bare.waits)}")
    return Pair(of_ours, of_floor)


async def _ours(rig: Rig, variant: Variant, load: Mapping[str, Any]) -> Half:
    needed = stock_needed(variant.clients, variant.count)
    where = await shelf(rig, needed)
    async with _gateway(rig, where, tokens=variant.tokens) as (gateway, token):
        writes, reads = await rig.requests(WRITES), await rig.requests(READS)
        clients = await Clients.start("checkout", url=gateway.url, pool=POOL, token=token, **load)
        own, plane = rig.cpu_seconds(gateway.pid), rig.plane_cpu_seconds()
        waits = await clients.waits()
        own, plane = rig.cpu_seconds(gateway.pid) - own, rig.plane_cpu_seconds() - plane
        made = since(writes, await rig.requests(WRITES))
        asked = _on(ASKED, since(reads, await rig.requests(READS))) + _on(REVIEWS, made)
    await _all_claimed(rig, where, needed)
    await rig.clear(where)
    return Half(waits, needed, _on(VMS, made), plane, asked, own)


async def _floor(rig: Rig, load: Mapping[str, Any]) -> Half:
    needed = stock_needed(load["clients"], load["count"])
    where = await shelf(rig, needed)
    before = await rig.writes()
    address = {"url": rig.plane.url, "token": rig.plane.token, "authority": str(rig.plane.ca)}
    clients = await Clients.start("patch", namespace=where.namespace, **address, **load)
    plane = rig.plane_cpu_seconds()
    waits = await clients.waits()
    plane = rig.plane_cpu_seconds() - plane
    made = since(before, await rig.writes())
    await _all_claimed(rig, where, needed)
    await rig.clear(where)
    return Half(waits, needed, _on(VMS, made), plane)


async def _beside_an_operator(rig: Rig) -> float:
    """Return the writes on PooledVMs for one checkout, until its phase says what has happened."""
    needed = stock_needed(CLIENTS, WATCHED)
    # No room for successors: their writes would count as those of the checkouts.
    where = await stocked(rig, needed, maxVMs=needed)
    operator = rig.operator(where)
    operator.start()
    await operator.ready()
    await rig.provider_ready(where)
    async with _gateway(rig, where) as (gateway, _):
        before = await rig.writes()
        clients = await Clients.start("checkout", url=gateway.url, pool=POOL, clients=CLIENTS, count=WATCHED)
        await clients.waits()

        async def told() -> bool:
            page = await rig.client.list_page(POOLEDVMS, where.namespace, field_selector="status.phase=Claimed")
            return len(page.items) == needed

        await until(told, deadline=SETTLED_SECONDS, what="every VM that was checked out is Claimed")
        made = since(before, await rig.writes())
    operator.kill()
    rig.say(f"beside an operator: {made}")
    await rig.clear(where)
    return _on(VMS, made) / needed


@asynccontextmanager
async def _gateway(rig: Rig, where: Field, *, tokens: bool = False) -> AsyncIterator[tuple[Gateway, str]]:
    """Yield a gateway that serves a field, and a token for it; empty where none is needed."""
    settings = {"VMPOOL_GATEWAY_AUTHORIZATION": "open"}
    if tokens:
        users = rig.folder / f"users-{where.namespace}"
        users.write_text(f"{USER}:{hash_password(PASSWORD)}\n")
        settings |= {"VMPOOL_GATEWAY_AUTH": "static", "VMPOOL_GATEWAY_USERS_FILE": str(users)}
    gateway = rig.gateway(where, **settings)
    gateway.start()
    await gateway.ready()
    try:
        yield gateway, await _token(gateway) if tokens else ""
    finally:
        gateway.kill()


async def _token(gateway: Gateway) -> str:
    basic = aiohttp.BasicAuth(USER, PASSWORD)
    async with aiohttp.ClientSession(auth=basic) as session, session.post(f"{gateway.url}/api/v3/token") as answer:
        assert answer.status == 200, await answer.text()
        token: str = (await answer.json())["token"]
        return token


async def _all_claimed(rig: Rig, where: Field, count: int) -> None:
    """Fail unless so many VMs have a claim each: an answer without a write would be quick."""
    claimed = 0
    async for page in rig.client.list_pages(POOLEDVMS, where.namespace):
        claimed += sum("claim" in item["spec"] for item in page.items)
    assert claimed == count, f"{claimed} VMs are claimed, and {count} checkouts were answered"


def _on(kinds: tuple[str, ...], made: Figures) -> float:
    return sum(number for name, number in made.items() if name.startswith(kinds))


def _figures(variant: Variant, half: Half) -> dict[str, float]:
    name, each = variant.name, half.waits.each_ms
    together = half.plane_cpu_seconds + half.gateway_cpu_seconds + half.waits.cpu_seconds
    figures = {
        f"checkouts_per_second_{name}": half.waits.per_second,
        **{f"p{one}_ms_{name}": percentile(each, one) for one in PERCENTILES if one != TAIL},
        f"cpu_ms_{name}": together / len(each) * MILLISECONDS,
    }
    if half.gateway_cpu_seconds:
        figures[f"gateway_cpu_ms_{name}"] = half.gateway_cpu_seconds / len(each) * MILLISECONDS
    return figures


def _tails(halves: Halves) -> dict[str, float]:
    """Return the percentiles that one pair has too few samples for."""
    samples = {name: [one for half in each for one in half.waits.each_ms] for name, each in halves.items()}
    return {f"p{TAIL}_ms_{name}": percentile(each, TAIL) for name, each in samples.items()}


def _for_each(halves: Halves, counted: Callable[[Half], float]) -> float:
    """Return what was counted for one checkout, over all variants and pairs."""
    every = [half for each in halves.values() for half in each]
    return sum(map(counted, every)) / sum(half.checkouts for half in every)


def _line(waits: Waits) -> str:
    told = ", ".join(f"p{one} {percentile(waits.each_ms, one):.1f} ms" for one in PERCENTILES)
    return f"{waits.per_second:.0f}/s, {told}"


NOTES = {
    "checkouts_per_second": "answered checkouts a second; of arrivals, half of what ours answered with 16 clients",
    "cpu_ms": "of the control plane, the clients and the gateway together, for one checkout",
    "gateway_cpu_ms": "of the gateway alone",
    "p99_ms": "over all samples of all pairs; of arrivals, from when the client was to come",
    "writes_per_checkout": "writes on PooledVMs by the API server's count, without an operator",
    "writes_per_checkout_in_all": "the same beside an operator, until the VMs say Claimed",
    "reads_per_checkout": "reads of our kinds and of secrets, and access reviews, by the API server's count",
}
