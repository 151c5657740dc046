"""The gate on the real API server; trials have a rig of their own (``rig/open.py``)."""

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.api import api
from tests.clouds import make_simcloud, shared_simcloud, simcloud
from tests.faults.gate.client import GateProcess
from vmpool.dev.plane import ControlPlane

__all__ = ["api", "make_simcloud", "shared_simcloud", "simcloud"]


@pytest.fixture(scope="session")
def gate_process(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateProcess]:
    """A gate as a process of its own."""
    made = GateProcess(tmp_path_factory.mktemp("gate"), plane.ca)
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def gate(gate_process: GateProcess) -> AsyncIterator[aiohttp.ClientSession]:
    """A session with the gate's control side."""
    async with gate_process.session() as session:
        yield session
