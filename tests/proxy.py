"""A TCP proxy that misbehaves on command; TLS passes through it unseen."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self

CHUNK = 65536


class Proxy:
    """Stands between a client and a server; use it as an async context manager."""

    def __init__(self, host: str, port: int) -> None:
        self.connections = 0
        """Made since the start."""
        self._target = (host, port)
        self._open = True
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._cut_on_reply = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        """Where to connect to instead of the server."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def cut(self) -> None:
        """Reset every connection; new ones are welcome."""
        for writer in list(self._writers):
            writer.transport.abort()

    def close_door(self) -> None:
        """Reset every connection, and every new one at once."""
        self._open = False
        self.cut()

    def open_door(self) -> None:
        """Take the next connections again."""
        self._open = True

    def freeze(self) -> None:
        """Hold every byte in both directions; connections stay, new ones are accepted and frozen too."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Let everything held, and everything after it, pass."""
        self._flowing.set()

    def cut_next_reply(self) -> None:
        """Pass what the client sends, then reset its connection instead of passing the answer; once."""
        self._cut_on_reply = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if not self._open:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, server_writer}
        self._writers |= pair
        pumps = [
            asyncio.create_task(self._pump(reader, server_writer, is_reply=False)),
            asyncio.create_task(self._pump(server_reader, writer, is_reply=True)),
        ]
        self._tasks |= {*pumps}
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in pair:
                end.transport.abort()
            for pump in pumps:
                pump.cancel()
            self._writers -= pair
            self._tasks -= {*pumps}

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(CHUNK):
                await self._flowing.wait()
                if is_reply and self._cut_on_reply:
                    self._cut_on_reply = False
                    return
                sink.write(chunk)
                await sink.drain()
