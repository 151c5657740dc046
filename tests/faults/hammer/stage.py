"""What runs: a server, a cloud, two operators with one lease, two gateways, and the pools that everybody wants."""

import asyncio
import base64
import random
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp

from tests.api import REQUEST_TIMEOUT_SECONDS, Api, Json, Objects
from tests.clouds import FAST, SimCloud, Tenant
from tests.faults.hammer.processes import Kept
from tests.faults.hammer.upkeep import IMAGES
from tests.faults.hammer.users import FLAKY, WEB
from tests.faults.hammer.witness import Pulse, Witness
from tests.faults.rig.nursery import GATEWAY, OPERATOR, Nursery
from tests.faults.rig.trial import SETTINGS
from tests.objects import thing
from tests.planes import Kubectl
from tests.rest import Rest
from tests.users import account
from tests.waiting import until
from vmpool.dev.plane import ControlPlane
from vmpool.gateway.auth.passwords import hash_password

QUEUE = "failures"
PROVIDERS = {WEB: "cloud", FLAKY: "shaky"}
OPERATORS = GATEWAYS = 2
PORTS = range(20_000, 30_000)
"""Below those that the system gives to outgoing connections: a killed gateway gets its own again."""
START_SECONDS = 60.0
OPERATOR_SETTINGS = {
    **SETTINGS,
    "VMPOOL_LEASE_RETRY_SECONDS": "1",
    "VMPOOL_RELIST_SECONDS": "300",
}
GATEWAY_SETTINGS = {"VMPOOL_GATEWAY_AUTH": "static", "VMPOOL_GATEWAY_AUTHORIZATION": "open"}


@dataclass(frozen=True)
class Stage:
    """All of it, running."""

    api: Api
    namespace: str
    cloud: SimCloud
    tenants: dict[str, Tenant]
    """The account of each pool's provider, by pool."""
    witness: Witness
    pulse: Pulse
    processes: list[Kept]
    gateways: list[str]
    """Where they serve."""
    began_at: float
    folder: Path

    def kind(self, plural: str) -> Objects:
        """The objects of one of our kinds."""
        return self.api.kind(plural, self.namespace)

    async def machines(self) -> set[str]:
        """The ids of all machines that are there."""
        pages = [await asyncio.to_thread(self.cloud.listed, one, "limit=1000") for one in self.tenants.values()]
        return {one for page in pages for one in page}

    async def tokens(self, session: aiohttp.ClientSession, users: list[str]) -> dict[str, str]:
        """Have each of these users log in at a gateway; their password is their name."""

        async def served(user: str) -> str:
            try:
                answer = await Rest(session, self.gateways[0]).post("/token", basic=(user, user))
            except aiohttp.ClientError:
                return ""
            return str(answer.body["token"]) if answer.status == 200 else ""

        return {
            user: await until(partial(served, user), deadline=START_SECONDS, what=f"{user} has a token")
            for user in users
        }


@asynccontextmanager
async def stage(plane: ControlPlane, kubectl: Kubectl, folder: Path, users: list[str]) -> AsyncIterator[Stage]:
    """Set it up in a namespace of its own and start everything; all ends with the context."""
    async with AsyncExitStack() as stack:
        # Forked before there are threads or loops in it: a process of its own.
        nursery = stack.enter_context(Nursery())
        namespace = f"hammer-{secrets.token_hex(3)}"
        kubectl("create", "namespace", namespace)
        (folder / "cloud").mkdir()
        cloud = SimCloud(folder / "cloud", *FAST)
        cloud.start()
        stack.callback(cloud.stop)
        trust = ssl.create_default_context(cafile=str(plane.ca))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                plane.url,
                connector=aiohttp.TCPConnector(ssl=trust, limit=0),
                headers={"Authorization": f"Bearer {plane.token}"},
                timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS),
            )
        )
        api, began_at = Api(session), time.time()
        witness = Witness(plane.url, plane.token, trust)
        await stack.enter_async_context(witness)
        tenants = {pool: cloud.tenant() for pool in PROVIDERS}
        witness.secrets = [spelling for tenant in tenants.values() for spelling in _spellings(tenant.key)]
        pulse = await stack.enter_async_context(Pulse(api, namespace, began_at))
        made = Stage(
            api=api,
            namespace=namespace,
            cloud=cloud,
            tenants=tenants,
            witness=witness,
            pulse=pulse,
            processes=_processes(nursery, plane, kubectl, namespace, folder, users),
            gateways=[],
            began_at=began_at,
            folder=folder,
        )
        made.gateways.extend(_url(one) for one in made.processes if one.program == GATEWAY)
        await _build(made)
        for one in made.processes:
            stack.push_async_callback(one.stop)
            one.start()
        yield made


