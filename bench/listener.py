"""What answers probes: a process of its own that accepts and closes, so that its CPU is counted nowhere.

Run as ``python -m bench.listener <options as JSON>`` by ``listening``: it binds one socket for each address, never the
wildcard, says ``ready``, and answers each line of its standard input with what it has accepted. It ends with its
input.
"""

import asyncio
import json
import os
import resource
import selectors
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

START_SECONDS = 30.0
ANSWER_BYTES = 2**20
"""Longest line that is read: an address and its count are about 20 bytes."""
SPARE_FILES = 64
"""Descriptors beside those of the sockets."""


class Listener:
    """The process as its starter sees it."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.port = port
        self._process = process

    async def accepted(self) -> Mapping[str, int]:
        """Return how many connections each address has accepted so far; an address without any is left out."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        counts: dict[str, int] = json.loads(await self.line())
        return counts

    async def line(self) -> str:
        """Return the next line that it prints."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), START_SECONDS)
        assert line, "the listener ended"
        return line.decode().strip()


def free_port() -> int:
    """Return a TCP port that nobody listens on now, neither at loopback nor at every address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def listening(port: int, addresses: Sequence[str]) -> AsyncIterator[Listener]:
    """Yield a listener that answers at one port of these addresses."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.listener",
        json.dumps({"port": port, "addresses": list(addresses)}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=ANSWER_BYTES,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    try:
        made = Listener(process, port)
        assert await made.line() == "ready"
        yield made
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def main(port: int, addresses: Sequence[str]) -> None:
    """Serve until the standard input ends."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(addresses) + SPARE_FILES
    if most != resource.RLIM_INFINITY and most < wanted:
        raise SystemExit(f"{wanted} open files are needed and {most} are allowed: raise the hard limit (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    counts: Counter[str] = Counter()
    with selectors.DefaultSelector() as selector:
        for address in addresses:
            server = socket.create_server((address, port), backlog=socket.SOMAXCONN)
            server.setblocking(False)
            selector.register(server, selectors.EVENT_READ, address)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select():
                if isinstance(key.fileobj, socket.socket):
                    counts[key.data] += _accept(key.fileobj)
                elif not _answer(counts):
                    return


def _accept(server: socket.socket) -> int:
    """Accept and close whoever waits; return how many they were."""
    accepted = 0
    while True:
        try:
            connection, _ = server.accept()
        except BlockingIOError:
            return accepted
        connection.close()
        accepted += 1


def _answer(counts: Mapping[str, int]) -> bool:
    """Answer every line that is there; False at the end of the input."""
    # Not by readline: what it buffers, the selector does not see.
    asked = os.read(sys.stdin.fileno(), 4096)
    for _ in range(asked.count(b"\n")):
        print(json.dumps(counts), flush=True)
    return bool(asked)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
