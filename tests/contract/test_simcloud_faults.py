"""Every kind of fault does what it says, to whom it says, as often as it says."""

import asyncio
import http.client
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.clouds import SimCloud, Tenant
from tests.waiting import until
from vmpool.simcloud.faults import Occasion, Operation, Rule, Standing, draw


def status_of(simcloud: SimCloud, tenant: Tenant, path: str = "/v1/identity") -> int:
    return simcloud.call("GET", path, key=tenant.key)[0]


def alive(simcloud: SimCloud, tenant: Tenant) -> list[str]:
    machines = simcloud.ledger()["machines"]
    return [m["id"] for m in machines if m["tenant"] == tenant.name and m["state"] != "Gone"]


# --- what is answered ---------------------------------------------------------------------------------------------


def test_fail_before_has_no_effect(simcloud: SimCloud, tenant: Tenant) -> None:
    simcloud.fault("failBefore", {"operation": "create", "tenant": tenant.name}, count=1)
    status, error = simcloud.create(tenant, token="t")
    assert (status, error["error"]["code"]) == (500, "InternalError")
    assert alive(simcloud, tenant) == []
    assert simcloud.create(tenant, token="t")[0] == 201


def test_fail_after_commit_has_its_effect(simcloud: SimCloud, tenant: Tenant) -> None:
    simcloud.fault("failAfterCommit", {"operation": "create", "tenant": tenant.name}, status=504, count=1)
    assert simcloud.create(tenant, token="t")[0] == 504
    (machine_id,) = alive(simcloud, tenant)
    status, machine = simcloud.create(tenant, token="t")
    assert (status, machine["id"]) == (200, machine_id)


def test_reply_lost_has_its_effect(simcloud: SimCloud, tenant: Tenant) -> None:
    simcloud.fault("replyLost", {"operation": "create", "tenant": tenant.name}, count=1)
    with pytest.raises((OSError, http.client.HTTPException)):
        simcloud.create(tenant)
    (machine_id,) = alive(simcloud, tenant)
    simcloud.fault("replyLost", {"operation": "delete", "tenant": tenant.name}, count=1)
    with pytest.raises((OSError, http.client.HTTPException)):
        simcloud.call("DELETE", f"/v1/machines/{machine_id}", key=tenant.key)
    assert simcloud.state(tenant, machine_id) in {"Deleting", "Gone"}


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_status(simcloud: SimCloud, tenant: Tenant, status: int) -> None:
    simcloud.fault("status", {"operation": "list", "tenant": tenant.name}, status=status, count=1)
    assert status_of(simcloud, tenant, "/v1/machines") == status
    assert status_of(simcloud, tenant, "/v1/machines") == 200


def test_retry_after_is_a_header(simcloud: SimCloud, tenant: Tenant) -> None:
    simcloud.fault("status", {"operation": "identity", "tenant": tenant.name}, status=429, retryAfter=6.5)
    connection = http.client.HTTPConnection("127.0.0.1", simcloud.port)
    connection.request("GET", "/v1/identity", headers={"Authorization": f"Bearer {tenant.key}"})
    response = connection.getresponse()
    assert (response.status, response.headers["Retry-After"]) == (429, "7")
    connection.close()


@pytest.mark.parametrize(("when", "made"), [("before", 0), ("after", 1)])
def test_slow_is_late(simcloud: SimCloud, tenant: Tenant, when: str, made: int) -> None:
    simcloud.fault("slow", {"operation": "create", "tenant": tenant.name}, seconds=0.3, when=when)
    begun = time.time()
    machine_id = simcloud.made(tenant)
    assert time.time() - begun >= 0.3
    (machine,) = [m for m in simcloud.ledger()["machines"] if m["id"] == machine_id]
    assert (machine["createdAt"] - begun < 0.3) is bool(made)


@pytest.mark.parametrize(("when", "made"), [("before", 0), ("after", 1)])
async def test_hang_never_answers(simcloud: SimCloud, tenant: Tenant, when: str, made: int) -> None:
    rule = simcloud.fault("hang", {"operation": "create", "tenant": tenant.name}, when=when)
    body = b'{"name":"vm","hostname":"vm","image":"debian-12","cpus":1,"memoryMiB":64}'
    head = f"POST /v1/machines HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tenant.key}\r\n"
    with socket.create_connection(("127.0.0.1", simcloud.port)) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await until(lambda: fired(simcloud, rule) == 1, what="the request at the cloud")
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
    assert len(alive(simcloud, tenant)) == made
    assert status_of(simcloud, tenant) == 200, "the others are served"


