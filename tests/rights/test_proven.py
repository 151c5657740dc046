"""The rights of the chart's roles are those that are used: none is missing, and none is left over."""

import asyncio
import subprocess
import sys

import pytest
import yaml

from tests.chart.helm import one
from tests.clouds import SimCloud
from tests.rest import rest_client
from tests.rights import asked, doings, visits
from tests.rights.grants import Granted, Right, deficit, surplus
from tests.rights.house import House
from vmpool.api import keys

pytestmark = pytest.mark.control_plane

MANY = 150
"""Fewer requests than that are no life of anything."""


async def test_the_operator(house: House, simcloud: SimCloud) -> None:
    await house.install({"gateway": {"enabled": False}, "simcloud": {"enabled": False}})
    await doings.two_leaders(house)
    await asyncio.gather(*(doing(house, simcloud) for doing in doings.DOINGS))
    judge(house, "operator", asked.OPERATORS)
    await asked.needed(house, "operator", await doings.a_vm(house, simcloud), asked.OPERATORS)


async def test_the_gateway(house: House, simcloud: SimCloud) -> None:
    await house.install({"simcloud": {"enabled": False}})
    visits.empty_key(house)
    await house.operator().ready(60)
    site = await doings.place(house, simcloud, house.namespace)
    await site.build(2)
    login = visits.make_reader(house)
    gateway = house.gateway(**visits.KUBERNETES)
    await gateway.ready(60)
    async with rest_client(gateway.url) as rest:
        token = await visits.tokens(house, rest, login)
        await visits.checkouts(rest, token)
        await visits.nobodys(site, rest, token)
        claim = await visits.on_demand(site, rest, token)
        await visits.without_answer(house, token)
    judge(house, "gateway", asked.GATEWAYS)
    await asked.needed(house, "gateway", claim, asked.GATEWAYS)
    # Only with this setting the account has the right to change pools, and only then it needs it.
    changing = {"simcloud": {"enabled": False}, "gateway": {"settings": {"configEndpoints": True}}}
    await house.install(changing, command="upgrade")
    await visits.configuration(house, token)
    judge(house, "gateway", asked.GATEWAYS)


async def test_the_pod_of_helm_test(house: House, simcloud: SimCloud) -> None:
    await house.install({"gateway": {"enabled": False}})
    await house.operator().ready(60)
    hooks = [each for each in yaml.safe_load_all(house.helm("get", "hooks", "vmpool")) if each]
    rights = [each for each in hooks if each["kind"] in {"ServiceAccount", "Role", "RoleBinding"}]
    house.kubectl("apply", "--server-side", "-n", house.namespace, "-f", "-", input=yaml.safe_dump_all(rights))
    pod = one(hooks, "Pod", "vmpool-test-lifecycle")["spec"]
    site = await doings.place(house, simcloud, house.namespace)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "key"},
        "stringData": {"apiKey": site.tenant.key},
    }
    (await house.api.kind("secrets", house.namespace, api="/api/v1").create(secret)).ok()
    (house.folder / "token").write_text(house.token(pod["serviceAccountName"]))
    (house.folder / "ca.crt").write_text(house.plane.ca.read_text())
    (house.folder / "namespace").write_text(house.namespace)
    script, name, *_ = pod["containers"][0]["args"]
    account = {"ACCOUNT_NAME": pod["serviceAccountName"], "ACCOUNT": str(house.folder)}
    told = {**account, "API_SERVER": house.plane.url}
    argv = [sys.executable, "-c", script, name, simcloud.url, "key"]
    done = await asyncio.to_thread(subprocess.run, argv, env=told, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    # What the policy vmpool-claims asks for as the pod makes its VMClaim.
    claims = Granted("Role vmpool-test-lifecycle", Right(keys.GROUP, "vmpools", "claim", "vmpool-test-lifecycle"))
    judge(house, "test-lifecycle", frozenset({claims}), least=len(rights))


def judge(house: House, part: str, unseen: frozenset[Granted], least: int = MANY) -> None:
    """Fail unless what an account may is what it has done, but for rights that its requests do not show."""
    requests, granted = house.requests(part), house.granted(part)
    assert len(requests) > least, "this is no proof"
    missing = [f"{user} was refused: {right}" for user, right in deficit(requests)]
    assert not missing, "\n".join(missing)
    left_over = set(surplus(granted, requests))
    assert left_over == unseen, "granted and not used:\n" + "\n".join(map(str, sorted(left_over - unseen)))
