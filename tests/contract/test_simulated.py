"""The provider ``simulated``, held to the conformance suite in both of its ways to make a machine once."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from tests.clouds import SimCloud, Tenant
from vmpool.api import keys
from vmpool.providers.base import MachineRequest, Session
from vmpool.providers.conformance import ProviderConformance
from vmpool.providers.simulated import SimulatedPlugin, SimulatedProvider

INSTALL = "install-1"
UNUSED_PORT = 1
"""Nothing listens there without root, and nothing does on a test machine."""


def open_provider(
    url: str, key: str, *, token_mode: str = "Token", install_id: str = INSTALL, **config: object
) -> SimulatedProvider:
    plugin = SimulatedPlugin()
    settings = plugin.Config.model_validate({"endpoint": url, "tokenMode": token_mode, **config})
    return plugin.open(Session(settings, {"apiKey": key}, install_id))


def request(token: str, name: str, **changes: object) -> MachineRequest:
    tags = {keys.TAG_INSTALL: INSTALL, keys.TAG_UID: token, keys.TAG_POOL: "ns/pool"}
    want = MachineRequest(
        token=token,
        name=name,
        hostname=f"{name}.example.test",
        image="debian-12",
        cpus=2,
        memory_mib=512,
        disk_gib=None,
        parameters={"network": "blue"},
        tags=tags,
    )
    return replace(want, **changes)  # type: ignore[arg-type]


@dataclass
class SimHarness:
    """One tenant of a simulated cloud."""

    cloud: SimCloud
    tenant: Tenant
    other: Tenant
    token_mode: str
    provider: SimulatedProvider
    install_id: str = INSTALL
    listing_size: int = 12
    deadline: float = 15.0
    page_size: int = 5

    def request(self, token: str, name: str) -> MachineRequest:
        return request(token, name)

    def invalid_template_request(self) -> MachineRequest:
        return request("token-of-no-image", "no-image", image="no-such-image")

    def _open(self, key: str, url: str = "") -> SimulatedProvider:
        return open_provider(
            url or self.cloud.url, key, token_mode=self.token_mode, pageSize=self.page_size, timeoutSeconds=10
        )

    async def new_session(self) -> SimulatedProvider:
        return self._open(self.tenant.key)

    async def other_far_side(self) -> SimulatedProvider:
        return self._open(self.other.key)

    async def break_credentials(self) -> SimulatedProvider:
        return self._open("a-key-that-nobody-has")

    async def unreachable(self) -> SimulatedProvider:
        return self._open(self.tenant.key, f"http://127.0.0.1:{UNUSED_PORT}")

    async def make_foreign(self) -> str:
        return self.cloud.made(self.tenant)

    async def exists(self, machine_id: str) -> bool:
        return self.cloud.state(self.tenant, machine_id) != "Gone"

    async def leftovers(self) -> list[str]:
        truth = self.cloud.ledger()
        mine = [machine for machine in truth["machines"] if machine["tenant"] == self.tenant.name]
        there = [machine["id"] for machine in mine if machine["state"] != "Gone" and machine["tags"]]
        return there + [part["machine"] for part in truth["leaked"] if part["tenant"] == self.tenant.name]

    async def lose_next_reply(self) -> bool:
        self.cloud.fault("replyLost", {"operation": "create", "tenant": self.tenant.name}, count=1)
        return True


@pytest.fixture(params=["Token", "None"])
async def harness(request: pytest.FixtureRequest, simcloud: SimCloud, tenant: Tenant) -> AsyncIterator[SimHarness]:
    provider = open_provider(simcloud.url, tenant.key, token_mode=request.param, pageSize=5)
    yield SimHarness(simcloud, tenant, simcloud.tenant(), request.param, provider)
    await provider.close()


class TestConformance(ProviderConformance):
    """Every case of the suite, in token mode and without tokens."""
