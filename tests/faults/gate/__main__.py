"""The gate's process: ``python -m tests.faults.gate --socket PATH --ca FILE``; ended by SIGTERM."""

import argparse
import asyncio
import dataclasses
import ssl
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from tests.faults.gate.plan import Plan
from tests.faults.gate.server import LINE_BYTES, MAX_BODY_BYTES, Gate
from tests.faults.gate.trial import Trial


class Control:
    """The gate's own HTTP side, on a unix socket."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def app(self) -> web.Application:
        """Return its routes."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/trials/{name}", self._add)
        app.router.add_put("/trials/{name}/replicas/{replica}", self._pid)
        app.router.add_get("/trials/{name}", self._show)
        app.router.add_delete("/trials/{name}", self._drop)
        return app

    async def _add(self, request: web.Request) -> web.Response:
        asked = await request.json()
        trial = Trial(Plan.model_validate(asked["plan"]), asked["upstreams"])
        return _json(await self._gate.add(request.match_info["name"], trial, asked["replicas"]))

    async def _pid(self, request: web.Request) -> web.Response:
        trial = self._gate.trial(request.match_info["name"])
        replica = request.match_info["replica"]
        trial.pids[replica] = (await request.json())["pid"]
        if trial.dying.get(replica):
            del trial.dying[replica]
        return _json({})

    async def _show(self, request: web.Request) -> web.Response:
        trial = self._gate.trial(request.match_info["name"])
        shown: dict[str, Any] = {
            "done": trial.progress.done,
            "met": trial.progress.met,
            "metAt": trial.met_at,
            "inHand": trial.in_hand,
            "now": trial.now,
            "beganAt": trial.began_at,
            "writes": sum(entry.changed for entry in trial.trace),
        }
        if request.query.get("trace"):
            shown["trace"] = [dataclasses.asdict(entry) for entry in trial.trace]
            shown["events"] = trial.events_seen
        return _json(shown)

    async def _drop(self, request: web.Request) -> web.Response:
        await self._gate.drop(request.match_info["name"])
        return _json({})


def _json(value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


async def serve(socket: str, ca: str) -> None:
    """Serve until cancelled."""
    trust = ssl.create_default_context(cafile=ca) if ca else ssl.create_default_context()
    connector = aiohttp.TCPConnector(ssl=trust, limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    async with aiohttp.ClientSession(
        connector=connector, auto_decompress=False, timeout=timeout, read_bufsize=LINE_BYTES
    ) as session:
        runner = web.AppRunner(Control(Gate(session)).app(), access_log=None)
        await runner.setup()
        await web.UnixSite(runner, socket).start()
        await asyncio.Event().wait()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--ca", default="")
    given = parser.parse_args()
    asyncio.run(serve(given.socket, given.ca))


if __name__ == "__main__":
    main()
