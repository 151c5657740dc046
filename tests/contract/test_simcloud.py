"""The simulated cloud's API: machines, tenants, tokens, paging, quota, settings and the ledger as a witness."""

import http.client
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clouds import SimCloud, Tenant
from tests.waiting import until


async def test_a_machine_boots_and_goes(simcloud: SimCloud, tenant: Tenant) -> None:
    status, made = simcloud.create(tenant, name="web", tags={"a": "b"}, parameters={"net": "blue"})
    assert status == 201
    assert made["state"] == "Creating"
    assert made["addresses"] == []
    assert made["hardware"]["parameters"] == {"net": "blue"}
    machine_id = made["id"]
    assert machine_id.startswith("sim-")

    await until(lambda: simcloud.state(tenant, machine_id) == "Running", what="the boot")
    _, running = simcloud.call("GET", f"/v1/machines/{machine_id}", key=tenant.key)
    assert running["ready"] is True
    assert running["addresses"][0].startswith("127.")

    status, deleting = simcloud.call("DELETE", f"/v1/machines/{machine_id}", key=tenant.key)
    assert (status, deleting["state"]) == (202, "Deleting")
    await until(lambda: simcloud.state(tenant, machine_id) == "Gone", what="the deletion")
    status, error = simcloud.call("DELETE", f"/v1/machines/{machine_id}", key=tenant.key)
    assert (status, error["error"]["code"]) == (404, "MachineNotFound")


async def test_the_console_tells_what_has_happened_so_far(simcloud: SimCloud, tenant: Tenant) -> None:
    machine_id = simcloud.made(tenant)

    def printed() -> str:
        status, answer = simcloud.call("GET", f"/v1/machines/{machine_id}/console", key=tenant.key)
        assert status == 200
        return str(answer["console"])

    assert "firmware" in printed()
    await until(lambda: "login:" in printed(), what="the boot")
    simcloud.fault("neverReady", {"operation": "create", "tenant": tenant.name})
    machine_id = simcloud.made(tenant)
    await until(lambda: "no answer to any request" in printed(), what="a boot that does not end")
    other = simcloud.tenant()
    status, error = simcloud.call("GET", f"/v1/machines/{machine_id}/console", key=other.key)
    assert (status, error["error"]["code"]) == (404, "MachineNotFound")


async def test_power(simcloud: SimCloud, tenant: Tenant) -> None:
    machine_id = simcloud.made(tenant)
    await until(lambda: simcloud.state(tenant, machine_id) == "Running", what="the boot")
    for power, state in (("off", "Stopped"), ("on", "Running")):
        path = f"/v1/machines/{machine_id}/power"
        status, machine = simcloud.call("POST", path, {"power": power}, key=tenant.key)
        assert (status, machine["state"]) == (200, state)


async def test_addresses_are_unique(simcloud: SimCloud, tenant: Tenant) -> None:
    ids = [simcloud.made(tenant) for _ in range(20)]
    await until(lambda: simcloud.state(tenant, ids[-1]) == "Running", what="the boot")
    _, page = simcloud.call("GET", "/v1/machines", key=tenant.key)
    assert len({machine["addresses"][0] for machine in page["machines"]}) == 20


def test_an_empty_ledger_has_the_demo_tenant(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud()
    status, answer = cloud.call("GET", "/v1/identity", key="demo-key")
    assert (status, answer["identity"]) == (200, f"{cloud.ledger()['id']}/demo")


def test_tenants_see_only_their_own(simcloud: SimCloud, tenant: Tenant) -> None:
    other = simcloud.tenant()
    machine_id = simcloud.made(tenant)
    path = f"/v1/machines/{machine_id}"
    assert simcloud.listed(other) == []
    assert simcloud.state(other, machine_id) == "Gone"
    assert simcloud.call("DELETE", path, key=other.key)[0] == 404
    assert simcloud.call("PUT", f"{path}/tags", {"tags": {"mine": "now"}}, key=other.key)[0] == 404
    assert simcloud.call("POST", f"{path}/power", {"power": "off"}, key=other.key)[0] == 404
    assert simcloud.listed(tenant) == [machine_id]
    identities = {simcloud.call("GET", "/v1/identity", key=who.key)[1]["identity"] for who in (tenant, other)}
    assert len(identities) == 2


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/identity"),
        ("POST", "/v1/machines"),
        ("GET", "/v1/machines"),
        ("GET", "/v1/machines/sim-1"),
        ("DELETE", "/v1/machines/sim-1"),
        ("PUT", "/v1/machines/sim-1/tags"),
        ("POST", "/v1/machines/sim-1/power"),
        ("GET", "/v1/ledger"),
        ("POST", "/v1/faults"),
        ("PUT", "/v1/settings"),
        ("PUT", "/v1/tenants/me"),
        ("POST", "/v1/ledger/sim-1/vanish"),
    ],
)
def test_an_unknown_key_opens_nothing(simcloud: SimCloud, method: str, path: str) -> None:
    status, error = simcloud.call(method, path, {}, key="unknown")
    assert (status, error["error"]["code"]) == (401, "Unauthorized")


