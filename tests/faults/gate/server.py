"""The proxy itself: passes bytes, looks into what it may have to name, and breaks what its trial's plan says."""

import asyncio
import contextlib
import gzip
import os
import signal
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from tests.faults.gate import lists
from tests.faults.gate.calls import Call, Far, classify
from tests.faults.gate.plan import LIST_KINDS, WATCH_KINDS, Action, Kind, Point
from tests.faults.gate.trial import Trial
from tests.faults.gate.watching import REASONS, Stream

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "host", "content-length", "upgrade", "te"})
MAX_BODY_BYTES = 16 * 2**20
LINE_BYTES = 16 * 2**20
"""A watch's longest line."""
DEAD_POLL_SECONDS = 0.001
PID_SECONDS = 5.0
DEAD_SECONDS = 10.0
"""How long a process that was killed may take to be gone."""
OURS = "vmpool/"
"""How our own client names itself."""
SHUTDOWN_SECONDS = 0.1
CALL_KINDS = frozenset(Kind) - WATCH_KINDS
MUTE_KINDS = frozenset({Kind.KILL, Kind.RESET, Kind.HANG})
"""After these, before the request is forwarded, there is no answer."""

Headers = CIMultiDict[str]


class Door:
    """One way in: the port of one replica for one far side."""

    def __init__(self, trial: Trial, replica: str, far: Far, session: aiohttp.ClientSession) -> None:
        self._trial = trial
        self._replica = replica
        self._far: Far = far
        self._session = session
        self._versions: dict[tuple[str, str, str], str] = {}
        """The resourceVersion of each object as far as it has come by here."""
        self._runner: web.AppRunner | None = None

    async def open(self) -> int:
        """Listen on a free port of loopback and return it."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._pass)
        app.on_response_prepare.append(_unsigned)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port: int = self._runner.addresses[0][1]
        return port

    async def close(self) -> None:
        """Close the port and every connection."""
        if self._runner is not None:
            await self._runner.cleanup()

    # --- one request --------------------------------------------------------------------------------------------

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        asked, body = self._trial.now, await request.read()
        call = classify(
            self._far, self._replica, request.method, request.raw_path, request.headers.get("Content-Type", ""), body
        )
        number = self._trial.calls.next(self._replica, call.signature)
        if call.verb == "watch":
            # It is broken at its events; to break its request would only be another end of the stream.
            async with self._upstream(request, body) as answer:
                self._trial.note(call, number, answer.status, changed=False, fault="", asked=asked)
                return await self._watch(request, call, answer)
        kinds = CALL_KINDS if call.verb == "list" else CALL_KINDS - LIST_KINDS
        action = self._strike(call.signature, number, kinds)
        with nullcontext() if action is None else self._trial.holding():
            return await self._answer(request, body, call, (number, asked, action))

    async def _answer(
        self, request: web.Request, body: bytes, call: Call, come: tuple[int, float, Action | None]
    ) -> web.StreamResponse:
        """Pass a call on, or break it; ``come`` is its number, when it came, and what goes wrong with it."""
        number, asked, action = come
        fault = action.name if action is not None else ""
        if action is not None and action.point == Point.BEFORE and action.kind not in LIST_KINDS:
            mute = action.kind in MUTE_KINDS
            if mute:
                # First: when the replica goes away its connection goes with it, and that ends this handler.
                self._trial.note(call, number, 0, changed=False, fault=fault, asked=asked)
            stopped = await self._before(request, action)
            if stopped is not None and mute:
                return stopped
            if stopped is not None:
                self._trial.note(call, number, stopped.status, changed=False, fault=fault, asked=asked)
                return stopped
        before = self._before_write(call)
        async with self._upstream(request, body) as answer:
            content = await answer.read()
            headers, status = _passed(answer.headers), answer.status
        if action is not None and action.kind == Kind.DUPLICATE:
            async with self._upstream(request, body) as again:
                await again.read()
        plain = _plain(content, headers)
        changed, version = self._learn(call, status, plain, before)
        if call.verb == "list" and status == 200:
            first = self._trial.first_lists.setdefault((self._replica, call.plural), plain)
            if action is not None and action.kind in LIST_KINDS:
                content, headers = lists.changed(action, plain, first), _without(headers, "Content-Encoding")
        self._trial.note(call, number, status, changed=changed, fault=fault, asked=asked, version=version)
        reply = web.Response(status=status, body=content, headers=headers)
        if action is not None and action.point != Point.BEFORE:
            return await self._after(request, reply, action)
        if action is not None and action.kind == Kind.TRUNCATE:
            return await self._truncated(request, reply, content)
        return reply

    def _strike(self, signature: str, number: int, kinds: frozenset[Kind]) -> Action | None:
        gone = self._trial.dying.get(self._replica)
        if gone is False:
            # What else a process says that is to be killed is broken by that, and by nothing else.
            return None
        if gone:
            # This may be one of its last words still, and nobody dies twice.
            kinds -= {Kind.KILL}
        action = self._trial.progress.strike(signature, self._replica, number, of=kinds)
        if action is not None and action.kind == Kind.KILL:
            self._trial.dying[self._replica] = False
        if action is not None and self._trial.progress.met:
            self._trial.met_at = self._trial.now
        return action

    def _upstream(self, request: web.Request, body: bytes) -> Any:
        return self._session.request(
            request.method,
            f"{self._trial.upstreams[self._far]}{request.raw_path}",
            data=body or None,
            headers=_passed(request.headers),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            allow_redirects=False,
        )

    async def _before(self, request: web.Request, action: Action) -> web.StreamResponse | None:
        """Break a request that nobody has seen yet; None: it goes on."""
        match action.kind:
            case Kind.KILL:
                await self._kill()
                return _broken(request)
            case Kind.ANSWER:
                return _refusal(action)
            case Kind.RESET:
                return _broken(request)
            case Kind.HANG:
                await asyncio.sleep(action.seconds or 0)
                return _broken(request)
            case Kind.DELAY:
                await asyncio.sleep(action.seconds or 0)
        return None

    async def _after(self, request: web.Request, reply: web.Response, action: Action) -> web.StreamResponse:
        """Break what the far side has done already."""
        match action.kind, action.point:
            case Kind.KILL, Point.COMMITTED:
                await self._kill()
                return _broken(request)
            case Kind.KILL, Point.REPLIED:
                await reply.prepare(request)
                await reply.write_eof()
                await self._kill()
                return reply
            case Kind.ANSWER, _:
                return _refusal(action)
            case Kind.HANG, _:
                await asyncio.sleep(action.seconds or 0)
                return _broken(request)
            case _:
                return _broken(request)

    async def _truncated(self, request: web.Request, reply: web.Response, content: bytes) -> web.StreamResponse:
        cut = web.StreamResponse(status=reply.status, headers=_without(reply.headers, "Content-Length"))
        cut.content_length = len(content)
        await cut.prepare(request)
        await cut.write(content[: len(content) // 2])
        return _broken(request)

    async def _kill(self) -> None:
        """End the replica's process, and return when it is gone."""
        # A replica that speaks before it was introduced is introduced in a moment.
        async with asyncio.timeout(PID_SECONDS):
            while self._replica not in self._trial.pids:  # noqa: ASYNC110
                await asyncio.sleep(DEAD_POLL_SECONDS)
        pid = self._trial.pids.pop(self._replica)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        try:
            async with asyncio.timeout(DEAD_SECONDS):
                while _lives(pid):  # noqa: ASYNC110 - not a child of ours: nobody tells us of its end
                    await asyncio.sleep(DEAD_POLL_SECONDS)
        finally:
            # Its connection goes with it, and that may end this handler first.
            self._trial.dying[self._replica] = True

    # --- what a write has changed -------------------------------------------------------------------------------

    def _before_write(self, call: Call) -> str:
        """The version that a write begins with: the one that it names, else the last one that came by."""
        meta = (call.body.get("metadata") or {}) if isinstance(call.body, dict) else {}
        return str(meta.get("resourceVersion") or self._versions.get((call.plural, call.namespace, call.name), ""))

    def _learn(self, call: Call, status: int, body: bytes, before: str) -> tuple[bool, int]:
        """Note the versions in an answer; return whether a write had an effect, and the answer's own version."""
        if status >= 300:
            return False, 0
        if self._far == "cloud":
            return call.is_write, 0
        document: Mapping[str, Any] = _document(body)
        version = int((document.get("metadata") or {}).get("resourceVersion") or 0)
        if call.verb == "list":
            for item in document.get("items", ()):
                self._version(call.plural, item)
            return False, version
        self._version(call.plural, document)
        # Not what is known by now: the watch may have told of this very write before its answer came.
        # A JSON patch that takes the last finalizer off an object answers with the version that it had before.
        new = (bool(version) and str(version) != before) or isinstance(call.body, list)
        return bool(call.is_write and (new or call.verb in {"create", "delete"})), version

    def _version(self, plural: str, found: Mapping[str, Any]) -> None:
        """Note an object's version."""
        meta = found.get("metadata") or {}
        if "resourceVersion" in meta and "name" in meta:
            self._versions[plural, meta.get("namespace", ""), meta["name"]] = meta["resourceVersion"]

    # --- watches ------------------------------------------------------------------------------------------------

    async def _watch(self, request: web.Request, call: Call, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=_passed(answer.headers))
        await response.prepare(request)
        if answer.status != 200:
            await response.write(await answer.read())
            return response
        agent = "" if request.headers.get("User-Agent", "").startswith(OURS) else "kopf "
        stream = Stream(self._replica, call.plural, self._trial.progress, self._trial.events, agent)
        lines: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1024)
        pump = asyncio.create_task(_pump(answer, lines))
        try:
            while True:
                with self._trial.holding() if stream.next_due is not None else nullcontext():
                    outs, ended = await self._next(stream, lines)
                for out in outs:
                    with self._trial.holding():
                        await asyncio.sleep(out.pause)
                    if out.data:
                        await response.write(out.data)
                    if out.reset:
                        return _broken(request)
                    ended = ended or out.end
                if ended:
                    return response
        except ConnectionError:
            return response
        finally:
            pump.cancel()

    async def _next(self, stream: Stream, lines: asyncio.Queue[bytes]) -> tuple[list[Any], bool]:
        """Wait for a line, or for the time of one that is held back; return what follows, and whether it ended."""
        due = stream.next_due
        try:
            async with asyncio.timeout_at(due):
                line = await lines.get()
        except TimeoutError:
            return list(stream.due(asyncio.get_running_loop().time())), False
        if not line:
            return [], True
        event = orjson.loads(line)
        self._version(stream.plural, event.get("object") or {})
        met = self._trial.progress.met
        outs = list(stream.line(line, asyncio.get_running_loop().time()))
        if self._trial.progress.met and not met:
            self._trial.met_at = self._trial.now
        self._trial.events_seen.append((self._trial.now, self._replica, *stream.last))
        return outs, False


