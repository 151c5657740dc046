"""All that an operator does, as its users make it do it."""

import asyncio
import base64
import itertools
import secrets
from collections.abc import Callable
from datetime import timedelta

from tests.clouds import SimCloud
from tests.crash.site import PROVIDER, Site
from tests.faults.rig.trial import Scenario
from tests.faults.scenarios import SCENARIOS
from tests.faults.scenarios.policies import CALM
from tests.faults.scenarios.users import ask, bound, put, wait
from tests.planes import leave
from tests.rights.asked import Witnessed
from tests.rights.grants import Right
from tests.rights.house import House
from tests.waiting import until
from vmpool.api import keys
from vmpool.kube.client import Client
from vmpool.kube.events import EventRecorder, EventSettings, ObjectRef

AT_ONCE = 3
SCENARIO_SECONDS = 240.0
CONFLICT_SECONDS = 60.0


async def place(house: House, cloud: SimCloud, namespace: str = "") -> Site:
    """A namespace with a tenant of its own; the present one if a name is given."""
    made = namespace or f"r-{secrets.token_hex(4)}"
    if not namespace:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": made}}
        (await house.api.call("POST", "/api/v1/namespaces", body)).ok()
    return Site(house.api, made, cloud, await asyncio.to_thread(cloud.tenant), endpoint=cloud.url)


async def every_scenario(house: House, cloud: SimCloud) -> None:
    """Live through the scenarios of the fault trials, with nothing going wrong but what they break themselves."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(scenario: Scenario) -> None:
        async with turns:
            site = await place(house, cloud)
            async with asyncio.timeout(SCENARIO_SECONDS):
                await scenario.run(site)
            await asyncio.to_thread(leave, house.plane, site.namespace)

    await asyncio.gather(*map(one, SCENARIOS.values()))


async def claims_that_end(house: House, cloud: SimCloud) -> None:
    """A claim is served, ends, and its object goes when its time is up."""
    site = await place(house, cloud)
    await site.build(1)
    await site.full(1)
    name = await ask(site)
    await bound(site, name)
    claims = site.api.kind("vmclaims", site.namespace)
    await put(site, "vmclaims", "VMClaim", "brief", requests=[{"pool": "nowhere"}], ttlAfterFinished="0s")

    async def removed() -> bool:
        return (await claims.get("brief")).status == 404

    await wait(removed, "a claim that failed is removed")
    (await claims.delete(name)).ok()
    await site.full(1)
    await site.drain()
    await site.drained()


async def another_key(house: House, cloud: SimCloud) -> None:
    """The provider's credentials change: in their Secret, and then to another Secret."""
    site = await place(house, cloud)
    await site.build(1)
    await site.full(1)
    secret = {"apiVersion": "v1", "kind": "Secret"}
    data = {"data": {"apiKey": base64.b64encode(site.tenant.key.encode()).decode()}}
    kind = site.api.kind("secrets", site.namespace, api="/api/v1")
    (await kind.merge(PROVIDER, {"metadata": {"annotations": {"rotated": "yes"}}, **data})).ok()
    (await kind.create({**secret, "metadata": {"name": "second"}, **data})).ok()
    (await site.providers.merge(PROVIDER, {"spec": {"secretRef": {"name": "second"}}})).ok()

    async def held() -> bool:
        meta = [(await kind.get(name)).ok()["metadata"] for name in (PROVIDER, "second")]
        return [bool(one.get("finalizers")) for one in meta] == [False, True]

    await wait(held, "the other Secret is held, and the first one is not")
    await site.drain()
    await site.drained()


async def letters_for_a_bucket(house: House, cloud: SimCloud) -> None:
    """Dead letters are to go into a bucket whose keys are in a Secret; nobody answers there, and that is said."""
    site = await place(house, cloud)
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bucket"}}
    kind = site.api.kind("secrets", site.namespace, api="/api/v1")
    (await kind.create({**body, "stringData": {"accessKeyId": "someone", "secretAccessKey": "something"}})).ok()
    s3 = {"endpoint": "http://127.0.0.1:1", "bucket": "failures", "secretRef": {"name": "bucket"}}
    await put(site, "deadletterqueues", "DeadLetterQueue", "failures", ttl="1s", archive={"s3": s3})
    site.fault("failBefore", "create", count=2)
    retry = {"attempts": 1, "backoff": "100ms", "maxBackoff": "1s"}
    await site.build(1, deadLetterQueue="failures", retry=retry)
    queues = site.api.kind("deadletterqueues", site.namespace)

    async def said() -> bool:
        conditions = (await queues.get("failures")).ok().get("status", {}).get("conditions", ())
        return any(one["type"] == "Archiving" and one["status"] == "False" for one in conditions)

    await wait(said, "the bucket is known to be out of reach")
    assert any(
        one.right.covers(Right("", "secrets", "get", "bucket")) and one.namespace == site.namespace
        for one in house.requests("operator")
    ), "nobody has read the keys"