def test_a_tenants_key_is_not_the_admins(simcloud: SimCloud, tenant: Tenant) -> None:
    assert simcloud.call("GET", "/v1/ledger", key=tenant.key)[0] == 401
    assert simcloud.call("GET", "/v1/machines")[0] == 401, "the admin is no tenant"


def test_a_token_makes_one_machine_for_ever(simcloud: SimCloud, tenant: Tenant) -> None:
    status, first = simcloud.create(tenant, token="t1")
    assert status == 201
    status, second = simcloud.create(tenant, token="t1")
    assert (status, second["id"]) == (200, first["id"])
    status, error = simcloud.create(tenant, token="t1", cpus=2)
    assert (status, error["error"]["code"]) == (409, "TokenReused")
    simcloud.fate(first["id"], "vanish")
    status, error = simcloud.create(tenant, token="t1")
    assert (status, error["error"]["code"]) == (410, "TokenSpent")
    assert simcloud.create(simcloud.tenant(), token="t1")[0] == 201, "tokens belong to a tenant"


def test_without_token_every_create_is_a_machine(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud()
    tenant = cloud.tenant()
    assert cloud.made(tenant) != cloud.made(tenant)
    cloud.settings(tokenMode="none")
    status, error = cloud.create(tenant, token="t1")
    assert (status, error["error"]["code"]) == (400, "TokenUnsupported")
    assert cloud.create(tenant)[0] == 201


def test_unknown_image_is_named_with_the_known(simcloud: SimCloud, tenant: Tenant) -> None:
    status, error = simcloud.create(tenant, image="windows-95")
    assert (status, error["error"]["code"]) == (422, "UnknownImage")
    assert "windows-95" in error["error"]["message"]
    assert "debian-12" in error["error"]["message"]
    assert simcloud.create(tenant, image="sim/anything")[0] == 201


@pytest.mark.parametrize("fields", [{"cpus": 0}, {"surprise": 1}, {"name": ""}, {"tags": {"a": 1}}])
def test_a_wrong_field_is_named(simcloud: SimCloud, tenant: Tenant, fields: dict[str, object]) -> None:
    status, error = simcloud.create(tenant, **fields)
    assert (status, error["error"]["code"]) == (422, "InvalidRequest")
    assert next(iter(fields)) in error["error"]["message"]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "page=x", "page=YQ==", "tag=x", "tag=%3Dx"])
def test_a_wrong_query_is_refused(simcloud: SimCloud, tenant: Tenant, query: str) -> None:
    assert simcloud.call("GET", f"/v1/machines?{query}", key=tenant.key)[0] == 400


