"""The simulated cloud is killed, again and again, and nothing that it answered is lost."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from tests.clouds import SimCloud
from tests.contract.test_simulated import open_provider, request
from tests.waiting import until
from vmpool.providers.errors import Unavailable
from vmpool.simcloud.ledger import Ledger


def restart(cloud: SimCloud) -> None:
    cloud.kill()
    cloud.start()


async def test_everything_survives_a_kill(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud()
    tenant = cloud.tenant()
    kept = cloud.made(tenant, token="t1", tags={"a": "b"})
    vanished = cloud.made(tenant, token="t2")
    cloud.fate(vanished, "vanish")
    await until(lambda: cloud.state(tenant, kept) == "Running", what="the boot")
    rule = cloud.fault("status", {"operation": "identity"}, status=503, skip=1, count=2)
    assert cloud.call("GET", "/v1/identity", key=tenant.key)[0] == 200
    assert cloud.call("GET", "/v1/identity", key=tenant.key)[0] == 503
    cloud.settings(maxMachines={tenant.name: 1}, createSeconds={"boot": 7})
    before, settings = cloud.ledger(), cloud.settings()

    restart(cloud)

    after = cloud.ledger()
    for truth in (before, after):
        del truth["now"], truth["requests"]
    assert after == before
    assert cloud.settings() == settings
    assert cloud.listed(tenant, "tag=a=b") == [kept]
    assert cloud.create(tenant, token="t1", tags={"a": "b"})[1]["id"] == kept
    assert cloud.create(tenant, token="t2")[0] == 410
    assert [(known["id"], known["seen"], known["fired"]) for known in cloud.faults()] == [(rule, 2, 1)]
    assert cloud.call("GET", "/v1/identity", key=tenant.key)[0] == 503, "once more"
    assert cloud.call("GET", "/v1/identity", key=tenant.key)[0] == 200, "its count is used up"


async def test_timelines_go_on_while_the_cloud_is_down(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud("--boot-seconds=0.5", "--delete-seconds=0.5")
    tenant = cloud.tenant()
    booting, doomed = cloud.made(tenant), cloud.made(tenant)
    cloud.call("DELETE", f"/v1/machines/{doomed}", key=tenant.key)
    due = max(machine["bootAt"] for machine in cloud.ledger()["machines"]) + 0.5
    cloud.kill()
    await until(lambda: time.time() > due, what="the moment when all is done")
    cloud.start()
    assert cloud.state(tenant, booting) == "Running"
    assert cloud.state(tenant, doomed) == "Gone"


async def test_a_deletion_in_progress_survives(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud("--delete-seconds=86400")
    tenant = cloud.tenant()
    machine_id = cloud.made(tenant)
    cloud.call("DELETE", f"/v1/machines/{machine_id}", key=tenant.key)
    restart(cloud)
    assert cloud.state(tenant, machine_id) == "Deleting"


async def test_killed_in_the_middle_of_creates(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud()
    tenant = cloud.tenant()
    provider = open_provider(cloud.url, tenant.key)
    answered: dict[str, str] = {}
    lost: set[str] = set()

    async def ensure(number: int) -> None:
        want = request(f"token-{number}", f"vm-{number}")
        try:
            answered[want.token] = (await provider.ensure(want)).id
        except Unavailable:
            lost.add(want.token)
        if len(answered) == 100 and not lost:
            lost.add("killed")
            cloud.kill()

    await asyncio.gather(*(ensure(number) for number in range(400)))
    lost.discard("killed")
    assert lost, "the kill came too late to prove anything"
    cloud.start()
    there = {machine["token"]: machine["id"] for machine in cloud.ledger()["machines"]}
    assert answered.items() <= there.items()
    for number in range(400):
        machine = await provider.ensure(request(f"token-{number}", f"vm-{number}"))
        assert there.setdefault(f"token-{number}", machine.id) == machine.id
    await provider.close()
    truth = cloud.ledger(machines=False)
    assert (truth["made"], truth["owners"]["severalEver"], truth["leaked"]) == (400, [], [])


async def test_the_ledger_of_a_dead_cloud_can_be_read(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud()
    machine_id = cloud.made(cloud.tenant())
    cloud.kill()
    database = sqlite3.connect(cloud.ledger_file)
    assert database.execute("SELECT id FROM machines").fetchall() == [(machine_id,)]
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_a_lost_ledger_of_a_given_id_is_the_same_cloud_without_machines(tmp_path: Path) -> None:
    named = Ledger(tmp_path / "one.sqlite", "house")
    named.close()
    again = Ledger(tmp_path / "one.sqlite", "another")
    assert again.id == "house", "a ledger stays who it is"
    again.close()
    lost = Ledger(tmp_path / "two.sqlite", "house")
    assert lost.id == "house"
    lost.close()
    unnamed = [Ledger(tmp_path / f"{number}.sqlite") for number in range(2)]
    assert unnamed[0].id != unnamed[1].id
    for ledger in unnamed:
        ledger.close()