async def lost_races(house: House, cloud: SimCloud) -> None:
    """People change objects faster than the operator can write their status: it looks what has become of them."""
    site = await place(house, cloud)
    await site.build(1, purgePolicy="stale", healthPolicy="fleet")
    await put(site, "deadletterqueues", "DeadLetterQueue", "failures")
    await put(site, "purgepolicies", "PurgePolicy", "stale", **CALM)
    await put(site, "healthpolicies", "HealthPolicy", "fleet")
    changes = {
        ("deadletterqueues", "failures"): lambda number: {"ttl": f"{number}h"},
        ("purgepolicies", "stale"): lambda number: {"interval": f"{number}m"},
        ("healthpolicies", "fleet"): lambda number: {"interval": f"{number % 50 + 10}m"},
    }
    for (plural, name), spec in changes.items():
        await _outrun(house, site, plural, name, spec)
    await site.full(1)
    await site.drain()
    await site.drained()


async def _outrun(house: House, site: Site, plural: str, name: str, spec: Callable[[int], dict[str, str]]) -> None:
    """Change an object again and again, several people at once, until the operator has had to read it anew."""
    right = Right(keys.GROUP, plural, "get", name)
    numbers, objects = itertools.count(1), site.api.kind(plural, site.namespace)

    async def change() -> None:
        while True:
            (await objects.merge(name, {"spec": spec(next(numbers) % 100 + 1)})).ok()

    people = [asyncio.create_task(change()) for _ in range(3)]
    try:

        def had_to() -> bool:
            for one in people:
                if one.done():
                    one.result()
            return any(one.right == right and one.namespace == site.namespace for one in house.requests("operator"))

        await until(had_to, deadline=CONFLICT_SECONDS, what=f"the operator asks for {plural} {name}")
    finally:
        for one in people:
            one.cancel()
        await asyncio.gather(*people, return_exceptions=True)


async def events_that_go_on(house: House, _: SimCloud) -> None:
    """What happens again is counted in the event that is there.

    An operator does so after five minutes at the earliest. Here its recorder, with its account, is less patient.
    """
    settings = EventSettings(patch_every=timedelta(seconds=0.1))
    ref = ObjectRef("v1", "Namespace", house.namespace, house.namespace, "uid-of-namespace")
    async with await Client.from_kubeconfig(house.account("operator")) as client:
        recorder = EventRecorder(client, "vmpool", "tests", settings)
        recorder.emit(ref, "Normal", "Again", "it happens")
        await recorder.drain()
        recorder.emit(ref, "Normal", "Again", "it happens")

        async def counted() -> bool:
            await recorder.drain()
            items = (await house.api.kind("events", house.namespace, api="/api/v1").list()).ok()["items"]
            return [one["count"] for one in items if one["reason"] == "Again"] == [2]

        await until(counted, what="the event is counted")
        assert recorder.refused == 0


async def a_vm(house: House, cloud: SimCloud) -> Witnessed:
    """Return a PooledVM as the operator has made it."""
    site = await place(house, cloud)
    await site.build(1)
    await site.full(1)
    return Witnessed("pooledvms", (await site.objects())[0])


async def two_leaders(house: House) -> None:
    """The leader is killed and another one takes over; the third is told to stop and lets go."""
    first, second = house.operator(), house.operator()

    def leader() -> list[object]:
        return [one for one in (first, second) if one.running and '"engine_ready"' in one.lines()]

    await until(leader, deadline=60, what="one of them leads")
    (leads,) = leader()
    other = second if leads is first else first
    leads.kill()  # type: ignore[attr-defined]
    await other.ready(60)
    third = house.operator()
    await until(lambda: '"operator_starts"' in third.lines(), deadline=60, what="the third waits")
    other.stop()
    await third.ready(60)


DOINGS = (
    every_scenario,
    claims_that_end,
    another_key,
    letters_for_a_bucket,
    lost_races,
    events_that_go_on,
)