def fired(simcloud: SimCloud, rule: int) -> int:
    return next(int(known["fired"]) for known in simcloud.faults() if known["id"] == rule)


# --- what becomes of machines -------------------------------------------------------------------------------------


async def test_fates_of_new_machines(simcloud: SimCloud, tenant: Tenant) -> None:
    def make(action: str, **fields: Any) -> str:
        simcloud.fault(action, {"operation": "create", "tenant": tenant.name}, count=1, **fields)
        return simcloud.made(tenant)

    never, failed = make("neverReady"), make("failStep")
    died, vanished = make("dieLater", seconds=0.1), make("vanish", seconds=0.1)
    healthy = simcloud.made(tenant)
    expected = {never: "Creating", failed: "Failed", died: "Failed", vanished: "Gone", healthy: "Running"}

    def states() -> dict[str, str]:
        return {machine_id: simcloud.state(tenant, machine_id) for machine_id in expected}

    await until(lambda: states() == expected, what="every fate")
    _, machine = simcloud.call("GET", f"/v1/machines/{failed}", key=tenant.key)
    assert machine["message"] == "step boot failed"


def test_vanish_of_a_machine_that_is_asked_for(simcloud: SimCloud, tenant: Tenant) -> None:
    machine_id = simcloud.made(tenant, name="web-1")
    simcloud.fault("vanish", {"operation": "get", "name": "web-*"}, count=1)
    assert simcloud.state(tenant, machine_id) == "Gone"
    assert simcloud.listed(tenant) == []


