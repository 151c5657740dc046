"""The clients of ``checkout`` and ``claim``: the same loops and the same HTTP library, whoever it is that they ask.

Run as ``python -m bench.asking <task> <options as JSON>`` by ``bench.processes.Clients``. None of them tries anything
again: an answer other than the one that is wanted ends the run.
"""

import asyncio
import itertools
import json
import secrets
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import orjson

from bench.load import Ask, Waits, arrivals, closed, opened
from vmpool.api import keys
from vmpool.api.vm import Claim
from vmpool.kube.client import Client
from vmpool.kube.kinds import POOLEDVMS, VMCLAIMS
from vmpool.kube.resource import Json

Options = Mapping[str, Any]
Go = Callable[[], Awaitable[None]]

CONNECTIONS = 256
"""Most at once, kept open between requests; only arrivals that wait for nobody could want more, and it would show."""
WARMING_UP = 4
"""Requests of each client before the first that counts: connections, handshakes and caches are there then."""
PAGE = 500
WATCH = timedelta(minutes=30)
SILENCE = timedelta(minutes=5)


def stock_needed(clients: int, count: int) -> int:
    """Return how many VMs ``count`` requests need, with those that go before them."""
    return count + clients * WARMING_UP


@asynccontextmanager
async def checkout(options: Options) -> AsyncIterator[Ask]:
    """Yield what checks a VM of ``pool`` out at the gateway at ``url``, with ``token`` where one is needed.

    It raises AssertionError for an answer without a VM, and for a VM that was given before.
    """
    given: set[str] = set()
    headers = {"X-AUTH-TOKEN": options["token"]} if options.get("token") else {}
    pool = options["pool"]
    url = f"{options['url']}/api/v3/vm/{pool}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS), headers=headers) as session:

        async def ask() -> None:
            async with session.post(url) as answer:
                text = await answer.read()
            assert answer.status == 200, f"{answer.status}: {text[:1000]!r}"
            name = orjson.loads(text)[pool]["hostname"]
            assert name not in given, f"{name} was given twice"
            given.add(name)

        yield ask


@asynccontextmanager
async def patch(options: Options) -> AsyncIterator[Ask]:
    """Yield what claims the next VM of ``namespace`` by the one write that the API server can refuse."""
    tls = ssl.create_default_context(cafile=options["authority"])
    connector = aiohttp.TCPConnector(ssl=tls, limit=CONNECTIONS)
    headers = {"Authorization": f"Bearer {options['token']}", "Accept": "application/json"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        vms = iter([(vm["metadata"]["name"], vm["metadata"]["uid"]) async for vm in _vms(session, options)])
        query = {"fieldManager": keys.GATEWAY_FIELD_MANAGER}
        merge = {"Content-Type": "application/merge-patch+json"}

        async def ask() -> None:
            name, uid = next(vms)
            body = orjson.dumps({"metadata": {"uid": uid}, "spec": {"claim": _claim(uid).wire()}})
            url = options["url"] + POOLEDVMS.path(options["namespace"], name)
            async with session.patch(url, params=query, data=body, headers=merge) as answer:
                text = await answer.read()
            assert answer.status == 200, f"{answer.status}: {text[:1000]!r}"
            assert orjson.loads(text)["spec"]["claim"]["id"] == uid, "another one's claim"

        yield ask


async def _vms(session: aiohttp.ClientSession, options: Options) -> AsyncIterator[Json]:
    url = options["url"] + POOLEDVMS.path(options["namespace"])
    following = ""
    while True:
        query = {"limit": str(PAGE), **({"continue": following} if following else {})}
        async with session.get(url, params=query) as answer:
            page = orjson.loads(await answer.read())
        for item in page["items"]:
            yield item
        if not (following := page["metadata"].get("continue") or ""):
            return


def _claim(identity: str) -> Claim:
    now = datetime.now(UTC)
    return Claim(
        id=identity, owner="vmpool:anonymous", bound_at=now, expires_at=now + timedelta(hours=1), request_id=identity
    )


@asynccontextmanager
async def claim(options: Options) -> AsyncIterator[Ask]:
    """Yield what makes a VMClaim for one VM of ``pool`` and waits until a watch shows that it is Bound."""
    namespace = options["namespace"]
    bound: dict[str, asyncio.Future[None]] = {}
    spec = {"requests": [{"pool": options["pool"]}]}
    prefix, numbers = f"claim-{secrets.token_hex(3)}", itertools.count()
    async with await Client.from_kubeconfig(options["kubeconfig"]) as client:
        page = await client.list_page(VMCLAIMS, namespace, limit=1)

        async def follow() -> None:
            async for _, raw in client.watch(VMCLAIMS, namespace, page.resource_version, WATCH, SILENCE):
                phase = raw.get("status", {}).get("phase")
                if phase == "Bound" and (waiter := bound.pop(raw["metadata"]["name"], None)):
                    waiter.set_result(None)
                assert phase != "Failed", raw["status"]

        eyes = asyncio.create_task(follow())

        async def ask() -> None:
            name = f"{prefix}-{next(numbers)}"
            bound[name] = waiter = asyncio.get_running_loop().create_future()
            body = {"apiVersion": keys.API_VERSION, "kind": VMCLAIMS.kind, "metadata": {"name": name}, "spec": spec}
            await client.create(VMCLAIMS, namespace, body)
            await asyncio.wait({waiter, eyes}, return_when=asyncio.FIRST_COMPLETED)
            if not waiter.done():
                eyes.result()
                raise AssertionError("the watch has ended")

        yield ask
        eyes.cancel()
        with suppress(asyncio.CancelledError):
            await eyes


TASKS: Mapping[str, Callable[[Options], AbstractAsyncContextManager[Ask]]] = {
    "checkout": checkout,
    "patch": patch,
    "claim": claim,
}


async def load(ask: Ask, options: Options, go: Go) -> Waits:
    """Warm up by ``clients`` and wait for the word; then they ask ``count`` times, or ``rate`` a second come to."""
    clients, count = options["clients"], options["count"]
    await closed(ask, clients, clients * WARMING_UP)
    await go()
    if options.get("rate"):
        return await opened(ask, arrivals(options["rate"], count, options["seed"]))
    return await closed(ask, clients, count)


async def _run(task: str, options: Options) -> None:
    cpu = 0.0

    async def go() -> None:
        nonlocal cpu
        print("ready", flush=True)
        word = await asyncio.to_thread(sys.stdin.readline)
        assert word, "whoever has started this is gone"
        cpu = time.process_time()

    async with TASKS[task](options) as ask:
        waits = await load(ask, options, go)
    told = {"seconds": waits.seconds, "each_ms": waits.each_ms, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], json.loads(sys.argv[2])))