async def _pump(answer: aiohttp.ClientResponse, lines: asyncio.Queue[bytes]) -> None:
    """Put every line of a stream into a queue, and an empty one at its end."""
    with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
        while line := await answer.content.readline():
            await lines.put(line)
    await lines.put(b"")


def _lives(pid: int) -> bool:
    """Whether a process still runs; one that only waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


async def _unsigned(_: web.Request, response: web.StreamResponse) -> None:
    """Leave out what the gate's own server adds: it is not to be seen."""
    response.headers.pop("Server", None)


def _broken(request: web.Request) -> web.StreamResponse:
    """Reset the connection; what is returned is never sent."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=499)


def _refusal(action: Action) -> web.Response:
    """Answer as an API server does that refuses."""
    status = action.status or 500
    headers = {} if action.retry_after is None else {"Retry-After": str(action.retry_after)}
    told = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"made by a test: {status}",
        "reason": {409: "Conflict", 422: "Invalid", 503: "ServiceUnavailable"}.get(
            status, REASONS.get(status, "InternalError")
        ),
        "code": status,
    }
    return web.Response(status=status, body=orjson.dumps(told), content_type="application/json", headers=headers)


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _plain(content: bytes, headers: Mapping[str, str]) -> bytes:
    return gzip.decompress(content) if headers.get("Content-Encoding") == "gzip" else content


def _passed(headers: CIMultiDictProxy[str]) -> Headers:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP)


def _without(headers: Mapping[str, str], name: str) -> Headers:
    return CIMultiDict((key, value) for key, value in headers.items() if key.lower() != name.lower())


class Gate:
    """All doors of all trials."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._trials: dict[str, tuple[Trial, list[Door]]] = {}

    async def add(self, name: str, trial: Trial, replicas: list[str]) -> dict[str, dict[str, int]]:
        """Begin a trial; return the ports of each replica by far side."""
        if name in self._trials:
            raise ValueError(f"trial {name} is there already")
        doors: list[Door] = []
        self._trials[name] = (trial, doors)
        ports: dict[str, dict[str, int]] = {}
        for replica in replicas:
            for far in trial.upstreams:
                door = Door(trial, replica, far, self._session)
                doors.append(door)
                ports.setdefault(replica, {})[far] = await door.open()
        return ports

    def trial(self, name: str) -> Trial:
        """The trial of a name. Raises KeyError."""
        return self._trials[name][0]

    async def drop(self, name: str) -> None:
        """End a trial: its ports close, its trace is forgotten."""
        _, doors = self._trials.pop(name)
        await asyncio.gather(*(door.close() for door in doors))