def test_never_gone_until_asked_again(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud()
    cloud.settings(deleteSeconds=0)
    tenant = cloud.tenant()
    machine_id = cloud.made(tenant)
    cloud.fault("neverGone", {"operation": "delete"}, count=1)
    path = f"/v1/machines/{machine_id}"
    assert cloud.call("DELETE", path, key=tenant.key)[0] == 202
    assert cloud.state(tenant, machine_id) == "Deleting"
    assert cloud.call("DELETE", path, key=tenant.key)[1]["state"] == "Gone"


def test_a_create_that_breaks_off_before_its_disk_leaves_nothing(simcloud: SimCloud, tenant: Tenant) -> None:
    simcloud.fault("failBefore", {"operation": "create", "step": "disk", "tenant": tenant.name}, count=1)
    assert simcloud.create(tenant, token="t")[0] == 500
    assert simcloud.listed(tenant) == []
    assert leaks(simcloud, tenant) == []


def test_a_create_that_broke_off_goes_on_with_its_token(simcloud: SimCloud, tenant: Tenant) -> None:
    simcloud.fault("failBefore", {"operation": "create", "step": "nic", "tenant": tenant.name}, count=1)
    assert simcloud.create(tenant, token="t", tags={"a": "b"})[0] == 500
    (broken,) = simcloud.listed(tenant, "tag=a=b")
    _, shown = simcloud.call("GET", f"/v1/machines/{broken}", key=tenant.key)
    assert (shown["state"], shown["message"]) == ("Failed", "the create broke off")
    assert leaks(simcloud, tenant) == []
    status, machine = simcloud.create(tenant, token="t", tags={"a": "b"})
    assert (status, machine["id"]) == (201, broken), "the retry goes on with the disk"
    assert simcloud.listed(tenant) == [broken]
    assert simcloud.state(tenant, broken) != "Failed"


def test_what_broke_off_is_not_counted_twice_when_it_goes_on(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud()
    tenant = cloud.tenant()
    cloud.settings(maxMachines={tenant.name: 1})
    cloud.fault("failBefore", {"operation": "create", "step": "nic"}, count=1)
    assert cloud.create(tenant, token="t")[0] == 500
    assert cloud.create(tenant, token="t")[0] == 201


def test_what_broke_off_can_be_deleted_and_is_gone_with_its_token(simcloud: SimCloud, tenant: Tenant) -> None:
    simcloud.fault("failBefore", {"operation": "create", "step": "nic", "tenant": tenant.name}, count=1)
    assert simcloud.create(tenant, token="t")[0] == 500
    (broken,) = simcloud.listed(tenant)
    assert simcloud.call("DELETE", f"/v1/machines/{broken}", key=tenant.key)[0] == 202
    assert simcloud.create(tenant, token="t")[0] in {200, 410}, "nothing is made of what is being deleted"
    assert leaks(simcloud, tenant) == []


@pytest.mark.parametrize("action", ["failAfterCommit", "replyLost"])
def test_a_create_that_breaks_off_after_its_nic(simcloud: SimCloud, tenant: Tenant, action: str) -> None:
    simcloud.fault(action, {"operation": "create", "step": "nic", "tenant": tenant.name}, count=1)
    if action == "replyLost":
        with pytest.raises((OSError, http.client.HTTPException)):
            simcloud.create(tenant)
    else:
        assert simcloud.create(tenant)[0] == 500
    (broken,) = simcloud.listed(tenant)
    assert simcloud.state(tenant, broken) == "Failed"
    assert leaks(simcloud, tenant) == []


def leaks(simcloud: SimCloud, tenant: Tenant) -> list[dict[str, Any]]:
    return [leak for leak in simcloud.ledger()["leaked"] if leak["tenant"] == tenant.name]


def test_a_slow_step_delays_the_boot_not_the_answer(simcloud: SimCloud, tenant: Tenant) -> None:
    simcloud.fault("slow", {"operation": "create", "step": "disk", "tenant": tenant.name}, seconds=500)
    machine_id = simcloud.made(tenant)
    (machine,) = [m for m in simcloud.ledger()["machines"] if m["id"] == machine_id]
    assert machine["bootAt"] - machine["createdAt"] > 500


# --- listings -----------------------------------------------------------------------------------------------------


async def test_list_lag_hides_the_young_from_lists_only(simcloud: SimCloud, tenant: Tenant) -> None:
    simcloud.fault("listLag", {"operation": "list", "tenant": tenant.name}, seconds=0.5)
    machine_id = simcloud.made(tenant, tags={"a": "b"})
    assert simcloud.listed(tenant) == []
    assert simcloud.listed(tenant, "tag=a=b") == []
    assert simcloud.state(tenant, machine_id) != "Gone"
    await until(lambda: simcloud.listed(tenant, "tag=a=b") == [machine_id], what="the listing")


def test_empty_and_partial_lists(simcloud: SimCloud, tenant: Tenant) -> None:
    ids = [simcloud.made(tenant) for _ in range(3)]
    where = {"operation": "list", "tenant": tenant.name}
    simcloud.fault("emptyList", where, count=1)
    simcloud.fault("partialList", where, count=1)
    answers = [simcloud.call("GET", "/v1/machines?limit=2", key=tenant.key)[1] for _ in range(3)]
    shown = [([m["id"] for m in answer["machines"]], answer["next"] is None) for answer in answers]
    assert shown == [([], True), (ids[:2], True), (ids[:2], False)]


# --- whom and how often -------------------------------------------------------------------------------------------


def test_globs_choose_machines(simcloud: SimCloud, tenant: Tenant) -> None:
    matching = {"name": "db-*", "image": "sim/*", "tags": {"pool": "team/*"}}
    simcloud.fault("status", {"operation": "create", "tenant": tenant.name, **matching}, status=503)
    hit: dict[str, Any] = {"name": "db-1", "image": "sim/x", "tags": {"pool": "team/a"}}
    assert simcloud.create(tenant, **hit)[0] == 503
    misses: list[dict[str, Any]] = [{"name": "web-1"}, {"image": "debian-12"}, {"tags": {"pool": "x"}}, {"tags": {}}]
    for miss in misses:
        assert simcloud.create(tenant, **{**hit, **miss})[0] == 201


def test_a_tag_glob_needs_the_tag(simcloud: SimCloud, tenant: Tenant) -> None:
    finds = {"operation": "list", "tenant": tenant.name, "tags": {"vmpool-uid": "*"}}
    simcloud.fault("status", finds, status=503)
    assert status_of(simcloud, tenant, "/v1/machines?tag=vmpool-install=i") == 200
    assert status_of(simcloud, tenant, "/v1/machines?tag=vmpool-uid=u&tag=vmpool-install=i") == 503


def test_adopt_is_putting_tags(simcloud: SimCloud, tenant: Tenant) -> None:
    machine_id = simcloud.made(tenant)
    simcloud.fault("status", {"operation": "adopt", "tenant": tenant.name}, status=503)
    path = f"/v1/machines/{machine_id}/tags"
    assert simcloud.call("PUT", path, {"tags": {"a": "b"}}, key=tenant.key)[0] == 503


def test_rules_go_one_by_one(simcloud: SimCloud, tenant: Tenant) -> None:
    rules = [simcloud.fault("status", {"tenant": tenant.name}, status=status) for status in (502, 503)]
    assert status_of(simcloud, tenant) == 502
    assert simcloud.call("DELETE", f"/v1/faults/{rules[0]}")[0] == 204
    assert simcloud.call("DELETE", f"/v1/faults/{rules[0]}")[0] == 404
    assert status_of(simcloud, tenant) == 503
    simcloud.clear_faults()
    assert status_of(simcloud, tenant) == 200


@pytest.mark.parametrize(
    "rule",
    [
        {"action": "explode"},
        {"action": "status"},
        {"action": "slow"},
        {"action": "listLag", "seconds": 1, "match": {"operation": "create"}},
        {"action": "neverReady", "match": {"operation": "delete"}},
        {"action": "failBefore", "match": {"operation": "get", "step": "disk"}},
        {"action": "hang", "match": {"operation": "create", "step": "disk"}},
        {"action": "failBefore", "surprise": 1},
    ],
)
def test_rules_that_make_no_sense_are_refused(simcloud: SimCloud, rule: dict[str, Any]) -> None:
    status, error = simcloud.call("POST", "/v1/faults", rule)
    assert (status, error["error"]["code"]) == (422, "InvalidRequest")


def run(rule: Rule, times: int) -> list[bool]:
    standing, fires = Standing(1, rule), []
    for _ in range(times):
        drawn = draw([standing], Occasion(Operation.GET, "t"))
        (standing,) = drawn.changed
        fires.append(drawn.fired is not None)
    assert (standing.seen, standing.fired) == (times, sum(fires))
    return fires


@given(skip=st.integers(0, 20), count=st.none() | st.integers(1, 20), times=st.integers(0, 50))
def test_skip_and_count(skip: int, count: int | None, times: int) -> None:
    fires = run(Rule(action="hang", skip=skip, count=count), times)
    assert fires == [skip <= n and (count is None or n < skip + count) for n in range(times)]


@given(probability=st.floats(0, 1), seed=st.integers())
def test_probability_is_repeatable(probability: float, seed: int) -> None:
    rule = Rule(action="hang", probability=probability, seed=seed)
    assert run(rule, 30) == run(rule, 30)
    if probability in {0, 1}:
        assert set(run(rule, 30)) == {bool(probability)}


def test_probability_is_about_right() -> None:
    assert 400 < sum(run(Rule(action="hang", probability=0.5, seed=1), 1000)) < 600


async def test_counts_hold_under_concurrency(simcloud: SimCloud, tenant: Tenant) -> None:
    simcloud.fault("status", {"operation": "identity", "tenant": tenant.name}, status=503, count=7)
    statuses = await asyncio.gather(
        *(asyncio.to_thread(status_of, simcloud, tenant) for _ in range(30)),
    )
    assert sorted(statuses) == [200] * 23 + [503] * 7


def test_the_truth_about_one_tenant_is_that_and_no_more(make_simcloud: Callable[..., SimCloud]) -> None:
    cloud = make_simcloud()
    mine, theirs = cloud.tenant(), cloud.tenant()
    kept = cloud.made(mine)
    cloud.made(theirs)
    truth = cloud.ledger(tenant=mine.name)
    assert [machine["id"] for machine in truth["machines"]] == [kept]
    assert (truth["made"], truth["alive"]) == (1, 1)
    assert set(truth["highWater"]) == {mine.name}
    assert cloud.ledger()["made"] == 2
    assert cloud.ledger(tenant="nobody")["machines"] == []