def _processes(
    nursery: Nursery, plane: ControlPlane, kubectl: Kubectl, namespace: str, folder: Path, users: list[str]
) -> list[Kept]:
    """Everything that will be killed, with the rights that we ship and no others."""
    accounts = {
        program: account(kubectl, plane, namespace, f"vmpool-{program}", folder) for program in (OPERATOR, GATEWAY)
    }
    people = folder / "users"
    people.write_text("".join(f"{user}:{hash_password(user)}\n" for user in users))
    ports = _free_ports()
    made: list[Kept] = []
    for program, count in ((OPERATOR, OPERATORS), (GATEWAY, GATEWAYS)):
        for number in range(1, count + 1):
            name = f"{program}-{number}"
            environment = {
                "VMPOOL_KUBECONFIG": str(accounts[program]),
                "VMPOOL_WATCH_NAMESPACE": namespace,
                "VMPOOL_NAMESPACE": namespace,
            }
            if program == OPERATOR:
                environment |= OPERATOR_SETTINGS
            else:
                port = str(next(ports))
                environment |= GATEWAY_SETTINGS | {
                    "VMPOOL_GATEWAY_PORT": port,
                    "VMPOOL_GATEWAY_USERS_FILE": str(people),
                }
            made.append(Kept(name, program, nursery, folder / f"{name}.log", environment))
    return made


def _url(gateway: Kept) -> str:
    return f"http://127.0.0.1:{gateway.environment['VMPOOL_GATEWAY_PORT']}"


def _free_ports() -> Iterator[int]:
    for port in random.sample(PORTS, 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


def _spellings(secret: str) -> list[bytes]:
    return [secret.encode(), base64.b64encode(secret.encode())]


async def _build(made: Stage) -> None:
    """Make both pools with a provider each, and the queue that the one that fails writes to."""
    (await made.kind("deadletterqueues").create(thing("DeadLetterQueue", QUEUE, {"poison": {"failures": 0}}))).ok()
    for pool, more in ((WEB, {}), (FLAKY, {"deadLetterQueue": QUEUE})):
        provider, tenant = PROVIDERS[pool], made.tenants[pool]
        key = base64.b64encode(tenant.key.encode()).decode()
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": provider}, "data": {"apiKey": key}}
        (await made.api.kind("secrets", made.namespace, api="/api/v1").create(body)).ok()
        spec = {
            "type": "simulated",
            "config": {"endpoint": made.cloud.url},
            "secretRef": {"name": provider},
            "limits": {"operate": 8},
            "circuitBreaker": {"failures": 5, "pause": "1s"},
            "observe": {"interval": "1s"},
        }
        (await made.kind("vmproviders").create(thing("VMProvider", provider, spec))).ok()
        wanted: Json = {
            "replicas": 14 if pool == WEB else 4,
            "maxVMs": 80,
            "template": {"image": IMAGES[pool][0]},
            "providers": [{"name": provider}],
            # What has failed is looked at by nobody here, and goes soon.
            "limits": {"quarantined": 1},
            "recycle": {"quarantineTTL": "3s"},
            "readiness": {"timeout": "5s"},
            "retry": {"attempts": 2, "backoff": "100ms", "maxBackoff": "1s"},
            "claims": {"lifetime": "1m", "maxLifetime": "1h"},
            **more,
        }
        (await made.kind("vmpools").create(thing("VMPool", pool, wanted))).ok()