def test_quota(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud()
    tenant = cloud.tenant()
    cloud.settings(maxMachines={tenant.name: 2}, deleteSeconds=0)
    first = cloud.made(tenant)
    cloud.made(tenant)
    status, error = cloud.create(tenant)
    assert (status, error["error"]["code"]) == (403, "QuotaExceeded")
    cloud.made(cloud.tenant())
    status, gone = cloud.call("DELETE", f"/v1/machines/{first}", key=tenant.key)
    assert (status, gone["state"]) == (200, "Gone")
    cloud.made(tenant)


def test_paging_is_complete_under_deletes(simcloud: SimCloud, tenant: Tenant) -> None:
    ids = [simcloud.made(tenant, tags={"of": "me", "n": str(n % 2)}) for n in range(30)]
    doomed, kept = ids[::3], [machine_id for n, machine_id in enumerate(ids) if n % 3]
    seen: list[str] = []
    page = ""
    while True:
        _, answer = simcloud.call("GET", f"/v1/machines?limit=4&tag=of=me{page}", key=tenant.key)
        seen += [machine["id"] for machine in answer["machines"]]
        for _ in range(2):  # machines vanish before and behind the page at hand
            if doomed:
                simcloud.fate(doomed.pop(len(doomed) // 2), "vanish")
        if answer["next"] is None:
            break
        page = f"&page={answer['next']}"
    assert [machine_id for machine_id in seen if machine_id in kept] == kept
    assert len(set(seen)) == len(seen)


def test_listing_filters_by_every_tag(simcloud: SimCloud, tenant: Tenant) -> None:
    both = simcloud.made(tenant, tags={"a": "1", "b": "2"})
    simcloud.made(tenant, tags={"a": "1"})
    assert simcloud.listed(tenant, "tag=a=1&tag=b=2") == [both]
    path = f"/v1/machines/{both}/tags"
    _, machine = simcloud.call("PUT", path, {"tags": {"b": "3", "c": "x=y"}}, key=tenant.key)
    assert machine["tags"] == {"a": "1", "b": "3", "c": "x=y"}
    assert simcloud.listed(tenant, "tag=b=2") == []
    assert simcloud.listed(tenant, "tag=c=x=y") == [both]


def test_delete_precondition(simcloud: SimCloud, tenant: Tenant) -> None:
    machine_id = simcloud.made(tenant, tags={"owner": "you"})
    path = f"/v1/machines/{machine_id}"
    status, error = simcloud.call("DELETE", f"{path}?ifTag=owner=me", key=tenant.key)
    assert (status, error["error"]["code"]) == (412, "PreconditionFailed")
    assert simcloud.state(tenant, machine_id) != "Gone"
    assert simcloud.call("DELETE", f"{path}?ifTag=owner=you", key=tenant.key)[0] == 202


def test_build_slots_queue_creates(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud("--boot-seconds=100", "--disk-seconds=0", "--nic-seconds=0", "--build-slots=2")
    tenant = cloud.tenant()
    for _ in range(5):
        cloud.made(tenant)
    boots = [machine["bootAt"] - machine["createdAt"] for machine in cloud.ledger()["machines"]]
    assert [round(seconds, -1) for seconds in boots] == [100, 100, 200, 200, 300]


def test_high_water_and_owners(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud()
    cloud.settings(deleteSeconds=0)
    tenant = cloud.tenant()

    def made(pool: str, uid: str) -> str:
        return cloud.made(tenant, tags={"vmpool-pool": pool, "vmpool-uid": uid})

    def gone(machine_id: str) -> None:
        assert cloud.call("DELETE", f"/v1/machines/{machine_id}", key=tenant.key)[0] == 200

    first, second = made("red", "u1"), made("red", "u2")
    made("blue", "u3")
    gone(first)
    gone(second)
    made("red", "u1")  # again, after the first one has gone
    truth = cloud.ledger()
    assert truth["highWater"][tenant.name] == {"machines": 3, "pools": {"red": 2, "blue": 1}}
    assert truth["owners"] == {"severalEver": ["u1"], "severalAtOnce": []}
    made("blue", "u3")
    assert cloud.ledger()["owners"] == {"severalEver": ["u1", "u3"], "severalAtOnce": ["u3"]}
    assert (truth["made"], truth["alive"]) == (4, 2)
    assert truth["requests"] == {"create": 4, "delete": 2}


def test_ledger_remembers_what_is_gone(simcloud: SimCloud, tenant: Tenant) -> None:
    machine_id = simcloud.made(tenant, token="t", tags={"a": "b"})
    simcloud.fate(machine_id, "vanish")
    (told,) = [machine for machine in simcloud.ledger()["machines"] if machine["id"] == machine_id]
    assert told["state"] == "Gone"
    assert told["endedBy"] == "vanished"
    assert told["deleteAt"] is None
    assert told["goneAt"] >= told["createdAt"]
    assert (told["token"], told["tags"]) == ("t", {"a": "b"})
    simcloud.fate(machine_id, "revive")
    assert simcloud.state(tenant, machine_id) != "Gone"
    simcloud.fate(machine_id, "fail")
    assert simcloud.state(tenant, machine_id) == "Failed"


def test_health_needs_no_key_and_errors_are_json(simcloud: SimCloud) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", simcloud.port)
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    connection.close()
    assert simcloud.call("GET", "/v2/nothing")[1]["error"]["code"] == "NotFound"
    status, error = simcloud.call("PUT", "/v1/settings", {"deleteSeconds": -1})
    assert (status, error["error"]["code"]) == (422, "InvalidRequest")


@pytest.mark.parametrize("flag", ["--tenant=my-secret-key", "--tenant==my-secret-key", "--boot-seconds=1e9"])
def test_wrong_flags_are_refused_without_repeating_keys(tmp_path: Path, flag: str) -> None:
    cloud = SimCloud(tmp_path, flag)
    with pytest.raises(AssertionError, match="did not start") as caught:
        cloud.start()
    cloud.stop()
    assert "Invalid value" in str(caught.value)
    assert "my-secret-key" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_without_admin_key_there_is_no_admin(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud("--admin-key=")
    assert cloud.call("GET", "/v1/ledger", key="")[0] == 404
