"""Start everything that trials share, and end it however the run ends."""

import asyncio
import os
import signal
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
from rich.console import Console

from tests.api import REQUEST_TIMEOUT_SECONDS, Api
from tests.clouds import FAST, SimCloud
from tests.faults.gate.client import GateProcess
from tests.faults.rig.account import make_account
from tests.faults.rig.history import Recorder
from tests.faults.rig.nursery import Nursery
from tests.faults.rig.trial import Rig
from tests.planes import install_crds, kubectl_of, throwaway_plane
from vmpool.dev import build
from vmpool.dev.progress import Progress


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    """A control plane, a cloud, a gate, a nursery and a recorder."""
    binaries = build.ensure(os.environ, Progress(Console(stderr=True)))
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmpool-faults-")))
        # Forked from before there are threads or loops in it: a process of its own.
        nursery = stack.enter_context(Nursery())
        plane = stack.enter_context(throwaway_plane(binaries))
        install_crds(kubectl_of(plane))
        account = make_account(kubectl_of(plane), plane, folder)
        cloud = SimCloud(folder, *FAST)
        cloud.start()
        stack.callback(cloud.stop)
        gate = GateProcess(folder, plane.ca)
        gate.start()
        stack.callback(gate.stop)
        # The plane has taken the signal for tests; here it is the run that ends, and everything with it.
        run = asyncio.current_task()
        assert run is not None, "a rig belongs to a task"
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, run.cancel)
        trust = ssl.create_default_context(cafile=str(plane.ca))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                plane.url,
                connector=aiohttp.TCPConnector(ssl=trust, limit=0),
                headers={"Authorization": f"Bearer {plane.token}"},
                timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS),
            )
        )
        recorder = await stack.enter_async_context(Recorder(plane.url, plane.token, trust))
        yield Rig(
            plane=plane,
            api=Api(session),
            cloud=cloud,
            gate=await stack.enter_async_context(gate.session()),
            nursery=nursery,
            recorder=recorder,
            folder=folder,
            account=account,
        )
